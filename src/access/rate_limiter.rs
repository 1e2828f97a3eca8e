//! How fast somebody may publish.
//!
//! A meter is kept only for who has published within the last second: a second fills any bucket
//! ([`Rate::each_second`]), and one that is full is as good as a new one. So a connection that listens
//! costs nothing, and the table is as large as the number of those who publish at the moment.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::grant::Grant;
use super::rate::{Rate, Take, TokenBucket};
use crate::access::limit::Limit;
use crate::config::Limits;
use crate::ids::SlotId;
use crate::time::LoopTime;

/// The limits of one publisher; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Messages.
    pub messages: Option<Rate>,
    /// Bytes of their payloads.
    pub bytes: Option<Rate>,
}

impl RateLimits {
    /// What the server allows, or, where the grant has a number of its own, what that allows.
    pub fn of(limits: &Limits, grant: Option<&Grant>) -> RateLimits {
        let own = |number: fn(&Grant) -> Option<NonZeroU32>| grant.and_then(number).map(NonZeroU32::get);
        RateLimits {
            messages: Rate::each_second(
                own(|grant| grant.messages_per_second).unwrap_or(limits.messages_per_second),
            ),
            bytes: Rate::each_second(own(|grant| grant.bytes_per_second).unwrap_or(limits.bytes_per_second)),
        }
    }

    /// How often a connection may show a token in a message: each is a message with a pace of its own.
    pub fn for_auths(limits: &Limits) -> RateLimits {
        RateLimits { messages: Rate::each_second(limits.auths_per_second), bytes: None }
    }

    fn is_unlimited(self) -> bool {
        self == RateLimits::default()
    }
}

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// A connection.
    Connection(SlotId),
    /// A client of a trusted proxy, whose connections carry requests of many.
    ClientIp(IpAddr),
}

/// Too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimited {
    /// Which limit it is over.
    pub limit: Limit,
    /// So many milliseconds later it is not.
    pub retry_ms: u32,
}

/// The meters of those who publish at the moment.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: HashMap<RateKey, PublisherBuckets>,
    /// The table is looked through for full ones when it has so many.
    expire_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct PublisherBuckets {
    messages: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    used: LoopTime,
}

/// After that time without a publication a meter is as good as a new one.
const FULL_AFTER_MS: u32 = 1_000;

/// Fewer meters are not worth looking through.
const EXPIRE_LEN_MIN: usize = 64;

impl RateLimiter {
    /// An empty table.
    pub fn new() -> RateLimiter {
        RateLimiter { buckets: HashMap::new(), expire_len: EXPIRE_LEN_MIN }
    }

    /// Somebody publishes so many bytes. What is refused costs nothing.
    ///
    /// # Errors
    /// That is too fast.
    pub fn take(
        &mut self,
        key: RateKey,
        limits: RateLimits,
        bytes: usize,
        now: LoopTime,
    ) -> Result<(), RateLimited> {
        if limits.is_unlimited() {
            return Ok(());
        }
        if self.buckets.len() >= self.expire_len && !self.buckets.contains_key(&key) {
            self.expire(now);
        }
        let new = PublisherBuckets { messages: None, bytes: None, used: now };
        let entry = self.buckets.entry(key).or_insert(new);
        let mut after = *entry;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        for (limit, rate, bucket, cost) in [
            (Limit::Messages, limits.messages, &mut after.messages, 1),
            (Limit::Bytes, limits.bytes, &mut after.bytes, bytes),
        ] {
            let Some(rate) = rate else { continue };
            let bucket = bucket.get_or_insert(TokenBucket::full(rate, now));
            if let Take::Denied { retry_ms } = bucket.take(rate, cost, now) {
                return Err(RateLimited { limit, retry_ms });
            }
        }
        *entry = PublisherBuckets { used: now, ..after };
        Ok(())
    }

    /// Drops the meters that are equal to new ones. It has to be called long before the 24 days are over that a
    /// [`LoopTime`] spans: to one that is older it would look as if no time had passed.
    pub fn expire(&mut self, now: LoopTime) {
        self.buckets.retain(|_, entry| now.millis_since(entry.used) < FULL_AFTER_MS);
        // Twice what is left: each newcomer pays for two that are looked at.
        self.expire_len = (2 * self.buckets.len()).max(EXPIRE_LEN_MIN);
        self.buckets.shrink_to(self.expire_len);
    }

    /// A connection is gone.
    pub fn forget(&mut self, id: SlotId) {
        self.buckets.remove(&RateKey::Connection(id));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

impl Default for RateLimiter {
    fn default() -> RateLimiter {
        RateLimiter::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(key: u32) -> RateKey {
        RateKey::Connection(SlotId { key, generation: key })
    }

    fn rate_limits(messages: u32, bytes: u32) -> RateLimits {
        RateLimits { messages: Rate::each_second(messages), bytes: Rate::each_second(bytes) }
    }

    #[test]
    fn messages_and_bytes_each_have_their_limit() {
        let (mut limiter, now) = (RateLimiter::new(), LoopTime::from_millis(0));
        let (limits, key) = (rate_limits(2, 100), connection(1));
        assert_eq!(limiter.take(key, limits, 60, now), Ok(()));
        assert_eq!(
            limiter.take(key, limits, 60, now),
            Err(RateLimited { limit: Limit::Bytes, retry_ms: 200 }),
            "and no message is taken for it"
        );
        assert_eq!(limiter.take(key, limits, 40, now), Ok(()));
        assert_eq!(
            limiter.take(key, limits, 0, now),
            Err(RateLimited { limit: Limit::Messages, retry_ms: 500 })
        );
        assert_eq!(limiter.take(connection(2), limits, 60, now), Ok(()), "each has its own");
        assert_eq!(limiter.take(key, limits, 50, now.after(500)), Ok(()));
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let (mut limiter, now) = (RateLimiter::new(), LoopTime::from_millis(0));
        for key in 0..100 {
            assert_eq!(limiter.take(connection(key), RateLimits::default(), usize::MAX, now), Ok(()));
        }
        assert!(limiter.is_empty() && limiter.buckets.capacity() == 0);
    }

    #[test]
    fn who_is_silent_is_forgotten_and_who_is_not_is_not() {
        let (mut limiter, start, limits) = (RateLimiter::new(), LoopTime::from_millis(0), rate_limits(1, 0));
        for key in 0..100_000u32 {
            // A thousand new ones each second, and one that keeps at it.
            let now = start.after(key);
            assert_eq!(limiter.take(connection(key + 1), limits, 1, now), Ok(()));
            let again = limiter.take(connection(0), limits, 1, now);
            assert_eq!(again.is_ok(), key % 1_000 == 0, "{key}");
            assert!(limiter.len() <= 2_100, "{}", limiter.len());
        }
        assert!(limiter.buckets.capacity() <= 8_192, "{}", limiter.buckets.capacity());
    }

    #[test]
    fn a_grant_has_its_own_numbers() {
        let limits = Limits { messages_per_second: 5, bytes_per_second: 6, ..Limits::default() };
        assert_eq!(RateLimits::of(&limits, None), rate_limits(5, 6));
        assert_eq!(RateLimits::of(&limits, Some(&Grant::default())), rate_limits(5, 6));
        let grant = Grant { messages_per_second: NonZeroU32::new(50), ..Grant::default() };
        assert_eq!(RateLimits::of(&limits, Some(&grant)), rate_limits(50, 6));
        assert_eq!(RateLimits::of(&Limits::default(), Some(&grant)), rate_limits(50, 0));
        let grant = Grant { bytes_per_second: NonZeroU32::new(60), ..Grant::default() };
        assert_eq!(RateLimits::of(&limits, Some(&grant)), rate_limits(5, 60));
    }
}
