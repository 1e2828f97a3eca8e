//! One channel: its subscribers, the message batch of the turn, and its history.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::compression::{BatchCompression, ChannelContext, CompressedBatch};
use super::creators::Creator;
use super::epochs::{EpochStart, Epochs};
use super::eviction::SizeRank;
use super::history::{BatchEntry, History};
use super::subscriptions::{Moved, Subscription, SubscriptionState};
use crate::config::HistoryLimits;
use crate::ids::{GapReason, Sender, SlotId};
use crate::time::LoopTime;
use crate::wire::Frames;
use crate::wire::deflate::{Deflater, Encoding, WindowEnd};
use crate::wire::{self, Form, Kind, Message};

/// The value of [`Channel::group`] while no batches are fanned out.
pub(super) const NO_GROUP: u32 = u32::MAX;

/// A channel, which has subscribers or history.
#[derive(Debug)]
pub struct Channel {
    name: Rc<str>,
    /// The live subscribers by form, which are sent each finished batch.
    live: [Vec<SlotId>; Form::COUNT],
    /// The subscribers that are sent the history.
    pub(super) catching_up: Vec<Replay>,
    batch: Batch,
    pub(super) history: History,
    /// The number of its last message; they are counted from 1.
    messages: u64,
    /// Its last message in the log.
    last: u64,
    /// A channel of this name had messages and was removed; their number is not known.
    pub(super) had_predecessor: bool,
    /// Its index in the group of batches that are being fanned out, or [`NO_GROUP`].
    pub(super) group: u32,
    /// Its class by the size of its history.
    pub(super) rank: SizeRank,
    /// The last messages that were compressed for its live subscribers.
    pub(super) context: Option<Box<ChannelContext>>,
    /// Its creator.
    pub(super) creator: Creator,
    /// How much of it is in the history file.
    pub(super) persisted: PersistState,
}

/// How much of a channel is in the history file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PersistState {
    /// The last written message.
    pub(super) written: u64,
    /// The file has a row of this channel.
    pub(super) is_written: bool,
}

/// A subscriber that is catching up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    pub(super) subscriber: SlotId,
    pub(super) form: Form,
    /// The last message in the log that it was sent, or that precedes its subscription.
    pub(super) cursor: u64,
    /// The number of the next message, once that is known.
    pub(super) next_number: Option<u64>,
    /// The reason of the gap if messages are evicted before it reaches them.
    pub(super) why: GapReason,
    /// It begins with the oldest stored message, and its protocol has no notice for evicted ones.
    pub(super) ignores_evicted: bool,
    /// When it began to wait for the memory of its next message.
    pub(super) waits_since: Option<LoopTime>,
}

/// The public state of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The number of its subscribers.
    pub subscribers: usize,
    /// Its last message in the log; `None` before its first.
    pub head: Option<u64>,
    /// The last evicted message.
    pub evicted_through: u64,
    /// The number of stored messages.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The messages that were published since the last batch was finished, as frames one after the other.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<u8>,
    entries: Vec<BatchEntry>,
    exclusions: Vec<Exclusion>,
}

impl Batch {
    /// Records messages that a subscriber is not sent.
    fn exclude(&mut self, form: Form, subscriber: SlotId, messages: Range<usize>) {
        let (first, end) = (messages.start as u32, messages.end as u32);
        match self.exclusions.last_mut() {
            Some(last) if last.subscriber == subscriber && last.first <= first && first <= last.end => {
                last.end = last.end.max(end);
            }
            _ if first < end => self.exclusions.push(Exclusion { form, subscriber, first, end }),
            _ => {}
        }
    }
}

/// Messages of a batch that a subscriber is not sent: its own (`?echo=0`), those from before it subscribed, and those
/// that it was sent before the others.
///
/// The subscriber is identified by its slot: when the batch is finished, it may have another position, or none.
#[derive(Clone, Copy, Debug)]
struct Exclusion {
    form: Form,
    subscriber: SlotId,
    first: u32,
    end: u32,
}

impl Exclusion {
    fn key(&self) -> (u32, u32) {
        (self.subscriber.key, self.subscriber.generation)
    }
}

/// A batch that is complete.
#[derive(Debug)]
pub struct FinishedBatch {
    forms: [Option<Encoded>; Form::COUNT],
    name: Rc<str>,
    /// The epoch of all of its messages.
    epoch: EpochStart,
    /// The number of its first message in the channel.
    number: u64,
    /// Its messages as raw frames.
    raw: Frames,
    entries: Vec<BatchEntry>,
    /// By subscriber, and for each in the order of the messages.
    exclusions: Vec<Exclusion>,
    pub(super) compression: BatchCompression,
}

/// The position at which a subscriber's part of a batch begins.
#[derive(Clone, Copy, Debug)]
pub struct BatchStart {
    /// The number in the log before its first message.
    pub(super) seq: u64,
    /// The number of its first message in the channel.
    pub(super) number: u64,
}

/// A batch in one form, shared by all its subscribers.
#[derive(Debug)]
struct Encoded {
    frames: Frames,
    /// The ends of its messages; empty if all subscribers are sent the whole batch.
    ends: Vec<u32>,
    /// At least one subscriber is not sent all of it.
    is_cut: bool,
}

/// The messages of a batch for one subscriber.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The frames.
    pub frames: Slices,
    /// The number of messages in them.
    pub messages: u32,
}

/// The frames of a delivery.
#[derive(Clone, Debug)]
pub enum Slices {
    /// One piece.
    Whole(Frames),
    /// Several, in order.
    Ranges(Rc<[Frames]>),
    /// One piece of compressed frames.
    Compressed(Rc<CompressedBatch>),
}

impl Slices {
    /// The pieces in order.
    pub fn as_slice(&self) -> &[Frames] {
        match self {
            Slices::Whole(frames) => std::slice::from_ref(frames),
            Slices::Ranges(ranges) => ranges,
            Slices::Compressed(batch) => std::slice::from_ref(&batch.deflated.frames),
        }
    }

    /// Pieces from a list; `None` if the list is empty.
    pub(super) fn from_list(mut list: Vec<Frames>) -> Option<Slices> {
        match list.len() {
            0 => None,
            1 => list.pop().map(Slices::Whole),
            _ => Some(Slices::Ranges(list.into())),
        }
    }
}

impl Channel {
    pub(super) fn new(name: Rc<str>, evicted_through: u64) -> Channel {
        Channel {
            name,
            live: Default::default(),
            catching_up: Vec::new(),
            batch: Batch::default(),
            history: History::new(evicted_through),
            messages: 0,
            last: evicted_through,
            had_predecessor: false,
            group: NO_GROUP,
            rank: SizeRank::default(),
            context: None,
            creator: Creator::default(),
            persisted: PersistState::default(),
        }
    }

    /// A channel of the history file, without its history, which begins after `evicted_through`.
    pub(super) fn restored(name: Rc<str>, messages: u64, last: u64, evicted_through: u64) -> Channel {
        Channel { messages, last, ..Channel::new(name, evicted_through) }
    }

    pub(super) fn shared_name(&self) -> Rc<str> {
        self.name.clone()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The live subscribers of one form.
    pub fn live(&self, form: Form) -> &[SlotId] {
        &self.live[form.index()]
    }

    /// Returns true if it has live subscribers over WebSockets, which may receive compressed messages.
    pub(super) fn has_live_web_sockets(&self) -> bool {
        [Form::Raw, Form::Envelope].iter().any(|form| !self.live(*form).is_empty())
    }

    /// The number of its subscribers.
    pub fn subscribers(&self) -> usize {
        self.live.iter().map(Vec::len).sum::<usize>() + self.catching_up.len()
    }

    /// The number in the log of its last message, or `evicted_through` before its first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The number of messages that were published in it.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Returns the number of its evicted messages, if there are any; `Some(None)` if the number is not known.
    pub(super) fn evicted(&self) -> Option<Option<u64>> {
        let evicted = self.first_number() - 1;
        (self.had_predecessor || evicted > 0).then_some(Some(evicted).filter(|_| !self.had_predecessor))
    }

    /// The channel as the API reports it.
    pub fn info(&self) -> ChannelInfo {
        ChannelInfo {
            subscribers: self.subscribers(),
            head: (self.messages > 0).then_some(self.last),
            evicted_through: self.history.evicted_through(),
            messages: self.history.len(),
            bytes: self.history.bytes(),
        }
    }

    /// The number of the first stored message; of the next message if none is stored.
    pub(super) fn first_number(&self) -> u64 {
        self.messages + 1 - (self.history.len() + self.batch.entries.len()) as u64
    }

    /// Returns true if it has no subscribers, no history and no open batch.
    pub(super) fn is_unused(&self) -> bool {
        self.subscribers() == 0 && self.history.len() == 0 && self.batch.entries.is_empty()
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.batch.entries.is_empty()
    }

    pub(super) fn add_live(&mut self, form: Form, subscriber: SlotId) -> u32 {
        // It does not receive messages from before its subscription.
        self.batch.exclude(form, subscriber, 0..self.batch.entries.len());
        let subscribers = &mut self.live[form.index()];
        subscribers.push(subscriber);
        (subscribers.len() - 1) as u32
    }

    pub(super) fn remove_subscriber(&mut self, subscription: Subscription) -> Option<Moved> {
        let position = subscription.position as usize;
        let moved = match subscription.state {
            SubscriptionState::Live(form) => {
                let subscribers = &mut self.live[form.index()];
                subscribers.swap_remove(position);
                subscribers.get(position).copied()
            }
            SubscriptionState::CatchingUp => {
                self.catching_up.swap_remove(position);
                self.catching_up.get(position).map(|replay| replay.subscriber)
            }
        };
        moved.map(|subscriber| Moved {
            subscriber,
            channel: subscription.channel,
            position: subscription.position,
        })
    }

    /// The subscriber at a position.
    pub(super) fn subscriber_at(&self, state: SubscriptionState, position: u32) -> Option<SlotId> {
        match state {
            SubscriptionState::Live(form) => self.live[form.index()].get(position as usize).copied(),
            SubscriptionState::CatchingUp => {
                self.catching_up.get(position as usize).map(|replay| replay.subscriber)
            }
        }
    }

    /// Frames one message; returns true if it is the first of its batch.
    pub(super) fn publish(
        &mut self,
        seq: u64,
        kind: Kind,
        payload: &[u8],
        sender: Sender,
        echo_excluded_by: Option<Subscription>,
    ) -> bool {
        if let Some(Subscription { state: state @ SubscriptionState::Live(form), position, .. }) =
            echo_excluded_by
            && let Some(subscriber) = self.subscriber_at(state, position)
        {
            let message = self.batch.entries.len();
            self.batch.exclude(form, subscriber, message..message + 1);
        }
        let Batch { frames, entries, .. } = &mut self.batch;
        wire::append_message(frames, kind, payload);
        entries.push(BatchEntry { end: frames.len() as u32, seq, kind, sender });
        self.messages += 1;
        self.last = seq;
        entries.len() == 1
    }

    /// The messages of the open batch that a live subscriber has yet to be sent.
    pub(super) fn unsent(&self, subscriber: SlotId) -> impl Iterator<Item = usize> {
        let own = self.batch.exclusions.iter().filter(move |one| one.subscriber == subscriber);
        let mut skipped: Vec<(u32, u32)> = own.map(|one| (one.first, one.end)).collect();
        skipped.sort_unstable();
        let mut at = 0;
        (0..self.batch.entries.len()).filter(move |&message| {
            while skipped.get(at).is_some_and(|&(_, end)| end as usize <= message) {
                at += 1;
            }
            skipped.get(at).is_none_or(|&(first, _)| message < first as usize)
        })
    }

    /// A live subscriber was sent all of the open batch that it is to be sent.
    pub(super) fn mark_sent(&mut self, form: Form, subscriber: SlotId) {
        self.batch.exclude(form, subscriber, 0..self.batch.entries.len());
    }

    /// A message of the open batch, and its index in the log.
    pub(super) fn open_message(&self, epoch: EpochStart, index: usize) -> (u64, Message<'_>) {
        let Batch { frames, entries, .. } = &self.batch;
        let BatchEntry { end, seq, kind, ref sender } = entries[index];
        let start = index.checked_sub(1).map_or(0, |before| entries[before].end);
        let message = Message {
            channel: &self.name,
            id: epoch.id(seq),
            number: self.messages - (entries.len() - index - 1) as u64,
            sender,
            kind,
            payload: wire::payload_of(&frames[start as usize..end as usize]),
        };
        (seq, message)
    }

    /// The last message before the last one of the open batch, if that has one.
    pub(super) fn before_last(&self) -> Option<u64> {
        let stored = |from_last: usize| {
            let index = self.history.len().checked_sub(from_last)?;
            self.history.get(index).map(|stored| stored.seq)
        };
        match self.batch.entries.as_slice() {
            [] => stored(2),
            [_] => stored(1),
            [.., before, _] => Some(before.seq),
        }
    }

    /// Finishes the batch, and stores as much of it as the history's limits allow. It may be merged with others if
    /// `merges`.
    pub(super) fn finish_batch(
        &mut self,
        epoch: EpochStart,
        limits: &HistoryLimits,
        merges: bool,
        now: LoopTime,
    ) -> Option<FinishedBatch> {
        if !self.has_batch() {
            return None;
        }
        let Batch { mut frames, entries, mut exclusions } = std::mem::take(&mut self.batch);
        let stores = limits.messages_max > 0;
        if stores {
            // The spare capacity of the batch would be stored with it.
            frames.shrink_to_fit();
        }
        let raw: Frames = Rc::new(Bytes::from(frames));
        let number = self.messages + 1 - entries.len() as u64;
        exclusions.sort_by_key(|one| (one.key(), one.first));
        if stores {
            self.history.append(&raw, &entries, limits, now);
        } else {
            self.history = History::new(self.last);
        }
        let name = self.name.clone();
        let compression = BatchCompression::after(self.context.take());
        let forms = Default::default();
        let mut finished =
            FinishedBatch { forms, name, epoch, number, raw, entries, exclusions, compression };
        for form in Form::ALL {
            if !self.live[form.index()].is_empty() {
                finished.forms[form.index()] = Some(finished.encode(form, merges));
            }
        }
        Some(finished)
    }

    /// Moves a subscriber that is catching up to a message of the history, by the cursor before it and its index.
    pub(super) fn advance_replay(&mut self, subscription: Subscription, cursor: u64, index: usize) {
        let next_number = self.first_number() + index as u64;
        let replay = &mut self.catching_up[subscription.position as usize];
        (replay.cursor, replay.next_number, replay.waits_since) = (cursor, Some(next_number), None);
    }

    /// A stored message with its metadata, and its index in the log.
    pub(super) fn message(&self, epochs: &Epochs, index: usize) -> Option<(u64, Message<'_>)> {
        let stored = self.history.get(index)?;
        let message = Message {
            channel: &self.name,
            id: epochs.id(stored.seq),
            number: self.first_number() + index as u64,
            sender: &stored.sender,
            kind: stored.kind,
            payload: stored.payload(),
        };
        Some((stored.seq, message))
    }
}

impl FinishedBatch {
    fn encode(&self, form: Form, merges: bool) -> Encoded {
        let is_cut = self.exclusions.iter().any(|one| one.form == form);
        let wants_ends = is_cut || (merges && form == Form::Envelope);
        if form == Form::Raw {
            let ends = if wants_ends { self.entries.iter().map(|entry| entry.end).collect() } else { vec![] };
            return Encoded { frames: self.raw.clone(), ends, is_cut };
        }
        let mut out = form.begin(self.raw.len() + 128 * self.entries.len());
        let mut ends = Vec::new();
        for message in 0..self.entries.len() {
            self.message(message).append_as(form, &mut out);
            if wants_ends {
                ends.push(out.len() as u32);
            }
        }
        Encoded { frames: Rc::new(form.finish(out)), ends, is_cut }
    }

    fn message(&self, index: usize) -> Message<'_> {
        let BatchEntry { end, seq, kind, ref sender } = self.entries[index];
        let start = index.checked_sub(1).map_or(0, |before| self.entries[before].end);
        Message {
            channel: &self.name,
            id: self.epoch.id(seq),
            number: self.number + index as u64,
            sender,
            kind,
            payload: wire::payload_of(&self.raw[start as usize..end as usize]),
        }
    }

    /// The messages for a subscriber: usually the whole batch, without those that the subscriber skips. `None` if no
    /// message is left.
    pub fn delivery(&self, form: Form, subscriber: SlotId) -> Option<Delivery> {
        let encoded = self.forms[form.index()].as_ref()?;
        if !encoded.is_cut || self.gets_all(subscriber) {
            let messages = self.entries.len() as u32;
            return Some(Delivery { frames: Slices::Whole(encoded.frames.clone()), messages });
        }
        let received = self.received_ranges(subscriber);
        let messages = received.iter().map(|range| range.len() as u32).sum();
        let frames = match form {
            Form::Raw | Form::Envelope => {
                let ranges = received.into_iter().map(|range| encoded.slice(range)).collect();
                Slices::from_list(ranges)?
            }
            // A chunk of the transfer coding cannot be cut.
            Form::Event | Form::EventUntilClose | Form::EnvelopeEvent | Form::EnvelopeEventUntilClose => {
                let mut messages = received.into_iter().flatten().peekable();
                messages.peek()?;
                let piece = form.piece(|out| messages.for_each(|one| self.message(one).append_as(form, out)));
                Slices::Whole(Rc::new(piece))
            }
        };
        Some(Delivery { frames, messages })
    }

    /// The messages for a subscriber, in the encoding of its connection. One that is not sent the whole batch receives
    /// plain frames: its window then ends with another message than those of the others.
    pub fn encoded_delivery(
        &mut self,
        form: Form,
        subscriber: SlotId,
        encoding: Encoding,
        subscribers: usize,
        deflater: &mut Deflater,
    ) -> Option<Delivery> {
        let delivery = self.delivery(form, subscriber)?;
        let Slices::Whole(plain) = &delivery.frames else { return Some(delivery) };
        if encoding == Encoding::Plain || delivery.messages as usize != self.entries.len() {
            return Some(delivery);
        }
        match self.compression.encode(form, plain, encoding, subscribers, deflater) {
            Some(batch) => Some(Delivery { frames: Slices::Compressed(batch), ..delivery }),
            None => Some(delivery),
        }
    }

    /// Returns the number in the log of the last message that is compressed in the form of `oyez.v1`, and the window that
    /// ends with it.
    pub(super) fn last_compressed_envelope(&mut self, deflater: &mut Deflater) -> Option<(u64, WindowEnd)> {
        let plain = &self.forms[Form::Envelope.index()].as_ref()?.frames;
        let (index, window) = self.compression.last(Form::Envelope, plain, deflater)?;
        Some((self.entries[index].seq, window))
    }

    /// The windows of some subscribers of `oyez.v1` end with the messages after this one in the log, and nothing before
    /// them.
    pub(super) fn start_context_after(&mut self, seq: u64) {
        let start = self.entries.partition_point(|entry| entry.seq <= seq);
        self.compression.start_context_at(Form::Envelope, start);
    }

    /// Returns the context of its channel after the batch.
    pub(super) fn into_context(
        self,
        bytes_per_subscriber: usize,
        deflater: &Deflater,
    ) -> Option<Box<ChannelContext>> {
        let FinishedBatch { forms, compression, .. } = self;
        let plain = |form: Form| forms[form.index()].as_ref().map(|encoded| &encoded.frames);
        compression.into_context(plain, bytes_per_subscriber, deflater)
    }

    /// Returns true if this is a batch of that channel.
    pub(super) fn is_of(&self, channel: &Channel) -> bool {
        Rc::ptr_eq(&self.name, &channel.name)
    }

    /// The messages that a subscriber is sent, as ranges.
    pub(super) fn received_ranges(&self, subscriber: SlotId) -> Vec<Range<usize>> {
        let mut received = Vec::new();
        let mut from = 0;
        for one in self.exclusions_of(subscriber) {
            if from < one.first {
                received.push(from as usize..one.first as usize);
            }
            from = from.max(one.end);
        }
        if (from as usize) < self.entries.len() {
            received.push(from as usize..self.entries.len());
        }
        received
    }

    fn exclusions_of(&self, subscriber: SlotId) -> impl Iterator<Item = &Exclusion> {
        let key = (subscriber.key, subscriber.generation);
        let first = self.exclusions.partition_point(|one| one.key() < key);
        self.exclusions[first..].iter().take_while(move |one| one.key() == key)
    }

    /// Returns true if the subscriber is sent the whole batch.
    pub(super) fn gets_all(&self, subscriber: SlotId) -> bool {
        self.exclusions_of(subscriber).next().is_none()
    }

    /// The position before the first message for a subscriber, for one whose outbox had no room.
    pub fn start_for(&self, subscriber: SlotId) -> BatchStart {
        let first = self.received_ranges(subscriber).first().map_or(self.entries.len(), |range| range.start);
        let seq = match first.checked_sub(1) {
            Some(before) => self.entries[before].seq,
            None => self.entries[0].seq - 1,
        };
        BatchStart { seq, number: self.number + first as u64 }
    }

    /// Returns the number of its messages.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn seq(&self, message: usize) -> u64 {
        self.entries[message].seq
    }

    /// A range of messages in the form of `oyez.v1`, of a batch that was finished to be merged.
    pub(super) fn envelopes(&self, messages: Range<usize>) -> Option<Frames> {
        let encoded = self.forms[Form::Envelope.index()].as_ref()?;
        Some(encoded.slice(messages))
    }
}

impl Encoded {
    fn slice(&self, messages: Range<usize>) -> Frames {
        if messages.len() == self.ends.len() {
            return self.frames.clone();
        }
        let start = messages.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends[messages.end - 1];
        Rc::new(self.frames.slice(start as usize..end as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChannelId;

    const LIMITS: HistoryLimits =
        HistoryLimits { messages_max: 0, bytes_max: 1, age_ms: 1, total_bytes_max: 1 };

    fn subscriber(key: u32) -> SlotId {
        SlotId { key, generation: 0 }
    }

    fn channel_of(subscribers: u32) -> Channel {
        let mut channel = Channel::new("x".into(), 0);
        for key in 0..subscribers {
            assert_eq!(channel.add_live(Form::Raw, subscriber(key)), key);
        }
        channel
    }

    fn publish(channel: &mut Channel, payload: &[u8], echo_excluded_by: Option<u32>) -> bool {
        let subscription =
            echo_excluded_by.map(|position| Subscription::live(ChannelId(0), Form::Raw, position, false));
        channel.publish(channel.last + 1, Kind::Text, payload, Sender::default(), subscription)
    }

    fn finish_batch(channel: &mut Channel) -> Option<FinishedBatch> {
        channel.finish_batch(Epochs::new(7).current(), &LIMITS, false, LoopTime::from_millis(0))
    }

    fn text(delivery: Option<Delivery>) -> Option<(Vec<u8>, u32)> {
        delivery.map(|delivery| {
            let bytes: Vec<&[u8]> = delivery.frames.as_slice().iter().map(|frames| &frames[..]).collect();
            (bytes.concat(), delivery.messages)
        })
    }

    #[test]
    fn batch_memory_is_shared_by_all_subscribers() {
        let mut channel = channel_of(2);
        assert!(publish(&mut channel, b"a", None));
        assert!(!publish(&mut channel, b"b", None));
        let finished = finish_batch(&mut channel).unwrap();
        let (one, two) = (
            finished.delivery(Form::Raw, subscriber(0)).unwrap(),
            finished.delivery(Form::Raw, subscriber(1)).unwrap(),
        );
        let (Slices::Whole(one), Slices::Whole(two)) = (one.frames, two.frames) else {
            panic!("both are sent the whole batch")
        };
        assert!(Rc::ptr_eq(&one, &two));
        assert_eq!(one[..], [0x81, 1, b'a', 0x81, 1, b'b']);
        assert!(finish_batch(&mut channel).is_none());
    }

    #[test]
    fn batch_is_encoded_only_in_forms_with_subscribers() {
        let mut channel = channel_of(1);
        publish(&mut channel, b"a", None);
        let finished = finish_batch(&mut channel).unwrap();
        assert!(
            finished.delivery(Form::Envelope, subscriber(9)).is_none()
                && finished.delivery(Form::Event, subscriber(8)).is_none()
        );
        channel.add_live(Form::Envelope, subscriber(9));
        channel.add_live(Form::Event, subscriber(8));
        publish(&mut channel, b"b", None);
        publish(&mut channel, b"c", None);
        let finished = finish_batch(&mut channel).unwrap();
        let (events, messages) = text(finished.delivery(Form::Event, subscriber(8))).unwrap();
        assert_eq!(
            String::from_utf8(events).unwrap(),
            "22\r\nid: 7-2\ndata: b\n\nid: 7-3\ndata: c\n\n\r\n",
            "one chunk for the batch"
        );
        assert_eq!(messages, 2);
        let (frames, _) = text(finished.delivery(Form::Envelope, subscriber(9))).unwrap();
        let expected = [&b"\x81\x29"[..], br#"{"ch":"x","id":"7-2","n":2,"text":"b"}"#].concat();
        assert_eq!(frames[2..2 + expected.len() - 2], expected[2..]);
    }

    #[test]
    fn subscriber_without_echo_is_not_sent_its_own_messages() {
        let mut channel = channel_of(3);
        publish(&mut channel, b"a", Some(2));
        publish(&mut channel, b"b", Some(0));
        publish(&mut channel, b"c", Some(2));
        publish(&mut channel, b"d", None);
        let finished = finish_batch(&mut channel).unwrap();
        let delivery = |key| text(finished.delivery(Form::Raw, subscriber(key)));
        assert_eq!(delivery(0), Some((b"\x81\x01a\x81\x01c\x81\x01d".to_vec(), 3)));
        assert_eq!(delivery(1).unwrap().1, 4);
        assert_eq!(delivery(2), Some((b"\x81\x01b\x81\x01d".to_vec(), 2)));
        let Slices::Whole(batch) = finished.delivery(Form::Raw, subscriber(1)).unwrap().frames else {
            panic!("all of it")
        };
        let batch = batch.as_ptr_range();
        for piece in finished.delivery(Form::Raw, subscriber(2)).unwrap().frames.as_slice() {
            assert!(batch.contains(&piece.as_ptr()), "a range shares the batch, and is not a copy");
        }
        publish(&mut channel, b"alone", Some(1));
        assert!(finish_batch(&mut channel).unwrap().delivery(Form::Raw, subscriber(1)).is_none());
    }

    #[test]
    fn subscriber_that_joins_within_a_batch_gets_the_rest_of_it() {
        for form in Form::ALL {
            let mut channel = channel_of(1);
            publish(&mut channel, b"a", None);
            channel.add_live(form, subscriber(7));
            publish(&mut channel, b"b", None);
            publish(&mut channel, b"c", None);
            let late = finish_batch(&mut channel).unwrap().delivery(form, subscriber(7)).unwrap();
            let mut alone = channel_of(0);
            (alone.messages, alone.last) = (1, 1);
            alone.add_live(form, subscriber(7));
            publish(&mut alone, b"b", None);
            publish(&mut alone, b"c", None);
            let alone = finish_batch(&mut alone).unwrap().delivery(form, subscriber(7));
            assert_eq!(text(Some(late)), text(alone), "{form:?}");
        }
    }

    #[test]
    fn messages_sent_early_to_a_subscriber_are_not_sent_again() {
        let mut channel = channel_of(3);
        publish(&mut channel, b"a", Some(1));
        publish(&mut channel, b"b", None);
        assert_eq!(channel.unsent(subscriber(0)).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(channel.unsent(subscriber(1)).collect::<Vec<_>>(), [1]);
        channel.mark_sent(Form::Raw, subscriber(1));
        channel.mark_sent(Form::Raw, subscriber(2));
        publish(&mut channel, b"c", Some(1));
        publish(&mut channel, b"d", None);
        assert_eq!(channel.unsent(subscriber(1)).collect::<Vec<_>>(), [3]);
        // Position 1 is taken over by the last one.
        let _ = channel.remove_subscriber(Subscription::live(ChannelId(0), Form::Raw, 1, false));
        let finished = finish_batch(&mut channel).unwrap();
        let delivery = |key| text(finished.delivery(Form::Raw, subscriber(key))).unwrap().1;
        assert_eq!((delivery(0), delivery(2)), (4, 2));
        let before = [0, 2].map(|key| finished.start_for(subscriber(key)));
        assert_eq!(before.map(|before| (before.seq, before.number)), [(0, 1), (2, 3)]);
    }

    #[test]
    fn last_subscriber_moves_into_the_freed_position() {
        let mut channel = channel_of(3);
        let at = |position| Subscription::live(ChannelId(4), Form::Raw, position, true);
        let moved =
            Moved { subscriber: SlotId { key: 2, generation: 0 }, channel: ChannelId(4), position: 0 };
        assert_eq!(channel.remove_subscriber(at(0)), Some(moved));
        assert_eq!(channel.remove_subscriber(at(1)), None);
        assert_eq!(channel.subscribers(), 1);
    }
}
