//! Negotiation of WebSocket extensions (RFC 6455 9.1): permessage-deflate (RFC 7692), and no other.
//!
//! The client offers extensions in the order of its preference. The first offer of permessage-deflate whose parameters
//! are known, valid and not repeated is accepted (RFC 7692 5 and 7.1). Without one, the connection uses no
//! extension, which is also how offers that do not follow the grammar are treated.
//!
//! The response always has `client_no_context_takeover`, which 7.1.1.2 allows without an offer: no connection then
//! needs a window for the messages of its client.

use crate::config::DeflateMode;

/// The use of permessage-deflate on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// No compressed messages.
    None,
    /// The client may compress its messages. Its window is smaller than the compressor's, so it receives plain
    /// messages, which RFC 7692 6.1 allows.
    Inbound,
    /// In both directions, without reference to earlier messages.
    Alone,
    /// In both directions; messages to the client refer to earlier ones.
    Context,
}

impl Compression {
    /// Returns true if the client may send compressed messages.
    pub fn allows_compressed(self) -> bool {
        self != Compression::None
    }
}

/// An accepted offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    server_no_context_takeover: bool,
    /// The window of the server's messages, if the client limits it.
    server_max_window_bits: Option<u8>,
}

impl Accepted {
    /// Selects an offer from the values of `Sec-WebSocket-Extensions`, in the order of their lines.
    pub fn select<'a>(mode: DeflateMode, values: impl Iterator<Item = &'a [u8]>) -> Option<Accepted> {
        if mode == DeflateMode::Off || !cfg!(feature = "deflate") {
            return None;
        }
        values.flat_map(Elements::of).find_map(accept)
    }

    /// The negotiated use of the extension.
    pub fn compression(self, mode: DeflateMode) -> Compression {
        match self {
            Accepted { server_max_window_bits: Some(..15), .. } => Compression::Inbound,
            Accepted { server_no_context_takeover: true, .. } => Compression::Alone,
            _ if mode == DeflateMode::Context => Compression::Context,
            _ => Compression::Alone,
        }
    }

    /// The field of the response.
    pub fn append_field(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover");
        if self.server_no_context_takeover {
            out.extend_from_slice(b"; server_no_context_takeover");
        }
        if let Some(bits) = self.server_max_window_bits {
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// Accepts an offer of permessage-deflate with valid parameters (RFC 7692 7.1).
fn accept(offer: Element<'_>) -> Option<Accepted> {
    let mut parameters = offer.parameters();
    match parameters.next()? {
        (name, None) if name.eq_ignore_ascii_case(b"permessage-deflate") => {}
        _ => return None,
    }
    let mut accepted = Accepted { server_no_context_takeover: false, server_max_window_bits: None };
    let mut seen = [false; 4];
    for (name, value) in parameters {
        let index = match (name, value) {
            (b"server_no_context_takeover", None) => {
                accepted.server_no_context_takeover = true;
                0
            }
            (b"client_no_context_takeover", None) => 1,
            // 7.1.2.1: with a value, in decimal digits without leading zeros.
            (b"server_max_window_bits", Some(value)) => {
                accepted.server_max_window_bits = Some(window_bits(value)?);
                2
            }
            // 7.1.2.2: a value is optional. The response may omit the parameter: any window is decompressed.
            (b"client_max_window_bits", value) => {
                if let Some(value) = value {
                    window_bits(value)?;
                }
                3
            }
            _ => return None,
        };
        if std::mem::replace(&mut seen[index], true) {
            return None;
        }
    }
    Some(accepted)
}

fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// One offer: the extension's name and its parameters, each valid by the grammar.
#[derive(Clone, Copy, Debug)]
struct Element<'a>(&'a [u8]);

/// The offers in one value. An element that does not follow the grammar ends them: where the next one begins is not
/// known.
struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Elements<'a> {
    fn of(value: &'a [u8]) -> Elements<'a> {
        Elements { rest: value }
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        // RFC 9110 5.6.1.2: empty elements of a list are ignored.
        while let Some((b' ' | b'\t' | b',', rest)) = self.rest.split_first() {
            self.rest = rest;
        }
        let element = self.rest;
        let mut end = element;
        loop {
            let (_, after) = parameter(end)?;
            end = after;
            match end.split_first() {
                Some((b';', after)) => end = after,
                None | Some((b',', _)) => break,
                _ => return None,
            }
        }
        self.rest = end;
        Some(Element(&element[..element.len() - end.len()]))
    }
}

impl<'a> Element<'a> {
    /// The name, without a value, followed by the parameters.
    fn parameters(self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (one, after) = parameter(rest)?;
            rest = after.strip_prefix(b";").unwrap_or(after);
            Some(one)
        })
    }
}

type Parameter<'a> = (&'a [u8], Option<&'a [u8]>);

/// A name with an optional value, without the white space around both, and the rest of the text.
fn parameter(text: &[u8]) -> Option<(Parameter<'_>, &[u8])> {
    let (name, rest) = token(text.trim_ascii_start())?;
    let rest = rest.trim_ascii_start();
    let Some(rest) = rest.strip_prefix(b"=") else { return Some(((name, None), rest)) };
    let rest = rest.trim_ascii_start();
    let (value, rest) = match rest.strip_prefix(b"\"") {
        // RFC 6455 9.1: a quoted value must be a token once it is unescaped; none of ours needs an escape.
        Some(rest) => {
            let (value, rest) = token(rest)?;
            (value, rest.strip_prefix(b"\"")?)
        }
        None => token(rest)?,
    };
    Some(((name, Some(value)), rest.trim_ascii_start()))
}

/// A token (RFC 9110 5.6.2), and the rest of the text.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = text.iter().position(|byte| !is_token(byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;

    fn response(lines: &[&str]) -> Option<String> {
        let values = lines.iter().map(|line| line.as_bytes());
        let accepted = Accepted::select(DeflateMode::Context, values)?;
        let mut out = Vec::new();
        accepted.append_field(&mut out);
        let field = String::from_utf8(out).unwrap();
        let value = field.strip_prefix("Sec-WebSocket-Extensions: ").unwrap().strip_suffix("\r\n").unwrap();
        Some(value.to_owned())
    }

    const ACCEPTED: &str = "permessage-deflate; client_no_context_takeover";

    #[test]
    fn offers_with_valid_parameters_are_accepted() {
        let plain = Some(ACCEPTED.to_owned());
        for offer in [
            "permessage-deflate",
            "Permessage-Deflate",
            // The offers of Chromium and Firefox, and of npm `ws` and undici.
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=15",
            "permessage-deflate;client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=\"10\"",
            "permessage-deflate ;\tclient_max_window_bits = 10 ",
            "permessage-deflate; client_no_context_takeover",
            "permessage-deflate; client_no_context_takeover; client_max_window_bits",
            ", permessage-deflate,",
        ] {
            assert_eq!(response(&[offer]), plain, "{offer}");
        }
        // The parameters that limit the server are confirmed. The first is that of gorilla.
        for (offer, confirmed) in [
            (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                "; server_no_context_takeover",
            ),
            ("permessage-deflate; server_max_window_bits=10", "; server_max_window_bits=10"),
            ("permessage-deflate; server_max_window_bits=\"8\"", "; server_max_window_bits=8"),
            (
                "permessage-deflate; server_max_window_bits=15; client_max_window_bits; server_no_context_takeover",
                "; server_no_context_takeover; server_max_window_bits=15",
            ),
        ] {
            assert_eq!(response(&[offer]), Some(format!("{ACCEPTED}{confirmed}")), "{offer}");
        }
    }

    #[test]
    fn offers_with_unknown_invalid_or_repeated_parameters_are_declined() {
        for offer in [
            "",
            "permessage-bzip2",
            "permessage-deflate-2",
            "x-webkit-deflate-frame",
            "permessage-deflate; unknown",
            "permessage-deflate; unknown=1",
            "permessage-deflate; Server_No_Context_Takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=true",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_max_window_bits=1e1",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; client_max_window_bits=0",
            "permessage-deflate; client_max_window_bits=100",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; client_max_window_bits=9; client_max_window_bits=9",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            // Not of the grammar.
            "permessage-deflate;",
            "permessage-deflate;;client_max_window_bits",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate; client_max_window_bits=\"10",
            "permessage-deflate; client_max_window_bits=\"1,0\"",
            "permessage-deflate=1",
            "=; permessage-deflate",
            "\u{fc}, permessage-deflate",
        ] {
            assert_eq!(response(&[offer]), None, "{offer}");
        }
    }

    #[test]
    fn first_acceptable_offer_of_all_lines_is_selected() {
        let bits = |bits| Some(format!("{ACCEPTED}; server_max_window_bits={bits}"));
        // RFC 7692 7.1.3 has offers with a fallback.
        for (lines, expected) in [
            (&["permessage-deflate; server_max_window_bits=10, permessage-deflate"][..], bits(10)),
            (
                &["permessage-deflate; server_max_window_bits=1, permessage-deflate"],
                Some(ACCEPTED.to_owned()),
            ),
            (&["permessage-bzip2; a=\"x\", foo", "permessage-deflate; server_max_window_bits=9"], bits(9)),
            (&["permessage-deflate; server_max_window_bits=9", "permessage-deflate"], bits(9)),
            (&["permessage-deflate; a", "", "permessage-deflate; server_max_window_bits=12"], bits(12)),
            // The rest of a line after an invalid element is ignored.
            (&["a b, permessage-deflate"], None),
            (&["a b, permessage-deflate", "permessage-deflate; server_max_window_bits=11"], bits(11)),
        ] {
            assert_eq!(response(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn no_offer_is_accepted_when_compression_is_off() {
        let offer = [&b"permessage-deflate"[..]];
        assert_eq!(Accepted::select(DeflateMode::Off, offer.into_iter()), None);
        assert!(Accepted::select(DeflateMode::Context, offer.into_iter()).is_some());
    }

    #[test]
    fn window_and_takeover_determine_what_is_sent() {
        let compression = |mode, offer: &str| {
            Accepted::select(mode, [offer.as_bytes()].into_iter()).unwrap().compression(mode)
        };
        for (offer, context, fresh) in [
            ("permessage-deflate; client_max_window_bits", Compression::Context, Compression::Alone),
            ("permessage-deflate; server_max_window_bits=15", Compression::Context, Compression::Alone),
            ("permessage-deflate; server_no_context_takeover", Compression::Alone, Compression::Alone),
            ("permessage-deflate; server_max_window_bits=14", Compression::Inbound, Compression::Inbound),
        ] {
            assert_eq!(compression(DeflateMode::Context, offer), context, "{offer}");
            assert_eq!(compression(DeflateMode::Fresh, offer), fresh, "{offer}");
        }
    }
}
