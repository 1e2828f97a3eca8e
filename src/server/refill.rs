//! The last part of the deliver phase: makes the next slices of replays and of long responses, within a budget per
//! turn.
//!
//! A request of 45 bytes can ask for a listing that takes a millisecond, and thousands of clients can resume at once: a
//! budget of bytes read does not bound that. So long responses are made a slice at a time, for a connection that has
//! taken the previous slice, and the connections take turns. Connections that exceed the budget of one turn stay on the
//! refill list, which keeps the loop awake (`Slots::has_work`), and new messages are sent between slices.
//!
//! **Addresses take turns**: a connection waits for one slice of each other address, not for the thousand connections
//! of one ([`super::fair_queue`]).
//!
//! **One slice per connection**: the next one is made when the socket has taken the last.

use super::cost::Cost;
use super::engine::Engine;
use super::query::TurnCache;
use super::slot::Slot;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Makes slices until the turn's budget is used, each connection one at a time.
    pub(super) fn refill_all(&mut self, now: LoopTime) {
        let most = u64::from(self.shared.limits.work_micros_per_turn) * 1_000;
        let mut spent = Cost::NONE;
        let mut cache = TurnCache::default();
        while spent.nanos < most
            && let Some(id) = self.slots.next_refill()
        {
            spent += self.refill(id, &mut cache, now);
        }
        self.send_gathered();
    }

    fn refill(&mut self, id: SlotId, cache: &mut TurnCache, now: LoopTime) -> Cost {
        // A flush of the empty outbox marks it again.
        let can_send = |slot: &&Slot<T>| {
            slot.can_send() && !slot.outbox.is_blocked() && !slot.transport.has_pending_write()
        };
        let Some(slot) = self.slots.get(id).filter(can_send) else { return Cost::NONE };
        if slot.is_replaying() {
            self.replay(id, now)
        } else if slot.state.has_query() && !slot.waits_for_log() {
            self.respond(id, cache, now)
        } else {
            Cost::NONE
        }
    }

    /// Retries the replays that wait for memory, if some has been freed since one had to wait.
    pub(super) fn wake_waiting(&mut self) {
        if self.slots.waiting_len() > 0 && self.hub.has_freed_replay_bytes() {
            self.slots.wake_waiting();
        }
    }
}
