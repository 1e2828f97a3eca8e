//! Subscribing, catching up from the history, and unsubscribing.
//!
//! The hub has a list of subscribers for each channel, and a slot has the position of each of its subscriptions in that
//! list. When a subscriber is removed and another one moves into its position, both have to be updated: all code that
//! does so is in this file.
//!
//! A replay is driven by the outbox running empty: the flush phase puts the connection on the refill list, the deliver
//! phase queues the next slice, and so on until the subscriber is live.

use std::hash::{Hash, Hasher};

use log::debug;
use serde_json::value::RawValue;
use siphasher::sip::SipHasher13;

use super::cost::Cost;
use super::engine::Engine;
use super::log_target;
use super::publish::identity;
use super::shared::Shared;
use super::slot::Slot;
use crate::access::authenticator::Rights;
use crate::access::limit::Limit;
use crate::close::Reason;
use crate::hub::batch::BatchStart;
use crate::hub::replay::ReplayStep;
use crate::hub::{Moved, SubscribeOptions, Subscribed, Subscription, SubscriptionState};
use crate::ids::{ChannelId, ChannelName, Gap, GapReason, MessageId, Since, SlotId};
use crate::net::outbox::{FlushOutcome, SlowConsumerLimits, high_water};
use crate::net::transport::Transport;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::notice::{self, Id, Notice};
use crate::wire::{self, Form};

impl<T: Transport> Engine<T> {
    /// Sends `hello` in `oyez.v1`. Its cursor is the one from which the subscription continues, if there is one: a
    /// client that is disconnected in the middle of a replay continues there.
    pub(super) fn send_hello(
        &mut self,
        id: SlotId,
        subscription: Option<(ChannelName, SubscribeOptions)>,
        rights: &Rights,
        now: LoopTime,
    ) {
        let subscribed = subscription.map(|(channel, options)| {
            let subscribed = self.subscribe(id, &channel, options, rights, now);
            (channel, options, subscribed)
        });
        let cursor = match &subscribed {
            Some((_, _, Ok(subscribed))) => subscribed.cursor,
            _ => self.hub.head(),
        };
        // A cursor counts the messages of all channels: it is for clients that can use one.
        let can_subscribe = self.shared.authenticator.grant(rights).subscribe.iter().next().is_some();
        let hello = Notice::Hello {
            id: can_subscribe.then_some(Id(cursor)),
            client: self.clients.of(id).to_string(),
            run: self.idempotency_run(id, rights),
            node: self.shared_log.is_some().then(|| self.run.to_string()),
            ping_ms: self.shared.limits.ping_interval_ms,
            message_bytes_max: self.shared.limits.message_bytes_max,
            key_age_ms: self.shared.limits.idempotency.usable_ms(),
            expires_ms: rights
                .as_ref()
                .and_then(|grant| grant.expires_in_ms(self.shared.authenticator.unix_now)),
        };
        self.send_notice(id, &hello);
        match subscribed {
            Some((channel, options, Ok(subscribed))) => {
                self.send_subscribed(id, &channel, options, &subscribed, now)
            }
            Some((channel, options, Err(rejection))) => {
                self.reject_subscription(id, channel.as_str(), options, rejection, None, now);
            }
            None => {}
        }
    }

    /// Returns `run` of `hello`. It identifies the table in which the server looks for the client's idempotency keys,
    /// and differs for another process, unless both share a log or the history file continues the table, and for
    /// another publisher. An anonymous client that reconnects from another network (a phone that leaves the Wi-Fi) is
    /// another publisher, and must not repeat its earlier messages.
    fn idempotency_run(&self, id: SlotId, rights: &Rights) -> String {
        let Some(slot) = self.slots.get(id) else { return String::new() };
        // The same in each release, unlike the hasher of the standard library.
        let mut hasher = SipHasher13::new();
        let table = match self.shared_log.as_ref().and_then(|log| log.birth()) {
            Some(birth) => birth,
            None => self.hub.key_table_id(),
        };
        (table, identity(rights, slot.peer.ip())).hash(&mut hasher);
        format!("{:08x}", hasher.finish() as u32)
    }

    /// Subscribes a connection to a channel. [`Engine::send_subscribed`] notifies it.
    pub(super) fn subscribe(
        &mut self,
        id: SlotId,
        name: &ChannelName,
        options: SubscribeOptions,
        rights: &Rights,
        now: LoopTime,
    ) -> Result<Subscribed, Rejection> {
        self.check_subscription(id, name, rights, now)?;
        // The cursor that the client receives must not be ahead of messages of its other channels that were not yet
        // sent to it.
        self.deliver_unsent(id, now);
        if self.slots.get(id).is_none_or(Slot::is_close_queued) {
            // The messages did not fit into its outbox.
            return Err(Rejection::ConnectionClosing);
        }
        let is_resuming = matches!(options.since, Since::After(_));
        if is_resuming && self.has_unreported_loss() {
            // Other nodes may still receive messages with ids up to this node's head, which this node will skip.
            self.hub.raise_cursor_floor_above_head();
        }
        let subscribed =
            self.hub.subscribe(name, id, options, now).map_err(|_| Rejection::ChannelTableFull)?;
        if let Some(log) = &mut self.shared_log {
            log.counts.change(name.as_str());
        }
        self.add_subscription(id, subscribed.subscription, now);
        if is_resuming {
            let count = if subscribed.gap.is_some() {
                &mut self.shared.metrics.resumes_gap
            } else {
                &mut self.shared.metrics.resumes_whole
            };
            *count += 1;
        }
        if let Some(slot) = self.slots.get(id) {
            let sub = self.shared.authenticator.grant(rights).sub.as_deref();
            debug!(
                target: log_target::CHANNEL,
                peer:% = slot.peer, sub, channel = name.as_str(), since:% = options.since; "subscribe"
            );
        }
        Ok(subscribed)
    }

    /// Checks the rights and the limits of a connection that subscribes. A connection of a draining server is closed.
    fn check_subscription(
        &mut self,
        id: SlotId,
        name: &ChannelName,
        rights: &Rights,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        // Before the channel is looked up: the response is the same for a channel that does not exist.
        if !self.shared.authenticator.grant(rights).may_subscribe(name) {
            return Err(Rejection::PermissionDenied);
        }
        if let Some(retry_ms) = self.drain_retry_ms_of(id) {
            self.close(id, Reason::Drain { retry_ms }, now);
            return Err(Rejection::ConnectionClosing);
        }
        // A dead connection may have emitted intents before.
        let Some(slot) = self.slots.get(id).filter(|slot| !slot.is_close_queued()) else {
            return Err(Rejection::ConnectionClosing);
        };
        let mut channels = slot.subscriptions.as_slice().len() + self.hub.channels_created_by(id);
        if let Some(channel) = self.hub.find(name.as_str()) {
            if slot.subscriptions.find(channel).is_some() {
                return Err(Rejection::AlreadySubscribed);
            }
            // A channel that it created is already counted.
            channels = channels.saturating_sub(usize::from(self.hub.is_creator(channel, id)));
        }
        if channels >= self.shared.limits.channels_per_client_max {
            self.shared.metrics.limit(Limit::ChannelsPerClient);
            return Err(Rejection::TooManyChannels(Limit::ChannelsPerClient));
        }
        Ok(())
    }

    /// Adds a subscription to its slot.
    fn add_subscription(&mut self, id: SlotId, subscription: Subscription, now: LoopTime) {
        let is_catching_up = subscription.state == SubscriptionState::CatchingUp;
        if let Some(slot) = self.slots.get_mut(id) {
            if is_catching_up {
                self.pressure.end(slot, now);
            } else if slot.is_throttling() {
                self.pressure.begin_throttling(subscription.channel, false, &self.shared.limits, now);
            }
            slot.subscriptions.add(subscription);
        }
        if is_catching_up {
            self.slots.mark_replaying(id, true);
            self.slots.mark_refill(id);
        }
    }

    /// Notifies a new subscriber of its cursor, in its wire format.
    pub(super) fn send_subscribed(
        &mut self,
        id: SlotId,
        name: &ChannelName,
        options: SubscribeOptions,
        subscribed: &Subscribed,
        now: LoopTime,
    ) {
        let Subscribed { cursor, subscribers, gap, subscription } = *subscribed;
        let ch = name.as_str();
        match options.form {
            Form::Raw => {}
            Form::Envelope => {
                let subscribers = subscribers + self.subscribers_elsewhere(ch);
                self.send_notice(id, &Notice::Subscribed { ch, id: Id(cursor), subscribers });
            }
            _ if gap.is_some() => {}
            form => {
                self.send(id, &form.piece(|out| wire::append_cursor(out, cursor)));
            }
        }
        // A raw WebSocket that requests the whole history gets it without a notice of evicted messages: its protocol
        // has no notice but a close.
        let is_notified = options.form != Form::Raw || options.since != Since::Earliest;
        if let Some(gap) = gap.filter(|_| is_notified) {
            self.send_gap(id, ch, options.form, &gap, now);
        }
        // A client that requested a replay is notified of its end, even if it is empty.
        if options.since != Since::Now && subscription.state != SubscriptionState::CatchingUp {
            self.send_live(id, ch, options.form, self.hub.head());
        }
    }

    /// The number of a channel's subscribers on the other nodes that share the log.
    pub(super) fn subscribers_elsewhere(&self, channel: &str) -> usize {
        self.shared_log.as_ref().map_or(0, |log| log.counts.elsewhere(channel))
    }

    /// Notifies a subscriber of a gap. The protocol of a raw WebSocket has no notices: the connection is closed.
    fn send_gap(&mut self, id: SlotId, channel: &str, form: Form, gap: &Gap, now: LoopTime) {
        match form {
            Form::Raw => self.close(id, Reason::Gap { why: gap.why }, now),
            Form::Envelope => self.send(id, &notice::gap_frame(channel, gap)),
            form => {
                self.send(id, &form.piece(|out| wire::append_gap(out, channel, gap)));
            }
        }
    }

    /// Notifies a subscriber that the following messages are new.
    fn send_live(&mut self, id: SlotId, ch: &str, form: Form, cursor: MessageId) {
        if form == Form::Envelope {
            self.send_notice(id, &Notice::Live { ch, id: Id(cursor) });
        }
    }

    /// Reports to a client that it is not subscribed. A raw WebSocket and an event stream have no error messages and
    /// are closed.
    pub(super) fn reject_subscription(
        &mut self,
        id: SlotId,
        ch: &str,
        options: SubscribeOptions,
        rejection: Rejection,
        reference: Option<&RawValue>,
        now: LoopTime,
    ) {
        if options.form != Form::Envelope {
            if let Some(reason) = rejection.close() {
                self.close_with(id, reason, now);
            }
        } else if let Some(frame) = rejection.v1(reference, Some(ch)) {
            self.send(id, &frame);
        }
    }

    /// Ends the subscriptions that the new rights do not permit. A raw WebSocket has only one, and is closed.
    pub(super) fn reauthorize(&mut self, id: SlotId, rights: &Rights, now: LoopTime) {
        let subscriptions = self.slots.get(id).map_or(&[][..], |slot| slot.subscriptions.as_slice());
        let channels: Vec<ChannelId> =
            subscriptions.iter().map(|subscription| subscription.channel).collect();
        for channel in channels {
            // Unsubscribing sends open batches, which may close this or other slow subscribers.
            let Some(subscription) = self.slots.get(id).and_then(|slot| slot.subscriptions.find(channel))
            else {
                continue;
            };
            let Some(name) = self.hub.channel(channel).map(|channel| channel.name().to_owned()) else {
                continue;
            };
            if self.shared.authenticator.grant(rights).subscribe.include_name(&name) {
                continue;
            }
            if self.hub.form_of(subscription) == Form::Raw {
                return self.close(id, Reason::Forbidden, now);
            }
            self.unsubscribe(id, channel, now);
            if let Some(frame) = Rejection::PermissionDenied.v1(None, Some(&name)) {
                self.send(id, &frame);
            }
        }
    }

    /// Moves a subscriber whose outbox could not take a batch to catching up: it continues from the history when its
    /// outbox is empty.
    pub(super) fn start_catching_up(
        &mut self,
        id: SlotId,
        channel: ChannelId,
        before: BatchStart,
        now: LoopTime,
    ) {
        let Engine { slots, hub, pressure, .. } = self;
        if let Some(slot) = slots.get_mut(id) {
            pressure.end(slot, now);
        }
        let Some(subscription) = slots.get_mut(id).and_then(|slot| slot.subscriptions.find_mut(channel))
        else {
            return;
        };
        let (new, moved) = hub.start_catching_up(id, *subscription, before);
        *subscription = new;
        slots.mark_replaying(id, true);
        self.update_position(moved);
    }

    /// Queues the next slice of a replay. If that completes the history of a channel, the subscriber goes live at once,
    /// and the replay of its next channel begins. Returns the cost.
    pub(super) fn replay(&mut self, id: SlotId, now: LoopTime) -> Cost {
        let mut cost = Cost::NONE;
        loop {
            let (slice, continues) = self.replay_slice(id, now);
            cost += slice;
            if !continues {
                return cost;
            }
        }
    }

    /// Returns the cost of one step, and true if the next step can follow at once.
    fn replay_slice(&mut self, id: SlotId, now: LoopTime) -> (Cost, bool) {
        let Engine { slots, hub, clients, shared: Shared { limits, .. }, .. } = self;
        let Some(slot) = slots.get(id) else { return (Cost::NONE, false) };
        let Some(subscription) = slot.next_replay() else {
            slots.mark_replaying(id, false);
            return (Cost::NONE, false);
        };
        let form = hub.form_of(subscription);
        let own = (!subscription.echo).then(|| clients.of(id));
        let step = hub.replay(subscription, own, now);
        match step {
            ReplayStep::Slice { frames, messages, work } => {
                let cost = Cost::of(work, frames.len());
                self.shared.metrics.messages_delivered += messages as u64;
                self.enqueue(id, frames);
                let continues = self.can_go_live(id, subscription);
                if !continues {
                    self.flush_replay(id, now);
                }
                return (cost, continues);
            }
            ReplayStep::Wait { since } if since.after(limits.replay_wait_ms).is_due(now) => {
                self.close(id, Reason::OverCapacity, now);
            }
            ReplayStep::Wait { .. } => slots.mark_waiting(id),
            ReplayStep::Gap(gap) => {
                self.shared.metrics.messages_skipped += gap.missed.unwrap_or(0);
                let name = self.hub.channel(subscription.channel).map(|channel| channel.name().to_owned());
                match form {
                    Form::Raw => {
                        // The close drops frames that were never written, such as the response to the handshake.
                        self.flush_replay(id, now);
                        let is_lost = gap.why == GapReason::Lost;
                        self.close(id, if is_lost { Reason::Lost } else { Reason::Slow }, now);
                    }
                    _ => {
                        self.send_gap(id, &name.unwrap_or_default(), form, &gap, now);
                        self.send_gathered();
                        self.flush_replay(id, now);
                    }
                }
            }
            ReplayStep::CaughtUp { subscription: new, moved, cursor } => {
                self.update_position(moved);
                if let Some(slot) = self.slots.get_mut(id) {
                    if let Some(subscription) = slot.subscriptions.find_mut(subscription.channel) {
                        *subscription = new;
                    }
                    let is_replaying = slot.next_replay().is_some();
                    self.slots.mark_replaying(id, is_replaying);
                }
                let name = self.hub.channel(subscription.channel).map(|channel| channel.name().to_owned());
                self.send_live(id, &name.unwrap_or_default(), form, cursor);
                self.send_gathered();
                self.flush_replay(id, now);
            }
        }
        (Cost::SLICE, false)
    }

    /// Returns true if the last slice of a replay is queued, and the outbox has room for the next batch.
    ///
    /// On a busy channel every turn has a batch: if a subscriber became live only when its last slice is written, there
    /// would always be another slice by then.
    fn can_go_live(&self, id: SlotId, subscription: Subscription) -> bool {
        let has_room = |slot: &Slot<T>| slot.outbox.cost() <= high_water(self.shared.limits.outbox_bytes_max);
        self.slots.get(id).is_some_and(has_room) && self.hub.has_replayed_all(subscription)
    }

    /// Writes the slice that was just queued, and queues the next one in the same turn if the socket has taken it:
    /// otherwise a channel whose publishers fill each turn would be faster than any replay.
    fn flush_replay(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, shared: Shared { metrics, limits, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.is_replaying()) else { return };
        let (written, left) = slot.flush(SlowConsumerLimits::of(limits), now);
        metrics.sent_bytes += written as u64;
        match left {
            FlushOutcome::Drained => slots.mark_refill(id),
            // The flush phase continues.
            FlushOutcome::More | FlushOutcome::Failed(_) => slots.mark_dirty(id),
            FlushOutcome::Blocked => {}
        }
    }

    /// Closes a connection whose replay has waited for memory for too long with 4100, so that the client reconnects
    /// later. Returns true if it did.
    pub(super) fn end_wait(&mut self, id: SlotId, now: LoopTime) -> bool {
        let Some(slot) = self.slots.get(id).filter(|slot| slot.waits_for_memory()) else { return false };
        let since = slot.next_replay().and_then(|subscription| self.hub.waits_since(subscription));
        let is_over = since.is_some_and(|since| since.after(self.shared.limits.replay_wait_ms).is_due(now));
        if is_over {
            self.close(id, Reason::OverCapacity, now);
        }
        is_over
    }

    /// Closes a connection that holds an overdue encoding of a large message while other replays wait for that memory.
    /// Returns true if it did.
    ///
    /// It gets no close frame, which could not be sent before the rest of the message.
    pub(super) fn end_overdue(&mut self, id: SlotId, now: LoopTime) -> bool {
        if !self.slots.has_waiting() {
            return false;
        }
        let Engine { slots, hub, shared: Shared { metrics, .. }, .. } = self;
        let Some(slot) = slots.get(id) else { return false };
        let is_overdue = slot.outbox.holds(|piece| hub.is_overdue_encoding(piece, now));
        if is_overdue {
            metrics.limit(Limit::ReplayTake);
            slots.schedule_close(id, Reason::Slow);
        }
        is_overdue
    }

    /// Stops the replays of a connection whose socket has failed. It stays a subscriber until its last messages have
    /// been read, since a raw WebSocket publishes on the channel that it subscribes to.
    pub(super) fn end_replays(&mut self, id: SlotId) {
        while let Some(subscription) = self.slots.get(id).and_then(Slot::next_replay) {
            let (live, moved) = self.hub.end_replay(subscription);
            self.update_position(moved);
            if let Some(subscription) =
                self.slots.get_mut(id).and_then(|slot| slot.subscriptions.find_mut(subscription.channel))
            {
                *subscription = live;
            }
        }
        self.slots.mark_replaying(id, false);
    }

    /// Unsubscribes a connection from one channel, after sending it the messages published so far. Returns false if it
    /// did not subscribe to it.
    pub(super) fn unsubscribe(&mut self, id: SlotId, channel: ChannelId, now: LoopTime) -> bool {
        if self.slots.get(id).is_none_or(|slot| slot.subscriptions.find(channel).is_none()) {
            return false;
        }
        self.deliver_unsent(id, now);
        let Some(slot) = self.slots.get_mut(id) else { return false };
        // The connection may be closed by now, as a slow subscriber.
        let Some(subscription) = slot.subscriptions.remove(channel) else { return false };
        if slot.is_throttling() {
            self.pressure.end_throttling(channel, now);
        }
        let is_replaying = slot.next_replay().is_some();
        self.slots.mark_replaying(id, is_replaying);
        if is_replaying && subscription.state == SubscriptionState::CatchingUp {
            // The subscription that was removed may be the replay that waited for memory.
            self.slots.mark_refill(id);
        }
        if let Some(log) = &mut self.shared_log
            && let Some(channel) = self.hub.channel(channel)
        {
            log.counts.change(channel.name());
        }
        let moved = self.hub.unsubscribe(subscription);
        self.update_position(moved);
        true
    }

    /// Ends all subscriptions of a connection.
    pub(super) fn leave(&mut self, id: SlotId, now: LoopTime) {
        while let Some(&subscription) =
            self.slots.get(id).and_then(|slot| slot.subscriptions.as_slice().last())
        {
            self.unsubscribe(id, subscription.channel, now);
        }
    }

    /// Updates the position of a subscription that was moved.
    fn update_position(&mut self, moved: Option<Moved>) {
        if let Some(Moved { subscriber, channel, position }) = moved
            && let Some(subscription) =
                self.slots.get_mut(subscriber).and_then(|slot| slot.subscriptions.find_mut(channel))
        {
            subscription.position = position;
        }
    }
}
