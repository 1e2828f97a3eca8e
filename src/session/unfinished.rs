//! A WebSocket message whose payload is gathered: it is incomplete, or compressed.
//!
//! It holds the received part of the payload once, in a box that exists only while a message is incomplete. tungstenite
//! would hold it twice, in a read buffer with the frame and in the message that it assembles from fragments, and
//! neither shrinks. So the payload is unmasked and gathered here as it arrives, and fragments without a payload take
//! nothing. The [`FrameScanner`] validates the framing; complete control frames are still passed to tungstenite.
//!
//! A compressed message is decompressed when it is complete (RFC 7692 7.2.2), in slices: a message of 64 KiB may take
//! 3.4 ms, during which no other client is served.

use std::mem;

use bytes::Bytes;

use super::buffer;
use super::decoder::{self, DecodeOutcome, too_big};
use super::decoding::Decoding;
use super::frame_scanner::{
    CONTINUATION, FrameScanner, FrameStep, PayloadPart, ScanStop, TEXT, compressed_bytes_max,
};
use crate::close::Reason;
use crate::config::Limits;
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::inflate::Inflation;

/// The beginning of a message.
#[derive(Debug)]
pub struct Unfinished {
    scanner: FrameScanner,
    /// The opcode of the message; known with its first frame.
    is_text: bool,
    /// The received part of the payload, unmasked. Once a compressed message is complete, its decompressed part.
    payload: Vec<u8>,
    /// The compressed payload of a complete message, while it is decompressed.
    inflation: Option<Inflation>,
    /// Number of bytes of a text that are known to be valid UTF-8; the rest is the beginning of a character.
    checked: usize,
    /// The received part of a control frame's payload, unmasked. Control frames may be sent between fragments (RFC 6455
    /// 5.4).
    control: Vec<u8>,
    deadline: LoopTime,
}

/// The progress of a message.
pub(super) enum Completion {
    /// All input is taken, and the message is not complete.
    Incomplete,
    /// The bytes taken end on a message boundary.
    Complete,
    /// The connection is to close.
    Ended(DecodeOutcome),
}

impl Unfinished {
    /// A message that begins, with its deadline.
    pub(super) fn new(allows_compressed: bool, deadline: LoopTime) -> Unfinished {
        Unfinished {
            scanner: FrameScanner::new(allows_compressed),
            is_text: false,
            payload: Vec::new(),
            inflation: None,
            checked: 0,
            control: Vec::new(),
            deadline,
        }
    }

    /// The deadline of the message, unless it has arrived completely.
    pub(super) fn deadline(&self) -> Option<LoopTime> {
        (!self.is_inflating()).then_some(self.deadline)
    }

    /// Returns true if the message has arrived completely, and is being decompressed.
    pub fn is_inflating(&self) -> bool {
        self.inflation.is_some()
    }

    /// Memory that it takes, in addition to its box.
    pub(super) fn held_bytes(&self) -> usize {
        let inflation = self.inflation.as_ref().map_or(0, Inflation::held_bytes);
        self.payload.capacity() + self.control.capacity() + inflation
    }

    /// Returns the number of frames that were completed since the last call.
    pub(super) fn take_frames(&mut self) -> usize {
        self.scanner.take_frames()
    }

    /// The position between frames, for a close.
    pub(super) fn into_scanner(self) -> FrameScanner {
        self.scanner
    }

    /// Takes input up to the message's end, or to the maximum number of frames.
    pub(super) fn receive(
        &mut self,
        input: &mut &[u8],
        decoding: &mut Decoding<'_>,
        replies: &mut Vec<u8>,
        on_message: &mut impl FnMut(Kind, Bytes),
    ) -> Completion {
        let limits = decoding.limits;
        while !input.is_empty() && self.scanner.frames() < decoding.frames_left() {
            let (consumed, step) = self.scanner.step(input, limits.message_bytes_max);
            let (bytes, remaining) = input.split_at(consumed);
            *input = remaining;
            let part = match step {
                FrameStep::Header => break,
                FrameStep::Invalid(ScanStop::TooBig) => return failed(too_big(limits)),
                FrameStep::Invalid(_) => return failed(Reason::Protocol),
                FrameStep::Payload(part) => part,
            };
            let payload = &bytes[consumed - part.payload_bytes..];
            let outcome = if part.is_control() {
                self.take_control(&part, payload, limits, replies, on_message)
            } else {
                self.take_data(&part, payload, decoding, on_message)
            };
            match outcome {
                DecodeOutcome::Open if self.is_inflating() => return Completion::Incomplete,
                DecodeOutcome::Open if part.is_end && !self.scanner.is_in_message() => {
                    return Completion::Complete;
                }
                DecodeOutcome::Open => {}
                outcome => return Completion::Ended(outcome),
            }
        }
        Completion::Incomplete
    }

    fn take_data(
        &mut self,
        part: &PayloadPart,
        bytes: &[u8],
        decoding: &mut Decoding<'_>,
        on_message: &mut impl FnMut(Kind, Bytes),
    ) -> DecodeOutcome {
        let limits = decoding.limits;
        let bytes_max = match part.is_compressed {
            true => compressed_bytes_max(limits.message_bytes_max),
            false => limits.message_bytes_max,
        };
        let length = self.payload.len() + bytes.len();
        let length_max = usize::try_from(part.left).unwrap_or(usize::MAX).saturating_add(length);
        // The scanner checks each frame separately.
        if length_max > bytes_max {
            return DecodeOutcome::Failed(too_big(limits));
        }
        if part.begins && part.opcode() != CONTINUATION {
            self.is_text = part.opcode() == TEXT;
        }
        let begin = self.payload.len();
        buffer::append(&mut self.payload, bytes, length_max);
        unmask(&mut self.payload[begin..], part.mask);
        let is_whole = part.is_end && part.is_final();
        if part.is_compressed {
            if is_whole {
                match decoding.begin_inflation(mem::take(&mut self.payload)) {
                    Ok(inflation) => self.inflation = Some(inflation),
                    Err(reason) => return DecodeOutcome::Failed(reason),
                }
            }
            return DecodeOutcome::Open;
        }
        self.check_data(is_whole, on_message)
    }

    /// Decompresses a slice of the message.
    pub(super) fn inflate(
        &mut self,
        decoding: &mut Decoding<'_>,
        on_message: &mut impl FnMut(Kind, Bytes),
    ) -> Completion {
        let Some(mut inflation) = self.inflation.take() else { return Completion::Incomplete };
        let result = decoding.inflate(&mut inflation, &mut self.payload);
        if result == Ok(false) {
            self.inflation = Some(inflation);
        } else {
            decoding.end_inflation(inflation);
        }
        match result.map(|is_complete| (is_complete, self.check_data(is_complete, on_message))) {
            Ok((true, DecodeOutcome::Open)) => Completion::Complete,
            Ok((false, DecodeOutcome::Open)) => Completion::Incomplete,
            Ok((_, outcome)) => Completion::Ended(outcome),
            Err(reason) => failed(reason),
        }
    }

    /// Checks the text so far, and passes a complete message on.
    fn check_data(&mut self, is_whole: bool, on_message: &mut impl FnMut(Kind, Bytes)) -> DecodeOutcome {
        if self.is_text && !self.is_utf8(is_whole) {
            return DecodeOutcome::Failed(Reason::NotUtf8);
        }
        if is_whole {
            let kind = if self.is_text { Kind::Text } else { Kind::Binary };
            on_message(kind, mem::take(&mut self.payload).into());
        }
        DecodeOutcome::Open
    }

    /// Checks the text (RFC 6455 8.1: a text that is not UTF-8 fails the connection), at the first invalid byte, since
    /// a message may be long.
    fn is_utf8(&mut self, is_whole: bool) -> bool {
        match std::str::from_utf8(&self.payload[self.checked..]) {
            Ok(_) => self.checked = self.payload.len(),
            Err(error) if error.error_len().is_none() && !is_whole => self.checked += error.valid_up_to(),
            Err(_) => return false,
        }
        true
    }

    fn take_control(
        &mut self,
        part: &PayloadPart,
        bytes: &[u8],
        limits: &Limits,
        replies: &mut Vec<u8>,
        on_message: &mut impl FnMut(Kind, Bytes),
    ) -> DecodeOutcome {
        let begin = self.control.len();
        self.control.extend_from_slice(bytes);
        unmask(&mut self.control[begin..], part.mask);
        if !part.is_end {
            return DecodeOutcome::Open;
        }
        // The frame as it arrived, with a mask of zeros. It has at most 125 bytes (RFC 6455 5.5).
        let control = mem::take(&mut self.control);
        let header = [part.first_byte, 0x80 | control.len() as u8, 0, 0, 0, 0];
        decoder::decode(
            [&header[..], &control].concat(),
            self.scanner.close_code(),
            limits,
            replies,
            on_message,
        )
    }
}

/// Unmasks a payload in place (RFC 6455 5.3).
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    // Four bytes at a time, which the compiler vectorizes.
    let (quads, tail) = payload.as_chunks_mut::<4>();
    for quad in quads {
        *quad = (u32::from_ne_bytes(*quad) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

fn failed(reason: Reason) -> Completion {
    Completion::Ended(DecodeOutcome::Failed(reason))
}
