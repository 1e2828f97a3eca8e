//! The deliver phase: applies the intents of sessions, in the order in which they were emitted.
//!
//! Subscribing, publishing, fanning out, catching up and leaving each happen at one point of the log's one order. The
//! batches of all channels are open for the whole turn: a subscriber that joins does not receive the messages that are
//! in them already, and one that leaves receives them first. The modules that do the work are [`super::subscribe`],
//! [`super::publish`] and [`super::query`]; after them [`super::refill`] makes the next slices of long responses.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;
use log::warn;

use super::engine::Engine;
use super::pressure::Pressure;
use super::shared::Shared;
use super::slots::{Slot, Slots};
use crate::close::Reason;
use crate::config::OnSlow;
use crate::hub::Unsent;
use crate::hub::channel::Delivery;
use crate::hub::merge::Group;
use crate::ids::{ChannelId, SlotId};
use crate::metrics::Metrics;
use crate::net::outbox::{Enqueue, FlushOutcome, SlowConsumerLimits};
use crate::net::transport::Transport;
use crate::session::intent::Intent;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::notice::Notice;
use crate::wire::{self, Form};

/// Capacity that the list of intents keeps: usually one turn's, since intents are applied before more of them are
/// queued.
const INTENTS_KEPT: usize = 1_024;

impl<T: Transport> Engine<T> {
    /// Applies intents to the hub; frames land in outboxes.
    pub fn deliver(&mut self, now: LoopTime) {
        self.apply_all(now);
        self.fan_out_all(now);
        self.refill_all(now);
        // Closes of slow members may have made wishes; they were granted where they were made.
        debug_assert!(self.intents.is_empty());
    }

    /// Applies what was asked for.
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
        match intent {
            Intent::SendHello { subscription, rights } => self.send_hello(id, subscription, &rights, now),
            Intent::Subscribe { channel, options, rights, reference } => {
                let reference = reference.as_deref();
                match self.subscribe(id, &channel, options, &rights, now) {
                    Ok(joined) => self.send_subscribed(id, &channel, options, &joined, now),
                    Err(rejection) => {
                        self.reject_subscription(id, channel.as_str(), options, rejection, reference, now);
                    }
                }
            }
            Intent::Unsubscribe { channel, reference } => {
                let ch = channel.as_str();
                let left = self.hub.find(ch).is_some_and(|channel| self.unsubscribe(id, channel, now));
                if left {
                    self.send_notice(id, &Notice::Unsubscribed { ch });
                } else if let Some(frame) = Rejection::NotSubscribed.v1(reference.as_deref(), Some(ch)) {
                    self.send(id, &frame);
                }
            }
            Intent::Publish { channel, kind, payload, receipt, rights } => {
                // Before a channel is made for it.
                if let Err(rejection) = self.pace(id, &rights, payload.len(), &receipt, now) {
                    return self.reject_publication(id, rejection, channel.as_ref(), &receipt, now);
                }
                match self.channel_to_publish_on(id, channel.as_ref(), &receipt, &rights) {
                    Ok(channel_id) => {
                        let name = channel.as_ref();
                        self.publish(id, channel_id, name, kind, &payload, receipt, &rights, now);
                    }
                    Err(rejection) => self.reject_publication(id, rejection, channel.as_ref(), &receipt, now),
                }
            }
            Intent::Reauthorize { rights } => self.reauthorize(id, &rights, now),
            Intent::DisconnectUser { sub, manner } => self.disconnect_user(id, &sub, &manner, now),
            Intent::Query => self.slots.mark_refill(id),
            Intent::Answer(response) => self.answer(id, response, now),
            Intent::Send(bytes) => self.send(id, &bytes),
            Intent::Warn(line) => warn!("{line}"),
            Intent::BeginClose { farewell } => self.queue_close_frame(id, farewell, now),
        }
    }

    /// Closes a connection that has no words for a refusal, even if its own close frame came right behind what is
    /// refused.
    pub(super) fn close_with(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        self.close(id, reason, now);
        let Some(slot) = self.slots.get_mut(id).filter(|slot| !slot.is_close_queued()) else { return };
        if slot.state.overrule(reason) {
            self.queue_close_frame(id, wire::close(reason), now);
        }
    }

    /// Ends memberships in order: first what was published so far, then the close frame.
    fn queue_close_frame(&mut self, id: SlotId, farewell: Option<Bytes>, now: LoopTime) {
        self.leave(id, now);
        // The first close frame is the last (RFC 6455 5.5.1).
        let had_one = self.slots.get(id).is_some_and(|slot| slot.is_close_queued());
        self.slots.mark_close_queued(id);
        if let Some(farewell) = farewell.filter(|_| !had_one) {
            self.enqueue(id, Rc::new(farewell));
        }
    }

    /// Gives all members what was published in this turn so far.
    pub(super) fn fan_out_all(&mut self, now: LoopTime) {
        // Once here, and not for each subscriber.
        self.send_gathered();
        let group = self.hub.finish_group(now);
        if !group.is_empty() {
            self.fan_out_group(group, now);
        }
        while let Some(channel) = self.hub.next_open_batch() {
            self.fan_out(channel, now);
        }
    }

    /// Gives every member of a channel what was published there since the last time.
    fn fan_out(&mut self, channel: ChannelId, now: LoopTime) {
        self.send_gathered();
        let Engine { slots, hub, pressure, shared: Shared { metrics, limits, .. }, .. } = self;
        let Some((subscribers, batch)) = hub.finish_batch(channel, now) else { return };
        let mut full = Vec::new();
        for form in Form::ALL {
            for &subscriber in subscribers.live(form) {
                let Some(slot) = slots.get_mut(subscriber).filter(|slot| slot.takes_broadcast()) else {
                    continue;
                };
                let Some(delivery) = batch.delivery(form, subscriber) else { continue };
                let enqueued = slot.outbox.enqueue(delivery.frames.as_slice(), limits.outbox_bytes_max);
                if !record(enqueued, subscriber, Some(channel), delivery.messages, slots, metrics, pressure) {
                    full.push((subscriber, form, delivery));
                }
            }
        }
        for (subscriber, form, delivery) in full {
            if self.enqueue_after_flush(subscriber, &delivery, now) {
                continue;
            }
            if !self.is_skipped(subscriber, form, &delivery, now) {
                self.start_catching_up(subscriber, channel, batch.start_for(subscriber), now);
            }
        }
        self.hub.remove_if_unused(channel);
    }

    /// Sends every subscriber of several channels the new messages of all of its channels as one portion.
    fn fan_out_group(&mut self, mut group: Group, now: LoopTime) {
        let Engine { slots, hub, pressure, shared: Shared { metrics, limits, .. }, .. } = self;
        let mut full = Vec::new();
        let channels: Vec<ChannelId> = group.channels().collect();
        for (place, &channel) in channels.iter().enumerate() {
            let Some(subscribers) = hub.channel(channel) else { continue };
            for form in Form::ALL {
                for &subscriber in subscribers.live(form) {
                    let Some(slot) = slots.get_mut(subscriber).filter(|slot| slot.takes_broadcast()) else {
                        continue;
                    };
                    let Some(delivery) = group.delivery(hub, place, form, subscriber, &slot.subscriptions)
                    else {
                        continue;
                    };
                    let enqueued = slot.outbox.enqueue(delivery.frames.as_slice(), limits.outbox_bytes_max);
                    if !record(
                        enqueued,
                        subscriber,
                        Some(channel),
                        delivery.messages,
                        slots,
                        metrics,
                        pressure,
                    ) {
                        full.push((subscriber, form, delivery));
                    }
                }
            }
        }
        for (subscriber, form, delivery) in full {
            if self.enqueue_after_flush(subscriber, &delivery, now) {
                continue;
            }
            if !self.is_skipped(subscriber, form, &delivery, now) {
                let Some(slot) = self.slots.get(subscriber) else { continue };
                for (channel, before) in group.batch_starts(&self.hub, subscriber, &slot.subscriptions) {
                    self.start_catching_up(subscriber, channel, before, now);
                }
            }
        }
        self.hub.end_group(&group);
    }

    /// Applies `--on-slow` to a member whose outbox could not take a batch. Returns true if it does not receive the
    /// batch: it is closed, or its protocol has no notice of a gap; false if it is to catch up from the history.
    fn is_skipped(&mut self, subscriber: SlotId, form: Form, delivery: &Delivery, now: LoopTime) -> bool {
        let is_replaying = self.slots.get(subscriber).is_some_and(Slot::is_replaying);
        match self.shared.limits.on_slow {
            // A slice of its replay fills the outbox. Its other channels are replayed after that one.
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

    /// Sends one member the messages of the open batches that it has yet to receive, before it leaves or receives a
    /// cursor.
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

    /// Queues a portion that did not fit into the outbox, after a write has made room. Returns false if it still does
    /// not fit.
    ///
    /// One turn may publish more to a subscriber than its outbox holds, when it subscribes to several channels or the
    /// messages are short. A subscriber is not slow because no write has been tried yet.
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
                // Nothing can be queued for it; its write fails in the flush phase too, and that closes it.
                slots.mark_dirty(id);
                return true;
            }
            if slot.is_pressing() && slot.outbox.is_empty() {
                pressure.end(slot, now);
            }
            match slot.outbox.enqueue(delivery.frames.as_slice(), limits.outbox_bytes_max) {
                Enqueue::Queued | Enqueue::HighWater => {
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
