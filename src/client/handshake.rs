//! The opening handshake on the client side (RFC 6455 4.1), without a blocking call: the request, and a check of the
//! response.

use std::fmt::Write;

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// Maximum length of a response head. Servers send 150 to 400 bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Maximum header fields of a response. Servers send 3 to 10.
const FIELDS_MAX: usize = 64;

/// The request of a client.
#[derive(Clone, Copy, Debug, Default)]
pub struct HandshakeRequest<'a> {
    /// The host and port of the URL.
    pub authority: &'a str,
    /// The path, with the query.
    pub path: &'a str,
    /// Offer permessage-deflate with all defaults.
    pub offers_deflate: bool,
    /// The subprotocol to offer.
    pub protocol: Option<&'static str>,
    /// The bearer token.
    pub token: Option<&'a str>,
}

/// A request, and the accept key that its response must contain.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    /// permessage-deflate was offered.
    offers_deflate: bool,
    /// The subprotocol that was offered.
    protocol: Option<&'static str>,
    /// The beginning of a response that arrived in pieces.
    pub received: Vec<u8>,
}

/// The result of parsing a response.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeResponse {
    /// The head is not complete.
    Partial,
    /// The connection is open.
    Open {
        /// The offset at which frames begin.
        head_bytes: usize,
        /// permessage-deflate was negotiated (RFC 7692).
        is_deflate_negotiated: bool,
    },
    /// A status other than 101.
    Status {
        /// The status.
        status: u16,
        /// The offset at which the body begins.
        head_bytes: usize,
        /// The length of the body, if the response has it.
        content_bytes: Option<usize>,
    },
    /// Not a valid response to this request.
    Invalid(&'static str),
}

impl Handshake {
    /// The bytes of a request, and the handshake that they start.
    pub fn request(request: HandshakeRequest<'_>) -> (Vec<u8>, Handshake) {
        let HandshakeRequest { authority, path, offers_deflate, protocol, token } = request;
        let key = generate_key();
        let mut fields = String::new();
        if offers_deflate {
            fields.push_str("Sec-WebSocket-Extensions: permessage-deflate\r\n");
        }
        if let Some(protocol) = protocol {
            let _ = write!(fields, "Sec-WebSocket-Protocol: {protocol}\r\n");
        }
        if let Some(token) = token {
            let _ = write!(fields, "Authorization: Bearer {token}\r\n");
        }
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
        );
        let accept = derive_accept_key(key.as_bytes());
        (text.into_bytes(), Handshake { accept, offers_deflate, protocol, received: Vec::new() })
    }

    /// Parses the bytes of a response that have arrived so far.
    pub fn parse_response(&self, bytes: &[u8]) -> HandshakeResponse {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let head_bytes = match response.parse(bytes) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => {
                return HandshakeResponse::Partial;
            }
            Ok(httparse::Status::Partial) => return HandshakeResponse::Invalid("response too long"),
            Err(_) => return HandshakeResponse::Invalid("not HTTP"),
        };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
        };
        match response.code {
            Some(101) => {}
            Some(status) => {
                let content_bytes = field("Content-Length").and_then(|length| length.parse().ok());
                return HandshakeResponse::Status { status, head_bytes, content_bytes };
            }
            None => return HandshakeResponse::Invalid("not HTTP"),
        }
        // RFC 6455 4.1: "If the response lacks ... the client MUST _Fail the WebSocket Connection_".
        if !field("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            return HandshakeResponse::Invalid("101 without Upgrade");
        }
        if field("Sec-WebSocket-Accept") != Some(&self.accept) {
            return HandshakeResponse::Invalid("wrong Sec-WebSocket-Accept");
        }
        // The same section: a subprotocol that was not offered fails the connection. A client that offers one needs it,
        // so a response without it is rejected too.
        if field("Sec-WebSocket-Protocol") != self.protocol {
            return HandshakeResponse::Invalid("the server does not speak the requested subprotocol");
        }
        let is_deflate_negotiated = match field("Sec-WebSocket-Extensions") {
            None | Some("") => false,
            Some(value) if self.offers_deflate && is_deflate(value) => true,
            Some(_) => return HandshakeResponse::Invalid("an extension that was not offered"),
        };
        HandshakeResponse::Open { head_bytes, is_deflate_negotiated }
    }
}

/// Returns true for a response to an offer of permessage-deflate without parameters. The server may then add any
/// parameter except `client_max_window_bits` (RFC 7692 7.1), and none of them changes how its messages are
/// decompressed.
fn is_deflate(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let is_known = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default().trim();
        ["server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits"].contains(&name)
    };
    parts.next() == Some("permessage-deflate") && parts.all(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_checked_against_the_request() {
        let request = HandshakeRequest { authority: "127.0.0.1:1", path: "/ws/a", ..Default::default() };
        let (request, mut handshake) = Handshake::request(request);
        assert!(request.starts_with(b"GET /ws/a HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"));
        // The example of RFC 6455 1.3.
        handshake.accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        let check =
            |text: &str, expected| assert_eq!(handshake.parse_response(text.as_bytes()), expected, "{text}");
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let open = HandshakeResponse::Open { head_bytes: good.len(), is_deflate_negotiated: false };
        check(good, open);
        let open = HandshakeResponse::Open { head_bytes: good.len(), is_deflate_negotiated: false };
        check(&format!("{good}\u{1}tail"), open);
        check(&good[..good.len() - 1], HandshakeResponse::Partial);
        check(&good.replace("s3p", "S3P"), HandshakeResponse::Invalid("wrong Sec-WebSocket-Accept"));
        check(&good.replace("upgrade: WebSocket\r\n", ""), HandshakeResponse::Invalid("101 without Upgrade"));
        let rejection = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\n";
        let head_bytes = rejection.len();
        let rejected = HandshakeResponse::Status { status: 503, head_bytes, content_bytes: Some(9) };
        check(rejection, rejected);
        check("SSH-2.0-OpenSSH_9.2\r\n", HandshakeResponse::Invalid("not HTTP"));
        let endless = format!("HTTP/1.1 101 x\r\nA: {}", "a".repeat(HEAD_BYTES_MAX));
        check(&endless, HandshakeResponse::Invalid("response too long"));
    }

    #[test]
    fn extension_is_accepted_only_if_it_was_offered() {
        let response = |handshake: &Handshake, extension: &str| {
            let text = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Extensions: {extension}\r\n\r\n",
                handshake.accept
            );
            match handshake.parse_response(text.as_bytes()) {
                HandshakeResponse::Open { is_deflate_negotiated, .. } => Some(is_deflate_negotiated),
                _ => None,
            }
        };
        let request = HandshakeRequest { authority: "127.0.0.1:1", path: "/ws/a", ..Default::default() };
        let (_, plain) = Handshake::request(request);
        let (request, handshake) = Handshake::request(HandshakeRequest { offers_deflate: true, ..request });
        assert!(request.ends_with(b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"));
        for (extension, expected) in [
            ("", Some(false)),
            ("permessage-deflate", Some(true)),
            ("permessage-deflate; client_no_context_takeover; server_max_window_bits=10", Some(true)),
            ("permessage-deflate; client_max_window_bits=15", None),
            ("permessage-bzip2", None),
        ] {
            assert_eq!(response(&handshake, extension), expected, "{extension}");
        }
        assert_eq!(response(&plain, "permessage-deflate"), None);
    }

    #[test]
    fn subprotocol_that_is_not_the_offered_one_is_rejected() {
        let request = HandshakeRequest { authority: "a:1", path: "/ws", ..Default::default() };
        let (_, plain) = Handshake::request(request);
        let (text, v1) =
            Handshake::request(HandshakeRequest { protocol: Some("oyez.v1"), token: Some("x.y"), ..request });
        let text = String::from_utf8(text).unwrap();
        let fields = "\r\nSec-WebSocket-Protocol: oyez.v1\r\nAuthorization: Bearer x.y\r\n\r\n";
        assert!(text.ends_with(fields), "{text}");
        let is_open = |handshake: &Handshake, field: &str| {
            let text = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n{field}\r\n",
                handshake.accept
            );
            matches!(handshake.parse_response(text.as_bytes()), HandshakeResponse::Open { .. })
        };
        let (none, other) = ("", "Sec-WebSocket-Protocol: oyez.v2\r\n");
        let same = "Sec-WebSocket-Protocol: oyez.v1\r\n";
        assert!(is_open(&v1, same) && !is_open(&v1, none) && !is_open(&v1, other));
        assert!(is_open(&plain, none) && !is_open(&plain, same));
    }
}
