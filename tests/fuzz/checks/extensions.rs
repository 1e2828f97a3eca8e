//! Negotiation of permessage-deflate. For arbitrary text, the answer has only parameters that were offered. For
//! generated offers, the answer is the one that RFC 7692 requires.

use oyez::config::DeflateMode;
use oyez::session::http::extensions::{Accepted, Compression};

use super::Input;

const MODES: [DeflateMode; 3] = [DeflateMode::Off, DeflateMode::Fresh, DeflateMode::Context];

/// The first byte selects the mode, and whether the rest is a text or choices for generated offers.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let selected = input.u8();
    let mode = MODES[usize::from(selected >> 1) % 3];
    if selected & 1 == 0 { check_text(mode, input.0) } else { check_offers(mode, input) }
}

/// The value of the answer's field.
fn answer(accepted: Accepted) -> String {
    let mut out = Vec::new();
    accepted.append_field(&mut out);
    let field = String::from_utf8(out).expect("ASCII");
    let value = field.strip_prefix("Sec-WebSocket-Extensions: ").and_then(|rest| rest.strip_suffix("\r\n"));
    value.expect("one field").to_owned()
}

/// Any values, separated by line feeds.
fn check_text(mode: DeflateMode, text: &[u8]) {
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    let Some(accepted) = Accepted::select(mode, lines.iter().copied()) else { return };
    assert_ne!(mode, DeflateMode::Off);
    let offered = String::from_utf8_lossy(text).to_ascii_lowercase();
    assert!(offered.contains("permessage-deflate"));
    let answer = answer(accepted);
    for parameter in answer.split("; ").skip(2) {
        let name = parameter.split('=').next().unwrap_or_default();
        assert!(offered.contains(name), "{name} was not offered");
    }
    let compression = accepted.compression(mode);
    assert!(compression.allows_compressed());
    assert!(mode == DeflateMode::Context || compression != Compression::Context);
    // The answer is an offer that is accepted with the same answer.
    let again = Accepted::select(mode, std::iter::once(answer.as_bytes())).expect("a valid offer");
    assert_eq!(again, accepted);
}

/// A parameter of an offer, and its requirement.
struct Parameter {
    text: &'static str,
    is_valid: bool,
    /// Parameters of one name must not be repeated.
    name: usize,
}

const fn parameter(text: &'static str, name: usize, is_valid: bool) -> Parameter {
    Parameter { text, is_valid, name }
}

const PARAMETERS: [Parameter; 16] = [
    parameter("server_no_context_takeover", 0, true),
    parameter("client_no_context_takeover", 1, true),
    parameter("server_max_window_bits=8", 2, true),
    parameter("server_max_window_bits=\"15\"", 2, true),
    parameter("server_max_window_bits = 10", 2, true),
    parameter("client_max_window_bits", 3, true),
    parameter("client_max_window_bits=9", 3, true),
    parameter("client_max_window_bits=\"15\"", 3, true),
    parameter("server_no_context_takeover=1", 0, false),
    parameter("client_no_context_takeover=\"x\"", 1, false),
    parameter("server_max_window_bits", 2, false),
    parameter("server_max_window_bits=16", 2, false),
    parameter("server_max_window_bits=08", 2, false),
    parameter("client_max_window_bits=7", 3, false),
    parameter("client_max_window_bits=1x", 3, false),
    parameter("unknown", 4, false),
];

fn check_offers(mode: DeflateMode, mut input: Input<'_>) {
    let mut lines = vec![String::new()];
    let mut expected = None;
    for _ in 0..1 + input.u8() % 5 {
        let style = input.u8();
        let name =
            ["permessage-deflate", "x-webkit-deflate-frame", "PerMessage-Deflate"][usize::from(style) % 3];
        let separator = [";", "; ", " ;\t"][usize::from(style >> 2) % 3];
        let (mut text, mut seen, mut is_valid) = (name.to_owned(), [0_usize; 5], name.len() == 18);
        let mut required = vec!["permessage-deflate".to_owned(), "client_no_context_takeover".to_owned()];
        for _ in 0..input.u8() % 5 {
            let parameter = &PARAMETERS[usize::from(input.u8()) % PARAMETERS.len()];
            text.push_str(separator);
            text.push_str(parameter.text);
            seen[parameter.name] += 1;
            is_valid &= parameter.is_valid && seen[parameter.name] == 1;
            if parameter.name == 0 || parameter.name == 2 {
                required.push(parameter.text.replace(['"', ' '], ""));
            }
        }
        // The context first, as the answer has it.
        required[2..].sort_by_key(|text| text.contains("bits"));
        if is_valid && expected.is_none() {
            expected = Some(required.join("; "));
        }
        let line = lines.last_mut().expect("a line");
        if style & 0x80 == 0 && !line.is_empty() {
            lines.push(text);
        } else {
            line.push_str(if line.is_empty() { "" } else { ", " });
            line.push_str(&text);
        }
    }
    let accepted = Accepted::select(mode, lines.iter().map(String::as_bytes));
    let expected = expected.filter(|_| mode != DeflateMode::Off);
    assert_eq!(accepted.map(answer), expected, "{lines:?}");
}
