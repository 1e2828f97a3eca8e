//! Who hears what.
//!
//! The hub has never heard of sockets. It keeps the members of each channel, the batch of frames that
//! the current turn publishes there, and the last of what was published before; it answers with frames
//! and members, and the server does the rest.
//!
//! **Encode once**: a message is framed when it is published, into its channel's batch. At the end of the
//! deliver phase the batch is sealed, and every member gets a reference to the same bytes, in the form
//! that it wants.
//!
//! **No loss unannounced**: a member is either *live*, and gets each batch, or *replaying*, and gets what
//! is kept, a portion at a time, as fast as its socket takes it. It becomes live in the same step in which
//! its last portion is made, while no batch is open, so that no message can fall between the two. If the
//! history moves past it, it is told what it missed.

pub mod change;
pub mod channel;
pub mod creators;
mod dirty_channels;
mod eviction;
pub mod history;
pub mod idempotency;
pub mod merge;
pub mod page;
pub mod persist;
mod removed;
pub mod replay;
mod replay_cache;
pub mod snapshot;
pub mod subscriptions;

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::rc::Rc;

use slab::Slab;

use crate::access::quota::Quotas;
use crate::config::{HistoryLimits, Limits};
use crate::ids::{ChannelId, ChannelName, Gap, GapReason, MessageId, Sender, Since, SlotId};
use crate::tables::shrink::ShrinkTrigger;
use crate::time::LoopTime;
use crate::wire::{Form, Kind};
pub use channel::ChannelInfo;
use channel::{BatchStart, Channel, Delivery, FinishedBatch, PersistState, Replay, Slices};
use creators::{Creator, Creators};
use dirty_channels::DirtyChannels;
use eviction::{Shifted, SizeClasses};
use idempotency::{IdempotencyCache, IdempotencyKey, Known};
use removed::{Removed, RemovedChannels};
use replay_cache::ReplayCache;
pub use subscriptions::{Moved, Subscription, SubscriptionState};

/// All channels.
#[derive(Debug)]
pub struct Hub {
    channels: Slab<Channel>,
    /// In order, so that a list of them can be read a page at a time.
    names: BTreeMap<Rc<str>, ChannelId>,
    /// Channels in which something was published this turn.
    open_batches: Vec<ChannelId>,
    /// Messages of open batches that were encoded for one subscriber alone since the last fan-out.
    early: usize,
    channels_max: usize,
    history: HistoryLimits,
    epoch: u64,
    /// The number of the log's last message.
    seq: u64,
    /// Channels that existed and had messages.
    removed: RemovedChannels,
    creators: Creators,
    shrink_trigger: ShrinkTrigger,
    classes: SizeClasses,
    kept: HistoryUsage,
    idempotency: IdempotencyCache,
    /// What has to be written down, if anything is.
    dirty_channels: Option<DirtyChannels>,
    /// Members of all channels.
    subscriptions: usize,
    replays: ReplayCache,
}

/// What all histories hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryUsage {
    /// Messages.
    pub messages: usize,
    /// Their frames' bytes, [`history::MESSAGE_BYTES`] for each, and [`CHANNEL_BYTES`] for each of their channels.
    pub bytes: usize,
}

impl HistoryUsage {
    fn of(channel: &Channel) -> HistoryUsage {
        let messages = channel.history.len();
        let channel_bytes = if messages > 0 { CHANNEL_BYTES } else { 0 };
        HistoryUsage { messages, bytes: channel.history.bytes() + channel_bytes }
    }
}

/// The cost of a channel with history in addition to its messages: its entry, its name in two tables, its first
/// allocations. Measured by the allocator's count: channels of one message of one byte take 595 bytes each, of which
/// the message counts 67; of 4 such messages 763 (268), of 15 1,969 (1,005), of 48 3,343 (3,216).
pub const CHANNEL_BYTES: usize = 640;

/// There are as many channels as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelsFull;

/// What somebody wants who becomes a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// How it wants its messages.
    pub form: Form,
    /// From where.
    pub since: Since,
    /// Does it want to hear its own?
    pub echo: bool,
}

/// Somebody has become a member.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    /// Where it sits.
    pub subscription: Subscription,
    /// What it gets continues from here; if there is a gap, that comes first.
    pub cursor: MessageId,
    /// How many members there are.
    pub subscribers: usize,
    /// What it asked for and will not get.
    pub gap: Option<Gap>,
}

/// A message has been put into its channel's batch.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Its id.
    pub id: MessageId,
    /// How many members the channel has.
    pub subscribers: usize,
}

/// A key has arrived again.
#[derive(Clone, Copy, Debug)]
pub enum Duplicate {
    /// With the same payload: the message is published already.
    Same(Published),
    /// With another payload: the publisher has used the key for two messages, and the second one is not published.
    OtherPayload,
}

/// The messages of open batches that a subscriber has yet to receive.
#[must_use]
#[derive(Debug)]
pub enum Unsent {
    /// Nothing.
    Nothing,
    /// This portion, encoded for it alone.
    Delivery(Delivery),
    /// More than is encoded for one subscriber alone: the batches have to be fanned out.
    TooMuch,
}

/// Maximum bytes that are encoded for one subscriber alone, in payloads and [`history::MESSAGE_BYTES`] for each
/// message: as much work as some 200 deliveries, where a fan-out has one for each subscriber.
const UNSENT_BYTES_MAX: usize = 4 << 10;

/// Maximum messages that are encoded for single subscribers between two fan-outs: if many subscribers leave in the same
/// turn, one fan-out is less work.
const UNSENT_MESSAGES_MAX: usize = 256;

/// Entries of the table of channels that are never released: some 400 KiB.
const CHANNELS_KEPT: usize = 1_024;

impl Hub {
    /// A hub without channels, for a log that was born at `epoch`.
    pub fn new(limits: &Limits, epoch: u64) -> Hub {
        Hub {
            channels: Slab::new(),
            names: BTreeMap::new(),
            open_batches: Vec::new(),
            early: 0,
            channels_max: limits.channels_max,
            history: limits.history,
            epoch,
            seq: 0,
            removed: RemovedChannels::new(limits.removed_channels_bytes_max),
            creators: Creators::new(limits.channels_per_publisher_max),
            shrink_trigger: ShrinkTrigger::new(CHANNELS_KEPT),
            classes: SizeClasses::new(),
            kept: HistoryUsage::default(),
            idempotency: IdempotencyCache::new(limits.idempotency),
            dirty_channels: None,
            subscriptions: 0,
            replays: ReplayCache::new(limits.replay_encoded_bytes_max, limits.replay_take_ms),
        }
    }

    /// The channel of that name, if it has members or history.
    pub fn find(&self, name: &str) -> Option<ChannelId> {
        self.names.get(name).copied()
    }

    /// The channel itself.
    pub fn channel(&self, channel: ChannelId) -> Option<&Channel> {
        self.channels.get(channel.0 as usize)
    }

    /// How many channels there are.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// How many members all channels have together.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions
    }

    /// What all histories hold.
    pub fn kept(&self) -> HistoryUsage {
        self.kept
    }

    /// The log's last message: a cursor behind which everything is new.
    pub fn head(&self) -> MessageId {
        self.id(self.seq)
    }

    fn id(&self, seq: u64) -> MessageId {
        MessageId { epoch: self.epoch, seq }
    }

    /// Who sits there, as the channel sees it; for checks.
    pub fn subscriber_at(&self, subscription: Subscription) -> Option<SlotId> {
        self.channel(subscription.channel)?.subscriber_at(subscription.place, subscription.position)
    }

    /// The form in which a member gets its messages.
    pub fn form_of(&self, subscription: Subscription) -> Form {
        match subscription.place {
            SubscriptionState::Live(form) => form,
            SubscriptionState::CatchingUp => {
                self.channels[subscription.channel.0 as usize].replaying[subscription.position as usize].form
            }
        }
    }

    /// The channel of that name; it is made if there is none.
    ///
    /// # Errors
    /// `--channels-max` is reached.
    pub fn open(&mut self, name: &ChannelName) -> Result<ChannelId, ChannelsFull> {
        self.open_as(name, Creator::default())
    }

    /// Returns the channel of that name; creates it for `creator` if it does not exist.
    ///
    /// # Errors
    /// There is no room for another channel.
    pub fn open_as(&mut self, name: &ChannelName, creator: Creator) -> Result<ChannelId, ChannelsFull> {
        if let Some(channel) = self.find(name.as_str()) {
            return Ok(channel);
        }
        if self.channels.len() >= self.channels_max {
            return Err(ChannelsFull);
        }
        let name: Rc<str> = name.as_str().into();
        let evicted_through = self.removed.last(&name);
        let mut channel = Channel::new(name.clone(), evicted_through);
        if let Some(Removed { is_written, .. }) = self.removed.remove(&name) {
            channel.mark = PersistState { written: evicted_through, is_written };
            channel.had_others = true;
        }
        channel.creator = self.creators.created(creator);
        let channel = ChannelId(self.channels.insert(channel) as u32);
        self.names.insert(name, channel);
        Ok(channel)
    }

    /// Adds a member. It does not receive the messages of the channel's open batch, unless it asks for them.
    ///
    /// It receives the requested history by [`Hub::replay`]; without any, it is live at once.
    ///
    /// # Errors
    /// The name is new and there is no room for another channel.
    pub fn subscribe(
        &mut self,
        name: &ChannelName,
        subscriber: SlotId,
        options: SubscribeOptions,
        now: LoopTime,
    ) -> Result<Joined, ChannelsFull> {
        let id = self.open_as(name, Creator { connection: Some(subscriber), publisher: None })?;
        if self.channels[id.0 as usize].creator.connection == Some(subscriber) {
            // It counts as a subscription.
            self.creators.subtract(subscriber);
        }
        self.expire_channel(id, now);
        let (from, gap) = self.resume(id, options.since);
        let (now_at, head) = (self.id(from), self.head());
        let channel = &mut self.channels[id.0 as usize];
        let (subscription, cursor) = if from < channel.last() {
            let replay = Replay {
                subscriber,
                form: options.form,
                cursor: from,
                next_number: None,
                why: GapReason::Slow,
                takes_what_is_kept: options.form == Form::Raw && !matches!(options.since, Since::After(_)),
                waits_since: None,
            };
            channel.replaying.push(replay);
            let position = (channel.replaying.len() - 1) as u32;
            (
                Subscription {
                    channel: id,
                    position,
                    place: SubscriptionState::CatchingUp,
                    echo: options.echo,
                },
                now_at,
            )
        } else {
            (Subscription::live(id, options.form, channel.join(options.form, subscriber), options.echo), head)
        };
        let subscribers = channel.subscribers();
        // Whoever is cut before the gap is told has to come back with the old cursor, and be told again.
        let cursor = gap.map_or(cursor, |gap| gap.after);
        self.subscriptions += 1;
        Ok(Joined { subscription, cursor, subscribers, gap })
    }

    /// Where in the log somebody begins who asks for `since`, and what is missing there.
    fn resume(&self, id: ChannelId, since: Since) -> (u64, Option<Gap>) {
        let channel = &self.channels[id.0 as usize];
        let evicted_through = channel.history.evicted_through();
        let gap = |after: MessageId, why| {
            let gap = Gap { after, resume: self.id(evicted_through), missed: None, why };
            (evicted_through, Some(gap))
        };
        match since {
            Since::Now => (self.seq, None),
            // Evicted messages are a loss to a client that asks for the whole history, as to one that was disconnected.
            Since::Earliest => {
                let gap = |missed| Gap {
                    after: self.id(0),
                    resume: self.id(evicted_through),
                    missed,
                    why: GapReason::Evicted,
                };
                (evicted_through, channel.evicted().map(gap))
            }
            Since::Latest => (channel.before_last_unsealed().unwrap_or(evicted_through), None),
            Since::After(id) if id.epoch != self.epoch => gap(id, GapReason::Epoch),
            Since::After(id) if id.seq > self.seq => gap(id, GapReason::Future),
            Since::After(id) if id.seq < evicted_through => gap(id, GapReason::Evicted),
            Since::After(id) => (id.seq, None),
        }
    }

    /// Takes a member out; a channel without members and history ends. It no longer receives the unsent messages of the
    /// channel's open batch: see [`Hub::unsent`].
    ///
    /// The last member of its place moves into the position that came free, if that is another.
    pub fn leave(&mut self, subscription: Subscription) -> Option<Moved> {
        let creator = self.channels[subscription.channel.0 as usize].creator.connection;
        if let Some(connection) = creator
            && self.subscriber_at(subscription) == creator
        {
            self.creators.add(connection);
        }
        let moved = self.channels[subscription.channel.0 as usize].leave(subscription);
        self.subscriptions -= 1;
        self.end_if_empty(subscription.channel);
        moved
    }

    /// Ends a channel for which there is no reason any more.
    pub fn end_if_empty(&mut self, id: ChannelId) {
        if self.channel(id).is_some_and(Channel::has_ended) {
            let channel = self.channels.remove(id.0 as usize);
            self.names.remove(channel.name());
            self.creators.ended(channel.creator);
            self.remember_removed(channel.shared_name(), channel.last(), channel.mark.is_written);
            if self.shrink_trigger.is_due(self.channels.len(), self.channels.capacity()) {
                self.shrink();
            }
        }
    }

    /// Remembers the last message of a channel that is removed, and forgets others if there are too many.
    fn remember_removed(&mut self, name: Rc<str>, last: u64, is_written: bool) {
        let Hub { removed, dirty_channels, .. } = self;
        // A channel that never had a message needs no entry, unless it is in the file.
        let is_known = last <= removed.max_removed_seq();
        if !is_known {
            removed.insert(name.clone(), Removed { last, is_written });
        }
        if let Some(dirty_channels) = dirty_channels
            && (is_written || !is_known)
        {
            dirty_channels.note_removed(name);
        }
        while let Some((name, Removed { is_written, .. })) = removed.forget_over_limit() {
            if let Some(dirty_channels) = dirty_channels {
                dirty_channels.note_forgotten(name, is_written);
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

    /// Returns true if it has live subscribers that may subscribe to other channels, and so receive the messages of all
    /// of them in the log's order.
    fn is_in_order(&self, channel: ChannelId) -> bool {
        self.channel(channel).is_some_and(|channel| !channel.live(Form::Envelope).is_empty())
    }

    /// Returns the messages of the open batches of its channels that a subscriber has yet to receive, in the log's
    /// order.
    ///
    /// It has to receive them before it leaves, and before a notice that has a cursor. They are encoded for that
    /// subscriber alone, which, for a few messages, is less work than a fan-out of the batches to all.
    pub fn unsent(&self, subscriber: SlotId, subscriptions: &[Subscription]) -> Unsent {
        let mut order = Vec::new();
        let (mut bytes, mut form) = (0, Form::Envelope);
        for subscription in subscriptions {
            let (Some(channel), SubscriptionState::Live(live)) =
                (self.channel(subscription.channel), subscription.place)
            else {
                continue;
            };
            if !channel.has_batch() {
                continue;
            }
            form = live;
            for index in channel.unsent(subscriber) {
                let message = channel.open_message(self.epoch, index);
                bytes += message.payload.len() + history::MESSAGE_BYTES;
                if bytes > UNSENT_BYTES_MAX || self.early + order.len() >= UNSENT_MESSAGES_MAX {
                    return Unsent::TooMuch;
                }
                order.push((message.id.seq, message));
            }
        }
        if order.is_empty() {
            return Unsent::Nothing;
        }
        order.sort_unstable_by_key(|(seq, _)| *seq);
        let piece = form.piece(|out| order.iter().for_each(|(_, message)| message.append_as(form, out)));
        Unsent::Delivery(Delivery { frames: Slices::Whole(Rc::new(piece)), messages: order.len() as u32 })
    }

    /// Records that a subscriber was sent the portion that [`Hub::unsent`] returned.
    pub fn mark_sent(&mut self, subscriber: SlotId, subscriptions: &[Subscription], messages: u32) {
        self.early += messages as usize;
        for subscription in subscriptions {
            if let (Some(channel), SubscriptionState::Live(form)) =
                (self.channels.get_mut(subscription.channel.0 as usize), subscription.place)
            {
                channel.mark_sent(form, subscriber);
            }
        }
    }

    /// Frames a message into its channel's batch.
    ///
    /// `subscription` is the sender's, where it is a member of the channel.
    pub fn publish(
        &mut self,
        id: ChannelId,
        kind: Kind,
        payload: &[u8],
        sender: Sender,
        subscription: Option<Subscription>,
    ) -> Published {
        self.seq += 1;
        let echo_excluded_by = subscription.filter(|subscription| !subscription.echo);
        let channel = &mut self.channels[id.0 as usize];
        if channel.publish(self.seq, kind, payload, sender, echo_excluded_by) {
            self.open_batches.push(id);
        }
        Published { id: self.id(self.seq), subscribers: self.channels[id.0 as usize].subscribers() }
    }

    /// Finds the message that was published under a key before.
    pub fn find_duplicate(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        now: LoopTime,
    ) -> Option<Duplicate> {
        Some(match self.idempotency.find(key, kind, payload, now)? {
            Known::Same(seq) => {
                let subscribers = self.info(key.channel).subscribers;
                Duplicate::Same(Published { id: self.id(seq), subscribers })
            }
            Known::Other => Duplicate::OtherPayload,
        })
    }

    /// A message was published under a key.
    pub fn record_key(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        message: MessageId,
        now: LoopTime,
    ) {
        self.idempotency.keep(key, kind, payload, message.seq, now);
    }

    /// One channel in which something was published this turn and not yet handed out.
    pub fn next_open_batch(&mut self) -> Option<ChannelId> {
        self.open_batches.pop()
    }

    /// Ends the channel's batch: who gets it, and what it is. `None` if there is nothing in it.
    pub fn finish_batch(&mut self, id: ChannelId, now: LoopTime) -> Option<(&Channel, FinishedBatch)> {
        self.finish_batch_as(id, false, now)
    }

    fn finish_batch_as(
        &mut self,
        id: ChannelId,
        merges: bool,
        now: LoopTime,
    ) -> Option<(&Channel, FinishedBatch)> {
        let channel = self.channels.get_mut(id.0 as usize)?;
        let before = HistoryUsage::of(channel);
        let sealed = channel.finish_batch(self.epoch, &self.history, merges, now)?;
        self.account(id, before);
        if let Some(dirty_channels) = &mut self.dirty_channels {
            dirty_channels.note(id);
        }
        self.keep_to_total(Some(id));
        Some((&self.channels[id.0 as usize], sealed))
    }

    /// Lets go of what is too much for all channels together; one of them stays, with or without history.
    fn keep_to_total(&mut self, spared: Option<ChannelId>) {
        while self.kept.bytes > self.history.total_bytes_max
            && let Some(largest) = self.classes.largest()
        {
            self.change_history(largest, |channel| channel.history.evict_oldest());
            if Some(largest) != spared {
                self.end_if_empty(largest);
            }
        }
    }

    /// Evicts the oldest messages of the largest histories, up to a number of bytes or of messages. Returns the number
    /// of evicted messages. No batch may be open.
    pub fn evict(&mut self, bytes: usize, messages_max: usize) -> usize {
        let before = self.kept;
        let enough = before.bytes.saturating_sub(bytes);
        while self.kept.bytes > enough
            && before.messages - self.kept.messages < messages_max
            && let Some(largest) = self.classes.largest()
        {
            self.change_history(largest, |channel| channel.history.evict_oldest());
            self.end_if_empty(largest);
        }
        before.messages - self.kept.messages
    }

    /// Is there anything that will be too old at some time?
    pub fn grows_old(&self) -> bool {
        self.kept.messages > 0 || !self.idempotency.is_empty()
    }

    /// Lets go of what is older than it may be, in some of the channels.
    pub fn expire(&mut self, keys: Range<usize>, now: LoopTime) {
        self.idempotency.expire(now);
        for key in keys {
            if self.channels.contains(key) {
                let id = ChannelId(key as u32);
                self.expire_channel(id, now);
                self.end_if_empty(id);
            }
        }
    }

    /// One more than the highest place that a channel has in the table.
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

    fn expire_channel(&mut self, id: ChannelId, now: LoopTime) {
        let age_ms = self.history.age_ms;
        self.change_history(id, |channel| channel.history.expire(age_ms, now));
    }

    fn change_history(&mut self, id: ChannelId, change: impl FnOnce(&mut Channel)) {
        let channel = &mut self.channels[id.0 as usize];
        let before = HistoryUsage::of(channel);
        change(channel);
        if let Some(dirty_channels) = &mut self.dirty_channels
            && channel.history.len() != before.messages
        {
            dirty_channels.note(id);
        }
        self.account(id, before);
    }

    /// Brings the totals and the classes up to date after a history has changed.
    fn account(&mut self, id: ChannelId, before: HistoryUsage) {
        let channel = &mut self.channels[id.0 as usize];
        let (after, bytes) = (HistoryUsage::of(channel), channel.history.bytes());
        self.kept.messages = self.kept.messages + after.messages - before.messages;
        self.kept.bytes = self.kept.bytes + after.bytes - before.bytes;
        if SizeClasses::is_due(channel.rank, bytes) {
            let (rank, shifted) = self.classes.rank(id, channel.rank, bytes);
            channel.rank = rank;
            if let Some(Shifted { channel, rank }) = shifted {
                self.channels[channel.0 as usize].rank = rank;
            }
        }
    }

    /// A member could not take a batch. It gets it, and what follows, from the history when it takes
    /// bytes again. The batch is sealed, and no other is open.
    pub fn start_catching_up(
        &mut self,
        subscriber: SlotId,
        subscription: Subscription,
        before: BatchStart,
    ) -> (Subscription, Option<Moved>) {
        let SubscriptionState::Live(form) = subscription.place else { return (subscription, None) };
        let channel = &mut self.channels[subscription.channel.0 as usize];
        let moved = channel.leave(subscription);
        let replay = Replay {
            subscriber,
            form,
            cursor: before.seq,
            next_number: Some(before.number),
            why: GapReason::Slow,
            takes_what_is_kept: false,
            waits_since: None,
        };
        channel.replaying.push(replay);
        let position = (channel.replaying.len() - 1) as u32;
        (Subscription { position, place: SubscriptionState::CatchingUp, ..subscription }, moved)
    }

    /// What is told of a channel; of one that is not there, that it is empty.
    pub fn info(&self, name: &str) -> ChannelInfo {
        let empty = ChannelInfo { evicted_through: self.removed.last(name), ..ChannelInfo::default() };
        let channel = self.find(name).and_then(|id| self.channel(id));
        channel.map_or(empty, Channel::info)
    }

    /// The channels whose names begin with `prefix`, in the order of their names, from some name on.
    pub fn channels_from<'a>(
        &'a self,
        prefix: &'a str,
        from: Bound<&str>,
    ) -> impl Iterator<Item = (&'a str, ChannelId)> {
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
        let mut kept = HistoryUsage::default();
        for (_, channel) in &self.channels {
            assert!(!channel.has_batch(), "{} was not handed out", channel.name());
            assert_eq!(channel.group, channel::NO_GROUP, "{} is in no hand-out", channel.name());
            assert!(!channel.has_ended(), "{} is over", channel.name());
            let one = HistoryUsage::of(channel);
            kept.messages += one.messages;
            kept.bytes += one.bytes;
        }
        assert_eq!(kept, self.kept);
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
