//! Encodings that several replays share: a cache of the last slices, and the large messages that outboxes still hold.

use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use bytes::Bytes;

use crate::ids::MessageId;
use crate::time::LoopTime;
use crate::wire::{Form, Frames, Message};

/// Bytes of the slices that are cached, the last that were made: 16 of full size, for as many cursors and channels that
/// are replayed at the same time. The cache outlives the replays, so this is its permanent cost.
pub(super) const CACHED_BYTES: usize = 1 << 20;

/// Cached slices, small ones too: the cache is searched from end to end.
const CACHED_SLICES: usize = 64;

/// The shared encodings.
#[derive(Debug)]
pub(super) struct ReplayCache {
    /// The last slices, the most recently used at the end.
    slices: VecDeque<CachedSlice>,
    slices_bytes: usize,
    large: Vec<LargeEncoding>,
    large_bytes_max: usize,
    /// How long a large encoding is shared, and the minimum time that a client has to read it.
    take_ms: u32,
    /// What the large encodings held when the last replay had to wait.
    held_at_wait: usize,
}

/// Messages of one channel that follow each other. The number of the first in the log is the channel's alone.
#[derive(Clone, Debug)]
pub(super) struct CachedSlice {
    pub(super) form: Form,
    pub(super) first: u64,
    pub(super) upto: u64,
    pub(super) messages: usize,
    pub(super) frames: Frames,
}

/// One message that is larger than a slice; freed when no outbox holds it.
#[derive(Debug)]
struct LargeEncoding {
    id: MessageId,
    form: Form,
    bytes: usize,
    made_at: LoopTime,
    encoding: Weak<Bytes>,
}

impl LargeEncoding {
    fn is_shareable(&self, take_ms: u32, now: LoopTime) -> bool {
        now.millis_since(self.made_at) < take_ms
    }

    fn is_overdue(&self, take_ms: u32, now: LoopTime) -> bool {
        self.made_at.after(take_ms.saturating_mul(2)).is_due(now)
    }
}

impl ReplayCache {
    pub(super) fn new(large_bytes_max: usize, take_ms: u32) -> ReplayCache {
        ReplayCache {
            slices: VecDeque::new(),
            slices_bytes: 0,
            large: Vec::new(),
            large_bytes_max,
            take_ms,
            held_at_wait: 0,
        }
    }

    /// The slice that begins with that message, for another subscriber that reaches it.
    pub(super) fn slice(&mut self, form: Form, first: u64) -> Option<CachedSlice> {
        let key = (form, first);
        let index = self.slices.iter().rposition(|slice| (slice.form, slice.first) == key)?;
        let slice = self.slices.remove(index)?;
        self.slices.push_back(slice.clone());
        Some(slice)
    }

    pub(super) fn cache(&mut self, slice: CachedSlice) {
        self.slices_bytes += slice.frames.len();
        self.slices.push_back(slice);
        while self.slices.len() > CACHED_SLICES || self.slices_bytes > CACHED_BYTES {
            let Some(oldest) = self.slices.pop_front() else { break };
            self.slices_bytes -= oldest.frames.len();
        }
    }

    /// Bytes of the large encodings that an outbox holds.
    pub(super) fn large_bytes(&self) -> usize {
        let held = self.large.iter().filter(|large| large.encoding.strong_count() > 0);
        held.map(|large| large.bytes).sum()
    }

    /// Returns the encoding of a message that is larger than a slice, and its cost. `None` if it exceeds the limit now;
    /// a single one is always allowed, since otherwise a limit below the largest message would stop replays for good.
    pub(super) fn large(
        &mut self,
        message: &Message<'_>,
        form: Form,
        now: LoopTime,
    ) -> Option<(Frames, usize)> {
        let key = (message.id, form);
        let take_ms = self.take_ms;
        let is_known =
            |large: &&LargeEncoding| (large.id, large.form) == key && large.is_shareable(take_ms, now);
        let known = self.large.iter().find(is_known);
        if let Some(frames) = known.and_then(|large| large.encoding.upgrade()) {
            return Some((frames, 0));
        }
        self.large.retain(|large| large.encoding.strong_count() > 0);
        let held = self.large_bytes();
        if held > 0 && held + message.payload_bytes_max(form) > self.large_bytes_max {
            self.held_at_wait = held;
            return None;
        }
        let frames: Frames = Rc::new(message.encode(form));
        let (bytes, encoding) = (frames.len(), Rc::downgrade(&frames));
        self.large.push(LargeEncoding { id: message.id, form, bytes, made_at: now, encoding });
        Some((frames, bytes))
    }

    /// Returns true if large encodings have been freed since a replay had to wait.
    pub(super) fn has_freed_large(&self) -> bool {
        self.large_bytes() < self.held_at_wait
    }

    /// Returns true if a piece of an outbox is a large encoding that all clients should have read by now.
    pub(super) fn is_overdue(&self, piece: &Frames, now: LoopTime) -> bool {
        let is_piece = |large: &LargeEncoding| std::ptr::eq(large.encoding.as_ptr(), Rc::as_ptr(piece));
        self.large.iter().any(|large| large.is_overdue(self.take_ms, now) && is_piece(large))
    }

    /// Bytes of the cached slices.
    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> usize {
        self.slices_bytes
    }

    /// Panics if the cache exceeds its limits or its count is wrong.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let bytes: usize = self.slices.iter().map(|slice| slice.frames.len()).sum();
        assert_eq!(bytes, self.slices_bytes);
        assert!(bytes <= CACHED_BYTES && self.slices.len() <= CACHED_SLICES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Sender;
    use crate::wire::Kind;

    /// A log that several nodes share begins to count again in each epoch.
    #[test]
    fn large_messages_of_two_epochs_with_one_seq_are_encoded_each() {
        let (mut cache, now) = (ReplayCache::new(1 << 20, 1_000), LoopTime::from_millis(0));
        let sender = Sender::default();
        let mut encode = |epoch, payload: &[u8]| {
            let id = MessageId { epoch, seq: 5 };
            let message = Message { channel: "a", id, number: 1, sender: &sender, kind: Kind::Text, payload };
            cache.large(&message, Form::Raw, now).unwrap()
        };
        let (old, _) = encode(7, b"old");
        let (new, new_bytes) = encode(8, b"new");
        assert!(old.ends_with(b"old") && new.ends_with(b"new") && new_bytes > 0);
        assert_eq!(encode(8, b"new").1, 0, "it is shared");
    }
}
