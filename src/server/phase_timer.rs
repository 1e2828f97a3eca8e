//! The time of the phases of a turn, in some of the turns.
//!
//! The clock is read twice per turn. After each phase too it would cost 0.7 us, of the 8 us that a turn with one
//! message takes; in one of [`PHASES_SAMPLED_TURNS`] turns it is 0.6 %. These turns are chosen at random, since the
//! turns of one publisher may alternate between two kinds of work.

use std::mem;
use std::time::{Duration, Instant};

use crate::metrics::PHASES_SAMPLED_TURNS;

/// Measures the phases of one turn after the other.
#[derive(Debug)]
pub(super) struct PhaseTimer {
    /// When the current phase began; `None` in a turn that is not measured.
    begun: Option<Instant>,
    random: u32,
}

impl PhaseTimer {
    /// A timer that measures nothing before its first turn.
    pub(super) fn new() -> PhaseTimer {
        PhaseTimer { begun: None, random: 1 }
    }

    /// Begins a turn.
    pub(super) fn begin_turn(&mut self, now: Instant) {
        // A linear congruential generator, of which the high bits are random enough.
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.begun = (self.random >> 16).is_multiple_of(PHASES_SAMPLED_TURNS).then_some(now);
    }

    /// Ends a phase, and begins the next one. Returns its duration if the turn is measured; `now` is read only then.
    pub(super) fn end_phase(&mut self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        let begun = self.begun.as_mut()?;
        let ended = now();
        Some(ended.saturating_duration_since(mem::replace(begun, ended)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_sixteen_turns_is_measured_from_its_begin() {
        let (mut timer, start) = (PhaseTimer::new(), Instant::now());
        let mut measured = 0;
        for turn in 0..160_000 {
            let now = start + Duration::from_micros(turn);
            timer.begin_turn(now);
            let mut is_read = false;
            let first = timer.end_phase(|| {
                is_read = true;
                now + Duration::from_nanos(300)
            });
            assert_eq!(is_read, first.is_some());
            if first.is_some() {
                measured += 1;
                let second = timer.end_phase(|| now + Duration::from_nanos(700));
                assert_eq!(
                    (first, second),
                    (Some(Duration::from_nanos(300)), Some(Duration::from_nanos(400)))
                );
            }
        }
        assert!((9_000..11_000).contains(&measured), "{measured}");
    }
}
