//! The report of a run, as its JSON file contains it. Every name ends in its unit.

use serde::{Deserialize, Serialize};

use crate::client::trust::Certificates;

/// The report of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the load generator.
    pub oyez_version: String,
    /// Date, host, command line and versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<RunEnvironment>,
    /// True if a signal ended the run early. The figures are those measured until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// The configuration of the run.
    pub setup: Setup,
    /// Statistics of the clients' connections.
    pub connections: ConnectionsReport,
    /// Statistics of the short-lived connections, in a churn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn: Option<ConnectionsReport>,
    /// Messages published and delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficReport>,
    /// Number of connections open at the end, short-lived clients included.
    pub open_at_end: usize,
    /// Connections that ended unexpectedly.
    pub unexpected_closes: Vec<CauseCount>,
    /// Figures of a storm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormReport>,
    /// Connections of stalled clients that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
    /// Processor time of the server, if its process is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Usage>,
    /// Memory by number of connections.
    pub memory: MemoryReport,
    /// Figures of the load generator itself.
    pub generator: Generator,
    /// Points over the window.
    pub timeline: Vec<TimelinePoint>,
    /// Why the figures describe the load generator and not the server; empty for a valid run.
    pub invalid: Vec<String>,
}

/// The environment of a run, to assess a report or to repeat the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunEnvironment {
    /// When the run ended (RFC 3339, UTC).
    pub date: String,
    /// The name of the machine, and its processors.
    pub host: String,
    /// The command line, quoted for a shell.
    pub command_line: String,
    /// Versions of the load generator and of the kernel.
    pub versions: String,
}

/// The configuration of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Setup {
    pub scenario: String,
    pub address: String,
    /// Over TLS: whether certificates were verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Certificates>,
    pub connections: usize,
    pub channels: u32,
    pub ramp_seconds: f64,
    pub publishers: usize,
    pub payload_bytes: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<f64>,
    /// Flags of a server that bench started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_args: Option<String>,
    /// Compression was offered to the server.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deflate: bool,
}

/// Statistics of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ConnectionsReport {
    pub attempted: u64,
    pub opened: u64,
    /// Connections that negotiated compression.
    #[serde(default)]
    pub deflate_negotiated: u64,
    /// Number of connections that never opened.
    pub failed: u64,
    pub failures: Vec<CauseCount>,
    pub seconds: f64,
    pub handshakes_per_second: f64,
    /// Processor time of the server per handshake; only in the ramp, since short-lived clients connect during a
    /// broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_us_per_handshake: Option<f64>,
    pub handshake_us: Quantiles,
}

/// A count, by phase and cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CauseCount {
    pub phase: String,
    pub cause: String,
    pub count: u64,
}

/// Messages published and delivered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TrafficReport {
    /// The length of the window.
    pub seconds: f64,
    pub sent: u64,
    pub sent_per_second: f64,
    pub deliveries: u64,
    pub deliveries_per_second: f64,
    /// Bytes of a delivery on the connection, without TLS: the frames of a message.
    #[serde(default)]
    pub bytes_per_delivery: f64,
    /// Bytes of a delivery without compression.
    #[serde(default)]
    pub plain_bytes_per_delivery: f64,
    /// Messages whose decompressed content differs from the published content.
    #[serde(default)]
    pub corrupted: u64,
    /// Time from the intended time of sending to each client.
    pub latency_us: Quantiles,
    /// Time from the intended time of sending to the last client of each message.
    pub last_subscriber_us: Quantiles,
    /// In a slow run: the latency before clients stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_before_us: Option<Quantiles>,
    /// Pairs of quantile and latency in microseconds, at quantiles that approach one.
    pub distribution: Vec<(f64, f64)>,
    /// Messages that clients did not receive, over the whole run.
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    /// Messages received on a channel that they were not published on.
    pub misdelivered: u64,
    /// Messages in flight to clients whose connections ended.
    pub cut_off: u64,
    /// Messages of other publishers than this run's.
    pub foreign: u64,
    /// Messages that did not reach all clients within the timeout.
    pub abandoned: u64,
    /// Messages of an open loop that were due and never sent.
    pub unsent: u64,
}

/// A distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Quantiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    #[serde(default)]
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Figures of a storm.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StormReport {
    pub dropped: usize,
    pub returned: usize,
    pub seconds_to_95_percent: Option<f64>,
    pub seconds_to_100_percent: Option<f64>,
    pub attempts: u64,
    pub failures: Vec<CauseCount>,
    pub handshake_us: Quantiles,
}

/// Connections of stalled clients that ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Stalled {
    pub subscribers: usize,
    pub ended: Vec<CauseCount>,
}

/// Processor time of a process over the window.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Usage {
    /// Share of one processor; several threads can use more than one.
    pub cpu_share: f64,
    pub user_share: f64,
    pub system_share: f64,
    /// Time in which the process was runnable without a processor.
    pub waited_share: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_per_delivery: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ns_per_delivery: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_ns_per_delivery: Option<f64>,
}

/// Memory by number of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MemoryReport {
    pub points: Vec<MemoryPoint>,
    /// Slopes over the points: the bytes that one more connection costs.
    pub rss_bytes_per_connection: Option<f64>,
    pub pss_bytes_per_connection: Option<f64>,
    /// TCP buffers of the whole machine: of both ends, if the server runs on it.
    pub kernel_socket_bytes_per_connection: Option<f64>,
    /// Kernel slab of the whole machine: sockets, descriptors and epoll entries, of both ends.
    pub kernel_slab_bytes_per_connection: Option<f64>,
}

/// Memory at one number of connections.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MemoryPoint {
    pub connections: usize,
    pub rss_bytes: Option<u64>,
    pub pss_bytes: Option<u64>,
    /// Bytes of resident pages that no file backs.
    pub anonymous_bytes: Option<u64>,
    pub kernel_socket_bytes: u64,
    pub kernel_slab_bytes: u64,
}

/// Figures of the load generator itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Generator {
    pub usage: Usage,
    /// Time of a turn of its loop: the maximum time that an event waited.
    pub loop_lag_us: Quantiles,
    /// Delay of messages of an open loop that could have been sent in time.
    pub send_lateness_us: Quantiles,
}

/// One interval of the timeline.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TimelinePoint {
    pub seconds: f64,
    pub open: usize,
    pub deliveries: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

impl Report {
    /// Number of connections that ended unexpectedly.
    pub fn closes(&self) -> u64 {
        self.unexpected_closes.iter().map(|close| close.count).sum()
    }
}
