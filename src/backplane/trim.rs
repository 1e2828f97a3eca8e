//! Trimming: which id the next `append` names as the oldest one to keep.
//!
//! Each `append` trims the stream by `MINID ~`, so the log is bounded as long as any node is alive: heartbeats trim
//! while no client publishes. All nodes read the same entries, so they compute about the same id.

use std::collections::VecDeque;

use crate::ids::MessageId;

/// A segment ends after this time, in ms of the log, ...
const SEGMENT_MS: u64 = 1000;

/// ... or after this many bytes: the limit in bytes is kept with this precision.
const SEGMENT_BYTES: u64 = 256 << 10;

/// Consecutive entries of the log.
#[derive(Clone, Copy, Debug)]
struct Segment {
    first: MessageId,
    /// Redis' time of the first entry, in ms.
    time_ms: u64,
    bytes: u64,
}

/// The entries of the log that this node has read and that are not trimmed, in segments.
#[derive(Debug)]
pub(super) struct LogSegments {
    segments: VecDeque<Segment>,
    bytes: u64,
    age_ms: u64,
    bytes_max: u64,
}

impl LogSegments {
    pub(super) fn new(age_ms: u64, bytes_max: u64) -> LogSegments {
        LogSegments { segments: VecDeque::new(), bytes: 0, age_ms, bytes_max }
    }

    /// Bytes of the entries that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An entry was read.
    pub(super) fn add(&mut self, id: MessageId, time_ms: u64, bytes: u64) {
        self.bytes += bytes;
        match self.segments.back_mut() {
            Some(last) if last.bytes < SEGMENT_BYTES && time_ms < last.time_ms.saturating_add(SEGMENT_MS) => {
                last.bytes += bytes;
            }
            _ => self.segments.push_back(Segment { first: id, time_ms, bytes }),
        }
        while self.segments.len() > 1 && (self.is_front_old(time_ms) || self.bytes > self.bytes_max) {
            self.bytes -= self.segments.pop_front().map_or(0, |segment| segment.bytes);
        }
    }

    /// All entries of the oldest segment are older than the next segment's first one.
    fn is_front_old(&self, now_ms: u64) -> bool {
        self.segments.get(1).is_some_and(|next| next.time_ms.saturating_add(self.age_ms) <= now_ms)
    }

    /// The log has lost all entries after `survived`.
    pub(super) fn lose_after(&mut self, survived: MessageId) {
        while let Some(last) = self.segments.back()
            && last.first > survived
        {
            self.bytes -= last.bytes;
            self.segments.pop_back();
        }
    }

    /// The id of the oldest entry to keep; 0-0 before the first one was read.
    pub(super) fn oldest_kept(&self) -> MessageId {
        self.segments.front().map_or(MessageId { epoch: 0, seq: 0 }, |segment| segment.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> MessageId {
        MessageId { epoch: 1, seq }
    }

    #[test]
    fn entries_older_than_the_age_are_trimmed() {
        let mut log = LogSegments::new(60_000, 1 << 30);
        for second in 0..100 {
            log.add(id(second * 2 + 1), second * 1000, 10);
            log.add(id(second * 2 + 2), second * 1000 + 500, 10);
        }
        // The last entry is of 99,500 ms. The segment of 38 s is older than 60 s, that of 39 s contains younger
        // entries.
        assert_eq!(log.oldest_kept(), id(39 * 2 + 1));
        assert_eq!(log.bytes(), 61 * 20);
        // A clock that was set back trims nothing.
        log.add(id(1000), 0, 10);
        assert_eq!(log.oldest_kept(), id(39 * 2 + 1));
        // The largest time that an entry can have.
        log.add(id(1001), u64::MAX, 10);
        log.add(id(1002), u64::MAX, 10);
        assert_eq!(log.oldest_kept(), id(1002));
    }

    #[test]
    fn entries_beyond_the_bytes_are_trimmed() {
        let mut log = LogSegments::new(300_000, 1 << 20);
        for seq in 1..=100 {
            log.add(id(seq), 0, 100 << 10);
            assert!(log.bytes() <= 1 << 20);
        }
        assert!(log.bytes() >= 600 << 10, "{} bytes", log.bytes());
        assert!((90..=94).contains(&log.oldest_kept().seq), "{}", log.oldest_kept());
    }

    #[test]
    fn lost_entries_do_not_count() {
        let mut log = LogSegments::new(300_000, 1 << 20);
        for seq in 1..=10 {
            log.add(id(seq), seq * 1000, 10);
        }
        log.lose_after(id(7));
        assert_eq!(log.bytes(), 70);
        log.lose_after(MessageId { epoch: 0, seq: 0 });
        assert_eq!((log.bytes(), log.oldest_kept()), (0, MessageId { epoch: 0, seq: 0 }));
    }
}
