//! Publishing, in two parts: `submit` checks what does not depend on other publishers of the channel (rate, rights,
//! draining, room), and `apply` puts the message into the channel and acknowledges it.
//!
//! `apply` is the part that a log shared by several servers would call for each of its entries: it opens the channel,
//! finds duplicates by their idempotency key, publishes, and answers the publisher.

use std::net::IpAddr;

use bytes::Bytes;

use super::engine::Engine;
use super::slots::Slot;
use crate::access::authenticator::Rights;
use crate::access::identity::ClientIdentity;
use crate::access::limit::Limit;
use crate::access::rate_limiter::{RateKey, RateLimited, RateLimits};
use crate::hub::creators::Creator;
use crate::hub::idempotency::IdempotencyKey;
use crate::hub::{Duplicate, Published};
use crate::ids::{ChannelId, ChannelName, ClientId, Sender, SlotId};
use crate::net::transport::Transport;
use crate::session::intent::Receipt;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::notice::{Id, Notice};

/// A message as its publisher sent it.
#[derive(Debug)]
pub(super) struct Publication {
    /// `None`: the channel that a raw WebSocket subscribes to.
    pub(super) channel: Option<ChannelName>,
    pub(super) kind: Kind,
    pub(super) payload: Bytes,
    pub(super) receipt: Receipt,
    pub(super) rights: Rights,
}

/// The channel that a message is published on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishTarget {
    Existing(ChannelId),
    /// The channel does not exist yet, and counts for this creator.
    New(Creator),
}

impl<T: Transport> Engine<T> {
    /// Publishes a message, or answers its publisher with the reason why it is not published.
    pub(super) fn publish(&mut self, id: SlotId, publication: &Publication, now: LoopTime) {
        let published = match self.submit(id, publication, now) {
            Ok(target) => self.apply_publication(id, target, publication, now),
            Err(rejection) => Err(rejection),
        };
        if let Err(rejection) = published {
            self.reject_publication(id, rejection, publication, now);
        }
    }

    /// Checks rate, rights, draining and room. Returns the channel that the message is to be published on.
    fn submit(
        &mut self,
        id: SlotId,
        publication: &Publication,
        now: LoopTime,
    ) -> Result<PublishTarget, Rejection> {
        // Before a channel is opened for it.
        self.take_rate(id, publication, now)?;
        let Publication { channel, receipt, rights, .. } = publication;
        let grant = self.shared.authenticator.grant(rights);
        let Some(name) = channel else {
            let subscriptions = self.slots.get(id).map_or(&[][..], |slot| slot.subscriptions.as_slice());
            let &[subscription, ..] = subscriptions else { return Err(Rejection::ConnectionClosing) };
            let name = self.hub.channel(subscription.channel).map_or("", |channel| channel.name());
            return match self.drain_retry_ms() {
                _ if !grant.publish.include_name(name) => Err(Rejection::PermissionDenied),
                Some(retry_ms) => Err(Rejection::Draining { retry_ms }),
                None => Ok(PublishTarget::Existing(subscription.channel)),
            };
        };
        if !grant.may_publish(name) {
            return Err(Rejection::PermissionDenied);
        }
        let Some(slot) = self.slots.get(id) else { return Err(Rejection::ConnectionClosing) };
        if let Some(retry_ms) = self.drain_retry_ms() {
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

    /// Opens the channel, publishes the message unless it is a duplicate, and acknowledges it.
    fn apply_publication(
        &mut self,
        id: SlotId,
        target: PublishTarget,
        publication: &Publication,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        let Publication { channel: name, kind, payload, receipt, rights } = publication;
        let (name, kind) = (name.as_ref(), *kind);
        let channel = match (target, name) {
            (PublishTarget::Existing(channel), _) => channel,
            (PublishTarget::New(creator), Some(name)) => {
                self.hub.open_as(name, creator).map_err(|_| Rejection::ChannelTableFull)?
            }
            (PublishTarget::New(_), None) => return Err(Rejection::ConnectionClosing),
        };
        let Some(slot) = self.slots.get(id) else { return Ok(()) };
        let owner = identity(rights, receipt.client().unwrap_or(slot.peer.ip()));
        let key = name.zip(receipt.key());
        let key = key.map(|(name, key)| IdempotencyKey { channel: name.as_str(), owner, key });
        match key.and_then(|key| self.hub.find_duplicate(key, kind, payload, now)) {
            Some(Duplicate::Same(published)) => {
                self.shared.metrics.messages_repeated += 1;
                self.hub.remove_if_unused(channel);
                self.acknowledge(id, published, publication, now);
                return Ok(());
            }
            Some(Duplicate::OtherPayload) => {
                self.hub.remove_if_unused(channel);
                return Err(Rejection::KeyReused);
            }
            None => {}
        }
        let subscription = slot.subscriptions.find(channel);
        let metrics = &mut self.shared.metrics;
        let (client, count) = match receipt {
            Receipt::Response { .. } => (None, &mut metrics.published_by_http),
            Receipt::None | Receipt::Ack { .. } => {
                (Some(ClientId::of(id, self.client_salt)), &mut metrics.published_by_websocket)
            }
        };
        *count += 1;
        let user = rights.as_ref().and_then(|grant| grant.user.clone());
        let published = self.hub.publish(channel, kind, payload, Sender { client, user }, subscription);
        if self.pressure.is_active() {
            self.throttle_publisher(id, channel, payload.len(), now);
        }
        if let Some(key) = key {
            self.hub.record_key(key, kind, payload, published.index, now);
        }
        self.acknowledge(id, published, publication, now);
        Ok(())
    }

    /// Takes the message from the rate of its publisher, which is set by its grant or by the limits for all.
    fn take_rate(&mut self, id: SlotId, publication: &Publication, now: LoopTime) -> Result<(), Rejection> {
        // Messages of a closing connection are not published, and do not count.
        let is_closing = self.slots.get(id).is_none_or(Slot::is_close_queued);
        if is_closing {
            return Ok(());
        }
        let Publication { receipt, rights, payload, .. } = publication;
        let key = match receipt {
            Receipt::Response { client: Some(client), .. } => RateKey::ClientIp(*client),
            _ => RateKey::Connection(id),
        };
        let limits = RateLimits::of(&self.shared.limits, rights.as_deref());
        self.rate_limiter.take(key, limits, payload.len(), now).map_err(|RateLimited { limit, retry_ms }| {
            self.shared.metrics.limit(limit);
            Rejection::RateLimited { retry_ms }
        })
    }

    /// Sends a publisher the id of its message, and the number of the channel's subscribers if it may subscribe to it.
    fn acknowledge(&mut self, id: SlotId, published: Published, publication: &Publication, now: LoopTime) {
        let Published { id: message, subscribers, .. } = published;
        let Publication { channel, receipt, rights, .. } = publication;
        match receipt {
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                self.send_notice(id, &Notice::Ack { reference: reference.as_deref(), id: Id(message) });
            }
            Receipt::Response { options, .. } => {
                let grant = self.shared.authenticator.grant(rights);
                let may_subscribe = channel.as_ref().is_some_and(|name| grant.may_subscribe(name));
                let subscribers = if may_subscribe { subscribers.to_string() } else { "null".to_owned() };
                let body = format!("{{\"id\":\"{message}\",\"subscribers\":{subscribers}}}\n");
                self.answer(id, options.json(200, &body).into(), now);
            }
        }
    }

    /// Sends a publisher the reason why its message is not published. The protocol of a raw WebSocket has no errors: the
    /// connection is closed.
    fn reject_publication(
        &mut self,
        id: SlotId,
        rejection: Rejection,
        publication: &Publication,
        now: LoopTime,
    ) {
        let Publication { channel, receipt, .. } = publication;
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
                let error = rejection.http();
                self.shared.metrics.reject(error.code());
                self.answer(id, error.respond(options).into(), now);
            }
        }
    }
}

/// Returns the identity of a client with these rights at this address.
pub(super) fn identity(rights: &Rights, address: IpAddr) -> ClientIdentity<'_> {
    ClientIdentity::of(rights.as_ref().and_then(|grant| grant.sub.as_deref()), address)
}
