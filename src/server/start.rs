//! The start of a server: everything that can fail, before the first turn.

use std::hash::{BuildHasher, RandomState};
use std::io;

use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook_mio::v1_0::Signals;

use super::clock_snapshot::{ClockSnapshot, new_epoch};
use super::engine::Engine;
use super::phase_timer::PhaseTimer;
use super::service_manager::ServiceManager;
use super::shared_log::phases;
use super::shutdown::ShutdownPhase;
use super::signal_mask;
use super::start_error::StartError;
use super::store::{self, Loaded, Opened, Store};
use super::upgrade::ProgramUpgrade;
use super::{Clock, Server};
use crate::access::authenticator::Authenticator;
use crate::access::connection_limiter::Proxies;
use crate::access::grant::Patterns;
use crate::access::metrics_token::MetricsToken;
use crate::access::origin::OriginPattern;
use crate::config::{Asset, Config, Limits};
use crate::ids::{ClientIds, RunId};
use crate::net::acceptor::Acceptor;
use crate::net::inherited_socket::InheritedSocket;
use crate::net::listeners::ReservedAddresses;
use crate::net::transport::Transport;
use crate::session::HttpConfig;

/// The token of signals.
pub(super) const SIGNALS: Token = Token(usize::MAX - 1);

/// The token of the first listener. The tokens of the others are the next lower ones, above those of all connections.
const LISTENERS: Token = Token(usize::MAX - 16);

/// Events taken in one wait. 1,024 are 12 KiB; more would only make the turns longer.
const EVENTS_PER_TURN: usize = 1024;

/// Allowed origins, trusted proxies, authentication, and channels that are excluded from compression.
#[derive(Debug)]
pub struct AccessConfig {
    /// Origins whose pages may connect, in addition to those of the server's own host.
    pub origins: Vec<OriginPattern>,
    /// Trusted proxies.
    pub proxies: Proxies,
    /// Keys that verify tokens, and the rights of anonymous clients.
    pub authenticator: Authenticator,
    /// Channels whose messages are not compressed: the length of a compressed message depends on the text before it.
    pub uncompressed: Patterns,
    /// The token that `/metrics` requires; `None`: none.
    pub metrics_token: Option<MetricsToken>,
}

impl<E: Acceptor> Server<E> {
    /// Binds and sets up everything that can fail.
    ///
    /// While the history file is read, connections are refused. Those to the `sockets` that the process inherited wait
    /// instead.
    ///
    /// # Errors
    /// The address is in use, the system provides no poll or signals, or the history file cannot be used.
    pub fn bind(
        config: Config,
        access_config: AccessConfig,
        sockets: Vec<InheritedSocket>,
        connections_max: usize,
        acceptor: E,
    ) -> Result<Server<E>, StartError> {
        let poll = Poll::new()?;
        // Before the listeners: a client that is connected may be the reason for a SIGHUP, which kills by default.
        let signals = register_signals(&poll)?;
        // The addresses are reserved first, and listened on once the history is loaded. Until then connections are
        // refused, so a load balancer sends no clients yet, and a client that connects is served at once. Only a server
        // that listens marks the file as being in use: of two servers that start on one address, the second fails here.
        let addresses = ReservedAddresses::reserve(&config.listen, sockets, &config.tcp)?;
        let clock = Clock::start();
        let snapshot = clock.snapshot();
        let mut engine = new_engine(config.limits, snapshot);
        let load = || match &config.history_file {
            None => Ok(None),
            Some(file) => store::load(file, &engine.shared.limits, clock.process_time(), snapshot)
                .map(Some)
                .map_err(StartError::HistoryFile),
        };
        let (loaded, mut listeners) = addresses.listen_after(&config.tcp, load)?;
        let store = loaded.map(|loaded| continue_log(&mut engine, loaded)).transpose()?;
        set_access(&mut engine, config.assets, access_config);
        engine.shared.metrics.connections_max = connections_max;
        engine.shared.metrics.certificate_expires_at = acceptor.certificate_expires_at();
        let backplane = match &config.backplane {
            Some(config) => Some(phases::join_log(&mut engine, &poll, config, clock.now())?),
            None => None,
        };
        listeners.register(poll.registry(), LISTENERS)?;
        Ok(Server {
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            signals,
            has_signals: false,
            listeners: Some(listeners),
            acceptor,
            engine,
            backplane,
            has_log_events: false,
            store,
            connections_max,
            service_manager: ServiceManager::new(config.service_manager.as_ref(), clock.now()),
            clock,
            counted_at: None,
            phase_timer: PhaseTimer::new(),
            phase: ShutdownPhase::Serving,
            upgrade: ProgramUpgrade::new(config.command),
        })
    }
}

fn register_signals(poll: &Poll) -> io::Result<Signals> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2, SIGCHLD])?;
    poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
    signal_mask::unblock();
    Ok(signals)
}

/// An engine whose log is a new one, unless a history file continues another.
fn new_engine<T: Transport>(limits: Limits, snapshot: ClockSnapshot) -> Engine<T> {
    let mut engine = Engine::new(limits, new_epoch());
    engine.run = RunId(RandomState::new().hash_one(snapshot.unix_ms) as u32);
    engine.clients = ClientIds::from_salt(engine.run.0);
    engine
}

/// Sets the rules of access, the static files and the channels without compression.
fn set_access<T: Transport>(
    engine: &mut Engine<T>,
    assets: Vec<&'static Asset>,
    access_config: AccessConfig,
) {
    let AccessConfig { origins, proxies, authenticator, uncompressed, metrics_token } = access_config;
    engine.shared.http_config = HttpConfig { assets, origins, metrics_token };
    engine.shared.authenticator = authenticator;
    engine.hub.exclude_from_compression(uncompressed);
    engine.shared.limiter.trust(proxies);
}

/// Continues the log of a history file, and returns its store.
fn continue_log<T: Transport>(engine: &mut Engine<T>, loaded: Loaded) -> Result<Store, StartError> {
    let Opened { store, hub, clients } = loaded.mark_in_use().map_err(StartError::HistoryFile)?;
    engine.hub = hub;
    engine.clients = ClientIds::from_salt(clients.unwrap_or(engine.run.0));
    Ok(store)
}
