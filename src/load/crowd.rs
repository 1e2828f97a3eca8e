//! All members, and the lists of those that need something.
//!
//! As in the server, an event only marks its member; work is done at our pace, and only [`Crowd::reap`]
//! takes a member out. Deadlines stand in queues instead of a swept table: each kind has one length, so
//! whoever comes first is due first.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mio::event::Event;
use mio::{Interest, Registry};
use slab::Slab;

use super::attendance::{Attendance, Role};
use super::clock::{Clock, Time};
use super::ledger::Ledger;
use super::member::{End, Member, Progress, State};
use super::tally::{Phase, Tally};
use super::target::Target;
use crate::client::cause::Cause;
use crate::client::handshake::Handshake;
use crate::client::tls::TlsConnector;
use crate::client::transport::ClientTransport;
use crate::hub::outbox::Left;
use crate::ids::SlotId;
use crate::server::slots::{id_of, token_of};

/// From `connect` to the answer. Three SYNs are sent within it (at 0, 1 and 3 s), should a full backlog
/// drop the first two.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// From our close frame to the server's.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The one read buffer. It takes 3,000 small frames, so one read nearly always takes all there is.
const SCRATCH_BYTES: usize = 256 << 10;

/// All connections.
pub struct Crowd {
    target: Target,
    registry: Registry,
    members: Slab<Member>,
    next_generation: u32,
    ready: VecDeque<SlotId>,
    dirty: Vec<SlotId>,
    ended: Vec<SlotId>,
    pending: usize,
    open: usize,
    /// When handshakes have to be complete.
    handshakes: VecDeque<(Time, SlotId)>,
    /// When guests go.
    guests: VecDeque<(Time, SlotId)>,
    /// When those that said goodbye are cut.
    leaving: VecDeque<(Time, SlotId)>,
    scratch: Vec<u8>,
    /// What became of them.
    pub tally: Tally,
    /// How long a guest stays.
    pub stay: Duration,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(target: Target, registry: Registry) -> Crowd {
        Crowd {
            target,
            registry,
            members: Slab::new(),
            next_generation: 0,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            ended: Vec::new(),
            pending: 0,
            open: 0,
            handshakes: VecDeque::new(),
            guests: VecDeque::new(),
            leaving: VecDeque::new(),
            scratch: vec![0; SCRATCH_BYTES],
            tally: Tally::new(),
            stay: Duration::ZERO,
        }
    }

    /// Handshakes under way.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Members that are open.
    pub fn open(&self) -> usize {
        self.open
    }

    /// A member.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Member> {
        self.members.get_mut(id.key as usize).filter(|member| member.generation == id.generation)
    }

    /// All members.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Member)> {
        self.members
            .iter_mut()
            .map(|(key, member)| (SlotId { key: key as u32, generation: member.generation }, member))
    }

    /// Begins a connection; false if that failed at once.
    pub fn connect(
        &mut self,
        role: Role,
        channel: u32,
        receive_buffer_bytes: Option<usize>,
        now: Time,
    ) -> bool {
        let number = self.tally.attempted;
        self.tally.attempted += 1;
        let session = match self.target.tls.as_ref().map(TlsConnector::session).transpose() {
            Ok(session) => session,
            Err(failure) => {
                *self.tally.refused.entry((Phase::Connect, Cause::Tls(failure))).or_default() += 1;
                return false;
            }
        };
        let begun = self.target.connect(number, receive_buffer_bytes).and_then(|mut stream| {
            let id = SlotId { key: self.members.vacant_key() as u32, generation: self.next_generation };
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut stream, token_of(id), interest)?;
            Ok((stream, id))
        });
        let (stream, id) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                *self.tally.refused.entry((Phase::Connect, Cause::from(&error))).or_default() += 1;
                return false;
            }
        };
        let (request, handshake) = Handshake::request(&self.target.authority, &self.target.path(channel));
        let attendance = Attendance::new(role, channel);
        let mut member =
            Member::new(ClientTransport::new(stream, session), handshake, attendance, now, id.generation);
        member.send(request.into());
        self.members.insert(member);
        self.next_generation = self.next_generation.wrapping_add(1);
        self.pending += 1;
        self.handshakes.push_back((now.after(HANDSHAKE_TIMEOUT), id));
        true
    }

    /// Marks a member for what its event says.
    pub fn note(&mut self, event: &Event) {
        let id = id_of(event.token());
        let Some(member) = self.get_mut(id) else { return };
        let is_closed = event.is_read_closed() || event.is_error();
        member.marks.read_closed |= is_closed;
        let is_stalled = matches!(member.state, State::Stalled(_));
        let is_connecting = matches!(member.state, State::Connecting(_));
        if event.is_writable() {
            member.unblock();
            self.mark_dirty(id);
        }
        if is_closed || is_connecting || (event.is_readable() && !is_stalled) {
            self.mark_ready(id);
        }
    }

    fn mark_ready(&mut self, id: SlotId) {
        if let Some(member) = self.get_mut(id)
            && !std::mem::replace(&mut member.marks.ready, true)
        {
            self.ready.push_back(id);
        }
    }

    fn mark_dirty(&mut self, id: SlotId) {
        if let Some(member) = self.get_mut(id)
            && member.wants_write()
            && !std::mem::replace(&mut member.marks.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Reads every ready member once. **Drain or requeue**: whoever may have more is ready again.
    pub fn drive(&mut self, ledger: &mut Ledger, clock: &Clock) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(member) =
                self.members.get_mut(id.key as usize).filter(|member| member.generation == id.generation)
            else {
                continue;
            };
            member.marks.ready = false;
            let (more, progress) = member.read(&mut self.scratch, ledger, || clock.now());
            let has_ended = matches!(member.state, State::Ended(_));
            if progress == Progress::Opened {
                self.opened(id, clock.now());
            }
            if has_ended {
                self.ended.push(id);
                continue;
            }
            // A request that can now be sent, or a pong.
            self.mark_dirty(id);
            if more {
                self.mark_ready(id);
            }
        }
    }

    fn opened(&mut self, id: SlotId, now: Time) {
        self.pending -= 1;
        self.open += 1;
        self.tally.opened += 1;
        let leaves_at = now.after(self.stay);
        let Some(member) = self.get_mut(id) else { return };
        let nanos = now.nanos_since(member.since);
        let is_guest = member.attendance.role == Role::Guest;
        if is_guest {
            self.guests.push_back((leaves_at, id));
        }
        self.tally.handshakes.saturating_record(nanos);
    }

    /// Queues a frame; false if the member is not open.
    pub fn send(&mut self, id: SlotId, frame: Bytes) -> bool {
        let Some(member) = self.get_mut(id).filter(|member| member.is_open()) else { return false };
        member.outbox.queue(Rc::new(frame));
        self.mark_dirty(id);
        true
    }

    /// One write for each dirty member.
    pub fn flush(&mut self, now: Time) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(member) = self.get_mut(id) else { continue };
            member.marks.dirty = false;
            // Nothing can be written yet; the event that says so comes by itself.
            if let State::Connecting(_) | State::Ended(_) = member.state {
                continue;
            }
            match member.flush(now.moment()) {
                Left::Nothing | Left::Blocked => {}
                Left::More => self.mark_dirty(id),
                // The read side says how it ended.
                Left::Failed(_) => {
                    member.outbox = Default::default();
                    member.marks.read_closed = true;
                    self.mark_ready(id);
                }
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Looks for deadlines that have come.
    pub fn sweep(&mut self, now: Time) {
        while let Some(id) = next_due(&mut self.handshakes, now) {
            if let Some(member) = self.get_mut(id).filter(|member| member.is_pending()) {
                member.lose(Cause::Timeout);
                self.ended.push(id);
            }
        }
        while let Some(id) = next_due(&mut self.guests, now) {
            self.leave(id, now);
        }
        while let Some(id) = next_due(&mut self.leaving, now) {
            if let Some(member) = self.get_mut(id)
                && let State::Leaving(_) = member.state
            {
                // The server is late with its answer; that is its business.
                member.state = State::Ended(End::Left);
                self.ended.push(id);
            }
        }
    }

    fn leave(&mut self, id: SlotId, now: Time) {
        let Some(member) = self.get_mut(id).filter(|member| member.is_open()) else { return };
        member.leave();
        self.leaving.push_back((now.after(LEAVE_TIMEOUT), id));
        self.mark_dirty(id);
    }

    /// Takes out whoever has ended.
    pub fn reap(&mut self, ledger: &mut Ledger) {
        for id in std::mem::take(&mut self.ended) {
            if self.get_mut(id).is_none() {
                continue;
            }
            let mut member = self.members.remove(id.key as usize);
            let State::Ended(end) = member.state else { continue };
            if let End::Lost(phase @ (Phase::Connect | Phase::Handshake), cause) = end {
                self.pending -= 1;
                *self.tally.refused.entry((phase, cause)).or_default() += 1;
                continue;
            }
            self.open -= 1;
            ledger.left(&mut member.attendance);
            if let End::Lost(phase, cause) = end {
                let is_stalled = member.attendance.role == Role::Stalled;
                let causes = if is_stalled { &mut self.tally.stalled } else { &mut self.tally.lost };
                *causes.entry((phase, cause)).or_default() += 1;
            }
        }
    }

    /// Drops every connection at once, as a network that goes down does.
    pub fn drop_all(&mut self) {
        self.members.clear();
        self.ready.clear();
        self.dirty.clear();
        self.ended.clear();
        self.pending = 0;
        self.open = 0;
    }

    /// Whoever had stalled reads again.
    pub fn resume_stalled(&mut self) {
        let resumed: Vec<SlotId> =
            self.iter_mut().filter_map(|(id, member)| member.resume().then_some(id)).collect();
        for id in resumed {
            self.mark_ready(id);
        }
    }

    /// Is there work that no event will announce?
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.ended.is_empty()
    }
}

/// Takes the first of a queue, if its time has come.
fn next_due(queue: &mut VecDeque<(Time, SlotId)>, now: Time) -> Option<SlotId> {
    queue.front().filter(|(due, _)| *due <= now)?;
    queue.pop_front().map(|(_, id)| id)
}
