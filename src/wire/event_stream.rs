//! Server-sent events (WHATWG HTML 9.2): the encoding of messages, gaps and cursors.
//!
//! The `id:` field is the cursor that a browser sends back by itself, as `Last-Event-ID`.

use std::io::Write;

use super::envelope::{self, append_base64, append_envelope};
use super::{Kind, Message};
use crate::ids::{Gap, MessageId};

/// Appends `id:`, `data:` for each line, and `event: binary` with base64 for bytes.
pub(super) fn append_event(out: &mut Vec<u8>, message: &Message<'_>) {
    let _ = writeln!(out, "id: {}", message.id);
    match message.kind {
        Kind::Binary => {
            out.extend_from_slice(b"event: binary\ndata: ");
            append_base64(out, message.payload);
            out.push(b'\n');
        }
        Kind::Text | Kind::Data => append_lines(out, message.payload),
    }
    out.push(b'\n');
}

/// Appends `id:`, and the envelope of `oyez.v1` as data: channel, number, sender, user and payload.
pub(super) fn append_envelope_event(out: &mut Vec<u8>, message: &Message<'_>) {
    let _ = writeln!(out, "id: {}", message.id);
    if message.kind == Kind::Data {
        let mut envelope = Vec::with_capacity(message.payload.len() + 128);
        append_envelope(&mut envelope, message);
        // A line that ends within it ends in white space of JSON: a string has its line ends escaped.
        append_lines(out, &envelope);
    } else {
        out.extend_from_slice(b"data: ");
        append_envelope(out, message);
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Field name and line end around each line of a payload.
const LINE_BYTES: usize = "data: \n".len();

/// Returns true if the payload takes more than `bytes` in an event, give or take the last line's field name.
pub(super) fn payload_exceeds(kind: Kind, payload: &[u8], bytes: usize) -> bool {
    match kind {
        Kind::Binary => envelope::payload_exceeds(kind, payload, bytes),
        Kind::Text | Kind::Data if payload.len() > bytes => true,
        Kind::Text | Kind::Data if payload.len() * LINE_BYTES <= bytes => false,
        Kind::Text | Kind::Data => {
            let lines = payload.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count();
            payload.len() + lines * (LINE_BYTES - 1) > bytes
        }
    }
}

/// The most bytes that a payload of that length takes in an event: one of line feeds only.
pub(super) fn payload_bytes_max(kind: Kind, length: usize) -> usize {
    match kind {
        Kind::Binary => envelope::payload_bytes_max(kind, length),
        Kind::Text | Kind::Data => (length + 1) * LINE_BYTES,
    }
}

/// A line ends in CR, LF or both, so each of them ends a `data:` field; a reader gets LF for all.
fn append_lines(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest[..end]);
        out.push(b'\n');
        rest = match &rest[end..] {
            [b'\r', b'\n', after @ ..] | [_, after @ ..] => after,
            [] => return,
        };
    }
}

/// Appends an event without data: the browser dispatches no event, and stores the cursor for its next reconnect.
pub fn append_cursor(out: &mut Vec<u8>, id: MessageId) {
    let _ = write!(out, "id: {id}\n\n");
}

/// Appends `event: gap` with the gap as JSON, and the cursor after it.
pub fn append_gap(out: &mut Vec<u8>, channel: &str, gap: &Gap) {
    let json = super::notice::gap_json(channel, gap);
    let _ = write!(out, "id: {}\nevent: gap\ndata: {json}\n\n", gap.resume);
}

/// Appends a comment line, which clients ignore: a keep-alive for proxies.
pub fn append_comment(out: &mut Vec<u8>) {
    out.extend_from_slice(b":\n\n");
}

/// How long a browser waits before it reconnects, in milliseconds: Chromium's own default. A browser keeps the last
/// value for life, so every stream begins with this one.
pub const RETRY_MS: u32 = 3_000;

/// The shortest wait, in milliseconds. Browsers take the value literally: with 0 one was seen to reconnect 360
/// times a second.
pub const RETRY_MS_MIN: u32 = 500;

/// Appends the time after which the browser is to reconnect, in milliseconds.
pub fn append_retry(out: &mut Vec<u8>, retry_ms: u32) {
    let _ = write!(out, "retry: {}\n\n", retry_ms.max(RETRY_MS_MIN));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Sender;

    fn event(kind: Kind, payload: &[u8]) -> String {
        let id = MessageId { epoch: 7, seq: 8 };
        let mut out = Vec::new();
        append_event(
            &mut out,
            &Message { channel: "a", id, number: 9, sender: &Sender::default(), kind, payload },
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn payload_of_several_lines_has_a_data_field_for_each() {
        assert_eq!(event(Kind::Text, b""), "id: 7-8\ndata: \n\n");
        assert_eq!(event(Kind::Text, b"one"), "id: 7-8\ndata: one\n\n");
        assert_eq!(
            event(Kind::Data, b"[1,\n2,\r\n3,\r4]\n"),
            "id: 7-8\ndata: [1,\ndata: 2,\ndata: 3,\ndata: 4]\ndata: \n\n"
        );
        assert_eq!(event(Kind::Binary, b"\n\0"), "id: 7-8\nevent: binary\ndata: CgA=\n\n");
    }

    #[test]
    fn retry_has_a_minimum() {
        for (retry_ms, expected) in [(0, "retry: 500\n\n"), (499, "retry: 500\n\n"), (501, "retry: 501\n\n")]
        {
            let mut out = Vec::new();
            append_retry(&mut out, retry_ms);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn payload_length_is_computed_before_encoding() {
        let fields = event(Kind::Text, b"").len() - LINE_BYTES;
        for payload in ["", "\n", "a\nb\r\rc", &"\n".repeat(500), &"x".repeat(500)] {
            let length = event(Kind::Text, payload.as_bytes()).len() - fields;
            assert!(length <= payload_bytes_max(Kind::Text, payload.len()), "{payload:?}");
            let less = length.checked_sub(2 * LINE_BYTES);
            assert!(less.is_none_or(|less| payload_exceeds(Kind::Text, payload.as_bytes(), less)));
            assert!(!payload_exceeds(Kind::Text, payload.as_bytes(), length), "{payload:?}");
        }
    }

    #[test]
    fn payload_with_line_ends_stays_one_event() {
        let text = event(Kind::Text, b"x\n\nid: 9\nevent: gap\r\rdata: y");
        assert_eq!(text.matches("\n\n").count(), 1, "{text}");
        assert!(text.lines().skip(1).all(|line| line.is_empty() || line.starts_with("data: ")), "{text}");
    }
}
