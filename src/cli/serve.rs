//! `oyez serve`: turns flags into a configuration, and runs the server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use log::{info, warn};

use super::auth_flags::AuthFlags;
use super::backplane_flags::BackplaneFlags;
use super::failure::Failure;
use super::key_files::read_metrics_token;
use super::listen_flag::{self, ListenPart};
use super::log_format::LogFormat;
use super::memory;
use super::output;
use super::parent;
use super::service_manager;
use super::upgrade;
use super::values::{
    bytes, bytes_or_0, channel_pattern, count, count_or_0, deflate_level, fields, memory_bytes_or_0, millis,
    millis_or_0, network, origin, seconds, small_bytes, small_count, small_count_or_0,
};
use crate::access::connection_limiter::Proxies;
use crate::access::grant::Patterns;
use crate::access::origin::OriginPattern;
use crate::access::proxy::Network;
use crate::access::token::Verifier;
use crate::config::{
    self, Asset, Config, DeflateMode, DeflateSettings, HistoryFile, HistoryLimits, IdempotencyLimits, Limits,
    ListenAddress, OnSlow, TcpConfig, TlsFiles,
};
use crate::console;
use crate::net::acceptor::{Acceptor, Plain};
use crate::net::inherited_socket::InheritedSocket;
use crate::net::listeners::ListenError;
use crate::net::tls::Tls;
use crate::server::memory::AllocatedBytes;
use crate::server::{AccessConfig, DESCRIPTORS_RESERVED, Server, ServerExit, StartError};
use crate::session::http::response::HttpError;

/// The flags of `oyez serve`. Each can also be set by its environment variable; the flag takes precedence.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Addresses to listen on: repeat it, or separate them by commas. A port alone (9000) listens on 127.0.0.1, which
    /// other machines cannot reach; port 0 chooses a free port; unix:PATH is a Unix socket, unix:PATH,mode=0660 with
    /// these permissions.
    #[arg(
        long, env = "OYEZ_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_delimiter = ',',
        value_parser = ListenPart::parse
    )]
    listen: Vec<ListenPart>,

    /// Maximum connections; above it clients get 503, then wait in the backlog [default: the descriptor limit less
    /// 32].
    #[arg(long, env = "OYEZ_CONNECTIONS_MAX", value_name = "N", value_parser = count)]
    connections_max: Option<usize>,

    /// Maximum channels with subscribers or history; above it a connection is closed with 4100.
    #[arg(long, env = "OYEZ_CHANNELS_MAX", value_name = "N", default_value = "1000000", value_parser = count)]
    channels_max: usize,

    /// Maximum channels that one connection is subscribed to or has created, while they exist (oyez.v1).
    #[arg(long, env = "OYEZ_CHANNELS_PER_CLIENT_MAX", value_name = "N", default_value = "128", value_parser = count)]
    channels_per_client_max: usize,

    /// Maximum channels that one publisher has created and that still exist: a user by the token's `sub`, else an
    /// address or an IPv6 /64; above it 429, or an error in oyez.v1.
    #[arg(long, env = "OYEZ_CHANNELS_PER_PUBLISHER_MAX", value_name = "N", default_value = "10000", value_parser = count)]
    channels_per_publisher_max: usize,

    /// Maximum messages in the history of a channel, for clients that reconnect; 0: no history.
    #[arg(long, env = "OYEZ_HISTORY_MESSAGES_MAX", value_name = "N", default_value = "100", value_parser = count_or_0)]
    history_messages_max: usize,

    /// Maximum bytes in the history of a channel, plus 64 for each message.
    #[arg(long, env = "OYEZ_HISTORY_BYTES_MAX", value_name = "BYTES", default_value = "1MiB", value_parser = bytes)]
    history_bytes_max: usize,

    /// Maximum age of messages in the history, in seconds.
    #[arg(long, env = "OYEZ_HISTORY_AGE_SECONDS", value_name = "S", default_value = "300", value_parser = seconds)]
    history_age_seconds: u32,

    /// Maximum bytes in the histories of all channels, plus 640 for each channel; above it the largest channel loses
    /// its oldest messages [default: half of --memory-max, at most 256MiB].
    #[arg(long, env = "OYEZ_HISTORY_TOTAL_BYTES_MAX", value_name = "BYTES", value_parser = bytes)]
    history_total_bytes_max: Option<usize>,

    /// Maximum bytes of the names of removed channels that are remembered; a subscriber that returns to a channel that
    /// is no longer remembered is notified of a gap.
    #[arg(long, env = "OYEZ_REMOVED_CHANNELS_BYTES_MAX", value_name = "BYTES", default_value = "4MiB", value_parser = bytes)]
    removed_channels_bytes_max: usize,

    /// Maximum bytes of messages above 64 KiB that are encoded for replays and not yet sent; a replay that needs more
    /// waits.
    #[arg(long, env = "OYEZ_REPLAY_ENCODED_BYTES_MAX", value_name = "BYTES", default_value = "16MiB", value_parser = bytes)]
    replay_encoded_bytes_max: usize,

    /// Maximum time that a replay waits for memory within --replay-encoded-bytes-max, in milliseconds; then its
    /// connection is closed with 4100.
    #[arg(long, env = "OYEZ_REPLAY_WAIT_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    replay_wait_ms: u32,

    /// Time in which a client must receive a replayed message above 64 KiB while other replays wait for memory, in
    /// milliseconds; then its connection is closed without a close frame.
    #[arg(long, env = "OYEZ_REPLAY_TAKE_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    replay_take_ms: u32,

    /// Maximum idempotency keys that are remembered (Idempotency-Key); 0: none.
    #[arg(long, env = "OYEZ_IDEMPOTENCY_KEYS_MAX", value_name = "N", default_value = "100000", value_parser = count_or_0)]
    idempotency_keys_max: usize,

    /// Maximum age of an idempotency key, in seconds.
    #[arg(long, env = "OYEZ_IDEMPOTENCY_AGE_SECONDS", value_name = "S", default_value = "300", value_parser = seconds)]
    idempotency_age_seconds: u32,

    /// File that keeps histories and ids across restarts; created if it does not exist [default: none].
    #[arg(long, env = "OYEZ_HISTORY_FILE", value_name = "PATH")]
    history_file: Option<PathBuf>,

    /// Maximum age in milliseconds of messages not yet written to the history file; the most that a crash can lose.
    #[arg(long, env = "OYEZ_HISTORY_SYNC_MS", value_name = "MS", default_value = "1000", value_parser = millis)]
    history_sync_ms: u32,

    /// Maximum memory that the server holds, in bytes; close to it, the server rejects requests and closes connections
    /// in steps; 0: no limit [default: half of the control group's limit or of the machine's memory].
    #[arg(long, env = "OYEZ_MEMORY_MAX", value_name = "BYTES", value_parser = memory_bytes_or_0)]
    memory_max: Option<u64>,

    /// Maximum length of a request head, in bytes; above it 431.
    #[arg(long, env = "OYEZ_HEAD_BYTES_MAX", value_name = "BYTES", default_value = "16KiB", value_parser = bytes)]
    head_bytes_max: usize,

    /// Maximum header fields of a request; above it 431.
    #[arg(long, env = "OYEZ_HEAD_FIELDS_MAX", value_name = "N", default_value = "64", value_parser = fields)]
    head_fields_max: usize,

    /// Maximum time from accept to the complete request head, in milliseconds; then 408.
    #[arg(long, env = "OYEZ_HANDSHAKE_TIMEOUT_MS", value_name = "MS", default_value = "5000", value_parser = millis)]
    handshake_timeout_ms: u32,

    /// Maximum size of a message from a client, in bytes, over all its fragments; above it a close with 1009.
    #[arg(long, env = "OYEZ_MESSAGE_BYTES_MAX", value_name = "BYTES", default_value = "64KiB", value_parser = bytes)]
    message_bytes_max: usize,

    /// Maximum time from the first byte of a message to its last, in milliseconds; then a close with 4105.
    #[arg(long, env = "OYEZ_MESSAGE_TIMEOUT_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    message_timeout_ms: u32,

    /// Maximum size of a request body, in bytes, and so of a message published over HTTP; above it 413.
    #[arg(long, env = "OYEZ_BODY_BYTES_MAX", value_name = "BYTES", default_value = "1MiB", value_parser = bytes)]
    body_bytes_max: usize,

    /// Maximum time from the request head to the complete body, in milliseconds; then 408.
    #[arg(long, env = "OYEZ_BODY_TIMEOUT_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    body_timeout_ms: u32,

    /// Maximum idle time of a connection between two requests, in milliseconds.
    #[arg(long, env = "OYEZ_KEEP_ALIVE_MS", value_name = "MS", default_value = "75000", value_parser = millis)]
    keep_alive_ms: u32,

    // Not a doc comment, since rustdoc reads an origin as a link.
    #[arg(
        long = "origin", env = "OYEZ_ORIGIN", value_name = "PATTERN", value_delimiter = ',', value_parser = origin,
        help = "Origins whose pages may connect, query and publish, in addition to the server's own host: repeat it, or \
                separate them by commas (https://app.example.com, https://*.example.com, or * for all) [default: none]"
    )]
    origins: Vec<OriginPattern>,

    /// Networks of proxies whose X-Forwarded-For or PROXY protocol header is trusted to name the client: repeat it, or
    /// separate them by commas (10.0.0.0/8, 127.0.0.1, or unix: for the Unix sockets) [default: none].
    #[arg(long = "trusted-proxy", env = "OYEZ_TRUSTED_PROXY", value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    trusted_proxies: Vec<Network>,

    /// Trusted proxies begin each connection with a PROXY protocol header, version 2 [default: off].
    #[arg(long, env = "OYEZ_PROXY_PROTOCOL")]
    proxy_protocol: bool,

    /// Maximum connections of one address, or of one IPv6 /64; above it 429; 0: no limit.
    #[arg(long, env = "OYEZ_CONNECTIONS_PER_ADDRESS_MAX", value_name = "N", default_value = "0", value_parser = small_count_or_0)]
    connections_per_address_max: u32,

    /// Maximum handshakes of one address per second, with a burst of as many; above it 429; 0: no limit.
    #[arg(long, env = "OYEZ_HANDSHAKES_PER_SECOND", value_name = "N", default_value = "0", value_parser = small_count_or_0)]
    handshakes_per_second: u32,

    /// Maximum messages that a connection publishes per second, with a burst of as many; above it a close with 4101, an
    /// error in oyez.v1, or 429; 0: no limit.
    #[arg(long, env = "OYEZ_MESSAGES_PER_SECOND", value_name = "N", default_value = "0", value_parser = small_count_or_0)]
    messages_per_second: u32,

    /// Maximum bytes that a connection publishes per second, with a burst of as many; above it a close with 4101, an
    /// error in oyez.v1, or 429; 0: no limit.
    #[arg(long, env = "OYEZ_BYTES_PER_SECOND", value_name = "BYTES", default_value = "0", value_parser = bytes_or_0)]
    bytes_per_second: u32,

    #[command(flatten)]
    backplane: BackplaneFlags,

    /// Share the port with other processes of the same user that have this flag; needs --backplane [default: off].
    #[arg(long, env = "OYEZ_REUSE_PORT")]
    reuse_port: bool,

    #[command(flatten)]
    auth: AuthFlags,

    /// Do not serve the console, the page at / [default: off].
    #[arg(long, env = "OYEZ_NO_CONSOLE")]
    no_console: bool,

    /// Maximum silence of a client before it is pinged, in milliseconds; the ping may be sent after a quarter of it; 0:
    /// no pings.
    #[arg(long, env = "OYEZ_PING_INTERVAL_MS", value_name = "MS", default_value = "25000", value_parser = millis_or_0)]
    ping_interval_ms: u32,

    /// Maximum time from a ping to the next bytes of the client, in milliseconds; then a close with 4103.
    #[arg(long, env = "OYEZ_PONG_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pong_timeout_ms: u32,

    /// Maximum bytes queued for one connection, plus 128 for each queued frame; above it the connection is slow.
    #[arg(long, env = "OYEZ_OUTBOX_BYTES_MAX", value_name = "BYTES", default_value = "2MiB", value_parser = bytes)]
    outbox_bytes_max: usize,

    /// Maximum time in which a connection takes none of its queued bytes, or is slower than the rate of
    /// --slow-bytes-per-second, in milliseconds; then the connection is slow.
    #[arg(long, env = "OYEZ_SLOW_TIMEOUT_MS", value_name = "MS", default_value = "5000", value_parser = millis)]
    slow_timeout_ms: u32,

    /// Minimum rate at which a connection must take its queued bytes, in bytes per second; 0: any byte is progress.
    #[arg(long, env = "OYEZ_SLOW_BYTES_PER_SECOND", value_name = "BYTES", default_value = "4KiB", value_parser = bytes_or_0)]
    slow_bytes_per_second: u32,

    /// Maximum time for which a subscriber whose outbox is a quarter full pauses the publishers of its channels, in
    /// milliseconds; 0: no pause.
    #[arg(long, env = "OYEZ_PUBLISH_PAUSE_MS", value_name = "MS", default_value = "1000", value_parser = millis_or_0)]
    publish_pause_ms: u32,

    /// Policy for slow consumers: `close` (4102), or `skip`: drop messages until the queue has drained. A raw
    /// connection has then lost them; others get them from the history.
    #[arg(long, env = "OYEZ_ON_SLOW", value_name = "POLICY", default_value = "close")]
    on_slow: WhenSlow,

    /// Compression of WebSocket messages (permessage-deflate): `context`: with reference to the previous messages of
    /// the channel; `fresh`: each alone; `off`.
    #[arg(long, env = "OYEZ_DEFLATE", value_name = "MODE", default_value = DEFLATE_DEFAULT)]
    deflate: Deflate,

    /// Compression level, 1 to 9; without it, higher for more subscribers [default: 1 to 9].
    #[arg(long, env = "OYEZ_DEFLATE_LEVEL", value_name = "N", value_parser = deflate_level)]
    deflate_level: Option<u8>,

    /// Minimum size of a message that is compressed, in bytes.
    #[arg(long, env = "OYEZ_DEFLATE_BYTES_MIN", value_name = "BYTES", default_value = "64", value_parser = bytes)]
    deflate_bytes_min: usize,

    /// Maximum bytes of messages that are kept as context of the next ones, of all channels.
    #[arg(long, env = "OYEZ_DEFLATE_CONTEXT_BYTES_MAX", value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    deflate_context_bytes_max: usize,

    /// Maximum bytes of messages that a channel keeps as context for each of its subscribers; 0: its last message.
    #[arg(long, env = "OYEZ_DEFLATE_CONTEXT_BYTES_PER_SUBSCRIBER", value_name = "BYTES", default_value = "64", value_parser = bytes_or_0)]
    deflate_context_bytes_per_subscriber: u32,

    /// Channels whose messages are not compressed, by name, or by prefix with `*`: repeat it, or separate them by
    /// commas (account.*, photos) [default: none].
    #[arg(long, env = "OYEZ_DEFLATE_EXCLUDE", value_name = "PATTERN", value_delimiter = ',', value_parser = channel_pattern)]
    deflate_exclude: Vec<String>,

    /// Maximum time of a close handshake without progress, in milliseconds.
    #[arg(long, env = "OYEZ_CLOSE_TIMEOUT_MS", value_name = "MS", default_value = "2000", value_parser = millis)]
    close_timeout_ms: u32,

    /// Maximum time from SIGTERM or SIGINT (after --drain-delay-ms) to the exit, in seconds.
    #[arg(long, env = "OYEZ_DRAIN_SECONDS", value_name = "S", default_value = "30", value_parser = seconds)]
    drain_seconds: u32,

    /// Time from SIGTERM or SIGINT to the drain, in milliseconds: /readyz returns 503, and new clients are still
    /// accepted.
    #[arg(long, env = "OYEZ_DRAIN_DELAY_MS", value_name = "MS", default_value = "0", value_parser = millis_or_0)]
    drain_delay_ms: u32,

    /// Rate at which a draining server asks its clients to reconnect, in clients per second.
    #[arg(long, env = "OYEZ_RECONNECTS_PER_SECOND", value_name = "N", default_value = "1000", value_parser = count)]
    reconnects_per_second: usize,

    /// Maximum log lines of one kind in a second, such as those of connections closed for one reason; the number of
    /// further ones is logged in one line; 0: no limit.
    #[arg(long, env = "OYEZ_LOG_LINES_PER_SECOND", value_name = "N", default_value = "100", value_parser = small_count_or_0)]
    log_lines_per_second: u32,

    /// File with a token that /metrics requires (Authorization: Bearer TOKEN), at least 16 bytes [default: none].
    #[arg(long, env = "OYEZ_METRICS_TOKEN_FILE", value_name = "FILE")]
    metrics_token_file: Option<PathBuf>,

    /// Format of log lines: text, one JSON object in each, or logfmt.
    #[arg(
        long,
        env = "OYEZ_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub(super) log_format: LogFormat,

    /// Maximum connections accepted in one turn of the loop.
    #[arg(long, env = "OYEZ_ACCEPTS_PER_TURN", value_name = "N", default_value = "64", value_parser = count)]
    accepts_per_turn: usize,

    /// Maximum reads from one connection in one turn of the loop.
    #[arg(long, env = "OYEZ_READS_PER_CONNECTION", value_name = "N", default_value = "5", value_parser = count)]
    reads_per_connection: usize,

    /// Maximum bytes read from one connection in one turn while others wait; also the size of the shared read buffer.
    #[arg(long, env = "OYEZ_READ_BYTES_PER_CONNECTION", value_name = "BYTES", default_value = "16KiB", value_parser = bytes)]
    read_bytes_per_connection: usize,

    /// Maximum bytes read from all connections in one turn. A frame counts at least 64, an HTTP request 1,024 more.
    #[arg(long, env = "OYEZ_READ_BYTES_PER_TURN", value_name = "BYTES", default_value = "256KiB", value_parser = bytes)]
    read_bytes_per_turn: usize,

    /// Estimated time that one turn spends on replays, listings, history pages and metrics, in microseconds.
    #[arg(long, env = "OYEZ_WORK_MICROS_PER_TURN", value_name = "US", default_value = "1000", value_parser = small_count)]
    work_micros_per_turn: u32,

    /// Maximum connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
    #[arg(long, env = "OYEZ_BACKLOG", value_name = "N", default_value = "4096", value_parser = small_count)]
    backlog: u32,

    /// Maximum unsent bytes that the kernel buffers for a connection (TCP_NOTSENT_LOWAT).
    #[arg(long, env = "OYEZ_NOTSENT_LOWAT_BYTES", value_name = "BYTES", default_value = "16KiB", value_parser = small_bytes)]
    notsent_lowat_bytes: u32,

    /// Maximum time that sent bytes stay unacknowledged, in milliseconds (TCP_USER_TIMEOUT).
    #[arg(long, env = "OYEZ_USER_TIMEOUT_MS", value_name = "MS", default_value = "30000", value_parser = millis)]
    user_timeout_ms: u32,

    /// PEM file with the server's certificate chain; with --tls-key. The server then accepts only TLS. Reloaded at
    /// SIGHUP [default: no TLS].
    #[arg(long, env = "OYEZ_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's private key [default: no TLS].
    #[arg(long, env = "OYEZ_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Maximum clients whose TLS handshake is answered in one turn of the loop; while clients of several addresses
    /// wait, each address gets an equal part of them.
    #[arg(long, env = "OYEZ_TLS_HANDSHAKES_PER_TURN", value_name = "N", default_value = "8", value_parser = count)]
    tls_handshakes_per_turn: usize,

    /// Maximum TLS sessions that are remembered, for clients that keep no ticket; 0: none.
    #[arg(long, env = "OYEZ_TLS_SESSIONS_MAX", value_name = "N", default_value = "1024", value_parser = count_or_0)]
    tls_sessions_max: usize,

    /// Check the flags and the files that they name, and exit; no socket and no history file is opened [default: off].
    #[arg(long, env = "OYEZ_CHECK")]
    check: bool,

    /// Process id of the parent to exit with; set by `oyez bench`.
    #[arg(long, value_name = "PID", hide = true)]
    end_with_parent: Option<u32>,
}

/// The default of `--deflate`, as in [`DeflateSettings`].
const DEFLATE_DEFAULT: &str = if cfg!(feature = "deflate") { "context" } else { "off" };

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Deflate {
    Off,
    Fresh,
    Context,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WhenSlow {
    Close,
    Skip,
}

impl Serve {
    /// `listens_by_default` is true if `--listen` is not given.
    pub(super) fn run(
        &self,
        listens_by_default: bool,
        allocated_bytes: AllocatedBytes,
    ) -> Result<(), Failure> {
        let sockets = service_manager::take_sockets()?;
        if let Some(parent) = self.end_with_parent {
            parent::end_with_parent(parent).map_err(|error| Failure::Failed(error.to_string()))?;
        }
        let mut config = self.config();
        config.listen = listen_flag::join(&self.listen)?;
        if listens_by_default && !sockets.is_empty() {
            config.listen.clear();
        }
        config.command = std::env::args_os().collect();
        config.service_manager = service_manager::config();
        let memory = self.resolve_memory(&mut config.limits);
        config.limits.check().map_err(|why| match why.to_string() {
            // A default: the error names the limit that it was derived from.
            why if self.memory_max.is_none() && why.contains("--memory-max") => {
                Failure::Usage(format!("{why}; {memory}"))
            }
            why => Failure::Usage(why),
        })?;
        config.backplane = self.backplane.config(&config.limits)?;
        self.check_combinations(&config)?;
        let proxies = Proxies { networks: self.trusted_proxies.clone(), send_header: self.proxy_protocol };
        let further =
            sockets.iter().filter(|socket| !config.listen.iter().any(|address| socket.serves(address)));
        let addresses: Vec<ListenAddress> =
            config.listen.iter().chain(further.map(|socket| &socket.address)).cloned().collect();
        let (authenticator, who_may) = self.auth.authenticator(&addresses)?;
        let (connections_max, descriptors) = connections_max(config.connections_max, addresses.len())?;
        let facts = vec![who_may, descriptors, memory];
        let uncompressed = Patterns::parse(self.deflate_exclude.iter().map(String::as_str))
            .map_err(|why| Failure::Usage(why.to_string()))?;
        let metrics_token = self.metrics_token_file.as_deref().map(read_metrics_token).transpose()?;
        let access_config = AccessConfig {
            origins: self.origins.clone(),
            proxies,
            authenticator,
            uncompressed,
            metrics_token,
        };
        let keys = || self.auth.verifier().map_err(|why| why.to_string());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let load =
            |files| Tls::load(files, &config.tls, HttpError::tls_expected, now).map_err(Failure::Failed);
        let tls = config.tls.files.clone().map(load).transpose()?;
        if self.check {
            return output::print("the configuration is valid\n");
        }
        let startup = Startup { config, access_config, sockets, connections_max, facts };
        match tls {
            None => startup.serve(Plain, keys, allocated_bytes),
            Some(tls) => startup.serve(tls, keys, allocated_bytes),
        }
    }

    /// Checks the limits, without a file and without the memory of the machine.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.config().limits.check().map_err(|why| Failure::Usage(why.to_string()))
    }

    /// Determines the memory budget and the part of it that histories may use. Returns both as a line for the log.
    fn resolve_memory(&self, limits: &mut Limits) -> String {
        let (bytes_max, source) = match self.memory_max {
            Some(bytes_max) => (bytes_max, "--memory-max".to_owned()),
            None => match memory::limit_of_process() {
                Some(limit) => {
                    (limit.bytes / 2, format!("half of {} bytes in {}", limit.bytes, limit.source))
                }
                None => (0, "the system does not report the size of its memory".to_owned()),
            },
        };
        limits.memory_bytes_max = bytes_max;
        if self.history_total_bytes_max.is_none() && bytes_max > 0 {
            let share = usize::try_from(bytes_max / 2).unwrap_or(usize::MAX);
            limits.history.total_bytes_max = limits.history.total_bytes_max.min(share);
        }
        let history = limits.history.total_bytes_max;
        format!("memory_max={bytes_max} ({source}), history_total_bytes_max={history}")
    }

    fn config(&self) -> Config {
        Config {
            listen: Config::default().listen,
            connections_max: self.connections_max,
            limits: self.limits(),
            tcp: TcpConfig {
                backlog: self.backlog,
                notsent_lowat_bytes: self.notsent_lowat_bytes,
                user_timeout_ms: self.user_timeout_ms,
                reuse_port: self.reuse_port,
            },
            history_file: self
                .history_file
                .clone()
                .map(|path| HistoryFile { path, sync_ms: self.history_sync_ms }),
            command: Vec::new(),
            service_manager: None,
            backplane: None,
            assets: served(self.no_console),
            tls: self.tls_config(),
        }
    }

    /// Rejects flags that contradict each other.
    fn check_combinations(&self, config: &Config) -> Result<(), Failure> {
        let why = if self.tls_cert.is_some() != self.tls_key.is_some() {
            "--tls-cert and --tls-key must be given together: a certificate and its private key"
        } else if config.backplane.is_some() && config.history_file.is_some() {
            "--history-file cannot be used with --backplane: the log of the backplane outlives the process, and \
             a history file would give the messages of this node ids of its own"
        } else if self.reuse_port && config.backplane.is_none() {
            "--reuse-port needs --backplane: without a shared log, a message would reach the clients of one of the \
             processes only"
        } else if self.proxy_protocol && self.trusted_proxies.is_empty() {
            "--proxy-protocol needs the networks of the proxies: --trusted-proxy"
        } else {
            return Ok(());
        };
        Err(Failure::Usage(why.into()))
    }

    fn limits(&self) -> Limits {
        Limits {
            head_bytes_max: self.head_bytes_max,
            head_fields_max: self.head_fields_max,
            handshake_timeout_ms: self.handshake_timeout_ms,
            message_bytes_max: self.message_bytes_max,
            message_timeout_ms: self.message_timeout_ms,
            body_bytes_max: self.body_bytes_max,
            body_timeout_ms: self.body_timeout_ms,
            keep_alive_ms: self.keep_alive_ms,
            ping_interval_ms: self.ping_interval_ms,
            pong_timeout_ms: self.pong_timeout_ms,
            memory_bytes_max: self.memory_max.unwrap_or(0),
            outbox_bytes_max: self.outbox_bytes_max,
            slow_timeout_ms: self.slow_timeout_ms,
            slow_bytes_per_second: self.slow_bytes_per_second,
            publish_pause_ms: self.publish_pause_ms,
            on_slow: match self.on_slow {
                WhenSlow::Close => OnSlow::Close,
                WhenSlow::Skip => OnSlow::Skip,
            },
            deflate: self.deflate_settings(),
            close_timeout_ms: self.close_timeout_ms,
            drain_ms: self.drain_seconds * 1_000,
            drain_delay_ms: self.drain_delay_ms,
            reconnects_per_second: self.reconnects_per_second.try_into().unwrap_or(u32::MAX),
            channels_max: self.channels_max,
            channels_per_client_max: self.channels_per_client_max,
            channels_per_publisher_max: self.channels_per_publisher_max,
            history: self.history_limits(),
            removed_channels_bytes_max: self.removed_channels_bytes_max,
            replay_encoded_bytes_max: self.replay_encoded_bytes_max,
            replay_wait_ms: self.replay_wait_ms,
            replay_take_ms: self.replay_take_ms,
            work_micros_per_turn: self.work_micros_per_turn,
            idempotency: IdempotencyLimits {
                keys_max: self.idempotency_keys_max,
                age_ms: self.idempotency_age_seconds * 1_000,
            },
            connections_per_address_max: self.connections_per_address_max,
            handshakes_per_second: self.handshakes_per_second,
            messages_per_second: self.messages_per_second,
            bytes_per_second: self.bytes_per_second,
            auth_timeout_ms: self.auth.auth_timeout_ms,
            token_grace_ms: self.auth.token_grace_ms,
            auths_per_second: self.auth.auths_per_second,
            tickets_max: self.auth.tickets_max,
            tickets_per_client_max: self.auth.tickets_per_client_max,
            log_lines_per_second: self.log_lines_per_second,
            accepts_per_turn: self.accepts_per_turn,
            reads_per_connection: self.reads_per_connection,
            read_bytes_per_connection: self.read_bytes_per_connection,
            read_bytes_per_turn: self.read_bytes_per_turn,
        }
    }

    fn deflate_settings(&self) -> DeflateSettings {
        DeflateSettings {
            mode: match self.deflate {
                Deflate::Off => DeflateMode::Off,
                Deflate::Fresh => DeflateMode::Fresh,
                Deflate::Context => DeflateMode::Context,
            },
            level: self.deflate_level,
            bytes_min: self.deflate_bytes_min,
            context_bytes_max: self.deflate_context_bytes_max,
            context_bytes_per_subscriber: self.deflate_context_bytes_per_subscriber as usize,
        }
    }

    fn history_limits(&self) -> HistoryLimits {
        HistoryLimits {
            messages_max: self.history_messages_max,
            bytes_max: self.history_bytes_max,
            age_ms: self.history_age_seconds * 1_000,
            total_bytes_max: self.history_total_bytes_max.unwrap_or(HistoryLimits::default().total_bytes_max),
        }
    }

    fn tls_config(&self) -> config::TlsConfig {
        config::TlsConfig {
            files: match (&self.tls_cert, &self.tls_key) {
                (Some(certificate), Some(key)) => {
                    Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })
                }
                _ => None,
            },
            handshakes_per_turn: self.tls_handshakes_per_turn,
            sessions_max: self.tls_sessions_max,
        }
    }
}

/// A valid configuration, and the other parts of a server.
struct Startup {
    config: Config,
    access_config: AccessConfig,
    /// The listening sockets that the process inherited.
    sockets: Vec<InheritedSocket>,
    connections_max: usize,
    /// Lines for the log. They are logged once the server listens, so that an error at start is not hidden among them.
    facts: Vec<String>,
}

impl Startup {
    /// Runs a server with one kind of acceptor, until a signal ends it.
    fn serve<E: Acceptor>(
        self,
        acceptor: E,
        keys: impl FnMut() -> Result<Option<Verifier>, String>,
        allocated_bytes: AllocatedBytes,
    ) -> Result<(), Failure> {
        let Startup { config, access_config, sockets, connections_max, facts } = self;
        let (reuse_port, command) = (config.tcp.reuse_port, config.command.clone());
        let scheme = if config.tls.files.is_some() { "wss" } else { "ws" };
        // The first count starts the thread that returns pages to the system. Loading a history frees many pages, and
        // the first client may connect much later.
        let _ = allocated_bytes();
        let mut server =
            Server::bind(config, access_config, sockets, connections_max, acceptor).map_err(|error| {
                match error {
                    StartError::Listen(error) => {
                        Failure::Failed(format!("{error}{}", advice(&error, reuse_port)))
                    }
                    error => Failure::Failed(error.to_string()),
                }
            })?;
        facts.iter().for_each(|fact| info!("{fact}"));
        // The server runs even if these lines cannot be written, for instance on a full disk.
        if let Err(Failure::Failed(why)) = output::print(greeting(scheme, &server.addresses())) {
            warn!("{why}");
        }
        match server.run(keys, allocated_bytes) {
            Ok(ServerExit::Drained) => Ok(()),
            Ok(ServerExit::Replaced) => Err(upgrade::execute(&command, server.take_sockets())),
            Ok(ServerExit::HistoryIncomplete) => {
                Err(Failure::Failed("exited with an incomplete history file".into()))
            }
            Ok(ServerExit::BackplaneRejected(why)) => Err(Failure::Failed(why)),
            Ok(ServerExit::Forced) => Err(Failure::Failed("a second signal ended the drain early".into())),
            Err(error) => Err(Failure::Failed(format!("the poll failed: {error}"))),
        }
    }
}

/// Raises the descriptor limit as far as possible, and computes the maximum number of connections of a server with this
/// many listeners. Returns it with a line for the log.
fn connections_max(wanted: Option<usize>, listeners: usize) -> Result<(usize, String), Failure> {
    let reserved = DESCRIPTORS_RESERVED + listeners.saturating_sub(1);
    let failed = |error: io::Error| Failure::Failed(format!("cannot read the descriptor limit: {error}"));
    let (soft, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).map_err(failed)?;
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(soft);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let room = limit.saturating_sub(reserved).min(u32::MAX as usize / 2);
    let advice = "raise the hard limit (`ulimit -Hn`, LimitNOFILE= in a systemd unit)";
    let connections_max = match wanted {
        Some(wanted) if wanted > room => {
            return Err(Failure::Usage(format!(
                "--connections-max {wanted} needs {} descriptors and the limit is {limit}: lower it, or {advice}",
                wanted.saturating_add(reserved)
            )));
        }
        Some(wanted) => wanted,
        None if room == 0 => {
            return Err(Failure::Failed(format!(
                "the descriptor limit of {limit} leaves no connections after the {reserved} that the server reserves: {advice}"
            )));
        }
        None => room,
    };
    let fact = format!("descriptors soft={soft} hard={hard} now={limit}, connections_max={connections_max}");
    Ok((connections_max, fact))
}

/// A line for each address, the first one with the commands to try next.
fn greeting(scheme: &str, addresses: &[ListenAddress]) -> String {
    let lines = addresses.iter().enumerate().map(|(at, address)| {
        let listening = match address {
            ListenAddress::Tcp(address) => format!("listening on {scheme}://{address}/ws"),
            ListenAddress::Unix { .. } => format!("listening on {address}"),
        };
        if at > 0 {
            return listening + "\n";
        }
        let url = match url_of(scheme, address) {
            Some(url) => format!(" --url {url}"),
            None => String::new(),
        };
        format!("{listening} - try: oyez sub main{url}; and in another terminal: oyez pub main hello{url}\n")
    });
    lines.collect()
}

/// The URL of an address, for clients on this machine; `None` for the default of `--url`.
fn url_of(scheme: &str, address: &ListenAddress) -> Option<String> {
    let ListenAddress::Tcp(address) = address else { return Some(address.to_string()) };
    // Clients cannot connect to an unspecified address.
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let reached = SocketAddr::new(host, address.port());
    let is_default = scheme == "ws" && Config::default().listen == [ListenAddress::Tcp(reached)];
    (!is_default).then(|| format!("{scheme}://{reached}"))
}

/// The files of the console; without the console only the client module.
fn served(no_console: bool) -> Vec<&'static Asset> {
    let console = if no_console { &[] } else { console::ASSETS };
    console.iter().chain([&console::CLIENT_MODULE]).collect()
}

fn advice(ListenError { address, error }: &ListenError, reuse_port: bool) -> &'static str {
    match (address, error.kind()) {
        (ListenAddress::Unix { .. }, io::ErrorKind::AddrInUse) => {
            " (another process listens on it; stop that process, or choose another path)"
        }
        (ListenAddress::Unix { .. }, io::ErrorKind::NotFound) => " (create its directory first)",
        (ListenAddress::Unix { .. }, io::ErrorKind::PermissionDenied) => {
            " (the server must be allowed to create files in its directory)"
        }
        (_, io::ErrorKind::AddrInUse) if reuse_port => {
            " (another server uses it without --reuse-port, or as another user: all processes on a port need the flag and \
             run as one user)"
        }
        (_, io::ErrorKind::AddrInUse) => {
            " (another server uses it, or all ports are in use; choose another with --listen, port 0 picks a free one; \
             several servers share a port if all have --reuse-port)"
        }
        (_, io::ErrorKind::AddrNotAvailable) => " (no interface of this machine has this address)",
        (ListenAddress::Tcp(_), io::ErrorKind::PermissionDenied) => " (ports below 1024 need a privilege)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct ServeLine {
        #[command(flatten)]
        serve: Serve,
    }

    #[test]
    fn defaults_of_flags_are_those_of_the_library() {
        let line = ServeLine::parse_from(["serve"]);
        let config = Config { assets: Vec::new(), ..line.serve.config() };
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn greeting_contains_commands_that_work() {
        let check = |scheme: &str, address: &str, url: &str| {
            let line = greeting(scheme, &[ListenAddress::Tcp(address.parse().unwrap())]);
            assert!(line.starts_with(&format!("listening on {scheme}://{address}/ws ")), "{line}");
            assert!(line.ends_with(&format!("oyez pub main hello{url}\n")), "{line}");
        };
        let unix = ListenAddress::Unix { path: "/run/oyez.sock".into(), mode: None };
        let lines = greeting("ws", &[unix.clone(), unix]);
        assert!(
            lines.ends_with(" hello --url unix:/run/oyez.sock\nlistening on unix:/run/oyez.sock\n"),
            "{lines}"
        );
        check("ws", "127.0.0.1:8080", "");
        check("ws", "0.0.0.0:8080", "");
        check("ws", "127.0.0.1:9", " --url ws://127.0.0.1:9");
        check("ws", "[::]:9", " --url ws://[::1]:9");
        check("wss", "127.0.0.1:8080", " --url wss://127.0.0.1:8080");
    }
}
