//! The message history of one channel, for resuming and late subscribers.
//!
//! A stored message is a range of the batch that the subscribers were sent: the same memory, not a copy, as a raw
//! frame. It is encoded again for subscribers of another form. Messages are evicted only at the front, so the stored
//! ones are the channel's last, and one number (`evicted_through`) says where they begin.
//!
//! Shared memory needs an owner, which for a small message that was published alone is larger than the message. So
//! once `COALESCED_MESSAGES` of these are stored, they are copied into one batch.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use crate::config::HistoryLimits;
use crate::ids::{Sender, User};
use crate::time::LoopTime;
use crate::wire::Frames;
use crate::wire::{self, Kind};

/// Cost of a stored message in addition to its bytes: the memory around a message of one byte.
pub const MESSAGE_BYTES: usize = 64;

/// Small messages that were published alone are coalesced at this number. Until then each has its own allocation and
/// owner, which it shares with the outboxes of subscribers.
pub(super) const COALESCED_MESSAGES: usize = 16;

/// Maximum size of a small message; for a larger one the owner is a small part of the cost.
pub(super) const SMALL_BYTES: usize = 1024;

/// One message's range of a batch, and its metadata.
#[derive(Clone, Debug)]
pub(super) struct BatchEntry {
    /// The end of its frame; it begins where the one before it ends.
    pub(super) end: u32,
    pub(super) log_index: u64,
    pub(super) kind: Kind,
    pub(super) sender: Sender,
}

/// The last messages of one channel.
#[derive(Debug, Default)]
pub(super) struct History {
    messages: VecDeque<StoredMessage>,
    /// Frames and [`MESSAGE_BYTES`] for each.
    bytes: usize,
    /// The last evicted message; a cursor before it is incomplete.
    evicted_through: u64,
    /// How many of the last messages are small and were published alone.
    single: usize,
}

/// One message.
#[derive(Debug)]
pub(super) struct StoredMessage {
    batch: Frames,
    start: u32,
    end: u32,
    pub(super) log_index: u64,
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

/// The cost of a message. A user counts with each message, although all messages published with one token share it: for
/// how long it is shared is up to the publisher.
fn cost(frame_bytes: u32, sender: &Sender) -> usize {
    frame_bytes as usize + MESSAGE_BYTES + sender.user.as_ref().map_or(0, |user| User::as_json(user).len())
}

impl History {
    /// An empty history that begins after `evicted_through`.
    pub(super) fn new(evicted_through: u64) -> History {
        History { evicted_through, ..History::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    pub(super) fn get(&self, index: usize) -> Option<&StoredMessage> {
        self.messages.get(index)
    }

    /// The raw frame of a message: the stored memory, not a copy.
    pub(super) fn frames(&self, index: usize) -> Option<Frames> {
        let StoredMessage { batch, start, end, .. } = self.messages.get(index)?;
        let (start, end) = (*start as usize, *end as usize);
        let is_all = (start, end) == (0, batch.len());
        Some(if is_all { batch.clone() } else { Rc::new(batch.slice(start..end)) })
    }

    /// The index of the first message after this number in the log.
    pub(super) fn index_after(&self, log_index: u64) -> usize {
        self.messages.partition_point(|message| message.log_index <= log_index)
    }

    /// Stores a batch, as far as the limits allow.
    pub(super) fn append(
        &mut self,
        batch: &Frames,
        entries: &[BatchEntry],
        limits: &HistoryLimits,
        now: LoopTime,
    ) {
        self.append_published_at(batch, entries, limits, |_| now);
    }

    /// Stores messages that were published at different times.
    pub(super) fn append_published_at(
        &mut self,
        batch: &Frames,
        entries: &[BatchEntry],
        limits: &HistoryLimits,
        published_at: impl Fn(usize) -> LoopTime,
    ) {
        let first = first_to_store(entries, limits);
        if let Some(last_dropped) = first.checked_sub(1) {
            self.clear();
            self.evicted_through = entries[last_dropped].log_index;
        }
        let start = first.checked_sub(1).map_or(0, |before| entries[before].end);
        let (batch, shift) = share_or_copy(batch, start);
        let mut start = start;
        for (index, entry) in entries.iter().enumerate().skip(first) {
            let BatchEntry { end, log_index, kind, ref sender } = *entry;
            if self.messages.len() == self.messages.capacity() {
                // Doubling would leave up to half of it unused, for as long as the channel lives.
                self.messages.reserve_exact((self.messages.len() / 4).max(4));
            }
            let message = StoredMessage {
                batch: batch.clone(),
                start: start - shift,
                end: end - shift,
                log_index,
                at: published_at(index),
                kind,
                sender: sender.clone(),
            };
            self.bytes += message.cost();
            self.messages.push_back(message);
            start = end;
        }
        self.single = if entries.len() == 1 && batch.len() <= SMALL_BYTES { self.single + 1 } else { 0 };
        while self.messages.len() > limits.messages_max || self.bytes > limits.bytes_max {
            self.evict_oldest();
        }
        if self.single >= COALESCED_MESSAGES {
            self.coalesce();
        }
    }

    /// Reserves capacity for messages that are about to be stored.
    pub(super) fn reserve(&mut self, messages: usize) {
        self.messages.reserve_exact(messages);
    }

    /// Releases the capacity that was reserved for messages over the limits.
    pub(super) fn shrink(&mut self) {
        self.messages.shrink_to_fit();
    }

    /// Copies the small messages that were published alone into one batch.
    fn coalesce(&mut self) {
        let first = self.messages.len().saturating_sub(self.single);
        let mut together =
            Vec::with_capacity(self.messages.range(first..).map(|message| message.frame().len()).sum());
        self.messages.range(first..).for_each(|message| together.extend_from_slice(message.frame()));
        let batch: Frames = Rc::new(Bytes::from(together));
        let mut start = 0;
        for message in self.messages.range_mut(first..) {
            let end = start + (message.end - message.start);
            (message.batch, message.start, message.end) = (batch.clone(), start, end);
            start = end;
        }
        self.single = 0;
    }

    /// Drops the oldest message.
    pub(super) fn evict_oldest(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.cost();
            self.evicted_through = message.log_index;
        }
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
    }

    /// Drops the messages up to a log index, which may be that of no message.
    pub(super) fn evict_through(&mut self, log_index: u64) {
        while self.messages.front().is_some_and(|message| message.log_index <= log_index) {
            self.evict_oldest();
        }
        self.evicted_through = self.evicted_through.max(log_index);
    }

    /// Drops messages older than `age_ms`.
    pub(super) fn expire(&mut self, age_ms: u32, now: LoopTime) {
        while self.messages.front().is_some_and(|message| message.at.after(age_ms).is_due(now)) {
            self.evict_oldest();
        }
    }

    fn clear(&mut self) {
        while !self.messages.is_empty() {
            self.evict_oldest();
        }
    }
}

/// The first of the entries that the limits allow to store.
fn first_to_store(entries: &[BatchEntry], limits: &HistoryLimits) -> usize {
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

/// The memory for the messages from `start` on, and the offset to subtract from their positions.
///
/// A batch is freed with its last message. If less than half of it is stored, that part is copied, so that it does not
/// keep the whole batch in memory.
fn share_or_copy(batch: &Frames, start: u32) -> (Frames, u32) {
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

    /// Stores a batch of texts whose numbers begin with `log_index`.
    fn append(history: &mut History, texts: &[&str], log_index: u64, now: u64) -> Frames {
        let mut frames = Vec::new();
        let entries: Vec<BatchEntry> = texts
            .iter()
            .zip(log_index..)
            .map(|(text, log_index)| {
                wire::append_message(&mut frames, Kind::Text, text.as_bytes());
                BatchEntry {
                    end: frames.len() as u32,
                    log_index,
                    kind: Kind::Text,
                    sender: Sender::default(),
                }
            })
            .collect();
        let batch = Rc::new(Bytes::from(frames));
        history.append(&batch, &entries, &LIMITS, at(now));
        batch
    }

    fn texts(history: &History) -> Vec<(u64, String)> {
        (0..history.len())
            .map(|index| {
                let message = history.get(index).unwrap();
                (message.log_index, String::from_utf8(message.payload().to_vec()).unwrap())
            })
            .collect()
    }

    #[test]
    fn last_messages_are_stored() {
        let mut history = History::new(9);
        assert_eq!(history.evicted_through(), 9);
        append(&mut history, &["a", "b"], 10, 0);
        append(&mut history, &["c", "d"], 20, 0);
        assert_eq!(texts(&history), [(11, "b".into()), (20, "c".into()), (21, "d".into())]);
        assert_eq!((history.evicted_through(), history.bytes()), (10, 3 * (3 + MESSAGE_BYTES)));
        assert_eq!([10, 11, 15, 21].map(|log_index| history.index_after(log_index)), [0, 1, 1, 3]);
        append(&mut history, &["e", "f", "g", "h", "i"], 30, 0);
        assert_eq!(texts(&history), [(32, "g".into()), (33, "h".into()), (34, "i".into())]);
        assert_eq!(history.evicted_through(), 31);
    }

    #[test]
    fn history_is_bounded_by_bytes_and_age() {
        let mut history = History::new(0);
        let long = "x".repeat(450);
        append(&mut history, &[&long, "b"], 1, 0);
        assert_eq!(history.len(), 2);
        append(&mut history, &[&long], 3, 400);
        assert_eq!(texts(&history).iter().map(|(log_index, _)| *log_index).collect::<Vec<_>>(), [2, 3]);
        history.expire(LIMITS.age_ms, at(499));
        assert_eq!(history.len(), 2);
        history.expire(LIMITS.age_ms, at(500));
        assert_eq!((history.len(), history.evicted_through()), (1, 2));
        append(&mut history, &["larger than the whole history", &"y".repeat(1_000)], 4, 400);
        assert_eq!((history.len(), history.bytes(), history.evicted_through()), (0, 0, 5));
    }

    #[test]
    fn small_messages_published_alone_are_coalesced() {
        let limits = HistoryLimits { messages_max: 30, bytes_max: 1 << 20, ..LIMITS };
        let mut history = History::new(0);
        for log_index in 1..=40 {
            let mut frames = Vec::new();
            wire::append_message(&mut frames, Kind::Text, log_index.to_string().as_bytes());
            let entry = BatchEntry {
                end: frames.len() as u32,
                log_index,
                kind: Kind::Text,
                sender: Sender::default(),
            };
            history.append(&Rc::new(Bytes::from(frames)), &[entry], &limits, at(0));
            let expected: Vec<(u64, String)> = (log_index.saturating_sub(29).max(1)..=log_index)
                .map(|log_index| (log_index, log_index.to_string()))
                .collect();
            assert_eq!(texts(&history), expected);
        }
        let owners = |history: &History, index: usize| Rc::strong_count(&history.messages[index].batch);
        assert_eq!((owners(&history, 10), owners(&history, 29)), (COALESCED_MESSAGES, 1));
        append(&mut history, &["x", "y"], 50, 0);
        assert_eq!(history.single, 0, "published in one batch, they share its owner already");
    }

    #[test]
    fn memory_is_shared_unless_less_than_half_is_stored() {
        let mut history = History::new(0);
        let batch = append(&mut history, &["a", "b", "c", "d"], 1, 0);
        assert_eq!(Rc::strong_count(&batch), 4, "three stored messages share the batch");
        let padding = "x".repeat(400);
        let batch = append(&mut history, &[&padding, "b", "c", "d"], 10, 0);
        assert_eq!(Rc::strong_count(&batch), 1, "three letters do not hold the padding");
        assert_eq!(texts(&history), [(11, "b".into()), (12, "c".into()), (13, "d".into())]);
    }
}
