//! The load generator's clock: nanoseconds since the start of the run.
//!
//! The server's loop reads the clock twice per turn. This one reads it after every read, since a turn that reads a
//! thousand clients takes a millisecond, which is the magnitude that is measured here. A call costs about 25 ns. No
//! other file of this folder reads a clock.

use std::time::{Duration, Instant};

use crate::time::LoopTime;

/// A point in time, in nanoseconds since the start of the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunTime(u64);

/// The clock of a run.
#[derive(Debug)]
pub struct RunClock {
    start: Instant,
}

impl RunClock {
    /// A clock that starts at zero.
    pub fn new() -> RunClock {
        RunClock { start: Instant::now() }
    }

    /// The current time.
    pub fn now(&self) -> RunTime {
        RunTime(self.start.elapsed().as_nanos() as u64)
    }
}

impl Default for RunClock {
    fn default() -> RunClock {
        RunClock::new()
    }
}

impl RunTime {
    /// The point `nanos` nanoseconds after the start of the run.
    pub fn from_nanos(nanos: u64) -> RunTime {
        RunTime(nanos)
    }

    /// Nanoseconds since the start of the run.
    pub fn nanos(self) -> u64 {
        self.0
    }

    /// The point `span` later.
    #[must_use]
    pub fn after(self, span: Duration) -> RunTime {
        RunTime(self.0.saturating_add(span.as_nanos() as u64))
    }

    /// Nanoseconds from `earlier` to this point; 0 when `earlier` is the later one.
    pub fn nanos_since(self, earlier: RunTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Seconds from `earlier` to this point; 0 when `earlier` is the later one.
    pub fn seconds_since(self, earlier: RunTime) -> f64 {
        self.nanos_since(earlier) as f64 / 1e9
    }

    /// The same point in time as a `LoopTime`, for the outboxes.
    pub fn loop_time(self) -> LoopTime {
        LoopTime::from_millis(self.0 / 1_000_000)
    }
}
