//! The deliver phase: applies the intents of sessions, in the order in which they were emitted.
//!
//! Subscribing, publishing, fan-out, catching up and unsubscribing each happen at one point of the one order of the
//! log. The batches of all channels are open for the whole turn: a subscriber that joins does not receive the messages
//! that are in them already, and one that leaves receives them first. The modules that do the work are
//! [`super::subscribe`], [`super::publish`] and [`super::query`]; after them [`super::refill`] makes the next slices of
//! long responses.
//!
//! **Intents are also applied outside of this phase**: within *read* when 256 are queued, so that their list stays
//! small, and at once for a session that is closed or whose deadline has expired. Batches stay open, so their messages
//! are fanned out with the rest of the turn.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;
use log::warn;

use super::engine::Engine;
use super::pending_publish::PendingPublish;
use super::pressure::Pressure;
use super::shared::Shared;
use super::slot::Slot;
use super::slots::Slots;
use crate::close::Reason;
use crate::config::OnSlow;
use crate::hub::Unsent;
use crate::hub::batch::{Delivery, Slices};
use crate::hub::channel::Channel;
use crate::hub::compression::CompressedBatch;
use crate::hub::merge::{BatchGroup, BatchRecipient};
use crate::ids::{ChannelId, SlotId};
use crate::metrics::Metrics;
use crate::net::outbox::{Enqueue, FlushOutcome, SlowConsumerLimits};
use crate::net::transport::Transport;
use crate::session::intent::Intent;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::deflate::Deflater;
use crate::wire::notice::Notice;
use crate::wire::{self, Form};

/// Capacity that the list of intents keeps: usually one turn's, since intents are applied before more of them are
/// queued.
const INTENTS_KEPT: usize = 1_024;

impl<T: Transport> Engine<T> {
    /// Applies intents to the hub, sends the batches of the turn, and makes slices of long responses.
    pub fn deliver(&mut self, now: LoopTime) {
        self.apply_all(now);
        self.fan_out_all(now);
        self.refill_all(now);
        // Closing slow subscribers may emit intents; they were applied at once.
        debug_assert!(self.intents.is_empty());
    }

    /// Applies all queued intents.
    pub(super) fn apply_all(&mut self, now: LoopTime) {
        let mut intents = mem::take(&mut self.intents);
        for (id, intent) in intents.drain(..) {
            self.apply(id, intent, now);
        }
        debug_assert!(self.intents.is_empty());
        // After a turn in which many clients sent, the list must not keep the memory for it.
        intents.shrink_to(INTENTS_KEPT);
        self.intents = intents;
        self.send_gathered();
    }

    pub(super) fn apply(&mut self, id: SlotId, intent: Intent, now: LoopTime) {
        if self.shared_log.is_some() && self.must_wait_for_log(id, &intent, now) {
            self.hold_for_log(id, intent);
            return;
        }
        match intent {
            Intent::SendHello { subscription, rights } => self.send_hello(id, subscription, &rights, now),
            Intent::Subscribe { channel, options, rights, reference } => {
                let reference = reference.as_deref();
                match self.subscribe(id, &channel, options, &rights, now) {
                    Ok(subscribed) => self.send_subscribed(id, &channel, options, &subscribed, now),
                    Err(rejection) => {
                        self.reject_subscription(id, channel.as_str(), options, rejection, reference, now);
                    }
                }
            }
            Intent::Unsubscribe { channel, reference } => {
                let ch = channel.as_str();
                let was_subscribed =
                    self.hub.find(ch).is_some_and(|channel| self.unsubscribe(id, channel, now));
                if was_subscribed {
                    self.send_notice(id, &Notice::Unsubscribed { ch });
                } else if let Some(frame) = Rejection::NotSubscribed.v1(reference.as_deref(), Some(ch)) {
                    self.send(id, &frame);
                }
            }
            Intent::Publish { channel, kind, payload, receipt, rights } => {
                let pending = PendingPublish { slot: id, channel, receipt, rights };
                if self.shared_log.is_some() {
                    self.publish_in_log(kind, &payload, pending, now);
                } else {
                    self.publish(kind, &payload, &pending, now);
                }
            }
            Intent::Reauthorize { rights } => self.reauthorize(id, &rights, now),
            Intent::DisconnectUser { sub, options } => self.disconnect_user(id, &sub, &options, now),
            Intent::IssueTicket { grant, client, options } => {
                self.issue_ticket(id, grant, client, &options, now);
            }
            Intent::RedeemTicket { hash, stream } => self.redeem_ticket(id, hash, stream.as_deref(), now),
            Intent::Query => self.slots.mark_refill(id),
            Intent::Respond(response) => self.send_response(id, response, now),
            Intent::Send(bytes) => self.send(id, &bytes),
            Intent::Warn(line) => warn!("{line}"),
            Intent::LogRequest(request) => {
                if let Some(slot) = self.slots.get(id) {
                    self.shared.connection_log.request(id, slot.peer, request);
                }
            }
            Intent::BeginClose { close_frame } => self.begin_close_frame(id, close_frame, now),
        }
    }

    /// Closes a connection whose protocol has no error messages, even if its own close frame followed the rejected
    /// message.
    pub(super) fn close_with(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        self.close(id, reason, now);
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.is_close_queued()) else { return };
        if slot.state.replace_close_reason(reason) {
            self.queue_close_frame(id, wire::close(reason), now);
        }
    }

    /// Ends the subscriptions of a connection, then queues its close frame: messages that were published earlier in the
    /// turn are sent before it.
    pub(super) fn queue_close_frame(&mut self, id: SlotId, close_frame: Option<Bytes>, now: LoopTime) {
        if self.slots.get(id).is_some_and(Slot::is_close_held) {
            // The close has waited for acknowledgements: its deadline begins now.
            self.slots.mark_close_held(id, false);
            if let Some(slot) = self.slots.get_mut(id) {
                slot.state.restart_close(&self.shared.limits, now);
            }
            self.slots.mark_dirty(id);
        }
        self.leave(id, now);
        // The first close frame is the last (RFC 6455 5.5.1).
        let had_one = self.slots.get(id).is_some_and(|slot| slot.is_close_queued());
        self.slots.mark_close_queued(id);
        if let Some(close_frame) = close_frame.filter(|_| !had_one) {
            self.enqueue(id, Rc::new(close_frame));
        }
    }

    /// Sends all batches of this turn to their subscribers.
    pub(super) fn fan_out_all(&mut self, now: LoopTime) {
        // Checked once here, and not for each subscriber.
        self.send_gathered();
        if self.shared.deflater.is_exhausted() {
            self.forget_windows();
        }
        let group = self.hub.finish_group(now);
        if !group.is_empty() {
            self.fan_out_group(group, now);
        }
        while let Some(channel) = self.hub.next_open_batch() {
            self.fan_out(channel, now);
        }
    }

    /// Forgets which messages end the windows of clients, since the numbers of messages begin again. The next message
    /// to each client is compressed without reference to earlier ones.
    fn forget_windows(&mut self) {
        let ids: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(slot) = self.slots.get_mut(id) {
                slot.subscriptions.set_window(None);
            }
        }
        self.hub.forget_contexts();
        self.shared.deflater.restart();
    }

    /// Sends the open batch of a channel to all of its subscribers.
    fn fan_out(&mut self, channel: ChannelId, now: LoopTime) {
        self.send_gathered();
        let Engine { slots, hub, pressure, shared, .. } = self;
        let Some((subscribers, mut batch)) = hub.finish_batch(channel, now) else { return };
        let mut over_limit = Vec::new();
        let delivery_of = |form, id, slot: &Slot<T>, deflater: &mut Deflater| {
            batch.encoded_delivery(form, id, slot.encoding(channel), subscribers.live(form).len(), deflater)
        };
        queue_batch(subscribers, channel, slots, shared, pressure, &mut over_limit, delivery_of);
        for (subscriber, form, delivery) in over_limit {
            if !self.retry_or_skip(subscriber, form, &delivery, now) {
                self.start_catching_up(subscriber, channel, batch.start_for(subscriber), now);
            }
        }
        self.hub.end_batch(channel, batch, &self.shared.deflater);
    }

    /// Sends every subscriber of several channels the new messages of all of its channels as one delivery.
    fn fan_out_group(&mut self, mut group: BatchGroup, now: LoopTime) {
        let Engine { slots, hub, pressure, shared, .. } = self;
        let mut over_limit = Vec::new();
        let channels: Vec<ChannelId> = group.channels().collect();
        for (index, &channel) in channels.iter().enumerate() {
            let Some(fanned_out) = hub.channel(channel) else { continue };
            let delivery_of = |form, subscriber, slot: &Slot<T>, deflater: &mut Deflater| {
                let (encoding, subscriptions) = (slot.encoding(channel), &slot.subscriptions);
                let subscribers = fanned_out.live(form).len();
                let recipient = BatchRecipient { subscriber, form, encoding, subscribers, subscriptions };
                group.delivery(hub, index, recipient, deflater)
            };
            queue_batch(fanned_out, channel, slots, shared, pressure, &mut over_limit, delivery_of);
        }
        for (subscriber, form, delivery) in over_limit {
            if !self.retry_or_skip(subscriber, form, &delivery, now) {
                let Some(slot) = self.slots.get(subscriber) else { continue };
                for (channel, before) in group.batch_starts(&self.hub, subscriber, &slot.subscriptions) {
                    self.start_catching_up(subscriber, channel, before, now);
                }
            }
        }
        self.hub.end_group(group, &self.shared.deflater);
    }

    /// Handles a delivery that was over the limit of its outbox: writes and queues it again, or applies `--on-slow`.
    /// Returns false if the subscriber is to catch up from the history.
    fn retry_or_skip(&mut self, subscriber: SlotId, form: Form, delivery: &Delivery, now: LoopTime) -> bool {
        self.enqueue_after_flush(subscriber, delivery, now)
            || self.apply_slow_policy(subscriber, form, delivery, now)
    }

    /// Applies `--on-slow` to a subscriber whose outbox could not take a batch. Returns true if it does not receive the
    /// batch: it is closed, or its protocol has no notice of a gap; false if it is to catch up from the history.
    ///
    /// This is one of the two triggers of the slow-consumer policy: the outbox is over its limit. The other one is a
    /// socket that accepts no bytes, or too few, for too long (`Slot::has_stalled`), which the flush and expire phases
    /// check.
    fn apply_slow_policy(
        &mut self,
        subscriber: SlotId,
        form: Form,
        delivery: &Delivery,
        now: LoopTime,
    ) -> bool {
        let is_replaying = self.slots.get(subscriber).is_some_and(Slot::is_replaying);
        match self.shared.limits.on_slow {
            // The slice of the first replay fills the outbox. The client's other channels are replayed after that.
            _ if is_replaying => return false,
            OnSlow::Close => self.close(subscriber, Reason::Slow, now),
            OnSlow::Skip if form == Form::Raw => {
                self.shared.metrics.messages_skipped += u64::from(delivery.messages);
                if let Some(slot) = self.slots.get_mut(subscriber) {
                    slot.outbox.reject_until_empty();
                }
            }
            OnSlow::Skip => return false,
        }
        true
    }

    /// Sends one subscriber the messages of the open batches that it has not received, before it unsubscribes or
    /// receives a cursor.
    pub(super) fn deliver_unsent(&mut self, id: SlotId, now: LoopTime) {
        if self.slots.get(id).is_none_or(|slot| slot.subscriptions.is_empty()) {
            return;
        }
        self.send_gathered();
        let Engine { slots, hub, pressure, shared: Shared { metrics, limits, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.takes_broadcast()) else { return };
        match hub.unsent(id, slot.subscriptions.as_slice()) {
            Unsent::Nothing => return,
            Unsent::Delivery(Delivery { frames, messages }) => {
                let enqueued = slot.outbox.enqueue(frames.as_slice(), limits.outbox_bytes_max);
                if enqueued != Enqueue::OverLimit {
                    hub.mark_sent(id, slot.subscriptions.as_slice(), messages);
                }
                // If it is over the limit, the fan-out to all subscribers decides whether it is slow.
                if record(enqueued, id, None, messages, slots, metrics, pressure) {
                    return;
                }
            }
            Unsent::TooMuch => {}
        }
        self.fan_out_all(now);
    }

    /// Queues a delivery that did not fit into the outbox, after a write has made room. Returns false if it still does
    /// not fit.
    ///
    /// One turn may publish more to a subscriber than its outbox holds, when it subscribes to several channels or the
    /// messages are short. A subscriber is not slow if no write has been tried yet.
    fn enqueue_after_flush(&mut self, id: SlotId, delivery: &Delivery, now: LoopTime) -> bool {
        let Engine { slots, pressure, shared: Shared { metrics, limits, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.takes_broadcast()) else { return true };
        if slot.outbox.is_blocked() {
            return false;
        }
        loop {
            let (written, left) = slot.flush(SlowConsumerLimits::of(limits), now);
            metrics.sent_bytes += written as u64;
            if matches!(left, FlushOutcome::Failed(_)) {
                // No frame can be queued for the subscriber; its write fails in the flush phase too, which closes it.
                slots.mark_dirty(id);
                return true;
            }
            if slot.is_throttling() && slot.outbox.is_empty() {
                pressure.end(slot, now);
            }
            match slot.outbox.enqueue(delivery.frames.as_slice(), limits.outbox_bytes_max) {
                Enqueue::Queued | Enqueue::HighWater => {
                    if let Slices::Compressed(batch) = &delivery.frames {
                        record_compressed(batch, slot, metrics);
                    }
                    metrics.messages_delivered += u64::from(delivery.messages);
                    slots.mark_dirty(id);
                    return true;
                }
                Enqueue::OverLimit if matches!(left, FlushOutcome::More) => {}
                Enqueue::OverLimit => return false,
            }
        }
    }
}

/// Queues the deliveries of a batch for all live subscribers of a channel. Deliveries that are over the limit of their
/// outbox are added to `over_limit`.
#[inline]
fn queue_batch<T: Transport>(
    subscribers: &Channel,
    channel: ChannelId,
    slots: &mut Slots<T>,
    shared: &mut Shared,
    pressure: &mut Pressure,
    over_limit: &mut Vec<(SlotId, Form, Delivery)>,
    mut delivery_of: impl FnMut(Form, SlotId, &Slot<T>, &mut Deflater) -> Option<Delivery>,
) {
    let Shared { limits, metrics, deflater, .. } = shared;
    for form in Form::ALL {
        for &id in subscribers.live(form) {
            let Some(slot) = slots.get_mut(id).filter(|slot| slot.takes_broadcast()) else { continue };
            let Some(delivery) = delivery_of(form, id, slot, deflater) else { continue };
            let enqueued = slot.outbox.enqueue(delivery.frames.as_slice(), limits.outbox_bytes_max);
            if let Slices::Compressed(batch) = &delivery.frames
                && enqueued != Enqueue::OverLimit
            {
                record_compressed(batch, slot, metrics);
            }
            if !record(enqueued, id, Some(channel), delivery.messages, slots, metrics, pressure) {
                over_limit.push((id, form, delivery));
            }
        }
    }
}

/// Records a compressed batch that was queued: the message that ends the client's window, and the saved bytes.
fn record_compressed<T>(batch: &CompressedBatch, slot: &mut Slot<T>, metrics: &mut Metrics) {
    let CompressedBatch { deflated, window, is_in_step } = batch;
    slot.subscriptions.set_window(*window);
    let messages = u64::from(deflated.messages);
    match is_in_step {
        true => metrics.deflated_in_context += messages,
        false => metrics.deflated_without_context += messages,
    }
    metrics.deflate_plain_bytes += deflated.plain_bytes as u64;
    metrics.deflate_sent_bytes += deflated.frames.len() as u64;
}

/// Records a delivery: counts its messages and marks the slot. Returns false if it is over the outbox's limit.
#[inline]
fn record<T: Transport>(
    enqueued: Enqueue,
    id: SlotId,
    channel: Option<ChannelId>,
    messages: u32,
    slots: &mut Slots<T>,
    metrics: &mut Metrics,
    pressure: &mut Pressure,
) -> bool {
    if enqueued == Enqueue::OverLimit {
        return false;
    }
    metrics.messages_delivered += u64::from(messages);
    slots.mark_dirty(id);
    if enqueued == Enqueue::HighWater {
        pressure.high.push((id, channel));
    }
    true
}
