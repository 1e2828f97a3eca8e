//! WebSocket input: received bytes as messages.
//!
//! Messages that arrive complete are passed to the [`decoder`] without a copy. An incomplete one is kept as an
//! `Unfinished` message until its last byte has arrived: **asleep between messages**.

use bytes::Bytes;

use super::decoder::{self, DecodeOutcome};
use super::frame_scanner::FrameScanner;
use super::unfinished::{Completion, Unfinished};
use crate::config::Limits;
use crate::time::LoopTime;
use crate::wire::Kind;

/// Decodes received bytes. Messages are passed to `on_message`, frames for the peer appended to `replies`. Also returns
/// the number of completed frames, including empty and control frames.
///
/// `unfinished` becomes `None` when the bytes end on a message boundary.
pub fn receive(
    unfinished: &mut Option<Box<Unfinished>>,
    mut input: &[u8],
    limits: &Limits,
    now: LoopTime,
    replies: &mut Vec<u8>,
    mut on_message: impl FnMut(Kind, Bytes),
) -> (DecodeOutcome, usize) {
    let mut frames = 0;
    while !input.is_empty() {
        if let Some(message) = unfinished {
            let completion = message.receive(&mut input, limits, replies, &mut on_message);
            frames += message.take_frames();
            match completion {
                Completion::Incomplete => {}
                Completion::Complete => *unfinished = None,
                Completion::Ended(outcome) => return (outcome, frames),
            }
            continue;
        }
        let whole = FrameScanner::whole_messages(input, limits.message_bytes_max);
        if whole.bytes == 0 {
            *unfinished = Some(Box::new(Unfinished::new(now.after(limits.message_timeout_ms))));
            continue;
        }
        let (messages, incomplete) = input.split_at(whole.bytes);
        input = incomplete;
        frames += whole.frames;
        match decoder::decode(messages.to_vec(), whole.close_code, limits, replies, &mut on_message) {
            DecodeOutcome::Open => {}
            outcome => return (outcome, frames),
        }
    }
    (DecodeOutcome::Open, frames)
}
