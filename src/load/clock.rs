//! The load generator's time: nanoseconds since the run was born.
//!
//! Unlike the server's loop, which asks once a turn, this one asks after every read: a turn that reads
//! a thousand clients takes a millisecond, and that is the size of what is measured here. A call costs
//! some 25 ns. It is still the only place that asks.

use std::time::{Duration, Instant};

use crate::moment::Moment;

/// A point in time, in nanoseconds since the run was born.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunTime(u64);

/// Where time comes from.
#[derive(Debug)]
pub struct RunClock {
    birth: Instant,
}

impl RunClock {
    /// A clock that shows zero.
    pub fn new() -> RunClock {
        RunClock { birth: Instant::now() }
    }

    /// The time.
    pub fn now(&self) -> RunTime {
        RunTime(self.birth.elapsed().as_nanos() as u64)
    }
}

impl Default for RunClock {
    fn default() -> RunClock {
        RunClock::new()
    }
}

impl RunTime {
    /// The point so many nanoseconds after the run's birth.
    pub fn from_nanos(nanos: u64) -> RunTime {
        RunTime(nanos)
    }

    /// Nanoseconds since the run's birth.
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

    /// The same point in the unit that outboxes use.
    pub fn moment(self) -> Moment {
        Moment::from_millis(self.0 / 1_000_000)
    }
}
