//! The engine's part of a log that several nodes share: the link to it, connections with messages that are not
//! acknowledged, and intents that wait for entries of the log.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::disconnect_request::DisconnectRequest;
use super::pending_item::PendingItem;
use super::subscriber_counts::SubscriberCounts;
use super::unreplicated_publish::UnreplicatedPublish;
use crate::access::ticket::TicketHash;
use crate::backplane::entry::Item;
use crate::backplane::link::{Link, LinkConfig, SubmitError};
use crate::features::HasBackplane;
use crate::ids::{MessageId, SlotId};
use crate::session::intent::Intent;
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::time::LoopTime;

/// Time of the log between two declarations of the settings, in ms: the log's entries are kept for at least twice as
/// long.
const SETTINGS_MS: u32 = 30_000;

/// The interval if the last declaration was trimmed by `--backplane-bytes-max`.
const TRIMMED_SETTINGS_MS: u32 = 1_000;

/// A log that several nodes share.
#[derive(Debug)]
pub struct SharedLog {
    _feature: HasBackplane,
    /// `None` while one of its events is applied: no item can be submitted meanwhile.
    pub(super) link: Option<Box<Link<PendingItem>>>,
    /// WebSockets with messages that are not acknowledged.
    pub(super) in_flight: HashMap<SlotId, PublishesInFlight>,
    /// Subscriptions with a cursor that is ahead of this node, and the later intents of their connections.
    pub(super) waiting: HashMap<SlotId, WaitingIntents>,
    /// The connection whose next intent is applied without waiting again.
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
    /// True with `--backplane-wait-replicas`.
    pub(super) waits_for_replicas: bool,
    /// Acknowledgements that wait for replicas, in the order of the log.
    pub(super) unreplicated: VecDeque<UnreplicatedPublish>,
    /// The settings that the log has: idempotency keys, and their age in ms.
    pub(super) settings: Option<(u32, u32)>,
    /// Requests to disconnect a user on all nodes that have no response yet.
    pub(super) disconnects: Vec<DisconnectRequest>,
    /// The reference of the last request to disconnect a user.
    pub(super) last_reference: u32,
    /// The numbers of subscribers on the other nodes.
    pub(super) counts: SubscriberCounts,
    /// When changed numbers of subscribers are sent.
    pub(super) next_counts_at: LoopTime,
    /// Notices for the entry of this turn.
    pub(super) notices: Vec<LogNotice>,
    /// The item that last declared the settings, and the log's time of it.
    pub(super) settings_at: (MessageId, LoopTime),
    /// An error that ends the process if it occurs before the link was up for the first time.
    pub(super) fatal: Option<String>,
}

/// A notice of this node to the others.
#[derive(Clone, Debug)]
pub(super) enum LogNotice {
    /// Number of connections of a user that were closed for the request of another node.
    DisconnectResult { run: u32, reference: u32, connections: u32 },
    /// An event stream has ended, and its ticket is valid again.
    StreamEnded { hash: TicketHash, channel: Box<str>, grant: String },
}

impl LogNotice {
    fn item(&self) -> Item<'_> {
        match self {
            LogNotice::DisconnectResult { run, reference, connections } => {
                Item::DisconnectResult { run: *run, reference: *reference, connections: *connections }
            }
            LogNotice::StreamEnded { hash, channel, grant } => Item::StreamEnded { hash, channel, grant },
        }
    }
}

/// The messages of a WebSocket that are not acknowledged.
#[derive(Debug, Default)]
pub(super) struct PublishesInFlight {
    pub(super) messages: u32,
    /// Bytes of their payloads, on the assumption that all have the same length.
    bytes: usize,
    /// The connection is not read: it has published faster than the log returns its messages.
    is_paused: bool,
    /// The close that waits for them. The completed close handshake confirms the messages of a raw WebSocket.
    pub(super) close: Option<HeldClose>,
}

/// A close that waits for the acknowledgements of a connection.
#[derive(Debug)]
pub(super) struct HeldClose {
    /// The close frame; `None`: none is sent.
    pub(super) close_frame: Option<Bytes>,
}

/// What to do after a message of a WebSocket is acknowledged or has failed.
#[derive(Debug, Default)]
pub(super) struct FinishedPublish {
    /// The close that has waited for it.
    pub(super) close: Option<HeldClose>,
    /// The connection is read again.
    pub(super) resumes: bool,
}

/// Intents of a connection that wait until this node has read the log up to its end.
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
    /// A log whose link connects at once. `channels_max`: the maximum number of stored subscriber counts of other
    /// nodes.
    pub fn new(feature: HasBackplane, config: LinkConfig, channels_max: usize, now: LoopTime) -> SharedLog {
        SharedLog {
            _feature: feature,
            publish_timeout_ms: config.publish_timeout_ms,
            waits_for_replicas: config.wait_replicas > 0,
            unreplicated: VecDeque::new(),
            link: Some(Box::new(Link::new(config, now))),
            in_flight: HashMap::new(),
            waiting: HashMap::new(),
            released: None,
            barriers: VecDeque::new(),
            birth: None,
            opened_at: (0, now),
            log_time: LoopTime::from_millis(0),
            settings: None,
            disconnects: Vec::new(),
            last_reference: 0,
            counts: SubscriberCounts::new(channels_max),
            next_counts_at: now,
            notices: Vec::new(),
            settings_at: (MessageId { epoch: 0, seq: 0 }, LoopTime::from_millis(0)),
            fatal: None,
        }
    }

    /// The link.
    pub fn link(&self) -> Option<&Link<PendingItem>> {
        self.link.as_deref()
    }

    /// The link, for its driver.
    pub fn link_mut(&mut self) -> Option<&mut Link<PendingItem>> {
        self.link.as_deref_mut()
    }

    /// The age of an entry in ms.
    pub(super) fn age_ms(&self, time_ms: u64, now: LoopTime) -> u32 {
        let (opened_ms, opened_at) = self.opened_at;
        let now_ms = opened_ms + u64::from(now.millis_since(opened_at));
        u32::try_from(now_ms.saturating_sub(time_ms)).unwrap_or(u32::MAX)
    }

    /// Returns a new reference for a request of this node.
    pub(super) fn take_reference(&mut self) -> u32 {
        self.last_reference = self.last_reference.wrapping_add(1);
        self.last_reference
    }

    /// The unanswered request with this reference.
    pub(super) fn disconnect(&mut self, reference: u32) -> Option<&mut DisconnectRequest> {
        self.disconnects.iter_mut().find(|request| request.reference == reference)
    }

    /// Removes the first request to disconnect a user that the predicate selects.
    pub(super) fn take_disconnect(
        &mut self,
        is_it: impl Fn(&DisconnectRequest) -> bool,
    ) -> Option<DisconnectRequest> {
        let at = self.disconnects.iter().position(is_it)?;
        Some(self.disconnects.remove(at))
    }

    /// Appends the notices of this turn.
    pub(super) fn submit_notices(&mut self, now: LoopTime) {
        let SharedLog { link: Some(link), notices, .. } = self else { return };
        for notice in std::mem::take(notices) {
            link.submit_notice(&notice.item(), now);
        }
    }

    /// Returns true if this node is to declare its settings: the log has none, or it has the same and their last
    /// declaration is old or trimmed. A node that starts with other settings reads them, and logs a warning.
    pub(super) fn declares_settings(&mut self, own: (u32, u32)) -> bool {
        let Some(link) = self.link().filter(|link| link.was_up()) else { return false };
        let (id, declared_at) = self.settings_at;
        let kept_ms = if link.oldest_kept() > id { TRIMMED_SETTINGS_MS } else { SETTINGS_MS };
        let is_kept = declared_at.is_due(self.log_time) && self.log_time.millis_since(declared_at) < kept_ms;
        let declares = self.settings.is_none() || self.settings == Some(own) && !is_kept;
        if declares {
            self.settings = Some(own);
            self.settings_at.1 = self.log_time;
        }
        declares
    }

    /// Counts a message that was submitted. Returns true if its publisher now has more than `bytes_max` in flight, and
    /// is not to be read.
    pub(super) fn count_submitted(&mut self, slot: SlotId, bytes: usize, bytes_max: usize) -> bool {
        let in_flight = self.in_flight.entry(slot).or_default();
        in_flight.messages += 1;
        in_flight.bytes += bytes;
        in_flight.bytes > bytes_max && !std::mem::replace(&mut in_flight.is_paused, true)
    }

    /// Counts a message that was acknowledged or has failed.
    pub(super) fn count_finished(&mut self, slot: SlotId, bytes_max: usize) -> FinishedPublish {
        let Some(in_flight) = self.in_flight.get_mut(&slot) else { return FinishedPublish::default() };
        in_flight.bytes -= in_flight.bytes / in_flight.messages as usize;
        in_flight.messages -= 1;
        let resumes = in_flight.bytes <= bytes_max / 2 && std::mem::take(&mut in_flight.is_paused);
        let is_last = in_flight.messages == 0;
        let close = if is_last { self.in_flight.remove(&slot).and_then(|last| last.close) } else { None };
        FinishedPublish { close, resumes }
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
        self.disconnects.retain(|request| request.slot != slot);
    }
}
impl From<SubmitError> for Rejection {
    fn from(error: SubmitError) -> Rejection {
        match error {
            SubmitError::Backlog => Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS },
            SubmitError::Full => Rejection::BackplaneFull,
        }
    }
}
