//! WebSocket frames as the server sends them (RFC 6455 5): whole, unmasked, and the same for every receiver.

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::Kind;
use crate::close::Reason;

/// The longest header of an unmasked frame (RFC 6455 5.2: two bytes and a 64-bit length).
const FRAME_HEADER_BYTES_MAX: usize = 10;

/// Appends one whole message as one unfragmented frame.
pub fn append_message(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let opcode = match kind {
        Kind::Text | Kind::Data => Data::Text,
        Kind::Binary => Data::Binary,
    };
    append_frame(out, OpCode::Data(opcode), payload);
}

/// Appends one text frame.
pub fn append_text(out: &mut Vec<u8>, text: &[u8]) {
    append_frame(out, OpCode::Data(Data::Text), text);
}

/// The payload of a frame that [`append_message`] made.
pub fn payload_of(frame: &[u8]) -> &[u8] {
    let header = match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    };
    &frame[header..]
}

/// A frame among others.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameSlice<'a> {
    pub(super) is_text: bool,
    pub(super) payload: &'a [u8],
    /// With its header.
    pub(super) whole: &'a [u8],
}

/// The frames of a batch that lie end to end.
pub(super) fn frames_of(mut frames: &[u8]) -> impl Iterator<Item = FrameSlice<'_>> {
    std::iter::from_fn(move || {
        let (&first, header) = frames.split_first()?;
        let length = match header.first()? {
            127 => u64::from_be_bytes(*header[1..].first_chunk()?) as usize,
            126 => u16::from_be_bytes(*header[1..].first_chunk()?).into(),
            &short => short.into(),
        };
        let payload = payload_of(frames).get(..length)?;
        let (whole, rest) = frames.split_at(frames.len() - payload_of(frames).len() + length);
        frames = rest;
        Some(FrameSlice { is_text: first & 0xf == u8::from(OpCode::Data(Data::Text)), payload, whole })
    })
}

/// Appends one text frame whose payload is compressed: RSV1 is set (RFC 7692 6).
pub(super) fn append_compressed_text(out: &mut Vec<u8>, payload: &[u8]) {
    let header = FrameHeader { opcode: OpCode::Data(Data::Text), rsv1: true, ..FrameHeader::default() };
    append_frame_with(out, &header, payload);
}

/// A ping without payload: any response is a sign of life.
pub fn ping() -> Bytes {
    let mut out = Vec::with_capacity(2);
    append_frame(&mut out, OpCode::Control(Control::Ping), &[]);
    out.into()
}

/// The close frame of a reason (RFC 6455 5.5.1), or `None` if it has none: see [`Reason::code`].
pub fn close(reason: Reason) -> Option<Bytes> {
    Some(close_frame(reason.code()?, &reason.to_string()))
}

/// A close frame with a status code and a text of at most 123 bytes (RFC 6455 5.5.1).
pub fn close_frame(code: u16, text: &str) -> Bytes {
    let mut payload = Vec::with_capacity(2 + text.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(text.as_bytes());
    let mut out = Vec::with_capacity(2 + payload.len());
    append_frame(&mut out, OpCode::Control(Control::Close), &payload);
    out.into()
}

fn append_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    append_frame_with(out, &FrameHeader { opcode, ..FrameHeader::default() }, payload);
}

fn append_frame_with(out: &mut Vec<u8>, header: &FrameHeader, payload: &[u8]) {
    let length = payload.len() as u64;
    out.reserve(header.len(length) + payload.len());
    header.format(length, out).expect("writing to a Vec does not fail");
    out.extend_from_slice(payload);
}

/// One text frame, with no more memory than its text takes while that is appended.
pub(super) fn whole_text(append: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    // The length of the header depends on that of the text, which follows it.
    let mut out = vec![0; FRAME_HEADER_BYTES_MAX];
    append(&mut out);
    let mut header = Vec::with_capacity(FRAME_HEADER_BYTES_MAX);
    let length = (out.len() - FRAME_HEADER_BYTES_MAX) as u64;
    let text = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
    text.format(length, &mut header).expect("writing to a Vec does not fail");
    let start = FRAME_HEADER_BYTES_MAX - header.len();
    out[start..FRAME_HEADER_BYTES_MAX].copy_from_slice(&header);
    out.shrink_to_fit();
    Bytes::from(out).slice(start..)
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
    fn frame_length_is_encoded_in_the_fewest_bytes() {
        // RFC 6455 5.2: "the minimal number of bytes MUST be used to encode the length".
        assert_eq!(encoded(Kind::Text, 0), [0x81, 0]);
        assert_eq!(encoded(Kind::Binary, 125)[..2], [0x82, 125]);
        assert_eq!(encoded(Kind::Text, 126)[..4], [0x81, 126, 0, 126]);
        assert_eq!(encoded(Kind::Text, 65_535)[..4], [0x81, 126, 0xff, 0xff]);
        assert_eq!(encoded(Kind::Binary, 65_536)[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(encoded(Kind::Binary, 65_536).len(), 65_546);
    }

    #[test]
    fn frame_of_any_length_returns_its_payload() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            assert_eq!(payload_of(&encoded(Kind::Data, length)), vec![b'x'; length]);
        }
    }

    #[test]
    fn frames_that_lie_end_to_end_are_found() {
        let lengths = [0, 1, 125, 126, 65_535, 65_536];
        let mut frames = Vec::new();
        for (index, &length) in lengths.iter().enumerate() {
            let kind = if index % 2 == 0 { Kind::Text } else { Kind::Binary };
            append_message(&mut frames, kind, &vec![b'x'; length]);
        }
        let found: Vec<(bool, usize)> =
            frames_of(&frames).map(|frame| (frame.is_text, frame.payload.len())).collect();
        let expected: Vec<(bool, usize)> =
            lengths.iter().enumerate().map(|(index, &length)| (index % 2 == 0, length)).collect();
        assert_eq!(found, expected);
        assert_eq!(frames_of(&frames).map(|frame| frame.whole.len()).sum::<usize>(), frames.len());
        let mut compressed = Vec::new();
        append_compressed_text(&mut compressed, b"\xf2\x48");
        assert_eq!(compressed, [0xc1, 2, 0xf2, 0x48]);
    }

    #[test]
    fn control_frame_has_its_code_and_reason() {
        assert_eq!(&ping()[..], [0x89, 0]);
        let frame = close(Reason::Drain { retry_ms: 7 }).unwrap();
        assert_eq!(frame[..4], [0x88, 18, 0x10, 0x68]);
        assert_eq!(&frame[4..], b"drain retry_ms=7");
        assert_eq!(close(Reason::Reset), None);
    }
}
