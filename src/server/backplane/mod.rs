//! The two connections to the Redis server that has the shared log: lookups, connects, reads and writes.
//!
//! They are in the loop like all other sockets: an event only marks, *receive* reads, *flush* writes. What the bytes mean
//! is the [`Link`]'s. Both connections live and die together.

mod lookup;
mod stream;

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::{Interest, Registry, Token, Waker};

use crate::backplane::link::{Link, LinkAction, Side};
use crate::config::{BackplaneAddress, BackplaneConfig};
use crate::time::LoopTime;
use lookup::Lookup;
use stream::LogStream;

/// The tokens of the connections, in the order of [`Side::ALL`], and of the waker of lookups.
const TOKENS: [Token; 2] = [Token(usize::MAX - 2), Token(usize::MAX - 3)];
const WAKER: Token = Token(usize::MAX - 4);

/// Maximum time of a lookup. A resolver tries a second name server after 5 s.
const LOOKUP_MS: u32 = 5_000;

/// Maximum time of a connect: a lost SYN is sent again after 1 s and after 3 s.
const CONNECT_MS: u32 = 3_000;

/// The connections to the shared log.
pub(super) struct Sockets {
    registry: Registry,
    waker: Arc<Waker>,
    address: BackplaneAddress,
    user_timeout_ms: u32,
    /// A lookup that is in progress. One that hangs is waited for by the next attempt: there is one thread at most.
    lookup: Option<Lookup>,
    /// Attempts to connect: a host with several addresses is tried at each.
    attempts: usize,
    state: SocketsState,
}

enum SocketsState {
    Closed,
    LookingUp { until: LoopTime },
    Connecting { connections: [LogConnection; 2], address: String, until: LoopTime },
    Open([LogConnection; 2]),
}

struct LogConnection {
    stream: LogStream,
    /// It may have bytes: an event reported them, and no read has found the socket empty since.
    is_readable: bool,
    is_writable: bool,
}

impl Sockets {
    pub(super) fn new(config: &BackplaneConfig, registry: &Registry) -> io::Result<Sockets> {
        Ok(Sockets {
            registry: registry.try_clone()?,
            waker: Arc::new(Waker::new(registry, WAKER)?),
            address: config.address.clone(),
            user_timeout_ms: config.heartbeat_timeout_ms,
            lookup: None,
            attempts: 0,
            state: SocketsState::Closed,
        })
    }

    /// Records an event. Returns false if the token is of another socket.
    pub(super) fn mark(&mut self, event: &mio::event::Event) -> bool {
        let Some(at) = TOKENS.iter().position(|&token| token == event.token()) else {
            return event.token() == WAKER;
        };
        if let SocketsState::Connecting { connections, .. } | SocketsState::Open(connections) =
            &mut self.state
        {
            let LogConnection { is_readable, is_writable, .. } = &mut connections[at];
            *is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
            *is_writable |= event.is_writable() || event.is_error();
        }
        true
    }

    /// Connects if the link requests it, and reads each connection once. Returns true if the link may have new events.
    ///
    /// **Drain or requeue**: a connection that was not read until its socket was empty is read by the next call.
    pub(super) fn receive<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        self.act(link, now);
        match &mut self.state {
            SocketsState::Closed => false,
            SocketsState::LookingUp { .. } => self.end_lookup(link, now),
            SocketsState::Connecting { .. } => self.end_connect(link, now),
            SocketsState::Open(connections) => {
                let mut has_events = false;
                for (side, connection) in Side::ALL.into_iter().zip(connections) {
                    if !connection.is_readable || !link.wants_input(side) {
                        continue;
                    }
                    match connection.stream.read(link.room(side)) {
                        Ok(0) => {
                            link.failed("the server has closed the connection".to_owned(), now);
                            return true;
                        }
                        Ok(count) => link.filled(side, count),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            connection.is_readable = false;
                            continue;
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => {
                            link.failed(error.to_string(), now);
                            return true;
                        }
                    }
                    has_events = true;
                    // The link has one reply or entry to apply before the other connection is read.
                    break;
                }
                has_events
            }
        }
    }

    /// Writes what the link has to send. Returns true if the link may have new events.
    pub(super) fn flush<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let SocketsState::Open(connections) = &mut self.state else { return false };
        for (side, connection) in Side::ALL.into_iter().zip(connections) {
            loop {
                let unsent = link.unsent(side, now);
                if unsent.is_empty() || !connection.is_writable {
                    break;
                }
                match connection.stream.write(unsent) {
                    Ok(count) => link.sent(side, count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => connection.is_writable = false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        link.failed(error.to_string(), now);
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Expires the deadlines of the link, of lookups and of connects. Returns true if the link may have new events.
    pub(super) fn expire<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let is_due = self.next_deadline(link).is_some_and(|deadline| deadline.is_due(now));
        if !is_due {
            return false;
        }
        match self.state {
            SocketsState::LookingUp { until } if until.is_due(now) => {
                link.failed("the lookup of the host name takes too long".to_owned(), now);
            }
            SocketsState::Connecting { until, .. } if until.is_due(now) => {
                link.failed("connect timeout".to_owned(), now);
            }
            _ => {}
        }
        link.expire(now);
        self.act(link, now);
        true
    }

    /// When [`Sockets::expire`] is to be called.
    pub(super) fn next_deadline<P>(&self, link: &Link<P>) -> Option<LoopTime> {
        let own = match self.state {
            SocketsState::LookingUp { until } | SocketsState::Connecting { until, .. } => Some(until),
            SocketsState::Closed | SocketsState::Open(_) => None,
        };
        own.into_iter().chain(link.next_deadline()).reduce(LoopTime::min)
    }

    /// Does what the link requests.
    fn act<P>(&mut self, link: &mut Link<P>, now: LoopTime) {
        while let Some(action) = link.take_action() {
            self.close();
            let LinkAction::Connect { redirect } = action else { continue };
            self.attempts += 1;
            let result = match (redirect.as_deref().and_then(host_and_port), &self.address) {
                (Some((host, port)), _) => self.look_up(host, port, now),
                (None, BackplaneAddress::Tcp { host, port, .. }) => {
                    let (host, port) = (host.clone(), *port);
                    self.look_up(&host, port, now)
                }
                (None, BackplaneAddress::Unix(path)) => {
                    let name = format!("unix:{}", path.display());
                    let streams = [LogStream::unix(path), LogStream::unix(path)];
                    self.connect(streams, name, now)
                }
            };
            if let Err(error) = result {
                link.failed(error.to_string(), now);
            }
        }
    }

    fn close(&mut self) {
        let state = std::mem::replace(&mut self.state, SocketsState::Closed);
        if let SocketsState::Connecting { connections, .. } | SocketsState::Open(connections) = state {
            for mut connection in connections {
                // The descriptor is closed next, which deregisters it in any case.
                let _ = self.registry.deregister(&mut connection.stream);
            }
        }
    }

    fn look_up(&mut self, host: &str, port: u16, now: LoopTime) -> io::Result<()> {
        if let Ok(ip) = host.parse() {
            return self.connect_to(SocketAddr::new(ip, port), now);
        }
        let is_same = self.lookup.as_ref().is_some_and(|lookup| lookup.is_of(host, port));
        if !is_same {
            self.lookup = Some(Lookup::begin(host, port, self.waker.clone())?);
        }
        self.state = SocketsState::LookingUp { until: now.after(LOOKUP_MS) };
        Ok(())
    }

    fn end_lookup<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let Some(result) = self.lookup.as_ref().and_then(Lookup::result) else { return false };
        self.lookup = None;
        let connected = result.and_then(|addresses| match addresses.len() {
            0 => Err(io::Error::new(ErrorKind::NotFound, "the host name has no address")),
            count => self.connect_to(addresses[self.attempts % count], now),
        });
        if let Err(error) = connected {
            link.failed(error.to_string(), now);
        }
        true
    }

    fn connect_to(&mut self, address: SocketAddr, now: LoopTime) -> io::Result<()> {
        let timeout_ms = self.user_timeout_ms;
        let streams = [LogStream::tcp(address, timeout_ms), LogStream::tcp(address, timeout_ms)];
        self.connect(streams, address.to_string(), now)
    }

    fn connect(
        &mut self,
        streams: [io::Result<LogStream>; 2],
        address: String,
        now: LoopTime,
    ) -> io::Result<()> {
        let [appender, reader] = streams;
        let mut connections = [appender?, reader?].map(|stream| LogConnection {
            stream,
            is_readable: false,
            is_writable: false,
        });
        for (connection, token) in connections.iter_mut().zip(TOKENS) {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.registry.register(&mut connection.stream, token, interest)?;
        }
        self.state = SocketsState::Connecting { connections, address, until: now.after(CONNECT_MS) };
        Ok(())
    }

    fn end_connect<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let SocketsState::Connecting { connections, .. } = &mut self.state else { return false };
        for connection in &mut *connections {
            if !connection.is_writable {
                return false;
            }
            match connection.stream.is_connected() {
                Ok(true) => {}
                // An event without a result; another one follows.
                Ok(false) => {
                    connection.is_writable = false;
                    return false;
                }
                Err(error) => {
                    link.failed(error.to_string(), now);
                    return true;
                }
            }
        }
        if let SocketsState::Connecting { connections, address, .. } =
            std::mem::replace(&mut self.state, SocketsState::Closed)
        {
            link.connected(&address, now);
            self.state = SocketsState::Open(connections);
        }
        true
    }
}

/// The parts of `host:port`.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}
