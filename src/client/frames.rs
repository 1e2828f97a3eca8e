//! WebSocket frames on the client side: a scanner for received frames, and masked frames to send.
//!
//! A client that counts messages does not need their payloads. The scanner goes from header to header (RFC 6455 5.2),
//! passes on the first bytes of each payload, and allocates nothing. The scanner of the server validates the frames
//! that a client sends and ignores their payloads.

use std::ops::ControlFlow;

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Bytes of each payload that are passed on: all of a control frame (RFC 6455 5.5), so that a ping can be
/// answered, and more of a message than the timestamp of the load generator takes.
pub const START_BYTES_MAX: usize = 125;

/// Two bytes and a 64-bit length. A server does not mask.
const HEADER_BYTES_MAX: usize = 10;

/// The masking key of all frames. RFC 6455 5.3 requires an unpredictable key per frame to protect proxies against
/// scripts in a browser. No scripts run here, and a constant key makes masking cheap.
const MASK: [u8; 4] = [0x6f, 0x79, 0x65, 0x7a];

/// A complete frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its kind.
    pub kind: FrameKind,
    /// Length of the payload in bytes.
    pub payload_bytes: u64,
    /// At most the first [`START_BYTES_MAX`] bytes of the payload.
    pub start: &'a [u8],
    /// Length of the frame as it was sent, header included; for a compressed message, the length of all of its frames.
    pub sent_bytes: u64,
    /// The whole message, if it was compressed.
    pub decompressed: Option<&'a Bytes>,
}

impl Frame<'_> {
    /// A frame that was not compressed.
    pub(super) fn plain(header: ParsedHeader, payload: &[u8]) -> Frame<'_> {
        Frame {
            kind: header.kind,
            payload_bytes: header.payload_bytes,
            start: &payload[..payload.len().min(START_BYTES_MAX)],
            sent_bytes: header.frame_bytes(),
            decompressed: None,
        }
    }

    /// A message that was compressed.
    pub(super) fn decompressed(message: &Bytes, sent_bytes: u64) -> Frame<'_> {
        Frame {
            kind: FrameKind::Message,
            payload_bytes: message.len() as u64,
            start: &message[..message.len().min(START_BYTES_MAX)],
            sent_bytes,
            decompressed: Some(message),
        }
    }

    /// Length of the frame if it is not compressed.
    pub fn plain_bytes(&self) -> u64 {
        FrameHeader::default().len(self.payload_bytes) as u64 + self.payload_bytes
    }
}

/// The kind of a frame, as far as a counting client distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A message, or the first fragment of one.
    Message,
    /// A further fragment of a message that is already counted.
    Continuation,
    /// A ping; the client must send a pong.
    Ping,
    /// A pong.
    Pong,
    /// A close frame; no frame follows.
    Close,
}

/// The bytes are not valid frames of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidFrame;

/// Scans the headers of received frames.
#[derive(Debug)]
pub struct ServerFrameScanner {
    /// The header and the start of the payload, of a frame that arrived in pieces.
    kept: [u8; HEADER_BYTES_MAX + START_BYTES_MAX],
    kept_bytes: u8,
    /// Payload bytes still to arrive, of a frame whose kept part is complete.
    left: u64,
}

/// The header of a frame.
#[derive(Clone, Copy)]
pub(super) struct ParsedHeader {
    pub(super) kind: FrameKind,
    pub(super) header_bytes: usize,
    pub(super) payload_bytes: u64,
    pub(super) is_final: bool,
    /// RFC 7692 6: the first frame of a compressed message.
    pub(super) is_compressed: bool,
}

impl ParsedHeader {
    /// Bytes of the frame.
    pub(super) fn frame_bytes(self) -> u64 {
        self.header_bytes as u64 + self.payload_bytes
    }

    /// Bytes of the header and of the start of the payload.
    fn shown_bytes(self) -> usize {
        self.header_bytes + self.payload_bytes.min(START_BYTES_MAX as u64) as usize
    }
}

impl ServerFrameScanner {
    /// A scanner before the first frame.
    pub fn new() -> ServerFrameScanner {
        ServerFrameScanner { kept: [0; HEADER_BYTES_MAX + START_BYTES_MAX], kept_bytes: 0, left: 0 }
    }

    /// Calls `visit` for every frame that ends in `input`, until it returns `Break`.
    ///
    /// # Errors
    /// The bytes are not valid frames.
    pub fn scan(
        &mut self,
        mut input: &[u8],
        mut visit: impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), InvalidFrame> {
        while !input.is_empty() {
            if self.kept_bytes == 0
                && let Some(header) = parse(input, false)?
                && header.payload_bytes <= (input.len() - header.header_bytes) as u64
            {
                let start = &input[header.header_bytes..header.shown_bytes()];
                if visit(&Frame::plain(header, start)).is_break() {
                    return Ok(());
                }
                input = &input[header.header_bytes + header.payload_bytes as usize..];
                continue;
            }
            let (taken, complete) = self.piece(input)?;
            input = &input[taken..];
            if let Some(header) = complete {
                let start = &self.kept[header.header_bytes..usize::from(self.kept_bytes)];
                self.kept_bytes = 0;
                if visit(&Frame::plain(header, start)).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes the next part of a frame that arrives in pieces. Returns its length, and the header after the last part.
    fn piece(&mut self, input: &[u8]) -> Result<(usize, Option<ParsedHeader>), InvalidFrame> {
        let kept = usize::from(self.kept_bytes);
        if self.left > 0 {
            let step = self.left.min(input.len() as u64);
            self.left -= step;
            let complete = if self.left == 0 { parse(&self.kept[..kept], false)? } else { None };
            return Ok((step as usize, complete));
        }
        // Byte by byte until the header is complete, then the start of the payload.
        let wanted = parse(&self.kept[..kept], false)?.map_or(kept + 1, ParsedHeader::shown_bytes);
        let step = (wanted - kept).min(input.len());
        self.kept[kept..kept + step].copy_from_slice(&input[..step]);
        self.kept_bytes += step as u8;
        let header = parse(&self.kept[..kept + step], false)?;
        match header {
            Some(header) if header.shown_bytes() == kept + step => {
                self.left = header.payload_bytes - (header.shown_bytes() - header.header_bytes) as u64;
                Ok((step, Some(header).filter(|_| self.left == 0)))
            }
            _ => Ok((step, None)),
        }
    }
}

impl Default for ServerFrameScanner {
    fn default() -> ServerFrameScanner {
        ServerFrameScanner::new()
    }
}

/// Parses a header; `None` if it is not complete.
pub(super) fn parse(bytes: &[u8], is_deflate_negotiated: bool) -> Result<Option<ParsedHeader>, InvalidFrame> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    // RFC 6455 5.1: a server MUST NOT mask. 5.2: no reserved bits but that of a negotiated extension.
    let reserved = if is_deflate_negotiated { 0x30 } else { 0x70 };
    if second & 0x80 != 0 || first & reserved != 0 {
        return Err(InvalidFrame);
    }
    let is_compressed = first & 0x40 != 0;
    let kind = match first & 0xf {
        0x0 => FrameKind::Continuation,
        0x1 | 0x2 => FrameKind::Message,
        0x8 => FrameKind::Close,
        0x9 => FrameKind::Ping,
        0xa => FrameKind::Pong,
        _ => return Err(InvalidFrame),
    };
    // RFC 7692 6.1: only the first frame of a message has the bit.
    if is_compressed && kind != FrameKind::Message {
        return Err(InvalidFrame);
    }
    let (length_bytes, payload_bytes) = match second {
        127 => match rest.first_chunk::<8>() {
            Some(&length) => (8, u64::from_be_bytes(length)),
            None => return Ok(None),
        },
        126 => match rest.first_chunk::<2>() {
            Some(&length) => (2, u64::from(u16::from_be_bytes(length))),
            None => return Ok(None),
        },
        short => (0, u64::from(short)),
    };
    let is_control = first & 0x8 != 0;
    // 5.5: control frames carry at most 125 bytes. 5.2: the most significant bit MUST be 0.
    if (is_control && payload_bytes > 125) || payload_bytes >> 63 != 0 {
        return Err(InvalidFrame);
    }
    let header_bytes = 2 + length_bytes;
    Ok(Some(ParsedHeader { kind, header_bytes, payload_bytes, is_final: first & 0x80 != 0, is_compressed }))
}

/// A text or binary message in one masked frame.
pub fn message(is_text: bool, payload: &[u8]) -> Bytes {
    masked(OpCode::Data(if is_text { Data::Text } else { Data::Binary }), payload)
}

/// The pong to a ping with this payload.
pub fn pong(payload: &[u8]) -> Bytes {
    masked(OpCode::Control(Control::Pong), payload)
}

/// A close frame with this code, or with an empty payload.
pub fn close(code: Option<u16>) -> Bytes {
    let payload = code.map(u16::to_be_bytes);
    masked(OpCode::Control(Control::Close), payload.as_ref().map_or(&[], |code| &code[..]))
}

fn masked(opcode: OpCode, payload: &[u8]) -> Bytes {
    let header = FrameHeader { opcode, mask: Some(MASK), ..FrameHeader::default() };
    let length = payload.len() as u64;
    let mut out = Vec::with_capacity(header.len(length) + payload.len());
    header.format(length, &mut out).expect("writing to a Vec does not fail");
    let start = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[start..]);
    out.into()
}

/// Masks a payload (RFC 6455 5.3), sixteen bytes at a time.
fn apply_mask(payload: &mut [u8]) {
    const LONG_MASK: u128 = u128::from_ne_bytes({
        let mut long = [0; 16];
        let mut place = 0;
        while place < long.len() {
            long[place] = MASK[place % MASK.len()];
            place += 1;
        }
        long
    });
    let (chunks, rest) = payload.as_chunks_mut::<16>();
    for chunk in chunks {
        *chunk = (u128::from_ne_bytes(*chunk) ^ LONG_MASK).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The code in the payload of a close frame; 1005 if it has no code (RFC 6455 7.1.5).
pub fn close_code(payload: &[u8]) -> u16 {
    payload.first_chunk::<2>().map_or(1005, |&code| u16::from_be_bytes(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use proptest::prelude::*;

    /// The kinds, lengths and starts that a scan visits.
    fn shown(pieces: &[&[u8]]) -> Result<Vec<(FrameKind, u64, Vec<u8>)>, InvalidFrame> {
        let mut scanner = ServerFrameScanner::new();
        let mut seen = Vec::new();
        for piece in pieces {
            scanner.scan(piece, |frame| {
                seen.push((frame.kind, frame.payload_bytes, frame.start.to_vec()));
                ControlFlow::Continue(())
            })?;
        }
        Ok(seen)
    }

    proptest! {
        #[test]
        fn frame_is_visited_once_however_its_bytes_are_cut(
            lengths in proptest::collection::vec(
                prop_oneof![0usize..130, Just(65_535usize), Just(65_536), Just(70_000)], 1..6),
            cuts in proptest::collection::vec(1usize..40_000, 0..40),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (number, &length) in lengths.iter().enumerate() {
                let payload: Vec<u8> = (0..length).map(|place| (place + number) as u8).collect();
                wire::append_message(&mut bytes, wire::Kind::Binary, &payload);
                expected.push((FrameKind::Message, length as u64, payload[..length.min(START_BYTES_MAX)].to_vec()));
            }
            let mut pieces = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(shown(&pieces), Ok(expected.clone()));
            let single: Vec<&[u8]> = bytes.chunks(1).take(20_000).collect();
            prop_assert!(expected.starts_with(&shown(&single).unwrap()));
        }
    }

    #[test]
    fn control_frames_and_fragments_are_distinguished() {
        let bytes = [&[0x89, 2, b'h', b'i'][..], &[0x01, 1, b'a'], &[0x80, 1, b'b'], &[0x88, 2, 0x10, 0x06]];
        let seen = shown(&bytes).unwrap();
        let kinds: Vec<FrameKind> = seen.iter().map(|frame| frame.0).collect();
        assert_eq!(kinds, [FrameKind::Ping, FrameKind::Message, FrameKind::Continuation, FrameKind::Close]);
        assert_eq!(seen[0].2, b"hi");
        assert_eq!((close_code(&seen[3].2), close_code(b"")), (4102, 1005));
    }

    #[test]
    fn frame_that_a_server_may_not_send_is_invalid() {
        for bytes in [
            &[0x81, 0x80, 0, 0, 0, 0][..],
            &[0xc1, 0],
            &[0x83, 0],
            &[0x89, 126, 0, 126],
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(shown(&[bytes]), Err(InvalidFrame), "{bytes:?}");
        }
    }

    #[test]
    fn sent_frame_is_masked() {
        let text = b"hello, and a little more than sixteen bytes";
        let frame = message(true, text);
        assert_eq!(frame[..6], [0x81, 0x80 | text.len() as u8, 0x6f, 0x79, 0x65, 0x7a]);
        let payload: Vec<u8> =
            frame[6..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(payload, text);
        assert_eq!(close(None)[..2], [0x88, 0x80]);
    }
}
