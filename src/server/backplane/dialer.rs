//! Opens the two connections to the Redis server that has the shared log: name lookups, the query to a Sentinel,
//! connects, and TLS handshakes, each with a deadline. None of them blocks the loop.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use mio::{Registry, Token, Waker};

use super::connection::LogConnection;
use super::lookup::Lookup;
use super::sentinel::{SentinelCursor, SentinelQuery, Sentinels};
use super::stream::LogStream;
use crate::client::tls::TlsConnector;
use crate::client::trust::Trust;
use crate::config::{BackplaneAddress, BackplaneConfig};
use crate::time::LoopTime;

/// The tokens of the connections, in the order of `Side::ALL`, and of the waker of lookups.
pub(super) const TOKENS: [Token; 2] = [Token(usize::MAX - 2), Token(usize::MAX - 3)];
pub(super) const WAKER: Token = Token(usize::MAX - 4);

/// Maximum time of a lookup. A resolver tries a second name server after 5 s.
const LOOKUP_MS: u32 = 5_000;

/// Maximum time of a connect: a lost SYN is sent again after 1 s and after 3 s.
const CONNECT_MS: u32 = 3_000;

/// Maximum time of the TLS handshakes: two round trips, and a few milliseconds of Redis' single thread for each.
const HANDSHAKE_MS: u32 = 3_000;

/// Maximum time for a Sentinel to accept a connection and reply; the next one is queried after that. The documentation
/// of Sentinel recommends a few hundred milliseconds.
const SENTINEL_MS: u32 = 1_000;

/// An attempt to open both connections.
pub(super) enum Dial {
    LookingUp {
        role: HostRole,
        host: String,
        port: u16,
        until: LoopTime,
    },
    /// A Sentinel is queried for the address of the primary.
    QueryingSentinel {
        sentinel: SentinelCursor,
        query: Box<SentinelQuery>,
        until: LoopTime,
    },
    Connecting {
        target: DialTarget,
        connections: [LogConnection; 2],
        until: LoopTime,
    },
    Handshaking {
        target: DialTarget,
        connections: [LogConnection; 2],
        until: LoopTime,
    },
}

/// What a host is queried for, once its name is looked up.
pub(super) enum HostRole {
    /// The log.
    Redis,
    /// The address of the primary.
    Sentinel(SentinelCursor),
}

/// The server that is connected to.
pub(super) struct DialTarget {
    /// Host and port as they were given, for errors: TLS compares the host with the name in the certificate.
    name: String,
    /// The resolved address.
    address: String,
    /// `None`: the connections are not encrypted.
    tls: Option<TlsConnector>,
}

/// The result of continuing an attempt.
pub(super) enum DialProgress {
    /// The attempt continues at the next event.
    Waits(Dial),
    /// Both connections are open.
    Open { connections: [LogConnection; 2], address: String },
}

impl Dial {
    /// When the attempt, or the query to a Sentinel, fails.
    pub(super) fn deadline(&self) -> LoopTime {
        match self {
            Dial::LookingUp { until, .. }
            | Dial::QueryingSentinel { until, .. }
            | Dial::Connecting { until, .. }
            | Dial::Handshaking { until, .. } => *until,
        }
    }

    /// The error when the deadline has expired.
    fn timeout(&self) -> io::Error {
        let why = match self {
            Dial::LookingUp { host, .. } => format!("{host}: the lookup of the host name takes too long"),
            Dial::QueryingSentinel { .. } => format!("no reply within {SENTINEL_MS} ms"),
            Dial::Connecting { target, .. } => format!("{}: connect timeout", target.name),
            // A Redis port without TLS parses a TLS handshake as the beginning of a command, and waits for the rest.
            Dial::Handshaking { target, .. } => {
                format!("{}: TLS handshake timeout; the port may be one without TLS", target.name)
            }
        };
        io::Error::new(ErrorKind::TimedOut, why)
    }

    /// The Sentinel that is looked up or queried, if any.
    fn sentinel(&self) -> Option<&SentinelCursor> {
        match self {
            Dial::LookingUp { role: HostRole::Sentinel(sentinel), .. }
            | Dial::QueryingSentinel { sentinel, .. } => Some(sentinel),
            _ => None,
        }
    }

    /// The connection with this number.
    pub(super) fn connection_mut(&mut self, at: usize) -> Option<&mut LogConnection> {
        match self {
            Dial::LookingUp { .. } => None,
            Dial::QueryingSentinel { query, .. } => (at == 0).then_some(&mut query.connection),
            Dial::Connecting { connections, .. } | Dial::Handshaking { connections, .. } => {
                connections.get_mut(at)
            }
        }
    }
}

/// Opens connections to one address, which is looked up for each attempt.
pub(super) struct Dialer {
    registry: Registry,
    waker: Arc<Waker>,
    address: BackplaneAddress,
    tls: Option<TlsConnector>,
    user_timeout_ms: u32,
    /// Lookups in progress. The next attempt waits for a lookup that hangs, so there is at most one thread for each
    /// name.
    lookups: Vec<Lookup>,
    /// Number of attempts to connect. It selects the next address of a host that has several, and the Sentinel that is
    /// queried first: one that is partitioned from the others names an old primary.
    attempts: usize,
}

impl Dialer {
    pub(super) fn new(config: &BackplaneConfig, registry: &Registry) -> io::Result<Dialer> {
        Ok(Dialer {
            registry: registry.try_clone()?,
            waker: Arc::new(Waker::new(registry, WAKER)?),
            address: config.address.clone(),
            tls: tls_connector(config).map_err(io::Error::other)?,
            user_timeout_ms: config.heartbeat_timeout_ms,
            lookups: Vec::new(),
            attempts: 0,
        })
    }

    /// Begins an attempt at the address, or at another node of a Redis Cluster.
    pub(super) fn begin(&mut self, redirect: Option<&str>, now: LoopTime) -> io::Result<Dial> {
        self.attempts += 1;
        self.lookups.retain(|lookup| lookup.result().is_none());
        if let Some((host, port)) = redirect.and_then(host_and_port) {
            return self.look_up(HostRole::Redis, host, port, now);
        }
        match self.address.clone() {
            BackplaneAddress::Tcp { host, port, .. } => self.look_up(HostRole::Redis, &host, port, now),
            BackplaneAddress::Sentinel { sentinels, primary } => {
                let sentinels = Arc::new(Sentinels { addresses: sentinels, primary });
                self.query_sentinel(SentinelCursor::new(sentinels, self.attempts), now)
            }
            BackplaneAddress::Unix(path) => {
                let address = format!("unix:{}", path.display());
                let target = DialTarget { name: address.clone(), address, tls: None };
                self.connect(target, [LogStream::unix(&path), LogStream::unix(&path)], now)
            }
        }
    }

    /// Continues an attempt as far as the events allow.
    ///
    /// # Errors
    /// The attempt has failed.
    pub(super) fn advance(&mut self, mut dial: Dial, now: LoopTime) -> io::Result<DialProgress> {
        loop {
            let sentinel = dial.sentinel().cloned();
            dial = match (self.step(dial, now), sentinel) {
                (Ok(ControlFlow::Continue(dial)), _) => dial,
                (Ok(ControlFlow::Break(progress)), _) => return Ok(progress),
                (Err(error), Some(sentinel)) => self.query_next_sentinel(&sentinel, &error, now)?,
                (Err(error), None) => return Err(error),
            };
        }
    }

    /// Continues an attempt whose deadline has expired: the next Sentinel is queried.
    ///
    /// # Errors
    /// The attempt has failed.
    pub(super) fn expire(&mut self, dial: &Dial, now: LoopTime) -> io::Result<Dial> {
        match dial.sentinel() {
            Some(sentinel) => self.query_next_sentinel(sentinel, &dial.timeout(), now),
            None => Err(dial.timeout()),
        }
    }

    fn step(&mut self, dial: Dial, now: LoopTime) -> io::Result<ControlFlow<DialProgress, Dial>> {
        Ok(match dial {
            Dial::LookingUp { role, host, port, until } => match self.take_lookup(&host, port) {
                None => ControlFlow::Break(DialProgress::Waits(Dial::LookingUp { role, host, port, until })),
                Some(addresses) => {
                    let addresses = addresses
                        .map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))?;
                    let Some(address) = addresses.get(self.attempts % addresses.len().max(1)) else {
                        return Err(io::Error::new(
                            ErrorKind::NotFound,
                            format!("{host}: the host name has no address"),
                        ));
                    };
                    ControlFlow::Continue(self.connect_to_resolved(role, &host, *address, now)?)
                }
            },
            Dial::QueryingSentinel { sentinel, mut query, until } => match query.advance()? {
                None => {
                    let dial = Dial::QueryingSentinel { sentinel, query, until };
                    ControlFlow::Break(DialProgress::Waits(dial))
                }
                Some((host, port)) => {
                    ControlFlow::Continue(self.look_up(HostRole::Redis, &host, port, now)?)
                }
            },
            Dial::Connecting { target, mut connections, until } => {
                for connection in &mut connections {
                    if !connection.is_established().map_err(|error| target.error(&error))? {
                        return Ok(ControlFlow::Break(DialProgress::Waits(Dial::Connecting {
                            target,
                            connections,
                            until,
                        })));
                    }
                }
                match &target.tls {
                    None => ControlFlow::Break(DialProgress::Open { connections, address: target.address }),
                    Some(tls) => {
                        let [appender, reader] = connections;
                        let connections = [appender.encrypt(tls)?, reader.encrypt(tls)?];
                        ControlFlow::Continue(Dial::Handshaking {
                            target,
                            connections,
                            until: now.after(HANDSHAKE_MS),
                        })
                    }
                }
            }
            Dial::Handshaking { target, mut connections, until } => {
                let mut is_complete = true;
                for connection in &mut connections {
                    is_complete &= connection.stream.handshake().map_err(|error| target.error(&error))?;
                }
                ControlFlow::Break(match is_complete {
                    true => DialProgress::Open { connections, address: target.address },
                    false => DialProgress::Waits(Dial::Handshaking { target, connections, until }),
                })
            }
        })
    }

    // Lookups.

    fn look_up(&mut self, role: HostRole, host: &str, port: u16, now: LoopTime) -> io::Result<Dial> {
        if let Ok(ip) = host.parse() {
            return self.connect_to_resolved(role, host, SocketAddr::new(ip, port), now);
        }
        if !self.lookups.iter().any(|lookup| lookup.is_of(host, port)) {
            self.lookups.push(Lookup::begin(host, port, self.waker.clone())?);
        }
        Ok(Dial::LookingUp { role, host: host.to_owned(), port, until: now.after(LOOKUP_MS) })
    }

    /// The result of a lookup, once.
    fn take_lookup(&mut self, host: &str, port: u16) -> Option<io::Result<Vec<SocketAddr>>> {
        let at = self.lookups.iter().position(|lookup| lookup.is_of(host, port))?;
        let result = self.lookups[at].result()?;
        self.lookups.swap_remove(at);
        Some(result)
    }

    /// Connects to an address that was looked up.
    fn connect_to_resolved(
        &mut self,
        role: HostRole,
        host: &str,
        address: SocketAddr,
        now: LoopTime,
    ) -> io::Result<Dial> {
        match role {
            HostRole::Redis => self.connect_to(host, address, now),
            HostRole::Sentinel(sentinel) => {
                let stream = LogStream::tcp(address, self.user_timeout_ms);
                let connection = LogConnection::register(stream, &self.registry, TOKENS[0])?;
                let query = Box::new(SentinelQuery::new(connection, sentinel.primary()));
                Ok(Dial::QueryingSentinel { sentinel, query, until: now.after(SENTINEL_MS) })
            }
        }
    }

    // Sentinels.

    fn query_sentinel(&mut self, sentinel: SentinelCursor, now: LoopTime) -> io::Result<Dial> {
        let (host, port) = sentinel.address();
        self.look_up(HostRole::Sentinel(sentinel.clone()), host, port, now)
            .or_else(|error| self.query_next_sentinel(&sentinel, &error, now))
    }

    /// Queries the next Sentinel after this one has failed.
    ///
    /// # Errors
    /// All Sentinels have failed.
    fn query_next_sentinel(
        &mut self,
        failed: &SentinelCursor,
        error: &io::Error,
        now: LoopTime,
    ) -> io::Result<Dial> {
        match failed.next() {
            Some(next) => self.query_sentinel(next, now),
            None => {
                let (host, port) = failed.address();
                Err(io::Error::new(error.kind(), format!("Sentinel {host}:{port}: {error}")))
            }
        }
    }

    // Connects.

    fn connect_to(&mut self, host: &str, address: SocketAddr, now: LoopTime) -> io::Result<Dial> {
        let tls = self.tls.as_ref().map(|tls| tls.for_host(host)).transpose().map_err(io::Error::other)?;
        let timeout_ms = self.user_timeout_ms;
        let streams = [LogStream::tcp(address, timeout_ms), LogStream::tcp(address, timeout_ms)];
        // An IPv6 address is written in brackets.
        let name =
            if host.contains(':') { address.to_string() } else { format!("{host}:{}", address.port()) };
        self.connect(DialTarget { name, address: address.to_string(), tls }, streams, now)
    }

    fn connect(
        &mut self,
        target: DialTarget,
        streams: [io::Result<LogStream>; 2],
        now: LoopTime,
    ) -> io::Result<Dial> {
        let [appender, reader] = streams.map(|stream| stream.map_err(|error| target.error(&error)));
        let connections = [
            LogConnection::register(appender, &self.registry, TOKENS[0])?,
            LogConnection::register(reader, &self.registry, TOKENS[1])?,
        ];
        Ok(Dial::Connecting { target, connections, until: now.after(CONNECT_MS) })
    }
}

impl DialTarget {
    /// Adds the name of the server to an error.
    fn error(&self, error: &io::Error) -> io::Error {
        let why = match error.kind() {
            ErrorKind::UnexpectedEof => "the server has closed the connection".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("{}: {why}", self.name))
    }
}

/// The TLS configuration of `rediss://`.
fn tls_connector(config: &BackplaneConfig) -> Result<Option<TlsConnector>, String> {
    let BackplaneAddress::Tcp { host, tls: true, .. } = &config.address else { return Ok(None) };
    let trust = config.tls_ca.clone().map_or(Trust::Public, Trust::Only);
    TlsConnector::with_protocols(host, &trust, Vec::new(), "--backplane-tls-ca").map(Some)
}

/// The parts of `host:port`.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}
