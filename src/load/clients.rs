//! All clients of a run, with the queues of those that need work.
//!
//! As in the server, an event only marks its client, work runs in the loop's own order, and only [`Clients::reap`]
//! removes a client. Deadlines are in queues, not in a scanned slab: all deadlines of a kind have the same length, so
//! the first in the queue expires first.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use mio::event::Event;
use mio::{Interest, Registry};
use slab::Slab;

use super::client::{Client, ClientEnd, ClientState, ReadBuffers, ReadProgress};
use super::clock::{RunClock, RunTime};
use super::connection_stats::{ConnectionStats, Phase};
use super::delivery_tracker::DeliveryTracker;
use super::recipient::{Recipient, Role};
use super::target::BenchTarget;
use crate::client::cause::Cause;
use crate::client::deflate::SharedInflater;
use crate::client::handshake::{Handshake, HandshakeRequest};
use crate::client::tls::TlsConnector;
use crate::client::transport::ClientTransport;
use crate::ids::SlotId;
use crate::net::outbox::FlushOutcome;
use crate::net::token::{id_of, token_of};

/// Maximum time from `connect` to the complete response. The kernel sends three SYNs within it (at 0, 1 and 3 s),
/// should a full backlog drop the first two.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time from the client's close frame to the server's.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Size of the shared read buffer. It holds 3,000 small frames, so one read nearly always takes all available bytes.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// All connections.
pub struct Clients {
    target: BenchTarget,
    registry: Registry,
    clients: Slab<Client>,
    next_generation: u32,
    ready: VecDeque<SlotId>,
    dirty: Vec<SlotId>,
    ended: Vec<SlotId>,
    pending: usize,
    open: usize,
    /// Deadlines of handshakes.
    handshakes: VecDeque<(RunTime, SlotId)>,
    /// Times at which short-lived clients leave.
    short_lived: VecDeque<(RunTime, SlotId)>,
    /// Deadlines of close handshakes.
    leaving: VecDeque<(RunTime, SlotId)>,
    read_buffers: ReadBuffers,
    /// Statistics of their connections.
    pub stats: ConnectionStats,
    /// Time that a short-lived client stays connected.
    pub stay: Duration,
}

impl Clients {
    /// No clients yet.
    pub fn new(target: BenchTarget, registry: Registry) -> Clients {
        Clients {
            target,
            registry,
            clients: Slab::new(),
            next_generation: 0,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            ended: Vec::new(),
            pending: 0,
            open: 0,
            handshakes: VecDeque::new(),
            short_lived: VecDeque::new(),
            leaving: VecDeque::new(),
            read_buffers: ReadBuffers {
                scratch: vec![0; READ_BUFFER_BYTES],
                inflater: SharedInflater::new(),
            },
            stats: ConnectionStats::new(),
            stay: Duration::ZERO,
        }
    }

    /// Number of handshakes in progress.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Number of open clients.
    pub fn open(&self) -> usize {
        self.open
    }

    /// A client.
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Client> {
        self.clients.get_mut(id.key as usize).filter(|client| client.generation == id.generation)
    }

    /// All clients.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (SlotId, &mut Client)> {
        self.clients
            .iter_mut()
            .map(|(key, client)| (SlotId { key: key as u32, generation: client.generation }, client))
    }

    /// Starts a connection. Returns false if it fails at once.
    pub fn connect(
        &mut self,
        role: Role,
        channel: u32,
        receive_buffer_bytes: Option<usize>,
        now: RunTime,
    ) -> bool {
        let number = self.stats.attempted;
        self.stats.attempted += 1;
        let session = match self.target.tls.as_ref().map(TlsConnector::session).transpose() {
            Ok(session) => session,
            Err(failure) => {
                *self.stats.failed.entry((Phase::Connect, Cause::Tls(failure))).or_default() += 1;
                return false;
            }
        };
        let begun = self.target.connect(number, receive_buffer_bytes).and_then(|mut stream| {
            let id = SlotId { key: self.clients.vacant_key() as u32, generation: self.next_generation };
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut stream, token_of(id), interest)?;
            Ok((stream, id))
        });
        let (stream, id) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                *self.stats.failed.entry((Phase::Connect, Cause::from(&error))).or_default() += 1;
                return false;
            }
        };
        let (request, handshake) = {
            let BenchTarget { authority, offers_deflate, .. } = &self.target;
            let (path, offers_deflate) = (&*self.target.path(channel), *offers_deflate);
            Handshake::request(HandshakeRequest { authority, path, offers_deflate, ..Default::default() })
        };
        let recipient = Recipient::new(role, channel);
        let mut client =
            Client::new(ClientTransport::new(stream, session), handshake, recipient, now, id.generation);
        client.send(request.into());
        self.clients.insert(client);
        self.next_generation = self.next_generation.wrapping_add(1);
        self.pending += 1;
        self.handshakes.push_back((now.after(HANDSHAKE_TIMEOUT), id));
        true
    }

    /// Marks a client by its event.
    pub fn mark(&mut self, event: &Event) {
        let id = id_of(event.token());
        let Some(client) = self.get_mut(id) else { return };
        let is_closed = event.is_read_closed() || event.is_error();
        client.flags.read_closed |= is_closed;
        let is_stalled = matches!(client.state, ClientState::Stalled(_));
        let is_connecting = matches!(client.state, ClientState::Connecting(_));
        if event.is_writable() {
            client.unblock();
            self.mark_dirty(id);
        }
        if is_closed || is_connecting || (event.is_readable() && !is_stalled) {
            self.mark_ready(id);
        }
    }

    fn mark_ready(&mut self, id: SlotId) {
        if let Some(client) = self.get_mut(id)
            && !std::mem::replace(&mut client.flags.ready, true)
        {
            self.ready.push_back(id);
        }
    }

    fn mark_dirty(&mut self, id: SlotId) {
        if let Some(client) = self.get_mut(id)
            && client.wants_write()
            && !std::mem::replace(&mut client.flags.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Reads once from every ready client. **Drain or requeue**: a client that may have more to read is queued again.
    pub fn read(&mut self, tracker: &mut DeliveryTracker, clock: &RunClock) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            let Some(client) =
                self.clients.get_mut(id.key as usize).filter(|client| client.generation == id.generation)
            else {
                continue;
            };
            client.flags.ready = false;
            let (more, progress) = client.read(&mut self.read_buffers, tracker, || clock.now());
            let has_ended = matches!(client.state, ClientState::Ended(_));
            if progress == ReadProgress::Opened {
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

    fn opened(&mut self, id: SlotId, now: RunTime) {
        self.pending -= 1;
        self.open += 1;
        self.stats.opened += 1;
        let leaves_at = now.after(self.stay);
        let Some(client) = self.get_mut(id) else { return };
        let nanos = now.nanos_since(client.since);
        let is_short_lived = client.recipient.role == Role::ShortLived;
        let is_deflate_negotiated = client.is_deflate_negotiated();
        if is_short_lived {
            self.short_lived.push_back((leaves_at, id));
        }
        self.stats.handshakes.saturating_record(nanos);
        self.stats.deflate_negotiated += u64::from(is_deflate_negotiated);
    }

    /// Queues a frame; false if the client is not open.
    pub fn send(&mut self, id: SlotId, frame: Bytes) -> bool {
        let Some(client) = self.get_mut(id).filter(|client| client.is_open()) else { return false };
        client.outbox.queue(Rc::new(frame));
        self.mark_dirty(id);
        true
    }

    /// One write for each dirty client.
    pub fn flush(&mut self, now: RunTime) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(client) = self.get_mut(id) else { continue };
            client.flags.dirty = false;
            // An event follows when the socket becomes writable.
            if let ClientState::Connecting(_) | ClientState::Ended(_) = client.state {
                continue;
            }
            match client.flush(now.loop_time()) {
                FlushOutcome::Drained | FlushOutcome::Blocked => {}
                FlushOutcome::More => self.mark_dirty(id),
                // The next read returns how the connection ended.
                FlushOutcome::Failed(_) => {
                    client.outbox = Default::default();
                    client.flags.read_closed = true;
                    self.mark_ready(id);
                }
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Handles expired deadlines.
    pub fn expire(&mut self, now: RunTime) {
        while let Some(id) = next_due(&mut self.handshakes, now) {
            if let Some(client) = self.get_mut(id).filter(|client| client.is_pending()) {
                client.lose(Cause::Timeout);
                self.ended.push(id);
            }
        }
        while let Some(id) = next_due(&mut self.short_lived, now) {
            self.begin_close(id, now);
        }
        while let Some(id) = next_due(&mut self.leaving, now) {
            if let Some(client) = self.get_mut(id)
                && let ClientState::Leaving(_) = client.state
            {
                // The server is late with its close frame, which is not counted as an error.
                client.state = ClientState::Ended(ClientEnd::Closed);
                self.ended.push(id);
            }
        }
    }

    fn begin_close(&mut self, id: SlotId, now: RunTime) {
        let Some(client) = self.get_mut(id).filter(|client| client.is_open()) else { return };
        client.begin_close();
        self.leaving.push_back((now.after(CLOSE_TIMEOUT), id));
        self.mark_dirty(id);
    }

    /// Removes ended clients.
    pub fn reap(&mut self, tracker: &mut DeliveryTracker) {
        for id in std::mem::take(&mut self.ended) {
            if self.get_mut(id).is_none() {
                continue;
            }
            let mut client = self.clients.remove(id.key as usize);
            let ClientState::Ended(end) = client.state else { continue };
            if let ClientEnd::Lost(phase @ (Phase::Connect | Phase::Handshake), cause) = end {
                self.pending -= 1;
                *self.stats.failed.entry((phase, cause)).or_default() += 1;
                continue;
            }
            self.open -= 1;
            tracker.remove_client(&mut client.recipient);
            if let ClientEnd::Lost(phase, cause) = end {
                let is_stalled = client.recipient.role == Role::Stalled;
                let causes = if is_stalled { &mut self.stats.stalled } else { &mut self.stats.lost };
                *causes.entry((phase, cause)).or_default() += 1;
            }
        }
    }

    /// Drops all connections at once, as a network failure does.
    pub fn drop_all(&mut self) {
        self.clients.clear();
        self.ready.clear();
        self.dirty.clear();
        self.ended.clear();
        self.pending = 0;
        self.open = 0;
    }

    /// Makes stalled clients read again.
    pub fn resume_stalled(&mut self) {
        let resumed: Vec<SlotId> =
            self.iter_mut().filter_map(|(id, client)| client.resume().then_some(id)).collect();
        for id in resumed {
            self.mark_ready(id);
        }
    }

    /// Returns true if there is work that no event will announce.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.dirty.is_empty() || !self.ended.is_empty()
    }
}

/// Takes the first entry of a queue if it is due.
fn next_due(queue: &mut VecDeque<(RunTime, SlotId)>, now: RunTime) -> Option<SlotId> {
    queue.front().filter(|(due, _)| *due <= now)?;
    queue.pop_front().map(|(_, id)| id)
}
