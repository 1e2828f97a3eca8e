//! Gauges, which are read when the metrics are requested, in addition to the counters of [`Metrics`].
//!
//! [`Metrics`]: super::Metrics

use crate::config::HistoryLimits;

/// The current levels of one server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Levels {
    /// Open connections.
    pub connections: usize,
    /// Channels with subscribers or history.
    pub channels: usize,
    /// Subscriptions of all channels.
    pub subscriptions: usize,
    /// Bytes queued in outboxes.
    pub pending_bytes: usize,
    /// Connections whose outbox is blocked.
    pub slow_connections: usize,
    /// Publishers that are paused for slow subscribers.
    pub publishers_paused: usize,
    /// Messages in histories.
    pub history_messages: usize,
    /// Bytes in histories.
    pub history_bytes: usize,
    /// Limits of histories.
    pub history_limits: HistoryLimits,
    /// Valid one-time tickets.
    pub tickets: usize,
    /// Removed channels whose names are remembered.
    pub removed_channels: usize,
    /// Bytes of these names.
    pub removed_channels_bytes: usize,
    /// Bytes of compressed messages that channels keep.
    pub deflate_context_bytes: usize,
    /// Bytes of large messages that are encoded for replays.
    pub replay_encoded_bytes: usize,
    /// Replays that wait for that memory.
    pub replays_waiting: usize,
    /// The memory budget; 0: no budget.
    pub memory_max_bytes: u64,
    /// Bytes in use, by the allocator's count.
    pub memory_used_bytes: u64,
    /// The link to a shared log, if there is one.
    pub backplane: Option<BackplaneStats>,
    /// Resource use of the process.
    pub process: Process,
}

/// Gauges and counters of the link to a log that several nodes share.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackplaneStats {
    /// True if the node has applied everything that the log contained when the link was opened.
    pub is_up: bool,
    /// Number of live nodes, this node included.
    pub nodes: usize,
    /// Items of the log that this node knows of and has not applied.
    pub lag_items: u64,
    /// How long the oldest own entry waits to be read back, in ms: 0 if none was sent.
    pub lag_ms: u32,
    /// Bytes of publishes that are not acknowledged.
    pub pending_bytes: usize,
    /// Publishes that are not acknowledged.
    pub pending: usize,
    /// Bytes of the log's entries.
    pub log_bytes: u64,
    /// Links that were opened.
    pub links_opened: u64,
    /// Links that were lost, and attempts that failed.
    pub links_lost: u64,
    /// Error replies, by kind: another epoch or missing scripts, another server, unavailable, out of memory, a newer
    /// version, and any other one.
    pub errors: [u64; 6],
    /// Replicas that had the last entries at the end of the last wait.
    pub replicas: u64,
    /// Number of waits that ended with too few replicas.
    pub waits_expired: u64,
    /// Counters of the entries that were read from the log.
    pub read: ReadCounters,
}

/// Counters of the entries that were read from the log since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadCounters {
    /// Entries that were applied: of this node, and of the others.
    pub entries: [u64; 2],
    /// Items of these entries.
    pub items: [u64; 2],
    /// Entries that were skipped as duplicates.
    pub duplicates: u64,
    /// Discontinuities, by the reason: trimmed, jump, marker, report, roll call.
    pub discontinuities: [u64; 5],
    /// Epochs that began, by the reason: new, damaged, moved, and any other one.
    pub epochs: [u64; 4],
}

/// Resource use of the process, as far as the system reports it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Processor time, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Resident memory, in bytes.
    pub resident_bytes: Option<u64>,
    /// Address space, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Maximum file descriptors.
    pub max_fds: Option<u64>,
    /// Start time, in seconds since 1970.
    pub start_time_seconds: Option<f64>,
}
