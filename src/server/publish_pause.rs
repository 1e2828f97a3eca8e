//! The engine's part of back pressure ([`super::pressure`]): checks subscribers after the writes of a turn, pauses
//! publishers, and resumes them.

use super::engine::Engine;
use super::pressure::Pressure;
use super::shared::Shared;
use super::slot::Slot;
use crate::hub::SubscriptionState;
use crate::ids::{ChannelId, SlotId};
use crate::net::transport::Transport;
use crate::time::LoopTime;
use crate::wire::Form;

/// While publishers are paused, the time limits of their channels are checked at this interval. Publishers are resumed
/// at once when the subscribers have caught up.
const CHECK_MS: u32 = 50;

impl<T: Transport> Engine<T> {
    /// Called after the writes of a turn: subscribers that are still over their high-water mark begin to throttle, and
    /// publishers whose subscribers have caught up are resumed.
    pub(super) fn check_pressure(&mut self, now: LoopTime) {
        while let Some((id, cause)) = self.pressure.high.pop() {
            self.throttle_channels_of(id, cause, now);
        }
        self.resume_publishers(now);
    }

    fn throttle_channels_of(&mut self, id: SlotId, cause: Option<ChannelId>, now: LoopTime) {
        let Engine { slots, pressure, draining, shared: Shared { limits, .. }, .. } = self;
        let until = now.after(limits.publish_pause_ms);
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.takes_broadcast()) else { return };
        // A subscriber throttles once in a backlog, whatever the result.
        let is_over = slot.outbox.begin_throttling(limits.outbox_bytes_max, until);
        if !is_over || limits.publish_pause_ms == 0 || draining.is_some() || slot.is_replaying() {
            return;
        }
        if slot.set_throttling(true) {
            for subscription in slot.subscriptions.as_slice() {
                pressure.begin_throttling(
                    subscription.channel,
                    cause == Some(subscription.channel),
                    limits,
                    now,
                );
            }
        }
    }

    /// Pauses the publisher of a message if its channel is under pressure.
    pub(super) fn throttle_publisher(&mut self, id: SlotId, channel: ChannelId, bytes: usize, now: LoopTime) {
        let Some(throttled) = self.pressure.channels.get_mut(&channel) else { return };
        throttled.bytes += bytes;
        if throttled.is_pausing(now) {
            self.pause_publisher(id, channel, now);
        }
    }

    /// Pauses a raw WebSocket before it is read: it cannot publish on any other channel.
    pub(super) fn pause_raw_publisher(&mut self, id: SlotId, now: LoopTime) {
        let Some(&[subscription]) = self.slots.get(id).map(|slot| slot.subscriptions.as_slice()) else {
            return;
        };
        let is_raw = subscription.state == SubscriptionState::Live(Form::Raw);
        if is_raw && self.pressure.is_pausing(subscription.channel, now) {
            self.pause_publisher(id, subscription.channel, now);
        }
    }

    fn pause_publisher(&mut self, id: SlotId, channel: ChannelId, now: LoopTime) {
        if self.slots.pause_publishing(id) {
            self.shared.metrics.publish_pauses += 1;
            if self.pressure.paused.is_empty() {
                self.pressure.next_check = now.after(CHECK_MS);
            }
            self.pressure.paused.push((id, channel));
        }
    }

    /// Resumes the publishers whose channel is no longer under pressure.
    pub(super) fn resume_publishers(&mut self, now: LoopTime) {
        let Engine { slots, pressure, shared: Shared { limits, .. }, .. } = self;
        let is_time = !pressure.paused.is_empty() && pressure.next_check.is_due(now);
        if !pressure.has_ended && !is_time {
            return;
        }
        pressure.has_ended = false;
        pressure.next_check = now.after(CHECK_MS);
        let Pressure { channels, paused, .. } = pressure;
        paused.retain(|&(id, channel)| {
            let is_pausing = channels.get(&channel).is_some_and(|throttled| throttled.is_pausing(now));
            if !is_pausing {
                slots.resume_publishing(id);
            }
            is_pausing && slots.get(id).is_some_and(Slot::is_publishing_paused)
        });
        // Slow subscribers have caught up by then, or are closed.
        let forget_ms = limits.slow_timeout_ms;
        channels.retain(|_, throttled| {
            throttled.subscribers > 0 || now.millis_since(throttled.since) < forget_ms
        });
    }

    /// Ends the pressure of one subscriber whose `--publish-pause-ms` is over. Called in the expire phase.
    pub(super) fn expire_pressure(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, pressure, .. } = self;
        if let Some(slot) = slots.get_mut(id)
            && slot.is_throttling()
            && slot.outbox.throttles_until().is_none_or(|until| until.is_due(now))
        {
            pressure.end(slot, now);
        }
    }

    /// Ends all pressure: the server drains, and every publisher is to be read and sent its response.
    pub(super) fn end_pressure(&mut self, now: LoopTime) {
        let throttling: Vec<SlotId> =
            self.slots.iter().filter(|(_, slot)| slot.is_throttling()).map(|(id, _)| id).collect();
        for id in throttling {
            if let Some(slot) = self.slots.get_mut(id) {
                self.pressure.end(slot, now);
            }
        }
        self.resume_publishers(now);
    }

    /// Returns the number of paused publishers.
    pub(super) fn paused_publishers(&self) -> usize {
        self.pressure
            .paused
            .iter()
            .filter(|(id, _)| self.slots.get(*id).is_some_and(Slot::is_publishing_paused))
            .count()
    }
}
