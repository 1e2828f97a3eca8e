//! Batches of several channels, merged for subscribers of more than one of them.
//!
//! An `oyez.v1` connection has one cursor for all its channels, so it must receive their messages in the order of the
//! log. If several of its channels have a batch in the same turn, it is sent these as one, in that order. **Encode
//! once**: a message is encoded once for its channel, and its batches are merged once for each set of channels, however
//! many subscribers have that set.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;

use super::Hub;
use super::batch::{BatchStart, Delivery, FinishedBatch, Slices};
use super::channel::NO_GROUP;
use super::compression::CompressedBatch;
use super::subscriptions::{SubscriptionState, Subscriptions};
use crate::ids::{ChannelId, SlotId};
use crate::time::LoopTime;
use crate::wire::deflate::{Context, Deflater, Encoding};
use crate::wire::{Form, Frames};

/// Consecutive messages of one channel that have this many bytes are shared with that channel's batch; fewer are copied
/// into the merged one. A separate piece takes about 130 bytes in each outbox, and an entry in each write.
const SHARED_BYTES_MIN: usize = 4 << 10;

/// Maximum bytes of merged batches that are compressed in one fan-out. Each set of channels has a separate merged
/// batch, so a message may be in many of them; above this limit they are sent uncompressed. 256 KiB take 5 to 10 ms.
const COMPRESSED_BYTES_MAX: usize = 256 << 10;

/// The batches of one fan-out whose subscribers may receive several of them.
#[derive(Debug, Default)]
pub struct BatchGroup {
    batches: Vec<(ChannelId, FinishedBatch)>,
    /// By the indexes of the batches in the group, in order.
    merged: HashMap<Box<[u32]>, MergedDeliveries>,
    /// Subscribers that received a merged batch.
    done: HashSet<SlotId>,
    indexes: Vec<u32>,
    /// Bytes of merged batches that were compressed.
    compressed_bytes: usize,
}

/// The same merged batch in the encodings that subscribers need.
#[derive(Debug, Default)]
struct MergedDeliveries {
    plain: Option<Delivery>,
    alone: Option<Delivery>,
    fresh: Option<Delivery>,
}

/// A subscriber that batches are fanned out to.
#[derive(Clone, Copy, Debug)]
pub struct BatchRecipient<'a> {
    /// Its connection.
    pub subscriber: SlotId,
    /// The form of its messages.
    pub form: Form,
    /// The encoding of its messages.
    pub encoding: Encoding,
    /// The number of subscribers of the channel in this form.
    pub subscribers: usize,
    /// All of its subscriptions.
    pub subscriptions: &'a Subscriptions,
}

impl Hub {
    /// Begins a fan-out: ends the batches whose subscribers may receive several of them, if there are two or more. The
    /// others are found by [`Hub::next_open_batch`].
    pub fn finish_group(&mut self, now: LoopTime) -> BatchGroup {
        self.sent_early = 0;
        let mut group = BatchGroup::default();
        let ordered_batch = self.open_batches.iter().filter(|&&id| self.needs_log_order(id));
        if ordered_batch.take(2).count() < 2 {
            return group;
        }
        for id in std::mem::take(&mut self.open_batches) {
            if !self.needs_log_order(id) {
                self.open_batches.push(id);
            } else if let Some((_, batch)) = self.finish_batch_as(id, true, now) {
                self.channels[id.0 as usize].group = group.push(id, batch);
            }
        }
        group
    }

    /// Ends a fan-out: dissolves the group.
    pub fn end_group(&mut self, group: BatchGroup, deflater: &Deflater) {
        for (id, batch) in group.batches {
            if let Some(channel) = self.channels.get_mut(id.0 as usize) {
                channel.group = NO_GROUP;
            }
            self.end_batch(id, batch, deflater);
        }
    }
}

impl BatchGroup {
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

    /// Returns the messages for a subscriber when the batch at `index` is fanned out: nothing if the subscriber
    /// received that batch merged with another one.
    pub fn delivery(
        &mut self,
        hub: &Hub,
        index: usize,
        recipient: BatchRecipient<'_>,
        deflater: &mut Deflater,
    ) -> Option<Delivery> {
        let BatchRecipient { subscriber, form, encoding, subscribers, subscriptions } = recipient;
        let batch = &mut self.batches[index].1;
        if !matches!(subscriptions, Subscriptions::Several(_)) {
            return batch.encoded_delivery(form, subscriber, encoding, subscribers, deflater);
        }
        if self.done.contains(&subscriber) {
            return None;
        }
        self.find_indexes(hub, subscriptions);
        if self.indexes.len() < 2 {
            return self.batches[index].1.encoded_delivery(form, subscriber, encoding, subscribers, deflater);
        }
        self.done.insert(subscriber);
        let gets_all = self.indexes.iter().all(|&index| self.batches[index as usize].1.gets_all(subscriber));
        if !gets_all {
            return self.merge(Some(subscriber));
        }
        let cached = self.merged.get(&self.indexes[..]).and_then(|merged| merged.get(encoding));
        if let Some(delivery) = cached {
            return Some(delivery.clone());
        }
        let plain = match self.merged.get(&self.indexes[..]).and_then(|merged| merged.plain.clone()) {
            Some(plain) => plain,
            None => self.merge(None)?,
        };
        let delivery = self.compress(&plain, encoding, deflater).unwrap_or_else(|| plain.clone());
        let merged = self.merged.entry(self.indexes.as_slice().into()).or_default();
        merged.plain = Some(plain);
        *merged.get_mut(encoding) = Some(delivery.clone());
        Some(delivery)
    }

    /// Compresses the merged batches in `indexes`, without reference to earlier messages: the windows of their
    /// subscribers end with messages of different channels. After a merged batch, a window ends with the last
    /// compressed message and the messages of its channel before it, back to the last message of another channel. A
    /// merged batch with a message of an excluded channel is sent uncompressed: the length of the other messages would
    /// depend on its text.
    fn compress(
        &mut self,
        plain: &Delivery,
        encoding: Encoding,
        deflater: &mut Deflater,
    ) -> Option<Delivery> {
        let (context, has_context) = match encoding {
            Encoding::Plain => return None,
            Encoding::Alone => (Context::Alone, false),
            Encoding::Context(_) => (Context::Fresh, true),
        };
        let (mut last, mut before) = (None, None);
        for &index in &self.indexes {
            let batch = &mut self.batches[index as usize].1;
            if batch.compression.is_excluded() {
                return None;
            }
            let candidate = batch
                .last_compressed_envelope(deflater)
                .map(|(log_index, window)| (log_index, window, index));
            before = before.max(last.min(candidate));
            last = last.max(candidate);
        }
        let (_, window, index) = last?;
        let bytes: usize = plain.frames.as_slice().iter().map(|piece| piece.len()).sum();
        if self.compressed_bytes > 0 && self.compressed_bytes + bytes > COMPRESSED_BYTES_MAX {
            return None;
        }
        self.compressed_bytes += bytes;
        let pieces = plain.frames.as_slice().iter().map(|piece| &piece[..]);
        if has_context {
            let before = before.map_or(0, |(log_index, ..)| log_index);
            self.batches[index as usize].1.start_context_after(before);
        }
        // The fastest level, since there may be as many sets of channels as subscribers.
        let deflated = deflater.compress(pieces, context, 1);
        let batch = CompressedBatch { deflated, window: has_context.then_some(window), is_in_step: false };
        Some(Delivery { frames: Slices::Compressed(Rc::new(batch)), messages: plain.messages })
    }

    /// Returns the cursors from which a subscriber continues in each of its channels in the group, if its messages did
    /// not fit.
    pub fn batch_starts(
        &mut self,
        hub: &Hub,
        subscriber: SlotId,
        subscriptions: &Subscriptions,
    ) -> Vec<(ChannelId, BatchStart)> {
        self.find_indexes(hub, subscriptions);
        let batches = self.indexes.iter().map(|&index| &self.batches[index as usize]);
        batches.map(|(channel, batch)| (*channel, batch.start_for(subscriber))).collect()
    }

    /// Finds the batches of a subscriber's channels.
    fn find_indexes(&mut self, hub: &Hub, subscriptions: &Subscriptions) {
        let indexes = subscriptions.as_slice().iter().filter_map(|subscription| {
            let channel = hub.channel(subscription.channel)?;
            (matches!(subscription.state, SubscriptionState::Live(_)) && channel.group != NO_GROUP)
                .then_some(channel.group)
        });
        self.indexes.clear();
        self.indexes.extend(indexes);
        self.indexes.sort_unstable();
    }

    /// Merges the batches in `indexes`, for one subscriber or for all that are sent the whole of each.
    fn merge(&self, subscriber: Option<SlotId>) -> Option<Delivery> {
        let mut order: Vec<(u64, u32, u32)> = Vec::new();
        for &index in &self.indexes {
            let batch = &self.batches[index as usize].1;
            // All of it, if it is for more than one subscriber.
            let whole = subscriber.is_none().then_some(0..batch.len());
            let received = subscriber.map(|subscriber| batch.received_ranges(subscriber)).unwrap_or_default();
            let messages = whole.into_iter().chain(received).flatten();
            order.extend(messages.map(|message| (batch.log_index(message), index, message as u32)));
        }
        // Each batch is in order already, which makes this sort fast.
        order.sort();
        let mut pieces: Vec<Frames> = Vec::new();
        let mut copied = Vec::new();
        for run in order.chunk_by(|one, next| one.1 == next.1 && one.2 + 1 == next.2) {
            let &[(_, index, first), ..] = run else { continue };
            let messages = first as usize..first as usize + run.len();
            let frames = self.batches[index as usize].1.envelopes(messages)?;
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

impl MergedDeliveries {
    fn get(&self, encoding: Encoding) -> Option<&Delivery> {
        match encoding {
            Encoding::Plain => self.plain.as_ref(),
            Encoding::Alone => self.alone.as_ref(),
            Encoding::Context(_) => self.fresh.as_ref(),
        }
    }

    fn get_mut(&mut self, encoding: Encoding) -> &mut Option<Delivery> {
        match encoding {
            Encoding::Plain => &mut self.plain,
            Encoding::Alone => &mut self.alone,
            Encoding::Context(_) => &mut self.fresh,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeflateSettings, Limits};
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

    /// The deliveries of each subscriber.
    fn fan_out(hub: &mut Hub, subscribers: &[(SlotId, Subscriptions)]) -> Vec<Vec<Delivery>> {
        fan_out_as(hub, subscribers, Encoding::Plain)
    }

    fn fan_out_as(
        hub: &mut Hub,
        subscribers: &[(SlotId, Subscriptions)],
        encoding: Encoding,
    ) -> Vec<Vec<Delivery>> {
        let mut deflater = Deflater::new(DeflateSettings::default());
        let mut group = hub.finish_group(now());
        let channels: Vec<ChannelId> = group.channels().collect();
        let mut got = vec![vec![]; subscribers.len()];
        for (index, &channel) in channels.iter().enumerate() {
            for &subscriber in hub.channel(channel).unwrap().live(Form::Envelope) {
                let subscriptions = &subscribers[subscriber.key as usize].1;
                let (form, subscribers) = (Form::Envelope, 1);
                let recipient = BatchRecipient { subscriber, form, encoding, subscribers, subscriptions };
                got[subscriber.key as usize].extend(group.delivery(hub, index, recipient, &mut deflater));
            }
        }
        hub.end_group(group, &deflater);
        hub.open_batches.clear();
        (0..3).for_each(|key| hub.remove_if_unused(ChannelId(key)));
        hub.check();
        got
    }

    /// The numbers in the log of the messages in a delivery.
    fn seqs(delivery: &Delivery) -> Vec<u64> {
        let bytes: Vec<u8> = delivery.frames.as_slice().iter().flat_map(|frames| frames.to_vec()).collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let ids = text.split("\"id\":\"7-").skip(1);
        ids.map(|rest| rest.split('"').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn subscribers_of_several_channels_are_sent_one_piece_in_log_order() {
        let (mut hub, channels, subscribers) = hub(&[&[0, 1], &[1, 0], &[0], &[1, 2], &[0, 1, 2]]);
        publish(&mut hub, &channels, &[0, 1, 0, 2, 1, 0, 0, 1], 10);
        let got = fan_out(&mut hub, &subscribers);
        let got: Vec<&Delivery> = got
            .iter()
            .map(|deliveries| match &deliveries[..] {
                [delivery] => delivery,
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
        for (delivery, expected) in got.iter().zip(expected) {
            assert_eq!(seqs(delivery), expected);
            assert_eq!(delivery.messages as usize, expected.len());
            assert_eq!(delivery.frames.as_slice().len(), 1, "small messages are one piece");
        }
        let piece = |subscriber: usize| &got[subscriber].frames.as_slice()[0];
        assert!(Rc::ptr_eq(piece(0), piece(1)), "merged once for each set of channels, in whatever order");
        assert!(!Rc::ptr_eq(piece(0), piece(4)));
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn merged_batches_of_many_sets_of_channels_are_compressed_up_to_a_limit() {
        let sets: [&[usize]; 4] = [&[0, 1], &[0, 1], &[1, 2], &[0, 1, 2]];
        for (length, compressed) in [(1_000, [true; 4]), (100_000, [true, true, false, false])] {
            let (mut hub, channels, subscribers) = hub(&sets);
            publish(&mut hub, &channels, &[0, 1, 2], length);
            let got = fan_out_as(&mut hub, &subscribers, Encoding::Alone);
            let found = got.iter().map(|deliveries| matches!(deliveries[0].frames, Slices::Compressed(_)));
            assert_eq!(found.collect::<Vec<_>>(), compressed, "{length}");
        }
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
        let subscribed =
            hub.subscribe(&ChannelName::parse(b"1").unwrap(), subscribers[2].0, options, now()).unwrap();
        assert_eq!(subscribed.cursor.seq, 4);
        subscribers[2].1.add(subscribed.subscription);
        publish(&mut hub, &channels, &[1, 0], 10);
        let got = fan_out(&mut hub, &subscribers);
        let got: Vec<Vec<u64>> =
            got.iter().map(|deliveries| deliveries.iter().flat_map(seqs).collect()).collect();
        assert_eq!(got, [vec![1, 2, 3, 4, 5, 6], vec![3, 4, 5, 6], vec![1, 4, 5, 6]]);
    }

    #[test]
    fn many_unsent_messages_require_a_fan_out_to_all() {
        let (mut hub, channels, subscribers) = hub(&[&[0, 1]]);
        let (subscriber, subscriptions) = &subscribers[0];
        publish(&mut hub, &channels, &[0, 1], 5_000);
        assert!(matches!(hub.unsent(*subscriber, subscriptions.as_slice()), Unsent::TooMuch));
        fan_out(&mut hub, &subscribers);
        for _ in 0..256 {
            publish(&mut hub, &channels, &[0], 1);
            let Unsent::Delivery(delivery) = hub.unsent(*subscriber, subscriptions.as_slice()) else {
                panic!("one message")
            };
            hub.mark_sent(*subscriber, subscriptions.as_slice(), delivery.messages);
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
                .all(|subscription| matches!(subscription.state, SubscriptionState::Live(_)))
        );
    }
}
