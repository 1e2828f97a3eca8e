//! The rate limit of log lines that peers cause: a flood of connections must not fill the disk.
//!
//! Lines of one kind, such as those of connections that were closed for one reason, are written up to a number in each
//! second. Further ones are counted, and one line reports their number when the second is over.

use crate::close::Reason;
use crate::time::LoopTime;

const SECOND_MS: u32 = 1_000;

/// A kind of lines that peers can cause without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogLine {
    /// A connection was closed.
    Close(Reason),
    /// No descriptor or no memory is left for a connection. The line is logged again after each accepted connection.
    AcceptPaused,
    /// A connection was accepted and cannot be served.
    NotServed,
    /// A step against memory pressure began or ended.
    MemoryPressure,
}

impl LogLine {
    const COUNT: usize = Reason::COUNT + 3;

    fn index(self) -> usize {
        match self {
            LogLine::Close(reason) => reason.index(),
            LogLine::AcceptPaused => Reason::COUNT,
            LogLine::NotServed => Reason::COUNT + 1,
            LogLine::MemoryPressure => Reason::COUNT + 2,
        }
    }

    /// How the lines of a kind begin.
    fn beginning(index: usize) -> String {
        match Reason::WORDS.get(index) {
            Some(word) => format!("close reason={word}"),
            None => ["accept", "cannot serve", "memory pressure"][index - Reason::COUNT].to_owned(),
        }
    }
}

/// The lines of all kinds.
#[derive(Debug)]
pub(super) struct LogLimits([LogLimit; LogLine::COUNT]);

impl LogLimits {
    pub(super) const NEW: LogLimits = LogLimits([LogLimit::NEW; LogLine::COUNT]);

    /// Returns true if one more line of a kind is to be written; 0: no limit.
    pub(super) fn admits(&mut self, line: LogLine, per_second: u32, now: LoopTime) -> bool {
        self.0[line.index()].admits(per_second, now)
    }

    /// When a line about suppressed lines may be due.
    pub(super) fn ends_at(&self) -> Option<LoopTime> {
        self.0.iter().filter_map(LogLimit::ends_at).reduce(LoopTime::min)
    }

    /// Returns the beginning and the number of suppressed lines, for each kind whose second is over.
    pub(super) fn end_seconds(&mut self, now: LoopTime) -> impl Iterator<Item = (String, u32)> {
        let suppressed = move |(index, lines): (usize, &mut LogLimit)| {
            lines.end_second(now).map(|count| (LogLine::beginning(index), count))
        };
        self.0.iter_mut().enumerate().filter_map(suppressed)
    }
}

/// The lines of one kind.
#[derive(Clone, Copy, Debug)]
struct LogLimit {
    second: Option<LoopTime>,
    written: u32,
    suppressed: u32,
}

impl LogLimit {
    const NEW: LogLimit = LogLimit { second: None, written: 0, suppressed: 0 };

    /// Returns true if one more line is to be written; 0: no limit.
    fn admits(&mut self, per_second: u32, now: LoopTime) -> bool {
        self.second.get_or_insert(now);
        let admits = per_second == 0 || self.written < per_second;
        let count = if admits { &mut self.written } else { &mut self.suppressed };
        *count = count.saturating_add(1);
        admits
    }

    /// When the current second is over, if one has begun.
    fn ends_at(&self) -> Option<LoopTime> {
        self.second.map(|second| second.after(SECOND_MS))
    }

    /// Resets the limit when the second is over. Returns the number of suppressed lines, if any.
    fn end_second(&mut self, now: LoopTime) -> Option<u32> {
        if !self.ends_at()?.is_due(now) {
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
    fn lines_over_the_limit_are_counted_and_reported_after_the_second() {
        let (mut limit, start) = (LogLimit::NEW, LoopTime::from_millis(u64::from(u32::MAX) - 10));
        assert_eq!(limit.ends_at(), None);
        let written = (0..1_000).filter(|&millis| limit.admits(3, start.after(millis))).count();
        assert_eq!((written, limit.ends_at()), (3, Some(start.after(1_000))));
        assert_eq!(limit.end_second(start.after(999)), None);
        assert_eq!(limit.end_second(start.after(1_000)), Some(997));
        assert!(limit.admits(3, start.after(1_001)));
        assert_eq!(limit.end_second(start.after(9_000)), None, "no line was suppressed");
        assert!((0..10_000).all(|_| limit.admits(0, start)), "0 is no limit");
    }

    #[test]
    fn lines_of_each_kind_have_a_separate_limit() {
        let (mut limits, start) = (LogLimits::NEW, LoopTime::from_millis(5));
        let kinds = [
            LogLine::Close(Reason::EndOfFile),
            LogLine::Close(Reason::Reset),
            LogLine::AcceptPaused,
            LogLine::NotServed,
            LogLine::MemoryPressure,
        ];
        for kind in kinds {
            assert_eq!((0..10).filter(|_| limits.admits(kind, 4, start)).count(), 4, "{kind:?}");
        }
        assert_eq!(limits.ends_at(), Some(start.after(1_000)));
        let mut ended: Vec<(String, u32)> = limits.end_seconds(start.after(1_000)).collect();
        ended.sort();
        let word = |reason: Reason| format!("close reason={}", Reason::WORDS[reason.index()]);
        let mut beginnings = [
            word(Reason::EndOfFile),
            word(Reason::Reset),
            "accept".into(),
            "cannot serve".into(),
            "memory pressure".into(),
        ];
        beginnings.sort();
        assert_eq!(ended, beginnings.map(|beginning| (beginning, 6)));
        assert_eq!(limits.ends_at(), None);
    }
}
