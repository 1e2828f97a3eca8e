//! Eviction: messages that are too old, and the oldest of the largest histories while all of them together are too
//! large. The totals that this requires are counted here.
//!
//! The limits of one channel are those of its history ([`super::history`]).

use std::ops::Range;

use super::Hub;
use super::channel::Channel;
use super::size_classes::{Shifted, SizeClasses};
use crate::ids::ChannelId;
use crate::time::LoopTime;

/// The messages and bytes of all histories together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryUsage {
    /// Messages.
    pub messages: usize,
    /// Bytes of the frames of the messages, with [`MESSAGE_BYTES`](super::history::MESSAGE_BYTES) for each
    /// message and [`CHANNEL_BYTES`] for each channel.
    pub bytes: usize,
}

impl HistoryUsage {
    pub(super) fn of(channel: &Channel) -> HistoryUsage {
        let messages = channel.history.len();
        let channel_bytes = if messages > 0 { CHANNEL_BYTES } else { 0 };
        HistoryUsage { messages, bytes: channel.history.bytes() + channel_bytes }
    }
}

/// The cost of a channel with history in addition to its messages: its entry, its name in two tables, its first
/// allocations. Measured by the allocator's count: channels of one message of one byte take 595 bytes each, of which
/// the message counts 67; of 4 such messages 763 (268), of 15 1,969 (1,005), of 48 3,343 (3,216).
pub const CHANNEL_BYTES: usize = 640;

impl Hub {
    /// The messages and bytes of all histories.
    pub fn history_usage(&self) -> HistoryUsage {
        self.usage
    }

    /// Evicts the oldest messages of the largest histories while all of them exceed their total limit. The channel
    /// `spared` is not removed, even without history.
    pub(super) fn evict_to_total_max(&mut self, spared: Option<ChannelId>) {
        while self.usage.bytes > self.history.total_bytes_max
            && let Some(largest) = self.classes.largest()
        {
            self.change_history(largest, |channel| channel.history.evict_oldest());
            if Some(largest) != spared {
                self.remove_if_unused(largest);
            }
        }
    }

    /// Evicts the oldest messages of the largest histories, up to a number of bytes or of messages. Returns the number
    /// of evicted messages. No batch may be open.
    pub fn evict(&mut self, bytes: usize, messages_max: usize) -> usize {
        let before = self.usage;
        let enough = before.bytes.saturating_sub(bytes);
        while self.usage.bytes > enough
            && before.messages - self.usage.messages < messages_max
            && let Some(largest) = self.classes.largest()
        {
            self.change_history(largest, |channel| channel.history.evict_oldest());
            self.remove_if_unused(largest);
        }
        before.messages - self.usage.messages
    }

    /// Returns true if there are messages or idempotency keys, which expire.
    pub fn has_expiring_data(&self) -> bool {
        self.usage.messages > 0 || !self.idempotency.is_empty()
    }

    /// Evicts expired messages of the channels with these keys.
    pub fn expire(&mut self, keys: Range<usize>, now: LoopTime) {
        for key in keys {
            if self.channels.contains(key) {
                let id = ChannelId(key as u32);
                self.expire_channel(id, now);
                self.remove_if_unused(id);
            }
        }
    }

    pub(super) fn expire_channel(&mut self, id: ChannelId, now: LoopTime) {
        let age_ms = self.history.age_ms;
        self.change_history(id, |channel| channel.history.expire(age_ms, now));
    }

    pub(super) fn change_history(&mut self, id: ChannelId, change: impl FnOnce(&mut Channel)) {
        let channel = &mut self.channels[id.0 as usize];
        let before = HistoryUsage::of(channel);
        change(channel);
        if let Some(dirty_channels) = &mut self.dirty_channels
            && channel.history.len() != before.messages
        {
            dirty_channels.mark(id);
        }
        self.account(id, before);
    }

    /// Brings the totals and the classes up to date after a history has changed.
    pub(super) fn account(&mut self, id: ChannelId, before: HistoryUsage) {
        let channel = &mut self.channels[id.0 as usize];
        let (after, bytes) = (HistoryUsage::of(channel), channel.history.bytes());
        self.usage.messages = self.usage.messages + after.messages - before.messages;
        self.usage.bytes = self.usage.bytes + after.bytes - before.bytes;
        if SizeClasses::must_move(channel.rank, bytes) {
            let (rank, shifted) = self.classes.move_channel(id, channel.rank, bytes);
            channel.rank = rank;
            if let Some(Shifted { channel, rank }) = shifted {
                self.channels[channel.0 as usize].rank = rank;
            }
        }
    }
}
