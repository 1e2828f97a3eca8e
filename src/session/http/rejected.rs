//! The state of a rejected connection: over a connection limit, it gets an error response and is closed.
//!
//! The response is sent when a request head has arrived, or its deadline has expired: an EventSource never reconnects
//! after a status other than 200, so the form of the response depends on the request.

use super::last_response::reject_connection;
use super::request::{self, HeadEnd};
use crate::close::Reason;
use crate::session::{SessionContext, State, buffer};
use crate::time::LoopTime;

/// A connection that waits for its error response.
#[derive(Debug)]
pub struct Rejected {
    reason: Reason,
    /// The incomplete request head.
    received: Vec<u8>,
    deadline: LoopTime,
}

impl Rejected {
    pub(in crate::session) fn new(reason: Reason, deadline: LoopTime) -> Rejected {
        Rejected { reason, received: Vec::new(), deadline }
    }

    pub(in crate::session) fn reason(&self) -> Reason {
        self.reason
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.deadline
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    /// Handles received bytes. Returns the next state once the request head is complete or invalid.
    pub(in crate::session) fn receive(
        &mut self,
        input: &[u8],
        ctx: &mut SessionContext<'_>,
    ) -> Option<State> {
        let (before, bytes_max) = (self.received.len(), ctx.limits.head_bytes_max);
        buffer::append(&mut self.received, input, bytes_max);
        let head = match request::find_head_end(&self.received, before) {
            HeadEnd::At(end) if end <= bytes_max => &self.received[..end],
            HeadEnd::Missing if self.received.len() < bytes_max => return None,
            HeadEnd::At(_) | HeadEnd::Missing | HeadEnd::BareLf | HeadEnd::Tls => &[],
        };
        Some(reject_connection(head, self.reason, ctx))
    }
}
