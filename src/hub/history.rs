//! What is kept of a channel, so that who comes back, or comes late, can have it.
//!
//! A kept message is a stretch of the batch that its members were sent: the same memory, not a copy. It
//! lies there as a raw frame, and is encoded anew for who wants another form. Since messages leave only
//! at the front, the ones that are kept are the channel's last, and one number tells where it begins.
//!
//! Memory that is shared has to be owned, and for a small message that came alone the owner is larger than
//! what it owns. So when some of these have gathered, they move together.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use crate::config::HistoryLimits;
use crate::ids::{Sender, User};
use crate::time::LoopTime;
use crate::wire::Frames;
use crate::wire::{self, Kind};

/// What a kept message counts beside its bytes: a message of one byte takes that much memory around it.
pub const MESSAGE_BYTES: usize = 64;

/// So many small messages that came alone move together: each has had an allocation of its own, and an
/// owner; the last few stay as they are, in the outboxes of members too.
pub(super) const GATHERED: usize = 16;

/// A message up to that size is small: a larger one pays for its owner.
pub(super) const SMALL_BYTES: usize = 1024;

/// One message's stretch of a batch, and what is told of it beside its payload.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The end of its frame; it begins where the one before it ends.
    pub(super) end: u32,
    pub(super) seq: u64,
    pub(super) kind: Kind,
    pub(super) sender: Sender,
}

/// The last messages of one channel.
#[derive(Debug, Default)]
pub(super) struct History {
    kept: VecDeque<StoredMessage>,
    /// Frames and [`MESSAGE_BYTES`] for each.
    bytes: usize,
    /// The last message that is kept no more; a cursor before it misses something.
    evicted_through: u64,
    /// So many of the last ones are small and came alone.
    alone: usize,
}

/// One message.
#[derive(Debug)]
pub(super) struct StoredMessage {
    batch: Frames,
    start: u32,
    end: u32,
    pub(super) seq: u64,
    pub(super) at: LoopTime,
    pub(super) kind: Kind,
    pub(super) sender: Sender,
}

impl StoredMessage {
    fn frame(&self) -> &[u8] {
        &self.batch[self.start as usize..self.end as usize]
    }

    pub(super) fn payload(&self) -> &[u8] {
        wire::payload_of(self.frame())
    }

    fn cost(&self) -> usize {
        cost(self.end - self.start, &self.sender)
    }
}

/// What a message counts. A user counts with each message, though all that one token publishes share it: how long it
/// is shared is up to the publisher.
fn cost(frame_bytes: u32, sender: &Sender) -> usize {
    frame_bytes as usize + MESSAGE_BYTES + sender.user.as_ref().map_or(0, |user| User::as_json(user).len())
}

impl History {
    /// An empty one; what was before `evicted_through` is not kept.
    pub(super) fn new(evicted_through: u64) -> History {
        History { evicted_through, ..History::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    pub(super) fn get(&self, index: usize) -> Option<&StoredMessage> {
        self.kept.get(index)
    }

    /// The raw frame of a message: the memory that it is kept in, not a copy.
    pub(super) fn frames(&self, index: usize) -> Option<Frames> {
        let StoredMessage { batch, start, end, .. } = self.kept.get(index)?;
        let (start, end) = (*start as usize, *end as usize);
        let is_all = (start, end) == (0, batch.len());
        Some(if is_all { batch.clone() } else { Rc::new(batch.slice(start..end)) })
    }

    /// The first message that follows this number in the log.
    pub(super) fn index_after(&self, seq: u64) -> usize {
        self.kept.partition_point(|kept| kept.seq <= seq)
    }

    /// Keeps what the limits allow of a batch.
    pub(super) fn keep(&mut self, batch: &Frames, entries: &[Entry], limits: &HistoryLimits, now: LoopTime) {
        self.keep_published_at(batch, entries, limits, |_| now);
    }

    /// The same for messages that were published at times of their own.
    pub(super) fn keep_published_at(
        &mut self,
        batch: &Frames,
        entries: &[Entry],
        limits: &HistoryLimits,
        published_at: impl Fn(usize) -> LoopTime,
    ) {
        let first = first_to_keep(entries, limits);
        if let Some(last_dropped) = first.checked_sub(1) {
            self.clear();
            self.evicted_through = entries[last_dropped].seq;
        }
        let start = first.checked_sub(1).map_or(0, |before| entries[before].end);
        let (batch, shift) = worth_sharing(batch, start);
        let mut start = start;
        for (index, entry) in entries.iter().enumerate().skip(first) {
            let Entry { end, seq, kind, ref sender } = *entry;
            if self.kept.len() == self.kept.capacity() {
                // Doubling would leave up to half of it unused, for as long as the channel lives.
                self.kept.reserve_exact((self.kept.len() / 4).max(4));
            }
            let kept = StoredMessage {
                batch: batch.clone(),
                start: start - shift,
                end: end - shift,
                seq,
                at: published_at(index),
                kind,
                sender: sender.clone(),
            };
            self.bytes += kept.cost();
            self.kept.push_back(kept);
            start = end;
        }
        self.alone = if entries.len() == 1 && batch.len() <= SMALL_BYTES { self.alone + 1 } else { 0 };
        while self.kept.len() > limits.messages_max || self.bytes > limits.bytes_max {
            self.evict_oldest();
        }
        if self.alone >= GATHERED {
            self.gather();
        }
    }

    /// Makes room for messages that are about to be kept.
    pub(super) fn reserve(&mut self, messages: usize) {
        self.kept.reserve_exact(messages);
    }

    /// Gives back the room that was made for messages that the limits did not let stay.
    pub(super) fn shrink(&mut self) {
        self.kept.shrink_to_fit();
    }

    /// Moves the small messages that came alone together.
    fn gather(&mut self) {
        let first = self.kept.len().saturating_sub(self.alone);
        let mut together = Vec::with_capacity(self.kept.range(first..).map(|kept| kept.frame().len()).sum());
        self.kept.range(first..).for_each(|kept| together.extend_from_slice(kept.frame()));
        let batch: Frames = Rc::new(Bytes::from(together));
        let mut start = 0;
        for kept in self.kept.range_mut(first..) {
            let end = start + (kept.end - kept.start);
            (kept.batch, kept.start, kept.end) = (batch.clone(), start, end);
            start = end;
        }
        self.alone = 0;
    }

    /// Drops the oldest message.
    pub(super) fn evict_oldest(&mut self) {
        if let Some(kept) = self.kept.pop_front() {
            self.bytes -= kept.cost();
            self.evicted_through = kept.seq;
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// Drops what is older than `age_ms`.
    pub(super) fn expire(&mut self, age_ms: u32, now: LoopTime) {
        while self.kept.front().is_some_and(|kept| kept.at.after(age_ms).is_due(now)) {
            self.evict_oldest();
        }
    }

    fn clear(&mut self) {
        while !self.kept.is_empty() {
            self.evict_oldest();
        }
    }
}

/// The first of the entries that the limits let stay when all of them have come.
fn first_to_keep(entries: &[Entry], limits: &HistoryLimits) -> usize {
    let mut bytes = 0;
    let mut first = entries.len();
    while first > 0 && entries.len() - first < limits.messages_max {
        let start = first.checked_sub(2).map_or(0, |before| entries[before].end);
        let entry = &entries[first - 1];
        bytes += cost(entry.end - start, &entry.sender);
        if bytes > limits.bytes_max {
            break;
        }
        first -= 1;
    }
    first
}

/// The memory that the messages from `start` on are kept in, and how far they lie further left there.
///
/// A batch is freed with its last message. A large one of which little is kept would be held by that
/// little, so it is copied then.
fn worth_sharing(batch: &Frames, start: u32) -> (Frames, u32) {
    let kept_bytes = batch.len() - start as usize;
    if kept_bytes * 2 >= batch.len() {
        (batch.clone(), 0)
    } else {
        (Rc::new(Bytes::copy_from_slice(&batch[start as usize..])), start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HistoryLimits =
        HistoryLimits { messages_max: 3, bytes_max: 1_000, age_ms: 500, total_bytes_max: usize::MAX };

    fn at(millis: u64) -> LoopTime {
        LoopTime::from_millis(millis)
    }

    /// Keeps a batch of texts whose numbers begin with `seq`.
    fn keep(history: &mut History, texts: &[&str], seq: u64, now: u64) -> Frames {
        let mut frames = Vec::new();
        let entries: Vec<Entry> = texts
            .iter()
            .zip(seq..)
            .map(|(text, seq)| {
                wire::append_message(&mut frames, Kind::Text, text.as_bytes());
                Entry { end: frames.len() as u32, seq, kind: Kind::Text, sender: Sender::default() }
            })
            .collect();
        let batch = Rc::new(Bytes::from(frames));
        history.keep(&batch, &entries, &LIMITS, at(now));
        batch
    }

    fn texts(history: &History) -> Vec<(u64, String)> {
        (0..history.len())
            .map(|index| {
                let kept = history.get(index).unwrap();
                (kept.seq, String::from_utf8(kept.payload().to_vec()).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_last_ones_stay() {
        let mut history = History::new(9);
        assert_eq!(history.evicted_through(), 9);
        keep(&mut history, &["a", "b"], 10, 0);
        keep(&mut history, &["c", "d"], 20, 0);
        assert_eq!(texts(&history), [(11, "b".into()), (20, "c".into()), (21, "d".into())]);
        assert_eq!((history.evicted_through(), history.bytes()), (10, 3 * (3 + MESSAGE_BYTES)));
        assert_eq!([10, 11, 15, 21].map(|seq| history.index_after(seq)), [0, 1, 1, 3]);
        keep(&mut history, &["e", "f", "g", "h", "i"], 30, 0);
        assert_eq!(texts(&history), [(32, "g".into()), (33, "h".into()), (34, "i".into())]);
        assert_eq!(history.evicted_through(), 31);
    }

    #[test]
    fn bytes_and_age_bound_it() {
        let mut history = History::new(0);
        let long = "x".repeat(450);
        keep(&mut history, &[&long, "b"], 1, 0);
        assert_eq!(history.len(), 2);
        keep(&mut history, &[&long], 3, 400);
        assert_eq!(texts(&history).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2, 3]);
        history.expire(LIMITS.age_ms, at(499));
        assert_eq!(history.len(), 2);
        history.expire(LIMITS.age_ms, at(500));
        assert_eq!((history.len(), history.evicted_through()), (1, 2));
        keep(&mut history, &["larger than all that is kept", &"y".repeat(1_000)], 4, 400);
        assert_eq!((history.len(), history.bytes(), history.evicted_through()), (0, 0, 5));
    }

    #[test]
    fn small_ones_that_came_alone_move_together() {
        let limits = HistoryLimits { messages_max: 30, bytes_max: 1 << 20, ..LIMITS };
        let mut history = History::new(0);
        for seq in 1..=40 {
            let mut frames = Vec::new();
            wire::append_message(&mut frames, Kind::Text, seq.to_string().as_bytes());
            let entry = Entry { end: frames.len() as u32, seq, kind: Kind::Text, sender: Sender::default() };
            history.keep(&Rc::new(Bytes::from(frames)), &[entry], &limits, at(0));
            let expected: Vec<(u64, String)> =
                (seq.saturating_sub(29).max(1)..=seq).map(|seq| (seq, seq.to_string())).collect();
            assert_eq!(texts(&history), expected);
        }
        let owners = |history: &History, index: usize| Rc::strong_count(&history.kept[index].batch);
        assert_eq!((owners(&history, 10), owners(&history, 29)), (GATHERED, 1));
        keep(&mut history, &["x", "y"], 50, 0);
        assert_eq!(history.alone, 0, "who came in company stays there");
    }

    #[test]
    fn memory_is_shared_unless_little_of_it_is_kept() {
        let mut history = History::new(0);
        let batch = keep(&mut history, &["a", "b", "c", "d"], 1, 0);
        assert_eq!(Rc::strong_count(&batch), 4, "three kept messages share the batch");
        let padding = "x".repeat(400);
        let batch = keep(&mut history, &[&padding, "b", "c", "d"], 10, 0);
        assert_eq!(Rc::strong_count(&batch), 1, "the padding is not held by three letters");
        assert_eq!(texts(&history), [(11, "b".into()), (12, "c".into()), (13, "d".into())]);
    }
}
