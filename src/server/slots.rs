//! The slab of connections, and the lists of those with work to do.
//!
//! An event only marks its slot: it goes into one of the two *ready* queues when there may be bytes to read, and into
//! the *dirty* set when there are bytes to write. The *to reap* list holds closed connections. The *refill* list holds
//! connections whose outbox is empty and that are to be sent the next slice of a replay or of a response. A slot knows
//! which lists it is on, so it is on each of them once, however often it is marked. The dirty set ([`BitSet`]) has a
//! bit for each slot: a broadcast marks all subscribers, and a list of them would take 8 bytes for each.

use std::collections::{HashSet, VecDeque};

use super::fair_queue::FairQueue;
use super::slot::{Slot, SlotFlags};
use crate::close::Reason;
use crate::hub::SubscriptionState;
use crate::hub::subscriptions::Subscriptions;
use crate::ids::{Peer, SlotId};
use crate::net::outbox::Outbox;
use crate::net::transport::Transport;
use crate::session::State;
use crate::tables::bit_set::BitSet;
use crate::tables::chunked_slab::{CHUNK_ENTRIES, ChunkedSlab};
use crate::tables::shrink::ShrinkTrigger;
use crate::time::LoopTime;

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

/// The slab of all connections.
#[derive(Debug)]
pub struct Slots<T> {
    slab: ChunkedSlab<Slot<T>>,
    /// One more than the highest key in use so far.
    keys_end: usize,
    shrink_trigger: ShrinkTrigger,
    next_generation: u32,
    /// Slots with a new event whose last read was cheap.
    ready: VecDeque<SlotId>,
    /// Slots whose share or turn was used up, and those with a new event whose last read was not cheap.
    requeued: VecDeque<SlotId>,
    /// Slots to flush. A broadcast to many puts all of them in.
    dirty: BitSet,
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
            dirty: BitSet::new(),
            to_reap: Vec::new(),
            refill: FairQueue::default(),
            waiting: VecDeque::new(),
        }
    }

    /// Returns the id that the next inserted slot will have.
    ///
    /// **Id before slot**: a socket is registered with the poll under this id before its slot exists, since a socket
    /// that cannot be registered gets none. The accept phase calls `next_id`, registers, and calls [`Slots::insert`],
    /// and inserts no other slot in between. If registration or TLS setup fails, the id is unused: the socket is
    /// closed, which removes its registration, and the next connection gets the same id.
    pub fn next_id(&self) -> SlotId {
        SlotId { key: self.slab.vacant_key() as u32, generation: self.next_generation }
    }

    /// Inserts a connection under [`Slots::next_id`].
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
        // The generations of a key have to differ for as long as an id may be in use, which is one turn.
        self.next_generation = self.next_generation.wrapping_add(1);
        self.keys_end = self.keys_end.max(id.key as usize + 1);
        id
    }

    /// The slot, if it is still the same connection.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot<T>> {
        self.slab.get_mut(id.key as usize).filter(|slot| slot.generation == id.generation)
    }

    /// The slot, if it is still the same connection.
    pub fn get(&self, id: SlotId) -> Option<&Slot<T>> {
        self.slab.get(id.key as usize).filter(|slot| slot.generation == id.generation)
    }

    /// Returns the id of the connection with this key.
    pub fn id_at(&self, key: usize) -> Option<SlotId> {
        let slot = self.slab.get(key)?;
        Some(SlotId { key: key as u32, generation: slot.generation })
    }

    /// Removes a slot. Its remaining list entries are invalid with its generation.
    pub fn remove(&mut self, id: SlotId) -> Option<Slot<T>> {
        self.get(id)?;
        self.dirty.remove(id.key as usize);
        self.slab.remove(id.key as usize)
    }

    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Returns true if the slab is empty.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Returns one more than the highest key in use so far.
    pub fn keys_end(&self) -> usize {
        self.keys_end
    }

    /// Releases memory when most connections are closed, and the keys above the last chunk in use, which the sweep then
    /// does not visit. New connections go into the lowest chunk that has room.
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
            self.dirty.shrink_to(self.keys_end);
            self.to_reap.shrink_to(most);
        }
    }

    /// All slots.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot<T>)> {
        self.slab.iter().map(|(key, slot)| (SlotId { key: key as u32, generation: slot.generation }, slot))
    }

    /// Queues a slot to be read.
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

    /// Requeues a slot that has more bytes, which raise no further event.
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

    /// Records that the peer has shut down its sending side.
    pub fn mark_read_closed(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::READ_CLOSED);
        }
    }

    /// Records that the socket accepts bytes again.
    pub fn mark_writable(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.unblock();
            self.mark_dirty(id);
        }
    }

    /// Pauses reading until the outbox is empty.
    pub fn pause_reading(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::READ_PAUSED);
        }
    }

    /// Resumes reading, since the outbox is empty.
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

    /// Records whether it is catching up from a history.
    pub fn mark_replaying(&mut self, id: SlotId, is_replaying: bool) {
        if let Some(slot) = self.get_mut(id) {
            if is_replaying {
                slot.flags.set(SlotFlags::REPLAYING);
            } else {
                slot.flags.clear(SlotFlags::REPLAYING);
            }
        }
    }

    /// Records whether its close frame waits for the acknowledgements of its messages.
    pub fn mark_close_held(&mut self, id: SlotId, is_held: bool) {
        self.set_flag(id, SlotFlags::CLOSE_HELD, is_held);
    }

    /// Records whether its subscription waits for entries of a shared log.
    pub fn mark_waiting_for_log(&mut self, id: SlotId, waits: bool) {
        self.set_flag(id, SlotFlags::WAITS_FOR_LOG, waits);
    }

    fn set_flag(&mut self, id: SlotId, flag: u16, is_set: bool) {
        let Some(slot) = self.get_mut(id) else { return };
        if is_set {
            slot.flags.set(flag);
        } else {
            slot.flags.clear(flag);
        }
    }

    /// Records that its close frame is queued, or that it is closing without one.
    pub fn mark_close_queued(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.flags.set(SlotFlags::CLOSE_QUEUED);
        }
        // Further messages of the peer are not published, but its end of file has to be read.
        self.resume_publishing(id);
    }

    /// Records that a write has failed. Bytes that the peer sent before are still read.
    pub fn mark_write_failed(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            slot.outbox = Outbox::Empty;
            slot.flags.set(SlotFlags::WRITE_FAILED);
            // No response is left to send.
            slot.flags.clear(SlotFlags::READ_PAUSED);
            self.mark_ready(id);
        }
    }

    /// Puts a slot into the dirty set if it has frames to write and its socket is not known to be full.
    pub fn mark_dirty(&mut self, id: SlotId) {
        if self.get(id).is_some_and(Slot::wants_flush) {
            self.dirty.insert(id.key as usize);
        }
    }

    /// Schedules the close of a connection. Any phase may call this, repeatedly if it must; only the reap phase frees
    /// the slot (**deferred free**), and the first reason stays.
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
            slot.flags.clear(SlotFlags::WAITS_FOR_MEMORY);
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
            && slot.flags.set(SlotFlags::WAITS_FOR_MEMORY)
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

    /// Takes the dirty slot with the lowest key above that of `last`, and the first of all for `None`.
    ///
    /// A flush phase visits each slot at most once, since the keys only rise: a slot with a lower key that is marked
    /// meanwhile waits for the next turn.
    pub fn next_dirty(&mut self, last: Option<SlotId>) -> Option<SlotId> {
        let key = self.dirty.next_from(last.map_or(0, |last| last.key as usize + 1))?;
        self.dirty.remove(key);
        self.id_at(key)
    }

    /// Takes the list of connections to reap.
    pub fn take_to_reap(&mut self) -> Vec<SlotId> {
        std::mem::take(&mut self.to_reap)
    }

    /// Returns true if there is work that raises no event.
    pub fn has_work(&self) -> bool {
        let is_ready = !self.ready.is_empty() || !self.requeued.is_empty();
        is_ready || !self.dirty.is_empty() || !self.to_reap.is_empty() || !self.refill.is_empty()
    }

    /// Panics if the lists and the flags contradict each other; for debug builds and tests.
    pub fn check(&self) {
        assert!(self.to_reap.is_empty(), "closed connections are reaped in the same turn");
        // Entries of connections that were freed may remain until they are popped.
        let ready: HashSet<SlotId> = self.ready.iter().copied().collect();
        let requeued: HashSet<SlotId> = self.requeued.iter().copied().collect();
        assert!(ready.is_disjoint(&requeued), "a slot is in one ready queue");
        for (id, slot) in self.iter() {
            assert!(!matches!(slot.state, State::Dead(_)), "{id:?} is dead and was not scheduled to close");
            slot.outbox.check();
            let is_queued = ready.contains(&id) || requeued.contains(&id);
            assert_eq!(slot.flags.has(SlotFlags::READY), is_queued, "{id:?} and the ready queues");
            assert!(
                !slot.wants_flush() || self.dirty.contains(id.key as usize),
                "{id:?} has frames and is not in the dirty set"
            );
            assert!(
                slot.subscriptions.is_empty() || slot.state.is_open() || slot.is_close_held(),
                "{id:?} subscribes and is closing"
            );
            let refills = slot.flags.has(SlotFlags::REFILL);
            assert!(
                !slot.is_read_paused()
                    || !slot.is_flushed()
                    || refills
                    || slot.is_publishing_paused()
                    || slot.waits_for_log()
                    // The response is queued when the message is read back from the log.
                    || slot.state.awaits_publish(),
                "reading of {id:?} is never resumed"
            );
            let is_due = slot.state.has_query() && !slot.has_write_failed() && !slot.waits_for_log();
            assert!(!is_due || !slot.is_flushed() || refills, "the query of {id:?} gets no response");
            let replays = slot
                .subscriptions
                .as_slice()
                .iter()
                .any(|subscription| subscription.state == SubscriptionState::CatchingUp);
            assert_eq!(slot.is_replaying(), replays, "{id:?} and its replay");
            let is_listed = refills || slot.waits_for_memory();
            assert!(!replays || !slot.is_flushed() || is_listed, "the replay of {id:?} does not continue");
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
    use bytes::Bytes;
    use std::io;
    use std::rc::Rc;

    /// A transport without a peer.
    #[derive(Debug)]
    struct NoPeer;

    impl io::Write for NoPeer {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for NoPeer {
        fn receive(&mut self, _: &mut [u8]) -> ReadOutcome {
            ReadOutcome::Blocked
        }

        fn shut_down_write(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn insert(slots: &mut Slots<NoPeer>) -> SlotId {
        let peer = Peer::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)));
        let state = State::accepted(&Limits::default(), LoopTime::from_millis(0));
        slots.insert(NoPeer, peer, state, Outbox::Empty)
    }

    #[test]
    fn late_id_does_not_reach_the_next_connection() {
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
    fn dirty_slot_is_visited_once_in_a_phase_and_not_after_it_was_freed() {
        let mut slots = Slots::new();
        let ids: Vec<SlotId> = (0..200).map(|_| insert(&mut slots)).collect();
        for &id in &ids {
            slots.get_mut(id).unwrap().outbox.queue(Rc::new(Bytes::from_static(b"x")));
        }
        for marked in [150, 3, 70, 3, 64] {
            slots.mark_dirty(ids[marked]);
        }
        slots.remove(ids[70]);
        let next = insert(&mut slots);
        assert_eq!(next.key, ids[70].key);
        let (mut visited, mut last) = (vec![], None);
        while let Some(id) = slots.next_dirty(last) {
            visited.push(id);
            last = Some(id);
            // The slot itself has more to write, and so has another slot that was visited before.
            slots.mark_dirty(id);
            slots.mark_dirty(ids[3]);
        }
        assert_eq!(visited, [ids[3], ids[64], ids[150]]);
        assert!(slots.has_work());
        assert_eq!(slots.next_dirty(None), Some(ids[3]), "in the next turn");
    }

    #[test]
    fn slot_marked_twice_is_listed_once_and_keeps_its_first_reason() {
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
