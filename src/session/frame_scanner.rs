//! Where the bytes stand between frames.
//!
//! A connection in the middle of nothing needs no protocol state at all, and that is what most
//! connections are most of the time. tungstenite does not tell whether it is in the middle of something,
//! so the walker follows the frame headers beside it (RFC 6455 5.2) and says when the bytes so far end on
//! a message boundary. There the whole WebSocket context can be dropped: **asleep between messages**.
//!
//! Since it sees every header first, it also refuses bad ones first. tungstenite looks at the mask, the
//! reserved bits and a control frame's length only after the whole payload has come, and accepts lengths
//! that are not minimal. What the walker refuses never reaches it.

/// Follows the headers of the frames that a client sends.
#[derive(Debug)]
pub struct FrameScanner {
    place: Place,
    /// Has a message begun whose last fragment has not?
    in_message: bool,
    close_code: [u8; 2],
    close_code_length: u8,
    /// Frames that were complete since [`FrameScanner::take_frames`] was last called.
    frames: usize,
}

/// Where in a frame the last byte was.
#[derive(Debug)]
enum Place {
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        length: usize,
    },
    /// The first byte is kept, since the frame's end asks for its opcode and its FIN bit.
    Payload {
        left: u64,
        first_byte: u8,
        /// The masking key (RFC 6455 5.3), turned so that it begins with the byte for the next of the payload.
        mask: [u8; 4],
    },
}

/// Two bytes, a 64-bit length, a mask.
const HEADER_BYTES_MAX: usize = 14;

/// RFC 6455 5.2: opcodes with this bit are control frames.
const CONTROL: u8 = 0x8;
pub(super) const CONTINUATION: u8 = 0x0;
pub(super) const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PONG: u8 = 0xa;

/// Why the walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanStop {
    /// The input did.
    EndOfInput,
    /// A close frame did; RFC 6455 5.5.1 allows nothing after it.
    CloseFrame,
    /// The next frame breaks RFC 6455.
    Protocol,
    /// The next frame announces more than a message may have.
    TooBig,
}

impl FrameScanner {
    /// A walker before the first frame.
    pub fn new() -> FrameScanner {
        let place = Place::between_frames();
        FrameScanner { place, in_message: false, close_code: [0; 2], close_code_length: 0, frames: 0 }
    }

    /// Returns the number of frames that were completed since the last call.
    pub fn take_frames(&mut self) -> usize {
        std::mem::take(&mut self.frames)
    }

    /// Do the bytes so far end on a message boundary?
    pub fn at_boundary(&self) -> bool {
        matches!(self.place, Place::Header { length: 0, .. }) && !self.in_message
    }

    /// The status code of the close frame that has ended the walk, if it has one (RFC 6455 5.5.1).
    pub fn close_code(&self) -> Option<u16> {
        (self.close_code_length == 2).then(|| u16::from_be_bytes(self.close_code))
    }

    /// Returns true if a message is incomplete: its last fragment has not ended.
    pub(super) fn is_in_message(&self) -> bool {
        self.in_message
    }

    /// Follows `input` and tells how many of its bytes are good, and why it went no further.
    pub fn scan(&mut self, input: &[u8], message_bytes_max: usize) -> (usize, ScanStop) {
        self.follow(input, message_bytes_max, |_, _| {})
    }

    /// Returns the complete messages at the beginning of `input`, up to a close frame or a frame that breaks a rule.
    pub(super) fn whole_messages(input: &[u8], message_bytes_max: usize) -> WholeMessages {
        let mut scanner = FrameScanner::new();
        let mut whole = WholeMessages { bytes: 0, frames: 0, close_code: None };
        let _ = scanner.follow(input, message_bytes_max, |bytes, frames| {
            (whole.bytes, whole.frames) = (bytes, frames);
        });
        WholeMessages { close_code: scanner.close_code(), ..whole }
    }

    fn follow(
        &mut self,
        input: &[u8],
        message_bytes_max: usize,
        mut at_boundary: impl FnMut(usize, usize),
    ) -> (usize, ScanStop) {
        let mut at = 0;
        while at < input.len() {
            let (taken, step) = self.step(&input[at..], message_bytes_max);
            at += taken;
            match step {
                Step::Header => {}
                Step::Bad { halt, header_bytes } => return (at.saturating_sub(header_bytes), halt),
                Step::Part(part) => {
                    if part.is_end && !self.in_message {
                        at_boundary(at, self.frames);
                    }
                    if part.is_end && part.opcode() == CLOSE {
                        return (at, ScanStop::CloseFrame);
                    }
                }
            }
        }
        (at, ScanStop::EndOfInput)
    }

    /// Follows one frame, as far as it is in `input`. Returns the number of its bytes.
    pub(super) fn step(&mut self, input: &[u8], message_bytes_max: usize) -> (usize, Step) {
        let mut at = 0;
        let mut begins = false;
        while let Place::Header { bytes, length } = &mut self.place {
            let Some(&byte) = input.get(at) else { return (at, Step::Header) };
            bytes[*length] = byte;
            *length += 1;
            at += 1;
            match judge(&bytes[..*length], self.in_message, message_bytes_max) {
                Judgement::Partial => {}
                Judgement::Bad(halt) => return (at, Step::Bad { halt, header_bytes: *length }),
                Judgement::Whole { left, first_byte, mask } => {
                    begins = true;
                    self.place = Place::Payload { left, first_byte, mask };
                }
            }
        }
        let Place::Payload { left, first_byte, mask } = &mut self.place else { return (at, Step::Header) };
        let payload_bytes = (*left).min((input.len() - at) as u64) as usize;
        *left -= payload_bytes as u64;
        let is_end = *left == 0;
        let part = Part { first_byte: *first_byte, mask: *mask, begins, payload_bytes, left: *left, is_end };
        mask.rotate_left(payload_bytes % 4);
        let at = at + payload_bytes;
        if part.opcode() == CLOSE {
            for (byte, mask) in input[at - payload_bytes..at].iter().zip(part.mask) {
                let Some(code_byte) = self.close_code.get_mut(self.close_code_length as usize) else { break };
                *code_byte = byte ^ mask;
                self.close_code_length += 1;
            }
        }
        if is_end {
            self.frames += 1;
            if part.first_byte & CONTROL == 0 {
                self.in_message = !is_final(part.first_byte);
            }
            self.place = Place::between_frames();
        }
        (at, Step::Part(part))
    }
}

/// The whole messages at the beginning of some input.
#[derive(Debug)]
pub(super) struct WholeMessages {
    pub(super) bytes: usize,
    pub(super) frames: usize,
    /// Of the close frame that is the last of them, if one is and has one.
    pub(super) close_code: Option<u16>,
}

/// The result of one step.
#[derive(Debug)]
pub(super) enum Step {
    /// The header is not complete.
    Header,
    /// A part of a payload, at the end of the bytes that were taken.
    Part(Part),
    /// The frame breaks a rule, after this many bytes of its header.
    Bad { halt: ScanStop, header_bytes: usize },
}

/// A part of a frame's payload, maybe all of it, maybe nothing.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) first_byte: u8,
    /// For the first byte of this part.
    pub(super) mask: [u8; 4],
    /// The frame begins with this part.
    pub(super) begins: bool,
    pub(super) payload_bytes: usize,
    /// Bytes of the payload that are to come.
    pub(super) left: u64,
    /// The frame ends with this part.
    pub(super) is_end: bool,
}

impl Part {
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

impl Default for FrameScanner {
    fn default() -> FrameScanner {
        FrameScanner::new()
    }
}

impl Place {
    fn between_frames() -> Place {
        Place::Header { bytes: [0; HEADER_BYTES_MAX], length: 0 }
    }
}

/// What a header, or the beginning of one, amounts to.
enum Judgement {
    Partial,
    Whole { left: u64, first_byte: u8, mask: [u8; 4] },
    Bad(ScanStop),
}

fn is_final(first_byte: u8) -> bool {
    first_byte & 0x80 != 0
}

/// Judges a header by the bytes that are there, each rule as soon as it can be.
fn judge(header: &[u8], in_message: bool, message_bytes_max: usize) -> Judgement {
    let first = header[0];
    let opcode = first & 0xf;
    let is_control = opcode & CONTROL != 0;
    if header.len() == 1 {
        // RFC 6455 5.2: reserved bits MUST be 0, unknown opcodes fail the connection.
        let reserved_bits = first & 0x70 != 0;
        let reserved_opcode = if is_control { opcode > PONG } else { opcode > 0x2 };
        // 5.4: a continuation continues something, and nothing else may come between the fragments.
        let out_of_turn = !is_control && (opcode == CONTINUATION) != in_message;
        // 5.5: control frames MUST NOT be fragmented.
        let fragmented_control = is_control && !is_final(first);
        if reserved_bits || reserved_opcode || out_of_turn || fragmented_control {
            return Judgement::Bad(ScanStop::Protocol);
        }
        return Judgement::Partial;
    }
    let short_length = header[1] & 0x7f;
    if header.len() == 2 {
        // 5.1: a client MUST mask. 5.5: control frames carry at most 125 bytes.
        let unmasked = header[1] & 0x80 == 0;
        if unmasked || (is_control && short_length > 125) {
            return Judgement::Bad(ScanStop::Protocol);
        }
    }
    let length_bytes = match short_length {
        127 => 8,
        126 => 2,
        _ => 0,
    };
    let length_end = 2 + length_bytes;
    if header.len() < length_end {
        return Judgement::Partial;
    }
    let left = match length_bytes {
        0 => u64::from(short_length),
        _ => header[2..length_end].iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
    };
    if header.len() == length_end {
        // 5.2: the fewest bytes, and the most significant bit 0.
        let minimal = match length_bytes {
            8 => left > 0xffff && left >> 63 == 0,
            2 => left > 125,
            _ => true,
        };
        if !minimal {
            return Judgement::Bad(ScanStop::Protocol);
        }
        if !is_control && left > message_bytes_max as u64 {
            return Judgement::Bad(ScanStop::TooBig);
        }
    }
    match header[length_end..].first_chunk() {
        Some(&mask) => Judgement::Whole { left, first_byte: first, mask },
        None => Judgement::Partial,
    }
}
