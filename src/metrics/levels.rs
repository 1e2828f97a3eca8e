//! Gauges, which are read when the metrics are requested, in addition to the counters of [`Metrics`].
//!
//! [`Metrics`]: super::Metrics

use super::backplane::BackplaneStats;
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
