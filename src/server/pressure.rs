//! Back pressure: slow subscribers pause the publishers of their channels, for a bounded time.
//!
//! A publisher can be faster than any subscriber for a moment. So a subscriber whose outbox passes its high-water mark
//! (a quarter of `--outbox-bytes-max`) *throttles* its channels until its outbox is empty, but for at most
//! `--publish-pause-ms` in one backlog. After that it does not throttle them again until its outbox has been empty, and
//! the outbox limit closes it. While a channel is under pressure, messages that were already read are published, and
//! its publishers are paused: a WebSocket is not read, and the response to an HTTP request is withheld, in its order
//! with the others, so that the next request is not read either. The kernel buffers the rest.
//!
//! **Bounded for the channel too**: many slow subscribers that throttle one after another must not stop a channel.
//! A channel is paused for at most `--publish-pause-ms` for each quarter of `--outbox-bytes-max` that is published on
//! it, which is the lowest rate to which it can be slowed.
//!
//! A subscriber that catches up does not throttle: it reads the history at its own pace. With `--on-slow skip` a
//! subscriber throttles before it is skipped. The cost of a delivery is one comparison.

use std::collections::HashMap;

use super::slot::Slot;
use crate::config::Limits;
use crate::ids::{ChannelId, SlotId};
use crate::net::outbox::high_water;
use crate::net::transport::Transport;
use crate::time::LoopTime;

/// Channels under pressure, and their paused publishers. Nearly always empty.
#[derive(Debug)]
pub(super) struct Pressure {
    /// Channels under pressure, and those that were until recently.
    pub(super) channels: HashMap<ChannelId, ThrottledChannel>,
    /// Publishers that are paused, with the channel that they wait for.
    pub(super) paused: Vec<(SlotId, ChannelId)>,
    /// Subscribers whose outbox has passed its high-water mark in this turn, and the channel whose batch did that, if
    /// it is known. They are checked again after the writes.
    pub(super) high: Vec<(SlotId, Option<ChannelId>)>,
    /// True if a subscriber has stopped throttling since paused publishers were last checked.
    pub(super) has_ended: bool,
    pub(super) next_check: LoopTime,
}

/// The part of the high-water mark that a channel publishes before its publishers are paused for a backlog that another
/// channel has caused: 8 KiB, so the 128 channels of a connection add 1 MiB to an outbox that has room for 1.5.
const QUIET_SHARE: usize = 64;

/// A channel under pressure.
#[derive(Debug)]
pub(super) struct ThrottledChannel {
    /// Number of subscribers that throttle it.
    pub(super) subscribers: u32,
    /// When the first subscriber began to throttle, or, if none is left, when the last one stopped.
    pub(super) since: LoopTime,
    /// The remaining time for which its publishers may be paused.
    credit_ms: u32,
    /// Bytes published since that time was last extended.
    pub(super) bytes: usize,
    /// The minimum of published bytes before its publishers are paused.
    bytes_min: usize,
}

impl ThrottledChannel {
    pub(super) fn is_pausing(&self, now: LoopTime) -> bool {
        self.subscribers > 0 && self.bytes >= self.bytes_min && now.millis_since(self.since) < self.credit_ms
    }
}

impl Pressure {
    pub(super) fn new() -> Pressure {
        Pressure {
            channels: HashMap::new(),
            paused: Vec::new(),
            high: Vec::new(),
            has_ended: false,
            next_check: LoopTime::from_millis(0),
        }
    }

    /// Returns true if a channel is under pressure, or was until recently.
    pub(super) fn is_active(&self) -> bool {
        !self.channels.is_empty()
    }

    /// Returns true if the publishers of a channel are to be paused.
    pub(super) fn is_pausing(&self, channel: ChannelId, now: LoopTime) -> bool {
        self.channels.get(&channel).is_some_and(|throttled| throttled.is_pausing(now))
    }

    /// Records that a subscriber begins to throttle a channel.
    ///
    /// If the channel `is_cause`, its batch was too much for the subscriber, and its publishers are paused at once. The
    /// other channels of the subscriber pause theirs after [`QUIET_SHARE`] of the high-water mark: otherwise a
    /// subscriber could pause the publishers of all channels that it may subscribe to, by a backlog of its own making.
    pub(super) fn begin_throttling(
        &mut self,
        channel: ChannelId,
        is_cause: bool,
        limits: &Limits,
        now: LoopTime,
    ) {
        let most = limits.publish_pause_ms;
        let bytes_min = high_water(limits.outbox_bytes_max) / QUIET_SHARE;
        let fresh = ThrottledChannel { subscribers: 0, since: now, credit_ms: most, bytes: 0, bytes_min };
        let throttled = self.channels.entry(channel).or_insert(fresh);
        if throttled.subscribers == 0 {
            let quarter = high_water(limits.outbox_bytes_max).max(1) as u64;
            let earned = (throttled.bytes as u64).saturating_mul(u64::from(most)) / quarter;
            throttled.credit_ms =
                earned.saturating_add(u64::from(throttled.credit_ms)).min(u64::from(most)) as u32;
            (throttled.since, throttled.bytes, throttled.bytes_min) = (now, 0, bytes_min);
        }
        if is_cause {
            throttled.bytes_min = 0;
        }
        throttled.subscribers += 1;
    }

    /// Records that a subscriber stops throttling a channel.
    pub(super) fn end_throttling(&mut self, channel: ChannelId, now: LoopTime) {
        let Some(throttled) = self.channels.get_mut(&channel) else { return };
        throttled.subscribers -= 1;
        if throttled.subscribers == 0 {
            throttled.credit_ms = throttled.credit_ms.saturating_sub(now.millis_since(throttled.since));
            throttled.since = now;
            self.has_ended = true;
        }
    }

    /// Ends the pressure of a subscriber that has caught up, or has throttled for `--publish-pause-ms`.
    pub(super) fn end<T: Transport>(&mut self, slot: &mut Slot<T>, now: LoopTime) {
        if slot.set_throttling(false) {
            slot.outbox.stop_throttling();
            for subscription in slot.subscriptions.as_slice() {
                self.end_throttling(subscription.channel, now);
            }
        }
    }

    /// Returns the number of subscribers that throttle each channel; for checks.
    pub(super) fn throttling_subscribers(&self) -> impl Iterator<Item = (ChannelId, u32)> {
        self.channels.iter().map(|(&channel, throttled)| (channel, throttled.subscribers))
    }
}
