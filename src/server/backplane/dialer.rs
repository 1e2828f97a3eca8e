//! Opening the two connections to the server that has the shared log: the lookup of its name, connects, and TLS
//! handshakes, each with a deadline and none with a blocking call in the loop.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;

use mio::{Registry, Token, Waker};

use super::lookup::Lookup;
use super::stream::LogStream;
use crate::client::tls::{TlsConnector, Trust};
use crate::config::{BackplaneAddress, BackplaneConfig};
use crate::time::LoopTime;

/// The tokens of the connections, in the order of `Side::ALL`, and of the waker of lookups.
pub(super) const TOKENS: [Token; 2] = [Token(usize::MAX - 2), Token(usize::MAX - 3)];
pub(super) const WAKER: Token = Token(usize::MAX - 4);

/// Maximum time of a lookup. A resolver tries a second name server after 5 s.
const LOOKUP_MS: u32 = 5_000;

/// Maximum time of a connect: a lost SYN is sent again after 1 s and after 3 s.
const CONNECT_MS: u32 = 3_000;

/// Maximum time of the TLS handshakes: two round trips, and some ms of Redis' only thread for each.
const HANDSHAKE_MS: u32 = 3_000;

/// A connection, and what its events have reported.
pub(super) struct LogConnection {
    pub(super) stream: LogStream,
    /// It may have bytes: an event reported them, and no read has found the socket empty since.
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
}

/// An attempt to open both connections.
pub(super) enum Dial {
    LookingUp { host: String, port: u16, until: LoopTime },
    Connecting { target: DialTarget, connections: [LogConnection; 2], until: LoopTime },
    Handshaking { target: DialTarget, connections: [LogConnection; 2], until: LoopTime },
}

/// The server that is connected to.
pub(super) struct DialTarget {
    /// Its host and port as they were given, for errors: TLS compares the name in the certificate with this one.
    name: String,
    /// Its address.
    address: String,
    /// `None`: the connections are not encrypted.
    tls: Option<TlsConnector>,
}

/// The result of a step.
pub(super) enum Progress {
    /// The attempt continues at the next event.
    Waits(Dial),
    /// Both connections are open.
    Open { connections: [LogConnection; 2], address: String },
}

impl Dial {
    /// When the attempt has failed.
    pub(super) fn deadline(&self) -> LoopTime {
        match self {
            Dial::LookingUp { until, .. }
            | Dial::Connecting { until, .. }
            | Dial::Handshaking { until, .. } => *until,
        }
    }

    /// The error of an attempt whose deadline has expired.
    pub(super) fn timeout(&self) -> String {
        match self {
            Dial::LookingUp { host, .. } => format!("{host}: the lookup of the host name takes too long"),
            Dial::Connecting { target, .. } => format!("{}: connect timeout", target.name),
            // A Redis without TLS takes a handshake for the begin of a command, and waits for its rest.
            Dial::Handshaking { target, .. } => {
                format!("{}: TLS handshake timeout; the port may be one without TLS", target.name)
            }
        }
    }

    /// The connection with this number.
    pub(super) fn connection_mut(&mut self, at: usize) -> Option<&mut LogConnection> {
        match self {
            Dial::LookingUp { .. } => None,
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
    /// A lookup that is in progress. One that hangs is waited for by the next attempt: there is one thread at most.
    lookup: Option<Lookup>,
    /// Attempts to connect: a host with several addresses is tried at each.
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
            lookup: None,
            attempts: 0,
        })
    }

    /// Begins an attempt at the address, or at another node of a Redis Cluster.
    pub(super) fn begin(&mut self, redirect: Option<&str>, now: LoopTime) -> io::Result<Dial> {
        self.attempts += 1;
        match (redirect.and_then(host_and_port), self.address.clone()) {
            (Some((host, port)), _) => self.look_up(host, port, now),
            (None, BackplaneAddress::Tcp { host, port, .. }) => self.look_up(&host, port, now),
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
    pub(super) fn advance(&mut self, mut dial: Dial, now: LoopTime) -> io::Result<Progress> {
        loop {
            dial = match dial {
                Dial::LookingUp { host, port, until } => {
                    match self.lookup.as_ref().and_then(Lookup::result) {
                        None => return Ok(Progress::Waits(Dial::LookingUp { host, port, until })),
                        Some(addresses) => {
                            self.lookup = None;
                            self.connect_to_any(&host, &addresses?, now)?
                        }
                    }
                }
                Dial::Connecting { target, mut connections, until } => {
                    if !are_connected(&mut connections).map_err(|error| target.error(&error))? {
                        return Ok(Progress::Waits(Dial::Connecting { target, connections, until }));
                    }
                    let Some(tls) = &target.tls else {
                        return Ok(Progress::Open { connections, address: target.address });
                    };
                    let [appender, reader] = connections;
                    let connections = [appender.encrypt(tls)?, reader.encrypt(tls)?];
                    Dial::Handshaking { target, connections, until: now.after(HANDSHAKE_MS) }
                }
                Dial::Handshaking { target, mut connections, until } => {
                    let mut is_complete = true;
                    for connection in &mut connections {
                        is_complete &= connection.stream.handshake().map_err(|error| target.error(&error))?;
                    }
                    return Ok(match is_complete {
                        true => Progress::Open { connections, address: target.address },
                        false => Progress::Waits(Dial::Handshaking { target, connections, until }),
                    });
                }
            };
        }
    }

    fn look_up(&mut self, host: &str, port: u16, now: LoopTime) -> io::Result<Dial> {
        if let Ok(ip) = host.parse() {
            return self.connect_to(host, SocketAddr::new(ip, port), now);
        }
        let is_same = self.lookup.as_ref().is_some_and(|lookup| lookup.is_of(host, port));
        if !is_same {
            self.lookup = Some(Lookup::begin(host, port, self.waker.clone())?);
        }
        Ok(Dial::LookingUp { host: host.to_owned(), port, until: now.after(LOOKUP_MS) })
    }

    fn connect_to_any(&mut self, host: &str, addresses: &[SocketAddr], now: LoopTime) -> io::Result<Dial> {
        match addresses.len() {
            0 => Err(io::Error::new(ErrorKind::NotFound, "the host name has no address")),
            count => self.connect_to(host, addresses[self.attempts % count], now),
        }
    }

    fn connect_to(&mut self, host: &str, address: SocketAddr, now: LoopTime) -> io::Result<Dial> {
        let tls = self.tls.as_ref().map(|tls| tls.for_host(host)).transpose().map_err(io::Error::other)?;
        let timeout_ms = self.user_timeout_ms;
        let streams = [LogStream::tcp(address, timeout_ms), LogStream::tcp(address, timeout_ms)];
        // An IPv6 address is in brackets.
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
        let [appender, reader] = streams;
        let mut connections = [appender?, reader?].map(|stream| LogConnection {
            stream,
            is_readable: false,
            is_writable: false,
        });
        for (connection, token) in connections.iter_mut().zip(TOKENS) {
            connection.stream.register(&self.registry, token)?;
        }
        Ok(Dial::Connecting { target, connections, until: now.after(CONNECT_MS) })
    }
}

impl LogConnection {
    fn encrypt(self, tls: &TlsConnector) -> io::Result<LogConnection> {
        Ok(LogConnection { stream: self.stream.encrypt(tls)?, ..self })
    }
}

impl DialTarget {
    /// Adds the server to an error.
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
    let connector = TlsConnector::with_protocols(host, &trust, Vec::new());
    connector.map(Some).map_err(|why| format!("--backplane-tls-ca {why}"))
}

/// Returns true if both connections are established.
fn are_connected(connections: &mut [LogConnection; 2]) -> io::Result<bool> {
    for connection in connections {
        if !connection.is_writable {
            return Ok(false);
        }
        if !connection.stream.is_connected()? {
            // An event without a result; another one follows.
            connection.is_writable = false;
            return Ok(false);
        }
    }
    Ok(true)
}

/// The parts of `host:port`.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}
