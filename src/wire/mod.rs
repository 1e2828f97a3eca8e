//! Wire formats: a message as a WebSocket frame, an `oyez.v1` envelope or a server-sent event; commands and notices.
//!
//! Frames are encoded here and not by tungstenite's writer, since one encoded frame is shared by all subscribers: a
//! server does not mask (RFC 6455 5.1), so the bytes are the same for each of them.
//!
//! The history stores the raw frame. The other forms are encoded from it, for channels with subscribers that use them.

pub mod chunk;
pub mod command;
pub mod deflate;
mod deflate_level;
mod envelope;
mod event_stream;
mod frame;
pub mod inflate;
pub mod notice;
#[cfg_attr(not(feature = "deflate"), path = "zlib_missing.rs")]
mod zlib;

use bytes::Bytes;

use crate::ids::{MessageId, Sender};

pub use envelope::{append_end, append_envelope, append_head, append_payload};
pub use event_stream::{RETRY_MS, RETRY_MS_MIN, append_comment, append_cursor, append_gap, append_retry};
pub use frame::{append_message, append_text, close, close_frame, payload_of, ping};

/// Whole frames, end to end, shared by every outbox that holds them.
///
/// The `Rc` is a thin handle: 8 bytes in an outbox where `Bytes` takes 32, counted without a lock
/// prefix, since there is one thread.
pub type Frames = std::rc::Rc<bytes::Bytes>;

/// The kind of a message's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UTF-8, validated at ingress.
    Text,
    /// Any bytes.
    Binary,
    /// One JSON value, validated at ingress; raw WebSockets receive it as text (RFC 6455 5.6).
    Data,
}

/// The wire format in which a subscriber receives messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// WebSocket frames of the payloads as they are.
    Raw,
    /// WebSocket frames of JSON objects that hold payload, channel and id: `oyez.v1`.
    Envelope,
    /// Server-sent events in chunked transfer coding, for HTTP/1.1 (RFC 9112 7.1).
    Event,
    /// Server-sent events up to the end of the connection, for HTTP/1.0, which has no transfer coding
    /// (RFC 9112 6.3). nginx sends HTTP/1.0 unless `proxy_http_version` says otherwise.
    EventUntilClose,
    /// As [`Form::Event`], with the envelope of `oyez.v1` as data (`?envelope=1`).
    EnvelopeEvent,
    /// As [`Form::EventUntilClose`], with the envelope of `oyez.v1` as data.
    EnvelopeEventUntilClose,
}

impl Form {
    /// How many forms there are.
    pub const COUNT: usize = 6;

    /// All of them, in the order of [`Form::index`].
    pub const ALL: [Form; Form::COUNT] = [
        Form::Raw,
        Form::Envelope,
        Form::Event,
        Form::EventUntilClose,
        Form::EnvelopeEvent,
        Form::EnvelopeEventUntilClose,
    ];

    /// The form of an event stream.
    pub fn of_events(is_chunked: bool, has_envelopes: bool) -> Form {
        match (is_chunked, has_envelopes) {
            (true, false) => Form::Event,
            (false, false) => Form::EventUntilClose,
            (true, true) => Form::EnvelopeEvent,
            (false, true) => Form::EnvelopeEventUntilClose,
        }
    }

    /// Returns true if the form uses chunked transfer coding.
    pub fn is_chunked(self) -> bool {
        matches!(self, Form::Event | Form::EnvelopeEvent)
    }

    /// The index of this form in a table of all forms.
    pub fn index(self) -> usize {
        self as usize
    }

    /// A buffer for [`Form::finish`], with room for a header.
    pub fn begin(self, capacity: usize) -> Vec<u8> {
        if self.is_chunked() { chunk::begin(capacity) } else { Vec::with_capacity(capacity) }
    }

    /// Completes a buffer of [`Form::begin`] as a piece that is framed separately from those before and after it.
    pub fn finish(self, out: Vec<u8>) -> Bytes {
        if self.is_chunked() { chunk::finish(out) } else { out.into() }
    }

    /// Encodes one piece.
    pub fn piece(self, append: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut out = self.begin(64);
        append(&mut out);
        self.finish(out)
    }
}

/// A message, with all fields that its forms contain.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The name of its channel.
    pub channel: &'a str,
    /// Its id.
    pub id: MessageId,
    /// Its number within its channel, from 1.
    pub number: u64,
    /// Its publisher.
    pub sender: &'a Sender,
    /// The kind of its payload.
    pub kind: Kind,
    /// Its payload.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Returns true if the payload takes more than `bytes` in that form. Examines at most `bytes` bytes.
    pub fn payload_exceeds(&self, form: Form, bytes: usize) -> bool {
        match form {
            Form::Raw => self.payload.len() > bytes,
            Form::Envelope => envelope::payload_exceeds(self.kind, self.payload, bytes),
            Form::EnvelopeEvent | Form::EnvelopeEventUntilClose if self.kind != Kind::Data => {
                envelope::payload_exceeds(self.kind, self.payload, bytes)
            }
            _ => event_stream::payload_exceeds(self.kind, self.payload, bytes),
        }
    }

    /// The most bytes that its payload takes in that form, whatever it holds.
    pub fn payload_bytes_max(&self, form: Form) -> usize {
        match form {
            Form::Raw => self.payload.len(),
            Form::Envelope => envelope::payload_bytes_max(self.kind, self.payload.len()),
            Form::EnvelopeEvent | Form::EnvelopeEventUntilClose if self.kind != Kind::Data => {
                envelope::payload_bytes_max(self.kind, self.payload.len())
            }
            _ => event_stream::payload_bytes_max(self.kind, self.payload.len()),
        }
    }

    /// Encodes one message alone, with no more memory than that takes: a megabyte of control characters is six in
    /// JSON, and [`Message::append_as`] would hold them twice.
    pub fn encode(&self, form: Form) -> Bytes {
        if form != Form::Envelope {
            let mut out = form.begin(0);
            self.append_as(form, &mut out);
            out.shrink_to(out.len() + 2);
            return form.finish(out);
        }
        frame::whole_text(|out| append_envelope(out, self))
    }

    /// Appends it in one of its forms.
    pub fn append_as(&self, form: Form, out: &mut Vec<u8>) {
        match form {
            Form::Raw => append_message(out, self.kind, self.payload),
            Form::Envelope => {
                let mut text = Vec::with_capacity(self.payload.len() + 128);
                append_envelope(&mut text, self);
                append_text(out, &text);
            }
            Form::Event | Form::EventUntilClose => event_stream::append_event(out, self),
            Form::EnvelopeEvent | Form::EnvelopeEventUntilClose => {
                event_stream::append_envelope_event(out, self);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_encoded_alone_has_the_bytes_of_a_batch() {
        for length in [0, 10, 100, 60_000, 70_000] {
            let text = "\u{1}\n".repeat(length / 2);
            let id = MessageId { epoch: 7, seq: 8 };
            for kind in [Kind::Text, Kind::Binary] {
                let message = Message {
                    channel: "a",
                    id,
                    number: 9,
                    sender: &Sender::default(),
                    kind,
                    payload: text.as_bytes(),
                };
                for form in Form::ALL {
                    let whole = form.piece(|out| message.append_as(form, out));
                    assert_eq!(message.encode(form), whole, "{length} {form:?}");
                }
            }
        }
    }
}
