//! Token bucket: a rate limit with bursts.
//!
//! A bucket holds at most `burst` tokens and gains `per_second` tokens a second. It takes twelve bytes and is refilled
//! only when tokens are taken from it. The arithmetic is exact: neither frequent nor rare calls gain a token.

use std::num::NonZeroU32;

use crate::time::LoopTime;

/// A refill rate and a burst, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that the bucket gains in a second.
    pub per_second: NonZeroU32,
    /// Maximum tokens in the bucket.
    pub burst: NonZeroU32,
}

impl Rate {
    /// `number` tokens a second, and a burst of as many; 0 means unlimited, and returns `None`. One second without a
    /// request refills such a bucket, whatever the number is.
    pub fn each_second(number: u32) -> Option<Rate> {
        NonZeroU32::new(number).map(|number| Rate { per_second: number, burst: number })
    }
}

/// The result of [`TokenBucket::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Take {
    /// The tokens were taken.
    Granted,
    /// Too few tokens; none was taken.
    Denied {
        /// Milliseconds from now until the bucket holds enough of them.
        retry_ms: u32,
    },
}

/// The tokens of one client. A full bucket is equal to a new one and need not be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    tokens: u32,
    /// Thousandths of a token: the tokens gained in a millisecond are seldom a whole number.
    thousandths: u16,
    refilled_at: LoopTime,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: LoopTime) -> TokenBucket {
        TokenBucket { tokens: rate.burst.get(), thousandths: 0, refilled_at: now }
    }

    /// Takes `cost` tokens, or none. A cost above the burst is reduced to the burst: the request waits for a full
    /// bucket, and not for ever.
    pub fn take(&mut self, rate: Rate, cost: u32, now: LoopTime) -> Take {
        self.refill(rate, now);
        let cost = cost.min(rate.burst.get());
        match self.tokens.checked_sub(cost) {
            Some(left) => {
                self.tokens = left;
                Take::Granted
            }
            None => {
                let missing = u64::from(cost - self.tokens) * 1_000 - u64::from(self.thousandths);
                let retry_ms = missing.div_ceil(u64::from(rate.per_second.get()));
                Take::Denied { retry_ms: u32::try_from(retry_ms).unwrap_or(u32::MAX) }
            }
        }
    }

    /// Returns true if the bucket is full at `now`, after a refill.
    pub fn is_full(&mut self, rate: Rate, now: LoopTime) -> bool {
        self.refill(rate, now);
        self.tokens == rate.burst.get()
    }

    fn refill(&mut self, rate: Rate, now: LoopTime) {
        let millis = u64::from(now.millis_since(self.refilled_at));
        let gained = millis * u64::from(rate.per_second.get()) + u64::from(self.thousandths);
        let tokens = u64::from(self.tokens) + gained / 1_000;
        let burst = u64::from(rate.burst.get());
        // A full bucket keeps no thousandths. A lowered burst discards the tokens above it.
        self.thousandths = if tokens >= burst { 0 } else { (gained % 1_000) as u16 };
        self.tokens = tokens.min(burst) as u32;
        self.refilled_at = now;
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
    fn bucket_grants_a_burst_then_the_rate() {
        let (rate, now) = (rate(10, 3), start());
        let mut bucket = TokenBucket::full(rate, now);
        for _ in 0..3 {
            assert_eq!(bucket.take(rate, 1, now), Take::Granted);
        }
        assert_eq!(bucket.take(rate, 1, now), Take::Denied { retry_ms: 100 });
        assert_eq!(bucket.take(rate, 1, now.after(99)), Take::Denied { retry_ms: 1 });
        assert_eq!(bucket.take(rate, 1, now.after(100)), Take::Granted);
        assert!(!bucket.is_full(rate, now.after(399)));
        assert!(bucket.is_full(rate, now.after(400)));
    }

    /// A request in every millisecond, or every few, is granted the rate and no more.
    #[test]
    fn bucket_refilled_in_any_steps_grants_exactly_the_rate() {
        for per_second in [1, 3, 7, 333, 999, 1_000, 1_500, 64_000, 1_000_003] {
            for step in [1, 3, 7, 400] {
                let (rate, now) = (rate(per_second, per_second.max(1_000_000)), start());
                let mut bucket = TokenBucket::full(rate, now);
                assert_eq!(bucket.take(rate, rate.burst.get(), now), Take::Granted);
                let mut taken = 0u64;
                for at in (step..=10_000).step_by(step as usize) {
                    assert_eq!(bucket.take(rate, 0, now.after(at)), Take::Granted);
                    taken += u64::from(std::mem::take(&mut bucket.tokens));
                }
                let expected = u64::from(10_000 / step * step) * u64::from(per_second) / 1_000;
                assert_eq!(taken, expected, "{per_second} a second, asked every {step} ms");
            }
        }
    }

    #[test]
    fn denied_take_costs_nothing_and_is_granted_after_retry_ms() {
        let rate = rate(7, 100);
        let mut now = start();
        let mut bucket = TokenBucket::full(rate, now);
        assert_eq!(bucket.take(rate, 100, now), Take::Granted);
        for cost in [1, 13, 50, 100] {
            let Take::Denied { retry_ms } = bucket.take(rate, cost, now) else { panic!("{cost}") };
            assert!(matches!(bucket.take(rate, cost, now.after(retry_ms - 1)), Take::Denied { retry_ms: 1 }));
            now = now.after(retry_ms);
            assert_eq!(bucket.take(rate, cost, now), Take::Granted);
        }
    }

    #[test]
    fn cost_above_the_burst_waits_for_a_full_bucket() {
        let (rate, now) = (rate(1_000, 10), start());
        let mut bucket = TokenBucket::full(rate, now);
        assert_eq!(bucket.take(rate, 1_000_000, now), Take::Granted);
        assert_eq!(bucket.take(rate, 1_000_000, now.after(9)), Take::Denied { retry_ms: 1 });
        assert_eq!(bucket.take(rate, 1_000_000, now.after(10)), Take::Granted);
        assert_eq!(bucket.take(rate, 0, now.after(10)), Take::Granted);
    }

    #[test]
    fn full_bucket_gains_nothing() {
        let (rate, now) = (rate(1, 1), start());
        let mut bucket = TokenBucket::full(rate, now);
        assert_eq!(bucket.take(rate, 1, now.after(1_999)), Take::Granted);
        assert_eq!(bucket.take(rate, 1, now.after(2_000)), Take::Denied { retry_ms: 999 });
    }

    #[test]
    fn bucket_with_the_largest_rate_does_not_overflow() {
        let (rate, now) = (rate(u32::MAX, u32::MAX), start());
        let mut bucket = TokenBucket::full(rate, now);
        assert_eq!(bucket.take(rate, u32::MAX, now), Take::Granted);
        assert_eq!(bucket.take(rate, u32::MAX, now.after((1 << 31) - 1)), Take::Granted);
        assert_eq!(bucket.take(rate, 1, now.after(1 << 30)), Take::Denied { retry_ms: 1 });
        assert_eq!(size_of::<TokenBucket>(), 12);
    }
}
