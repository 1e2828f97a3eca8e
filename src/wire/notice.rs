//! Notices of `oyez.v1`: all frames that the server sends except for messages.

use serde::Serialize;
use serde_json::value::RawValue;

use super::frame::append_text;
use crate::config::Limits;
use crate::ids::{Gap, MessageId};

/// One notice; each is one text frame with one JSON object.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Notice<'a> {
    /// The first notice of a connection.
    Hello {
        /// The cursor from which a client that is disconnected now has to resume; `None` for a client that may not
        /// subscribe.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
        /// The client's public id.
        client: String,
        /// Identifies the memory of the client's idempotency keys. If it differs from that of the last connection, the
        /// keys of earlier publishes are not found: the process or the publisher is another.
        run: String,
        /// Identifies the server, if several share a log: each counts the messages of a channel by itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        /// Maximum interval between two frames of the client, in milliseconds; 0: no maximum.
        ping_ms: u32,
        /// Maximum size of a message that the client sends, in bytes.
        message_bytes_max: usize,
        /// How long a publish can be retried under its idempotency key, in milliseconds; 0: the server keeps no keys.
        key_age_ms: u32,
        /// Milliseconds until the client's token expires; absent without a token.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_ms: Option<u64>,
    },
    /// The client is subscribed.
    Subscribed {
        /// The channel.
        ch: &'a str,
        /// The cursor after which messages follow.
        id: Id,
        /// The number of subscribers, including this one.
        subscribers: usize,
    },
    /// The client is no longer subscribed.
    Unsubscribed {
        /// The channel.
        ch: &'a str,
    },
    /// The client's message is published.
    Ack {
        /// The `ref` of the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// The message's id.
        id: Id,
    },
    /// The response to a ping.
    Pong,
    /// The client's token is valid.
    Authenticated {
        /// The `ref` of the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// Milliseconds until the token expires.
        expires_ms: u64,
    },
    /// The replay is complete; new messages follow.
    Live {
        /// The channel.
        ch: &'a str,
        /// The cursor at the end of the replay.
        id: Id,
    },
    /// A request failed.
    Error {
        /// The `ref` of the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// The channel that the request named.
        #[serde(skip_serializing_if = "Option::is_none")]
        ch: Option<&'a str>,
        /// The error code, for programs.
        code: &'static str,
        /// The error message.
        message: &'a str,
    },
}

/// A message's id, serialized as a string.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub MessageId);

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Notice<'_> {
    /// Encodes the notice as a frame.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.append_frame(&mut frame);
        frame
    }

    /// Appends its frame.
    pub fn append_frame(&self, out: &mut Vec<u8>) {
        // Strings and numbers only, whose serialization cannot fail.
        let text = serde_json::to_vec(self).unwrap_or_default();
        out.reserve(text.len() + Limits::FRAME_HEADER_BYTES_MAX);
        append_text(out, &text);
    }
}

/// A gap as JSON, the same in every form.
pub fn gap_json(channel: &str, gap: &Gap) -> String {
    let Gap { after, resume, missed, why } = gap;
    let missed = missed.map_or("null".to_owned(), |missed| missed.to_string());
    format!(
        "{{\"type\":\"gap\",\"ch\":\"{channel}\",\"after\":\"{after}\",\"resume\":\"{resume}\",\"missed\":{missed},\"why\":\"{}\"}}",
        why.as_str()
    )
}

/// The frame that announces a gap.
pub fn gap_frame(channel: &str, gap: &Gap) -> Vec<u8> {
    let mut frame = Vec::new();
    append_text(&mut frame, gap_json(channel, gap).as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::GapReason;

    #[test]
    fn notices_read_as_documented() {
        let id = Id(MessageId { epoch: 7, seq: 8 });
        let check = |notice: Notice<'_>, expected: &str| {
            let frame = notice.to_frame();
            assert_eq!(std::str::from_utf8(crate::wire::payload_of(&frame)).unwrap(), expected);
        };
        check(
            Notice::Hello {
                id: Some(id),
                client: "c".into(),
                run: "r".into(),
                node: None,
                ping_ms: 25_000,
                message_bytes_max: 9,
                key_age_ms: 5,
                expires_ms: None,
            },
            r#"{"type":"hello","id":"7-8","client":"c","run":"r","ping_ms":25000,"message_bytes_max":9,"key_age_ms":5}"#,
        );
        check(
            Notice::Subscribed { ch: "a", id, subscribers: 3 },
            r#"{"type":"subscribed","ch":"a","id":"7-8","subscribers":3}"#,
        );
        check(Notice::Unsubscribed { ch: "a" }, r#"{"type":"unsubscribed","ch":"a"}"#);
        let reference: Box<RawValue> = serde_json::from_str("7").unwrap();
        check(Notice::Ack { reference: Some(&reference), id }, r#"{"type":"ack","ref":7,"id":"7-8"}"#);
        check(Notice::Ack { reference: None, id }, r#"{"type":"ack","id":"7-8"}"#);
        check(Notice::Pong, r#"{"type":"pong"}"#);
        check(
            Notice::Authenticated { reference: Some(&reference), expires_ms: 9 },
            r#"{"type":"authenticated","ref":7,"expires_ms":9}"#,
        );
        check(Notice::Live { ch: "a", id }, r#"{"type":"live","ch":"a","id":"7-8"}"#);
        check(
            Notice::Error { reference: None, ch: Some("a"), code: "forbidden", message: "no" },
            r#"{"type":"error","ch":"a","code":"forbidden","message":"no"}"#,
        );
        let gap = Gap {
            after: MessageId { epoch: 7, seq: 1 },
            resume: MessageId { epoch: 7, seq: 4 },
            missed: Some(3),
            why: GapReason::Slow,
        };
        let expected = r#"{"type":"gap","ch":"a","after":"7-1","resume":"7-4","missed":3,"why":"slow"}"#;
        assert_eq!(gap_json("a", &gap), expected);
        assert_eq!(gap_json("a", &Gap { missed: None, ..gap }), expected.replace("3,", "null,"));
    }
}
