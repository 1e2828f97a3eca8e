//! Rate limits of publishers: messages and bytes per second.
//!
//! Buckets are kept only for publishers of the last second: one second fills any bucket ([`Rate::each_second`]), and a
//! full bucket is equal to a new one. So a connection that only subscribes takes no memory here, and the size of the
//! table is the number of currently active publishers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use super::grant::Grant;
use super::rate::{Rate, Take, TokenBucket};
use crate::access::limit::Limit;
use crate::config::Limits;
use crate::ids::SlotId;
use crate::time::LoopTime;

/// The limits of one publisher; `None`: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Rate of messages.
    pub messages: Option<Rate>,
    /// Rate of payload bytes.
    pub bytes: Option<Rate>,
}

impl RateLimits {
    /// The limits of the server, overridden by those of the grant.
    pub fn of(limits: &Limits, grant: Option<&Grant>) -> RateLimits {
        let own = |number: fn(&Grant) -> Option<NonZeroU32>| grant.and_then(number).map(NonZeroU32::get);
        RateLimits {
            messages: Rate::each_second(
                own(|grant| grant.messages_per_second).unwrap_or(limits.messages_per_second),
            ),
            bytes: Rate::each_second(own(|grant| grant.bytes_per_second).unwrap_or(limits.bytes_per_second)),
        }
    }

    /// The limit on `auth` messages, which is separate from that on publishes.
    pub fn for_auths(limits: &Limits) -> RateLimits {
        RateLimits { messages: Rate::each_second(limits.auths_per_second), bytes: None }
    }

    fn is_unlimited(self) -> bool {
        self == RateLimits::default()
    }
}

/// The key of a publisher's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// A connection.
    Connection(SlotId),
    /// A client of a trusted proxy, whose connections carry requests of many clients.
    ClientIp(IpAddr),
}

/// The error of [`RateLimiter::take`]: rate limit exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimited {
    /// The limit.
    pub limit: Limit,
    /// Milliseconds after which the client may retry.
    pub retry_ms: u32,
}

/// The buckets of the active publishers.
#[derive(Debug)]
pub struct RateLimiter {
    buckets: HashMap<RateKey, PublisherBuckets>,
    /// Full buckets are dropped when the table has this many entries.
    expire_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct PublisherBuckets {
    messages: Option<TokenBucket>,
    bytes: Option<TokenBucket>,
    used: LoopTime,
}

/// Time after which every bucket is full.
const FULL_AFTER_MS: u32 = 1_000;

/// Below this many entries the table is not scanned.
const EXPIRE_LEN_MIN: usize = 64;

impl RateLimiter {
    /// An empty table.
    pub fn new() -> RateLimiter {
        RateLimiter { buckets: HashMap::new(), expire_len: EXPIRE_LEN_MIN }
    }

    /// Takes a message of this many bytes from the publisher's buckets. If a limit is exceeded, nothing is taken.
    ///
    /// # Errors
    /// The rate limit is exceeded.
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

    /// Drops the full buckets. It must be called well within the 24 days that a [`LoopTime`] spans, since the age of an
    /// older bucket would appear to be zero.
    pub fn expire(&mut self, now: LoopTime) {
        self.buckets.retain(|_, entry| now.millis_since(entry.used) < FULL_AFTER_MS);
        // Twice the entries that remain: a scan costs two entries for each new publisher.
        self.expire_len = (2 * self.buckets.len()).max(EXPIRE_LEN_MIN);
        self.buckets.shrink_to(self.expire_len);
    }

    /// Drops the buckets of a closed connection.
    pub fn forget(&mut self, id: SlotId) {
        self.buckets.remove(&RateKey::Connection(id));
    }

    /// The number of active publishers.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Returns true if no publisher is active.
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
    fn message_over_the_byte_limit_takes_no_message_token() {
        let (mut limiter, now) = (RateLimiter::new(), LoopTime::from_millis(0));
        let (limits, key) = (rate_limits(2, 100), connection(1));
        assert_eq!(limiter.take(key, limits, 60, now), Ok(()));
        assert_eq!(
            limiter.take(key, limits, 60, now),
            Err(RateLimited { limit: Limit::Bytes, retry_ms: 200 }),
            "and no message token is taken"
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
    fn table_without_limits_stays_empty() {
        let (mut limiter, now) = (RateLimiter::new(), LoopTime::from_millis(0));
        for key in 0..100 {
            assert_eq!(limiter.take(connection(key), RateLimits::default(), usize::MAX, now), Ok(()));
        }
        assert!(limiter.is_empty() && limiter.buckets.capacity() == 0);
    }

    #[test]
    fn idle_publisher_is_dropped_and_active_one_is_kept() {
        let (mut limiter, start, limits) = (RateLimiter::new(), LoopTime::from_millis(0), rate_limits(1, 0));
        for key in 0..100_000u32 {
            // A thousand new publishers each second, and one that publishes all the time.
            let now = start.after(key);
            assert_eq!(limiter.take(connection(key + 1), limits, 1, now), Ok(()));
            let again = limiter.take(connection(0), limits, 1, now);
            assert_eq!(again.is_ok(), key % 1_000 == 0, "{key}");
            assert!(limiter.len() <= 2_100, "{}", limiter.len());
        }
        assert!(limiter.buckets.capacity() <= 8_192, "{}", limiter.buckets.capacity());
    }

    #[test]
    fn limits_of_a_grant_override_those_of_the_server() {
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
