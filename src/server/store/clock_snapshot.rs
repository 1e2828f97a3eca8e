//! How long the server was away, by clocks that jump.

use std::hash::{BuildHasher, RandomState};

/// What clocks said when something was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockSnapshot {
    /// Unix time in milliseconds; may jump.
    pub unix_ms: u64,
    /// Milliseconds since the machine was started, suspended or not; never jumps.
    pub boot_ms: u64,
    /// Which start of the machine that was.
    pub boot: u64,
}

/// The epoch of a new log, by chance alone: a machine without a clock begins each life at the same time, and a cursor of
/// an earlier log must never look like one of this. 53 bits are what a number of JavaScript holds; among a thousand logs
/// two are the same with a probability of 6 in a hundred billion.
pub fn new_epoch() -> u64 {
    // Its keys are random.
    RandomState::new().hash_one("epoch") >> 11
}

/// How long the server was away.
///
/// **Clocks that jump**: on a machine that was not started anew meanwhile, its own clock tells, which nobody
/// can set. Otherwise only unix time is left, and it may have been wrong then or be wrong now. If it went
/// back, no time has passed. If it went ahead, that counts for at most half of what a message is kept, so
/// that a clock that was put right does not let go of everything at once; what is kept so goes on to age.
pub(super) fn downtime_ms(then: ClockSnapshot, now: ClockSnapshot, age_ms: u32) -> u64 {
    if then.boot == now.boot && then.boot != 0 && now.boot_ms >= then.boot_ms {
        now.boot_ms - then.boot_ms
    } else {
        now.unix_ms.saturating_sub(then.unix_ms).min(u64::from(age_ms / 2))
    }
}
