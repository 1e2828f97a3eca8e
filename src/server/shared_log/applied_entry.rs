//! The entry of a shared log whose items are being applied.

use crate::ids::RunId;
use crate::time::LoopTime;

/// The entry of a shared log whose items are being applied.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct AppliedEntry {
    /// The process that appended it.
    pub(in crate::server) run: RunId,
    /// Its number among the entries of that process.
    pub(in crate::server) number: u64,
    /// The log's time of it, in ms.
    pub(in crate::server) time_ms: u64,
    /// The same time, by which idempotency keys and tickets expire.
    pub(in crate::server) log_time: LoopTime,
}
