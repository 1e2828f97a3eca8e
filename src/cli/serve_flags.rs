//! The flags of `oyez serve`, and the configuration that they make.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::auth_flags::AuthFlags;
use super::backplane_flags::BackplaneFlags;
use super::deflate_flags::DeflateFlags;
use super::failure::Failure;
use super::listen_flag::ListenPart;
use super::log_format::LogFormat;
use super::values::{
    bytes, bytes_or_0, count, count_or_0, fields, memory_bytes_or_0, millis, millis_or_0, network, origin,
    seconds, small_bytes, small_count, small_count_or_0,
};
use crate::access::origin::OriginPattern;
use crate::access::proxy::Network;
use crate::config::{
    self, Asset, Config, HistoryFile, HistoryLimits, IdempotencyLimits, Limits, OnSlow, TcpConfig, TlsFiles,
};
use crate::console;

/// The flags of `oyez serve`. Each can also be set by its environment variable; the flag takes precedence.
#[derive(Debug, Args)]
pub(super) struct ServeFlags {
    /// Addresses to listen on: repeat it, or separate them by commas. A port alone (9000) listens on 127.0.0.1, which
    /// other machines cannot reach; port 0 chooses a free port; unix:PATH is a Unix socket, unix:PATH,mode=0660 with
    /// these permissions.
    #[arg(
        long, env = "OYEZ_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080", value_delimiter = ',',
        value_parser = ListenPart::parse
    )]
    pub(super) listen: Vec<ListenPart>,

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
    pub(super) history_total_bytes_max: Option<usize>,

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

    /// File that keeps histories, ids and idempotency keys across restarts; created if it does not exist [default:
    /// none].
    #[arg(long, env = "OYEZ_HISTORY_FILE", value_name = "PATH")]
    history_file: Option<PathBuf>,

    /// Maximum age in milliseconds of messages not yet written to the history file; the most that a crash can lose.
    #[arg(long, env = "OYEZ_HISTORY_SYNC_MS", value_name = "MS", default_value = "1000", value_parser = millis)]
    history_sync_ms: u32,

    /// Maximum memory that the server holds, in bytes; close to it, the server rejects requests and closes connections
    /// in steps; 0: no limit [default: half of the control group's limit or of the machine's memory].
    #[arg(long, env = "OYEZ_MEMORY_MAX", value_name = "BYTES", value_parser = memory_bytes_or_0)]
    pub(super) memory_max: Option<u64>,

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
    pub(super) origins: Vec<OriginPattern>,

    /// Networks of proxies whose X-Forwarded-For or PROXY protocol header is trusted to name the client: repeat it, or
    /// separate them by commas (10.0.0.0/8, 127.0.0.1, or unix: for the Unix sockets) [default: none].
    #[arg(long = "trusted-proxy", env = "OYEZ_TRUSTED_PROXY", value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub(super) trusted_proxies: Vec<Network>,

    /// Trusted proxies begin each connection with a PROXY protocol header, version 2 [default: off].
    #[arg(long, env = "OYEZ_PROXY_PROTOCOL")]
    pub(super) proxy_protocol: bool,

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
    pub(super) backplane: BackplaneFlags,

    /// Share the port with other processes of the same user that have this flag; needs --backplane [default: off].
    #[arg(long, env = "OYEZ_REUSE_PORT")]
    reuse_port: bool,

    #[command(flatten)]
    pub(super) auth: AuthFlags,

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
    on_slow: OnSlowFlag,

    #[command(flatten)]
    pub(super) deflate: DeflateFlags,

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

    /// File with a token that /metrics requires (Authorization: Bearer TOKEN), at least 16 bytes; read again at SIGHUP
    /// [default: none].
    #[arg(long, env = "OYEZ_METRICS_TOKEN_FILE", value_name = "FILE")]
    pub(super) metrics_token_file: Option<PathBuf>,

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

    /// Maximum bytes read from all connections in one turn. A frame counts at least 64, an HTTP request 1,024 more, a
    /// decompressed byte 4.
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
    pub(super) check: bool,

    /// Process id of the parent to exit with; set by `oyez bench`.
    #[arg(long, value_name = "PID", hide = true)]
    pub(super) end_with_parent: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnSlowFlag {
    Close,
    Skip,
}

impl ServeFlags {
    /// Checks the limits, without a file and without the memory of the machine.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.config().limits.check().map_err(|why| Failure::Usage(why.to_string()))
    }

    /// The configuration, without the parts that depend on the machine and on other files.
    pub(super) fn config(&self) -> Config {
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
            assets: assets(self.no_console),
            tls: self.tls_config(),
        }
    }

    /// Rejects flags that contradict each other.
    pub(super) fn check_combinations(&self, config: &Config) -> Result<(), Failure> {
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
        } else if self.deflate.has_level_without_effect() {
            "--deflate-level has no effect with --deflate off: remove one of them"
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
                OnSlowFlag::Close => OnSlow::Close,
                OnSlowFlag::Skip => OnSlow::Skip,
            },
            deflate: self.deflate.settings(),
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

/// The files of the console; without the console only the client module.
fn assets(no_console: bool) -> Vec<&'static Asset> {
    let console = if no_console { &[] } else { console::ASSETS };
    console.iter().chain([&console::CLIENT_MODULE]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct ServeLine {
        #[command(flatten)]
        serve: ServeFlags,
    }

    #[test]
    fn defaults_of_flags_are_those_of_the_library() {
        let line = ServeLine::parse_from(["serve"]);
        let config = Config { assets: Vec::new(), ..line.serve.config() };
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }
}
