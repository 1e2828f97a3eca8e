//! Frames as a client sees and sends them.
//!
//! A client that only counts needs no payloads: it walks from header to header (RFC 6455 5.2), looks at
//! the first bytes of each payload, and allocates nothing. The server's [`crate::session::walker`] does
//! the opposite work: it judges what a client may send, and never looks into it.

use std::ops::ControlFlow;

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// How much of each payload is shown: all of a control frame's (RFC 6455 5.5), so that a ping can be
/// answered, and more of a message's than a stamp takes.
pub const START_BYTES_MAX: usize = 125;

/// Two bytes and a 64-bit length; a server does not mask.
const HEADER_BYTES_MAX: usize = 10;

/// The key of all masks. RFC 6455 5.3 wants a new one for each frame, against proxies that scripts in a
/// browser might fool; there is neither here, and this way a message is masked with no thought.
const MASK: [u8; 4] = [0x6f, 0x79, 0x65, 0x7a];

/// A whole frame that went by.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    /// How long its payload is, in bytes.
    pub payload_bytes: u64,
    /// The payload's first [`START_BYTES_MAX`] bytes.
    pub start: &'a [u8],
}

/// What a frame is, for somebody who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message, or the first fragment of one.
    Message,
    /// A further fragment: the message is counted already.
    Continuation,
    /// To be answered.
    Ping,
    /// An answer.
    Pong,
    /// Nothing comes after it.
    Close,
}

/// The bytes are no frames of a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Follows the headers of the frames that a server sends.
#[derive(Debug)]
pub struct Walker {
    /// The header and the payload's start, of a frame that came in pieces.
    kept: [u8; HEADER_BYTES_MAX + START_BYTES_MAX],
    kept_bytes: u8,
    /// What is still to come of a frame whose kept part is complete.
    left: u64,
}

#[derive(Clone, Copy)]
struct Header {
    kind: Kind,
    header_bytes: usize,
    payload_bytes: u64,
}

impl Header {
    /// How much of the frame is shown, with its header.
    fn shown_bytes(self) -> usize {
        self.header_bytes + self.payload_bytes.min(START_BYTES_MAX as u64) as usize
    }
}

impl Walker {
    /// A walker before the first frame.
    pub fn new() -> Walker {
        Walker { kept: [0; HEADER_BYTES_MAX + START_BYTES_MAX], kept_bytes: 0, left: 0 }
    }

    /// Shows every frame that ends in `input`, until `see` has seen enough.
    ///
    /// # Errors
    /// The bytes are no frames.
    pub fn walk(
        &mut self,
        mut input: &[u8],
        mut see: impl FnMut(&Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), Broken> {
        while !input.is_empty() {
            if self.kept_bytes == 0
                && let Some(header) = parse(input)?
                && header.payload_bytes <= (input.len() - header.header_bytes) as u64
            {
                let start = &input[header.header_bytes..header.shown_bytes()];
                let frame = Frame { kind: header.kind, payload_bytes: header.payload_bytes, start };
                if see(&frame).is_break() {
                    return Ok(());
                }
                input = &input[header.header_bytes + header.payload_bytes as usize..];
                continue;
            }
            let (taken, complete) = self.piece(input)?;
            input = &input[taken..];
            if let Some(header) = complete {
                let start = &self.kept[header.header_bytes..usize::from(self.kept_bytes)];
                let frame = Frame { kind: header.kind, payload_bytes: header.payload_bytes, start };
                self.kept_bytes = 0;
                if see(&frame).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes what it can of a frame that comes in pieces; the header, if this was the last one.
    fn piece(&mut self, input: &[u8]) -> Result<(usize, Option<Header>), Broken> {
        let kept = usize::from(self.kept_bytes);
        if self.left > 0 {
            let step = self.left.min(input.len() as u64);
            self.left -= step;
            let complete = if self.left == 0 { parse(&self.kept[..kept])? } else { None };
            return Ok((step as usize, complete));
        }
        // Byte by byte until the header is known, then all that is shown of the payload.
        let wanted = parse(&self.kept[..kept])?.map_or(kept + 1, Header::shown_bytes);
        let step = (wanted - kept).min(input.len());
        self.kept[kept..kept + step].copy_from_slice(&input[..step]);
        self.kept_bytes += step as u8;
        let header = parse(&self.kept[..kept + step])?;
        match header {
            Some(header) if header.shown_bytes() == kept + step => {
                self.left = header.payload_bytes - (header.shown_bytes() - header.header_bytes) as u64;
                Ok((step, Some(header).filter(|_| self.left == 0)))
            }
            _ => Ok((step, None)),
        }
    }
}

impl Default for Walker {
    fn default() -> Walker {
        Walker::new()
    }
}

/// Reads a header, if all of it is there.
fn parse(bytes: &[u8]) -> Result<Option<Header>, Broken> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    // RFC 6455 5.1: a server MUST NOT mask. 5.2: no extension was negotiated, so no reserved bits.
    if second & 0x80 != 0 || first & 0x70 != 0 {
        return Err(Broken);
    }
    let kind = match first & 0xf {
        0x0 => Kind::Continuation,
        0x1 | 0x2 => Kind::Message,
        0x8 => Kind::Close,
        0x9 => Kind::Ping,
        0xa => Kind::Pong,
        _ => return Err(Broken),
    };
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
        return Err(Broken);
    }
    Ok(Some(Header { kind, header_bytes: 2 + length_bytes, payload_bytes }))
}

/// A whole message as a client sends it.
pub fn message(is_text: bool, payload: &[u8]) -> Bytes {
    masked(OpCode::Data(if is_text { Data::Text } else { Data::Binary }), payload)
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Bytes {
    masked(OpCode::Control(Control::Pong), payload)
}

/// A close frame.
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

/// RFC 6455 5.3, sixteen bytes at a time.
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

/// The code in a close frame's payload; 1005 stands for none (RFC 6455 7.1.5).
pub fn close_code(payload: &[u8]) -> u16 {
    payload.first_chunk::<2>().map_or(1005, |&code| u16::from_be_bytes(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use proptest::prelude::*;

    /// What a walk shows: kinds, lengths and starts.
    fn shown(pieces: &[&[u8]]) -> Result<Vec<(Kind, u64, Vec<u8>)>, Broken> {
        let mut walker = Walker::new();
        let mut seen = Vec::new();
        for piece in pieces {
            walker.walk(piece, |frame| {
                seen.push((frame.kind, frame.payload_bytes, frame.start.to_vec()));
                ControlFlow::Continue(())
            })?;
        }
        Ok(seen)
    }

    proptest! {
        #[test]
        fn frames_are_seen_however_they_are_cut(
            lengths in proptest::collection::vec(
                prop_oneof![0usize..130, Just(65_535usize), Just(65_536), Just(70_000)], 1..6),
            cuts in proptest::collection::vec(1usize..40_000, 0..40),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (number, &length) in lengths.iter().enumerate() {
                let payload: Vec<u8> = (0..length).map(|place| (place + number) as u8).collect();
                wire::append_message(&mut bytes, wire::Kind::Binary, &payload);
                expected.push((Kind::Message, length as u64, payload[..length.min(START_BYTES_MAX)].to_vec()));
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
    fn control_frames_and_fragments() {
        let bytes = [&[0x89, 2, b'h', b'i'][..], &[0x01, 1, b'a'], &[0x80, 1, b'b'], &[0x88, 2, 0x10, 0x06]];
        let seen = shown(&bytes).unwrap();
        let kinds: Vec<Kind> = seen.iter().map(|frame| frame.0).collect();
        assert_eq!(kinds, [Kind::Ping, Kind::Message, Kind::Continuation, Kind::Close]);
        assert_eq!(seen[0].2, b"hi");
        assert_eq!((close_code(&seen[3].2), close_code(b"")), (4102, 1005));
    }

    #[test]
    fn what_no_server_may_send() {
        for bytes in [
            &[0x81, 0x80, 0, 0, 0, 0][..],
            &[0xc1, 0],
            &[0x83, 0],
            &[0x89, 126, 0, 126],
            &[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(shown(&[bytes]), Err(Broken), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_sent_is_masked() {
        let text = b"hello, and a little more than sixteen bytes";
        let frame = message(true, text);
        assert_eq!(frame[..6], [0x81, 0x80 | text.len() as u8, 0x6f, 0x79, 0x65, 0x7a]);
        let payload: Vec<u8> =
            frame[6..].iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!(payload, text);
        assert_eq!(close(None)[..2], [0x88, 0x80]);
    }
}
