//! Channels: subscriptions, the message batches of a turn, history, and resuming.
//!
//! The hub does no I/O. It has the subscribers of each channel, the batch of messages published there in the current
//! turn, and the history; it returns encoded frames and subscribers, and the server queues the frames in outboxes.
//!
//! **Encode once**: a message is framed when it is published, into its channel's batch. At the end of the deliver phase
//! the batch is finished, and every subscriber is sent a reference to the same bytes, in the form it subscribed with.
//!
//! **No silent loss**: a subscriber is either *live*, and is sent each batch, or *catching up*, and is sent the history
//! one slice at a time. The replay is driven by its outbox: the server makes the next slice ([`Hub::replay`]) when the
//! outbox has run empty, so a slice advances as fast as the socket accepts the one before, and a slow subscriber holds
//! one slice and no more. The subscriber becomes live in the step that finds no further message, while no batch is
//! open, so no message can fall between history and live delivery. If messages are evicted before the replay reaches
//! them, the step returns the gap, and the subscriber is notified.

pub mod batch;
pub mod change;
pub mod channel;
pub mod compression;
pub mod creators;
mod dirty_channels;
pub mod discontinuity;
mod duplicate;
pub(crate) mod epochs;
mod eviction;
mod fan_out;
pub mod history;
pub mod idempotency;
pub mod merge;
pub mod page;
pub mod persist;
mod removed;
pub mod replay;
mod replay_cache;
mod size_classes;
pub mod snapshot;
pub mod stored_keys;
mod subscribe;
pub mod subscriptions;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;

use slab::Slab;

use crate::access::grant::Patterns;
use crate::access::quota::Quotas;
use crate::config::{HistoryLimits, Limits};
use crate::ids::{ChannelId, ChannelName, MessageId, Sender, SlotId};
use crate::tables::shrink::ShrinkTrigger;
use crate::time::LoopTime;
use crate::wire::{Form, Kind};
pub use channel::ChannelInfo;
use channel::{Channel, PersistState};
use creators::{Creator, Creators};
use dirty_channels::DirtyChannels;
use discontinuity::LatestLoss;
pub use duplicate::Duplicate;
use epochs::Epochs;
pub use eviction::{CHANNEL_BYTES, HistoryUsage};
pub use fan_out::Unsent;
use idempotency::IdempotencyCache;
use removed::{Removed, RemovedChannels};
use replay_cache::ReplayCache;
use size_classes::SizeClasses;
pub use subscribe::{SubscribeOptions, Subscribed};
pub use subscriptions::{Moved, Subscription, SubscriptionState};

/// All channels.
#[derive(Debug)]
pub struct Hub {
    channels: Slab<Channel>,
    /// Ordered by name, so that they can be listed a page at a time.
    names: BTreeMap<Rc<str>, ChannelId>,
    /// Channels with messages published in this turn.
    open_batches: Vec<ChannelId>,
    /// Messages of open batches that were encoded for one subscriber alone since the last fan-out.
    sent_early: usize,
    channels_max: usize,
    history: HistoryLimits,
    epochs: Epochs,
    /// The index of the log's last message.
    log_index: u64,
    /// Cursors before this index are incomplete on a channel that is subscribed to from now on.
    cursor_floor: u64,
    /// The latest discontinuity of a shared log.
    latest_loss: Option<LatestLoss>,
    /// Channels that existed and had messages.
    removed: RemovedChannels,
    creators: Creators,
    shrink_trigger: ShrinkTrigger,
    classes: SizeClasses,
    usage: HistoryUsage,
    idempotency: IdempotencyCache,
    /// Changes for the history file, if there is one.
    dirty_channels: Option<DirtyChannels>,
    /// The number of subscriptions to all channels.
    subscriptions: usize,
    replays: ReplayCache,
    /// Bytes of the compressed messages that channels keep for the next ones to refer to.
    context_bytes: usize,
    context_bytes_max: usize,
    context_bytes_per_subscriber: usize,
    /// Channels whose messages are not compressed.
    uncompressed: Patterns,
}

/// `--channels-max` is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelsFull;

/// A message that was added to its channel's batch.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its id.
    pub id: MessageId,
    /// Its log index.
    pub log_index: u64,
    /// The channel's number of subscribers.
    pub subscribers: usize,
}

/// Entries of the table of channels that are never released: some 400 KiB.
const CHANNELS_RETAINED: usize = 1_024;

impl Hub {
    /// A hub without channels, for the log `epoch`.
    pub fn new(limits: &Limits, epoch: u64) -> Hub {
        Hub {
            channels: Slab::new(),
            names: BTreeMap::new(),
            open_batches: Vec::new(),
            sent_early: 0,
            channels_max: limits.channels_max,
            history: limits.history,
            epochs: Epochs::new(epoch),
            log_index: 0,
            cursor_floor: 0,
            latest_loss: None,
            removed: RemovedChannels::new(limits.removed_channels_bytes_max),
            creators: Creators::new(limits.channels_per_publisher_max),
            shrink_trigger: ShrinkTrigger::new(CHANNELS_RETAINED),
            classes: SizeClasses::new(),
            usage: HistoryUsage::default(),
            idempotency: IdempotencyCache::new(limits.idempotency),
            dirty_channels: None,
            subscriptions: 0,
            replays: ReplayCache::new(limits.replay_encoded_bytes_max, limits.replay_take_ms),
            context_bytes: 0,
            context_bytes_max: limits.deflate.context_bytes_max,
            context_bytes_per_subscriber: limits.deflate.context_bytes_per_subscriber,
            uncompressed: Patterns::default(),
        }
    }

    /// Excludes channels from compression.
    pub fn exclude_from_compression(&mut self, channels: Patterns) {
        self.uncompressed = channels;
    }

    /// The channel of that name, if it has subscribers or history.
    pub fn find(&self, name: &str) -> Option<ChannelId> {
        self.names.get(name).copied()
    }

    /// The channel with this id.
    pub fn channel(&self, channel: ChannelId) -> Option<&Channel> {
        self.channels.get(channel.0 as usize)
    }

    /// The number of channels.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The number of subscriptions to all channels.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// The log's last message, as a cursor: all later messages are new.
    pub fn head(&self) -> MessageId {
        self.id(self.log_index)
    }

    /// The id of a log index.
    pub fn id(&self, log_index: u64) -> MessageId {
        self.epochs.id(log_index)
    }

    /// Returns true if the cursor is later than the log's last message.
    pub fn is_ahead(&self, cursor: MessageId) -> bool {
        self.epochs.is_ahead(cursor, self.log_index)
    }

    /// Continues after the number `seq` of the present epoch: the entries of a shared log that are not messages, and
    /// those that this server does not have, have numbers too.
    pub fn advance_to(&mut self, seq: u64) {
        self.log_index = self.log_index.max(self.epochs.current().log_index(seq));
    }

    /// Begins to read a shared log after the sequence number `before`, which is the last that this node does not read.
    /// No channel may have a message.
    pub fn begin_log(&mut self, epoch: u64, before: u64) {
        self.epochs = Epochs::new(epoch);
        self.log_index = before;
        self.removed.raise(before);
    }

    /// Makes cursors before the log's head incomplete for clients that subscribe from now on. Present subscribers miss
    /// nothing.
    pub fn raise_cursor_floor(&mut self) {
        self.cursor_floor = self.cursor_floor.max(self.log_index);
    }

    /// As [`Hub::raise_cursor_floor`], but the log's head becomes an incomplete cursor too: a client may have received
    /// it before the loss was found.
    pub fn raise_cursor_floor_above_head(&mut self) {
        self.cursor_floor = self.log_index.saturating_add(1);
    }

    /// Records that a message of the log is not stored: there is no room for its channel, which has no subscribers
    /// here.
    pub fn skip_message(&mut self) {
        self.log_index = self.log_index.saturating_add(1);
        self.removed.raise(self.log_index);
    }

    /// Begins an epoch, whose marker names the last id that survived in the log. No batch may be open. Returns the
    /// log index of that id; `None` if the history before the marker has to be freed.
    pub fn begin_epoch(&mut self, epoch: u64, survived: MessageId) -> Option<u64> {
        debug_assert!(self.open_batches.is_empty());
        self.log_index = self.log_index.saturating_add(1);
        self.epochs.begin(epoch, self.log_index, survived)
    }

    /// Returns the channel of that name; creates it if it does not exist.
    ///
    /// # Errors
    /// `--channels-max` is reached.
    pub fn open(&mut self, name: &ChannelName) -> Result<ChannelId, ChannelsFull> {
        self.open_as(name, Creator::default())
    }

    /// Returns true if `--channels-max` is reached.
    pub fn is_full(&self) -> bool {
        self.channels.len() >= self.channels_max
    }

    /// Returns the channel of that name; creates it for `creator` if it does not exist.
    ///
    /// # Errors
    /// `--channels-max` is reached.
    pub fn open_as(&mut self, name: &ChannelName, creator: Creator) -> Result<ChannelId, ChannelsFull> {
        if let Some(channel) = self.find(name.as_str()) {
            return Ok(channel);
        }
        if self.is_full() {
            return Err(ChannelsFull);
        }
        let name: Rc<str> = name.as_str().into();
        let evicted_through = self.removed.last(&name);
        let mut channel = Channel::new(name.clone(), evicted_through);
        if let Some(Removed { is_written, .. }) = self.removed.remove(&name) {
            channel.persisted = PersistState { written: evicted_through, is_written };
            channel.had_predecessor = true;
        }
        channel.creator = self.creators.created(creator);
        let channel = ChannelId(self.channels.insert(channel) as u32);
        self.names.insert(name, channel);
        Ok(channel)
    }

    /// Removes a channel without subscribers, history and open batch.
    pub fn remove_if_unused(&mut self, id: ChannelId) {
        if self.channel(id).is_some_and(Channel::is_unused) {
            let channel = self.channels.remove(id.0 as usize);
            self.names.remove(channel.name());
            self.creators.ended(channel.creator);
            self.remember_removed(
                channel.shared_name(),
                channel.last().max(channel.history.evicted_through()),
                channel.persisted.is_written,
            );
            if self.shrink_trigger.is_due_after_removal(self.channels.len(), self.channels.capacity()) {
                self.shrink();
            }
        }
    }

    /// Remembers the last message of a channel that is removed, and forgets others if there are too many.
    fn remember_removed(&mut self, name: Rc<str>, last: u64, is_written: bool) {
        let Hub { removed, dirty_channels, .. } = self;
        // A channel that never had a message needs no entry, unless it is in the file.
        let is_known = last <= removed.max_removed_index();
        if !is_known {
            removed.insert(name.clone(), Removed { last, is_written });
        }
        if let Some(dirty_channels) = dirty_channels
            && (is_written || !is_known)
        {
            dirty_channels.mark_removed(name);
        }
        while let Some((name, Removed { is_written, .. })) = removed.forget_over_limit() {
            if let Some(dirty_channels) = dirty_channels {
                dirty_channels.mark_forgotten(name, is_written);
            }
        }
    }

    /// Channels that a connection created, which exist and which it does not subscribe to.
    pub fn channels_created_by(&self, connection: SlotId) -> usize {
        self.creators.channels_of(connection)
    }

    /// Returns true if the connection created the channel.
    pub fn is_creator(&self, channel: ChannelId, connection: SlotId) -> bool {
        self.channel(channel).is_some_and(|channel| channel.creator.connection == Some(connection))
    }

    /// The number of existing channels, by the publishers that created them.
    pub fn publishers(&self) -> &Quotas {
        &self.creators.publishers
    }

    /// Records that a connection has closed, after it has left its channels.
    pub fn forget_creator(&mut self, connection: SlotId) {
        self.creators.forget(connection);
    }

    /// Returns the number of remembered removed channels, and their bytes.
    pub fn removed_channels(&self) -> (usize, usize) {
        (self.removed.len(), self.removed.bytes())
    }

    /// Frames a message into its channel's batch.
    ///
    /// `subscription` is the sender's, if it subscribes to the channel.
    pub fn publish(
        &mut self,
        id: ChannelId,
        kind: Kind,
        payload: &[u8],
        sender: Sender,
        subscription: Option<Subscription>,
    ) -> Published {
        self.log_index = self.log_index.saturating_add(1);
        let echo_excluded_by = subscription.filter(|subscription| !subscription.echo);
        let channel = &mut self.channels[id.0 as usize];
        if channel.publish(self.log_index, kind, payload, sender, echo_excluded_by) {
            self.open_batches.push(id);
        }
        let subscribers = self.channels[id.0 as usize].subscribers();
        Published { id: self.id(self.log_index), log_index: self.log_index, subscribers }
    }

    /// One more than the highest key of a channel in the table.
    pub fn keys_end(&self) -> usize {
        self.channels.capacity()
    }

    /// Releases memory when most channels are removed, as far as the highest key in use allows; the sweep then walks no
    /// further. New channels take the lowest keys.
    pub fn shrink_at(&mut self, now: LoopTime) {
        let (len, capacity) = (self.channels.len(), self.channels.capacity());
        if self.shrink_trigger.is_due_at(len, capacity, now) {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        self.channels.shrink_to_fit();
        self.open_batches.shrink_to(self.channels.len());
        if let Some(dirty_channels) = &mut self.dirty_channels {
            dirty_channels.shrink();
        }
    }

    /// The public state of a channel; that of an empty one if it does not exist.
    pub fn info(&self, name: &str) -> ChannelInfo {
        let empty = ChannelInfo { evicted_through: self.removed.last(name), ..ChannelInfo::default() };
        let channel = self.find(name).and_then(|id| self.channel(id));
        channel.map_or(empty, Channel::info)
    }

    /// The channels whose names begin with `prefix`, in the order of their names, from a bound on.
    pub fn channels_from<'a>(
        &'a self,
        prefix: &'a str,
        from: Bound<&str>,
    ) -> impl Iterator<Item = (&'a str, ChannelId)> + use<'a> {
        let start = match from {
            Bound::Excluded(name) if name >= prefix => Bound::Excluded(name),
            Bound::Included(name) if name >= prefix => Bound::Included(name),
            _ => Bound::Included(prefix),
        };
        self.names
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(name, id)| (&**name, *id))
            .take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Panics if the parts contradict each other; for debug builds and tests.
    pub fn check(&self) {
        let mut usage = HistoryUsage::default();
        for (_, channel) in &self.channels {
            assert!(!channel.has_batch(), "{} has an open batch", channel.name());
            assert_eq!(channel.group, channel::NO_GROUP, "{} is in a group", channel.name());
            assert!(!channel.is_unused(), "{} is unused", channel.name());
            let one = HistoryUsage::of(channel);
            usage.messages += one.messages;
            usage.bytes += one.bytes;
        }
        assert_eq!(usage, self.usage);
        let contexts = self.channels.iter().filter_map(|(_, channel)| channel.context.as_ref());
        assert_eq!(contexts.map(|context| context.bytes()).sum::<usize>(), self.context_bytes);
        assert_eq!(
            self.channels.iter().map(|(_, channel)| channel.subscribers()).sum::<usize>(),
            self.subscriptions
        );
        assert_eq!(self.names.len(), self.channels.len());
        self.removed.check();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweep_of_channels_walks_few_places_after_a_flood() {
        let history = HistoryLimits { age_ms: 1_000, ..HistoryLimits::default() };
        let mut hub = Hub::new(&Limits { history, ..Limits::default() }, 1);
        hub.begin_tracking_changes();
        let mut now = LoopTime::from_millis(0);
        let publish = |hub: &mut Hub, name: &str, now| {
            let id = hub.open(&ChannelName::parse(name.as_bytes()).unwrap()).unwrap();
            hub.publish(id, Kind::Text, b"x", Sender::default(), None);
            while let Some(id) = hub.next_open_batch() {
                let _ = hub.finish_batch(id, now);
            }
        };
        for number in 0..50_000 {
            publish(&mut hub, &format!("flood-{number}"), now);
        }
        assert!(hub.keys_end() >= 50_000);
        now = now.after(600);
        publish(&mut hub, "flood-0", now);
        now = now.after(600);
        hub.expire(0..hub.keys_end(), now);
        assert_eq!(hub.channels(), 1);
        assert!(hub.keys_end() <= 1_024, "{}", hub.keys_end());
        publish(&mut hub, "next", now);
        assert!(hub.find("next").is_some_and(|id| id.0 < 16), "low keys are used first");
        hub.check();
    }
}
