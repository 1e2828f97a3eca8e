//! Incremental scanner of WebSocket frame headers (RFC 6455 5.2): finds message boundaries and rejects invalid headers.
//!
//! A connection between two messages needs no decoder state, and most connections are between messages most of the
//! time. tungstenite does not report whether its input ended on a message boundary, so the scanner follows the frame
//! headers separately. At a boundary the whole WebSocket context is dropped: **asleep between messages**.
//!
//! It also validates each header first. tungstenite checks the mask, the reserved bits and the length of a control
//! frame only after the whole payload has arrived, and accepts lengths that are not minimal. A frame that the scanner
//! rejects never reaches it.
//!
//! A compressed message never reaches tungstenite either, which has no permessage-deflate: the scanner finds its
//! frames.

use std::ops::ControlFlow;

/// The scanner's position in the frames that a client sends.
#[derive(Debug)]
pub struct FrameScanner {
    position: Position,
    /// True after the first fragment of a message, until its last.
    in_message: bool,
    /// permessage-deflate was negotiated.
    allows_compressed: bool,
    /// The message is compressed (RFC 7692 6): its first frame has RSV1 set.
    is_compressed: bool,
    close_code: [u8; 2],
    close_code_length: u8,
    /// Frames that were completed since [`FrameScanner::take_frames`] was last called.
    frames: usize,
}

/// The position in a frame.
#[derive(Debug)]
enum Position {
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        length: usize,
    },
    /// The first byte is kept: opcode and FIN bit are needed at the end of the frame.
    Payload {
        left: u64,
        first_byte: u8,
        /// The masking key (RFC 6455 5.3), rotated so that its first byte applies to the next payload byte.
        mask: [u8; 4],
    },
}

/// Two bytes, a 64-bit length, a mask.
const HEADER_BYTES_MAX: usize = 14;

/// RFC 6455 5.2: opcodes with this bit are control frames.
const CONTROL: u8 = 0x8;
/// RFC 7692 6: the bit of the first frame of a compressed message.
const RSV1: u8 = 0x40;
pub(super) const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PONG: u8 = 0xa;

/// Why a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// The input is used up.
    EndOfInput,
    /// A close frame is complete; RFC 6455 5.5.1 allows nothing after it.
    CloseFrame,
    /// The next frame violates RFC 6455.
    Protocol,
    /// The next frame is longer than the maximum message.
    TooBig,
}

impl FrameScanner {
    /// A scanner before the first frame. Compressed messages are valid if permessage-deflate was negotiated.
    pub fn new(allows_compressed: bool) -> FrameScanner {
        FrameScanner {
            position: Position::between_frames(),
            in_message: false,
            allows_compressed,
            is_compressed: false,
            close_code: [0; 2],
            close_code_length: 0,
            frames: 0,
        }
    }

    /// The number of frames that were completed since [`FrameScanner::take_frames`] was last called.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// Returns the number of frames that were completed since the last call.
    pub fn take_frames(&mut self) -> usize {
        std::mem::take(&mut self.frames)
    }

    /// Returns true if the scanned bytes end on a message boundary.
    pub fn at_boundary(&self) -> bool {
        matches!(self.position, Position::Header { length: 0, .. }) && !self.in_message
    }

    /// The status code of the close frame that ended the scan, if it has one (RFC 6455 5.5.1).
    pub fn close_code(&self) -> Option<u16> {
        (self.close_code_length == 2).then(|| u16::from_be_bytes(self.close_code))
    }

    /// Returns true if a message is incomplete: its last fragment has not ended.
    pub(super) fn is_in_message(&self) -> bool {
        self.in_message
    }

    /// Scans `input`. Returns the number of valid bytes, and why the scan ended.
    pub fn scan(&mut self, input: &[u8], message_bytes_max: usize) -> (usize, ScanStop) {
        self.follow(input, message_bytes_max, |_, _, _| ControlFlow::Continue(()))
    }

    /// Returns the complete messages at the beginning of `input`, up to a compressed message, a close frame, an invalid
    /// frame, or a number of frames.
    pub(super) fn whole_messages(
        input: &[u8],
        allows_compressed: bool,
        message_bytes_max: usize,
        frames_max: usize,
    ) -> WholeMessages {
        let mut scanner = FrameScanner::new(allows_compressed);
        let mut whole = WholeMessages { bytes: 0, frames: 0, close_code: None };
        let _ = scanner.follow(input, message_bytes_max, |scanner, part, bytes| {
            if part.is_compressed {
                return ControlFlow::Break(());
            }
            if part.is_end && !scanner.in_message {
                (whole.bytes, whole.frames) = (bytes, scanner.frames);
            }
            if scanner.frames < frames_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        WholeMessages { close_code: scanner.close_code(), ..whole }
    }

    /// Returns the number of missing bytes of the first frame in `input`; `None` if it is complete, or invalid, or its
    /// header is incomplete.
    pub(super) fn missing_bytes(
        input: &[u8],
        allows_compressed: bool,
        message_bytes_max: usize,
    ) -> Option<u64> {
        match FrameScanner::new(allows_compressed).step(input, message_bytes_max) {
            (_, FrameStep::Payload(part)) if !part.is_end => Some(part.left),
            _ => None,
        }
    }

    fn follow(
        &mut self,
        input: &[u8],
        message_bytes_max: usize,
        mut on_part: impl FnMut(&FrameScanner, &PayloadPart, usize) -> ControlFlow<()>,
    ) -> (usize, ScanStop) {
        let mut at = 0;
        while at < input.len() {
            let (consumed, step) = self.step(&input[at..], message_bytes_max);
            at += consumed;
            match step {
                FrameStep::Header => {}
                FrameStep::Invalid(stop) => return (at, stop),
                FrameStep::Payload(part) => {
                    if on_part(self, &part, at).is_break() {
                        return (at, ScanStop::EndOfInput);
                    }
                    if part.is_end && part.opcode() == CLOSE {
                        return (at, ScanStop::CloseFrame);
                    }
                }
            }
        }
        (at, ScanStop::EndOfInput)
    }

    #[inline]
    fn header_rules(&self, message_bytes_max: usize) -> HeaderRules {
        HeaderRules {
            in_message: self.in_message,
            allows_compressed: self.allows_compressed,
            is_compressed: self.is_compressed,
            message_bytes_max,
        }
    }

    /// Scans at most one frame. Returns the number of bytes that belong to it.
    pub(super) fn step(&mut self, input: &[u8], message_bytes_max: usize) -> (usize, FrameStep) {
        let mut at = 0;
        let rules = self.header_rules(message_bytes_max);
        let mut begins = false;
        if let Position::Header { bytes, length } = &mut self.position {
            let held = *length;
            let (next, _) = input.split_at(input.len().min(HEADER_BYTES_MAX - held));
            let check = if held == 0 {
                // Usually the header is complete, and nothing is copied.
                check_header(next, rules)
            } else {
                bytes[held..][..next.len()].copy_from_slice(next);
                check_header(&bytes[..held + next.len()], rules)
            };
            match check {
                HeaderCheck::Partial => {
                    bytes[held..][..next.len()].copy_from_slice(next);
                    *length += next.len();
                    return (next.len(), FrameStep::Header);
                }
                HeaderCheck::Invalid(stop) => return (0, FrameStep::Invalid(stop)),
                HeaderCheck::Whole { left, first_byte, mask, header_bytes } => {
                    at = header_bytes - held;
                    begins = true;
                    if is_data(first_byte) && !self.in_message {
                        self.is_compressed = first_byte & RSV1 != 0;
                    }
                    self.position = Position::Payload { left, first_byte, mask };
                }
            }
        }
        let Position::Payload { left, first_byte, mask } = &mut self.position else {
            return (at, FrameStep::Header);
        };
        let payload_bytes = (*left).min((input.len() - at) as u64) as usize;
        *left -= payload_bytes as u64;
        let is_end = *left == 0;
        let part = PayloadPart {
            first_byte: *first_byte,
            mask: *mask,
            begins,
            payload_bytes,
            left: *left,
            is_end,
            is_compressed: is_data(*first_byte) && self.is_compressed,
        };
        mask.rotate_left(payload_bytes % 4);
        let at = at + payload_bytes;
        if part.opcode() == CLOSE {
            self.record_close_code(&input[at - payload_bytes..at], part.mask);
        }
        if is_end {
            self.frames += 1;
            if is_data(part.first_byte) {
                self.in_message = !is_final(part.first_byte);
            }
            self.position = Position::between_frames();
        }
        (at, FrameStep::Payload(part))
    }

    /// Records the first two bytes of a close frame's payload.
    fn record_close_code(&mut self, payload: &[u8], mask: [u8; 4]) {
        for (byte, mask) in payload.iter().zip(mask) {
            let Some(code_byte) = self.close_code.get_mut(self.close_code_length as usize) else { break };
            *code_byte = byte ^ mask;
            self.close_code_length += 1;
        }
    }
}

/// The whole messages at the beginning of some input.
#[derive(Debug)]
pub(super) struct WholeMessages {
    pub(super) bytes: usize,
    pub(super) frames: usize,
    /// The status code, if the last scanned frame is a close frame that has one.
    pub(super) close_code: Option<u16>,
}

/// The result of one step.
#[derive(Debug)]
pub(super) enum FrameStep {
    /// The header is not complete.
    Header,
    /// A part of the payload, at the end of the scanned bytes.
    Payload(PayloadPart),
    /// The header is invalid, of which no byte counts as scanned.
    Invalid(ScanStop),
}

/// A part of a frame's payload; it may be all of it, or empty.
#[derive(Debug)]
pub(super) struct PayloadPart {
    pub(super) first_byte: u8,
    /// For the first byte of this part.
    pub(super) mask: [u8; 4],
    /// The frame begins with this part.
    pub(super) begins: bool,
    pub(super) payload_bytes: usize,
    /// Payload bytes that have not arrived.
    pub(super) left: u64,
    /// The frame ends with this part.
    pub(super) is_end: bool,
    /// True if the frame belongs to a compressed message.
    pub(super) is_compressed: bool,
}

impl PayloadPart {
    pub(super) fn opcode(&self) -> u8 {
        self.first_byte & 0xf
    }

    pub(super) fn is_control(&self) -> bool {
        self.first_byte & CONTROL != 0
    }

    pub(super) fn is_final(&self) -> bool {
        is_final(self.first_byte)
    }
}

impl Position {
    fn between_frames() -> Position {
        Position::Header { bytes: [0; HEADER_BYTES_MAX], length: 0 }
    }
}

/// The result of checking a header, or the beginning of one.
enum HeaderCheck {
    Partial,
    Whole { left: u64, first_byte: u8, mask: [u8; 4], header_bytes: usize },
    Invalid(ScanStop),
}

fn is_data(first_byte: u8) -> bool {
    first_byte & CONTROL == 0
}

fn is_final(first_byte: u8) -> bool {
    first_byte & 0x80 != 0
}

/// The rules for a header at this position of the byte stream.
#[derive(Clone, Copy)]
struct HeaderRules {
    in_message: bool,
    allows_compressed: bool,
    /// The message that is continued is compressed.
    is_compressed: bool,
    message_bytes_max: usize,
}

/// The maximum size of a compressed message: data that cannot be compressed become up to an eighth longer
/// (`deflateBound` of zlib with its smallest memory), and a block that a sender ends early takes five bytes.
pub(super) fn compressed_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_add(message_bytes_max / 8).saturating_add(64)
}

fn is_first_byte_valid(first: u8, rules: HeaderRules) -> bool {
    let HeaderRules { in_message, allows_compressed, .. } = rules;
    let opcode = first & 0xf;
    let is_control = !is_data(first);
    // RFC 6455 5.2: reserved bits MUST be 0, unknown opcodes fail the connection. RFC 7692 6: RSV1 is set in the
    // first frame of a compressed message, and in no other.
    let may_compress = allows_compressed && !is_control && opcode != CONTINUATION;
    let reserved_bits = first & if may_compress { 0x30 } else { 0x70 } != 0;
    let reserved_opcode = if is_control { opcode > PONG } else { opcode > 0x2 };
    // 5.4: a continuation frame needs a message to continue, and no other data frame may be sent between fragments.
    let out_of_order = !is_control && (opcode == CONTINUATION) != in_message;
    // 5.5: control frames MUST NOT be fragmented.
    let fragmented_control = is_control && !is_final(first);
    !(reserved_bits || reserved_opcode || out_of_order || fragmented_control)
}

/// Checks the received bytes of a header, which may be incomplete: each rule as early as possible.
fn check_header(header: &[u8], rules: HeaderRules) -> HeaderCheck {
    let HeaderRules { in_message, is_compressed, message_bytes_max, .. } = rules;
    let Some(&first_byte) = header.first() else { return HeaderCheck::Partial };
    if !is_first_byte_valid(first_byte, rules) {
        return HeaderCheck::Invalid(ScanStop::Protocol);
    }
    let Some(&second_byte) = header.get(1) else { return HeaderCheck::Partial };
    let is_control = !is_data(first_byte);
    let short_length = second_byte & 0x7f;
    // 5.1: a client MUST mask. 5.5: control frames carry at most 125 bytes.
    let is_unmasked = second_byte & 0x80 == 0;
    if is_unmasked || (is_control && short_length > 125) {
        return HeaderCheck::Invalid(ScanStop::Protocol);
    }
    let length_end = match short_length {
        127 => 10,
        126 => 4,
        _ => 2,
    };
    let Some(length) = header.get(2..length_end) else { return HeaderCheck::Partial };
    let (left, is_minimal) = match *length {
        [] => (u64::from(short_length), true),
        [high, low] => {
            let left = u64::from(u16::from_be_bytes([high, low]));
            (left, left > 125)
        }
        _ => {
            let left = length.iter().fold(0, |length, &byte| length << 8 | u64::from(byte));
            (left, left > 0xffff && left >> 63 == 0)
        }
    };
    // 5.2: the fewest bytes, and the most significant bit 0.
    if !is_minimal {
        return HeaderCheck::Invalid(ScanStop::Protocol);
    }
    let is_compressed = if in_message { is_compressed } else { first_byte & RSV1 != 0 };
    let bytes_max = if is_compressed { compressed_bytes_max(message_bytes_max) } else { message_bytes_max };
    if !is_control && left > bytes_max as u64 {
        return HeaderCheck::Invalid(ScanStop::TooBig);
    }
    match header[length_end..].first_chunk() {
        Some(&mask) => HeaderCheck::Whole { left, first_byte, mask, header_bytes: length_end + mask.len() },
        None => HeaderCheck::Partial,
    }
}
