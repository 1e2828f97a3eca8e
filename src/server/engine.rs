//! The phases that touch slots: drive, deliver, flush, sweep, reap.
//!
//! The engine has no poll and no listener, and is generic over the transport: the real server drives it
//! with sockets, the model test with bytes in memory, and both run the same code.

use std::mem;
use std::rc::Rc;

use bytes::Bytes;
use log::{debug, info};

use super::slots::{Slot, Slots};
use super::sweep::Sweeper;
use super::transport::{self, ReadOutcome, Transport};
use crate::close::Reason;
use crate::config::{Limits, OnSlow};
use crate::hub::channel::Portion;
use crate::hub::outbox::{Left, Outbox, Push};
use crate::hub::{Hub, Seat};
use crate::ids::{ChannelId, Peer, SlotId};
use crate::metrics::Metrics;
use crate::moment::Moment;
use crate::session::intent::Intent;
use crate::session::{AfterFlush, Desk, Due, State};

/// Slots, hub, and what the phases need between them.
#[derive(Debug)]
pub struct Engine<T> {
    /// The limits of all.
    pub limits: Limits,
    /// The connections.
    pub slots: Slots<T>,
    /// The channels.
    pub hub: Hub,
    /// The counters.
    pub metrics: Metrics,
    /// What the sessions asked for in this turn, in the order in which they asked.
    intents: Vec<(SlotId, Intent)>,
    /// The intents of the session that has its turn; empty between sessions.
    wishes: Vec<Intent>,
    /// The one read buffer, shared by all connections.
    scratch: Vec<u8>,
    sweeper: Sweeper,
}

impl<T: Transport> Engine<T> {
    /// An engine without connections.
    pub fn new(limits: Limits) -> Engine<T> {
        Engine {
            hub: Hub::new(limits.channels_max),
            slots: Slots::new(),
            metrics: Metrics::default(),
            intents: Vec::new(),
            wishes: Vec::new(),
            scratch: vec![0; limits.read_bytes_per_slot],
            sweeper: Sweeper::new(),
            limits,
        }
    }

    /// Takes in a connection that will be served.
    pub fn admit(&mut self, transport: T, peer: Peer, now: Moment) -> SlotId {
        self.metrics.connections_accepted += 1;
        let state = State::accepted(&self.limits, now);
        self.slots.insert(transport, peer, state, Outbox::Empty)
    }

    /// Takes in a connection for which there is no room, to tell it so.
    pub fn turn_away(&mut self, transport: T, peer: Peer, now: Moment) -> SlotId {
        self.metrics.connections_accepted += 1;
        let mut outbox = Outbox::Empty;
        let state = State::turned_away(&self.limits, now, &mut outbox);
        let id = self.slots.insert(transport, peer, state, outbox);
        self.slots.mark_dirty(id);
        id
    }

    /// Reads every ready slot up to a budget and gathers intents.
    ///
    /// **Drain or requeue**: a slot leaves this phase blocked (its last read said so, or was short) or
    /// back on the ready list. The list is a queue, so whoever was cut short by the budget is not first
    /// in the next turn.
    pub fn drive(&mut self, now: Moment) {
        let mut budget = self.limits.read_bytes_per_turn;
        for _ in 0..self.slots.ready_len() {
            if budget == 0 {
                break;
            }
            let Some(id) = self.slots.next_ready() else { break };
            let read = self.read(id, now);
            self.metrics.received_bytes += read as u64;
            budget = budget.saturating_sub(read);
            self.after_session(id);
        }
    }

    /// Reads one slot; how many bytes.
    fn read(&mut self, id: SlotId, now: Moment) -> usize {
        let Engine { slots, limits, scratch, wishes, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return 0 };
        let is_read_closed = slot.is_read_closed();
        let (Parts { transport, state, .. }, mut desk) = desk(slot, limits, wishes, now);
        let mut total = 0;
        for _ in 0..desk.limits.reads_per_slot {
            match transport::read(transport, scratch) {
                ReadOutcome::Bytes(count) => {
                    total += count;
                    state.receive(&scratch[..count], &mut desk);
                    if count < scratch.len() && !is_read_closed {
                        return total;
                    }
                    if total >= desk.limits.read_bytes_per_slot {
                        break;
                    }
                }
                ReadOutcome::Blocked => return total,
                ReadOutcome::EndOfFile => {
                    state.end_of_file();
                    return total;
                }
                ReadOutcome::Failed => {
                    state.fail();
                    return total;
                }
            }
        }
        slots.mark_ready(id);
        total
    }

    /// Puts the slot on the lists that its session's turn has made necessary, and its wishes to the rest.
    fn after_session(&mut self, id: SlotId) {
        let Engine { slots, intents, wishes, .. } = self;
        intents.extend(wishes.drain(..).map(|wish| (id, wish)));
        if let Some(Slot { state: State::Dead(reason), .. }) = slots.get(id) {
            let reason = *reason;
            slots.doom(id, reason);
        }
        slots.mark_dirty(id);
    }

    /// Applies intents to the hub; frames land in outboxes.
    pub fn deliver(&mut self, now: Moment) {
        let mut intents = mem::take(&mut self.intents);
        for (id, intent) in intents.drain(..) {
            self.apply(id, intent, now);
        }
        while let Some(channel) = self.hub.next_touched() {
            self.hand_out(channel, now);
        }
        // Closes of slow members may have made wishes; they were granted where they were made.
        debug_assert!(self.intents.is_empty());
        self.intents = intents;
    }

    fn apply(&mut self, id: SlotId, intent: Intent, now: Moment) {
        match intent {
            Intent::Subscribe { channel, echo } => {
                // It hears what is published from now on, so what came before goes out first.
                if let Some(channel) = self.hub.find(&channel) {
                    self.hand_out(channel, now);
                }
                match self.hub.subscribe(&channel, id, echo) {
                    Ok(seat) => {
                        if let Some(slot) = self.slots.get_mut(id) {
                            slot.seat = Some(seat);
                        }
                    }
                    Err(_) => self.close(id, Reason::OverCapacity, now),
                }
            }
            Intent::Publish { kind, payload } => {
                if let Some(Slot { seat: Some(seat), .. }) = self.slots.get(id) {
                    self.hub.publish(*seat, kind, &payload);
                    self.metrics.messages_published += 1;
                }
            }
            Intent::Leave { farewell } => self.part(id, farewell, now),
        }
    }

    /// Ends a membership in order: first what was published so far, then the close frame.
    fn part(&mut self, id: SlotId, farewell: Option<Bytes>, now: Moment) {
        if let Some(Slot { seat: Some(seat), .. }) = self.slots.get(id) {
            self.hand_out(seat.channel, now);
        }
        self.leave(id, now);
        if let Some(farewell) = farewell
            && let Some(slot) = self.slots.get_mut(id)
        {
            slot.outbox.queue(Rc::new(farewell));
            self.slots.mark_dirty(id);
        }
    }

    /// Gives every member of a channel what was published there since the last time.
    fn hand_out(&mut self, channel: ChannelId, now: Moment) {
        let Engine { slots, hub, metrics, limits, .. } = self;
        let Some((members, batch)) = hub.seal(channel) else { return };
        let bounds = limits.outbox();
        let mut slow = Vec::new();
        for (position, &member) in members.iter().enumerate() {
            let Some(slot) = slots.get_mut(member).filter(|slot| slot.takes_broadcast()) else {
                continue;
            };
            let Some(Portion { frames, messages }) = batch.portion(position as u32) else { continue };
            match slot.outbox.push(frames, bounds, now) {
                Push::Queued => {
                    metrics.messages_delivered += u64::from(messages);
                    slots.mark_dirty(member);
                }
                Push::OverLimit if limits.on_slow == OnSlow::Skip => {
                    metrics.messages_skipped += u64::from(messages);
                }
                Push::OverLimit => slow.push(member),
            }
        }
        for member in slow {
            self.close(member, Reason::Slow, now);
        }
    }

    /// One write for every dirty slot, however many frames were queued.
    pub fn flush(&mut self, now: Moment) {
        let dirty = self.slots.take_dirty();
        for &id in &dirty {
            self.flush_slot(id, now);
        }
        self.slots.give_back_dirty(dirty);
    }

    fn flush_slot(&mut self, id: SlotId, now: Moment) {
        let Engine { slots, limits, metrics, .. } = self;
        let Some(slot) = slots.flushing(id) else { return };
        let (written, left) = slot.outbox.flush(&mut slot.transport, now);
        metrics.sent_bytes += written as u64;
        match (left, slot.state.flushed(written, &slot.outbox, limits, now)) {
            (Left::Failed(_), _) if slot.state.listens() => {
                // What the peer sent before it went is still to be read, and published; the read side
                // then says that it is gone.
                slot.outbox = Outbox::Empty;
                slots.mark_read_closed(id);
                slots.mark_ready(id);
            }
            (Left::Failed(_), _) => self.fail(id),
            (_, AfterFlush::Doom(reason)) => slots.doom(id, reason),
            (_, AfterFlush::ShutDownWrite) => {
                if slot.transport.shut_down_write().is_err() {
                    self.fail(id);
                }
            }
            (Left::More, AfterFlush::Nothing) => slots.mark_dirty(id),
            (Left::Nothing | Left::Blocked, AfterFlush::Nothing) => {}
        }
    }

    /// The socket has failed.
    fn fail(&mut self, id: SlotId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.state.fail();
        }
        self.after_session(id);
    }

    /// Looks at a slice of the slab for deadlines that have come.
    pub fn sweep(&mut self, now: Moment) {
        for key in self.sweeper.slice(self.slots.keys_end(), now) {
            if let Some(id) = self.slots.id_at(key) {
                self.sweep_slot(id, now);
            }
        }
    }

    fn sweep_slot(&mut self, id: SlotId, now: Moment) {
        let Engine { slots, limits, wishes, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        let has_stalled =
            slot.outbox.stalls_at(limits.slow_timeout_ms).is_some_and(|moment| moment.has_come(now));
        if has_stalled && limits.on_slow == OnSlow::Close && slot.takes_broadcast() {
            return self.close(id, Reason::Slow, now);
        }
        let unread = slot.is_ready();
        let (Parts { state, .. }, mut desk) = desk(slot, limits, wishes, now);
        match state.expire(unread, &mut desk) {
            Due::Nothing => {}
            Due::Flush => self.after_close(id, now),
            Due::Read => slots.mark_ready(id),
            Due::Doom(reason) => slots.doom(id, reason),
        }
    }

    /// When the sweep wants to be called again, if there is anything to sweep.
    pub fn next_sweep(&self, now: Moment) -> Option<Moment> {
        (!self.slots.is_empty()).then(|| self.sweeper.next(now))
    }

    /// The only place where a slot dies and its key is freed; how many did.
    pub fn reap(&mut self, now: Moment) -> usize {
        let doomed = self.slots.take_doomed();
        for &id in &doomed {
            self.leave(id, now);
            let Some(slot) = self.slots.remove(id) else { continue };
            let State::Dead(reason) = slot.state else { continue };
            self.metrics.connections_closed[reason.index()] += 1;
            match reason.code() {
                Some(code) => info!("close peer={} code={code} reason={reason}", slot.peer),
                None => info!("close peer={} reason={reason}", slot.peer),
            }
        }
        doomed.len()
    }

    /// Begins to close a connection, for the first reason that is given.
    pub fn close(&mut self, id: SlotId, reason: Reason, now: Moment) {
        let Engine { slots, limits, wishes, .. } = self;
        let Some(slot) = slots.get_mut(id) else { return };
        let (Parts { state, peer, .. }, mut desk) = desk(slot, limits, wishes, now);
        debug!("closing peer={peer} reason={reason}");
        state.close(reason, &mut desk);
        self.after_close(id, now);
    }

    /// Grants the wishes of a session that was called outside the drive phase, at once.
    fn after_close(&mut self, id: SlotId, now: Moment) {
        for wish in mem::take(&mut self.wishes) {
            self.apply(id, wish, now);
        }
        self.after_session(id);
    }

    /// Closes everybody with 4200, and tells each when to come back: evenly spread over the drain's
    /// window.
    pub fn drain(&mut self, now: Moment) {
        let everybody: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        let count = everybody.len().max(1) as u64;
        for (place, id) in everybody.into_iter().enumerate() {
            let retry_ms = (u64::from(self.limits.drain_ms) * place as u64 / count) as u32;
            self.close(id, Reason::Drain { retry_ms }, now);
        }
    }

    /// Ends everybody at once.
    pub fn cut(&mut self) {
        let everybody: Vec<SlotId> = self.slots.iter().map(|(id, _)| id).collect();
        for id in everybody {
            self.slots.doom(id, Reason::Cut);
        }
    }

    fn leave(&mut self, id: SlotId, now: Moment) {
        let Some(seat) = self.slots.get_mut(id).and_then(|slot| slot.seat.take()) else { return };
        if self.hub.batch_names_positions(seat.channel) {
            self.hand_out(seat.channel, now);
        }
        if let Some(moved) = self.hub.leave(seat)
            && let Some(Slot { seat: Some(seat), .. }) = self.slots.get_mut(moved.member)
        {
            seat.position = moved.position;
        }
    }

    /// Panics if slots and hub contradict each other; for debug builds and tests.
    pub fn check(&self) {
        self.slots.check();
        assert!(self.intents.is_empty() && self.wishes.is_empty(), "all intents were applied");
        let mut seats = 0;
        for (id, slot) in self.slots.iter() {
            if let Some(Seat { channel, position, .. }) = slot.seat {
                assert_eq!(self.hub.members(channel).get(position as usize), Some(&id), "the seat of {id:?}");
                seats += 1;
            }
        }
        assert_eq!(seats, self.hub.seats(), "every member has a slot");
    }
}

/// What the engine needs of a slot whose session has its turn.
struct Parts<'a, T> {
    transport: &'a mut T,
    state: &'a mut State,
    peer: &'a Peer,
}

/// Splits a slot into what the engine needs of it and the desk that its session works at.
fn desk<'a, T>(
    slot: &'a mut Slot<T>,
    limits: &'a Limits,
    intents: &'a mut Vec<Intent>,
    now: Moment,
) -> (Parts<'a, T>, Desk<'a>) {
    let phase = slot.phase();
    let Slot { transport, state, outbox, peer, .. } = slot;
    (Parts { transport, state, peer }, Desk { limits, now, phase, outbox, intents })
}
