//! Back pressure: slow subscribers pause the publishers of their channels, for a bounded time.
//!
//! A publisher can be faster than any subscriber for a moment. So a subscriber whose outbox passes its high-water mark
//! (a quarter of `--outbox-bytes-max`) *presses* on its channels until its outbox is empty, but for at most
//! `--publish-pause-ms` in one backlog. After that it does not press again until its outbox has been empty, and the
//! outbox limit closes it. While a channel is under pressure, messages that were already read are published, and its
//! publishers are paused: a WebSocket is not read, and the response to an HTTP request is withheld, in its order with
//! the others, so that the next request is not read either. The kernel buffers the rest.
//!
//! **Bounded for the channel too**: many slow subscribers that press one after another must not stop a channel.
//! A channel is paused for at most `--publish-pause-ms` for each quarter of `--outbox-bytes-max` that is published on
//! it, so it is never slower than that.
//!
//! A subscriber that catches up does not press: it reads the history at its own pace. With `--on-slow skip` a
//! subscriber presses before it is skipped. The cost of a delivery is one comparison.

use std::collections::HashMap;

use super::engine::Engine;
use super::shared::Shared;
use super::slots::Slot;
use crate::config::Limits;
use crate::hub::SubscriptionState;
use crate::ids::{ChannelId, SlotId};
use crate::net::outbox::high_water;
use crate::net::transport::Transport;
use crate::time::LoopTime;
use crate::wire::Form;

/// While publishers are paused, the time limits of their channels are checked at this interval. Publishers are released
/// at once when the subscribers have caught up.
const CHECK_MS: u32 = 50;

/// Channels under pressure, and their paused publishers. Empty nearly always.
#[derive(Debug)]
pub(super) struct Pressure {
    /// Channels under pressure, and those that were until recently.
    channels: HashMap<ChannelId, Pressed>,
    /// Publishers that are paused, with the channel that they wait for.
    paused: Vec<(SlotId, ChannelId)>,
    /// Subscribers whose outbox has passed its high-water mark in this turn, and the channel whose batch did that, if it
    /// is known. They are checked again after the writes.
    pub(super) high: Vec<(SlotId, Option<ChannelId>)>,
    /// True if a subscriber has stopped pressing since paused publishers were last checked.
    has_eased: bool,
    next_check: LoopTime,
}

/// The part of the high-water mark that a channel publishes before its publishers are paused for a backlog that another
/// channel has caused: 8 KiB, so the 128 channels of a connection add 1 MiB to an outbox that has room for 1.5.
const QUIET_SHARE: usize = 64;

/// A channel under pressure.
#[derive(Debug)]
struct Pressed {
    /// Number of subscribers that press.
    pressers: u32,
    /// When the first one began, or, if none presses, when the last one stopped.
    since: LoopTime,
    /// The remaining time for which its publishers may be paused.
    credit_ms: u32,
    /// Bytes published since that time was last extended.
    bytes: usize,
    /// The minimum of published bytes before its publishers are paused.
    bytes_min: usize,
}

impl Pressed {
    fn is_pausing(&self, now: LoopTime) -> bool {
        self.pressers > 0 && self.bytes >= self.bytes_min && now.millis_since(self.since) < self.credit_ms
    }
}

impl Pressure {
    pub(super) fn new() -> Pressure {
        Pressure {
            channels: HashMap::new(),
            paused: Vec::new(),
            high: Vec::new(),
            has_eased: false,
            next_check: LoopTime::from_millis(0),
        }
    }

    /// Returns true if a channel is under pressure, or was until recently.
    pub(super) fn is_felt(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Returns true if the publishers of a channel are to be paused.
    pub(super) fn is_pausing(&self, channel: ChannelId, now: LoopTime) -> bool {
        self.channels.get(&channel).is_some_and(|pressed| pressed.is_pausing(now))
    }

    /// Records that a subscriber begins to press on a channel.
    ///
    /// If the channel `is_cause`, its batch was too much for the subscriber, and its publishers are paused at once. The
    /// other channels of the subscriber pause theirs after [`QUIET_SHARE`] of the high-water mark: otherwise a
    /// subscriber could pause the publishers of all channels that it may subscribe to, by a backlog of its own making.
    pub(super) fn press(&mut self, channel: ChannelId, is_cause: bool, limits: &Limits, now: LoopTime) {
        let most = limits.publish_pause_ms;
        let bytes_min = high_water(limits.outbox_bytes_max) / QUIET_SHARE;
        let fresh = Pressed { pressers: 0, since: now, credit_ms: most, bytes: 0, bytes_min };
        let pressed = self.channels.entry(channel).or_insert(fresh);
        if pressed.pressers == 0 {
            let quarter = high_water(limits.outbox_bytes_max).max(1) as u64;
            let earned = (pressed.bytes as u64).saturating_mul(u64::from(most)) / quarter;
            pressed.credit_ms =
                earned.saturating_add(u64::from(pressed.credit_ms)).min(u64::from(most)) as u32;
            (pressed.since, pressed.bytes, pressed.bytes_min) = (now, 0, bytes_min);
        }
        if is_cause {
            pressed.bytes_min = 0;
        }
        pressed.pressers += 1;
    }

    /// Records that a subscriber stops pressing on a channel.
    pub(super) fn ease(&mut self, channel: ChannelId, now: LoopTime) {
        let Some(pressed) = self.channels.get_mut(&channel) else { return };
        pressed.pressers -= 1;
        if pressed.pressers == 0 {
            pressed.credit_ms = pressed.credit_ms.saturating_sub(now.millis_since(pressed.since));
            pressed.since = now;
            self.has_eased = true;
        }
    }

    /// Ends the pressure of a subscriber that has caught up, or has pressed for `--publish-pause-ms`.
    pub(super) fn end<T: Transport>(&mut self, slot: &mut Slot<T>, now: LoopTime) {
        if slot.set_pressing(false) {
            slot.outbox.stop_throttling();
            for subscription in slot.subscriptions.as_slice() {
                self.ease(subscription.channel, now);
            }
        }
    }

    /// Returns the number of subscribers that press on a channel; for checks.
    pub(super) fn pressers(&self) -> impl Iterator<Item = (ChannelId, u32)> {
        self.channels.iter().map(|(&channel, pressed)| (channel, pressed.pressers))
    }
}

impl<T: Transport> Engine<T> {
    /// After the writes of a turn: lets subscribers press that are still over their high-water mark, and releases
    /// publishers whose subscribers have caught up.
    pub(super) fn check_pressure(&mut self, now: LoopTime) {
        while let Some((id, cause)) = self.pressure.high.pop() {
            self.begin_throttling(id, cause, now);
        }
        self.release_publishers(now);
    }

    fn begin_throttling(&mut self, id: SlotId, cause: Option<ChannelId>, now: LoopTime) {
        let Engine { slots, pressure, draining, shared: Shared { limits, .. }, .. } = self;
        let until = now.after(limits.publish_pause_ms);
        let Some(slot) = slots.get_mut(id).filter(|slot| slot.takes_broadcast()) else { return };
        // Once in a backlog, whatever the result.
        let is_over = slot.outbox.begin_throttling(limits.outbox_bytes_max, until);
        if !is_over || limits.publish_pause_ms == 0 || draining.is_some() || slot.is_replaying() {
            return;
        }
        if slot.set_pressing(true) {
            for subscription in slot.subscriptions.as_slice() {
                pressure.press(subscription.channel, cause == Some(subscription.channel), limits, now);
            }
        }
    }

    /// Pauses the publisher of a message if its channel is under pressure.
    pub(super) fn feel_pressure(&mut self, id: SlotId, channel: ChannelId, bytes: usize, now: LoopTime) {
        let Some(pressed) = self.pressure.channels.get_mut(&channel) else { return };
        pressed.bytes += bytes;
        if pressed.is_pausing(now) {
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

    /// Releases the publishers whose channel is no longer under pressure.
    pub(super) fn release_publishers(&mut self, now: LoopTime) {
        let Engine { slots, pressure, shared: Shared { limits, .. }, .. } = self;
        let is_time = !pressure.paused.is_empty() && pressure.next_check.is_due(now);
        if !pressure.has_eased && !is_time {
            return;
        }
        pressure.has_eased = false;
        pressure.next_check = now.after(CHECK_MS);
        let Pressure { channels, paused, .. } = pressure;
        paused.retain(|&(id, channel)| {
            let is_pausing = channels.get(&channel).is_some_and(|pressed| pressed.is_pausing(now));
            if !is_pausing {
                slots.resume_publishing(id);
            }
            is_pausing && slots.get(id).is_some_and(Slot::is_publishing_paused)
        });
        // Slow subscribers have caught up by then, or are closed.
        let forget_ms = limits.slow_timeout_ms;
        channels.retain(|_, pressed| pressed.pressers > 0 || now.millis_since(pressed.since) < forget_ms);
    }

    /// Ends the pressure of one subscriber whose `--publish-pause-ms` is over. Called in the expire phase.
    pub(super) fn expire_pressure(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, pressure, .. } = self;
        if let Some(slot) = slots.get_mut(id)
            && slot.is_pressing()
            && slot.outbox.throttles_until().is_none_or(|until| until.is_due(now))
        {
            pressure.end(slot, now);
        }
    }

    /// Ends all pressure: the server drains, and every publisher is to be read and answered.
    pub(super) fn end_pressure(&mut self, now: LoopTime) {
        let pressing: Vec<SlotId> =
            self.slots.iter().filter(|(_, slot)| slot.is_pressing()).map(|(id, _)| id).collect();
        for id in pressing {
            if let Some(slot) = self.slots.get_mut(id) {
                self.pressure.end(slot, now);
            }
        }
        self.release_publishers(now);
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
