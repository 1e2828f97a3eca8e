//! A request of an HTTP client of this node to disconnect a user on all nodes that share its log.

use std::collections::BTreeSet;

use crate::ids::SlotId;
use crate::session::http::response::ResponseOptions;
use crate::time::LoopTime;

/// A request to disconnect a user that was appended to the log.
#[derive(Debug)]
pub(super) struct DisconnectRequest {
    pub(super) reference: u32,
    pub(super) slot: SlotId,
    pub(super) options: ResponseOptions,
    /// Number of connections that were closed so far.
    pub(super) closed: u64,
    /// Number of nodes that were alive when the request was made, this node included.
    pub(super) nodes: usize,
    /// The runs of the nodes that have not responded.
    pub(super) awaited: BTreeSet<u32>,
    /// `None` until the request is read back.
    pub(super) deadline: Option<LoopTime>,
}

impl DisconnectRequest {
    /// Returns true if all nodes have responded, or the deadline has expired.
    pub(super) fn is_complete(&self, now: LoopTime) -> bool {
        self.deadline.is_some_and(|deadline| self.awaited.is_empty() || deadline.is_due(now))
    }
}
