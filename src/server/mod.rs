//! The event loop.
//!
//! A turn is a list of phases, and their order is the design:
//!
//! - **wait** first, since all other work was done in the turn before;
//! - **mark** only marks, so that a batch of events is read completely before any of them is handled, and an event for
//!   a slot that is closed in this turn finds no slot;
//! - **handle_signals** after **mark**: SIGHUP reloads certificate and keys, SIGTERM and SIGINT begin or end
//!   the drain;
//! - **relieve** before the phases that allocate, with a fresh count of the memory in use, and before **flush**, which
//!   sends its closes;
//! - **accept** before **read**, so that new connections are in the slab before the event of their first bytes;
//! - **receive** before **read**, since entries of the log that several nodes share are older than new input;
//! - **read** gathers intents, and **deliver** applies them, so that all messages of a turn become one batch for each
//!   channel. Intents are also applied within *read* once 256 are queued, and at once when a connection is closed or
//!   its deadline expires: the batches stay open until *deliver*. The last part of *deliver*, `refill`, makes the next
//!   slices of replays, listings and history pages, after the new messages. A replay is driven by the outbox running
//!   empty;
//! - **flush** after all that, so that each slot gets one write, however many frames are queued. It knows which
//!   subscribers are slow, so `pressure` pauses and resumes their publishers there;
//! - **expire** after **read**, so that no client is closed as silent whose bytes have just been read;
//! - **reap** last, so that a key is not used again while an id of this turn is still in use.
//!
//! # Modules
//!
//! - [`engine`] has the phases *flush* and *reap*, `read` the phase *read*, [`shared`] the state that sessions share.
//! - [`slot`] is one connection, [`slots`] the slab and its lists, `fair_queue` a queue in which addresses take turns.
//! - `deliver` applies intents: `subscribe` subscriptions and replays, `publish` messages, `query` and
//!   `channel_listing` queries, `refill` the slices of long responses.
//! - [`shared_log`] is a log that several nodes share, with the phase *receive*; `backplane` has the sockets.
//! - `nodes` lists the nodes that share a log, `tickets` issues and redeems tickets, and `disconnect` closes the
//!   connections of a user on all nodes.
//! - `unicast` and `gathered` gather the responses to one connection; `pressure` and `publish_pause` are back pressure
//!   on publishers.
//! - [`memory`] decides which steps against memory pressure are in force, [`relief`] carries them out.
//! - `admission` admits or rejects connections, `drain` closes all of them in a `shutdown` by a `drain_schedule`,
//!   `expire` checks deadlines with the `sweeper`, `client_tables` expires the tables of clients, `log_limit` bounds
//!   the log lines that peers cause, and `connection_log` writes those of connections.
//! - [`crate::net::listeners`] accept, [`crate::net::transport`] is a socket, [`crate::net::acceptor`] and
//!   [`crate::net::tls`] are TLS over one.
//! - `start` sets up everything that can fail, `reload` reads files again, `upgrade` replaces the program, and
//!   `signal_mask` keeps signals for the next one.
//! - `service_manager` notifies systemd, [`store`] is the history file, `process` reads memory and processor time of
//!   the process for `/metrics`.

mod admission;
mod backplane;
mod channel_listing;
mod client_tables;
pub mod clock_snapshot;
mod connection_log;
mod cost;
mod deliver;
mod disconnect;
mod drain;
mod drain_schedule;
pub mod engine;
mod expire;
mod fair_queue;
mod gathered;
mod log_limit;
mod log_target;
pub mod memory;
mod nodes;
mod pending_publish;
mod phase_timer;
mod pressure;
mod process;
mod publish;
mod publish_pause;
mod query;
mod read;
mod refill;
pub mod relief;
mod reload;
mod service_manager;
pub mod shared;
pub mod shared_log;
mod shutdown;
mod signal_mask;
pub mod slot;
pub mod slots;
mod start;
mod start_error;
#[cfg_attr(not(feature = "history-file"), path = "store_missing.rs")]
pub mod store;
mod subscribe;
mod sweeper;
mod tickets;
mod unicast;
mod upgrade;

use std::io;
use std::mem;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::debug;
use mio::{Events, Interest, Poll};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

use crate::close::Reason;
use crate::config::ListenAddress;
use crate::metrics::{MemoryStep, Metrics, TurnPhase};
use crate::net::acceptor::Acceptor;
use crate::net::inherited_socket::InheritedSocket;
use crate::net::listeners::{Accept, Listeners};
use crate::net::token::{id_of, token_of};
use crate::session::http::response::ResponseOptions;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;
use backplane::Sockets;
use clock_snapshot::{ClockSnapshot, ProcessTime};
use engine::Engine;
use memory::AllocatedBytes;
use phase_timer::PhaseTimer;
use service_manager::{ServiceManager, ServiceStatus};
use shutdown::ShutdownPhase;
use start::SIGNALS;
use store::Store;
use upgrade::ProgramUpgrade;

pub use reload::ReloadedFiles;
pub use shutdown::ServerExit;
pub use start::AccessConfig;
pub use start_error::StartError;

/// Maximum number of connections over the limit that receive an error response at a time; further ones wait in the
/// backlog.
pub const OVERLOAD_RESPONSES_MAX: usize = 16;

/// Descriptors that are not connections: the three standard ones, the poll, the first listener and its reserve
/// descriptor, the signal pipe's two, and some for name lookups and similar short uses.
pub const DESCRIPTORS_RESERVED: usize = 16 + OVERLOAD_RESPONSES_MAX;

/// The server: poll, listeners, engine and history file, and the loop over them.
pub struct Server<E: Acceptor> {
    poll: Poll,
    events: Events,
    signals: Signals,
    /// True if signals are pending.
    has_signals: bool,
    /// `None` while draining.
    listeners: Option<Listeners>,
    acceptor: E,
    engine: Engine<E::Transport>,
    /// The connections to the log that several nodes share.
    backplane: Option<Sockets>,
    /// Events of the log were left over in this turn.
    has_log_events: bool,
    /// `None` without a history file, and when it is complete.
    store: Option<Store>,
    connections_max: usize,
    clock: Clock,
    /// When the memory in use was last counted.
    counted_at: Option<LoopTime>,
    phase_timer: PhaseTimer,
    phase: ShutdownPhase,
    service_manager: Option<ServiceManager>,
    upgrade: ProgramUpgrade,
}

/// The only clock of the server, read once before each wait and once after it.
#[derive(Debug)]
struct Clock {
    started: Instant,
    woke: Instant,
    /// Identifies the boot of the machine.
    boot: u64,
}

impl Clock {
    fn start() -> Clock {
        let now = Instant::now();
        Clock { started: now, woke: now, boot: process::boot_id() }
    }

    fn now(&self) -> LoopTime {
        LoopTime::from_millis(self.millis())
    }

    fn millis(&self) -> u64 {
        self.woke.duration_since(self.started).as_millis() as u64
    }

    fn process_time(&self) -> ProcessTime {
        ProcessTime { now: self.now(), millis: self.millis() }
    }

    /// Reads the other clocks, for the next process that reads the history file.
    fn snapshot(&self) -> ClockSnapshot {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        ClockSnapshot {
            unix_ms: unix_now().as_millis() as u64,
            boot_ms: boot.tv_sec as u64 * 1_000 + boot.tv_nsec as u64 / 1_000_000,
            boot: self.boot,
        }
    }
}

/// The wall-clock time, and 1970 for a clock that is set to an earlier time.
fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl<E: Acceptor> Server<E> {
    /// The addresses that it listens on; none while draining.
    pub fn addresses(&self) -> Vec<ListenAddress> {
        self.listeners.iter().flat_map(Listeners::addresses).collect()
    }

    /// Takes the listening sockets for the next program, after [`ServerExit::Replaced`].
    pub fn take_sockets(&mut self) -> Vec<InheritedSocket> {
        self.upgrade.take_sockets()
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.engine.shared.metrics
    }

    /// Serves until a signal ends it. `read_files` reads the keys and the token of the metrics again, at each SIGHUP;
    /// `allocated_bytes` returns the bytes in use, which are compared with the memory budget.
    ///
    /// # Errors
    /// The poll failed; nothing can be served without it.
    pub fn run(
        &mut self,
        mut read_files: impl FnMut() -> ReloadedFiles,
        allocated_bytes: AllocatedBytes,
    ) -> io::Result<ServerExit> {
        // The time before the first turn does not count as a turn: a history may have been loaded.
        self.clock.woke = Instant::now();
        self.service_manager.iter_mut().for_each(ServiceManager::ready);
        loop {
            let now = self.wait()?;
            self.mark();
            self.handle_signals(&mut read_files, now);
            self.relieve(allocated_bytes, now);
            self.measure(TurnPhase::Mark);
            self.accept(now);
            self.measure(TurnPhase::Accept);
            self.receive(now);
            self.measure(TurnPhase::Receive);
            self.engine.read(now);
            self.measure(TurnPhase::Read);
            self.engine.deliver(now);
            self.measure(TurnPhase::Deliver);
            self.flush(now);
            self.measure(TurnPhase::Flush);
            self.expire(now);
            self.measure(TurnPhase::Expire);
            self.reap(now);
            self.measure(TurnPhase::Reap);
            if let Some(end) = self.end() {
                return Ok(end);
            }
        }
    }

    /// Waits for events until the next deadline, or not at all when work was left over.
    fn wait(&mut self) -> io::Result<LoopTime> {
        if cfg!(debug_assertions) {
            self.engine.check();
        }
        let before = Instant::now();
        let turn_micros = before.duration_since(self.clock.woke).as_micros() as u64;
        self.engine.shared.metrics.observe_turn(turn_micros);
        let timeout = self.timeout();
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            // A signal, which has an event. The events are those of the last turn.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        self.clock.woke = Instant::now();
        self.phase_timer.begin_turn(self.clock.woke);
        self.engine.shared.authenticator.unix_now = unix_now().as_secs();
        Ok(self.clock.now())
    }

    /// Ends a phase, in a turn whose phases are measured.
    fn measure(&mut self, phase: TurnPhase) {
        if let Some(duration) = self.phase_timer.end_phase(Instant::now) {
            self.engine.shared.metrics.observe_phase(phase, duration);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let now = self.clock.now();
        let has_work = self.engine.has_work()
            || self.has_log_events
            || self.listeners.as_ref().is_some_and(Listeners::has_work);
        if has_work {
            return Some(Duration::ZERO);
        }
        let pause = self.listeners.as_ref().and_then(Listeners::deadline);
        let drain = match self.phase {
            ShutdownPhase::Announced { until } | ShutdownPhase::Draining { until } => Some(until),
            ShutdownPhase::Serving | ShutdownPhase::Forced => None,
        };
        let store =
            self.store.as_ref().and_then(|store| store.next(&self.engine.hub, self.clock.process_time()));
        let backplane = self.backplane_deadline();
        let status = self.status();
        let manager = self.service_manager.as_ref().and_then(|manager| manager.next_deadline(status));
        let check = self.upgrade.deadline();
        let next = [pause, drain, store, backplane, manager, check, self.engine.next_expiry(now)]
            .into_iter()
            .flatten()
            .reduce(LoopTime::min)?;
        Some(Duration::from_millis(u64::from(next.millis_since(now))))
    }

    /// Marks the listeners, the signals and the slots that have an event. No handler runs here.
    fn mark(&mut self) {
        let Server { events, engine, listeners, backplane, has_signals, .. } = self;
        engine.shared.metrics.turn_events.observe(events.iter().count() as f64);
        for event in events.iter() {
            match event.token() {
                SIGNALS => *has_signals = true,
                token if listeners.as_mut().is_some_and(|listeners| listeners.mark(token)) => {}
                _ if backplane.as_mut().is_some_and(|sockets| sockets.mark(event)) => {}
                token => {
                    let id = id_of(token);
                    if event.is_read_closed() || event.is_error() {
                        engine.slots.mark_read_closed(id);
                        engine.slots.mark_ready(id);
                    } else if event.is_readable() {
                        engine.slots.mark_ready(id);
                    }
                    if event.is_writable() {
                        engine.slots.mark_writable(id);
                    }
                }
            }
        }
    }

    /// Handles pending signals: SIGHUP reloads files, SIGUSR2 replaces the program, SIGTERM and SIGINT begin the
    /// shutdown or end it at once.
    fn handle_signals(&mut self, read_files: &mut impl FnMut() -> ReloadedFiles, now: LoopTime) {
        if !mem::take(&mut self.has_signals) {
            return;
        }
        let signals: Vec<i32> = self.signals.pending().collect();
        for &signal in &signals {
            match signal {
                // The end of a check wakes the loop.
                SIGHUP | SIGCHLD => {}
                SIGUSR2 => self.begin_upgrade(now),
                _ => self.shut_down(now),
            }
        }
        if signals.contains(&SIGHUP) {
            self.reload(read_files(), unix_now());
        }
    }

    /// Counts the memory in use, and acts on it; once in each millisecond of the clock.
    fn relieve(&mut self, allocated_bytes: AllocatedBytes, now: LoopTime) {
        if self.counted_at != Some(now) {
            self.counted_at = Some(now);
            self.engine.relieve(allocated_bytes(), now);
        }
    }

    /// Accepts waiting connections, up to a budget. Ends early when accept is paused.
    fn accept(&mut self, now: LoopTime) {
        let Server { poll, listeners, acceptor, engine, connections_max, .. } = self;
        acceptor.begin_turn(engine.shared.authenticator.http_date());
        let Some(listeners) = listeners else { return };
        let lacks_memory = engine.shared.memory.is_in_force(MemoryStep::RejectConnections);
        for _ in 0..engine.shared.limits.accepts_per_turn {
            let is_full = engine.served() >= *connections_max || lacks_memory;
            if is_full && engine.rejected() >= OVERLOAD_RESPONSES_MAX {
                listeners.pause(now);
                break;
            }
            let (mut stream, peer) = match listeners.accept(now, || {
                acceptor.overload_response(|| overload_response(engine.shared.authenticator.http_date()))
            }) {
                Accept::Connection(stream, peer) => (stream, peer),
                Accept::Idle => break,
                Accept::Aborted(error) => {
                    engine.shared.metrics.accept_failed(&error);
                    debug!("accept: {error}");
                    continue;
                }
                Accept::Exhausted { error, is_first } => {
                    engine.accept_exhausted(&error, is_first, now);
                    break;
                }
            };
            let token = token_of(engine.slots.next_id());
            // Both directions, once: with edge-triggered events an interest that is not needed costs nothing.
            let interest = Interest::READABLE | Interest::WRITABLE;
            let transport = match poll.registry().register(&mut stream, token, interest) {
                Ok(()) => acceptor.accept(stream),
                Err(error) => Err(error),
            };
            let transport = match transport {
                Ok(transport) => transport,
                Err(error) => {
                    engine.not_served(peer, &error, now);
                    continue;
                }
            };
            if !is_full {
                debug!(target: log_target::CONNECTION, peer:%; "accept");
                engine.admit(transport, peer, now);
            } else {
                let reason = if lacks_memory { Reason::LowMemory } else { Reason::NoRoom };
                engine.reject(transport, peer, reason, now);
            }
        }
    }

    /// Handles expired deadlines, continues an upgrade, notifies the service manager, and sends changed channels to the
    /// thread that writes the history file.
    fn expire(&mut self, now: LoopTime) {
        self.engine.expire(now);
        self.expire_link(now);
        self.continue_upgrade(now);
        let status = self.status();
        self.service_manager.iter_mut().for_each(|manager| manager.expire(status, now));
        let clients = self.engine.next_client();
        let Server { engine: Engine { hub, shared, .. }, store, clock, .. } = self;
        if let Some(store) = store {
            store.flush_changes(hub, &mut shared.metrics, clients, clock.process_time(), || clock.snapshot());
        }
    }

    fn status(&self) -> ServiceStatus {
        let Engine { slots, hub, .. } = &self.engine;
        ServiceStatus { connections: slots.len(), subscribers: hub.subscriptions(), channels: hub.channels() }
    }

    fn reap(&mut self, now: LoopTime) {
        if self.engine.reap(now) > 0
            && let Some(listeners) = &mut self.listeners
        {
            listeners.resume();
        }
    }
}

/// The response to a client when no descriptor is left.
fn overload_response(date: Rc<str>) -> Vec<u8> {
    Rejection::ConnectionTableFull.http().respond(&ResponseOptions::last(date))
}
