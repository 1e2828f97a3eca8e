//! The slab of connections, and the lists of those with work to do.
//!
//! An event only marks its slot: it goes into one of the two *ready* queues when there may be something to read, and on
//! the *dirty* list when there is something to write. The *doomed* list holds closed connections. The *refill* list
//! holds connections whose outbox is empty and that are to be sent the next slice of a replay or of a response. A slot
//! knows which lists it is on, so it is on each of them once, however often it is marked.

use std::collections::{HashSet, VecDeque};

use super::fair_queue::FairQueue;
use crate::close::Reason;
use crate::hub::subscriptions::Subscriptions;
use crate::hub::{Subscription, SubscriptionState};
use crate::ids::{Peer, SlotId};
use crate::net::outbox::{FlushOutcome, Outbox, SlowConsumerLimits};
use crate::net::transport::Transport;
use crate::session::State;
use crate::tables::chunked_slab::{CHUNK_ENTRIES, ChunkedSlab};
use crate::tables::shrink::ShrinkTrigger;
use crate::time::LoopTime;

/// One connection.
///
/// Its size is what an idle connection costs, but for its place in the hub and in the kernel; a test
/// below holds it down. What a delivery touches (state, outbox) is not kept apart from the rest: the
/// whole slot is little over one cache line.
#[derive(Debug)]
pub struct Slot<T> {
    /// Its socket.
    pub transport: T,
    /// Its conversation.
    pub state: State,
    /// What it has yet to be sent.
    pub outbox: Outbox,
    /// Where it sits in the hub.
    pub subscriptions: Subscriptions,
    /// Who is at the other end.
    pub peer: Peer,
    generation: u32,
    flags: SlotFlags,
}

/// Which lists a slot is on, and what the last event said.
#[derive(Clone, Copy, Debug, Default)]
struct SlotFlags(u16);

impl SlotFlags {
    const READY: u16 = 1;
    const DIRTY: u16 = 2;
    const TO_REAP: u16 = 4;
    /// A write failed and its frames are gone: what there is to read is read, and then it is over.
    const WRITE_FAILED: u16 = 16;
    /// There is no room for it, and it is being told so.
    const REJECTED: u16 = 32;
    /// An event said that the peer sends no more. It may have come with the last bytes, and then no
    /// other event follows: a short read is not the end of what there is.
    const READ_CLOSED: u16 = 8;
    /// It is not read until it has taken what it was answered.
    const READ_PAUSED: u16 = 64;
    /// It is getting what was kept of a channel, a portion whenever it has taken the one before.
    const REPLAYING: u16 = 128;
    /// Its close frame is queued: nothing may follow it.
    const CLOSE_QUEUED: u16 = 256;
    /// A proxy has yet to say for whom it speaks.
    const AWAITS_HEADER: u16 = 512;
    /// Its last read cost more than a sparse connection's does: its next event puts it into the second queue.
    const BUSY: u16 = 1024;
    /// The next slice of a replay or of a response is to be made for it.
    const REFILL: u16 = 2048;
    /// Its replay waits for the memory that the next message takes.
    const WAITS: u16 = 4096;
    /// Answers to it are in its outbox.
    const ANSWERED: u16 = 8192;
    /// It pauses the publishers of its channels: see [`super::pressure`].
    const PRESSING: u16 = 16_384;
    /// It is a paused publisher: it has published on a channel under pressure.
    const PUBLISHING_PAUSED: u16 = 32_768;

    fn has(self, mark: u16) -> bool {
        self.0 & mark != 0
    }

    /// Sets the mark; true if it was not set before.
    fn set(&mut self, mark: u16) -> bool {
        let is_new = !self.has(mark);
        self.0 |= mark;
        is_new
    }

    fn clear(&mut self, mark: u16) {
        self.0 &= !mark;
    }
}

impl<T: Transport> Slot<T> {
    /// Has an event said that the peer sends no more?
    pub fn is_read_closed(&self) -> bool {
        self.flags.has(SlotFlags::READ_CLOSED)
    }

    /// Is it being told that there is no room for it?
    pub fn is_rejected(&self) -> bool {
        self.flags.has(SlotFlags::REJECTED)
    }

    /// Has a write failed?
    pub fn has_write_failed(&self) -> bool {
        self.flags.has(SlotFlags::WRITE_FAILED)
    }

    /// Is it not read until its outbox is empty?
    pub fn is_read_paused(&self) -> bool {
        self.flags.has(SlotFlags::READ_PAUSED)
    }

    /// Returns true if answers wait for it, which it has to take before it is read again.
    pub fn has_unsent_answers(&self) -> bool {
        self.flags.has(SlotFlags::ANSWERED) && !self.is_flushed()
    }

    /// Returns true if it pauses the publishers of its channels.
    pub fn is_pressing(&self) -> bool {
        self.flags.has(SlotFlags::PRESSING)
    }

    /// Begins to press, or stops. Returns true if that is a change.
    pub(super) fn set_pressing(&mut self, is_pressing: bool) -> bool {
        let was_pressing = self.is_pressing();
        if is_pressing {
            self.flags.set(SlotFlags::PRESSING);
        } else {
            self.flags.clear(SlotFlags::PRESSING);
        }
        was_pressing != is_pressing
    }

    /// Returns true if it is a paused publisher.
    pub fn is_publishing_paused(&self) -> bool {
        self.flags.has(SlotFlags::PUBLISHING_PAUSED)
    }

    /// Returns true if the answers in its outbox are not to be sent yet: it is a paused publisher by HTTP.
    pub fn is_withheld(&self) -> bool {
        self.is_publishing_paused()
            && !matches!(self.state, State::Open(_) | State::Streaming(_) | State::Dead(_))
    }

    /// Records that an answer is in the outbox.
    pub(super) fn mark_answered(&mut self) {
        self.flags.set(SlotFlags::ANSWERED);
    }

    /// Is it getting what was kept of a channel?
    pub fn is_replaying(&self) -> bool {
        self.flags.has(SlotFlags::REPLAYING)
    }

    /// Returns true if its replay waits for memory.
    pub fn waits_for_memory(&self) -> bool {
        self.flags.has(SlotFlags::WAITS)
    }

    /// A subscription that is catching up, if there is one.
    pub fn next_replay(&self) -> Option<Subscription> {
        self.subscriptions
            .as_slice()
            .iter()
            .find(|subscription| subscription.state == SubscriptionState::CatchingUp)
            .copied()
    }

    /// Is its close frame queued, or would be, if there were one?
    pub fn is_close_queued(&self) -> bool {
        self.flags.has(SlotFlags::CLOSE_QUEUED)
    }

    /// Has a proxy yet to say for whom it speaks?
    pub fn awaits_header(&self) -> bool {
        self.flags.has(SlotFlags::AWAITS_HEADER)
    }

    /// May anything more be queued for it? Not behind its close frame (RFC 6455 5.5.1).
    pub fn can_send(&self) -> bool {
        !self.is_close_queued() && !matches!(self.state, State::Dead(_))
    }

    /// Is it on the ready list?
    pub fn is_ready(&self) -> bool {
        self.flags.has(SlotFlags::READY)
    }

    /// Returns true if published messages are sent to it. They are until its close frame is queued (RFC 6455 5.5.1
    /// forbids data after it) or its socket has failed.
    pub fn takes_broadcast(&self) -> bool {
        !self.subscriptions.is_empty() && !self.has_write_failed() && !matches!(self.state, State::Dead(_))
    }

    /// Would a flush come to anything?
    fn wants_flush(&self) -> bool {
        let has_news = match self.outbox {
            Outbox::Empty => self.state.ends_with_flush() && self.is_flushed(),
            _ => !self.outbox.is_blocked(),
        };
        !self.is_withheld() && (has_news || self.transport.wants_write())
    }

    /// Memory that would be freed with it: its share of its outbox, and its incomplete message or request.
    pub fn debt_bytes(&self) -> usize {
        self.outbox.debt_bytes() + self.state.held_bytes() + self.transport.buffered_bytes()
    }

    /// Has the socket taken everything?
    pub fn is_flushed(&self) -> bool {
        is_flushed(&self.outbox, &self.transport)
    }

    /// Writes the bytes that the transport holds back, followed by the outbox.
    pub fn flush(&mut self, slow_limits: SlowConsumerLimits, now: LoopTime) -> (usize, FlushOutcome) {
        // Before there are keys the outbox is turned down, while the handshake goes on.
        if let Err(error) = self.transport.write_pending() {
            return (0, FlushOutcome::Failed(error));
        }
        match self.outbox.flush(&mut self.transport, slow_limits, now) {
            (written, FlushOutcome::Drained) if self.transport.has_pending_write() => {
                (written, FlushOutcome::Blocked)
            }
            (written, FlushOutcome::Drained) => {
                self.flags.clear(SlotFlags::ANSWERED);
                (written, FlushOutcome::Drained)
            }
            flushed => flushed,
        }
    }

    /// The socket takes bytes again, or is to be asked.
    pub fn unblock(&mut self) {
        self.outbox.unblock();
        self.transport.unblock();
    }

    /// Spreads the pings: a multiplicative hash, so that neighbours in the slab are far apart in time.
    pub fn ping_offset(&self) -> u32 {
        self.generation.wrapping_mul(0x9e37_79b1) >> 8
    }
}

/// Returns true if the socket has taken all bytes of an outbox and its transport.
pub(super) fn is_flushed(outbox: &Outbox, transport: &impl Transport) -> bool {
    outbox.is_empty() && !transport.has_pending_write()
}

/// The queues of slots that are to be read, as in fq_codel (RFC 8290 4.2): a sparse flow does not wait for the bulk
/// flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyQueue {
    /// Newly ready slots, read first.
    New,
    /// Slots that had more than their share or the turn's budget allowed, or whose last read was not cheap.
    Requeued,
}

/// Entries of the slab that are never released: its first chunk of 80 KiB.
const SLOTS_KEPT: usize = CHUNK_ENTRIES;

/// All connections.
#[derive(Debug)]
pub struct Slots<T> {
    slab: ChunkedSlab<Slot<T>>,
    /// One more than the highest key that was ever given out.
    keys_end: usize,
    shrink_trigger: ShrinkTrigger,
    next_generation: u32,
    /// Slots with a new event whose last read was cheap.
    ready: VecDeque<SlotId>,
    /// Slots whose share or turn was used up, and those with a new event whose last read was not cheap.
    requeued: VecDeque<SlotId>,
    dirty: Vec<SlotId>,
    to_reap: Vec<SlotId>,
    refill: FairQueue,
    /// Replays that wait for memory, in the order in which they began to.
    waiting: VecDeque<SlotId>,
}

impl<T: Transport> Slots<T> {
    /// An empty slab.
    pub fn new() -> Slots<T> {
        Slots {
            slab: ChunkedSlab::new(),
            keys_end: 0,
            shrink_trigger: ShrinkTrigger::new(SLOTS_KEPT),
            next_generation: 0,
            ready: VecDeque::new(),
            requeued: VecDeque::new(),
            dirty: Vec::new(),
            to_reap: Vec::new(),
            refill: FairQueue::default(),
            waiting: VecDeque::new(),
        }
    }

    /// The id that the next inserted slot will have.
    pub fn next_id(&self) -> SlotId {
        SlotId { key: self.slab.vacant_key() as u32, generation: self.next_generation }
    }

    /// Puts a connection in.
    pub fn insert(&mut self, transport: T, peer: Peer, state: State, outbox: Outbox) -> SlotId {
        let id = self.next_id();
        let generation = id.generation;
        let slot = Slot {
            transport,
            state,
            outbox,
            subscriptions: Subscriptions::None,
            peer,
            generation,
            flags: SlotFlags::default(),
        };
        self.slab.insert(slot);
        // A key's generations have to differ for as long as an id may be around, which is one turn.
        self.next_generation = self.next_generation.wrapping_add(1);
        self.keys_end = self.keys_end.max(id.key as usize + 1);
        id
    }

    /// The slot, if it is still the same tenant.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot<T>> {
        self.slab.get_mut(id.key as usize).filter(|slot| slot.generation == id.generation)
    }

    /// The slot, if it is still the same tenant.
    pub fn get(&self, id: SlotId) -> Option<&Slot<T>> {
        self.slab.get(id.key as usize).filter(|slot| slot.generation == id.generation)
    }

    /// The tenant of a place in the slab.
    pub fn id_at(&self, key: usize) -> Option<SlotId> {
        let slot = self.slab.get(key)?;
        Some(SlotId { key: key as u32, generation: slot.generation })
    }

    /// Takes a slot out; what is left of its marks on lists is void with its generation.
    pub fn remove(&mut self, id: SlotId) -> Option<Slot<T>> {
        self.get(id)?;
        self.slab.remove(id.key as usize)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// One more than the highest key ever given out.
    pub fn keys_end(&self) -> usize {
        self.keys_end
    }

    /// Releases memory when most connections are closed, and the keys above the last chunk in use; the sweep then walks
    /// no further. New connections go into the lowest chunk that has room.
    pub fn shrink_at(&mut self, now: LoopTime) {
        let (len, capacity) = (self.slab.len(), self.slab.keys_end());
        // After the last connection has closed the loop may sleep for long.
        let is_last_chance = len == 0 && capacity > SLOTS_KEPT;
        if is_last_chance || self.shrink_trigger.is_due_at(len, capacity, now) {
            self.slab.release_empty();
            self.keys_end = self.keys_end.min(self.slab.keys_end());
            let most = 2 * self.slab.len();
            self.ready.shrink_to(most);
            self.requeued.shrink_to(most);
            self.refill.shrink_to(most);
            self.dirty.shrink_to(most);
            self.to_reap.shrink_to(most);
        }
    }

    /// All slots.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot<T>)> {
        self.slab.iter().map(|(key, slot)| (SlotId { key: key as u32, generation: slot.generation }, slot))
    }

    /// There may be something to read.
    pub fn mark_ready(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id)
            && slot.flags.set(SlotFlags::READY)
        {
            match slot.flags.has(SlotFlags::BUSY) {
                false => self.ready.push_back(id),
                true => self.requeued.push_back(id),
            }
        }
    }

    /// There is more to read, and no event will announce it.
    pub fn requeue(&mut self, id: SlotId) {
        self.set_busy(id, true);
        self.mark_ready(id);
    }

    /// Records whether the slot's last read cost more than a sparse connection's does.
    pub fn set_busy(&mut self, id: SlotId, is_busy: bool) {
        if let Some(slot) = self.get_mut(id) {
            if is_busy {
                slot.flags.set(SlotFlags::BUSY);
            } else {
                slot.flags.clear(SlotFlags::BUSY);
            }
        }
    }

    /// The peer sends no more than what there is to read.
    pub fn mark_read_closed(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::READ_CLOSED);
        }
    }

    /// The socket takes bytes again.
    pub fn mark_writable(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.unblock();
            self.mark_dirty(id);
        }
    }

    /// It is not to be read until its outbox is empty.
    pub fn pause_reading(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::READ_PAUSED);
        }
    }

    /// Its outbox is empty: if it was held, there may be something to read.
    pub fn resume_reading(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id)
            && slot.is_read_paused()
        {
            slot.flags.clear(SlotFlags::READ_PAUSED);
            self.mark_ready(id);
        }
    }

    /// Pauses a publisher. Returns true if it was not paused.
    pub fn pause_publishing(&mut self, id: SlotId) -> bool {
        self.get_mut(id).is_some_and(|slot| slot.flags.set(SlotFlags::PUBLISHING_PAUSED))
    }

    /// Resumes a publisher: it is read again, and withheld responses are sent.
    pub fn resume_publishing(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id)
            && slot.is_publishing_paused()
        {
            slot.flags.clear(SlotFlags::PUBLISHING_PAUSED);
            self.resume_reading(id);
            self.mark_dirty(id);
        }
    }

    /// It is getting what was kept, or is not.
    pub fn mark_replaying(&mut self, id: SlotId, is_replaying: bool) {
        if let Some(slot) = self.get_mut(id) {
            if is_replaying {
                slot.flags.set(SlotFlags::REPLAYING);
            } else {
                slot.flags.clear(SlotFlags::REPLAYING);
            }
        }
    }

    /// Its close frame is queued, or there is none.
    pub fn mark_close_queued(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::CLOSE_QUEUED);
        }
        // Its further messages are not published, and its end of file has to be read.
        self.resume_publishing(id);
    }

    /// A proxy has yet to say for whom it speaks, or has said so.
    pub fn mark_awaiting_header(&mut self, id: SlotId, awaits_header: bool) {
        if let Some(slot) = self.get_mut(id) {
            if awaits_header {
                slot.flags.set(SlotFlags::AWAITS_HEADER);
            } else {
                slot.flags.clear(SlotFlags::AWAITS_HEADER);
            }
        }
    }

    /// There is no room for it.
    pub fn mark_rejected(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::REJECTED);
        }
    }

    /// The socket takes nothing any more. What the peer sent before it went is still to be read.
    pub fn mark_write_failed(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.outbox = Outbox::Empty;
            slot.flags.set(SlotFlags::WRITE_FAILED);
            // There is no answer left to take.
            slot.flags.clear(SlotFlags::READ_PAUSED);
            self.mark_ready(id);
        }
    }

    /// There is something to write, and the socket is not known to be full.
    pub fn mark_dirty(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id)
            && slot.wants_flush()
            && slot.flags.set(SlotFlags::DIRTY)
        {
            // A broadcast to many puts all of them on the list in one turn. Doubling would leave as many pages of
            // earlier copies; pages of a larger list that are not written to take no memory.
            if self.dirty.len() == self.dirty.capacity() && self.dirty.len() >= CHUNK_ENTRIES {
                let places = self.slab.keys_end();
                self.dirty.reserve_exact(places.saturating_sub(self.dirty.len()).max(CHUNK_ENTRIES));
            }
            self.dirty.push(id);
        }
    }

    /// The slot is over. Anything may say so, as often as it likes; only the reap phase acts on it
    /// (**one funeral**), and the first reason stays.
    pub fn schedule_close(&mut self, id: SlotId, reason: Reason) {
        if let Some(slot) = self.get_mut(id)
            && slot.flags.set(SlotFlags::TO_REAP)
        {
            slot.state.end(reason);
            self.to_reap.push(id);
        }
    }

    /// Takes the next slot off a ready queue.
    pub fn next_ready(&mut self, queue: ReadyQueue) -> Option<SlotId> {
        loop {
            let id = self.queue_mut(queue).pop_front()?;
            if let Some(slot) = self.get_mut(id) {
                slot.flags.clear(SlotFlags::READY);
                return Some(id);
            }
        }
    }

    /// Returns the number of entries in a ready queue.
    pub fn ready_len(&self, queue: ReadyQueue) -> usize {
        match queue {
            ReadyQueue::New => self.ready.len(),
            ReadyQueue::Requeued => self.requeued.len(),
        }
    }

    fn queue_mut(&mut self, queue: ReadyQueue) -> &mut VecDeque<SlotId> {
        match queue {
            ReadyQueue::New => &mut self.ready,
            ReadyQueue::Requeued => &mut self.requeued,
        }
    }

    /// Queues a connection for the next slice of a replay or of a response. Addresses take turns, and so do the
    /// connections of each: one slice, followed by the next connection.
    pub fn mark_refill(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.clear(SlotFlags::WAITS);
            let ip = slot.peer.ip();
            if slot.flags.set(SlotFlags::REFILL) {
                self.refill.push(id, ip);
            }
        }
    }

    /// Takes the next slot off the refill list.
    pub fn next_refill(&mut self) -> Option<SlotId> {
        loop {
            let id = self.refill.pop()?;
            if let Some(slot) = self.get_mut(id) {
                slot.flags.clear(SlotFlags::REFILL);
                return Some(id);
            }
        }
    }

    /// Puts a connection on the list of replays that wait for memory.
    pub fn mark_waiting(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id)
            && slot.flags.set(SlotFlags::WAITS)
        {
            self.waiting.push_back(id);
        }
    }

    /// Returns the number of entries in the list of waiting replays; some may have closed.
    pub fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    /// Returns true if a replay waits for memory.
    pub fn has_waiting(&mut self) -> bool {
        while let Some(&id) = self.waiting.front() {
            if self.get(id).is_some_and(Slot::waits_for_memory) {
                return true;
            }
            self.waiting.pop_front();
        }
        false
    }

    /// Retries the replays that wait for memory, those that have waited longest first.
    pub fn wake_waiting(&mut self) {
        for id in std::mem::take(&mut self.waiting) {
            if self.get(id).is_some_and(Slot::waits_for_memory) {
                self.mark_refill(id);
            }
        }
    }

    /// Takes the dirty list. Each slot on it is to be taken off with [`Slots::flushing`], and the list to
    /// be given back.
    pub fn take_dirty(&mut self) -> Vec<SlotId> {
        std::mem::take(&mut self.dirty)
    }

    /// A slot of the list that was taken; from here on it can be marked anew.
    pub fn flushing(&mut self, id: SlotId) -> Option<&mut Slot<T>> {
        let slot = self.get_mut(id)?;
        slot.flags.clear(SlotFlags::DIRTY);
        Some(slot)
    }

    /// Returns the list's memory, so that no turn allocates it anew; what was marked meanwhile stays.
    pub fn give_back_dirty(&mut self, mut list: Vec<SlotId>) {
        list.clear();
        list.append(&mut self.dirty);
        self.dirty = list;
    }

    /// Takes the doomed.
    pub fn take_to_reap(&mut self) -> Vec<SlotId> {
        std::mem::take(&mut self.to_reap)
    }

    /// Is there work that no event will announce?
    pub fn has_work(&self) -> bool {
        let is_ready = !self.ready.is_empty() || !self.requeued.is_empty();
        is_ready || !self.dirty.is_empty() || !self.to_reap.is_empty() || !self.refill.is_empty()
    }

    /// Panics if the lists and the marks contradict each other; for debug builds and tests.
    pub fn check(&self) {
        assert!(self.to_reap.is_empty(), "the doomed are reaped in their own turn");
        // Entries of connections that were freed may remain until they are popped.
        let ready: HashSet<SlotId> = self.ready.iter().copied().collect();
        let requeued: HashSet<SlotId> = self.requeued.iter().copied().collect();
        let dirty: HashSet<SlotId> = self.dirty.iter().copied().collect();
        assert!(ready.is_disjoint(&requeued), "a slot is in one ready queue");
        for (id, slot) in self.iter() {
            assert!(!matches!(slot.state, State::Dead(_)), "{id:?} is dead and was not doomed");
            slot.outbox.check();
            let is_queued = ready.contains(&id) || requeued.contains(&id);
            assert_eq!(slot.flags.has(SlotFlags::READY), is_queued, "{id:?} and the ready queues");
            assert_eq!(slot.flags.has(SlotFlags::DIRTY), dirty.contains(&id), "{id:?} and the dirty list");
            assert!(!slot.wants_flush() || slot.flags.has(SlotFlags::DIRTY), "nobody flushes {id:?}");
            assert!(slot.subscriptions.is_empty() || slot.state.is_open(), "{id:?} is a member, and closing");
            let refills = slot.flags.has(SlotFlags::REFILL);
            assert!(
                !slot.is_read_paused() || !slot.is_flushed() || refills || slot.is_publishing_paused(),
                "nobody releases {id:?}"
            );
            let is_due = slot.state.has_query() && !slot.has_write_failed();
            assert!(!is_due || !slot.is_flushed() || refills, "nobody responds to {id:?}");
            let replays = slot
                .subscriptions
                .as_slice()
                .iter()
                .any(|subscription| subscription.state == SubscriptionState::CatchingUp);
            assert_eq!(slot.is_replaying(), replays, "{id:?} and its replay");
            let is_listed = refills || slot.waits_for_memory();
            assert!(!replays || !slot.is_flushed() || is_listed, "the replay of {id:?} stands still");
        }
    }
}

impl<T: Transport> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::net::transport::ReadOutcome;
    use std::io;

    /// A connection with nobody at the other end.
    #[derive(Debug)]
    struct Nobody;

    impl io::Write for Nobody {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Nobody {
        fn receive(&mut self, _: &mut [u8]) -> ReadOutcome {
            ReadOutcome::Blocked
        }

        fn shut_down_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn insert(slots: &mut Slots<Nobody>) -> SlotId {
        let peer = Peer::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        let state = State::accepted(&Limits::default(), LoopTime::from_millis(0));
        slots.insert(Nobody, peer, state, Outbox::Empty)
    }

    #[test]
    fn a_slot_is_small() {
        // Release builds; in debug builds mio's socket also knows its poll.
        assert!(size_of::<Slot<i32>>() <= 80, "{}", size_of::<Slot<i32>>());
        // What is within TLS is in a box of its own.
        assert!(size_of::<Slot<Box<()>>>() <= 88, "{}", size_of::<Slot<Box<()>>>());
    }

    #[test]
    fn a_late_id_does_not_reach_the_next_tenant() {
        let mut slots = Slots::new();
        let old = insert(&mut slots);
        slots.mark_ready(old);
        slots.remove(old).unwrap();
        let new = insert(&mut slots);
        assert_eq!(old.key, new.key);
        slots.mark_ready(old);
        slots.schedule_close(old, Reason::Reset);
        assert_eq!(slots.next_ready(ReadyQueue::New), None);
        assert!(slots.get(old).is_none() && slots.take_to_reap().is_empty());
        assert!(matches!(slots.get(new).unwrap().state, State::Head(_)));
    }

    #[test]
    fn sweep_of_connections_walks_few_places_after_a_flood() {
        let mut slots = Slots::new();
        let ids: Vec<SlotId> = (0..20_000).map(|_| insert(&mut slots)).collect();
        for &id in &ids {
            slots.mark_ready(id);
            slots.schedule_close(id, Reason::Reset);
        }
        for id in slots.take_to_reap() {
            if id != ids[7] {
                slots.remove(id);
            }
        }
        while slots.next_ready(ReadyQueue::New).is_some() {}
        slots.shrink_at(LoopTime::from_millis(0));
        assert!(slots.keys_end() <= SLOTS_KEPT, "{}", slots.keys_end());
        assert!(slots.get(ids[7]).is_some());
        assert!((insert(&mut slots).key as usize) < SLOTS_KEPT, "low keys are used first");
    }

    #[test]
    fn a_slot_is_on_each_list_once_and_dies_of_its_first_reason() {
        let mut slots = Slots::new();
        let id = insert(&mut slots);
        slots.mark_ready(id);
        slots.mark_ready(id);
        slots.schedule_close(id, Reason::Slow);
        slots.schedule_close(id, Reason::Reset);
        slots.requeue(id);
        assert_eq!((slots.ready_len(ReadyQueue::New), slots.ready_len(ReadyQueue::Requeued)), (1, 0));
        assert_eq!(slots.take_to_reap(), [id]);
        assert!(matches!(&slots.get(id).unwrap().state, State::Dead(ended) if ended.reason == Reason::Slow));
    }
}
