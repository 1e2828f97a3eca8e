//! The loop's time: milliseconds in four bytes, with wraparound.
//!
//! `Instant` takes sixteen bytes, and every slot holds a deadline. A [`LoopTime`] counts milliseconds since the start
//! of the loop, modulo 2^32, and is compared the way TCP compares sequence numbers (RFC 1323 4.2.1): of two times the
//! later one is less than 2^31 ms (24.8 days) ahead. Comparisons are therefore right for ever, as long as no deadline
//! is further away than that; every flag that holds a time is at most a day.
//!
//! Only the loop reads the clock, before and after each wait. Everything else is passed `now`.

use std::fmt;

/// Milliseconds since the start of the loop, modulo 2^32.
///
/// Stored as bytes, which have an alignment of one: a state that holds a time and a byte or two needs no padding, and
/// every slot has such a state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LoopTime([u8; 4]);

impl LoopTime {
    /// The time that is this many milliseconds after the start of the loop; wraps after 49.7 days.
    pub fn from_millis(millis_since_start: u64) -> LoopTime {
        LoopTime((millis_since_start as u32).to_ne_bytes())
    }

    fn millis(self) -> u32 {
        u32::from_ne_bytes(self.0)
    }

    /// The time `millis` milliseconds later.
    #[must_use]
    pub fn after(self, millis: u32) -> LoopTime {
        LoopTime(self.millis().wrapping_add(millis).to_ne_bytes())
    }

    /// The time `millis` milliseconds earlier.
    #[must_use]
    pub fn before(self, millis: u32) -> LoopTime {
        self.after(millis.wrapping_neg())
    }

    /// Returns true if this time is not after `now`.
    pub fn is_due(self, now: LoopTime) -> bool {
        now.millis().wrapping_sub(self.millis()) < 1 << 31
    }

    /// Milliseconds from `earlier` to this time; 0 if `earlier` is the later one.
    pub fn millis_since(self, earlier: LoopTime) -> u32 {
        if earlier.is_due(self) { self.millis().wrapping_sub(earlier.millis()) } else { 0 }
    }

    /// Milliseconds since the last multiple of `period`, counted from the start of the loop. One period is cut short
    /// when the count wraps.
    pub fn millis_into(self, period: u32) -> u32 {
        self.millis() % period
    }

    /// The earlier of two times.
    #[must_use]
    pub fn min(self, other: LoopTime) -> LoopTime {
        if self.is_due(other) { self } else { other }
    }
}

impl fmt::Debug for LoopTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.millis())
    }
}

#[cfg(test)]
mod tests {
    use super::LoopTime;

    #[test]
    fn deadline_across_the_wrap_is_later() {
        let now = LoopTime::from_millis(u64::from(u32::MAX) - 10);
        let deadline = now.after(5_000);
        assert!(!deadline.is_due(now));
        assert!(!deadline.is_due(now.after(4_999)));
        assert!(deadline.is_due(now.after(5_000)));
        assert_eq!(deadline.millis_since(now), 5_000);
        assert_eq!(now.millis_since(deadline), 0);
        assert_eq!(deadline.min(now), now);
        assert_eq!(now.min(deadline), now);
        assert_eq!(deadline.before(5_000), now);
    }
}
