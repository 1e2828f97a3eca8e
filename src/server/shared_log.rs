//! The engine's part of a log that several servers share: the link to it, connections with messages that are not
//! acknowledged, and intents that wait for entries of the log.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::pending_publish::PendingPublish;
use crate::backplane::link::{Link, LinkConfig};
use crate::ids::SlotId;
use crate::session::intent::Intent;
use crate::time::LoopTime;

/// A log that several servers share.
#[derive(Debug)]
pub struct SharedLog {
    /// `None` while one of its events is applied: no item can be submitted meanwhile.
    pub(super) link: Option<Box<Link<PendingPublish>>>,
    /// WebSockets with messages that are not acknowledged.
    pub(super) in_flight: HashMap<SlotId, PublishesInFlight>,
    /// Subscriptions with a cursor that is ahead of this server, and what their connections sent after them.
    pub(super) waiting: HashMap<SlotId, WaitingIntents>,
    /// The connection whose next intent does not wait again.
    pub(super) released: Option<SlotId>,
    /// The waiting connections, in the order of the entries that they wait for.
    pub(super) barriers: VecDeque<Barrier>,
    /// The identity of the log; `None` before it was opened.
    pub(super) birth: Option<u32>,
    /// The time of the log when it was opened, in ms, and the same time of the loop.
    pub(super) opened_at: (u64, LoopTime),
    /// The log's time of the last entry, as the time by which idempotency keys expire.
    pub(super) log_time: LoopTime,
    /// The longest wait of a subscription for the log, as for a publish.
    pub(super) publish_timeout_ms: u32,
    /// The settings that the log has: idempotency keys, and their age in ms.
    pub(super) settings: Option<(u32, u32)>,
    /// An error that ends the process if it occurs before the link was up for the first time.
    pub(super) fatal: Option<String>,
}

/// The messages of a WebSocket that are not acknowledged.
#[derive(Debug, Default)]
pub(super) struct PublishesInFlight {
    pub(super) messages: u32,
    /// The close that waits for them. The completed close handshake confirms the messages of a raw WebSocket.
    pub(super) close: Option<HeldClose>,
}

/// A close that waits for the acknowledgements of a connection.
#[derive(Debug)]
pub(super) struct HeldClose {
    /// The close frame; `None`: none is sent.
    pub(super) close_frame: Option<Bytes>,
}

/// What a connection requested that waits until this server has read the log up to its end.
#[derive(Debug, Default)]
pub(super) struct WaitingIntents {
    pub(super) intents: Vec<Intent>,
}

/// An own entry that has to be read back before the intents of a connection are applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    pub(super) number: u64,
    pub(super) slot: SlotId,
    pub(super) deadline: LoopTime,
}

impl SharedLog {
    /// A log whose link connects at once.
    pub fn new(config: LinkConfig, now: LoopTime) -> SharedLog {
        SharedLog {
            publish_timeout_ms: config.publish_timeout_ms,
            link: Some(Box::new(Link::new(config, now))),
            in_flight: HashMap::new(),
            waiting: HashMap::new(),
            released: None,
            barriers: VecDeque::new(),
            birth: None,
            opened_at: (0, now),
            log_time: LoopTime::from_millis(0),
            settings: None,
            fatal: None,
        }
    }

    /// The link.
    pub fn link(&self) -> Option<&Link<PendingPublish>> {
        self.link.as_deref()
    }

    /// The link, for its driver.
    pub fn link_mut(&mut self) -> Option<&mut Link<PendingPublish>> {
        self.link.as_deref_mut()
    }

    /// The age of an entry in ms.
    pub(super) fn age_ms(&self, time_ms: u64, now: LoopTime) -> u32 {
        let (opened_ms, opened_at) = self.opened_at;
        let now_ms = opened_ms + u64::from(now.millis_since(opened_at));
        u32::try_from(now_ms.saturating_sub(time_ms)).unwrap_or(u32::MAX)
    }

    /// Counts a message that was submitted.
    pub(super) fn count_submitted(&mut self, slot: SlotId) {
        self.in_flight.entry(slot).or_default().messages += 1;
    }

    /// Counts a message that was acknowledged or has failed. Returns the close that has waited for it.
    pub(super) fn count_answered(&mut self, slot: SlotId) -> Option<HeldClose> {
        let in_flight = self.in_flight.get_mut(&slot)?;
        in_flight.messages -= 1;
        if in_flight.messages > 0 {
            return None;
        }
        self.in_flight.remove(&slot)?.close
    }

    /// Keeps a close until the messages of its connection are acknowledged. Returns it if all of them are.
    pub(super) fn hold_close(&mut self, slot: SlotId, close: HeldClose) -> Option<HeldClose> {
        match self.in_flight.get_mut(&slot) {
            Some(in_flight) => {
                // The first close frame is the last (RFC 6455 5.5.1).
                in_flight.close.get_or_insert(close);
                None
            }
            None => Some(close),
        }
    }

    /// Drops the intents and the close of a connection that has ended. The messages that it has submitted are published
    /// all the same.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.in_flight.remove(&slot);
        self.waiting.remove(&slot);
    }
}
