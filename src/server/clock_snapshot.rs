//! Time over the life of a process and beyond it: readings of the clocks in the history file, the downtime between two
//! processes that continue one log, and random epochs.

use std::hash::{BuildHasher, RandomState};

use crate::time::LoopTime;

/// The time of the loop, and the same time in milliseconds since the process started: a [`LoopTime`] spans only weeks.
#[derive(Clone, Copy, Debug)]
pub struct ProcessTime {
    /// The time of the loop.
    pub now: LoopTime,
    /// Milliseconds since the process started.
    pub millis: u64,
}

/// The readings of the clocks at the time of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockSnapshot {
    /// Unix time in milliseconds; may jump.
    pub unix_ms: u64,
    /// Milliseconds since the machine was started, suspended or not; never jumps.
    pub boot_ms: u64,
    /// Identifies the boot of the machine.
    pub boot: u64,
}

/// Returns the epoch of a new log, at random: a machine without a clock starts at the same time after each boot, and a
/// cursor of an earlier log must never be taken for one of this log. 53 bits fit into a number of JavaScript; among a
/// thousand logs two are the same with a probability of 6 in a hundred billion.
pub fn new_epoch() -> u64 {
    // The keys of a `RandomState` are random.
    RandomState::new().hash_one("epoch") >> 11
}

/// Returns the downtime in milliseconds.
///
/// **Clocks that jump**: if the machine was not rebooted, its monotonic clock is used, which cannot be set. Otherwise
/// only unix time is left, and it may have been wrong then or be wrong now. If unix time went back, the downtime is
/// taken to be 0. If it went ahead, at most half of the maximum age of messages counts, so that a corrected clock does
/// not expire all of them at once; they continue to age.
pub fn downtime_ms(then: ClockSnapshot, now: ClockSnapshot, age_ms: u32) -> u64 {
    if then.boot == now.boot && then.boot != 0 && now.boot_ms >= then.boot_ms {
        now.boot_ms - then.boot_ms
    } else {
        now.unix_ms.saturating_sub(then.unix_ms).min(u64::from(age_ms / 2))
    }
}
