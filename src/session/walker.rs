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
pub struct Walker {
    place: Place,
    /// Has a message begun whose last fragment has not?
    in_message: bool,
    close_code: [u8; 2],
    close_code_length: u8,
    /// Frames that were complete since [`Walker::take_frames`] was last called.
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
        /// Of the masking key, which is in the header's last four bytes (RFC 6455 5.3).
        mask: [u8; 2],
    },
}

/// Two bytes, a 64-bit length, a mask.
const HEADER_BYTES_MAX: usize = 14;

/// RFC 6455 5.2: opcodes with this bit are control frames.
const CONTROL: u8 = 0x8;
const CONTINUATION: u8 = 0x0;
const CLOSE: u8 = 0x8;
const PONG: u8 = 0xa;

/// Why the walk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The input did.
    EndOfInput,
    /// A close frame did; RFC 6455 5.5.1 allows nothing after it.
    CloseFrame,
    /// The next frame breaks RFC 6455.
    Protocol,
    /// The next frame announces more than a message may have.
    TooBig,
}

impl Walker {
    /// A walker before the first frame.
    pub fn new() -> Walker {
        let place = Place::between_frames();
        Walker { place, in_message: false, close_code: [0; 2], close_code_length: 0, frames: 0 }
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

    /// Follows `input` and tells how many of its bytes are good, and why it went no further.
    pub fn walk(&mut self, input: &[u8], message_bytes_max: usize) -> (usize, Halt) {
        let mut at = 0;
        while at < input.len() {
            match &mut self.place {
                Place::Header { bytes, length } => {
                    bytes[*length] = input[at];
                    *length += 1;
                    at += 1;
                    match judge(&bytes[..*length], self.in_message, message_bytes_max) {
                        Judgement::Partial => {}
                        Judgement::Bad(halt) => return (at.saturating_sub(*length), halt),
                        Judgement::Whole { left, first_byte } => {
                            let mask = [bytes[*length - 4], bytes[*length - 3]];
                            self.place = Place::Payload { left, first_byte, mask }
                        }
                    }
                }
                Place::Payload { left, first_byte, mask } => {
                    let step = (*left).min((input.len() - at) as u64);
                    *left -= step;
                    if *first_byte & 0xf == CLOSE {
                        for byte in &input[at..at + step as usize] {
                            let place = self.close_code_length as usize;
                            let Some(code_byte) = self.close_code.get_mut(place) else { break };
                            *code_byte = byte ^ mask[place];
                            self.close_code_length += 1;
                        }
                    }
                    at += step as usize;
                }
            }
            if let Place::Payload { left: 0, first_byte, .. } = self.place {
                self.place = Place::between_frames();
                self.frames += 1;
                if first_byte & 0xf == CLOSE {
                    return (at, Halt::CloseFrame);
                }
                if first_byte & CONTROL == 0 {
                    self.in_message = !is_final(first_byte);
                }
            }
        }
        (at, Halt::EndOfInput)
    }
}

impl Default for Walker {
    fn default() -> Walker {
        Walker::new()
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
    Whole { left: u64, first_byte: u8 },
    Bad(Halt),
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
            return Judgement::Bad(Halt::Protocol);
        }
        return Judgement::Partial;
    }
    let short_length = header[1] & 0x7f;
    if header.len() == 2 {
        // 5.1: a client MUST mask. 5.5: control frames carry at most 125 bytes.
        let unmasked = header[1] & 0x80 == 0;
        if unmasked || (is_control && short_length > 125) {
            return Judgement::Bad(Halt::Protocol);
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
            return Judgement::Bad(Halt::Protocol);
        }
        if !is_control && left > message_bytes_max as u64 {
            return Judgement::Bad(Halt::TooBig);
        }
    }
    if header.len() < length_end + 4 {
        return Judgement::Partial;
    }
    Judgement::Whole { left, first_byte: first }
}
