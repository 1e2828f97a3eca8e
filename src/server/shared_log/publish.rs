//! Messages and a shared log: those of this node's clients are sent to it, those of all nodes are published when they
//! are read from it.

use bytes::Bytes;

use super::applied_entry::AppliedEntry;
use super::pending_item::PendingItem;
use super::publishes_in_flight::{AfterPublish, HeldClose};
use crate::backplane::entry::{Item, LogKey, LogMessage};
use crate::backplane::link::SubmitError;
use crate::hub::channel::Channel;
use crate::hub::idempotency::IdempotencyKey;
use crate::hub::{Duplicate, Published};
use crate::ids::{ChannelId, ChannelName, MessageId, Sender, SlotId, User};
use crate::net::outbox::high_water;
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::server::pending_publish::PendingPublish;
use crate::server::publish::{Applied, OrderedMessage, PublishTarget, identity};
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use crate::wire::Kind;

impl<T: Transport> Engine<T> {
    /// Submits a message to the shared log. It is published when it is read back from there.
    // Cold: kept out of the code for a server that is its own log.
    #[cold]
    pub(in crate::server) fn publish_in_log(
        &mut self,
        kind: Kind,
        payload: &[u8],
        pending: PendingPublish,
        now: LoopTime,
    ) {
        match self.submit(&pending, payload.len(), now) {
            Ok(target) => self.submit_to_log(target, kind, payload, pending, now),
            Err(rejection) => self.reject_publish(&pending, rejection, now),
        }
    }

    /// Adds a message to this turn's entry of the shared log.
    fn submit_to_log(
        &mut self,
        target: PublishTarget,
        kind: Kind,
        payload: &[u8],
        mut pending: PendingPublish,
        now: LoopTime,
    ) {
        let Some(slot) = self.slots.get(pending.slot) else { return };
        let address = pending.receipt.client().unwrap_or(slot.peer.ip());
        let sender = self.sender(&pending);
        let (rights, name, key) =
            (pending.rights.clone(), pending.channel.clone(), pending.receipt.take_key());
        let key = name.as_ref().zip(key.as_deref()).map(|(name, key)| IdempotencyKey {
            channel: name.as_str(),
            owner: identity(&rights, address),
            key,
        });
        let log_time = self.log_time(now);
        if let Some(duplicate) = key.and_then(|key| self.hub.find_duplicate(key, kind, payload, log_time)) {
            return self.respond_to_duplicate(duplicate, &pending, now);
        }
        let channel = match (target, &name) {
            (_, Some(name)) => name.as_str(),
            (PublishTarget::Existing(channel), None) => self.hub.channel(channel).map_or("", Channel::name),
            (PublishTarget::New(_), None) => "",
        };
        let unknown_until = self.hub.head();
        let message = LogMessage {
            channel,
            kind,
            payload,
            client: sender.client,
            user: sender.user.as_ref().map(User::as_json),
            key: key.map(|IdempotencyKey { owner, key, .. }| LogKey { owner, key, unknown_until }),
        };
        // A quarter of an outbox, at which subscribers begin to throttle: the rest has room for the messages in flight.
        let in_flight_max = high_water(self.shared.limits.outbox_bytes_max);
        let Some(log) = &mut self.shared_log else { return };
        let (slot, is_web_socket) = (pending.slot, pending.is_web_socket());
        let submitted = match &mut log.link {
            Some(link) => link.submit(&Item::Message(message), Some(PendingItem::Publish(pending)), now),
            None => Err((SubmitError::Backlog, Some(PendingItem::Publish(pending)))),
        };
        match submitted {
            Ok(()) if is_web_socket => {
                if log.in_flight.begin(slot, payload.len(), in_flight_max) {
                    self.slots.pause_publishing(slot);
                }
            }
            Err((error, Some(PendingItem::Publish(pending)))) => {
                self.reject_publish(&pending, error.into(), now);
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Responds to a message whose key is known, without sending it to the log.
    fn respond_to_duplicate(&mut self, duplicate: Duplicate, pending: &PendingPublish, now: LoopTime) {
        match duplicate {
            Duplicate::Same(published) => {
                self.shared.metrics.messages_repeated += 1;
                self.acknowledge(pending, published, now);
            }
            Duplicate::OtherPayload => self.reject_publish(pending, Rejection::KeyReused, now),
        }
    }

    /// Publishes a message of any node in its channel, and responds to its publisher if that is a client of this node.
    pub(super) fn apply_message(
        &mut self,
        entry: AppliedEntry,
        id: MessageId,
        message: &LogMessage<'_>,
        pending: Option<PendingItem>,
        now: LoopTime,
    ) {
        let pending = match pending {
            Some(PendingItem::Publish(pending)) => Some(pending),
            _ => None,
        };
        let outcome = self.publish_item(id, message, pending.as_ref(), entry.log_time, now);
        if let Some(pending) = pending {
            self.finish_applied_publish(entry.number, id, pending, outcome, now);
        }
    }

    /// Publishes a message of any node. Returns the outcome for its publisher.
    fn publish_item(
        &mut self,
        id: MessageId,
        message: &LogMessage<'_>,
        pending: Option<&PendingPublish>,
        log_time: LoopTime,
        now: LoopTime,
    ) -> Result<Published, Rejection> {
        let LogMessage { channel: name, kind, payload, client, user, key } = *message;
        self.hub.advance_to(id.seq.saturating_sub(1));
        let outcome = match self.open_for_item(name, pending) {
            Some(channel) => {
                let subscription = pending
                    .and_then(|pending| self.slots.get(pending.slot))
                    .and_then(|slot| slot.subscriptions.find(channel));
                let key = key.map(|LogKey { owner, key, unknown_until }| {
                    let key = IdempotencyKey { channel: name, owner, key };
                    self.hub.forget_key_until(key, unknown_until);
                    key
                });
                let sender = Sender { client, user: user.map(User::from_json) };
                let message = OrderedMessage { channel, kind, payload, sender, key, subscription };
                match (self.apply_item(message, log_time), pending) {
                    (Ok(applied), Some(pending)) => {
                        Ok(self.count_published(pending, channel, applied, payload.len(), now))
                    }
                    (Ok(applied), None) => {
                        let is_new = matches!(applied, Applied::New(_));
                        self.shared.metrics.published_by_backplane += u64::from(is_new);
                        Ok(applied.published())
                    }
                    (Err(rejection), _) => Err(rejection),
                }
            }
            None => {
                self.hub.skip_message();
                Ok(Published { id, log_index: 0, subscribers: 0 })
            }
        };
        self.hub.advance_to(id.seq);
        outcome
    }

    /// The channel of a message of the log. `None` if the table of channels is full.
    fn open_for_item(&mut self, name: &str, pending: Option<&PendingPublish>) -> Option<ChannelId> {
        if let Some(channel) = self.hub.find(name) {
            return Some(channel);
        }
        let name = ChannelName::parse(name.as_bytes()).ok()?;
        let creator = pending.map(|pending| self.creator_of(pending)).unwrap_or_default();
        self.hub.open_as(&name, creator).ok()
    }

    /// Sends a publisher its acknowledgement or rejection, and the close frame that has waited for it.
    pub(super) fn finish_publish(
        &mut self,
        pending: &PendingPublish,
        outcome: Result<Published, Rejection>,
        now: LoopTime,
    ) {
        let close = self.count_finished(pending);
        match outcome {
            Ok(published) => self.acknowledge(pending, published, now),
            Err(rejection) => self.reject_publish(pending, rejection, now),
        }
        if let Some(close) = close {
            self.queue_close_frame(pending.slot, close.close_frame, now);
        }
    }

    pub(super) fn fail_publish(&mut self, pending: &PendingPublish, rejection: Rejection, now: LoopTime) {
        self.shared.metrics.backplane_unconfirmed += u64::from(rejection == Rejection::Unconfirmed);
        self.finish_publish(pending, Err(rejection), now);
    }

    /// Counts a message that is acknowledged or rejected, and resumes reading its publisher if that was too fast for
    /// the log. Returns the close that has waited for it.
    fn count_finished(&mut self, pending: &PendingPublish) -> Option<HeldClose> {
        let in_flight_max = high_water(self.shared.limits.outbox_bytes_max);
        let log = self.shared_log.as_mut().filter(|_| pending.is_web_socket())?;
        let AfterPublish { close, resumes } = log.in_flight.end(pending.slot, in_flight_max);
        if resumes {
            self.slots.resume_publishing(pending.slot);
        }
        close
    }

    /// Queues a close frame, after the acknowledgements of the connection's messages.
    pub(in crate::server) fn begin_close_frame(
        &mut self,
        id: SlotId,
        close_frame: Option<Bytes>,
        now: LoopTime,
    ) {
        let close = HeldClose { close_frame };
        let close = match &mut self.shared_log {
            Some(log) => log.in_flight.hold_close(id, close),
            None => Some(close),
        };
        match close {
            Some(HeldClose { close_frame }) => self.queue_close_frame(id, close_frame, now),
            None => self.slots.mark_close_held(id, true),
        }
    }
}
