//! Restores a hub from the changes in the history file.

use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;

use super::Hub;
use super::change::{ChangeMessage, ChangeMessages, ChannelPosition, InvalidChange};
use super::channel::{Channel, PersistState};
use super::history::{BatchEntry, COALESCED_MESSAGES, History, SMALL_BYTES};
use super::persist::{LogHead, LogTime};
use crate::config::{HistoryLimits, Limits};
use crate::ids::{ChannelName, Sender, User};
use crate::time::LoopTime;
use crate::wire;

/// The channels of the history file, after all of their changes.
///
/// Each message is copied once, from its encoded bytes into the history: loading takes the memory of one history, and
/// few allocations.
#[derive(Debug)]
pub struct Snapshot {
    limits: HistoryLimits,
    log_time: LogTime,
    channels: HashMap<Box<str>, StoredChannel>,
    users: Users,
    batch: RestoreBatch,
}

/// A channel of the file.
#[derive(Debug)]
struct StoredChannel {
    number: u64,
    last: u64,
    evicted_through: u64,
    /// The number of written messages, of which the present limits may allow fewer.
    count: usize,
    history: History,
}

/// The result of restoring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Restored messages.
    pub messages: usize,
    /// Written messages that exceed the present limits or have expired.
    pub dropped: usize,
}

impl Snapshot {
    /// An empty snapshot, which stores as much as the limits allow at this time.
    pub fn new(limits: &HistoryLimits, log_time: LogTime) -> Snapshot {
        let (users, batch) = (Users::default(), RestoreBatch::default());
        Snapshot { limits: *limits, log_time, channels: HashMap::new(), users, batch }
    }

    /// Adds a channel: its latest position, and the messages of its changes in order.
    ///
    /// # Errors
    /// The bytes are not what [`Hub::take_changes`] encodes. The snapshot must not be used then.
    pub fn put(
        &mut self,
        name: &str,
        position: ChannelPosition,
        messages: &[u8],
    ) -> Result<(), InvalidChange> {
        let Snapshot { limits, log_time, users, batch, .. } = self;
        let ChannelPosition { number, last, evicted_through } = position;
        let (mut count, mut before) = (0, evicted_through);
        let mut history = History::new(evicted_through);
        let messages_max = ChangeMessages(messages).map_while(Result::ok).count();
        history.reserve(messages_max.min(limits.messages_max));
        for message in ChangeMessages(messages) {
            let message = message?;
            if message.log_index <= evicted_through {
                continue;
            }
            if message.log_index <= before || message.log_index > last {
                return Err(InvalidChange);
            }
            (count, before) = (count + 1, message.log_index);
            if !batch.accepts(&message) {
                batch.flush(&mut history, limits);
            }
            // Clamped to the maximum age, since a `LoopTime` spans only weeks.
            let age = log_time.millis.saturating_sub(message.at).min(u64::from(limits.age_ms)) as u32;
            batch.push(&message, message.user.map(|json| users.get(json)), log_time.now.before(age));
        }
        // A channel stores its last messages, so it has had at least as many.
        if count as u64 > number {
            return Err(InvalidChange);
        }
        batch.flush(&mut history, limits);
        history.expire(limits.age_ms, log_time.now);
        history.shrink();
        self.channels.insert(name.into(), StoredChannel { number, last, evicted_through, count, history });
        Ok(())
    }
}

/// Shares each user among its messages.
#[derive(Debug, Default)]
struct Users(HashMap<Box<str>, User>);

impl Users {
    fn get(&mut self, json: &str) -> User {
        if let Some(user) = self.0.get(json) {
            return user.clone();
        }
        let user = User::from_json(json);
        self.0.insert(json.into(), user.clone());
        user
    }
}

/// A batch of messages on their way into a history; its memory is reused for all channels.
#[derive(Debug, Default)]
struct RestoreBatch {
    frames: Vec<u8>,
    entries: Vec<BatchEntry>,
    times: Vec<LoopTime>,
    /// When the last message was published, by the log's time.
    at: u64,
}

impl RestoreBatch {
    /// Returns true if the message shares the memory of those before it: they were published in one turn, or they are
    /// as few and small as [`History`] coalesces.
    fn accepts(&self, message: &ChangeMessage<'_>) -> bool {
        let ChangeMessage { at, payload, .. } = *message;
        let small_bytes = COALESCED_MESSAGES * SMALL_BYTES;
        let is_small = payload.len() <= SMALL_BYTES && self.frames.len() + payload.len() <= small_bytes;
        at == self.at || is_small && self.entries.len() < COALESCED_MESSAGES
    }

    fn push(&mut self, message: &ChangeMessage<'_>, user: Option<User>, time: LoopTime) {
        let ChangeMessage { log_index, at, kind, client, payload, .. } = *message;
        wire::append_message(&mut self.frames, kind, payload);
        let sender = Sender { client, user };
        self.entries.push(BatchEntry { end: self.frames.len() as u32, log_index, kind, sender });
        self.times.push(time);
        self.at = at;
    }

    fn flush(&mut self, history: &mut History, limits: &HistoryLimits) {
        if !self.entries.is_empty() {
            let frames = Rc::new(Bytes::copy_from_slice(&self.frames));
            history.append_published_at(&frames, &self.entries, limits, |index| self.times[index]);
        }
        self.frames.clear();
        self.entries.clear();
        self.times.clear();
    }
}

impl Hub {
    /// Restores a hub under the present limits. It tracks changes; channels that the limits have changed are listed.
    pub fn restore(limits: &Limits, head: LogHead, snapshot: Snapshot) -> (Hub, Restored) {
        let mut hub = Hub { log_index: head.log_index, ..Hub::new(limits, head.epoch) };
        hub.removed.raise(head.max_removed_index);
        let mut channels: Vec<(Box<str>, StoredChannel)> = snapshot.channels.into_iter().collect();
        // If the limits do not allow all channels, those with the latest messages are restored. A removed channel has
        // no messages and takes no memory here.
        channels.sort_unstable_by_key(|(_, written)| (written.count > 0, written.last));
        let spare = channels.len().saturating_sub(limits.channels_max);
        let mut written = Vec::with_capacity(channels.len());
        for (place, (name, channel)) in channels.into_iter().enumerate() {
            hub.log_index = hub.log_index.max(channel.last);
            written.push((Rc::<str>::from(name), channel.count));
            let (name, _) = &written[place];
            match ChannelName::parse(name.as_bytes()) {
                Ok(name) if place >= spare => hub.restore_channel(&name, channel),
                _ => hub.remember_removed(written[place].0.clone(), channel.last, true),
            }
        }
        hub.evict_to_total_max(None);
        let count = |written: &[(Rc<str>, usize)]| written.iter().map(|(_, count)| count).sum::<usize>();
        let restored =
            Restored { messages: hub.usage.messages, dropped: count(&written) - hub.usage.messages };
        hub.begin_tracking_changes();
        for (name, count) in written {
            hub.mark_if_different(name, count);
        }
        (hub, restored)
    }

    fn restore_channel(&mut self, name: &ChannelName, written: StoredChannel) {
        let Ok(id) = self.open(name) else { return };
        let before = super::HistoryUsage::default();
        let channel = &mut self.channels[id.0 as usize];
        let StoredChannel { number, last, evicted_through, count: _, history } = written;
        *channel = Channel::restored(channel.shared_name(), number, last, evicted_through);
        channel.persisted = PersistState { written: last, is_written: true };
        channel.history = history;
        self.account(id, before);
        self.remove_if_unused(id);
    }

    /// Lists a channel as changed if it differs from the file.
    fn mark_if_different(&mut self, name: Rc<str>, messages: usize) {
        let Hub { dirty_channels: Some(dirty_channels), names, channels, .. } = self else { return };
        match names.get(&name) {
            // The file has the same row already.
            None if messages == 0 && self.removed.get(&name).is_some() => {}
            None => dirty_channels.mark_removed(name),
            Some(&id) if channels[id.0 as usize].history.len() != messages => dirty_channels.mark(id),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
