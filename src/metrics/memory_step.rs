//! The steps against memory pressure.

use super::label_values::label_values;

label_values! {
    /// A step that is taken when the process comes close to its memory budget, in the order in which they begin.
    pub enum MemoryStep {
        /// New request bodies, unfinished messages, pages and listings are rejected.
        RejectLarge = "reject_large",
        /// The connections that hold most are closed.
        CloseLargest = "close_largest",
        /// The oldest messages of the largest histories are evicted.
        EvictHistory = "evict_history",
        /// New connections are rejected.
        RejectConnections = "reject_connections",
    }
}
