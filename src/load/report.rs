//! A run's figures, as they stand in its JSON file. Every name ends in its unit.

use serde::{Deserialize, Serialize};

use crate::client::tls::Certificates;

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The version that measured.
    pub oyez_version: String,
    /// When, where and how it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<RunEnvironment>,
    /// True if a signal ended the run early. Then the figures are those measured until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// What was done.
    pub setup: Setup,
    /// What became of the clients' connections.
    pub connections: ConnectionsReport,
    /// What became of guests', in a churn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guests: Option<ConnectionsReport>,
    /// What was published and delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficReport>,
    /// ConnectionsReport that were still open at the end, guests included.
    pub open_at_end: usize,
    /// ConnectionsReport that ended and were not meant to.
    pub unexpected_closes: Vec<CauseCount>,
    /// How a storm went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<StormReport>,
    /// What became of clients that stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<Stalled>,
    /// The server's process, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Usage>,
    /// MemoryReport against connections.
    pub memory: MemoryReport,
    /// The load generator itself.
    pub generator: Generator,
    /// Over the window.
    pub timeline: Vec<TimelinePoint>,
    /// Why the figures are the load generator's and not the server's; empty for a valid run.
    pub invalid: Vec<String>,
}

/// The circumstances of a run, which a reader needs to judge a report or to repeat it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunEnvironment {
    /// When the run ended (RFC 3339, UTC).
    pub date: String,
    /// The name of the machine, and its processors.
    pub host: String,
    /// The command line, quoted for a shell.
    pub command_line: String,
    /// The load generator's, and the kernel's.
    pub versions: String,
}

/// What was done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Setup {
    pub scenario: String,
    pub address: String,
    /// Over TLS: whether certificates were checked.
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
    /// What the server was started with, if it is our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_args: Option<String>,
}

/// What became of connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ConnectionsReport {
    pub attempted: u64,
    pub opened: u64,
    /// All that never opened.
    pub refused: u64,
    pub refused_by: Vec<CauseCount>,
    pub seconds: f64,
    pub handshakes_per_second: f64,
    /// Of the server's processor time; of the clients' handshakes only, since guests come while there is
    /// a broadcast too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_us_per_handshake: Option<f64>,
    pub handshake_us: Quantiles,
}

/// How often something happened, and how far the connection had come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CauseCount {
    pub phase: String,
    pub cause: String,
    pub count: u64,
}

/// What was published and delivered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TrafficReport {
    /// The length of the window.
    pub seconds: f64,
    pub sent: u64,
    pub sent_per_second: f64,
    pub deliveries: u64,
    pub deliveries_per_second: f64,
    /// From the intended time of sending to each client.
    pub latency_us: Quantiles,
    /// From the intended time of sending to each message's last client.
    pub last_member_us: Quantiles,
    /// In a slow run: before clients stalled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_before_us: Option<Quantiles>,
    /// Latency at quantiles that get ever closer to one: pairs of quantile and microseconds.
    pub distribution: Vec<(f64, f64)>,
    /// Messages that clients should have got and have not; whole run.
    pub lost: u64,
    pub duplicated: u64,
    pub out_of_order: u64,
    /// Messages on a channel that they were not published on.
    pub misdelivered: u64,
    /// Messages in flight that clients whose connections ended did not get.
    pub cut_off: u64,
    /// Messages that were not sent by this run.
    pub foreign: u64,
    /// Messages that had not reached every client in time.
    pub abandoned: u64,
    /// Messages of an open loop that were due and not sent.
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

/// How a storm went.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StormReport {
    pub dropped: usize,
    pub returned: usize,
    pub seconds_to_95_percent: Option<f64>,
    pub seconds_to_100_percent: Option<f64>,
    pub attempts: u64,
    pub refused_by: Vec<CauseCount>,
    pub handshake_us: Quantiles,
}

/// What became of clients that stalled.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Stalled {
    pub members: usize,
    pub ended: Vec<CauseCount>,
}

/// What a process used of the processors over the window.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Usage {
    /// Of one processor; several threads can use more than one.
    pub cpu_share: f64,
    pub user_share: f64,
    pub system_share: f64,
    /// It could have run, and no processor was free.
    pub waited_share: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_per_delivery: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_ns_per_delivery: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_ns_per_delivery: Option<f64>,
}

/// MemoryReport against connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MemoryReport {
    pub points: Vec<MemoryPoint>,
    /// Slopes over the points: bytes that one connection more costs.
    pub rss_bytes_per_connection: Option<f64>,
    pub pss_bytes_per_connection: Option<f64>,
    /// TCP buffers of the whole machine: of both ends, if the server is on it.
    pub kernel_socket_bytes_per_connection: Option<f64>,
    /// KernelMemory tables of the whole machine: sockets, descriptors, epoll's entries, of both ends.
    pub kernel_slab_bytes_per_connection: Option<f64>,
}

/// MemoryReport at one number of connections.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MemoryPoint {
    pub connections: usize,
    pub rss_bytes: Option<u64>,
    pub pss_bytes: Option<u64>,
    pub kernel_socket_bytes: u64,
    pub kernel_slab_bytes: u64,
}

/// The load generator itself.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Generator {
    pub usage: Usage,
    /// How long a turn of its loop took: so long an event may have waited.
    pub loop_lag_us: Quantiles,
    /// How late it was with messages of an open loop that could have been sent.
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
    /// Unexpected closes, all together.
    pub fn closes(&self) -> u64 {
        self.unexpected_closes.iter().map(|close| close.count).sum()
    }
}
