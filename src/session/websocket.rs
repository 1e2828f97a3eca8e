//! WebSocket input: received bytes as messages.
//!
//! Messages that arrive complete are passed to the [`decoder`] without a copy. An incomplete one is kept as an
//! `Unfinished` message until its last byte has arrived: **asleep between messages**. So is a compressed one, which
//! tungstenite cannot decode.

use bytes::Bytes;

use super::decoder::{self, DecodeOutcome};
use super::decoding::Decoding;
use super::frame_scanner::FrameScanner;
use super::unfinished::{Completion, Unfinished};
use crate::wire::Kind;

/// Decodes received bytes, and advances `input` over them. Messages are passed to `on_message`, frames for the peer
/// appended to `replies`. Input is left, or a message that is not decompressed, if the frames have reached their
/// maximum number, or the decompressed messages their maximum cost.
///
/// `unfinished` becomes `None` when the bytes end on a message boundary.
pub fn receive(
    unfinished: &mut Option<Box<Unfinished>>,
    input: &mut &[u8],
    decoding: &mut Decoding<'_>,
    replies: &mut Vec<u8>,
    mut on_message: impl FnMut(Kind, Bytes),
) -> DecodeOutcome {
    let limits = decoding.limits;
    let allows_compressed = decoding.inflater.is_some();
    let is_inflating = |unfinished: &Option<Box<Unfinished>>| {
        unfinished.as_ref().is_some_and(|message| message.is_inflating())
    };
    while (!input.is_empty() || is_inflating(unfinished)) && !decoding.is_budget_spent() {
        if let Some(message) = unfinished {
            let completion = match message.is_inflating() {
                true => message.inflate(decoding, &mut on_message),
                false => message.receive(input, decoding, replies, &mut on_message),
            };
            decoding.frames += message.take_frames();
            match completion {
                Completion::Incomplete => {}
                Completion::Complete => *unfinished = None,
                Completion::Ended(outcome) => return outcome,
            }
            continue;
        }
        let frames_max = decoding.frames_left();
        let whole =
            FrameScanner::whole_messages(input, allows_compressed, limits.message_bytes_max, frames_max);
        if whole.bytes == 0 {
            let deadline = decoding.now.after(limits.message_timeout_ms);
            *unfinished = Some(Box::new(Unfinished::new(allows_compressed, deadline)));
            continue;
        }
        let (messages, incomplete) = input.split_at(whole.bytes);
        *input = incomplete;
        decoding.frames += whole.frames;
        match decoder::decode(messages.to_vec(), whole.close_code, limits, replies, &mut on_message) {
            DecodeOutcome::Open => {}
            outcome => return outcome,
        }
    }
    DecodeOutcome::Open
}
