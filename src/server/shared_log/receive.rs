//! The receive phase: applies the entries of a log that several nodes share.
//!
//! Every node applies every entry in the order of the log, so ids, order and history are the same on all nodes. The
//! messages of this node's own clients are acknowledged here. The phase precedes *read*, since entries of the log are
//! older than new input.
//!
//! **Drain or requeue**: the phase ends when the link has no further event, or with [`LogProgress::HasMore`] when the
//! budget of the turn is used or subscribers are to be notified of a loss first; then the loop does not wait.

use log::{log, warn};

use super::applied_entry::AppliedEntry;
use super::pending_item::PendingItem;
use super::shared_settings::SharedSettings;
use crate::backplane::discontinuity::LogDiscontinuity;
use crate::backplane::entry::Item;
use crate::backplane::event::{LinkEvent, LogEntry, LogItem, Marker, OpenedLog};
use crate::backplane::notice::LinkNotice;
use crate::ids::{GapReason, MessageId, RunId};
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::session::LogMode;
use crate::time::LoopTime;

/// Cost of an entry in a turn's budget, in addition to its bytes: applying a heartbeat takes about as long as a frame.
const ENTRY_COST_BYTES: usize = 64;

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
        log.clock.opened(time_ms, now);
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
        let Some(log) = &mut self.shared_log else { return cost };
        let log_time = log.clock.advance_to(entry.time_ms);
        if let Some(millis) = entry.round_trip_ms {
            self.shared.metrics.backplane_round_trip.observe(f64::from(millis) / 1e3);
        }
        let applied = AppliedEntry { run: entry.run, number: entry.number, time_ms: entry.time_ms, log_time };
        while let Some(item) = entry.next_item() {
            self.apply_log_item(applied, item, now);
        }
        self.hub.advance_to(last.seq);
        if self.shared.log_mode == LogMode::Starting {
            // The age of a message is that of its entry.
            let age_ms = self.shared_log.as_ref().map_or(0, |log| log.age_ms(entry.time_ms, now));
            self.fan_out_all(now.before(age_ms.min(self.shared.limits.history.age_ms)));
        }
        cost
    }

    fn apply_log_item(
        &mut self,
        entry: AppliedEntry,
        LogItem { id, item, pending }: LogItem<'_, PendingItem>,
        now: LoopTime,
    ) {
        match item {
            Item::Message(message) => self.apply_message(entry, id, &message, pending, now),
            Item::Disconnect { reference, sub } => self.apply_disconnect(entry, reference, sub, now),
            Item::DisconnectResult { run: addressed, reference, connections } if addressed == self.run => {
                self.apply_disconnect_result(entry.run, reference, connections, now);
            }
            Item::Ticket { hash, owner, grant } => {
                self.apply_ticket(entry, hash, owner, grant, pending, now);
            }
            Item::Redeem { hash, channel } => self.apply_redemption(entry, hash, channel, pending, now),
            Item::SubscriberCounts { is_request, range, counts } if entry.run != self.run => {
                if let Some(log) = &mut self.shared_log {
                    log.counts.apply(entry.run, range, counts);
                    if is_request {
                        log.counts.send_all();
                    }
                }
            }
            Item::StreamEnded { hash, channel, grant } => {
                self.apply_stream_end(hash, channel, grant, entry.log_time);
            }
            Item::Settings { idempotency_keys, idempotency_age_ms } => {
                self.compare_settings(id, SharedSettings { idempotency_keys, idempotency_age_ms });
            }
            _ => {}
        }
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
    fn end_node(&mut self, run: RunId, now: LoopTime) {
        let log_time = self.log_time(now);
        self.shared.authenticator.tickets.end_streams_of(run, log_time);
        if let Some(log) = &mut self.shared_log {
            log.counts.remove(run);
            log.disconnects.remove_node(run);
        }
        self.respond_to_disconnects(now);
    }

    /// Warns if this node's settings differ from those of the log.
    fn compare_settings(&mut self, id: MessageId, declared: SharedSettings) {
        let own = SharedSettings::of(&self.shared.limits.idempotency);
        let Some(log) = &mut self.shared_log else { return };
        let is_new = log.settings.read(declared, id, log.clock.last_entry_at());
        if is_new && own != declared {
            warn!(
                "backplane: idempotency settings differ from the log's: keys {}/{} age_ms {}/{}",
                own.idempotency_keys,
                declared.idempotency_keys,
                own.idempotency_age_ms,
                declared.idempotency_age_ms
            );
        }
    }
}
