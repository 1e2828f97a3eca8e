//! Batches of several channels, merged for subscribers of more than one of them.
//!
//! An `oyez.v1` connection gets the messages of all its channels in the order of the log. So where several of its
//! channels have a batch in the same turn, it gets these as one, in that order. **Encode once**: a message is encoded
//! once for its channel, and its batches are merged once for each set of channels, however many subscribers have that
//! set.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;

use super::Hub;
use super::channel::{BatchStart, Delivery, FinishedBatch, NO_GROUP, Slices};
use super::subscriptions::{SubscriptionState, Subscriptions};
use crate::ids::{ChannelId, SlotId};
use crate::time::LoopTime;
use crate::wire::{Form, Frames};

/// Consecutive messages of one channel that have this many bytes are shared with that channel's batch; fewer are copied
/// into the merged one. A separate piece takes about 130 bytes in each outbox, and an entry in each write.
const SHARED_BYTES_MIN: usize = 4 << 10;

/// The batches of one fan-out whose subscribers may receive several of them.
#[derive(Debug, Default)]
pub struct Group {
    batches: Vec<(ChannelId, FinishedBatch)>,
    /// By the places of the batches in the group, in order.
    merged: HashMap<Box<[u32]>, Delivery>,
    /// Subscribers that received a merged batch.
    done: HashSet<SlotId>,
    places: Vec<u32>,
}

impl Hub {
    /// Begins a fan-out: ends the batches whose subscribers may receive several of them, if there are two or more. The
    /// others are found by [`Hub::next_open_batch`].
    pub fn finish_group(&mut self, now: LoopTime) -> Group {
        self.early = 0;
        let mut group = Group::default();
        let ordered_batch = self.open_batches.iter().filter(|&&id| self.is_in_order(id));
        if ordered_batch.take(2).count() < 2 {
            return group;
        }
        for id in std::mem::take(&mut self.open_batches) {
            if !self.is_in_order(id) {
                self.open_batches.push(id);
            } else if let Some((_, batch)) = self.finish_batch_as(id, true, now) {
                self.channels[id.0 as usize].group = group.push(id, batch);
            }
        }
        group
    }

    /// Ends a fan-out: dissolves the group.
    pub fn end_group(&mut self, group: &Group) {
        for id in group.channels() {
            if let Some(channel) = self.channels.get_mut(id.0 as usize) {
                channel.group = NO_GROUP;
            }
            self.end_if_empty(id);
        }
    }
}

impl Group {
    pub(super) fn push(&mut self, channel: ChannelId, batch: FinishedBatch) -> u32 {
        self.batches.push((channel, batch));
        (self.batches.len() - 1) as u32
    }

    /// The channels.
    pub fn channels(&self) -> impl Iterator<Item = ChannelId> {
        self.batches.iter().map(|(channel, _)| *channel)
    }

    /// Returns true if it has no batches.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Returns the portion of a subscriber when the batch at `place` is fanned out: nothing if the subscriber received
    /// it merged with another one.
    pub fn delivery(
        &mut self,
        hub: &Hub,
        place: usize,
        form: Form,
        subscriber: SlotId,
        subscriptions: &Subscriptions,
    ) -> Option<Delivery> {
        if !matches!(subscriptions, Subscriptions::Several(_)) {
            return self.batches[place].1.delivery(form, subscriber);
        }
        if self.done.contains(&subscriber) {
            return None;
        }
        self.find_places(hub, subscriptions);
        if self.places.len() < 2 {
            return self.batches[place].1.delivery(form, subscriber);
        }
        self.done.insert(subscriber);
        let gets_all = self.places.iter().all(|&place| self.batches[place as usize].1.gets_all(subscriber));
        if !gets_all {
            return self.merge(Some(subscriber));
        }
        if let Some(portion) = self.merged.get(&self.places[..]) {
            return Some(portion.clone());
        }
        let portion = self.merge(None)?;
        self.merged.insert(self.places.as_slice().into(), portion.clone());
        Some(portion)
    }

    /// Returns the cursors from which a subscriber continues in each of its channels in the group, if its portion did
    /// not fit.
    pub fn begins(
        &mut self,
        hub: &Hub,
        subscriber: SlotId,
        subscriptions: &Subscriptions,
    ) -> Vec<(ChannelId, BatchStart)> {
        self.find_places(hub, subscriptions);
        let batches = self.places.iter().map(|&place| &self.batches[place as usize]);
        batches.map(|(channel, batch)| (*channel, batch.before(subscriber))).collect()
    }

    /// Finds the batches of a subscriber's channels.
    fn find_places(&mut self, hub: &Hub, subscriptions: &Subscriptions) {
        let places = subscriptions.as_slice().iter().filter_map(|subscription| {
            let channel = hub.channel(subscription.channel)?;
            (matches!(subscription.place, SubscriptionState::Live(_)) && channel.group != NO_GROUP)
                .then_some(channel.group)
        });
        self.places.clear();
        self.places.extend(places);
        self.places.sort_unstable();
    }

    /// Merges the batches in `places`, for one subscriber or for all that get the whole of each.
    fn merge(&self, subscriber: Option<SlotId>) -> Option<Delivery> {
        let mut order: Vec<(u64, u32, u32)> = Vec::new();
        for &place in &self.places {
            let batch = &self.batches[place as usize].1;
            // All of it, if it is for more than one subscriber.
            let whole = subscriber.is_none().then_some(0..batch.len());
            let heard = subscriber.map(|subscriber| batch.heard(subscriber)).unwrap_or_default();
            let messages = whole.into_iter().chain(heard).flatten();
            order.extend(messages.map(|message| (batch.seq(message), place, message as u32)));
        }
        // Each batch is in order already, which makes this sort fast.
        order.sort();
        let mut pieces: Vec<Frames> = Vec::new();
        let mut copied = Vec::new();
        for run in order.chunk_by(|one, next| one.1 == next.1 && one.2 + 1 == next.2) {
            let &[(_, place, first), ..] = run else { continue };
            let messages = first as usize..first as usize + run.len();
            let frames = self.batches[place as usize].1.envelopes(messages)?;
            if frames.len() < SHARED_BYTES_MIN {
                copied.extend_from_slice(&frames);
            } else {
                if !copied.is_empty() {
                    pieces.push(Rc::new(Bytes::from(std::mem::take(&mut copied))));
                }
                pieces.push(frames);
            }
        }
        if !copied.is_empty() {
            pieces.push(Rc::new(Bytes::from(copied)));
        }
        let frames = Slices::from_list(pieces)?;
        Some(Delivery { frames, messages: order.len() as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::hub::{SubscribeOptions, Unsent};
    use crate::ids::{ChannelName, Sender, Since};
    use crate::wire::Kind;

    fn now() -> LoopTime {
        LoopTime::from_millis(0)
    }

    /// A hub with channels `0`, `1` and `2`, and subscribers of some of them.
    fn hub(subscriptions: &[&[usize]]) -> (Hub, Vec<ChannelId>, Vec<(SlotId, Subscriptions)>) {
        let mut hub = Hub::new(&Limits::default(), 7);
        let names = ["0", "1", "2"].map(|name| ChannelName::parse(name.as_bytes()).unwrap());
        let channels = names.iter().map(|name| hub.open(name).unwrap()).collect();
        let options = SubscribeOptions { form: Form::Envelope, since: Since::Now, echo: true };
        let mut subscribers = Vec::new();
        for (key, subscription) in subscriptions.iter().enumerate() {
            let subscriber = SlotId { key: key as u32, generation: 0 };
            let mut subscriptions = Subscriptions::None;
            for &channel in *subscription {
                subscriptions
                    .add(hub.subscribe(&names[channel], subscriber, options, now()).unwrap().subscription);
            }
            subscribers.push((subscriber, subscriptions));
        }
        (hub, channels, subscribers)
    }

    fn publish(hub: &mut Hub, channels: &[ChannelId], order: &[usize], length: usize) {
        for &channel in order {
            hub.publish(channels[channel], Kind::Text, &vec![b'x'; length], Sender::default(), None);
        }
    }

    /// What each subscriber gets, as pieces.
    fn fan_out(hub: &mut Hub, subscribers: &[(SlotId, Subscriptions)]) -> Vec<Vec<Delivery>> {
        let mut group = hub.finish_group(now());
        let channels: Vec<ChannelId> = group.channels().collect();
        let mut got = vec![vec![]; subscribers.len()];
        for (place, &channel) in channels.iter().enumerate() {
            for &subscriber in hub.channel(channel).unwrap().live(Form::Envelope) {
                let subscriptions = &subscribers[subscriber.key as usize].1;
                got[subscriber.key as usize].extend(group.delivery(
                    hub,
                    place,
                    Form::Envelope,
                    subscriber,
                    subscriptions,
                ));
            }
        }
        hub.end_group(&group);
        hub.open_batches.clear();
        (0..3).for_each(|key| hub.end_if_empty(ChannelId(key)));
        hub.check();
        got
    }

    /// The numbers in the log of the messages in a portion.
    fn seqs(portion: &Delivery) -> Vec<u64> {
        let bytes: Vec<u8> = portion.frames.as_slice().iter().flat_map(|frames| frames.to_vec()).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ids = text.split("\"id\":\"7-").skip(1);
        ids.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn subscribers_of_several_channels_get_one_piece_in_the_logs_order() {
        let (mut hub, channels, subscribers) = hub(&[&[0, 1], &[1, 0], &[0], &[1, 2], &[0, 1, 2]]);
        publish(&mut hub, &channels, &[0, 1, 0, 2, 1, 0, 0, 1], 10);
        let got = fan_out(&mut hub, &subscribers);
        let got: Vec<&Delivery> = got
            .iter()
            .map(|portions| match &portions[..] {
                [portion] => portion,
                other => panic!("{other:?}"),
            })
            .collect();
        let expected: [&[u64]; 5] = [
            &[1, 2, 3, 5, 6, 7, 8],
            &[1, 2, 3, 5, 6, 7, 8],
            &[1, 3, 6, 7],
            &[2, 4, 5, 8],
            &[1, 2, 3, 4, 5, 6, 7, 8],
        ];
        for (portion, expected) in got.iter().zip(expected) {
            assert_eq!(seqs(portion), expected);
            assert_eq!(portion.messages as usize, expected.len());
            assert_eq!(portion.frames.as_slice().len(), 1, "small messages are one piece");
        }
        let piece = |subscriber: usize| &got[subscriber].frames.as_slice()[0];
        assert!(Rc::ptr_eq(piece(0), piece(1)), "merged once for each set of channels, in whatever order");
        assert!(!Rc::ptr_eq(piece(0), piece(4)));
    }

    #[test]
    fn large_messages_of_merged_batches_are_shared_and_not_copied() {
        let (mut hub, channels, subscribers) = hub(&[&[0, 1], &[0, 1, 2], &[0]]);
        publish(&mut hub, &channels, &[0, 1, 0, 2], 10_000);
        let got = fan_out(&mut hub, &subscribers);
        let batch = got[2][0].frames.as_slice()[0].as_ptr_range();
        for (subscriber, pieces) in [(0, 3), (1, 4)] {
            let frames = got[subscriber][0].frames.as_slice();
            assert_eq!(frames.len(), pieces);
            assert!(batch.contains(&frames[0].as_ptr()) && batch.contains(&frames[2].as_ptr()));
        }
    }

    #[test]
    fn late_subscriber_and_one_that_was_sent_part_get_the_rest_of_all_channels() {
        let (mut hub, channels, mut subscribers) = hub(&[&[0, 1], &[0, 1], &[0]]);
        publish(&mut hub, &channels, &[0, 1], 10);
        let (subscriber, subscriptions) = &subscribers[1];
        let Unsent::Delivery(early) = hub.unsent(*subscriber, subscriptions.as_slice()) else {
            panic!("two messages")
        };
        assert_eq!(seqs(&early), [1, 2]);
        hub.mark_sent(*subscriber, subscriptions.as_slice(), early.messages);
        assert!(matches!(hub.unsent(*subscriber, subscriptions.as_slice()), Unsent::Nothing));
        publish(&mut hub, &channels, &[1, 0], 10);
        let options = SubscribeOptions { form: Form::Envelope, since: Since::Now, echo: true };
        let joined =
            hub.subscribe(&ChannelName::parse(b"1").unwrap(), subscribers[2].0, options, now()).unwrap();
        assert_eq!(joined.cursor.seq, 4);
        subscribers[2].1.add(joined.subscription);
        publish(&mut hub, &channels, &[1, 0], 10);
        let got = fan_out(&mut hub, &subscribers);
        let got: Vec<Vec<u64>> =
            got.iter().map(|portions| portions.iter().flat_map(seqs).collect()).collect();
        assert_eq!(got, [vec![1, 2, 3, 4, 5, 6], vec![3, 4, 5, 6], vec![1, 4, 5, 6]]);
    }

    #[test]
    fn much_that_is_unsent_is_handed_out_to_all() {
        let (mut hub, channels, subscribers) = hub(&[&[0, 1]]);
        let (subscriber, subscriptions) = &subscribers[0];
        publish(&mut hub, &channels, &[0, 1], 5_000);
        assert!(matches!(hub.unsent(*subscriber, subscriptions.as_slice()), Unsent::TooMuch));
        fan_out(&mut hub, &subscribers);
        for _ in 0..256 {
            publish(&mut hub, &channels, &[0], 1);
            let Unsent::Delivery(portion) = hub.unsent(*subscriber, subscriptions.as_slice()) else {
                panic!("one message")
            };
            hub.mark_sent(*subscriber, subscriptions.as_slice(), portion.messages);
        }
        publish(&mut hub, &channels, &[0], 1);
        assert!(
            matches!(hub.unsent(*subscriber, subscriptions.as_slice()), Unsent::TooMuch),
            "as many as that in one turn"
        );
        assert!(
            subscriptions
                .as_slice()
                .iter()
                .all(|subscription| matches!(subscription.place, SubscriptionState::Live(_)))
        );
    }
}
