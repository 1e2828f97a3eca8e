//! What of the hub has to be written down, so that it outlives the process.
//!
//! The journal is no second copy of what was published: it is a list of the channels whose history has
//! changed since they were last written. What is written of a channel is what it keeps then, so a message
//! that comes and goes between two writings costs nothing, and a disk that is slow makes nothing grow: what
//! waits for it is the history itself, which has its limits.
//!
//! [`Hub::take_changes`] tells some of that; [`super::snapshot`] makes a hub of it again. Neither knows where it is
//! kept meanwhile, nor what time it is.

use super::Hub;
use super::change::{self, Change, ChannelPosition};
use super::channel::{Channel, PersistState};
use super::history::StoredMessage;
use super::removed::Removed;
use crate::ids::{ChannelId, User};
use crate::time::LoopTime;

/// The hub's own state beside its channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHead {
    /// The log's birth.
    pub epoch: u64,
    /// The number of its last message.
    pub seq: u64,
    /// The last message of any removed channel that is no longer remembered.
    pub max_removed_seq: u64,
}

/// A time that goes on from one process to the next, in milliseconds, and what it is on the loop's clock.
#[derive(Clone, Copy, Debug)]
pub struct LogTime {
    /// The loop's clock.
    pub now: LoopTime,
    /// The log's.
    pub millis: u64,
}

impl Hub {
    /// From now on, what changes is listed.
    pub fn begin_tracking_changes(&mut self) {
        self.dirty_channels.get_or_insert_default();
    }

    /// Nothing is listed any more.
    pub fn end_tracking_changes(&mut self) {
        self.dirty_channels = None;
    }

    /// How many channels wait to be written.
    pub fn changes(&self) -> usize {
        self.dirty_channels
            .as_ref()
            .map_or(0, |dirty_channels| dirty_channels.changed.len() + dirty_channels.removed.len())
    }

    /// What is told of the hub itself.
    pub fn changes_head(&self) -> LogHead {
        LogHead { epoch: self.epoch, seq: self.seq, max_removed_seq: self.removed.max_removed_seq() }
    }

    /// Up to `most` changes, until they have `bytes` or a message more.
    pub fn take_changes(&mut self, hour: LogTime, most: usize, bytes: usize) -> Vec<Change> {
        let Some(dirty_channels) = &mut self.dirty_channels else { return Vec::new() };
        let mut taken = Vec::new();
        let mut room = bytes;
        // First of all: a channel of the same name may have come since.
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
                    figures: ChannelPosition { number: 0, last, evicted_through: last },
                    messages: Vec::new(),
                },
                None => Change::Ended { name: (*name).into() },
            });
        }
        for _ in taken.len()..most {
            let Some(&ChannelId(key)) = dirty_channels.changed.front().filter(|_| room > 0) else { break };
            // One that has ended has nothing to tell.
            if let Some(channel) = self.channels.get_mut(key as usize) {
                let (change, is_all) = take_change(channel, hour, room);
                room = room.saturating_sub(change.bytes());
                taken.push(change);
                if !is_all {
                    break;
                }
            }
            dirty_channels.strike();
        }
        taken
    }
}

/// What has changed of a channel, or the first `bytes` of it, and whether that is all.
fn take_change(channel: &mut Channel, hour: LogTime, bytes: usize) -> (Change, bool) {
    let history = &channel.history;
    // From behind: what is new is the last of it, and what is not need not be touched.
    let is_new = |index: &usize| history.get(*index).is_some_and(|kept| kept.seq > channel.mark.written);
    let first = (0..history.len()).rev().take_while(is_new).last().unwrap_or(history.len());
    let mut messages = Vec::new();
    let mut end = first;
    // One at least, or a channel that is in the middle of something would tell that it is done.
    while (end == first || messages.len() < bytes)
        && let Some(kept) = history.get(end)
    {
        let at = hour.millis.saturating_sub(u64::from(hour.now.millis_since(kept.at)));
        let StoredMessage { seq, kind, ref sender, .. } = *kept;
        let (client, user) = (sender.client, sender.user.as_ref().map(User::as_json));
        let message = change::Message { seq, at, kind, client, user, payload: kept.payload() };
        change::put_message(&mut messages, &message);
        end += 1;
    }
    let is_all = end == history.len();
    // A change is true by itself: of a channel that is told in parts it says only how far it has come.
    let (number, last) = match end.checked_sub(1).and_then(|index| history.get(index)) {
        Some(kept) if !is_all => (channel.first_number() + end as u64 - 1, kept.seq),
        _ => (channel.messages(), channel.last()),
    };
    let figures = ChannelPosition { number, last, evicted_through: history.evicted_through() };
    channel.mark = PersistState { written: last, is_written: true };
    (Change::Channel { name: channel.name().into(), figures, messages }, is_all)
}
