//! The receive phase: applies the entries of a log that several nodes share.
//!
//! Every node applies every entry in the order of the log, so ids, order and history are the same on all nodes. The
//! messages of this node's own clients are acknowledged here. The phase precedes *read*, since entries of the log are
//! older than new input.
//!
//! **Drain or requeue**: the phase ends when the link has no further event, or with [`LogProgress::HasMore`] when the
//! budget of the turn is used or subscribers are to be notified of a loss first; then the loop does not wait.

use std::ops::Bound;

use bytes::Bytes;
use log::{log, warn};

use super::engine::Engine;
use super::pending_item::PendingItem;
use super::pending_publish::PendingPublish;
use super::publish::{Applied, OrderedMessage};
use super::shared_log::{Barrier, FinishedPublish, HeldClose, SharedLog, WaitingIntents};
use super::subscriber_counts::CountsPart;
use crate::backplane::entry::{ChannelCounts, Item, LogKey, LogMessage};
use crate::backplane::event::{
    LinkEvent, LinkNotice, LogDiscontinuity, LogEntry, LogItem, Marker, OpenedLog, PublishFailure,
};
use crate::close::Reason;
use crate::hub::Published;
use crate::hub::channel::Channel;
use crate::hub::idempotency::IdempotencyKey;
use crate::ids::{ChannelId, ChannelName, GapReason, MessageId, Sender, Since, SlotId, User};
use crate::net::outbox::high_water;
use crate::net::transport::Transport;
use crate::session::LogMode;
use crate::session::http::query::PendingQuery;
use crate::session::intent::{Intent, Query};
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::time::LoopTime;

/// Cost of an entry in a turn's budget, in addition to its bytes: applying a heartbeat takes about as long as a frame.
const ENTRY_COST_BYTES: usize = 64;

/// Minimum time between two items with numbers of subscribers, in ms. The loop does not wake for them: heartbeats wake
/// it within two seconds.
const COUNTS_MS: u32 = 1_000;

/// The result of applying events of the log.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogProgress {
    /// The bytes that were received contain no further event.
    NeedsInput,
    /// There is more to apply in the next turn.
    HasMore,
}

impl<T: Transport> Engine<T> {
    /// Applies events of the log, up to a budget in bytes, which is reduced by their cost.
    pub fn apply_log(&mut self, budget: &mut usize, now: LoopTime) -> LogProgress {
        loop {
            if self.is_notifying() || *budget == 0 {
                return LogProgress::HasMore;
            }
            let Some(mut link) = self.shared_log.as_mut().and_then(|log| log.link.take()) else {
                return LogProgress::NeedsInput;
            };
            let event = link.next(now);
            let has_event = event.is_some();
            if let Some(event) = event {
                let cost = self.apply_event(event, now);
                *budget = budget.saturating_sub(cost);
            }
            if let Some(log) = &mut self.shared_log {
                log.link = Some(link);
            }
            if !has_event {
                self.release_waiting(now);
                return LogProgress::NeedsInput;
            }
        }
    }

    /// Applies one event. Returns its cost.
    fn apply_event(&mut self, event: LinkEvent<'_, PendingItem>, now: LoopTime) -> usize {
        match event {
            LinkEvent::Opened(opened) => self.log_opened(&opened, now),
            LinkEvent::ClientBlock(block) => self.clients.add_block(block as u32),
            LinkEvent::Up { is_first } => self.log_up(is_first),
            LinkEvent::Entry(entry) => return self.apply_entry(entry, now),
            LinkEvent::Marker(marker) => self.apply_marker(&marker, now),
            LinkEvent::Discontinuity(loss) => {
                self.fan_out_all(now);
                if loss.upto.epoch == self.hub.head().epoch {
                    self.hub.advance_to(loss.upto.seq);
                }
                if loss.includes_upto() {
                    self.hub.raise_cursor_floor_above_head();
                }
                self.announce_loss(&loss, now);
            }
            LinkEvent::RaiseEvicted { .. } => self.hub.raise_cursor_floor(),
            LinkEvent::Failed { pending, why } => self.fail_items(pending, why, now),
            LinkEvent::Replicated { upto, is_replicated } => {
                self.release_unreplicated_publishes(upto, is_replicated, now)
            }
            LinkEvent::Notice(notice) => self.log_notice(&notice, now),
        }
        ENTRY_COST_BYTES
    }

    fn log_opened(&mut self, opened: &OpenedLog, now: LoopTime) {
        let OpenedLog { birth, time_ms, .. } = *opened;
        let Some(log) = &mut self.shared_log else { return };
        log.opened_at = (time_ms, now);
        if log.birth.replace(birth).is_none() {
            self.hub.seed_idempotency(birth);
        }
    }

    fn log_up(&mut self, is_first: bool) {
        self.shared.log_mode = LogMode::Ready;
        if let Some(log) = &mut self.shared_log {
            // The other nodes have dropped the numbers of this node if it was silent.
            log.counts.send_all();
            if is_first {
                log.counts.request_all();
            }
        }
    }

    fn apply_entry(&mut self, mut entry: LogEntry<'_, PendingItem>, now: LoopTime) -> usize {
        let (last, cost) = (entry.last, entry.bytes + ENTRY_COST_BYTES);
        if entry.is_first {
            self.hub.begin_log(last.epoch, entry.first_seq.saturating_sub(1));
        }
        let log_time = LoopTime::from_millis(entry.time_ms);
        let Some(log) = &mut self.shared_log else { return cost };
        log.log_time = log_time;
        if let Some(millis) = entry.round_trip_ms {
            self.shared.metrics.backplane_round_trip.observe(f64::from(millis) / 1e3);
        }
        let (run, number, time_ms) = (entry.run, entry.number, entry.time_ms);
        while let Some(LogItem { id, item, pending }) = entry.next_item() {
            match item {
                Item::Message(message) => {
                    self.apply_message((number, id), &message, pending, log_time, now);
                }
                Item::Disconnect { reference, sub } => {
                    self.apply_disconnect((run, reference), sub, time_ms, now);
                }
                Item::DisconnectResult { run: addressed, reference, connections }
                    if addressed == self.run =>
                {
                    self.apply_disconnect_result(run, reference, connections, now);
                }
                Item::Ticket { hash, owner, grant } => {
                    self.apply_ticket((hash, owner, grant), pending, log_time, now);
                }
                Item::Redeem { hash, channel } => {
                    self.apply_redemption(run, (hash, channel), pending, log_time, now);
                }
                Item::SubscriberCounts { is_request, range, counts } if run != self.run => {
                    if let Some(log) = &mut self.shared_log {
                        log.counts.apply(run, range, counts);
                        if is_request {
                            log.counts.send_all();
                        }
                    }
                }
                Item::StreamEnded { hash, channel, grant } => {
                    self.apply_stream_end(hash, channel, grant, log_time);
                }
                Item::Settings { idempotency_keys, idempotency_age_ms } => {
                    self.compare_settings(id, idempotency_keys, idempotency_age_ms);
                }
                _ => {}
            }
        }
        self.hub.advance_to(last.seq);
        if self.shared.log_mode == LogMode::Starting {
            // The age of a message is that of its entry.
            let age_ms = self.shared_log.as_ref().map_or(0, |log| log.age_ms(entry.time_ms, now));
            self.fan_out_all(now.before(age_ms.min(self.shared.limits.history.age_ms)));
        }
        cost
    }

    /// Publishes a message of any node in its channel, and responds to its publisher if that is a client of this node.
    fn apply_message(
        &mut self,
        (number, id): (u64, MessageId),
        message: &LogMessage<'_>,
        pending: Option<PendingItem>,
        log_time: LoopTime,
        now: LoopTime,
    ) {
        let pending = match pending {
            Some(PendingItem::Publish(pending)) => Some(pending),
            _ => None,
        };
        let outcome = self.publish_item(id, message, pending.as_ref(), log_time, now);
        if let Some(pending) = pending {
            self.finish_applied_publish(number, id, pending, outcome, now);
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
                Ok(Published { id, index: 0, subscribers: 0 })
            }
        };
        self.hub.advance_to(id.seq);
        outcome
    }

    /// The channel of a message of the log. `None` if there is no room for a new one.
    fn open_for_item(&mut self, name: &str, pending: Option<&PendingPublish>) -> Option<ChannelId> {
        if let Some(channel) = self.hub.find(name) {
            return Some(channel);
        }
        let name = ChannelName::parse(name.as_bytes()).ok()?;
        let creator = pending.map(|pending| self.creator_of(pending)).unwrap_or_default();
        self.hub.open_as(&name, creator).ok()
    }

    fn apply_marker(&mut self, marker: &Marker, now: LoopTime) {
        let Marker { epoch, first_seq, survived, is_first, .. } = *marker;
        if is_first {
            self.hub.begin_log(epoch, first_seq);
            return;
        }
        // A node that begins with the new epoch has no earlier tickets, and all nodes must have the same.
        self.shared.authenticator.tickets.forget_unused();
        self.fail_lost_publishes(survived, now);
        let after = self.hub.head();
        self.fan_out_all(now);
        let known = self.hub.begin_epoch(epoch, survived);
        self.hub.forget_keys_after(known.unwrap_or(0));
        self.hub.advance_to(first_seq);
        match &marker.discontinuity {
            Some(loss) => self.announce_loss(loss, now),
            // The history has messages of an unknown epoch, which no longer have ids.
            None if known.is_none() => self.begin_discontinuity(after, None, GapReason::Epoch, now),
            None => {}
        }
    }

    fn announce_loss(&mut self, loss: &LogDiscontinuity, now: LoopTime) {
        // The lost entries may include the redemption of a ticket.
        self.shared.authenticator.tickets.forget_unused();
        if let Some(log) = &mut self.shared_log {
            log.counts.send_all();
            log.counts.request_all();
        }
        let why = if loss.cause.is_eviction() { GapReason::Evicted } else { GapReason::Lost };
        self.shared.metrics.backplane_lost_messages += loss.missed.unwrap_or(0);
        self.begin_discontinuity(loss.after, loss.missed, why, now);
    }

    fn fail_items(&mut self, pending: Vec<PendingItem>, why: PublishFailure, now: LoopTime) {
        let rejection = match why {
            PublishFailure::BackplaneDown => Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS },
            PublishFailure::Unconfirmed => Rejection::Unconfirmed,
            PublishFailure::BackplaneFull => Rejection::BackplaneFull,
        };
        for pending in pending {
            match pending {
                PendingItem::Publish(pending) => self.fail_publish(&pending, rejection, now),
                PendingItem::Disconnect(reference) => self.fail_disconnect(reference, rejection, now),
                PendingItem::Ticket(pending) => {
                    self.reject_request(pending.slot, &pending.options, rejection, now);
                }
                PendingItem::Redemption(pending) => self.fail_redemption(&pending, rejection, now),
            }
        }
    }

    fn fail_publish(&mut self, pending: &PendingPublish, rejection: Rejection, now: LoopTime) {
        self.shared.metrics.backplane_unconfirmed += u64::from(rejection == Rejection::Unconfirmed);
        self.finish_publish(pending, Err(rejection), now);
    }

    /// Counts a message that is acknowledged or rejected, and resumes reading its publisher if that was too fast for
    /// the log. Returns the close that has waited for it.
    pub(super) fn count_finished(&mut self, pending: &PendingPublish) -> Option<HeldClose> {
        let in_flight_max = high_water(self.shared.limits.outbox_bytes_max);
        let log = self.shared_log.as_mut().filter(|_| pending.is_web_socket())?;
        let FinishedPublish { close, resumes } = log.count_finished(pending.slot, in_flight_max);
        if resumes {
            self.slots.resume_publishing(pending.slot);
        }
        close
    }

    fn log_notice(&mut self, notice: &LinkNotice, now: LoopTime) {
        if self.shared.log_mode == LogMode::Starting
            && notice.is_fatal_at_start()
            && let Some(log) = &mut self.shared_log
        {
            log.fatal.get_or_insert_with(|| notice.to_string());
        }
        if let LinkNotice::NodeTimedOut(run) | LinkNotice::NodeShutDown(run) = notice {
            self.end_node(*run, now);
        }
        log!(notice.level(), "{notice}");
    }

    /// Handles the end of another node, or its silence: its results are no longer awaited, and its event streams have
    /// ended.
    fn end_node(&mut self, run: u32, now: LoopTime) {
        let log_time = self.log_time(now);
        self.shared.authenticator.tickets.end_streams_of(run, log_time);
        if let Some(log) = &mut self.shared_log {
            log.counts.remove(run);
            log.disconnects.iter_mut().for_each(|request| {
                request.awaited.remove(&run);
            });
        }
        self.respond_to_disconnects(now);
    }

    /// Warns if this node's idempotency settings differ from those of the log. All nodes must remember the same keys,
    /// since each decides by itself which messages are duplicates.
    fn compare_settings(&mut self, id: MessageId, keys: u32, age_ms: u32) {
        let own = self.own_settings();
        let Some(log) = &mut self.shared_log else { return };
        log.settings_at = (id, log.log_time);
        let is_new = log.settings.replace((keys, age_ms)) != Some((keys, age_ms));
        if is_new && own != (keys, age_ms) {
            warn!(
                "backplane: idempotency settings differ from the log's: keys {}/{keys} age_ms {}/{age_ms}",
                own.0, own.1
            );
        }
    }

    fn own_settings(&self) -> (u32, u32) {
        let limits = self.shared.limits.idempotency;
        (u32::try_from(limits.keys_max).unwrap_or(u32::MAX), limits.age_ms)
    }

    // Closes and subscriptions that wait for entries.

    /// Queues a close frame, after the acknowledgements of the connection's messages.
    pub(super) fn begin_close_frame(&mut self, id: SlotId, close_frame: Option<Bytes>, now: LoopTime) {
        let close = HeldClose { close_frame };
        let close = match &mut self.shared_log {
            Some(log) => log.hold_close(id, close),
            None => Some(close),
        };
        match close {
            Some(HeldClose { close_frame }) => self.queue_close_frame(id, close_frame, now),
            None => self.slots.mark_close_held(id, true),
        }
    }

    /// Returns true if an intent has to wait until this node has read the shared log up to its present end: its cursor
    /// is ahead, since the client received it on another node; or an earlier intent of the connection waits.
    #[cold]
    pub(super) fn must_wait(&mut self, id: SlotId, intent: &Intent, now: LoopTime) -> bool {
        let Some(log) = &mut self.shared_log else { return false };
        if log.waiting.contains_key(&id) {
            return true;
        }
        if log.released.take_if(|released| *released == id).is_some() {
            return false;
        }
        let since = match intent {
            Intent::Subscribe { options, .. } => options.since,
            Intent::SendHello { subscription: Some((_, options)), .. } => options.since,
            Intent::Query => match self.slots.get(id).and_then(|slot| slot.state.query()) {
                Some(PendingQuery { query: Query::History { since, .. }, .. }) => *since,
                _ => return false,
            },
            _ => return false,
        };
        let Since::After(cursor) = since else { return false };
        let Some(link) = log.link.as_mut().filter(|_| self.hub.is_ahead(cursor)) else { return false };
        let deadline = now.after(log.publish_timeout_ms);
        log.barriers.push_back(Barrier { number: link.barrier(now), slot: id, deadline });
        log.waiting.insert(id, WaitingIntents::default());
        self.slots.mark_waiting_for_log(id, true);
        true
    }

    /// Queues an intent until this node has read the shared log.
    #[cold]
    pub(super) fn wait_for_log(&mut self, id: SlotId, intent: Intent) {
        if let Some(waiting) = self.shared_log.as_mut().and_then(|log| log.waiting.get_mut(&id)) {
            waiting.intents.push(intent);
        }
    }

    /// Applies the intents that have waited for entries which were applied.
    fn release_waiting(&mut self, now: LoopTime) {
        while let Some(log) = &mut self.shared_log
            && let Some(barrier) = log.barriers.front().copied()
        {
            let is_applied = log.link().is_some_and(|link| link.applied_number() >= barrier.number);
            if !is_applied && !barrier.deadline.is_due(now) {
                return;
            }
            log.barriers.pop_front();
            let Some(WaitingIntents { intents }) = log.waiting.remove(&barrier.slot) else { continue };
            self.slots.mark_waiting_for_log(barrier.slot, false);
            for (at, intent) in intents.into_iter().enumerate() {
                match intent {
                    // The link is down, so the cursor cannot be checked.
                    intent if at == 0 && !is_applied => self.close_waiting(barrier.slot, intent, now),
                    // If the cursor is still ahead, it belongs to a log that this node does not read.
                    intent if at == 0 => self.apply_released(barrier.slot, intent, now),
                    intent => self.apply(barrier.slot, intent, now),
                }
            }
            self.slots.resume_reading(barrier.slot);
        }
    }

    /// Applies an intent that has waited, whatever its cursor.
    fn apply_released(&mut self, id: SlotId, intent: Intent, now: LoopTime) {
        if let Some(log) = &mut self.shared_log {
            log.released = Some(id);
        }
        self.apply(id, intent, now);
    }

    /// Closes a connection whose cursor cannot be checked: the client connects again, and may reach a node that can
    /// check it.
    fn close_waiting(&mut self, id: SlotId, intent: Intent, now: LoopTime) {
        match intent {
            // No hello is sent: its id would be less than the client's cursor.
            Intent::Subscribe { .. } | Intent::SendHello { subscription: Some(_), .. } => {
                self.close_with(id, Reason::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS }, now);
            }
            Intent::Query => {
                let query = self.slots.get_mut(id).and_then(|slot| slot.state.take_query());
                let rejection = Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS };
                if let Some(query) = query {
                    self.reject_request(id, &query.options, rejection, now);
                }
            }
            intent => self.apply(id, intent, now),
        }
    }

    /// Returns true if messages may be lost that other nodes have not reported yet.
    pub(super) fn has_unreported_loss(&self) -> bool {
        let link = self.shared_log.as_ref().and_then(|log| log.link());
        link.is_some_and(|link| link.has_unreported_loss())
    }

    // The end of a turn, and time.

    /// Ends the turn for the log: its entry is complete.
    pub fn finish_log_turn(&mut self, now: LoopTime) {
        let settings = self.own_settings();
        if let Some(log) = &mut self.shared_log {
            log.submit_notices(now);
        }
        self.send_counts(now);
        let needs_block = self.clients.needs_block(self.slots.next_id());
        let (connections, subscribers) = (self.slots.len() as u32, self.hub.subscriptions() as u32);
        let Some(log) = self.shared_log.as_mut() else { return };
        let declares_settings = log.declares_settings(settings);
        let Some(link) = &mut log.link else { return };
        link.set_counts(connections, subscribers);
        if needs_block {
            link.request_client_block();
        }
        if declares_settings {
            link.submit_settings(settings.0, settings.1, now);
        }
        link.finish_turn();
    }

    /// Sends numbers of subscribers that have changed to the other nodes.
    fn send_counts(&mut self, now: LoopTime) {
        let Engine { shared_log: Some(log), hub, .. } = self else { return };
        let SharedLog { link: Some(link), counts, next_counts_at, .. } = log else { return };
        if !link.is_up() || !next_counts_at.is_due(now) {
            return;
        }
        *next_counts_at = now.after(COUNTS_MS);
        let subscribers = |id| hub.channel(id).map_or(0, Channel::subscribers);
        let part = counts.next_part(
            |name| hub.find(name).map_or(0, subscribers),
            |after| {
                let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
                hub.channels_from("", from).map(move |(name, id)| (name, subscribers(id)))
            },
        );
        if let Some(CountsPart { is_request, range, rows }) = part {
            let range = range.as_ref().map(|(after, upto)| (&**after, &**upto));
            let counts = ChannelCounts::encoded(&rows);
            link.submit_notice(&Item::SubscriberCounts { is_request, range, counts }, now);
        }
    }

    /// Rejects the subscriptions and publishes whose deadline has expired, and responds to requests without the results
    /// of silent nodes.
    pub(super) fn expire_log(&mut self, now: LoopTime) {
        if self.shared_log.is_some() {
            self.release_waiting(now);
            self.expire_unreplicated_publishes(now);
            self.respond_to_disconnects(now);
            self.send_gathered();
        }
    }

    /// When a waiting subscription or publish is rejected, or a request to disconnect a user gets its response.
    pub(super) fn next_log_expiry(&self) -> Option<LoopTime> {
        let log = self.shared_log.as_ref()?;
        let barrier = log.barriers.front().map(|barrier| barrier.deadline);
        let disconnects = log.disconnects.iter().filter_map(|request| request.deadline);
        let unreplicated = log.unreplicated.front().map(|publish| publish.deadline);
        barrier.into_iter().chain(unreplicated).chain(disconnects).reduce(LoopTime::min)
    }

    /// The time by which idempotency keys expire.
    pub(super) fn log_time(&self, now: LoopTime) -> LoopTime {
        self.shared_log.as_ref().map_or(now, |log| log.log_time)
    }
}
