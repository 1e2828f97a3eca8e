//! A message comes in: may it, is it too fast, has it come before; and what its publisher hears of it.

use std::net::IpAddr;

use super::engine::Engine;
use super::slots::Slot;
use crate::access::authenticator::Rights;
use crate::access::connection_limiter::TOO_MANY_RETRY_MS;
use crate::access::identity::ClientIdentity;
use crate::access::limit::Limit;
use crate::access::rate_limiter::{RateKey, RateLimited, RateLimits};
use crate::close::Reason;
use crate::hub::creators::Creator;
use crate::hub::idempotency::IdempotencyKey;
use crate::hub::{Duplicate, Published};
use crate::ids::{ChannelId, ChannelName, ClientId, Sender, SlotId};
use crate::net::transport::Transport;
use crate::session::auth_state::FORBIDDEN;
use crate::session::http::response::HttpError;
use crate::session::intent::Receipt;
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::notice::{Id, Notice};

/// Why something is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPublication {
    /// There are as many channels as there may be.
    ChannelsFull,
    /// The publisher has created the maximum number of existing channels.
    TooManyChannels(Limit),
    /// The server is going away.
    Drain { retry_ms: u32 },
    /// It has no right to that.
    Forbidden,
    /// Its idempotency key names a message with another payload.
    KeyReused,
    /// A raw connection is a member of nothing any more.
    Gone,
}

/// Error text for a publisher that has created too many channels.
const TOO_MANY_CHANNELS: &str = "not published: this client has created as many channels as it may; channels end with \
                                 their last subscriber and message";

/// Error text for a publisher that uses one key for two messages.
const KEY_REUSED: &str = "not published: a message with another payload was published under this key";

impl<T: Transport> Engine<T> {
    /// The channel that somebody may publish on; it is made if it is not there.
    pub(super) fn channel_to_publish_on(
        &mut self,
        id: SlotId,
        name: Option<&ChannelName>,
        receipt: &Receipt,
        rights: &Rights,
    ) -> Result<ChannelId, NoPublication> {
        let grant = self.shared.authenticator.grant(rights);
        let Some(name) = name else {
            let subscriptions = self.slots.get(id).map_or(&[][..], |slot| slot.subscriptions.as_slice());
            let &[subscription, ..] = subscriptions else { return Err(NoPublication::Gone) };
            let name = self.hub.channel(subscription.channel).map_or("", |channel| channel.name());
            return match self.drain_retry_ms() {
                _ if !grant.publish.include_name(name) => Err(NoPublication::Forbidden),
                Some(retry_ms) => Err(NoPublication::Drain { retry_ms }),
                None => Ok(subscription.channel),
            };
        };
        if !grant.may_publish(name) {
            return Err(NoPublication::Forbidden);
        }
        let Some(slot) = self.slots.get(id) else { return Err(NoPublication::Gone) };
        if let Some(retry_ms) = self.drain_retry_ms() {
            return Err(NoPublication::Drain { retry_ms });
        }
        if let Some(channel) = self.hub.find(name.as_str()) {
            return Ok(channel);
        }
        let address = receipt.client().unwrap_or(slot.peer.ip());
        let publisher = self.hub.publishers().key(ClientIdentity::of(grant.sub.as_deref(), address));
        if self.hub.publishers().is_full(publisher) {
            return Err(NoPublication::TooManyChannels(Limit::ChannelsPerPublisher));
        }
        let is_web_socket = !matches!(receipt, Receipt::Response { .. });
        let of_connection = slot.subscriptions.as_slice().len() + self.hub.channels_created_by(id);
        if is_web_socket && of_connection >= self.shared.limits.channels_per_client_max {
            return Err(NoPublication::TooManyChannels(Limit::ChannelsPerClient));
        }
        let creator = Creator { connection: is_web_socket.then_some(id), publisher: Some(publisher) };
        self.hub.open_as(name, creator).map_err(|_| NoPublication::ChannelsFull)
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
                self.hub.end_if_empty(channel);
                return self.confirm(id, published, receipt, sees_members, now);
            }
            Some(Duplicate::OtherPayload) => {
                self.hub.end_if_empty(channel);
                return self.refuse_publication(id, NoPublication::KeyReused, name, &receipt, now);
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
    ) -> Result<(), RateLimited> {
        // Nor what comes behind a close.
        let is_closing = self.slots.get(id).is_none_or(Slot::is_close_queued);
        if is_closing {
            return Ok(());
        }
        let who = match receipt {
            Receipt::Response { client: Some(client), .. } => RateKey::ClientIp(*client),
            _ => RateKey::Connection(id),
        };
        self.rate_limiter.take(who, RateLimits::of(&self.shared.limits, rights.as_deref()), bytes, now)
    }

    /// Tells a publisher that it is too fast. What it sent is not published. A raw WebSocket has no words for
    /// that, and is closed.
    pub(super) fn reject_rate_limited(
        &mut self,
        id: SlotId,
        too_fast: RateLimited,
        receipt: &Receipt,
        now: LoopTime,
    ) {
        let RateLimited { limit, retry_ms } = too_fast;
        self.shared.metrics.limit(limit);
        match receipt {
            Receipt::None => self.close_with(id, Reason::RateLimited { retry_ms }, now),
            Receipt::Ack { reference, .. } => {
                let reference = reference.as_deref();
                let message = &format!("not published: this is too fast, retry_ms={retry_ms}");
                self.send_notice(id, &Notice::Error { reference, ch: None, code: "rate_limited", message });
            }
            Receipt::Response { manner, .. } => {
                let refusal = HttpError::rate_limited(retry_ms);
                self.shared.metrics.reject(refusal.code());
                self.answer(id, refusal.respond(manner).into(), now);
            }
        }
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

    pub(super) fn refuse_publication(
        &mut self,
        id: SlotId,
        no: NoPublication,
        name: Option<&ChannelName>,
        receipt: &Receipt,
        now: LoopTime,
    ) {
        let (refusal, code, message) = match no {
            NoPublication::Drain { retry_ms } => {
                (HttpError::drain(retry_ms), "drain", "the server is going away")
            }
            NoPublication::TooManyChannels(limit) => {
                self.shared.metrics.limit(limit);
                let refusal = HttpError::too_many("too_many_channels", TOO_MANY_CHANNELS, TOO_MANY_RETRY_MS);
                (refusal, "too_many_channels", TOO_MANY_CHANNELS)
            }
            NoPublication::ChannelsFull => {
                (HttpError::no_channel(), "over_capacity", "the server has as many channels as it takes")
            }
            // draft-ietf-httpapi-idempotency-key-header-06 2.7.
            NoPublication::KeyReused => {
                (HttpError::new(422, "key_reused", KEY_REUSED), "key_reused", KEY_REUSED)
            }
            NoPublication::Forbidden => (HttpError::new(403, "forbidden", FORBIDDEN), "forbidden", FORBIDDEN),
            NoPublication::Gone => return,
        };
        match receipt {
            Receipt::None if no == NoPublication::Forbidden => self.close_with(id, Reason::Forbidden, now),
            Receipt::None if let NoPublication::Drain { retry_ms } = no => {
                self.close_with(id, Reason::Drain { retry_ms }, now);
            }
            Receipt::None => {}
            Receipt::Ack { reference, .. } => {
                let (reference, ch) = (reference.as_deref(), name.map(ChannelName::as_str));
                let ch = ch.filter(|_| no == NoPublication::Forbidden);
                self.send_notice(id, &Notice::Error { reference, ch, code, message });
            }
            Receipt::Response { manner, .. } => {
                self.shared.metrics.reject(code);
                self.answer(id, refusal.respond(manner).into(), now);
            }
        }
    }
}

/// The client with these rights, at this address.
pub(super) fn identity(rights: &Rights, address: IpAddr) -> ClientIdentity<'_> {
    ClientIdentity::of(rights.as_ref().and_then(|grant| grant.sub.as_deref()), address)
}
