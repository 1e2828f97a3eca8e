//! Sweeping: every slot is checked a few times a second, a bounded slice in each turn.
//!
//! A heap of timers would cost memory and work for every connection and message. Checking a slot costs a few
//! nanoseconds, and deadlines here are seconds; so a deadline is noticed up to [`ROUND_MS`] late, and nothing has to be
//! sorted.

use std::ops::Range;

use crate::time::LoopTime;

/// Every slot is checked once in this time; while the slab grows, one may wait for two rounds.
const ROUND_MS: u32 = 250;

/// Maximum number of slots in one slice: about 80 us (`cargo bench -- sweep`), which is as long as a message to 16
/// subscribers takes. Smaller slices wake an idle server for fewer pings at a time, and a wake costs as much as one.
const SLICE_SLOTS: usize = 16_384;

/// Number of deadlines of a kind that are handled in a short turn. A write takes some 5 us, so broadcasts wait for a
/// fraction of a millisecond, however many connections were opened together.
const DUE_PER_TURN_MIN: usize = 8;

/// The position of a sweep.
#[derive(Clone, Debug)]
pub(super) struct Sweeper {
    at: usize,
    /// The end of the slice that a pause has cut short; `at` if none has.
    end: usize,
    next: LoopTime,
    /// When a slice was cut short, if its rest is still to be checked.
    paused: Option<LoopTime>,
}

impl Sweeper {
    /// A sweep that begins at once.
    pub(super) fn new() -> Sweeper {
        Sweeper { at: 0, end: 0, next: LoopTime::from_millis(0), paused: None }
    }

    /// When the next slice is due.
    ///
    /// While there is nothing to sweep the loop does not check, and a time of weeks ago would look like one in the
    /// future: a time further away than a round is due at once.
    pub(super) fn next(&self, now: LoopTime) -> LoopTime {
        let is_due = self.at < self.end || self.next.millis_since(now) > ROUND_MS;
        if is_due { now } else { self.next }
    }

    /// The slice of a slab of `slots` places that is due now; empty if none is.
    pub(super) fn slice(&mut self, slots: usize, now: LoopTime) -> Range<usize> {
        if !self.next(now).is_due(now) {
            return 0..0;
        }
        if self.at >= self.end {
            let slices = slots.div_ceil(SLICE_SLOTS).max(1) as u32;
            let every_ms = (ROUND_MS / slices).max(1);
            // Turns may be longer than that.
            let due = (1 + now.millis_since(self.next) / every_ms).min(slices);
            self.next = now.after(every_ms);
            self.at = if self.at < slots { self.at } else { 0 };
            self.end = self.at + SLICE_SLOTS * due as usize;
        }
        self.end = slots.min(self.end);
        let start = self.end.min(self.at);
        self.at = self.end;
        start..self.end
    }

    /// Leaves the rest of the slice, from `at` on, to the next turn.
    pub(super) fn pause(&mut self, at: usize, now: LoopTime) {
        self.at = at;
        self.paused = Some(now);
    }

    /// Returns how many deadlines may be handled now, where `per_span` of them are to be handled within `span_ms`,
    /// however long the turns are. Time counts while some are left over: then the loop does not wait between turns.
    pub(super) fn take_budget(&mut self, per_span: usize, span_ms: u32, now: LoopTime) -> usize {
        let late_ms = self.paused.take().map_or(0, |since| now.millis_since(since)).min(ROUND_MS);
        let due = per_span as u64 * u64::from(late_ms) / u64::from(span_ms.max(1));
        DUE_PER_TURN_MIN.max(due as usize)
    }
}

impl Default for Sweeper {
    fn default() -> Sweeper {
        Sweeper::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_visits_every_slot_once() {
        for slots in [0, 1, SLICE_SLOTS, SLICE_SLOTS + 1, 10 * SLICE_SLOTS + 17] {
            let mut sweeper = Sweeper::new();
            let mut met = vec![0; slots];
            let mut now = LoopTime::from_millis(0);
            let slices = slots.div_ceil(SLICE_SLOTS).max(1);
            for _ in 0..slices {
                for key in sweeper.slice(slots, now) {
                    met[key] += 1;
                }
                now = sweeper.next(now);
            }
            assert!(met.iter().all(|&times| times == 1), "{slots} slots");
            assert!(now.millis_since(LoopTime::from_millis(0)) <= ROUND_MS, "{slots} slots");
        }
    }

    #[test]
    fn paused_sweep_continues_in_the_next_turn() {
        let mut sweeper = Sweeper::new();
        let start = LoopTime::from_millis(0);
        let slots = SLICE_SLOTS + 100;
        assert_eq!(sweeper.slice(slots, start), 0..SLICE_SLOTS);
        sweeper.pause(10, start);
        assert_eq!(sweeper.next(start), start);
        assert_eq!(sweeper.slice(slots, start), 10..SLICE_SLOTS);
        sweeper.pause(SLICE_SLOTS, start);
        assert_eq!(sweeper.slice(slots, start), 0..0, "there was no rest");
        let later = start.after(ROUND_MS / 2);
        assert_eq!(sweeper.next(start), later, "and the slices come when they would have come");
        assert_eq!(sweeper.slice(slots, later), SLICE_SLOTS..slots);
        sweeper.pause(SLICE_SLOTS + 1, later);
        assert!(sweeper.slice(SLICE_SLOTS, later).is_empty(), "meanwhile the slab has become smaller");
        assert_eq!(sweeper.slice(SLICE_SLOTS, start.after(ROUND_MS)), 0..SLICE_SLOTS);
    }

    #[test]
    fn sweep_keeps_its_time_when_turns_are_longer_than_slices() {
        let slots = 20 * SLICE_SLOTS;
        let mut sweeper = Sweeper::new();
        let mut met = vec![0; slots];
        let mut now = LoopTime::from_millis(0);
        // The first slices are due together, since nothing was swept before.
        while now.millis_since(LoopTime::from_millis(0)) < 4 * ROUND_MS {
            now = now.after(45);
            sweeper.slice(slots, now).for_each(|key| met[key] += 1);
        }
        assert!(
            met.iter().all(|times| (3..=5).contains(times)),
            "{:?}",
            (met.iter().min(), met.iter().max())
        );
    }

    #[test]
    fn budget_grows_with_the_time_that_passes_while_deadlines_are_left_over() {
        let mut sweeper = Sweeper::new();
        let start = LoopTime::from_millis(0);
        assert_eq!(sweeper.take_budget(14_000, 500, start), DUE_PER_TURN_MIN);
        assert_eq!(
            sweeper.take_budget(14_000, 500, start.after(200)),
            DUE_PER_TURN_MIN,
            "nothing was left over"
        );
        sweeper.pause(1, start);
        assert_eq!(sweeper.take_budget(14_000, 500, start.after(45)), 1_260);
        sweeper.pause(1, start);
        let stopped = sweeper.take_budget(14_000, 500, start.after(60_000));
        assert_eq!(stopped, 7_000, "a server that was stopped does not meet all in one turn");
    }

    #[test]
    fn sweep_continues_after_weeks_without_connections() {
        let mut sweeper = Sweeper::new();
        let day = 24 * 60 * 60 * 1_000;
        let mut now = LoopTime::from_millis(0);
        assert_eq!(sweeper.slice(10, now), 0..10);
        for _ in 0..50 {
            now = now.after(day);
            assert!(sweeper.next(now).is_due(now));
            assert_eq!(sweeper.clone().slice(10, now), 0..10);
        }
    }

    #[test]
    fn sweep_between_slices_visits_no_slot() {
        let mut sweeper = Sweeper::new();
        let start = LoopTime::from_millis(0);
        assert_eq!(sweeper.slice(10, start), 0..10);
        assert_eq!(sweeper.slice(10, start.after(ROUND_MS - 1)), 0..0);
        assert_eq!(sweeper.slice(10, start.after(ROUND_MS)), 0..10);
    }
}
