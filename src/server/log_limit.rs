//! The rate limit of log lines about closed connections: a flood of them must not fill the disk.
//!
//! Lines with the same close reason are written up to a number in each second. Further ones are counted, and one line
//! reports their number when the second is over.

use crate::moment::Moment;

const SECOND_MS: u32 = 1_000;

/// The lines with one close reason.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogLimit {
    second: Option<Moment>,
    written: u32,
    suppressed: u32,
}

impl LogLimit {
    pub(super) const NEW: LogLimit = LogLimit { second: None, written: 0, suppressed: 0 };

    /// Returns true if one more line is to be written; 0: no limit.
    pub(super) fn admits(&mut self, per_second: u32, now: Moment) -> bool {
        self.second.get_or_insert(now);
        let admits = per_second == 0 || self.written < per_second;
        let count = if admits { &mut self.written } else { &mut self.suppressed };
        *count = count.saturating_add(1);
        admits
    }

    /// When its second is over, if one has begun.
    pub(super) fn ends_at(&self) -> Option<Moment> {
        self.second.map(|second| second.after(SECOND_MS))
    }

    /// Resets the limit when its second is over. Returns the number of suppressed lines, if any.
    pub(super) fn end_second(&mut self, now: Moment) -> Option<u32> {
        if !self.ends_at()?.has_come(now) {
            return None;
        }
        let suppressed = self.suppressed;
        *self = LogLimit::NEW;
        (suppressed > 0).then_some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_are_counted_and_said_when_the_second_is_over() {
        let (mut limit, start) = (LogLimit::NEW, Moment::from_millis(u64::from(u32::MAX) - 10));
        assert_eq!(limit.ends_at(), None);
        let written = (0..1_000).filter(|&millis| limit.admits(3, start.after(millis))).count();
        assert_eq!((written, limit.ends_at()), (3, Some(start.after(1_000))));
        assert_eq!(limit.end_second(start.after(999)), None);
        assert_eq!(limit.end_second(start.after(1_000)), Some(997));
        assert!(limit.admits(3, start.after(1_001)));
        assert_eq!(limit.end_second(start.after(9_000)), None, "nothing was left out");
        assert!((0..10_000).all(|_| limit.admits(0, start)), "0 is no limit");
    }
}
