//! The end of open batches: finishing them for all subscribers, and the messages that one subscriber is sent earlier.

use std::rc::Rc;

use super::batch::{Delivery, FinishedBatch, Slices};
use super::channel::Channel;
use super::compression::BatchCompression;
use super::subscriptions::{Subscription, SubscriptionState};
use super::{HistoryUsage, Hub, history};
use crate::ids::{ChannelId, SlotId};
use crate::time::LoopTime;
use crate::wire::Form;
use crate::wire::deflate::Deflater;

/// The messages of open batches that a subscriber has yet to receive.
#[must_use]
#[derive(Debug)]
pub enum Unsent {
    /// No message.
    Nothing,
    /// These messages, encoded for this subscriber alone.
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

impl Hub {
    /// Returns true if the channel has live subscribers that may subscribe to other channels, and so receive the
    /// messages of all their channels in the log's order.
    pub(super) fn needs_log_order(&self, channel: ChannelId) -> bool {
        self.channel(channel).is_some_and(|channel| !channel.live(Form::Envelope).is_empty())
    }

    /// Returns the messages of the open batches of its channels that a subscriber has yet to receive, in the log's
    /// order.
    ///
    /// The subscriber has to receive them before it leaves, and before a notice that has a cursor. They are encoded for
    /// that subscriber alone, which, for a few messages, is less work than a fan-out of the batches to all.
    pub fn unsent(&self, subscriber: SlotId, subscriptions: &[Subscription]) -> Unsent {
        let mut order = Vec::new();
        let (mut bytes, mut form) = (0, Form::Envelope);
        for subscription in subscriptions {
            let (Some(channel), SubscriptionState::Live(live)) =
                (self.channel(subscription.channel), subscription.state)
            else {
                continue;
            };
            if !channel.has_batch() {
                continue;
            }
            form = live;
            for index in channel.unsent(subscriber) {
                let (log_index, message) = channel.open_message(self.epochs.current(), index);
                bytes += message.payload.len() + history::MESSAGE_BYTES;
                if bytes > UNSENT_BYTES_MAX || self.sent_early + order.len() >= UNSENT_MESSAGES_MAX {
                    return Unsent::TooMuch;
                }
                order.push((log_index, message));
            }
        }
        if order.is_empty() {
            return Unsent::Nothing;
        }
        order.sort_unstable_by_key(|(log_index, _)| *log_index);
        let piece = form.piece(|out| order.iter().for_each(|(_, message)| message.append_as(form, out)));
        Unsent::Delivery(Delivery { frames: Slices::Whole(Rc::new(piece)), messages: order.len() as u32 })
    }

    /// Records that a subscriber was sent the messages that [`Hub::unsent`] returned.
    pub fn mark_sent(&mut self, subscriber: SlotId, subscriptions: &[Subscription], messages: u32) {
        self.sent_early += messages as usize;
        for subscription in subscriptions {
            if let (Some(channel), SubscriptionState::Live(form)) =
                (self.channels.get_mut(subscription.channel.0 as usize), subscription.state)
            {
                channel.mark_sent(form, subscriber);
            }
        }
    }

    /// Removes one channel from the list of channels with an open batch.
    pub fn next_open_batch(&mut self) -> Option<ChannelId> {
        self.open_batches.pop()
    }

    /// Finishes the channel's batch, and returns it with the channel whose subscribers are to receive it. `None` if the
    /// batch is empty.
    pub fn finish_batch(&mut self, id: ChannelId, now: LoopTime) -> Option<(&Channel, FinishedBatch)> {
        self.finish_batch_as(id, false, now)
    }

    pub(super) fn finish_batch_as(
        &mut self,
        id: ChannelId,
        merges: bool,
        now: LoopTime,
    ) -> Option<(&Channel, FinishedBatch)> {
        let channel = self.channels.get_mut(id.0 as usize)?;
        let before = HistoryUsage::of(channel);
        self.context_bytes -= channel.context.as_ref().map_or(0, |context| context.bytes());
        let mut finished = channel.finish_batch(self.epochs.current(), &self.history, merges, now)?;
        if self.uncompressed.include_name(channel.name()) {
            finished.compression = BatchCompression::excluded();
        }
        self.account(id, before);
        if let Some(dirty_channels) = &mut self.dirty_channels {
            dirty_channels.mark(id);
        }
        self.evict_to_total_max(Some(id));
        Some((&self.channels[id.0 as usize], finished))
    }

    /// Ends the fan-out of a batch: the channel keeps the last messages that were compressed, and is removed if it is
    /// unused.
    pub fn end_batch(&mut self, id: ChannelId, batch: FinishedBatch, deflater: &Deflater) {
        if let Some(channel) = self.channels.get_mut(id.0 as usize)
            && batch.is_of(channel.name())
            && channel.has_live_web_sockets()
            && let Some(mut context) = batch.into_context(self.context_bytes_per_subscriber, deflater)
        {
            let bytes_max = self.context_bytes_max - self.context_bytes;
            if context.bytes() > bytes_max {
                context.forget_earlier();
            }
            if context.bytes() <= bytes_max {
                self.context_bytes += context.bytes();
                channel.context = Some(context);
            }
        }
        self.remove_if_unused(id);
    }

    /// Bytes of the compressed messages that channels keep for the next ones to refer to.
    pub fn context_bytes(&self) -> usize {
        self.context_bytes
    }

    pub(super) fn take_context(&mut self, id: ChannelId) {
        let context = self.channels[id.0 as usize].context.take();
        self.context_bytes -= context.map_or(0, |context| context.bytes());
    }

    /// Releases memory of a channel's context after subscribers have left.
    pub(super) fn shrink_context(&mut self, id: ChannelId) {
        let Some(mut context) = self.channels[id.0 as usize].context.take() else { return };
        let channel = &mut self.channels[id.0 as usize];
        self.context_bytes -= context.bytes();
        context.shrink(self.context_bytes_per_subscriber, |form| channel.live(form).len());
        self.context_bytes += context.bytes();
        channel.context = Some(context);
    }

    /// Forgets the compressed messages of all channels.
    pub fn forget_contexts(&mut self) {
        self.channels.iter_mut().for_each(|(_, channel)| channel.context = None);
        self.context_bytes = 0;
    }
}
