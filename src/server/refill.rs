//! The last part of the deliver phase: the next slices of replays and of long answers, within a budget of the turn.
//!
//! A request of 45 bytes can ask for a listing that takes a millisecond, and thousands of clients can resume at once: a
//! budget of bytes read bounds none of that. So what takes long is made a slice at a time, for a connection that has
//! taken the slice before, and the connections take turns. What one turn has no time for stays on the refill list,
//! which keeps the loop awake (`Slots::has_work`), and what is published meanwhile goes out between.
//!
//! **One slice per connection**: the next one is made when the socket has taken the last.

use std::ops::AddAssign;

use super::engine::Engine;
use super::questions::Shared;
use super::slots::Slot;
use super::transport::Transport;
use crate::hub::replay::Work;
use crate::ids::SlotId;
use crate::moment::Moment;

/// What a slice costs, as an estimate of the time that it takes: a clock would be asked as often as a slice is made, and
/// tests could not foresee a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    nanos: u64,
}

impl Cost {
    /// Nothing was done.
    pub(super) const NONE: Cost = Cost { nanos: 0 };

    /// Any slice: its place on two lists, its allocation, and the call that writes it.
    pub(super) const SLICE: Cost = Cost { nanos: 3_000 };

    /// What was done, and the bytes that are to be written. A slice of 16 KiB of a history page takes 16 us of processor
    /// time with its turn and its write, one of a listing 26 us, of which its 133 channels are the rest.
    pub(super) fn of(work: Work, queued: usize) -> Cost {
        let encoded = work.encoded as u64 / 2 + 100 * work.entries as u64;
        Cost { nanos: Cost::SLICE.nanos + encoded + queued as u64 / 4 }
    }
}

impl Cost {
    /// The counters as text, 32 us, and a look at all slots for what waits in them: 14 us for 8,000. Sums that are kept up
    /// to date would cost each write more than that saves.
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
    pub(super) fn refill_all(&mut self, now: Moment) {
        let most = u64::from(self.limits.work_micros_per_turn) * 1_000;
        let mut spent = Cost::NONE;
        let mut shared = Shared::default();
        while spent.nanos < most
            && let Some(id) = self.slots.next_refill()
        {
            spent += self.refill(id, &mut shared, now);
        }
        self.send_gathered();
    }

    fn refill(&mut self, id: SlotId, shared: &mut Shared, now: Moment) -> Cost {
        // A flush will find it empty, and mark it again.
        let can_send =
            |slot: &&Slot<T>| slot.takes_words() && !slot.outbox.is_blocked() && !slot.transport.holds_back();
        let Some(slot) = self.slots.get(id).filter(can_send) else { return Cost::NONE };
        if slot.is_replaying() {
            self.replay(id, now)
        } else if slot.state.has_query() {
            self.respond(id, shared, now)
        } else {
            Cost::NONE
        }
    }

    /// Has the replays that wait for memory tried again, if some has been freed since one was refused.
    pub(super) fn wake_waiting(&mut self) {
        if self.slots.waiting_len() > 0 && self.hub.has_freed_replay_bytes() {
            self.slots.wake_waiting();
        }
    }
}
