//! How often somebody may do something.
//!
//! A bucket holds permits: so many at most (the burst), and so many more a second. It is kept in twelve
//! bytes and looked at only when something is taken from it; the arithmetic is exact, so that neither a
//! slow drip nor a hot loop gains anything.

use std::num::NonZeroU32;

use crate::time::LoopTime;

/// So many a second, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// What flows in.
    pub per_second: NonZeroU32,
    /// What can be saved up.
    pub burst: NonZeroU32,
}

impl Rate {
    /// So many a second, and as many at once; `None` is no limit, for 0. A second of silence fills such a
    /// bucket, whatever the number is.
    pub fn each_second(number: u32) -> Option<Rate> {
        NonZeroU32::new(number).map(|number| Rate { per_second: number, burst: number })
    }
}

/// What was asked for is given, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Take {
    /// It is given.
    Granted,
    /// Nothing is taken; so many milliseconds later there is enough.
    Wait {
        /// From the moment at which it was asked for.
        millis: u32,
    },
}

/// The permits that somebody has. A bucket that nothing was taken from for long enough is as good as a
/// new one, and need not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    permits: u32,
    /// Thousandths of a permit: what flows in during a millisecond is no whole number.
    thousandths: u16,
    at: LoopTime,
}

impl Bucket {
    /// A full one.
    pub fn full(rate: Rate, now: LoopTime) -> Bucket {
        Bucket { permits: rate.burst.get(), thousandths: 0, at: now }
    }

    /// Takes so many permits, or none. What costs more than the burst costs the burst: it has to wait for
    /// a full bucket, and not for ever.
    pub fn take(&mut self, rate: Rate, cost: u32, now: LoopTime) -> Take {
        self.fill(rate, now);
        let cost = cost.min(rate.burst.get());
        match self.permits.checked_sub(cost) {
            Some(left) => {
                self.permits = left;
                Take::Granted
            }
            None => {
                let missing = u64::from(cost - self.permits) * 1_000 - u64::from(self.thousandths);
                let millis = missing.div_ceil(u64::from(rate.per_second.get()));
                Take::Wait { millis: u32::try_from(millis).unwrap_or(u32::MAX) }
            }
        }
    }

    /// Returns true if the bucket is full at `now`. Brings it up to date.
    pub fn is_full(&mut self, rate: Rate, now: LoopTime) -> bool {
        self.fill(rate, now);
        self.permits == rate.burst.get()
    }

    fn fill(&mut self, rate: Rate, now: LoopTime) {
        let millis = u64::from(now.millis_since(self.at));
        let flown_in = millis * u64::from(rate.per_second.get()) + u64::from(self.thousandths);
        let permits = u64::from(self.permits) + flown_in / 1_000;
        let burst = u64::from(rate.burst.get());
        // What is over is spilled, its thousandths too. A rate that was lowered spills what is saved.
        self.thousandths = if permits >= burst { 0 } else { (flown_in % 1_000) as u16 };
        self.permits = permits.min(burst) as u32;
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second: NonZeroU32::new(per_second).unwrap(), burst: NonZeroU32::new(burst).unwrap() }
    }

    fn start() -> LoopTime {
        LoopTime::from_millis(u64::from(u32::MAX) - 500)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let (rate, now) = (rate(10, 3), start());
        let mut bucket = Bucket::full(rate, now);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, 1, now), Take::Granted);
        }
        assert_eq!(bucket.take(rate, 1, now), Take::Wait { millis: 100 });
        assert_eq!(bucket.take(rate, 1, now.after(99)), Take::Wait { millis: 1 });
        assert_eq!(bucket.take(rate, 1, now.after(100)), Take::Granted);
        assert!(!bucket.is_full(rate, now.after(399)));
        assert!(bucket.is_full(rate, now.after(400)));
    }

    /// Asking in every millisecond, or every few, gives what the rate says and no more.
    #[test]
    fn no_drift() {
        for per_second in [1, 3, 7, 333, 999, 1_000, 1_500, 64_000, 1_000_003] {
            for step in [1, 3, 7, 400] {
                let (rate, now) = (rate(per_second, per_second.max(1_000_000)), start());
                let mut bucket = Bucket::full(rate, now);
                assert_eq!(bucket.take(rate, rate.burst.get(), now), Take::Granted);
                let mut taken = 0u64;
                for at in (step..=10_000).step_by(step as usize) {
                    assert_eq!(bucket.take(rate, 0, now.after(at)), Take::Granted);
                    taken += u64::from(std::mem::take(&mut bucket.permits));
                }
                let expected = u64::from(10_000 / step * step) * u64::from(per_second) / 1_000;
                assert_eq!(taken, expected, "{per_second} a second, asked every {step} ms");
            }
        }
    }

    #[test]
    fn what_is_refused_costs_nothing_and_comes_when_it_was_said() {
        let rate = rate(7, 100);
        let mut now = start();
        let mut bucket = Bucket::full(rate, now);
        assert_eq!(bucket.take(rate, 100, now), Take::Granted);
        for cost in [1, 13, 50, 100] {
            let Take::Wait { millis } = bucket.take(rate, cost, now) else { panic!("{cost}") };
            assert!(matches!(bucket.take(rate, cost, now.after(millis - 1)), Take::Wait { millis: 1 }));
            now = now.after(millis);
            assert_eq!(bucket.take(rate, cost, now), Take::Granted);
        }
    }

    #[test]
    fn more_than_the_burst_waits_for_a_full_bucket() {
        let (rate, now) = (rate(1_000, 10), start());
        let mut bucket = Bucket::full(rate, now);
        assert_eq!(bucket.take(rate, 1_000_000, now), Take::Granted);
        assert_eq!(bucket.take(rate, 1_000_000, now.after(9)), Take::Wait { millis: 1 });
        assert_eq!(bucket.take(rate, 1_000_000, now.after(10)), Take::Granted);
        assert_eq!(bucket.take(rate, 0, now.after(10)), Take::Granted);
    }

    #[test]
    fn what_flows_into_a_full_bucket_is_spilled() {
        let (rate, now) = (rate(1, 1), start());
        let mut bucket = Bucket::full(rate, now);
        assert_eq!(bucket.take(rate, 1, now.after(1_999)), Take::Granted);
        assert_eq!(bucket.take(rate, 1, now.after(2_000)), Take::Wait { millis: 999 });
    }

    #[test]
    fn the_largest_numbers_fit() {
        let (rate, now) = (rate(u32::MAX, u32::MAX), start());
        let mut bucket = Bucket::full(rate, now);
        assert_eq!(bucket.take(rate, u32::MAX, now), Take::Granted);
        assert_eq!(bucket.take(rate, u32::MAX, now.after((1 << 31) - 1)), Take::Granted);
        assert_eq!(bucket.take(rate, 1, now.after(1 << 30)), Take::Wait { millis: 1 });
        assert_eq!(size_of::<Bucket>(), 12);
    }
}
