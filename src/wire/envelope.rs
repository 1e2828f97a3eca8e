//! A message as a JSON object: `oyez.v1`, and the answers about a channel's history.
//!
//! The payload of a JSON message stands in the object as it came: it was checked once, at ingress, and is
//! never parsed and written anew.

use std::io::Write;

use data_encoding::BASE64;

use super::{Kind, Message};

/// Appends `{"ch":…,"id":…,"n":…,"from":…,"data"|"text"|"base64":…}`.
pub fn append_envelope(out: &mut Vec<u8>, message: &Message<'_>) {
    let Message { channel, id, number, from, kind, payload } = *message;
    // Names, ids and client ids have nothing in them that JSON escapes. A Vec takes every write.
    let _ = write!(out, "{{\"ch\":\"{channel}\",\"id\":\"{id}\",\"n\":{number}");
    if let Some(from) = from {
        let _ = write!(out, ",\"from\":\"{from}\"");
    }
    match kind {
        Kind::Data => {
            out.extend_from_slice(b",\"data\":");
            out.extend_from_slice(payload);
        }
        Kind::Text => {
            out.extend_from_slice(b",\"text\":");
            append_string(out, payload);
        }
        Kind::Binary => {
            out.extend_from_slice(b",\"base64\":\"");
            append_base64(out, payload);
            out.push(b'"');
        }
    }
    out.push(b'}');
}

/// Appends bytes in base64 (RFC 4648 4).
pub(super) fn append_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len();
    out.resize(start + BASE64.encode_len(bytes.len()), 0);
    BASE64.encode_mut(bytes, &mut out[start..]);
}

/// Appends UTF-8 as a JSON string. What is not UTF-8 was refused at ingress.
fn append_string(out: &mut Vec<u8>, text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let _ = serde_json::to_writer(out, &text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientId, MessageId, SlotId};
    use proptest::prelude::*;
    use serde_json::Value;

    fn envelope(kind: Kind, payload: &[u8], from: Option<ClientId>) -> String {
        let id = MessageId { epoch: 7, seq: 8 };
        let mut out = Vec::new();
        append_envelope(&mut out, &Message { channel: "a.b", id, number: 9, from, kind, payload });
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_kind() {
        let client = ClientId::of(SlotId { key: 1, generation: 1 }, 0);
        assert_eq!(
            envelope(Kind::Data, b"{\"x\": [1, 2.50]}", None),
            r#"{"ch":"a.b","id":"7-8","n":9,"data":{"x": [1, 2.50]}}"#
        );
        assert_eq!(
            envelope(Kind::Text, "\"hä\n\u{2028}\\".as_bytes(), Some(client)),
            format!(
                "{{\"ch\":\"a.b\",\"id\":\"7-8\",\"n\":9,\"from\":\"{client}\",\"text\":\"\\\"hä\\n\u{2028}\\\\\"}}"
            )
        );
        assert_eq!(
            envelope(Kind::Binary, &[0, 255, 1], None),
            r#"{"ch":"a.b","id":"7-8","n":9,"base64":"AP8B"}"#
        );
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let object: Value = serde_json::from_str(&envelope(Kind::Text, text.as_bytes(), None)).unwrap();
            prop_assert_eq!(object["text"].as_str(), Some(&text[..]));
            let object: Value = serde_json::from_str(&envelope(Kind::Binary, &bytes, None)).unwrap();
            let decoded = BASE64.decode(object["base64"].as_str().unwrap().as_bytes()).unwrap();
            prop_assert_eq!(decoded, bytes);
        }
    }
}
