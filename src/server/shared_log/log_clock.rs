//! The time of a shared log, which its server gives each entry.

use crate::time::LoopTime;

/// The time of a shared log, as this node knows it.
#[derive(Debug)]
pub(super) struct LogClock {
    /// The time of the log when it was opened, in ms.
    opened_ms: u64,
    /// The time of the loop then.
    opened_at: LoopTime,
    last_entry_at: LoopTime,
}

impl LogClock {
    /// The clock of a log that is not opened yet.
    pub(super) fn new(now: LoopTime) -> LogClock {
        LogClock { opened_ms: 0, opened_at: now, last_entry_at: LoopTime::from_millis(0) }
    }

    /// Records the time of the log at which it was opened, in ms.
    pub(super) fn opened(&mut self, time_ms: u64, now: LoopTime) {
        (self.opened_ms, self.opened_at) = (time_ms, now);
    }

    /// Advances the clock to an entry. Returns the entry's time.
    pub(super) fn advance_to(&mut self, time_ms: u64) -> LoopTime {
        self.last_entry_at = LoopTime::from_millis(time_ms);
        self.last_entry_at
    }

    /// The log's time of the last entry. Idempotency keys and tickets expire by it, at the same entry on all nodes.
    pub(super) fn last_entry_at(&self) -> LoopTime {
        self.last_entry_at
    }

    /// The age in ms of an entry with this time.
    pub(super) fn age_ms(&self, time_ms: u64, now: LoopTime) -> u32 {
        let now_ms = self.opened_ms + u64::from(now.millis_since(self.opened_at));
        u32::try_from(now_ms.saturating_sub(time_ms)).unwrap_or(u32::MAX)
    }
}
