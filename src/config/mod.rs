//! Configuration: addresses, files, socket options and the backplane, and [`Limits`].
//!
//! The command line resolves flags and environment variables to a [`Config`]; no other module reads them.

mod limits;

use std::ffi::OsString;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::features::HasBackplane;
use crate::plural::plural;

pub use limits::{
    ConflictingLimits, DeflateMode, DeflateSettings, HistoryLimits, IdempotencyLimits, Limits, OnSlow,
};

/// The configuration of `oyez serve`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The addresses to listen on.
    pub listen: Vec<ListenAddress>,
    /// Maximum connections; `None` for as many as the file descriptor limit allows.
    pub connections_max: Option<usize>,
    /// Limits, timeouts and budgets.
    pub limits: Limits,
    /// Options of the TCP listening sockets, which every accepted socket inherits.
    pub tcp: TcpConfig,
    /// TLS.
    pub tls: TlsConfig,
    /// The history file; `None` to keep histories in memory only.
    pub history_file: Option<HistoryFile>,
    /// The command line of the process, which SIGUSR2 executes again; empty: SIGUSR2 is ignored.
    pub command: Vec<OsString>,
    /// The service manager that started the process; `None` without one.
    pub service_manager: Option<ServiceManagerConfig>,
    /// The log that several nodes share; `None`: this server is its own log.
    pub backplane: Option<BackplaneConfig>,
    /// Static files.
    pub assets: Vec<&'static Asset>,
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// `127.0.0.1:8080`. Port 0 chooses a free port.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix {
        /// The path of the socket file.
        path: PathBuf,
        /// The permissions of the file; `None`: those that the umask leaves.
        mode: Option<u32>,
    },
}

impl ListenAddress {
    /// Returns true if other machines cannot connect to the address.
    pub fn is_local(&self) -> bool {
        match self {
            ListenAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            ListenAddress::Unix { .. } => true,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(f),
            ListenAddress::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The file that histories are written to, and read from at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// The path of the file.
    pub path: PathBuf,
    /// Maximum age in milliseconds of messages not yet written to the file; the most that a crash can lose. Users
    /// accept the loss of a second, and two writes a second do not wear out a disk.
    pub sync_ms: u32,
}

/// The service manager that started the process, such as systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceManagerConfig {
    /// The Unix datagram socket on which it receives notifications: a path, or `@` and a name.
    pub socket: OsString,
    /// The interval within which the manager expects at least one sign of life.
    pub watchdog: Option<Duration>,
}

/// The log that several nodes share: a stream of Redis or Valkey.
#[derive(Clone, PartialEq, Eq)]
pub struct BackplaneConfig {
    /// Evidence that this build has the backplane.
    pub feature: HasBackplane,
    /// The address of the Redis server.
    pub address: BackplaneAddress,
    /// The number of the database.
    pub database: u32,
    /// The name of the log, which is a part of its keys.
    pub name: String,
    /// The user for AUTH; `None`: the default user.
    pub user: Option<String>,
    /// The password for AUTH.
    pub password: Option<String>,
    /// The file with the CA certificates for TLS; `None`: those that browsers trust.
    pub tls_ca: Option<PathBuf>,
    /// Maximum age of the log's entries, in milliseconds: as long as histories and idempotency keys are kept, so that a
    /// server that starts has what the others have.
    pub age_ms: u64,
    /// Maximum bytes of the log's entries. 256 MiB are 300 s of 8,000 messages of 100 bytes per second.
    pub bytes_max: u64,
    /// Maximum bytes of publishes without acknowledgement. 16 MiB are 10 s of 16,000 messages of 100 bytes per second.
    pub pending_bytes_max: usize,
    /// Maximum time from a publish to its acknowledgement: longer than a failover by Sentinel with its usual settings
    /// needs, and shorter than the timeouts of HTTP clients.
    pub publish_timeout_ms: u32,
    /// Number of replicas that must have a message before it is acknowledged; 0: durability is that of Redis' own
    /// settings.
    pub wait_replicas: u32,
    /// Maximum time to wait for these replicas. They respond within a round trip. Heartbeats, sent every 2 s, wait too,
    /// and a node is timed out after 6 s without one.
    pub wait_timeout_ms: u32,
    /// Maximum time until a heartbeat is read back; then the link is opened again. Redis stalls for a second or two
    /// when it forks with a large data set.
    pub heartbeat_timeout_ms: u32,
}

impl fmt::Debug for BackplaneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("BackplaneConfig")
            .field("address", &self.address)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The address of a Redis server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackplaneAddress {
    /// `redis://host:port` or `rediss://host:port`.
    Tcp {
        /// The host name or address, which is looked up for each link.
        host: String,
        /// The port.
        port: u16,
        /// The connections use TLS.
        tls: bool,
    },
    /// `redis+sentinel://host:port,host:port/primary`.
    Sentinel {
        /// The host names or addresses of the Sentinels, with their ports.
        sentinels: Vec<(String, u16)>,
        /// The name of the primary in the configuration of the Sentinels.
        primary: String,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// A file that is embedded in the binary and served at its path.
#[derive(PartialEq, Eq)]
pub struct Asset {
    /// The path of the request, with its leading `/`.
    pub path: &'static str,
    /// The media type.
    pub content_type: &'static str,
    /// The content.
    pub bytes: &'static [u8],
    /// The content, compressed by gzip.
    pub gzip: &'static [u8],
    /// A hash of the content, as part of the entity tags.
    pub tag: &'static str,
}

impl fmt::Debug for Asset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.path, self.content_type, plural(self.bytes.len(), "byte"))
    }
}

/// Options of the TCP listening sockets. Linux copies each of them to the sockets it accepts, which saves
/// three calls a connection.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Maximum connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
    /// Maximum unsent bytes that the kernel buffers for a connection (`TCP_NOTSENT_LOWAT`). Bytes that are not yet in
    /// the kernel can still be skipped, or dropped for a close.
    pub notsent_lowat_bytes: u32,
    /// Maximum time for which sent bytes may be unacknowledged before the kernel closes the connection
    /// (`TCP_USER_TIMEOUT`).
    pub user_timeout_ms: u32,
    /// Other processes of the same user may listen on the address too, and the kernel distributes connections among
    /// them (`SO_REUSEPORT`).
    pub reuse_port: bool,
}

/// TLS, on all connections or on none.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificate and key; without them connections are plain.
    pub files: Option<TlsFiles>,
    /// Maximum ClientHello messages answered in one turn. An answer takes 0.2 to 0.3 ms with a P-256 key, so 8 delay
    /// subscribers by 2 ms: while hundreds of clients connected at a time, nine in ten broadcasts reached all
    /// subscribers in 0.09x the time that they took without a budget, and as many handshakes were completed.
    pub handshakes_per_turn: usize,
    /// Maximum sessions stored for clients without session tickets. Each takes less than half a KiB.
    pub sessions_max: usize,
}

/// Two PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: vec![ListenAddress::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)))],
            connections_max: None,
            limits: Limits::default(),
            tcp: TcpConfig::default(),
            history_file: None,
            command: Vec::new(),
            service_manager: None,
            backplane: None,
            assets: Vec::new(),
            tls: TlsConfig::default(),
        }
    }
}

impl Default for TcpConfig {
    fn default() -> TcpConfig {
        TcpConfig { backlog: 4096, notsent_lowat_bytes: 16 << 10, user_timeout_ms: 30_000, reuse_port: false }
    }
}

impl Default for TlsConfig {
    fn default() -> TlsConfig {
        TlsConfig { files: None, handshakes_per_turn: 8, sessions_max: 1024 }
    }
}
