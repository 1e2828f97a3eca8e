//! Opens the two connections to the Redis server that has the shared log: name lookups, the query to a Sentinel,
//! connects, and TLS handshakes, each with a deadline. None of them blocks the loop.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::{Registry, Token, Waker};

use super::connection::LogConnection;
use super::lookup::Lookup;
use super::sentinel::SentinelQuery;
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
        of: DialPeer,
        host: String,
        port: u16,
        until: LoopTime,
    },
    /// A Sentinel is queried for the address of the primary.
    QueryingSentinel {
        tried: usize,
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

/// The server whose name is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialPeer {
    Redis,
    /// A Sentinel, after `tried` others in this attempt.
    Sentinel {
        tried: usize,
    },
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

/// The result of one step of an attempt.
enum DialStep {
    Next(Dial),
    Stop(DialProgress),
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

    /// How many Sentinels were tried before the one that is queried; `None`: none is queried.
    fn sentinel(&self) -> Option<usize> {
        match self {
            Dial::LookingUp { of: DialPeer::Sentinel { tried }, .. }
            | Dial::QueryingSentinel { tried, .. } => Some(*tried),
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
        match (redirect.and_then(host_and_port), self.address.clone()) {
            (Some((host, port)), _) => self.look_up(DialPeer::Redis, host, port, now),
            (None, BackplaneAddress::Tcp { host, port, .. }) => {
                self.look_up(DialPeer::Redis, &host, port, now)
            }
            (None, BackplaneAddress::Sentinel { .. }) => self.query_sentinel(0, now),
            (None, BackplaneAddress::Unix(path)) => {
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
            let sentinel = dial.sentinel();
            dial = match (self.step(dial, now), sentinel) {
                (Ok(DialStep::Next(dial)), _) => dial,
                (Ok(DialStep::Stop(progress)), _) => return Ok(progress),
                (Err(error), Some(tried)) => self.query_next_sentinel(tried, &error, now)?,
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
            Some(tried) => self.query_next_sentinel(tried, &dial.timeout(), now),
            None => Err(dial.timeout()),
        }
    }

    fn step(&mut self, dial: Dial, now: LoopTime) -> io::Result<DialStep> {
        Ok(match dial {
            Dial::LookingUp { of, host, port, until } => match self.take_lookup(&host, port) {
                None => DialStep::Stop(DialProgress::Waits(Dial::LookingUp { of, host, port, until })),
                Some(addresses) => {
                    let addresses = addresses
                        .map_err(|error| io::Error::new(error.kind(), format!("{host}: {error}")))?;
                    let Some(address) = addresses.get(self.attempts % addresses.len().max(1)) else {
                        return Err(io::Error::new(
                            ErrorKind::NotFound,
                            format!("{host}: the host name has no address"),
                        ));
                    };
                    DialStep::Next(self.connect_to_resolved(of, &host, *address, now)?)
                }
            },
            Dial::QueryingSentinel { tried, mut query, until } => match query.advance()? {
                None => DialStep::Stop(DialProgress::Waits(Dial::QueryingSentinel { tried, query, until })),
                Some((host, port)) => DialStep::Next(self.look_up(DialPeer::Redis, &host, port, now)?),
            },
            Dial::Connecting { target, mut connections, until } => {
                for connection in &mut connections {
                    if !connection.is_established().map_err(|error| target.error(&error))? {
                        return Ok(DialStep::Stop(DialProgress::Waits(Dial::Connecting {
                            target,
                            connections,
                            until,
                        })));
                    }
                }
                match &target.tls {
                    None => DialStep::Stop(DialProgress::Open { connections, address: target.address }),
                    Some(tls) => {
                        let [appender, reader] = connections;
                        let connections = [appender.encrypt(tls)?, reader.encrypt(tls)?];
                        DialStep::Next(Dial::Handshaking {
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
                DialStep::Stop(match is_complete {
                    true => DialProgress::Open { connections, address: target.address },
                    false => DialProgress::Waits(Dial::Handshaking { target, connections, until }),
                })
            }
        })
    }

    // Lookups.

    fn look_up(&mut self, of: DialPeer, host: &str, port: u16, now: LoopTime) -> io::Result<Dial> {
        if let Ok(ip) = host.parse() {
            return self.connect_to_resolved(of, host, SocketAddr::new(ip, port), now);
        }
        if !self.lookups.iter().any(|lookup| lookup.is_of(host, port)) {
            self.lookups.push(Lookup::begin(host, port, self.waker.clone())?);
        }
        Ok(Dial::LookingUp { of, host: host.to_owned(), port, until: now.after(LOOKUP_MS) })
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
        of: DialPeer,
        host: &str,
        address: SocketAddr,
        now: LoopTime,
    ) -> io::Result<Dial> {
        match (of, &self.address) {
            (DialPeer::Sentinel { tried }, BackplaneAddress::Sentinel { primary, .. }) => {
                let stream = LogStream::tcp(address, self.user_timeout_ms);
                let connection = LogConnection::register(stream, &self.registry, TOKENS[0])?;
                let query = Box::new(SentinelQuery::new(connection, primary));
                Ok(Dial::QueryingSentinel { tried, query, until: now.after(SENTINEL_MS) })
            }
            _ => self.connect_to(host, address, now),
        }
    }

    // Sentinels.

    /// Queries a Sentinel, after `tried` others.
    fn query_sentinel(&mut self, tried: usize, now: LoopTime) -> io::Result<Dial> {
        let (host, port) = self.sentinel(tried);
        self.look_up(DialPeer::Sentinel { tried }, &host, port, now)
            .or_else(|error| self.query_next_sentinel(tried, &error, now))
    }

    /// Queries the next Sentinel.
    ///
    /// # Errors
    /// All Sentinels have failed.
    fn query_next_sentinel(&mut self, tried: usize, error: &io::Error, now: LoopTime) -> io::Result<Dial> {
        let BackplaneAddress::Sentinel { sentinels, .. } = &self.address else {
            return Err(io::Error::new(error.kind(), error.to_string()));
        };
        if tried + 1 < sentinels.len() {
            return self.query_sentinel(tried + 1, now);
        }
        let (host, port) = self.sentinel(tried);
        Err(io::Error::new(error.kind(), format!("Sentinel {host}:{port}: {error}")))
    }

    fn sentinel(&self, tried: usize) -> (String, u16) {
        match &self.address {
            BackplaneAddress::Sentinel { sentinels, .. } => {
                sentinels[(self.attempts + tried) % sentinels.len()].clone()
            }
            _ => (String::new(), 0),
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
