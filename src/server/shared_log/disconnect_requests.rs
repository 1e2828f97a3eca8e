//! Requests of HTTP clients of this node to disconnect a user on all nodes that share its log.

use std::collections::BTreeSet;

use crate::ids::{RunId, SlotId};
use crate::session::http::response::ResponseOptions;
use crate::time::LoopTime;

/// A request to disconnect a user that was appended to the log.
#[derive(Debug)]
pub(in crate::server) struct DisconnectRequest {
    pub(in crate::server) reference: u32,
    pub(in crate::server) slot: SlotId,
    pub(in crate::server) options: ResponseOptions,
    /// Number of connections that were closed so far.
    pub(in crate::server) closed: u64,
    /// Number of nodes that were alive when the request was made, this node included.
    pub(in crate::server) nodes: usize,
    /// The runs of the nodes that have not responded.
    pub(in crate::server) awaited: BTreeSet<RunId>,
    /// `None` until the request is read back.
    pub(in crate::server) deadline: Option<LoopTime>,
}

impl DisconnectRequest {
    /// Returns true if all nodes have responded, or the deadline has expired.
    fn is_complete(&self, now: LoopTime) -> bool {
        self.deadline.is_some_and(|deadline| self.awaited.is_empty() || deadline.is_due(now))
    }
}

/// The requests that have no response yet.
#[derive(Debug, Default)]
pub(in crate::server) struct DisconnectRequests {
    requests: Vec<DisconnectRequest>,
    last_reference: u32,
}

impl DisconnectRequests {
    /// Returns a new reference for a request of this node.
    pub(in crate::server) fn take_reference(&mut self) -> u32 {
        self.last_reference = self.last_reference.wrapping_add(1);
        self.last_reference
    }

    /// Adds a request.
    pub(in crate::server) fn add(&mut self, request: DisconnectRequest) {
        self.requests.push(request);
    }

    /// The request with this reference.
    pub(in crate::server) fn get_mut(&mut self, reference: u32) -> Option<&mut DisconnectRequest> {
        self.requests.iter_mut().find(|request| request.reference == reference)
    }

    /// Removes the request with this reference.
    pub(in crate::server) fn remove(&mut self, reference: u32) -> Option<DisconnectRequest> {
        self.take(|request| request.reference == reference)
    }

    /// Removes a request whose results are complete, or whose deadline has expired.
    pub(in crate::server) fn take_complete(&mut self, now: LoopTime) -> Option<DisconnectRequest> {
        self.take(|request| request.is_complete(now))
    }

    fn take(&mut self, is_it: impl Fn(&DisconnectRequest) -> bool) -> Option<DisconnectRequest> {
        let at = self.requests.iter().position(is_it)?;
        Some(self.requests.remove(at))
    }

    /// Stops waiting for the results of a node that has ended.
    pub(super) fn remove_node(&mut self, run: RunId) {
        for request in &mut self.requests {
            request.awaited.remove(&run);
        }
    }

    /// The earliest deadline.
    pub(super) fn deadline(&self) -> Option<LoopTime> {
        self.requests.iter().filter_map(|request| request.deadline).reduce(LoopTime::min)
    }

    /// Drops the requests of a connection that has ended.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.requests.retain(|request| request.slot != slot);
    }
}
