//! The phases that touch slots: drive, flush, sweep, reap. Deliver has a room of its own, and so has who comes in.
//!
//! The engine has no poll and no listener, and is generic over the transport: the real server drives it
//! with sockets, the model test with bytes in memory, and both run the same code.

use std::mem;

use log::{debug, info};

use super::drain::Drain;
use super::log_limit::{LogLimits, LogLine};
use super::pressure::Pressure;
use super::shared::Shared;
use super::slots::{ReadyQueue, Slot, Slots, is_flushed};
use super::sweeper::Sweeper;
use super::unicast::Gathered;
use crate::access::rate_limiter::RateLimiter;
use crate::close::{Reason, TlsFault};
use crate::config::{Limits, OnSlow};
use crate::hub::Hub;
use crate::ids::SlotId;
use crate::metrics::MemoryStep;
use crate::net::outbox::{FlushOutcome, SlowConsumerLimits};
use crate::net::transport::{ReadOutcome, Transport};
use crate::session::intent::Intent;
use crate::session::{AfterFlush, Due, Ended, SMALL_BYTES, State};
use crate::time::LoopTime;

/// Every deadline but those of pings is met within this time after the sweep has reached it, even if all connections
/// have one at once and turns are long: then timeouts are less than a second late, the time of a sweep included.
const DEADLINES_SPAN_MS: u32 = 500;

/// All connections are pinged within that part of the ping interval, if all are to be pinged at once and turns are
/// long: then pings are less than a fifth of the interval late.
const PINGS_SPAN: u32 = 10;

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

/// The first step of a WebSocket ([`Share::next_read`]): 42 empty frames, which take 15 us, or one small message.
const FRAMES_STEP_BYTES: usize = 256;

/// A requeued slot that is read in steps may cost this many shares: 16 KiB of frames of 32 bytes, which cost 27 KiB, are
/// then still read in one visit, and of empty frames no more than a quarter of a turn.
const REQUEUED_STEP_SHARES: usize = 4;

/// The first step of HTTP: the head of a request, of which browsers send 400 to 500 bytes. Further requests in it wait
/// when the share is used up.
const REQUESTS_STEP_BYTES: usize = 512;

/// So many intents are applied before another slot is read, and do not wait until all are. What they publish is
/// handed out with the rest of the turn all the same; but their list does not grow with those who speak at once, and
/// is still in the cache.
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
    /// The answers to one connection that are not in its outbox yet; empty between phases.
    pub(super) gathered: Gathered,
    /// Which subscribers pause which publishers.
    pub(super) pressure: Pressure,
    /// The one read buffer, shared by all connections.
    scratch: Vec<u8>,
    sweeper: Sweeper,
    /// The sweep of the connections for pings.
    ping_sweeper: Sweeper,
    /// The sweep of the channels, for what is kept too long.
    channel_sweeper: Sweeper,
    /// The log lines that peers cause.
    pub(super) log_lines: LogLimits,
    /// The next sweep of the tables of clients.
    pub(super) tables_at: LoopTime,
    /// Makes the names of clients differ from those of other processes.
    pub client_salt: u32,
    /// Differs from that of other processes, also of those that wrote the same history.
    pub run: u32,
    /// `None` while the server serves.
    pub(super) draining: Option<Drain>,
    /// True while `/readyz` returns 503: new clients are still served, but a load balancer is to send no more.
    pub is_leaving: bool,
    /// Slots that are being told that there is no room.
    pub(super) rejected: usize,
    /// When debtors are searched for again; `None`: at once.
    pub(super) debtors_wanted_at: Option<LoopTime>,
    /// Those who publish at the moment, where there is a limit to that.
    pub(super) rate_limiter: RateLimiter,
}

impl<T: Transport> Engine<T> {
    /// An engine without connections, whose log was born at `epoch`, and that is open to everybody.
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
            client_salt: 0,
            run: 0,
            draining: None,
            is_leaving: false,
            rejected: 0,
            debtors_wanted_at: None,
            rate_limiter: RateLimiter::new(),
            shared: Shared::new(limits),
        }
    }

    /// The salt under which the names of clients to come, beginning with the next, would be those of a process
    /// from its first: they go on so in the next process that reads the same history.
    pub fn next_client(&self) -> u32 {
        self.client_salt.wrapping_add(self.slots.next_id().generation)
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
        // What the first pass requeues has had its share of this turn.
        let requeued = self.slots.ready_len(ReadyQueue::Requeued);
        let reserved = if requeued > 0 { budget / REQUEUED_SHARE } else { 0 };
        let new = self.slots.ready_len(ReadyQueue::New);
        let left = self.read_queue(ReadyQueue::New, new, requeued, budget - reserved, now);
        let new = self.slots.ready_len(ReadyQueue::New);
        self.read_queue(ReadyQueue::Requeued, requeued, new, left + reserved, now);
    }

    /// Reads up to `count` slots of a queue within a budget, and returns the rest of the budget.
    ///
    /// A slot's share is what the budget has for each that is still to be read, `others` included: a publisher that is
    /// alone is read on, so that what it sends at once goes out at once. It is at least what one read takes; for a new
    /// slot, as much of that as the budget has for each of the new ones, so that a large message of a client that sends
    /// little is read at once while a thousand floods are requeued.
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
            let share = Share { cost, cost_max, is_in_steps: equal < read_bytes };
            let held_before = self.slots.get(id).map_or(0, |slot| slot.state.held_bytes());
            let cost = self.read_slot(id, share, now);
            if self.shared.memory.is_in_force(MemoryStep::RefuseLarge) {
                self.refuse_unfinished(id, held_before, now);
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
    fn read_slot(&mut self, id: SlotId, share: Share, now: LoopTime) -> usize {
        if self.slots.get(id).is_some_and(Slot::awaits_header) && !self.take_proxy_header(id, now) {
            return 0;
        }
        if self.pressure.is_felt() {
            self.pause_raw_publisher(id, now);
        }
        let Engine { slots, scratch, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return 0 };
        slot.transport.begin_read(slot.peer.ip());
        let has_write_failed = slot.has_write_failed();
        let is_publishing_paused = slot.has_unsent_answers() || slot.is_publishing_paused();
        // Then a short read does not end it: no event may follow the one that was the last.
        let reads_on = slot.is_read_closed() || has_write_failed;
        let (transport, state, mut ctx) = shared.session_context(id, slot, now);
        ctx.cost_max = share.cost;
        let mut bytes = 0;
        if state.takes_input(is_flushed(ctx.outbox, transport), is_publishing_paused) {
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
                    if !more && !reads_on {
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
    fn refuse_unfinished(&mut self, id: SlotId, held_before: usize, now: LoopTime) {
        let Some(slot) = self.slots.get(id) else { return };
        let has_grown_large = held_before <= SMALL_BYTES && slot.state.held_bytes() > SMALL_BYTES;
        if slot.state.is_web_socket() && has_grown_large && !slot.is_ready() {
            self.begin_close(id, Reason::LowMemory, now);
        }
    }

    /// Puts the slot on the lists that its session's turn has made necessary, and its wishes to the rest.
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
        if slot.is_pressing() && slot.outbox.is_empty() {
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
                // The peer's end of file may have come while it was held, and no event will say so again.
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

    /// A write has just found the socket full. Has it been for too long?
    fn check_stall(&mut self, id: SlotId, now: LoopTime) {
        let Engine { slots, shared: Shared { limits, .. }, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        if !slot.state.is_open() || !has_stalled(slot, limits, now) {
            return;
        }
        match limits.on_slow {
            // It has no words for a close, and stands in the way of none.
            _ if !slot.takes_broadcast() => slots.schedule_close(id, Reason::Slow),
            OnSlow::Close => self.close(id, Reason::Slow, now),
            OnSlow::Skip => slot.outbox.reject_until_empty(),
        }
    }

    /// The socket has failed.
    fn fail(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.state.fail();
        }
        self.after_session(id);
    }

    /// Checks a slice of the slab for expired deadlines, up to the number that one turn handles.
    ///
    /// Pings have a budget and a sweep of their own, so that timeouts do not wait for the pings of many connections.
    pub fn expire(&mut self, now: LoopTime) {
        self.continue_drain(now);
        self.expire_tables(now);
        self.log_suppressed_lines(now);
        self.slots.shrink_at(now);
        self.hub.shrink_at(now);
        let (slots, connections) = (self.slots.keys_end(), self.slots.len());
        let mut budget = self.sweeper.take_budget(connections, DEADLINES_SPAN_MS, now);
        let slice = self.sweeper.slice(slots, now);
        for key in slice.clone() {
            budget -= usize::from(self.slots.id_at(key).is_some_and(|id| self.expire_slot(id, false, now)));
            if budget == 0 && key + 1 < slice.end {
                self.sweeper.pause(key + 1, now);
                break;
            }
        }
        let span_ms = self.shared.limits.ping_interval_ms / PINGS_SPAN;
        let mut budget = self.ping_sweeper.take_budget(connections, span_ms, now);
        let slice = self.ping_sweeper.slice(slots, now);
        for key in slice.clone() {
            budget -= usize::from(self.slots.id_at(key).is_some_and(|id| self.expire_slot(id, true, now)));
            if budget == 0 && key + 1 < slice.end {
                self.ping_sweeper.pause(key + 1, now);
                break;
            }
        }
        if self.hub.has_expiring_data() {
            let slice = self.channel_sweeper.slice(self.hub.keys_end(), now);
            self.hub.expire(slice, now);
        }
    }

    /// Handles the expired deadlines of one connection: pings only, or all others. Returns true if there was one.
    fn expire_slot(&mut self, id: SlotId, pings: bool, now: LoopTime) -> bool {
        if !pings && (self.end_wait(id, now) || self.end_overdue(id, now)) {
            return true;
        }
        if self.pressure.is_felt() {
            self.expire_pressure(id, now);
        }
        if self.slots.get(id).is_some_and(Slot::is_withheld) {
            // Its time begins when its request is answered.
            return false;
        }
        let Engine { slots, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return false };
        if !pings
            && slot.state.is_open()
            && slot.transport.is_record_late(now, shared.limits.message_timeout_ms)
        {
            self.close(id, Reason::TlsFailed { fault: TlsFault::RecordTimeout }, now);
            return true;
        }
        let has_stalled = !pings && has_stalled(slot, &shared.limits, now);
        if has_stalled {
            // It may take bytes again, and the event lie in the next batch: we may be late ourselves. So a
            // last write tells.
            slot.unblock();
            slots.mark_dirty(id);
        }
        let Some(slot) = slots.get_mut(id) else { return false };
        if slot.state.is_ping_due(now) != pings {
            return has_stalled;
        }
        // Its messages may wait in the kernel, where they stay until the peer has taken its answers.
        let unread = slot.is_ready() || (slot.is_read_paused() && matches!(slot.state, State::Open(_)));
        let (_, state, mut ctx) = shared.session_context(id, slot, now);
        match state.expire(unread, &mut ctx) {
            Due::Nothing => return has_stalled,
            Due::Flush => self.apply_session_intents(id, now),
            Due::Read => slots.mark_ready(id),
            Due::Close(reason) => slots.schedule_close(id, reason),
        }
        true
    }

    /// When the sweep wants to be called again, if there is anything to sweep.
    pub fn next_expiry(&self, now: LoopTime) -> Option<LoopTime> {
        let next = || self.sweeper.next(now).min(self.ping_sweeper.next(now));
        let slots = (!self.slots.is_empty()).then(next);
        let channels = self.hub.has_expiring_data().then(|| self.channel_sweeper.next(now));
        let drain = self.draining.as_ref().and_then(Drain::next);
        let tables = self.next_table_expiry(now);
        [slots, channels, drain, tables].into_iter().flatten().reduce(LoopTime::min)
    }

    /// The only place where a slot dies and its key is freed; how many did.
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
            if slot.is_rejected() {
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

    /// Begins to close a connection, for the first reason that is given.
    pub fn close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        self.begin_close(id, reason, now);
        self.apply_session_intents(id, now);
    }

    /// The same for a session in the drive phase: its intents are applied in its order.
    fn begin_close(&mut self, id: SlotId, reason: Reason, now: LoopTime) {
        // The session may send something at once, and the answers before that have to be queued first.
        self.send_gathered();
        let Engine { slots, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        let (_, state, mut ctx) = shared.session_context(id, slot, now);
        debug!("closing peer={} reason={reason}", ctx.peer);
        state.close(reason, &mut ctx);
    }

    /// Grants the wishes of a session that was called outside the drive phase, at once.
    fn apply_session_intents(&mut self, id: SlotId, now: LoopTime) {
        for options in mem::take(&mut self.shared.session_intents) {
            self.apply(id, options, now);
        }
        self.send_gathered();
        self.after_session(id);
    }

    /// Ends everybody at once.
    pub fn cut(&mut self) {
        let everybody: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        for id in everybody {
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
        assert!(self.gathered.is_empty(), "all answers were queued");
        self.hub.check();
        let mut subscriptions = 0;
        for (id, slot) in self.slots.iter() {
            for &subscription in slot.subscriptions.as_slice() {
                assert_eq!(
                    self.hub.subscriber_at(subscription),
                    Some(id),
                    "the seat of {id:?}: {subscription:?}"
                );
                subscriptions += 1;
            }
        }
        assert_eq!(subscriptions, self.hub.subscriptions(), "every member has a slot");
        for (channel, pressers) in self.pressure.pressers() {
            let presses = |slot: &Slot<T>| slot.is_pressing() && slot.subscriptions.find(channel).is_some();
            let count = self.slots.iter().filter(|(_, slot)| presses(slot)).count();
            assert_eq!(count, pressers as usize, "who presses on {channel:?}");
        }
    }
}

/// ` sub=alice` for the log, in quotation marks where the name would end the field.
fn sub_field(ended: &Ended) -> String {
    match ended.grant.as_ref().and_then(|grant| grant.sub.as_deref()) {
        Some(sub) if sub.contains([' ', '"', '=', '\\']) => format!(" sub={sub:?}"),
        Some(sub) => format!(" sub={sub}"),
        None => String::new(),
    }
}

/// A slot's share of a turn.
#[derive(Clone, Copy)]
struct Share {
    /// The cost after which the slot is read no further.
    cost: usize,
    /// The most that the next step may cost, and those before it.
    cost_max: usize,
    /// The slot is read in steps, since the turn's budget does not have a large read for each that is ready.
    is_in_steps: bool,
}

impl Share {
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
    /// An event will say when there is more.
    Wait,
    /// It is read on when its outbox is empty.
    PauseReading,
    /// It has more, which has to wait for its next share.
    Requeue,
    /// The slot begins to close.
    Close(Reason),
}

/// Returns true if the socket has taken nothing, or too little, for too long.
fn has_stalled<T: Transport>(slot: &mut Slot<T>, limits: &Limits, now: LoopTime) -> bool {
    if slot.outbox.is_empty() {
        return slot.transport.is_write_late(now, limits.slow_timeout_ms);
    }
    slot.outbox.stalls_at(SlowConsumerLimits::of(limits)).is_some_and(|moment| moment.is_due(now))
}
