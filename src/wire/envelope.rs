//! The JSON envelope of a message, in `oyez.v1` and in responses about a channel's history.
//!
//! The payload of a JSON message is copied into the envelope unchanged: it was validated once, at ingress, and is never
//! parsed and serialized again.

use std::io::{self, Write};

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::{Kind, Message};

/// The most bytes that one byte of a payload takes in JSON: a control character is `\u0001`.
const ESCAPED_BYTES_MAX: usize = 6;

/// The fewest bytes of a payload that are escaped at a time; below that, calls cost more than bytes.
const PART_BYTES_MIN: usize = 64;

/// Appends `{"ch":…,"id":…,"n":…,"from":…,"user":…,"data"|"text"|"base64":…}`.
pub fn append_envelope(out: &mut Vec<u8>, message: &Message<'_>) {
    append_head(out, message);
    append_payload(out, message.kind, message.payload, 0, usize::MAX);
    append_end(out, message.kind);
}

/// Appends the part of an envelope before its payload.
pub fn append_head(out: &mut Vec<u8>, message: &Message<'_>) {
    let Message { channel, id, number, sender, kind, .. } = *message;
    // Names, ids and client ids have nothing in them that JSON escapes. A Vec takes every write.
    let _ = write!(out, "{{\"ch\":\"{channel}\",\"id\":\"{id}\",\"n\":{number}");
    if let Some(from) = sender.client {
        let _ = write!(out, ",\"from\":\"{from}\"");
    }
    if let Some(user) = &sender.user {
        let _ = write!(out, ",\"user\":{}", user.as_json());
    }
    out.extend_from_slice(match kind {
        Kind::Data => b",\"data\":",
        Kind::Text => b",\"text\":\"",
        Kind::Binary => b",\"base64\":\"",
    });
}

/// Appends a part of a payload in the encoding of an envelope: from the byte `from` on, until the payload ends or about
/// `bytes_max` bytes are appended (one part of `PART_BYTES_MIN` more at most). Returns where the next part begins. The
/// parts together are the same bytes, wherever they are cut.
pub fn append_payload(out: &mut Vec<u8>, kind: Kind, payload: &[u8], from: usize, bytes_max: usize) -> usize {
    let full = out.len().saturating_add(bytes_max);
    let mut at = from;
    while at < payload.len() && out.len() < full {
        let room = full - out.len();
        let step = match kind {
            Kind::Data => room,
            Kind::Text => (room / ESCAPED_BYTES_MAX).max(PART_BYTES_MIN),
            // Three bytes are four letters: another cut would end in padding.
            Kind::Binary => (room / 4).max(1) * 3,
        };
        let mut end = payload.len().min(at.saturating_add(step));
        if kind == Kind::Text {
            // Not within a character: its further bytes begin with the bits 10 (RFC 3629 3).
            while end < payload.len() && payload[end] & 0xc0 == 0x80 {
                end += 1;
            }
        }
        let part = &payload[at..end];
        match kind {
            Kind::Data => out.extend_from_slice(part),
            Kind::Text => append_escaped(out, part),
            Kind::Binary => append_base64(out, part),
        }
        at = end;
    }
    at
}

/// Appends the part of an envelope after its payload.
pub fn append_end(out: &mut Vec<u8>, kind: Kind) {
    out.extend_from_slice(match kind {
        Kind::Data => b"}",
        Kind::Text | Kind::Binary => b"\"}",
    });
}

/// Returns true if the payload takes more than `bytes` in an envelope. Stops counting there.
pub(super) fn payload_exceeds(kind: Kind, payload: &[u8], bytes: usize) -> bool {
    match kind {
        Kind::Data => payload.len() > bytes,
        Kind::Binary => BASE64.encode_len(payload.len()) > bytes,
        Kind::Text if payload.len() > bytes => true,
        Kind::Text if payload.len() * ESCAPED_BYTES_MAX <= bytes => false,
        Kind::Text => {
            let escapes = payload.iter().map(|byte| match byte {
                b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
                0..0x20 => ESCAPED_BYTES_MAX,
                _ => 1,
            });
            escapes.sum::<usize>() > bytes
        }
    }
}

/// The most bytes that a payload of that length takes in an envelope.
pub(super) fn payload_bytes_max(kind: Kind, length: usize) -> usize {
    match kind {
        Kind::Data => length,
        Kind::Text => length * ESCAPED_BYTES_MAX,
        Kind::Binary => BASE64.encode_len(length),
    }
}

/// Appends bytes in base64 (RFC 4648 4).
pub(super) fn append_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + BASE64.encode_len(bytes.len()), 0);
    BASE64.encode_mut(bytes, &mut out[start..]);
}

/// Writes strings without their quotes, so that a part of one can be written.
#[derive(Debug)]
struct Unquoted;

impl Formatter for Unquoted {
    fn begin_string<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        Ok(())
    }

    fn end_string<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        Ok(())
    }
}

/// Appends UTF-8 text, escaped for a JSON string. Text that is not UTF-8 was rejected at ingress.
fn append_escaped(out: &mut Vec<u8>, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let _ = text.serialize(&mut Serializer::with_formatter(out, Unquoted));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, MessageId, Sender, SlotId, User};
    use proptest::prelude::*;
    use serde_json::Value;

    fn envelope(kind: Kind, payload: &[u8], sender: &Sender) -> String {
        let id = MessageId { epoch: 7, seq: 8 };
        let mut out = Vec::new();
        append_envelope(&mut out, &Message { channel: "a.b", id, number: 9, sender, kind, payload });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn envelope_of_each_kind_has_its_payload_field() {
        let client = ClientId::of(SlotId { key: 1, generation: 1 }, 0);
        let sender = Sender { client: Some(client), user: None };
        let anonymous = Sender::default();
        assert_eq!(
            envelope(Kind::Data, b"{\"x\": [1, 2.50]}", &anonymous),
            r#"{"ch":"a.b","id":"7-8","n":9,"data":{"x": [1, 2.50]}}"#
        );
        assert_eq!(
            envelope(Kind::Text, "\"hä\n\u{2028}\\".as_bytes(), &sender),
            format!(
                "{{\"ch\":\"a.b\",\"id\":\"7-8\",\"n\":9,\"from\":\"{client}\",\"text\":\"\\\"hä\\n\u{2028}\\\\\"}}"
            )
        );
        assert_eq!(
            envelope(Kind::Binary, &[0, 255, 1], &anonymous),
            r#"{"ch":"a.b","id":"7-8","n":9,"base64":"AP8B"}"#
        );
        let user = Some(User::new("al\"ice", Some(r#"{"name": "Alice"}"#)));
        assert_eq!(
            envelope(Kind::Data, b"1", &Sender { user, ..sender }),
            format!(
                r#"{{"ch":"a.b","id":"7-8","n":9,"from":"{client}","user":{{"id":"al\"ice","info":{{"name": "Alice"}}}},"data":1}}"#
            )
        );
    }

    proptest! {
        #[test]
        fn parts_of_a_payload_are_the_whole_wherever_they_are_cut(
            text in any::<String>(),
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            sizes in prop::collection::vec(1usize..300, 1..8),
        ) {
            let control = "\u{1}".repeat(bytes.len());
            let payloads =
                [(Kind::Text, text.as_bytes()), (Kind::Text, control.as_bytes()), (Kind::Binary, &bytes[..])];
            for (kind, payload) in payloads {
                let (mut whole, mut parts, mut at, mut turn) = (Vec::new(), Vec::new(), 0, 0);
                append_payload(&mut whole, kind, payload, 0, usize::MAX);
                while at < payload.len() {
                    let (before, size) = (parts.len(), sizes[turn % sizes.len()]);
                    at = append_payload(&mut parts, kind, payload, at, size);
                    let most = size + (PART_BYTES_MIN + 3) * ESCAPED_BYTES_MAX;
                    prop_assert!(parts.len() > before && parts.len() - before <= most);
                    turn += 1;
                }
                prop_assert_eq!(&parts, &whole);
                prop_assert!(whole.len() <= payload_bytes_max(kind, payload.len()));
                for bytes in [whole.len() / 2, whole.len().saturating_sub(1), whole.len(), whole.len() + 1] {
                    prop_assert_eq!(payload_exceeds(kind, payload, bytes), whole.len() > bytes);
                }
            }
        }

        #[test]
        fn payload_survives_encoding_and_parsing(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let object: Value = serde_json::from_str(&envelope(Kind::Text, text.as_bytes(), &Sender::default())).unwrap();
            prop_assert_eq!(object["text"].as_str(), Some(&text[..]));
            let object: Value = serde_json::from_str(&envelope(Kind::Binary, &bytes, &Sender::default())).unwrap();
            let decoded = BASE64.decode(object["base64"].as_str().unwrap().as_bytes()).unwrap();
            prop_assert_eq!(decoded, bytes);
        }
    }
}
