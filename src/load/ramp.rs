//! The ramp: opens connections in steps, with a pause after each step to measure the server's memory.
//!
//! The cost of a connection is the slope over the steps. Dividing by the number of connections would add the memory
//! that the server holds without any connection.

use std::time::Duration;

use super::clock::RunTime;

/// Number of steps of a sufficiently large ramp.
const STEPS: usize = 8;

/// Minimum connections of a step: pages are 4 KiB, so fewer connections cannot be measured.
const STEP_CONNECTIONS_MIN: usize = 50;

/// Pause after a step: the server's last turns are over then.
const REST: Duration = Duration::from_millis(100);

/// Maximum handshakes in progress. The backlog of a server is 128 in the worst case, and the server accepts from it
/// meanwhile; a storm is a separate scenario.
const PENDING_MAX: usize = 128;

/// Maximum connections started in one turn of the loop; each takes about 30 us.
const BUDGET: usize = 32;

/// Opens a number of connections.
#[derive(Debug)]
pub struct Ramp {
    total: usize,
    steps: usize,
    /// The current step, from 1.
    step: usize,
    begun: usize,
    per_second: Option<f64>,
    /// Time without the pauses.
    active: Duration,
    last: RunTime,
    rests_until: Option<RunTime>,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this many connections; 0 for now.
    Connect(usize),
    /// Measure memory.
    Measure,
    /// All connections have been attempted.
    Complete,
}

impl Ramp {
    /// A ramp that takes `length`; zero: as long as the server takes.
    pub fn new(total: usize, length: Duration, now: RunTime) -> Ramp {
        let per_second = (!length.is_zero()).then(|| total as f64 / length.as_secs_f64());
        let steps = (total / STEP_CONNECTIONS_MIN).clamp(1, STEPS);
        let active = Duration::ZERO;
        Ramp { total, steps, step: 1, begun: 0, per_second, active, last: now, rests_until: None }
    }

    /// Seconds without the pauses.
    pub fn seconds(&self) -> f64 {
        self.active.as_secs_f64()
    }

    /// Number of connections started.
    pub fn begun(&self) -> usize {
        self.begun
    }

    /// The next action, with this many handshakes in progress.
    pub fn next(&mut self, pending: usize, now: RunTime) -> Next {
        if self.step > self.steps {
            return Next::Complete;
        }
        if let Some(until) = self.rests_until {
            if now < until {
                return Next::Connect(0);
            }
            self.rests_until = None;
            self.last = now;
            self.step += 1;
            return Next::Measure;
        }
        self.active += Duration::from_nanos(now.nanos_since(self.last));
        self.last = now;
        let end = self.total * self.step / self.steps;
        if self.begun == end && pending == 0 {
            self.rests_until = Some(now.after(REST));
            return Next::Connect(0);
        }
        let by_rate = self.per_second.map_or(end, |rate| (rate * self.seconds()) as usize + 1);
        let count = end.min(by_rate).saturating_sub(self.begun);
        let count = count.min(BUDGET).min(PENDING_MAX.saturating_sub(pending));
        self.begun += count;
        Next::Connect(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> RunTime {
        RunTime::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn step_is_measured_after_a_pause() {
        let mut ramp = Ramp::new(100, Duration::ZERO, at(0));
        let mut now = 0;
        let mut measured = Vec::new();
        loop {
            match ramp.next(0, at(now)) {
                Next::Connect(_) => now += 10,
                Next::Measure => measured.push(ramp.begun()),
                Next::Complete => break,
            }
        }
        assert_eq!(measured, [50, 100]);
        // Two of 50 at 32 a turn, and the turns in which the ends of the steps were seen.
        assert!((0.01..=0.08).contains(&ramp.seconds()), "{}", ramp.seconds());
    }

    #[test]
    fn ramp_keeps_its_length_and_waits_for_pending_handshakes() {
        let mut ramp = Ramp::new(10, Duration::from_secs(1), at(0));
        assert_eq!(ramp.next(0, at(0)), Next::Connect(1));
        assert_eq!(ramp.next(1, at(50)), Next::Connect(0));
        assert_eq!(ramp.next(1, at(450)), Next::Connect(4));
        let mut ramp = Ramp::new(1_000, Duration::ZERO, at(0));
        assert_eq!(ramp.next(PENDING_MAX - 1, at(0)), Next::Connect(1));
        assert_eq!(ramp.next(PENDING_MAX, at(0)), Next::Connect(0));
    }
}
