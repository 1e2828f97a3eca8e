//! One channel: its subscribers, the open batch of the turn, and its history.

use std::rc::Rc;

use super::batch::{Batch, FinishedBatch};
use super::compression::{BatchCompression, ChannelContext};
use super::creators::Creator;
use super::epochs::{EpochStart, Epochs};
use super::history::History;
use super::size_classes::SizeRank;
use super::subscriptions::{Moved, Subscription, SubscriptionState};
use crate::config::HistoryLimits;
use crate::ids::{GapReason, Sender, SlotId};
use crate::time::LoopTime;
use crate::wire::{Form, Kind, Message};

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
    /// The last message in the log that the subscriber was sent, or that precedes its subscription.
    pub(super) cursor: u64,
    /// The number of the next message, once that is known.
    pub(super) next_number: Option<u64>,
    /// The reason of the gap if messages are evicted before the replay reaches them.
    pub(super) why: GapReason,
    /// The replay begins with the oldest stored message, and its protocol has no notice for evicted ones.
    pub(super) ignores_evicted: bool,
    /// When the replay began to wait for the memory of its next message.
    pub(super) waits_since: Option<LoopTime>,
}

/// The public state of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The number of subscribers.
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

    /// The number of subscribers.
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
        self.messages + 1 - (self.history.len() + self.batch.len()) as u64
    }

    /// Returns true if it has no subscribers, no history and no open batch.
    pub(super) fn is_unused(&self) -> bool {
        self.subscribers() == 0 && self.history.len() == 0 && self.batch.is_empty()
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.batch.is_empty()
    }

    pub(super) fn add_live(&mut self, form: Form, subscriber: SlotId) -> u32 {
        // The subscriber does not receive messages from before its subscription.
        self.batch.exclude(form, subscriber, 0..self.batch.len());
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
        log_index: u64,
        kind: Kind,
        payload: &[u8],
        sender: Sender,
        echo_excluded_by: Option<Subscription>,
    ) -> bool {
        if let Some(Subscription { state: state @ SubscriptionState::Live(form), position, .. }) =
            echo_excluded_by
            && let Some(subscriber) = self.subscriber_at(state, position)
        {
            let message = self.batch.len();
            self.batch.exclude(form, subscriber, message..message + 1);
        }
        self.messages += 1;
        self.last = log_index;
        self.batch.push(log_index, kind, payload, sender)
    }

    /// The messages of the open batch that a live subscriber has yet to be sent.
    pub(super) fn unsent(&self, subscriber: SlotId) -> impl Iterator<Item = usize> {
        self.batch.unsent(subscriber)
    }

    /// A live subscriber was sent all of the open batch that it is to be sent.
    pub(super) fn mark_sent(&mut self, form: Form, subscriber: SlotId) {
        self.batch.exclude(form, subscriber, 0..self.batch.len());
    }

    /// A message of the open batch, and its index in the log.
    pub(super) fn open_message(&self, epoch: EpochStart, index: usize) -> (u64, Message<'_>) {
        self.batch.message(index, &self.name, epoch, self.messages + 1)
    }

    /// The last message before the last one of the open batch, if that has one.
    pub(super) fn before_last(&self) -> Option<u64> {
        let stored = |from_last: usize| {
            let index = self.history.len().checked_sub(from_last)?;
            self.history.get(index).map(|stored| stored.log_index)
        };
        match self.batch.len() {
            0 => stored(2),
            1 => stored(1),
            _ => self.batch.log_index_from_end(2),
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
        let batch = std::mem::take(&mut self.batch);
        let is_stored = limits.messages_max > 0;
        let number = self.messages + 1 - batch.len() as u64;
        let compression = BatchCompression::after(self.context.take());
        let mut finished = batch.finish(self.name.clone(), epoch, number, compression, is_stored);
        if is_stored {
            let (frames, entries) = finished.stored();
            self.history.append(frames, entries, limits, now);
        } else {
            self.history = History::new(self.last);
        }
        for form in Form::ALL {
            if !self.live[form.index()].is_empty() {
                finished.encode(form, merges);
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
            id: epochs.id(stored.log_index),
            number: self.first_number() + index as u64,
            sender: &stored.sender,
            kind: stored.kind,
            payload: stored.payload(),
        };
        Some((stored.log_index, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::batch::{Delivery, Slices};
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
        assert_eq!(before.map(|before| (before.log_index, before.number)), [(0, 1), (2, 3)]);
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
