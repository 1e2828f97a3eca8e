//! The expire phase: drain, tables of clients, timeouts, pings, and expired messages.
//!
//! Each kind has a bounded share of a turn, so that deadlines that are due together do not delay messages.

use super::drain_schedule::DrainSchedule;
use super::engine::Engine;
use super::sweeper::Sweeper;
use crate::close::Reason;
use crate::fault::TlsFault;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::session::{Due, State};
use crate::time::LoopTime;

/// All timeouts that are due together are handled within this time of their check, however long turns are: so a timeout
/// is less than a second late, the time of a sweep included.
const TIMEOUTS_SPAN_MS: u32 = 500;

/// All connections are pinged within this part of the ping interval if their pings are due together and turns are long:
/// so a ping is less than a fifth of the interval late.
const PINGS_SPAN: u32 = 10;

/// Kinds of deadlines that are checked by separate sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deadlines {
    Timeouts,
    Pings,
}

impl<T: Transport> Engine<T> {
    /// Checks a slice of the slots for expired deadlines, up to the number that one turn handles. Intents of sessions
    /// are applied at once.
    ///
    /// Pings have a separate sweep and budget, so that timeouts do not wait for the pings of many connections.
    pub fn expire(&mut self, now: LoopTime) {
        self.continue_drain(now);
        self.continue_discontinuity(now);
        self.expire_log(now);
        self.expire_tables(now);
        self.log_suppressed_lines(now);
        self.slots.shrink_at(now);
        self.hub.shrink_at(now);
        self.sweep_slots(Deadlines::Timeouts, now);
        self.sweep_slots(Deadlines::Pings, now);
        if self.hub.has_expiring_data() {
            let slice = self.channel_sweeper.slice(self.hub.keys_end(), now);
            self.hub.expire(slice, now);
            self.hub.expire_keys(self.log_time(now));
        }
    }

    /// Checks a slice of the slots for one kind of deadlines, until the budget of this turn is used. The rest of the
    /// slice is left to the next turn.
    fn sweep_slots(&mut self, deadlines: Deadlines, now: LoopTime) {
        let (connections, keys_end) = (self.slots.len(), self.slots.keys_end());
        let span_ms = match deadlines {
            Deadlines::Timeouts => TIMEOUTS_SPAN_MS,
            Deadlines::Pings => self.shared.limits.ping_interval_ms / PINGS_SPAN,
        };
        let sweeper = self.sweeper_of(deadlines);
        let mut budget = sweeper.take_budget(connections, span_ms, now);
        let slice = sweeper.slice(keys_end, now);
        for key in slice.clone() {
            let id = self.slots.id_at(key);
            budget -= usize::from(id.is_some_and(|id| self.expire_slot(id, deadlines, now)));
            if budget == 0 && key + 1 < slice.end {
                self.sweeper_of(deadlines).pause(key + 1, now);
                break;
            }
        }
    }

    fn sweeper_of(&mut self, deadlines: Deadlines) -> &mut Sweeper {
        match deadlines {
            Deadlines::Timeouts => &mut self.sweeper,
            Deadlines::Pings => &mut self.ping_sweeper,
        }
    }

    /// Handles the expired deadlines of one kind of a connection. Returns true if there was one.
    fn expire_slot(&mut self, id: SlotId, deadlines: Deadlines, now: LoopTime) -> bool {
        let pings = deadlines == Deadlines::Pings;
        if !pings && (self.end_wait(id, now) || self.end_overdue(id, now)) {
            return true;
        }
        if self.pressure.is_active() {
            self.expire_pressure(id, now);
        }
        if self.slots.get(id).is_some_and(|slot| slot.is_withheld() || slot.is_close_held()) {
            // The deadlines of a paused publisher begin when its response is sent, those of a close that waits for
            // acknowledgements with its close frame.
            return false;
        }
        let Engine { slots, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return false };
        if !pings
            && slot.state.is_open()
            && slot.transport.is_record_late(now, shared.limits.message_timeout_ms)
        {
            self.close(id, Reason::TlsFailed { fault: TlsFault::RecordTimeout }, now);
            return true;
        }
        let has_stalled = !pings && slot.has_stalled(&shared.limits, now);
        if has_stalled {
            // The socket may accept bytes again, and its event may be in the next batch, if the server itself is late.
            // So one more write decides.
            slot.unblock();
            slots.mark_dirty(id);
        }
        let Some(slot) = slots.get_mut(id) else { return false };
        if slot.state.is_ping_due(now) != pings {
            return has_stalled;
        }
        // The peer's messages may be in the kernel, where they stay until it has received its responses.
        let unread = slot.is_ready() || (slot.is_read_paused() && matches!(slot.state, State::Open(_)));
        let (_, state, mut ctx) = shared.session_context(id, slot, now);
        match state.expire(unread, &mut ctx) {
            Due::Nothing => return has_stalled,
            Due::Flush => self.apply_session_intents(id, now),
            Due::Read => slots.mark_ready(id),
            Due::Close(reason) => slots.schedule_close(id, reason),
        }
        true
    }

    /// Returns the time of the next check, if there is anything to check.
    pub fn next_expiry(&self, now: LoopTime) -> Option<LoopTime> {
        let next = || self.sweeper.next(now).min(self.ping_sweeper.next(now));
        let slots = (!self.slots.is_empty()).then(next);
        let channels = self.hub.has_expiring_data().then(|| self.channel_sweeper.next(now));
        let drain = self.draining.as_ref().and_then(DrainSchedule::next);
        let tables = self.next_table_expiry(now);
        [slots, channels, drain, tables, self.next_log_expiry()].into_iter().flatten().reduce(LoopTime::min)
    }
}
