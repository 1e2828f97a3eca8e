//! A message comes in: may it, is it too fast, has it come before; and what its publisher hears of it.

use std::net::IpAddr;

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

impl<T: Transport> Engine<T> {
    /// The channel that somebody may publish on; it is made if it is not there.
    pub(super) fn channel_to_publish_on(
        &mut self,
        id: SlotId,
        name: Option<&ChannelName>,
        receipt: &Receipt,
        rights: &Rights,
    ) -> Result<ChannelId, Rejection> {
        let grant = self.shared.authenticator.grant(rights);
        let Some(name) = name else {
            let subscriptions = self.slots.get(id).map_or(&[][..], |slot| slot.subscriptions.as_slice());
            let &[subscription, ..] = subscriptions else { return Err(Rejection::ConnectionClosing) };
            let name = self.hub.channel(subscription.channel).map_or("", |channel| channel.name());
            return match self.drain_retry_ms() {
                _ if !grant.publish.include_name(name) => Err(Rejection::PermissionDenied),
                Some(retry_ms) => Err(Rejection::Draining { retry_ms }),
                None => Ok(subscription.channel),
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
            return Ok(channel);
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
        let creator = Creator { connection: is_web_socket.then_some(id), publisher: Some(publisher) };
        self.hub.open_as(name, creator).map_err(|_| Rejection::ChannelTableFull)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn publish(
        &mut self,
        id: SlotId,
        channel: ChannelId,
        name: Option<&ChannelName>,
        kind: Kind,
        payload: &[u8],
        receipt: Receipt,
        rights: &Rights,
        now: LoopTime,
    ) {
        let Some(slot) = self.slots.get(id) else { return };
        let owner = identity(rights, receipt.client().unwrap_or(slot.peer.ip()));
        let sees_members =
            name.is_some_and(|name| self.shared.authenticator.grant(rights).may_subscribe(name));
        let key = name.zip(receipt.key());
        let key = key.map(|(name, key)| IdempotencyKey { channel: name.as_str(), owner, key });
        match key.and_then(|key| self.hub.find_duplicate(key, kind, payload, now)) {
            Some(Duplicate::Same(published)) => {
                self.shared.metrics.messages_repeated += 1;
                self.hub.remove_if_unused(channel);
                return self.confirm(id, published, receipt, sees_members, now);
            }
            Some(Duplicate::OtherPayload) => {
                self.hub.remove_if_unused(channel);
                return self.reject_publication(id, Rejection::KeyReused, name, &receipt, now);
            }
            None => {}
        }
        let subscription = slot.subscriptions.find(channel);
        let (client, count) = match receipt {
            Receipt::Response { .. } => (None, &mut self.shared.metrics.published_by_http),
            Receipt::None | Receipt::Ack { .. } => {
                (Some(ClientId::of(id, self.client_salt)), &mut self.shared.metrics.published_by_websocket)
            }
        };
        *count += 1;
        let user = rights.as_ref().and_then(|grant| grant.user.clone());
        let published = self.hub.publish(channel, kind, payload, Sender { client, user }, subscription);
        if self.pressure.is_felt() {
            self.feel_pressure(id, channel, payload.len(), now);
        }
        if let Some(key) = key {
            self.hub.record_key(key, kind, payload, published.id, now);
        }
        self.confirm(id, published, receipt, sees_members, now);
    }

    /// Is that as fast as the connection may publish, by its grant or by the limits of all?
    pub(super) fn pace(
        &mut self,
        id: SlotId,
        rights: &Rights,
        bytes: usize,
        receipt: &Receipt,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        // Nor what comes behind a close.
        let is_closing = self.slots.get(id).is_none_or(Slot::is_close_queued);
        if is_closing {
            return Ok(());
        }
        let who = match receipt {
            Receipt::Response { client: Some(client), .. } => RateKey::ClientIp(*client),
            _ => RateKey::Connection(id),
        };
        let limits = RateLimits::of(&self.shared.limits, rights.as_deref());
        self.rate_limiter.take(who, limits, bytes, now).map_err(|RateLimited { limit, retry_ms }| {
            self.shared.metrics.limit(limit);
            Rejection::RateLimited { retry_ms }
        })
    }

    /// Sends a publisher the id of its message, and the number of the channel's subscribers if it may subscribe to it.
    fn confirm(
        &mut self,
        id: SlotId,
        published: Published,
        receipt: Receipt,
        sees_members: bool,
        now: LoopTime,
    ) {
        let Published { id: message, subscribers } = published;
        match receipt {
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                self.send_notice(id, &Notice::Ack { reference: reference.as_deref(), id: Id(message) });
            }
            Receipt::Response { manner, .. } => {
                let subscribers = if sees_members { subscribers.to_string() } else { "null".to_owned() };
                let body = format!("{{\"id\":\"{message}\",\"subscribers\":{subscribers}}}\n");
                self.answer(id, manner.json(200, &body).into(), now);
            }
        }
    }

    /// Reports to a publisher that its message is not published. A raw WebSocket has no error messages and is closed.
    pub(super) fn reject_publication(
        &mut self,
        id: SlotId,
        rejection: Rejection,
        name: Option<&ChannelName>,
        receipt: &Receipt,
        now: LoopTime,
    ) {
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
                let ch = name.map(ChannelName::as_str).filter(|_| rejection == Rejection::PermissionDenied);
                if let Some(frame) = rejection.v1(reference.as_deref(), ch) {
                    self.send(id, &frame);
                }
            }
            Receipt::Response { manner, .. } => {
                let error = rejection.http();
                self.shared.metrics.reject(error.code());
                self.answer(id, error.respond(manner).into(), now);
            }
        }
    }
}

/// The client with these rights, at this address.
pub(super) fn identity(rights: &Rights, address: IpAddr) -> ClientIdentity<'_> {
    ClientIdentity::of(rights.as_ref().and_then(|grant| grant.sub.as_deref()), address)
}
