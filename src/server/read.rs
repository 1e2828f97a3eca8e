//! The read phase: every ready slot is read up to its share of the turn, and its session emits intents.

use super::engine::Engine;
use super::slot::is_flushed;
use super::slots::ReadyQueue;
use crate::close::Reason;
use crate::ids::SlotId;
use crate::metrics::MemoryStep;
use crate::net::transport::{ReadOutcome, Transport};
use crate::session::{SMALL_BYTES, SessionContext, State};
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

/// Bytes of a turn's budget that each decompressed byte uses, in addition to those of its slot's share. While a thousand
/// clients send bombs, a turn takes 11 us; without the surcharge it took 140 us, and the p99 of other subscribers was
/// 1.9 times as long as without these clients.
const INFLATED_BYTE_SURCHARGE: usize = 3;

/// The first step of a WebSocket ([`ReadShare::next_read`]): one small message. Two reads of a message of 512 bytes
/// cost a third more than one.
const FRAMES_STEP_BYTES: usize = 1 << 10;

/// Frames of a WebSocket are decoded in one visit at least up to this cost: 28 empty ones, which take 10 us, and all of
/// a step of 32 bytes each. Further ones, of which a step may have 170, wait for the next visit.
const FRAMES_COST_MIN: usize = 28 * 64;

/// Maximum rest of a frame that is read before the session handles the first step: the messages of most clients are
/// smaller. When the session handled the two reads separately, 1,000 clients that sent 4,000 bytes at the same time
/// cost a third more.
const FRAME_REST_BYTES_MAX: usize = 4 << 10;

/// A requeued slot that is read in steps may cost this many shares: 16 KiB of frames of 32 bytes, which cost 27 KiB,
/// are then still read in one visit, and of empty frames no more than a quarter of a turn.
const REQUEUED_STEP_SHARES: usize = 4;

/// The first step of HTTP: the head of a request, of which browsers send 400 to 500 bytes. Further requests in the same
/// read wait when the share is used up.
const REQUESTS_STEP_BYTES: usize = 512;

/// Queued intents are applied early, before the next slot is read, once there are this many. Their messages are fanned
/// out with the rest of the turn; but the list does not grow with the number of clients that publish at once, and stays
/// in the cache.
const INTENTS_AT_ONCE: usize = 256;

impl<T: Transport> Engine<T> {
    /// Reads every ready slot up to a budget and gathers intents.
    ///
    /// **Drain or requeue**: a slot leaves this phase blocked (its last read returned WouldBlock, or was short) or back
    /// in a ready queue.
    ///
    /// Newly ready slots are read first, followed by those that were requeued: while a thousand clients send as fast as
    /// they can, a message from any other is read in the next turn. Neither queue starves. A new slot that is not read
    /// to its end is requeued, and the second queue has `REQUEUED_SHARE` of the budget for itself. As in fq_codel (RFC
    /// 8290 4.1), a slot's share of one visit is small while many are new: of those that begin to send at the same
    /// time, floods do not keep the others waiting.
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
            let frame_rest_max = budget.min(FRAME_REST_BYTES_MAX);
            let share = ReadShare { cost, cost_max, frame_rest_max, is_in_steps: equal < read_bytes };
            let held_before = self.slots.get(id).map_or(0, |slot| slot.state.held_bytes());
            let cost = self.read_slot(id, share, now);
            if self.shared.memory.is_in_force(MemoryStep::RejectLarge) {
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

    /// Reads one slot, its share and no more. Returns what that costs the turn: its bytes, what the session charges for
    /// frames and requests, and the surcharge for decompressed bytes.
    fn read_slot(&mut self, id: SlotId, share: ReadShare, now: LoopTime) -> usize {
        if self.slots.get(id).is_some_and(|slot| slot.state.awaits_proxy_header())
            && !self.take_proxy_header(id, now)
        {
            return 0;
        }
        if self.pressure.is_active() {
            self.pause_raw_publisher(id, now);
        }
        let decodes_only = self.is_decoding_for_drain(id);
        let Engine { slots, scratch, shared, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return 0 };
        slot.transport.begin_read(slot.peer.ip());
        let has_write_failed = slot.has_write_failed();
        let is_publishing_paused =
            slot.has_unsent_responses() || slot.is_publishing_paused() || slot.waits_for_log();
        let reads_on = slot.is_read_closed() || has_write_failed;
        let (transport, state, mut ctx) = shared.session_context(id, slot, now);
        ctx.cost_max = share.cost;
        let mut reads = SlotReads {
            transport,
            state,
            ctx,
            share,
            bytes: 0,
            has_write_failed,
            is_publishing_paused,
            reads_on,
            decodes_only,
        };
        let after = reads.run(scratch);
        let SlotReads { state, ctx, bytes, .. } = reads;
        let cost = bytes + ctx.cost;
        let is_busy = cost > SPARSE_COST_BYTES_MAX || state.has_waiting_requests();
        let turn_cost = cost + ctx.inflated_bytes * INFLATED_BYTE_SURCHARGE;
        ctx.metrics.received_bytes += bytes as u64;
        ctx.metrics.inflated_bytes += ctx.inflated_bytes as u64;
        shared.connection_log.count(id, bytes, 0);
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
        turn_cost
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
}

/// The reads of one slot in one turn.
struct SlotReads<'a, T> {
    transport: &'a mut T,
    state: &'a mut State,
    ctx: SessionContext<'a>,
    share: ReadShare,
    /// Bytes read so far.
    bytes: usize,
    /// A write has failed: input is read until the end of file, and is not answered.
    has_write_failed: bool,
    is_publishing_paused: bool,
    /// After a reported end of file or a failed write, a short read is not the end: no further event may follow.
    reads_on: bool,
    /// No input is read: the connection closes when its input from before the drain is decoded.
    decodes_only: bool,
}

impl<T: Transport> SlotReads<'_, T> {
    /// Reads until the share is used up, the socket has no more bytes, or the session takes none.
    fn run(&mut self, scratch: &mut [u8]) -> AfterRead {
        if self.takes_input() || (self.has_write_failed && self.state.has_undecoded()) {
            self.limit_frames();
            self.state.resume(&mut self.ctx);
        }
        for _ in 0..self.ctx.limits.reads_per_connection {
            if !self.takes_input() && !self.has_write_failed {
                return AfterRead::PauseReading;
            }
            if self.decodes_only || self.state.has_undecoded() {
                break;
            }
            let web_socket = self.state.is_web_socket();
            let step = self.share.next_read(web_socket, self.bytes, self.ctx.cost, scratch.len());
            self.limit_frames();
            let mut outcome = self.receive(&mut scratch[..step]);
            if let ReadOutcome::Bytes { count, more: true } = outcome
                && let Some(rest) = self.frame_rest(&scratch[..count], scratch.len())
            {
                match self.receive(&mut scratch[count..][..rest]) {
                    ReadOutcome::Bytes { count: second, more } => {
                        outcome = ReadOutcome::Bytes { count: count + second, more };
                    }
                    other => {
                        // The slot's next state depends on the second outcome.
                        let _ = self.handle(outcome, scratch);
                        outcome = other;
                    }
                }
            }
            if let Some(after) = self.handle(outcome, scratch) {
                return after;
            }
        }
        AfterRead::Requeue
    }

    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let outcome = self.transport.receive(buffer);
        self.ctx.cost += self.transport.take_read_cost();
        outcome
    }

    /// Limits the cost of the frames in the next bytes to the rest of the share.
    fn limit_frames(&mut self) {
        if self.share.is_in_steps {
            let left = self.share.cost_max.saturating_sub(self.bytes + self.ctx.cost);
            self.ctx.frames_cost_max = left.max(FRAMES_COST_MIN);
        }
    }

    /// Returns the size of a second read, if the first one is the beginning of a frame that it can complete. It is one
    /// byte larger than the rest of the frame: a read that is short is the last one.
    fn frame_rest(&self, input: &[u8], size_max: usize) -> Option<usize> {
        let missing =
            self.state.missing_frame_bytes(input, self.ctx.limits).filter(|_| self.share.is_in_steps)?;
        let size = missing.saturating_add(1);
        (missing <= self.share.frame_rest_max as u64 && input.len() as u64 + size <= size_max as u64)
            .then_some(size as usize)
    }

    fn takes_input(&self) -> bool {
        let is_flushed = is_flushed(self.ctx.outbox, self.transport);
        self.state.takes_input(is_flushed, self.is_publishing_paused)
    }

    fn is_share_used(&self) -> bool {
        self.bytes + self.ctx.cost >= self.share.cost
    }

    /// Passes the outcome of one read to the session. Returns the slot's next state, and `None` to read again.
    fn handle(&mut self, outcome: ReadOutcome, scratch: &[u8]) -> Option<AfterRead> {
        match outcome {
            ReadOutcome::NoPlaintext => self.is_share_used().then_some(AfterRead::Requeue),
            ReadOutcome::Bytes { count, more } => {
                self.bytes += count;
                self.ctx.cost_max = self.share.cost.saturating_sub(self.bytes);
                self.state.receive(&scratch[..count], &mut self.ctx);
                if !more && !self.reads_on && !self.state.has_undecoded() {
                    return Some(AfterRead::Wait);
                }
                self.is_share_used().then_some(AfterRead::Requeue)
            }
            ReadOutcome::Blocked if !self.has_write_failed => Some(AfterRead::Wait),
            ReadOutcome::Deferred if !self.has_write_failed => Some(AfterRead::Requeue),
            ReadOutcome::TlsFailed(fault) if self.state.is_open() => {
                Some(AfterRead::Close(Reason::TlsFailed { fault }))
            }
            ReadOutcome::EndOfFile if !self.has_write_failed => {
                self.state.end_of_file();
                Some(AfterRead::Wait)
            }
            ReadOutcome::Failed
            | ReadOutcome::Blocked
            | ReadOutcome::Deferred
            | ReadOutcome::EndOfFile
            | ReadOutcome::TlsFailed(_) => {
                self.state.fail();
                Some(AfterRead::Wait)
            }
        }
    }
}

/// A slot's share of a turn.
#[derive(Clone, Copy)]
struct ReadShare {
    /// The cost after which the slot is read no further.
    cost: usize,
    /// The most that the next step may cost, and those before it.
    cost_max: usize,
    /// Maximum bytes by which a read may exceed its step to complete a frame.
    frame_rest_max: usize,
    /// The slot is read in steps, since the turn's budget does not have a large read for each that is ready.
    is_in_steps: bool,
}

impl ReadShare {
    /// Returns the size of the next read.
    ///
    /// A session handles all frames of a read, and 16 KiB of empty ones cost 170 KiB. In steps, the first read is
    /// small, and the next as large as `cost_max` allows if the bytes to come cost as much as those before them. So the
    /// cost is bounded, and a small message takes at most one read more.
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
    /// The slot has more bytes, which wait for its next share.
    Requeue,
    /// The slot begins to close.
    Close(Reason),
}
