//! The last part of the deliver phase: makes the next slices of replays and of long responses, within a budget per
//! turn.
//!
//! A request of 45 bytes can ask for a listing that takes a millisecond, and thousands of clients can resume at once: a
//! budget of bytes read does not bound that. So long responses are made a slice at a time, for a connection that has
//! taken the previous slice, and the connections take turns. Connections that exceed the budget of one turn stay on the
//! refill list, which keeps the loop awake (`Slots::has_work`), and new messages are sent between slices.
//!
//! **Addresses take turns**: a connection waits for one slice of each other address, not for the thousand connections of
//! one ([`super::fair_queue`]).
//!
//! **One slice per connection**: the next one is made when the socket has taken the last.

use std::ops::AddAssign;

use super::engine::Engine;
use super::query::TurnCache;
use super::slots::Slot;
use crate::hub::replay::Work;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::time::LoopTime;

/// The cost of a slice, as an estimate of the time that it takes: a clock would have to be read for each slice, and
/// tests could not predict a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    nanos: u64,
}

impl Cost {
    /// No work.
    pub(super) const NONE: Cost = Cost { nanos: 0 };

    /// Fixed cost of a slice: its entries on two lists, its allocation, and the call that writes it.
    pub(super) const SLICE: Cost = Cost { nanos: 3_000 };

    /// The cost of the work, and of the bytes that are to be written. A slice of 16 KiB of a history page takes 16 us
    /// of processor time with its turn and its write; one of a listing 26 us, 10 of them for its 133 channels.
    pub(super) fn of(work: Work, queued: usize) -> Cost {
        let encoded = work.encoded as u64 / 2 + 100 * work.entries as u64;
        Cost { nanos: Cost::SLICE.nanos + encoded + queued as u64 / 4 }
    }
}

impl Cost {
    /// The counters as text, 32 us, and a walk over all slots for the bytes in their outboxes: 14 us for 8,000. Sums
    /// that are updated with each write would cost more than they save.
    pub(super) fn of_metrics(slots: usize) -> Cost {
        Cost { nanos: 35_000 + 2 * slots as u64 }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.nanos += other.nanos;
    }
}

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
        } else if slot.state.has_query() {
            self.respond(id, cache, now)
        } else {
            Cost::NONE
        }
    }

    /// Retries the replays that wait for memory, if some has been freed since one was refused.
    pub(super) fn wake_waiting(&mut self) {
        if self.slots.waiting_len() > 0 && self.hub.has_freed_replay_bytes() {
            self.slots.wake_waiting();
        }
    }
}
