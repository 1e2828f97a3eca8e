//! The changes of a hub for the history file.
//!
//! No second copy of the messages is kept: the hub lists the channels whose history has changed since they were last
//! written (`dirty_channels`), and a change is encoded from the history when it is taken. So a message that is
//! published and evicted between two writes costs nothing, and a slow disk makes nothing grow: the data that waits for
//! it is the history itself, which has its limits.
//!
//! [`Hub::take_changes`] encodes some of the changes; [`super::snapshot`] restores a hub from them. Neither does I/O
//! nor reads a clock.

use super::Hub;
use super::change::{self, Change, ChannelPosition};
use super::channel::{Channel, PersistState};
use super::history::StoredMessage;
use super::removed::Removed;
use crate::ids::{ChannelId, User};
use crate::time::LoopTime;

/// The state of the log in addition to the channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHead {
    /// The number that identifies the log.
    pub epoch: u64,
    /// The log index of its last message, which is also the seq of its id.
    pub log_index: u64,
    /// The last message of any removed channel that is no longer remembered.
    pub max_removed_index: u64,
}

/// The log's time, which continues across restarts, in milliseconds, and the same time on the loop's clock.
#[derive(Clone, Copy, Debug)]
pub struct LogTime {
    /// The loop's clock.
    pub now: LoopTime,
    /// The log's time.
    pub millis: u64,
}

impl Hub {
    /// Lists changed channels from now on.
    pub fn begin_tracking_changes(&mut self) {
        self.dirty_channels.get_or_insert_default();
    }

    /// Stops listing changed channels.
    pub fn end_tracking_changes(&mut self) {
        self.dirty_channels = None;
    }

    /// The number of channels that have yet to be written.
    pub fn changes(&self) -> usize {
        self.dirty_channels
            .as_ref()
            .map_or(0, |dirty_channels| dirty_channels.changed.len() + dirty_channels.removed.len())
    }

    /// The state of the log.
    pub fn log_head(&self) -> LogHead {
        LogHead {
            epoch: self.head().epoch,
            log_index: self.log_index,
            max_removed_index: self.removed.max_removed_index(),
        }
    }

    /// Takes up to `most` changes; stops with the message that takes them over `bytes`.
    pub fn take_changes(&mut self, log_time: LogTime, most: usize, bytes: usize) -> Vec<Change> {
        let Some(dirty_channels) = &mut self.dirty_channels else { return Vec::new() };
        let mut taken = Vec::new();
        let mut room = bytes;
        // Removals first: a channel of the same name may have been created since.
        while taken.len() < most
            && room > 0
            && let Some(name) = dirty_channels.removed.pop_first()
        {
            room = room.saturating_sub(name.len());
            let remembered = self.removed.get(&name).filter(|_| !self.names.contains_key(&name));
            self.removed.mark_written(&name, true);
            taken.push(match remembered {
                // A channel without messages.
                Some(Removed { last, .. }) => Change::Channel {
                    name: (*name).into(),
                    position: ChannelPosition { number: 0, last, evicted_through: last },
                    messages: Vec::new(),
                },
                None => Change::Removed { name: (*name).into() },
            });
        }
        for _ in taken.len()..most {
            let Some(&ChannelId(key)) = dirty_channels.changed.front().filter(|_| room > 0) else { break };
            // A removed channel is in `removed`.
            if let Some(channel) = self.channels.get_mut(key as usize) {
                let (change, is_all) = take_change(channel, log_time, room);
                room = room.saturating_sub(change.bytes());
                taken.push(change);
                if !is_all {
                    break;
                }
            }
            dirty_channels.remove_first();
        }
        taken
    }
}

/// Encodes the new messages of a channel, up to `bytes`. Returns true with it if that is all.
fn take_change(channel: &mut Channel, log_time: LogTime, bytes: usize) -> (Change, bool) {
    let history = &channel.history;
    // Searched from the end: the new messages are the last ones, and older ones need not be touched.
    let is_new = |index: &usize| {
        history.get(*index).is_some_and(|message| message.log_index > channel.persisted.written)
    };
    let first = (0..history.len()).rev().take_while(is_new).last().unwrap_or(history.len());
    let mut messages = Vec::new();
    let mut end = first;
    // At least one message: a change without messages means that the channel has no new ones.
    while (end == first || messages.len() < bytes)
        && let Some(message) = history.get(end)
    {
        let at = log_time.millis.saturating_sub(u64::from(log_time.now.millis_since(message.at)));
        let StoredMessage { log_index, kind, ref sender, .. } = *message;
        let (client, user) = (sender.client, sender.user.as_ref().map(User::as_json));
        let message = change::ChangeMessage { log_index, at, kind, client, user, payload: message.payload() };
        change::put_message(&mut messages, &message);
        end += 1;
    }
    let is_all = end == history.len();
    // Each change is consistent by itself: if a channel is written in parts, the position is that of the part.
    let (number, last) = match end.checked_sub(1).and_then(|index| history.get(index)) {
        Some(message) if !is_all => (channel.first_number() + end as u64 - 1, message.log_index),
        _ => (channel.messages(), channel.last()),
    };
    let position = ChannelPosition { number, last, evicted_through: history.evicted_through() };
    channel.persisted = PersistState { written: last, is_written: true };
    (Change::Channel { name: channel.name().into(), position, messages }, is_all)
}
