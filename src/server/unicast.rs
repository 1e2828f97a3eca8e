//! Frames for a single connection, in addition to the batches of its channels: responses, notices, replays, close
//! frames.
//!
//! Responses are gathered: consecutive responses to one connection become one piece of its outbox. A response has some
//! 30 bytes, a piece costs [`PIECE_BYTES`](crate::net::outbox::PIECE_BYTES) in addition, and a turn can read thousands
//! of commands of one connection.
//!
//! **One order**: all frames enter an outbox through [`Engine::enqueue`] or, for a batch, the fan-out, and both send
//! the gathered responses first.
//!
//! **Reads depend on writes**: responses have no separate limit, since a connection is not read again before it has
//! taken them ([`Slot::has_unsent_responses`](super::slot::Slot::has_unsent_responses)). So their size is bounded by
//! the bytes that one turn reads from it.

use std::rc::Rc;

use bytes::Bytes;

use super::engine::Engine;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::session::http::response::{HttpError, ResponseOptions};
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::Frames;
use crate::wire::notice::Notice;

/// Longer responses become a separate piece, and are not copied: the [`PIECE_BYTES`](crate::net::outbox::PIECE_BYTES)
/// around them are 3 % of that.
const GATHERED_RESPONSE_BYTES_MAX: usize = 4 << 10;

impl<T: Transport> Engine<T> {
    /// Sends one notice in `oyez.v1`.
    pub(super) fn send_notice(&mut self, id: SlotId, notice: &Notice<'_>) {
        if self.gathers_for(id) {
            notice.append_frame(&mut self.gathered.frames);
        }
    }

    /// Sends frames to one connection, as a response or a notice.
    pub(super) fn send(&mut self, id: SlotId, frames: &[u8]) {
        if self.gathers_for(id) {
            self.gathered.frames.extend_from_slice(frames);
        }
    }

    /// Sends the response to a request.
    pub(super) fn send_response(&mut self, id: SlotId, response: Bytes, now: LoopTime) {
        if !self.gathers_for(id) {
            return;
        }
        if response.len() <= GATHERED_RESPONSE_BYTES_MAX {
            self.gathered.frames.extend_from_slice(&response);
        } else {
            self.enqueue(id, Rc::new(response));
        }
        let Some(slot) = self.slots.get_mut(id) else { return };
        if slot.state.responded(&self.shared.limits, now) {
            self.slots.mark_ready(id);
        } else if slot.state.has_query() {
            // The query had to wait for the responses before it.
            self.slots.mark_refill(id);
        }
        self.slots.mark_dirty(id);
    }

    /// Sends the response to a request of an HTTP client, in JSON.
    pub(super) fn respond_with_json(
        &mut self,
        id: SlotId,
        options: &ResponseOptions,
        body: &str,
        now: LoopTime,
    ) {
        if self.awaits_response(id) {
            self.send_response(id, options.json(200, body).into(), now);
        }
    }

    /// Rejects the request of an HTTP client.
    pub(super) fn reject_request(
        &mut self,
        id: SlotId,
        options: &ResponseOptions,
        rejection: Rejection,
        now: LoopTime,
    ) {
        self.respond_with_error(id, options, &rejection.http(), now);
    }

    /// Sends an error as the response to a request of an HTTP client.
    pub(super) fn respond_with_error(
        &mut self,
        id: SlotId,
        options: &ResponseOptions,
        error: &HttpError,
        now: LoopTime,
    ) {
        self.shared.metrics.reject(error.code());
        if self.awaits_response(id) {
            self.send_response(id, error.respond(options).into(), now);
        }
    }

    /// Returns true if a connection waits for the response to its request. It may have been closed meanwhile.
    pub(super) fn awaits_response(&self, id: SlotId) -> bool {
        self.slots.get(id).is_some_and(|slot| slot.state.is_open())
    }

    /// Queues a piece for one connection, after all earlier responses.
    pub(super) fn enqueue(&mut self, id: SlotId, frames: Frames) {
        self.send_gathered();
        if let Some(slot) = self.slots.get_mut(id) {
            slot.outbox.queue(frames);
            self.slots.mark_dirty(id);
        }
    }

    /// Queues the responses that were gathered, as one piece.
    pub(super) fn send_gathered(&mut self) {
        let Some((id, frames)) = self.gathered.take() else { return };
        if let Some(slot) = self.slots.get_mut(id) {
            slot.outbox.queue(Rc::new(frames));
            slot.mark_response_queued();
            self.slots.mark_dirty(id);
        }
    }

    /// Assigns the buffer to this connection. Returns false if nothing more can be sent to it.
    fn gathers_for(&mut self, id: SlotId) -> bool {
        if self.slots.get(id).is_none_or(|slot| !slot.can_send()) {
            return false;
        }
        if self.gathered.to != Some(id) {
            self.send_gathered();
            self.gathered.to = Some(id);
        }
        true
    }
}
