//! Slots, hub, and the phases *flush* and *reap*. The other phases are in `read`, `deliver` and `expire`, and admission
//! is in `admission`.
//!
//! The engine has no poll and no listener, and is generic over the transport: the server runs it over sockets, the
//! model test over bytes in memory, and both run the same code.
//!
//! **Deferred free**: any phase may schedule a close ([`Slots::schedule_close`]), repeatedly if it must; only
//! [`Engine::reap`] frees the slot, at the end of the turn. So an id stays valid for the whole turn, and no caller has
//! to check whether a call has freed its slot.

use std::mem;

use log::debug;

use super::connection_log;
use super::drain_schedule::DrainSchedule;
use super::gathered::Gathered;
use super::log_limit::{LogLimits, LogLine};
use super::log_target;
use super::pressure::Pressure;
use super::shared::Shared;
use super::shared_log::SharedLog;
use super::slot::Slot;
use super::slots::Slots;
use super::sweeper::Sweeper;
use crate::access::rate_limiter::RateLimiter;
use crate::close::Reason;
use crate::config::{Limits, OnSlow};
use crate::hub::Hub;
use crate::hub::discontinuity::DiscontinuityWalk;
use crate::ids::{ClientIds, RunId, SlotId};
use crate::net::outbox::{FlushOutcome, SlowConsumerLimits};
use crate::net::transport::Transport;
use crate::session::intent::Intent;
use crate::session::{AfterFlush, State};
use crate::time::LoopTime;

/// Slots, hub, and the state of the phases.
#[derive(Debug)]
pub struct Engine<T> {
    /// The connections.
    pub slots: Slots<T>,
    /// The channels.
    pub hub: Hub,
    /// Limits, configuration and counters that sessions use.
    pub shared: Shared,
    /// Intents that are not applied yet, in the order in which sessions emitted them.
    pub(super) intents: Vec<(SlotId, Intent)>,
    /// The responses to one connection that are not in its outbox yet; empty between phases.
    pub(super) gathered: Gathered,
    /// Which subscribers pause which publishers.
    pub(super) pressure: Pressure,
    /// The one read buffer, shared by all connections.
    pub(super) scratch: Vec<u8>,
    /// Sweeps the slots for all deadlines but those of pings.
    pub(super) sweeper: Sweeper,
    /// Sweeps the slots for due pings.
    pub(super) ping_sweeper: Sweeper,
    /// Sweeps the channels for expired messages.
    pub(super) channel_sweeper: Sweeper,
    /// Rate limits of the log lines that peers cause.
    pub(super) log_lines: LogLimits,
    /// The time of the next sweep of the tables of clients.
    pub(super) tables_at: LoopTime,
    /// The client ids, which differ from those of other processes.
    pub clients: ClientIds,
    /// Identifies this process among the nodes of a shared log.
    pub run: RunId,
    /// The log that several nodes share; `None`: this server is its own log.
    pub shared_log: Option<SharedLog>,
    /// The discontinuity of the log that subscribers are being notified of.
    pub(super) discontinuity: Option<DiscontinuityWalk>,
    /// `None` while the server serves.
    pub(super) draining: Option<DrainSchedule>,
    /// True while `/readyz` returns 503: new clients are still served, but a load balancer is to send no more.
    pub is_drain_announced: bool,
    /// Number of rejected connections that are still open.
    pub(super) rejected: usize,
    /// The time of the next search for large connections; `None`: at once.
    pub(super) next_search_at: Option<LoopTime>,
    /// Rate limits of the publishers.
    pub(super) rate_limiter: RateLimiter,
}

impl<T: Transport> Engine<T> {
    /// An engine without connections, whose log begins at `epoch`, and in which anonymous clients have all rights.
    pub fn new(limits: Limits, epoch: u64) -> Engine<T> {
        Engine {
            hub: Hub::new(&limits, epoch),
            slots: Slots::new(),
            intents: Vec::new(),
            gathered: Gathered::default(),
            pressure: Pressure::new(),
            scratch: vec![0; limits.read_bytes_per_connection],
            sweeper: Sweeper::new(),
            ping_sweeper: Sweeper::new(),
            channel_sweeper: Sweeper::new(),
            log_lines: LogLimits::NEW,
            tables_at: LoopTime::from_millis(0),
            clients: ClientIds::default(),
            run: RunId::default(),
            shared_log: None,
            discontinuity: None,
            draining: None,
            is_drain_announced: false,
            rejected: 0,
            next_search_at: None,
            rate_limiter: RateLimiter::new(),
            shared: Shared::new(limits),
        }
    }

    /// Returns the salt with which the next process with this history continues the client ids: its first id follows
    /// the last id of this process.
    pub fn next_client(&self) -> u32 {
        self.clients.next_salt(self.slots.next_id())
    }

    /// Queues the intents of a session that was called, and puts its slot into the dirty set or on the list to reap.
    pub(super) fn after_session(&mut self, id: SlotId) {
        let Engine { slots, intents, shared: Shared { session_intents, .. }, .. } = self;
        intents.extend(session_intents.drain(..).map(|intent| (id, intent)));
        if let Some(Slot { state: State::Dead(ended), .. }) = slots.get(id) {
            let reason = ended.reason;
            slots.schedule_close(id, reason);
        }
        slots.mark_dirty(id);
    }

    /// Writes the outbox of every dirty slot, however many frames were queued: until its socket blocks, or the slot
    /// has had its share of the turn.
    pub fn flush(&mut self, now: LoopTime) {
        let mut last = None;
        while let Some(id) = self.slots.next_dirty(last) {
            self.flush_slot(id, now);
            last = Some(id);
        }
        self.check_pressure(now);
    }

    fn flush_slot(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, pressure, shared: Shared { limits, metrics, connection_log, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        if slot.is_withheld() {
            return;
        }
        let (written, left) = slot.flush(SlowConsumerLimits::of(limits), now);
        metrics.sent_bytes += written as u64;
        connection_log.count(id, 0, written);
        if slot.is_throttling() && slot.outbox.is_empty() {
            pressure.end(slot, now);
        }
        if slot.outbox.is_empty() && slot.transport.has_pending_write() {
            // The last TLS record of a response: the session has its deadlines, and the peer has to take it.
            self.check_stall(id, now);
            return;
        }
        let after = match slot.is_close_held() {
            true => AfterFlush::Nothing,
            false => slot.state.flushed(written, &slot.outbox, limits, now),
        };
        match (left, after) {
            (FlushOutcome::Failed(_), _) if slot.state.is_open() => {
                slots.mark_write_failed(id);
                self.end_replays(id);
            }
            (FlushOutcome::Failed(_), _) => self.fail(id),
            (_, AfterFlush::Close(reason)) => slots.schedule_close(id, reason),
            (_, AfterFlush::ShutDownWrite) => {
                if slot.transport.shut_down_write().is_err() {
                    self.fail(id);
                }
                // The peer's end of file may have arrived while reading was paused, and raises no further event.
                self.slots.resume_reading(id);
            }
            (FlushOutcome::More, AfterFlush::Nothing) => slots.mark_dirty(id),
            (FlushOutcome::Blocked, AfterFlush::Nothing) => self.check_stall(id, now),
            (FlushOutcome::Drained, AfterFlush::Nothing) => {
                if (slot.is_replaying() && !slot.waits_for_memory()) || slot.state.has_query() {
                    slots.mark_refill(id);
                }
                slots.resume_reading(id);
            }
        }
    }

    /// Closes or skips a subscriber if its socket has been full for too long. Called after a write that has found it
    /// full.
    fn check_stall(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, shared: Shared { limits, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        if !slot.state.is_open() || !slot.has_stalled(limits, now) {
            return;
        }
        match limits.on_slow {
            // A response or a raw connection in a close handshake gets no close frame, and delays no message.
            _ if !slot.takes_broadcast() => slots.schedule_close(id, Reason::Slow),
            OnSlow::Close => self.close(id, Reason::Slow, now),
            OnSlow::Skip => slot.outbox.reject_until_empty(),
        }
    }

    /// Ends a session whose socket has failed.
    fn fail(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.state.fail();
        }
        self.after_session(id);
    }

    /// Frees the slots whose close was scheduled. The only place where a slot is freed and its key becomes available
    /// again (**deferred free**). Returns their number.
    pub fn reap(&mut self, now: LoopTime) -> usize {
        let to_reap = self.slots.take_to_reap();
        for &id in &to_reap {
            self.leave(id, now);
            let Some(mut slot) = self.slots.remove(id) else { continue };
            slot.transport.send_close_notify();
            let State::Dead(ended) = &slot.state else { continue };
            let reason = ended.reason;
            self.shared.metrics.connections_closed[reason.index()] += 1;
            self.shared.limiter.release(slot.peer);
            self.rate_limiter.forget(id);
            self.hub.forget_creator(id);
            if let Some(log) = &mut self.shared_log {
                log.forget(id);
            }
            self.shared.authenticator.auths.forget(id);
            self.end_ticket_of(id, now);
            if slot.state.is_rejected() {
                self.rejected -= 1;
            }
            // Lines of a level that is off are not counted as suppressed.
            let is_admitted =
                connection_log::is_logged(ended) && self.admits_line(LogLine::Close(reason), now);
            let Shared { connection_log, authenticator, .. } = &mut self.shared;
            connection_log.close(id, slot.peer, ended, authenticator.unix_now, is_admitted);
        }
        if !to_reap.is_empty() {
            self.slots.shrink_at(now);
        }
        // The last outbox that held an encoding may have been freed or flushed, and so may the last subscriber that
        // paused a publisher.
        self.wake_waiting();
        self.resume_publishers(now);
        to_reap.len()
    }

    /// Begins to close a connection. If it is closing already, its first reason stays.
    pub fn close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        self.begin_close(id, reason, now);
        self.apply_session_intents(id, now);
    }

    /// As [`Engine::close`], for a session in the read phase: its intents are queued after its earlier ones.
    pub(super) fn begin_close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        // The session may send something at once, and the responses before that have to be queued first.
        self.send_gathered();
        let Engine { slots, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        let (_, state, mut ctx) = shared.session_context(id, slot, now);
        debug!(target: log_target::CONNECTION, peer:% = ctx.peer, reason:%; "closing");
        state.close(reason, &mut ctx);
    }

    /// Applies the intents of a session that was called outside of the read phase, at once.
    pub(super) fn apply_session_intents(&mut self, id: SlotId, now: LoopTime) {
        for intent in mem::take(&mut self.shared.session_intents) {
            self.apply(id, intent, now);
        }
        self.send_gathered();
        self.after_session(id);
    }

    /// Closes all connections at once, without a close frame.
    pub fn cut(&mut self) {
        let ids: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        for id in ids {
            self.slots.schedule_close(id, Reason::Cut);
        }
    }

    /// Panics if slots and hub contradict each other; for debug builds and tests.
    pub fn check(&self) {
        self.slots.check();
        assert!(
            self.intents.is_empty() && self.shared.session_intents.is_empty(),
            "all intents were applied"
        );
        assert!(self.gathered.is_empty(), "all gathered responses were queued");
        let rejected = self.slots.iter().filter(|(_, slot)| slot.state.is_rejected()).count();
        assert_eq!(rejected, self.rejected, "the number of rejected connections");
        self.hub.check();
        let mut subscriptions = 0;
        for (id, slot) in self.slots.iter() {
            for &subscription in slot.subscriptions.as_slice() {
                assert_eq!(
                    self.hub.subscriber_at(subscription),
                    Some(id),
                    "the position of {id:?}: {subscription:?}"
                );
                subscriptions += 1;
            }
        }
        assert_eq!(subscriptions, self.hub.subscriptions(), "every subscriber has a slot");
        for (channel, subscribers) in self.pressure.throttling_subscribers() {
            let throttles =
                |slot: &Slot<T>| slot.is_throttling() && slot.subscriptions.find(channel).is_some();
            let count = self.slots.iter().filter(|(_, slot)| throttles(slot)).count();
            assert_eq!(count, subscribers as usize, "the number of subscribers that throttle {channel:?}");
        }
    }
}
