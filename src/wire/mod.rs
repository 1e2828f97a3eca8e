//! A message and its encoded forms.
//!
//! Frames go out by our own hand and not through tungstenite's writer, since one encoded frame serves
//! every member: the server does not mask (RFC 6455 5.1), so the bytes are the same for all.

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::close::Reason;

/// The two kinds of message that RFC 6455 5.6 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8, checked before it gets here.
    Text,
    /// Any bytes.
    Binary,
}

/// Appends one whole message as one unfragmented frame.
pub fn append_message(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let opcode = match kind {
        Kind::Text => Data::Text,
        Kind::Binary => Data::Binary,
    };
    append_frame(out, OpCode::Data(opcode), payload);
}

/// A ping without payload: what comes back matters, not what it says.
pub fn ping() -> Bytes {
    let mut out = Vec::with_capacity(2);
    append_frame(&mut out, OpCode::Control(Control::Ping), &[]);
    out.into()
}

/// The close frame that goes with a reason (RFC 6455 5.5.1), or `None` where we send none of our own.
pub fn close(reason: Reason) -> Option<Bytes> {
    let code = reason.code()?;
    let text = reason.to_string();
    let mut payload = Vec::with_capacity(2 + text.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(text.as_bytes());
    let mut out = Vec::with_capacity(2 + payload.len());
    append_frame(&mut out, OpCode::Control(Control::Close), &payload);
    Some(out.into())
}

fn append_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    let length = payload.len() as u64;
    out.reserve(header.len(length) + payload.len());
    header.format(length, out).expect("writing to a Vec does not fail");
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: Kind, length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        append_message(&mut out, kind, &vec![b'x'; length]);
        out
    }

    #[test]
    fn lengths_take_the_fewest_bytes() {
        // RFC 6455 5.2: "the minimal number of bytes MUST be used to encode the length".
        assert_eq!(encoded(Kind::Text, 0), [0x81, 0]);
        assert_eq!(encoded(Kind::Binary, 125)[..2], [0x82, 125]);
        assert_eq!(encoded(Kind::Text, 126)[..4], [0x81, 126, 0, 126]);
        assert_eq!(encoded(Kind::Text, 65_535)[..4], [0x81, 126, 0xff, 0xff]);
        assert_eq!(encoded(Kind::Binary, 65_536)[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(encoded(Kind::Binary, 65_536).len(), 65_546);
    }

    #[test]
    fn control_frames() {
        assert_eq!(&ping()[..], [0x89, 0]);
        let frame = close(Reason::Drain { retry_ms: 7 }).unwrap();
        assert_eq!(frame[..4], [0x88, 18, 0x10, 0x68]);
        assert_eq!(&frame[4..], b"drain retry_ms=7");
        assert_eq!(close(Reason::Reset), None);
    }
}
