//! A log that several nodes share, and this server as one of the nodes.
//!
//! The server sends the messages of its clients to the log, reads the log, and publishes the messages of all nodes in
//! its hub. Requests that concern all nodes are items of the log too. [`SharedLog`] is the state that outlives a turn.
//! The other files are methods of the engine and of the loop:
//!
//! - [`receive`] is the receive phase: it applies the entries of the log. `phases` is the log's part of the loop,
//!   `turn` the end of a turn and its deadlines.
//! - `publish` sends messages to the log, publishes those that return, and acknowledges them. `replication` delays
//!   the acknowledgements until replicas have the messages. `submit` sends other requests of clients to the log.
//! - `cursor_waits` delays subscriptions whose cursor is ahead of this node.
//! - `discontinuity` notifies all subscribers when messages of the log are missing.
//!
//! The other files are parts of the state.

pub(super) mod applied_entry;
mod cursor_waits;
pub(super) mod disconnect_requests;
mod discontinuity;
mod log_clock;
pub(super) mod log_notice;
pub(super) mod pending_item;
pub(super) mod phases;
mod publish;
mod publishes_in_flight;
pub mod receive;
mod replication;
mod shared_settings;
mod submit;
pub(super) mod subscriber_counts;
mod turn;
mod unreplicated_publishes;
mod waiting_intents;

use crate::backplane::link::{Link, LinkConfig};
use crate::features::HasBackplane;
use crate::ids::SlotId;
use crate::time::LoopTime;
use disconnect_requests::DisconnectRequests;
use log_clock::LogClock;
use log_notice::LogNotice;
use pending_item::PendingItem;
use publishes_in_flight::PublishesInFlight;
use shared_settings::DeclaredSettings;
use subscriber_counts::SubscriberCounts;
use unreplicated_publishes::UnreplicatedPublishes;
use waiting_intents::WaitingIntents;

/// A log that several nodes share.
#[derive(Debug)]
pub struct SharedLog {
    _feature: HasBackplane,
    /// `None` while one of its events is applied: no item can be submitted meanwhile.
    link: Option<Box<Link<PendingItem>>>,
    /// The identity of the log; `None` before it was opened.
    birth: Option<u32>,
    clock: LogClock,
    settings: DeclaredSettings,
    /// The longest wait of a subscription or an acknowledgement for the log, as for a publish.
    publish_timeout_ms: u32,
    in_flight: PublishesInFlight,
    /// `None` without `--backplane-wait-replicas`.
    unreplicated: Option<UnreplicatedPublishes>,
    waiting: WaitingIntents,
    /// Requests to disconnect a user on all nodes.
    pub(super) disconnects: DisconnectRequests,
    /// The numbers of subscribers on the other nodes.
    pub(super) counts: SubscriberCounts,
    /// Notices for the entry of this turn.
    notices: Vec<LogNotice>,
    /// An error that ends the process if it occurs before the link was up for the first time.
    fatal: Option<String>,
}

impl SharedLog {
    /// A log whose link connects at once. `channels_max`: the maximum number of stored subscriber counts of other
    /// nodes.
    pub fn new(feature: HasBackplane, config: LinkConfig, channels_max: usize, now: LoopTime) -> SharedLog {
        SharedLog {
            _feature: feature,
            publish_timeout_ms: config.publish_timeout_ms,
            unreplicated: (config.wait_replicas > 0).then(UnreplicatedPublishes::default),
            link: Some(Box::new(Link::new(config, now))),
            birth: None,
            clock: LogClock::new(now),
            settings: DeclaredSettings::new(),
            in_flight: PublishesInFlight::default(),
            waiting: WaitingIntents::default(),
            disconnects: DisconnectRequests::default(),
            counts: SubscriberCounts::new(channels_max, now),
            notices: Vec::new(),
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

    /// The identity of the log; `None` before it was opened.
    pub(super) fn birth(&self) -> Option<u32> {
        self.birth
    }

    /// The age of an entry in ms, by the time of the log.
    pub(super) fn age_ms(&self, time_ms: u64, now: LoopTime) -> u32 {
        self.clock.age_ms(time_ms, now)
    }

    /// Adds a notice to the entry of this turn.
    pub(super) fn add_notice(&mut self, notice: LogNotice) {
        self.notices.push(notice);
    }

    /// Takes the error that ends the process.
    pub(super) fn take_fatal(&mut self) -> Option<String> {
        self.fatal.take()
    }

    /// Drops the intents, requests and close of a connection that has ended. The messages that it has submitted are
    /// published all the same.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.in_flight.forget(slot);
        self.waiting.forget(slot);
        self.disconnects.forget(slot);
    }
}
