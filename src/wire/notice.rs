//! What the server says in `oyez.v1` beside the messages.

use serde::Serialize;
use serde_json::value::RawValue;

use super::append_text;
use crate::config::Limits;
use crate::ids::{Gap, MessageId};

/// One notice; each is one text frame with one JSON object.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Notice<'a> {
    /// First of all: a cursor before any message.
    Hello {
        /// The cursor from which a client that is disconnected now has to resume; `None` for a client that may not
        /// subscribe.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<Id>,
        /// Who the client is to others.
        client: String,
        /// Identifies the memory of the client's idempotency keys. If it differs from that of the last connection, the
        /// keys of earlier publishes are not found: the process or the publisher is another.
        run: String,
        /// How often the client should let itself be heard, in milliseconds; 0: it need not.
        ping_ms: u32,
        /// The largest message that it may send, in bytes.
        message_bytes_max: usize,
        /// How long a publish can be repeated under its key, in milliseconds; 0: the server keeps no keys.
        key_age_ms: u32,
        /// When the rights of its token end, in milliseconds from now; absent without a token.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_ms: Option<u64>,
    },
    /// It is a member.
    Subscribed {
        /// Of that channel.
        ch: &'a str,
        /// What follows continues from here.
        id: Id,
        /// How many members there are, itself included.
        subscribers: usize,
    },
    /// It is a member no more.
    Unsubscribed {
        /// Of that channel.
        ch: &'a str,
    },
    /// Its message is published.
    Ack {
        /// What it called the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// The message's id.
        id: Id,
    },
    /// The answer to its ping.
    Pong,
    /// Its token is taken.
    Authenticated {
        /// What it called the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// When that ends, in milliseconds from now.
        expires_ms: u64,
    },
    /// The replay is over; what follows is new.
    Live {
        /// In that channel.
        ch: &'a str,
        /// The cursor that it has reached.
        id: Id,
    },
    /// Its request is not granted.
    Error {
        /// What it called the request.
        #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<&'a RawValue>,
        /// The channel that the request named.
        #[serde(skip_serializing_if = "Option::is_none")]
        ch: Option<&'a str>,
        /// A word for programs.
        code: &'static str,
        /// A sentence for people.
        message: &'a str,
    },
}

/// A message's id as its text.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub MessageId);

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl Notice<'_> {
    /// The frame that says it.
    pub fn to_frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.append_frame(&mut frame);
        frame
    }

    /// Appends its frame.
    pub fn append_frame(&self, out: &mut Vec<u8>) {
        // Strings and numbers only: nothing in it can fail.
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
