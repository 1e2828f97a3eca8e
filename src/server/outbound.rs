//! What one connection is sent in addition to the batches of its channels: answers, notices, replays, close frames.
//!
//! Answers are gathered: all that one connection is answered in a row becomes one piece of its outbox. An answer has
//! some 30 bytes, a piece costs [`PIECE_BYTES`](crate::hub::outbox::PIECE_BYTES) in addition, and a turn can read
//! thousands of commands of one connection.
//!
//! **One order**: whatever enters an outbox passes [`Engine::enqueue`] or, for a batch, the hub's fan-out, and both send
//! what was gathered first.
//!
//! **Reads depend on writes**: answers are under no limit of their own, since a connection is not read on before it
//! has taken them ([`Slot::has_unsent_answers`](super::slots::Slot::has_unsent_answers)). What they can amount to is
//! what one turn reads of it.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;

use super::engine::Engine;
use super::transport::Transport;
use crate::hub::outbox::Frames;
use crate::ids::SlotId;
use crate::moment::Moment;
use crate::wire::notice::Notice;

/// Longer answers are a piece of their own, and are not copied: the
/// [`PIECE_BYTES`](crate::hub::outbox::PIECE_BYTES) around them are 3 % of that.
const GATHERED_ANSWER_BYTES_MAX: usize = 4 << 10;

/// The buffer keeps that much between turns: the answers to 16 KiB of the shortest publications, which one read takes.
const GATHER_BUFFER_BYTES: usize = 64 << 10;

/// The answers to one connection that are not in its outbox yet.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    to: Option<SlotId>,
    frames: Vec<u8>,
}

impl Gathered {
    /// Returns true if nothing was gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.to.is_none()
    }
}

impl<T: Transport> Engine<T> {
    /// Sends one notice in `oyez.v1`.
    pub(super) fn tell(&mut self, id: SlotId, notice: &Notice<'_>) {
        if self.gathers_for(id) {
            notice.append_frame(&mut self.gathered.frames);
        }
    }

    /// Sends frames to one connection, as an answer or a notice.
    pub(super) fn say(&mut self, id: SlotId, frames: &[u8]) {
        if self.gathers_for(id) {
            self.gathered.frames.extend_from_slice(frames);
        }
    }

    /// Sends the response to a request.
    pub(super) fn answer(&mut self, id: SlotId, response: Bytes, now: Moment) {
        if !self.gathers_for(id) {
            return;
        }
        if response.len() <= GATHERED_ANSWER_BYTES_MAX {
            self.gathered.frames.extend_from_slice(&response);
        } else {
            self.enqueue(id, Rc::new(response));
        }
        let Some(slot) = self.slots.get_mut(id) else { return };
        if slot.state.answered(&self.limits, now) {
            self.slots.mark_ready(id);
        } else if slot.state.has_query() {
            // It has waited for the responses before it.
            self.slots.mark_refill(id);
        }
        self.slots.mark_dirty(id);
    }

    /// Queues a piece for one connection, after all that it was answered before.
    pub(super) fn enqueue(&mut self, id: SlotId, frames: Frames) {
        self.send_gathered();
        if let Some(slot) = self.slots.get_mut(id) {
            slot.outbox.queue(frames);
            self.slots.mark_dirty(id);
        }
    }

    /// Queues the answers that were gathered, as one piece.
    pub(super) fn send_gathered(&mut self) {
        let Some(id) = self.gathered.to.take() else { return };
        let frames = if self.gathered.frames.capacity() <= GATHER_BUFFER_BYTES {
            let frames = Bytes::copy_from_slice(&self.gathered.frames);
            self.gathered.frames.clear();
            frames
        } else {
            let mut frames = mem::take(&mut self.gathered.frames);
            frames.shrink_to_fit();
            frames.into()
        };
        if let Some(slot) = self.slots.get_mut(id) {
            slot.outbox.queue(Rc::new(frames));
            slot.mark_answered();
            self.slots.mark_dirty(id);
        }
    }

    /// Makes the buffer that of this connection. False if it can be sent nothing more.
    fn gathers_for(&mut self, id: SlotId) -> bool {
        if self.slots.get(id).is_none_or(|slot| !slot.takes_words()) {
            return false;
        }
        if self.gathered.to != Some(id) {
            self.send_gathered();
            self.gathered.to = Some(id);
        }
        true
    }
}
