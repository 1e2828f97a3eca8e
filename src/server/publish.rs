//! Publishing, in two parts: `submit` checks what does not depend on other publishers of the channel (rate, rights,
//! draining, room), and `apply_item` puts the message into its channel at its place in the order of the log.
//!
//! A single server is its own log: the item is applied as soon as it is submitted. With a log that several nodes share,
//! the item is sent to the log, and applied by every node when it is read back. So `apply_item` has nothing to check
//! but the idempotency key, which is decided in the order of the log; and the publisher, which may have closed by then,
//! is a separate value ([`PendingPublish`]).

use std::net::IpAddr;

use log::{Level, debug, log_enabled};

use super::engine::Engine;
use super::log_target;
use super::pending_publish::PendingPublish;
use super::slot::Slot;
use crate::access::authenticator::Rights;
use crate::access::identity::ClientIdentity;
use crate::access::limit::Limit;
use crate::access::rate_limiter::{RateKey, RateLimited, RateLimits};
use crate::hub::channel::Channel;
use crate::hub::creators::Creator;
use crate::hub::idempotency::IdempotencyKey;
use crate::hub::{Duplicate, Published, Subscription};
use crate::ids::{ChannelId, ChannelName, Sender};
use crate::net::transport::Transport;
use crate::session::intent::Receipt;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::notice::{Id, Notice};

/// A message at its place in the order of the log.
#[derive(Debug)]
pub(super) struct OrderedMessage<'a> {
    pub(super) channel: ChannelId,
    pub(super) kind: Kind,
    pub(super) payload: &'a [u8],
    pub(super) sender: Sender,
    pub(super) key: Option<IdempotencyKey<'a>>,
    /// The sender's subscription, if it subscribes to the channel on this node.
    pub(super) subscription: Option<Subscription>,
}

/// The result of applying a message.
#[derive(Clone, Copy, Debug)]
pub(super) enum Applied {
    New(Published),
    /// The message is the same as this earlier one with the same idempotency key, and was not published again.
    Repeated(Published),
}

impl Applied {
    /// The values for the acknowledgement.
    pub(super) fn published(self) -> Published {
        match self {
            Applied::New(published) | Applied::Repeated(published) => published,
        }
    }
}

/// The channel that a message is published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishTarget {
    Existing(ChannelId),
    /// The channel does not exist yet, and counts for this creator.
    New(Creator),
}

impl<T: Transport> Engine<T> {
    /// Publishes a message, or responds to its publisher with the reason why it is not published.
    pub(super) fn publish(&mut self, kind: Kind, payload: &[u8], pending: &PendingPublish, now: LoopTime) {
        let published = match self.submit(pending, payload.len(), now) {
            Ok(target) => self.apply_own(target, kind, payload, pending, now),
            Err(rejection) => Err(rejection),
        };
        if let Err(rejection) = published {
            self.reject_publish(pending, rejection, now);
        }
    }

    /// Checks rate, rights, draining and room. Returns the channel that the message is to be published on.
    // The shared log is a second caller, so the compiler no longer inlines this and the three functions that are marked
    // too: that costs 100 of 2,500 instructions of a message to two subscribers.
    #[inline(always)]
    pub(super) fn submit(
        &mut self,
        pending: &PendingPublish,
        payload_bytes: usize,
        now: LoopTime,
    ) -> Result<PublishTarget, Rejection> {
        // Before a channel is opened for it.
        self.take_rate(pending, payload_bytes, now)?;
        let PendingPublish { slot: id, channel, receipt, rights } = pending;
        let id = *id;
        let grant = self.shared.authenticator.grant(rights);
        let Some(name) = channel else {
            let subscriptions = self.slots.get(id).map_or(&[][..], |slot| slot.subscriptions.as_slice());
            let &[subscription, ..] = subscriptions else { return Err(Rejection::ConnectionClosing) };
            let name = self.hub.channel(subscription.channel).map_or("", |channel| channel.name());
            return match self.drain_retry_ms_of(id) {
                _ if !grant.publish.include_name(name) => Err(Rejection::PermissionDenied),
                Some(retry_ms) => Err(Rejection::Draining { retry_ms }),
                None => Ok(PublishTarget::Existing(subscription.channel)),
            };
        };
        if !grant.may_publish(name) {
            return Err(Rejection::PermissionDenied);
        }
        let Some(slot) = self.slots.get(id) else { return Err(Rejection::ConnectionClosing) };
        if let Some(retry_ms) = self.drain_retry_ms_of(id) {
            return Err(Rejection::Draining { retry_ms });
        }
        if let Some(channel) = self.hub.find(name.as_str()) {
            return Ok(PublishTarget::Existing(channel));
        }
        let address = receipt.client().unwrap_or(slot.peer.ip());
        let publisher = self.hub.publishers().key(ClientIdentity::of(grant.sub.as_deref(), address));
        if self.hub.publishers().is_full(publisher) {
            return Err(Rejection::TooManyChannels(Limit::ChannelsPerPublisher));
        }
        let is_web_socket = !matches!(receipt, Receipt::Response { .. });
        let of_connection = slot.subscriptions.as_slice().len() + self.hub.channels_created_by(id);
        if is_web_socket && of_connection >= self.shared.limits.channels_per_client_max {
            return Err(Rejection::TooManyChannels(Limit::ChannelsPerClient));
        }
        if self.hub.is_full() {
            return Err(Rejection::ChannelTableFull);
        }
        Ok(PublishTarget::New(Creator {
            connection: is_web_socket.then_some(id),
            publisher: Some(publisher),
        }))
    }

    /// The creator of a channel that does not exist yet when a message is applied that was submitted before.
    pub(super) fn creator_of(&self, pending: &PendingPublish) -> Creator {
        let PendingPublish { slot: id, receipt, rights, .. } = pending;
        let Some(slot) = self.slots.get(*id) else { return Creator::default() };
        let owner = identity(rights, receipt.client().unwrap_or(slot.peer.ip()));
        Creator {
            connection: pending.is_web_socket().then_some(*id),
            publisher: Some(self.hub.publishers().key(owner)),
        }
    }

    /// Opens the channel of a message of a client of this node, applies the message, and acknowledges it.
    fn apply_own(
        &mut self,
        target: PublishTarget,
        kind: Kind,
        payload: &[u8],
        pending: &PendingPublish,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        let PendingPublish { slot: id, channel: name, receipt, rights } = pending;
        let channel = match (target, name) {
            (PublishTarget::Existing(channel), _) => channel,
            (PublishTarget::New(creator), Some(name)) => {
                self.hub.open_as(name, creator).map_err(|_| Rejection::ChannelTableFull)?
            }
            (PublishTarget::New(_), None) => return Err(Rejection::ConnectionClosing),
        };
        let Some(slot) = self.slots.get(*id) else { return Ok(()) };
        let owner = identity(rights, receipt.client().unwrap_or(slot.peer.ip()));
        let key = name.as_ref().zip(receipt.key());
        let key = key.map(|(name, key)| IdempotencyKey { channel: name.as_str(), owner, key });
        let subscription = slot.subscriptions.find(channel);
        let sender = self.sender(pending);
        let message = OrderedMessage { channel, kind, payload, sender, key, subscription };
        let applied = self.apply_item(message, now)?;
        let published = self.count_published(pending, channel, applied, payload.len(), now);
        self.acknowledge(pending, published, now);
        Ok(())
    }

    /// The public sender of a message.
    pub(super) fn sender(&self, pending: &PendingPublish) -> Sender {
        let PendingPublish { slot, rights, .. } = pending;
        Sender {
            client: pending.is_web_socket().then(|| self.clients.of(*slot)),
            user: rights.as_ref().and_then(|grant| grant.user.clone()),
        }
    }

    /// Publishes a message in its channel, unless its idempotency key is known. `log_time` is the time of the log, by
    /// which keys expire.
    ///
    /// # Errors
    /// [`Rejection::KeyReused`], which is sent to the publisher in place of an acknowledgement.
    #[inline(always)]
    pub(super) fn apply_item(
        &mut self,
        message: OrderedMessage<'_>,
        log_time: LoopTime,
    ) -> Result<Applied, Rejection> {
        let OrderedMessage { channel, kind, payload, sender, key, subscription } = message;
        if let Some(duplicate) = key.and_then(|key| self.hub.find_duplicate(key, kind, payload, log_time)) {
            self.hub.remove_if_unused(channel);
            return match duplicate {
                Duplicate::Same(published) => Ok(Applied::Repeated(published)),
                Duplicate::OtherPayload => Err(Rejection::KeyReused),
            };
        }
        let published = self.hub.publish(channel, kind, payload, sender, subscription);
        if let Some(key) = key {
            self.hub.record_key(key, kind, payload, published.log_index, log_time);
        }
        Ok(Applied::New(published))
    }

    /// Counts a message of a client of this node that was applied. Returns its values for the acknowledgement.
    #[inline(always)]
    pub(super) fn count_published(
        &mut self,
        pending: &PendingPublish,
        channel: ChannelId,
        applied: Applied,
        payload_bytes: usize,
        now: LoopTime,
    ) -> Published {
        let metrics = &mut self.shared.metrics;
        match applied {
            Applied::Repeated(published) => {
                metrics.messages_repeated += 1;
                published
            }
            Applied::New(published) => {
                match pending.receipt {
                    Receipt::Response { .. } => metrics.published_by_http += 1,
                    Receipt::None | Receipt::Ack { .. } => metrics.published_by_websocket += 1,
                }
                if self.pressure.is_active() {
                    self.throttle_publisher(pending.slot, channel, payload_bytes, now);
                }
                if log_enabled!(target: log_target::CHANNEL, Level::Debug) {
                    self.log_published(pending, channel, payload_bytes);
                }
                published
            }
        }
    }

    #[cold]
    fn log_published(&self, pending: &PendingPublish, channel: ChannelId, payload_bytes: usize) {
        let Some(slot) = self.slots.get(pending.slot) else { return };
        let name = self.hub.channel(channel).map_or("", Channel::name);
        let sub = self.shared.authenticator.grant(&pending.rights).sub.as_deref();
        debug!(
            target: log_target::CHANNEL,
            peer:% = slot.peer, sub, channel = name, bytes = payload_bytes; "publish"
        );
    }

    /// Takes the message from the rate of its publisher, which is set by its grant or by the limits for all.
    #[inline(always)]
    fn take_rate(
        &mut self,
        pending: &PendingPublish,
        payload_bytes: usize,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        let PendingPublish { slot: id, receipt, rights, .. } = pending;
        // Messages of a closing connection are not published, and do not count.
        let is_closing = self.slots.get(*id).is_none_or(Slot::is_close_queued);
        if is_closing {
            return Ok(());
        }
        let key = match receipt {
            Receipt::Response { client: Some(client), .. } => RateKey::ClientIp(*client),
            _ => RateKey::Connection(*id),
        };
        let limits = RateLimits::of(&self.shared.limits, rights.as_deref());
        self.rate_limiter.take(key, limits, payload_bytes, now).map_err(|RateLimited { limit, retry_ms }| {
            self.shared.metrics.limit(limit);
            Rejection::RateLimited { retry_ms }
        })
    }

    /// Sends a publisher the id of its message, and the number of the channel's subscribers if it may subscribe to it.
    pub(super) fn acknowledge(&mut self, pending: &PendingPublish, published: Published, now: LoopTime) {
        let Published { id: message, subscribers, .. } = published;
        let PendingPublish { slot: id, channel, receipt, rights } = pending;
        let id = *id;
        match receipt {
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                self.send_notice(id, &Notice::Ack { reference: reference.as_deref(), id: Id(message) });
            }
            Receipt::Response { options, .. } => {
                let grant = self.shared.authenticator.grant(rights);
                let may_subscribe = channel.as_ref().is_some_and(|name| grant.may_subscribe(name));
                let elsewhere = channel.as_ref().map_or(0, |name| self.subscribers_elsewhere(name.as_str()));
                let subscribers = subscribers + elsewhere;
                let subscribers = if may_subscribe { subscribers.to_string() } else { "null".to_owned() };
                let body = format!("{{\"id\":\"{message}\",\"subscribers\":{subscribers}}}\n");
                self.respond_with_json(id, options, &body, now);
            }
        }
    }

    /// Sends a publisher the reason why its message is not published. The protocol of a raw WebSocket has no errors:
    /// the connection is closed.
    pub(super) fn reject_publish(&mut self, pending: &PendingPublish, rejection: Rejection, now: LoopTime) {
        let PendingPublish { slot: id, channel, receipt, .. } = pending;
        let id = *id;
        let rejection = match rejection {
            Rejection::BackplaneDown { retry_ms } => Rejection::NotPublished { retry_ms },
            other => other,
        };
        match rejection {
            Rejection::ConnectionClosing => return,
            Rejection::TooManyChannels(limit) => self.shared.metrics.limit(limit),
            _ => {}
        }
        match receipt {
            Receipt::None => {
                if let Some(reason) = rejection.close() {
                    self.close_with(id, reason, now);
                }
            }
            Receipt::Ack { reference, .. } => {
                let name = channel.as_ref().map(ChannelName::as_str);
                let ch = name.filter(|_| rejection == Rejection::PermissionDenied);
                if let Some(frame) = rejection.v1(reference.as_deref(), ch) {
                    self.send(id, &frame);
                }
            }
            Receipt::Response { options, .. } => {
                self.reject_request(id, options, rejection, now);
            }
        }
    }
}

/// Returns the identity of a client with these rights at this address.
pub(super) fn identity(rights: &Rights, address: IpAddr) -> ClientIdentity<'_> {
    ClientIdentity::of(rights.as_ref().and_then(|grant| grant.sub.as_deref()), address)
}
