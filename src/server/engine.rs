//! The phases of a turn that touch slots: read, flush and reap. The others are in `deliver` and
//! `expire`, and admission is in `admission`.
//!
//! The engine has no poll and no listener, and is generic over the transport: the server runs it over sockets, the
//! model test over bytes in memory, and both run the same code.
//!
//! **Deferred free**: any phase may schedule a close ([`Slots::schedule_close`]), as often as it likes; only
//! [`Engine::reap`] frees the slot, at the end of the turn. So an id stays valid for the whole turn, and no caller has
//! to check whether a call has freed its slot.

use std::mem;

use log::{debug, info};

use super::drain_schedule::DrainSchedule;
use super::gathered::Gathered;
use super::log_limit::{LogLimits, LogLine};
use super::pressure::Pressure;
use super::shared::Shared;
use super::slots::{ReadyQueue, Slot, Slots, is_flushed};
use super::sweeper::Sweeper;
use crate::access::rate_limiter::RateLimiter;
use crate::close::Reason;
use crate::config::{Limits, OnSlow};
use crate::hub::Hub;
use crate::hub::discontinuity::DiscontinuityWalk;
use crate::ids::{ClientIds, SlotId};
use crate::metrics::MemoryStep;
use crate::net::outbox::{FlushOutcome, SlowConsumerLimits};
use crate::net::transport::{ReadOutcome, Transport};
use crate::session::intent::Intent;
use crate::session::{AfterFlush, ClosedClient, Ended, SMALL_BYTES, State};
use crate::time::LoopTime;

/// The part of a turn's budget that is for requeued slots alone: one in four. Less would let many sparse clients slow
/// down a publisher that has much to send; more would make the sparse ones wait for more turns.
const REQUEUED_SHARE: usize = 4;

/// The most that a read of a sparse connection costs: 32 frames of 64 bytes. A client whose last read cost more is
/// not put before the others when its next bytes arrive, however soon its socket is empty.
const SPARSE_COST_BYTES_MAX: usize = 4 << 10;

/// The share of a newly ready slot while many are: 16 of the cheapest frames, or the largest message of most chats. A
/// thousand floods that begin at once are then requeued after a few turns. With 16 KiB for each, a message of another
/// client waited for 500 turns and 2.3 s.
const NEW_SHARE_BYTES_MIN: usize = 1 << 10;

/// The first step of a WebSocket ([`ReadShare::next_read`]): 42 empty frames, which take 15 us, or one small message.
const FRAMES_STEP_BYTES: usize = 256;

/// A requeued slot that is read in steps may cost this many shares: 16 KiB of frames of 32 bytes, which cost 27 KiB, are
/// then still read in one visit, and of empty frames no more than a quarter of a turn.
const REQUEUED_STEP_SHARES: usize = 4;

/// The first step of HTTP: the head of a request, of which browsers send 400 to 500 bytes. Further requests in it wait
/// when the share is used up.
const REQUESTS_STEP_BYTES: usize = 512;

/// Queued intents are applied early, before the next slot is read, once there are this many. Their messages are fanned
/// out with the rest of the turn; but the list does not grow with the number of clients that publish at once, and stays
/// in the cache.
const INTENTS_AT_ONCE: usize = 256;

/// Slots, hub, and what the phases need between them.
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
    scratch: Vec<u8>,
    /// Sweeps the slots for all deadlines but those of pings.
    pub(super) sweeper: Sweeper,
    /// Sweeps the slots for due pings.
    pub(super) ping_sweeper: Sweeper,
    /// Sweeps the channels for expired messages.
    pub(super) channel_sweeper: Sweeper,
    /// The log lines that peers cause.
    pub(super) log_lines: LogLimits,
    /// The next sweep of the tables of clients.
    pub(super) tables_at: LoopTime,
    /// The client ids, which differ from those of other processes.
    pub clients: ClientIds,
    /// Differs from that of other processes, also of those that wrote the same history.
    pub run: u32,
    /// The discontinuity of the log that subscribers are being notified of.
    pub(super) discontinuity: Option<DiscontinuityWalk>,
    /// `None` while the server serves.
    pub(super) draining: Option<DrainSchedule>,
    /// True while `/readyz` returns 503: new clients are still served, but a load balancer is to send no more.
    pub is_drain_announced: bool,
    /// Number of open connections that are rejected.
    pub(super) rejected: usize,
    /// When large connections are searched for again; `None`: at once.
    pub(super) next_search_at: Option<LoopTime>,
    /// Those who publish at the moment, where there is a limit to that.
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
            run: 0,
            discontinuity: None,
            draining: None,
            is_drain_announced: false,
            rejected: 0,
            next_search_at: None,
            rate_limiter: RateLimiter::new(),
            shared: Shared::new(limits),
        }
    }

    /// Returns the salt with which a next process that reads the same history continues the client ids: its first id
    /// follows the last of this process.
    pub fn next_client(&self) -> u32 {
        self.clients.next_salt(self.slots.next_id())
    }

    /// Reads every ready slot up to a budget and gathers intents.
    ///
    /// **Drain or requeue**: a slot leaves this phase blocked (its last read said so, or was short) or
    /// back in a ready queue.
    ///
    /// Newly ready slots are read first, followed by those that were requeued: while a thousand clients send as fast as
    /// they can, a message from any other is read in the next turn. Neither queue starves. A new slot that is not read
    /// to its end is requeued, and the second queue has `REQUEUED_SHARE` of the budget for itself. As in fq_codel (RFC
    /// 8290 4.1), a slot's share of one visit is small while many are new: of those that begin to send at the same time,
    /// floods do not keep the others waiting.
    pub fn read(&mut self, now: LoopTime) {
        let budget = self.shared.limits.read_bytes_per_turn;
        // Slots that the first pass requeues have had their share of this turn.
        let requeued = self.slots.ready_len(ReadyQueue::Requeued);
        let reserved = if requeued > 0 { budget / REQUEUED_SHARE } else { 0 };
        let new = self.slots.ready_len(ReadyQueue::New);
        let left = self.read_queue(ReadyQueue::New, new, requeued, budget - reserved, now);
        let new = self.slots.ready_len(ReadyQueue::New);
        self.read_queue(ReadyQueue::Requeued, requeued, new, left + reserved, now);
    }

    /// Reads up to `count` slots of a queue within a budget, and returns the rest of the budget.
    ///
    /// The share of a slot is the rest of the budget divided by the number of slots still to be read, `others`
    /// included: a single publisher is read until its socket is empty, so that all of its messages are sent in this
    /// turn. The share is at least one read; for a new slot, at least the budget divided by the number of new ones, so
    /// that a large message of a client that sends little is read at once while a thousand floods are requeued.
    fn read_queue(
        &mut self,
        queue: ReadyQueue,
        count: usize,
        others: usize,
        mut budget: usize,
        now: LoopTime,
    ) -> usize {
        for left in (1..=count).rev() {
            if budget == 0 {
                break;
            }
            let Some(id) = self.slots.next_ready(queue) else { break };
            let read_bytes = self.shared.limits.read_bytes_per_connection;
            let equal = budget / (left + others);
            let least = match queue {
                ReadyQueue::New => (budget / left).clamp(NEW_SHARE_BYTES_MIN.min(read_bytes), read_bytes),
                ReadyQueue::Requeued => read_bytes,
            };
            let cost = equal.max(least);
            let cost_max = match queue {
                ReadyQueue::New => cost,
                ReadyQueue::Requeued => cost * REQUEUED_STEP_SHARES,
            };
            let share = ReadShare { cost, cost_max, is_in_steps: equal < read_bytes };
            let held_before = self.slots.get(id).map_or(0, |slot| slot.state.held_bytes());
            let cost = self.read_slot(id, share, now);
            if self.shared.memory.is_in_force(MemoryStep::RefuseLarge) {
                self.close_unfinished(id, held_before, now);
            }
            budget = budget.saturating_sub(cost);
            self.after_session(id);
            if self.intents.len() >= INTENTS_AT_ONCE {
                self.apply_all(now);
            }
        }
        budget
    }

    /// Reads one slot, its share and no more. Returns what that cost: its bytes, and what the session charges for
    /// frames and requests.
    fn read_slot(&mut self, id: SlotId, share: ReadShare, now: LoopTime) -> usize {
        if self.slots.get(id).is_some_and(|slot| slot.state.awaits_proxy_header())
            && !self.take_proxy_header(id, now)
        {
            return 0;
        }
        if self.pressure.is_active() {
            self.pause_raw_publisher(id, now);
        }
        let Engine { slots, scratch, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return 0 };
        slot.transport.begin_read(slot.peer.ip());
        let has_write_failed = slot.has_write_failed();
        let is_publishing_paused = slot.has_unsent_responses() || slot.is_publishing_paused();
        // After a reported end of file or a failed write, a short read is not the end: no further event may follow.
        let reads_on = slot.is_read_closed() || has_write_failed;
        let (transport, state, mut ctx) = shared.session_context(id, slot, now);
        ctx.cost_max = share.cost;
        let mut bytes = 0;
        if state.takes_input(is_flushed(ctx.outbox, transport), is_publishing_paused)
            || (has_write_failed && state.has_undecoded())
        {
            state.resume(&mut ctx);
        }
        let mut after = AfterRead::Requeue;
        for _ in 0..ctx.limits.reads_per_connection {
            if !state.takes_input(is_flushed(ctx.outbox, transport), is_publishing_paused)
                && !has_write_failed
            {
                after = AfterRead::PauseReading;
                break;
            }
            if state.has_undecoded() {
                break;
            }
            let step = share.next_read(state.is_web_socket(), bytes, ctx.cost, scratch.len());
            let outcome = transport.receive(&mut scratch[..step]);
            ctx.cost += transport.take_read_cost();
            match outcome {
                ReadOutcome::NoPlaintext if bytes + ctx.cost >= share.cost => break,
                ReadOutcome::NoPlaintext => {}
                ReadOutcome::Bytes { count, more } => {
                    bytes += count;
                    ctx.cost_max = share.cost.saturating_sub(bytes);
                    state.receive(&scratch[..count], &mut ctx);
                    if !more && !reads_on && !state.has_undecoded() {
                        after = AfterRead::Wait;
                        break;
                    }
                    if bytes + ctx.cost >= share.cost {
                        break;
                    }
                }
                ReadOutcome::Blocked if !has_write_failed => {
                    after = AfterRead::Wait;
                    break;
                }
                ReadOutcome::Deferred if !has_write_failed => break,
                ReadOutcome::TlsFailed(fault) if state.is_open() => {
                    after = AfterRead::Close(Reason::TlsFailed { fault });
                    break;
                }
                ReadOutcome::EndOfFile if !has_write_failed => {
                    state.end_of_file();
                    after = AfterRead::Wait;
                    break;
                }
                ReadOutcome::Failed
                | ReadOutcome::Blocked
                | ReadOutcome::Deferred
                | ReadOutcome::EndOfFile
                | ReadOutcome::TlsFailed(_) => {
                    state.fail();
                    after = AfterRead::Wait;
                    break;
                }
            }
        }
        let cost = bytes + ctx.cost;
        let is_busy = cost > SPARSE_COST_BYTES_MAX || state.has_waiting_requests();
        ctx.metrics.received_bytes += bytes as u64;
        slots.set_busy(id, is_busy);
        match after {
            AfterRead::Wait => {}
            AfterRead::PauseReading => slots.pause_reading(id),
            AfterRead::Close(reason) => self.close(id, reason, now),
            AfterRead::Requeue => {
                shared.metrics.reads_requeued += 1;
                slots.requeue(id);
            }
        }
        cost
    }

    /// Closes a WebSocket that has begun a large message and not finished it, though all bytes that arrived are read. A
    /// message that was large before continues: other connections are closed first ([`Engine::relieve`]).
    fn close_unfinished(&mut self, id: SlotId, held_before: usize, now: LoopTime) {
        let Some(slot) = self.slots.get(id) else { return };
        let has_grown_large = held_before <= SMALL_BYTES && slot.state.held_bytes() > SMALL_BYTES;
        if slot.state.is_web_socket() && has_grown_large && !slot.is_ready() {
            self.begin_close(id, Reason::LowMemory, now);
        }
    }

    /// Queues the intents of a session that was called, and puts its slot on the dirty list or on the list to reap.
    fn after_session(&mut self, id: SlotId) {
        let Engine { slots, intents, shared: Shared { session_intents, .. }, .. } = self;
        intents.extend(session_intents.drain(..).map(|options| (id, options)));
        if let Some(Slot { state: State::Dead(ended), .. }) = slots.get(id) {
            let reason = ended.reason;
            slots.schedule_close(id, reason);
        }
        slots.mark_dirty(id);
    }

    /// Writes the outbox of every dirty slot, however many frames were queued: until its socket refuses, or the slot
    /// has had its share of the turn.
    pub fn flush(&mut self, now: LoopTime) {
        let dirty = self.slots.take_dirty();
        for &id in &dirty {
            self.flush_slot(id, now);
        }
        self.slots.give_back_dirty(dirty);
        self.check_pressure(now);
    }

    fn flush_slot(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, pressure, shared: Shared { limits, metrics, .. }, .. } = self;
        let Some(slot) = slots.flushing(id) else { return };
        if slot.is_withheld() {
            return;
        }
        let (written, left) = slot.flush(SlowConsumerLimits::of(limits), now);
        metrics.sent_bytes += written as u64;
        if slot.is_throttling() && slot.outbox.is_empty() {
            pressure.end(slot, now);
        }
        if slot.outbox.is_empty() && slot.transport.has_pending_write() {
            // The last TLS record of a response: the session has its deadlines, and the peer has to take it.
            self.check_stall(id, now);
            return;
        }
        match (left, slot.state.flushed(written, &slot.outbox, limits, now)) {
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
            self.shared.authenticator.auths.forget(id);
            self.shared.authenticator.tickets.stream_ended(id, now);
            if slot.state.is_rejected() {
                self.rejected -= 1;
            }
            if !self.admits_line(LogLine::Close(reason), now) {
                continue;
            }
            match reason.code() {
                Some(code) => {
                    info!("close peer={}{} code={code} reason={reason}", slot.peer, sub_field(ended))
                }
                None => info!("close peer={}{} reason={reason}", slot.peer, sub_field(ended)),
            }
        }
        if !to_reap.is_empty() {
            self.slots.shrink_at(now);
        }
        // The last outbox that held an encoding may have been freed or flushed.
        self.wake_waiting();
        to_reap.len()
    }

    /// Begins to close a connection. If it is closing already, its first reason stays.
    pub fn close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        self.begin_close(id, reason, now);
        self.apply_session_intents(id, now);
    }

    /// The same for a session in the read phase: its intents are applied in their order.
    fn begin_close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        // The session may send something at once, and the responses before that have to be queued first.
        self.send_gathered();
        let Engine { slots, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        let (_, state, mut ctx) = shared.session_context(id, slot, now);
        debug!("closing peer={} reason={reason}", ctx.peer);
        state.close(reason, &mut ctx);
    }

    /// Applies the intents of a session that was called outside of the read phase, at once.
    pub(super) fn apply_session_intents(&mut self, id: SlotId, now: LoopTime) {
        for options in mem::take(&mut self.shared.session_intents) {
            self.apply(id, options, now);
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

/// ` sub=alice` for the log, in quotation marks where the name would end the field.
fn sub_field(ended: &Ended) -> String {
    let ClosedClient::Authenticated(grant) = &ended.client else { return String::new() };
    match grant.sub.as_deref() {
        Some(sub) if sub.contains([' ', '"', '=', '\\']) => format!(" sub={sub:?}"),
        Some(sub) => format!(" sub={sub}"),
        None => String::new(),
    }
}

/// A slot's share of a turn.
#[derive(Clone, Copy)]
struct ReadShare {
    /// The cost after which the slot is read no further.
    cost: usize,
    /// The most that the next step may cost, and those before it.
    cost_max: usize,
    /// The slot is read in steps, since the turn's budget does not have a large read for each that is ready.
    is_in_steps: bool,
}

impl ReadShare {
    /// Returns the size of the next read.
    ///
    /// A session handles all frames of a read, and 16 KiB of empty ones cost 170 KiB. In steps, the first read is small,
    /// and the next as large as `cost_max` allows if the bytes to come cost as much as those before them. So the cost is
    /// bounded, and a small message takes at most one read more.
    fn next_read(self, is_web_socket: bool, bytes: usize, extra_cost: usize, size_max: usize) -> usize {
        let first = if is_web_socket { FRAMES_STEP_BYTES } else { REQUESTS_STEP_BYTES };
        let cost = bytes + extra_cost;
        match bytes {
            _ if !self.is_in_steps => size_max,
            0 => first.min(size_max),
            _ => {
                let affordable = self.cost_max.saturating_sub(cost) * bytes / cost;
                affordable.max(first).min(size_max.saturating_sub(bytes)).max(1)
            }
        }
    }
}

/// The next state of a slot that was read.
enum AfterRead {
    /// An event reports further bytes.
    Wait,
    /// Reading is resumed when its outbox is empty.
    PauseReading,
    /// It has more bytes, which wait for its next share.
    Requeue,
    /// The slot begins to close.
    Close(Reason),
}
