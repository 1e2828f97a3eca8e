//! The state of a connection that waits for a request, or has received a part of its head.

use super::request::{self, HeadEnd};
use super::response::HttpError;
use crate::close::Reason;
use crate::config::Limits;
use crate::session::buffer;
use crate::time::LoopTime;

/// Waiting for a request, or in its head.
#[derive(Debug)]
pub struct Head {
    received: Vec<u8>,
    progress: HeadProgress,
    deadline: LoopTime,
    /// Responses to earlier requests that are not queued yet.
    pending_responses: u32,
}

/// The progress of a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadProgress {
    /// Nothing has arrived on a new connection.
    Fresh,
    /// A part of a head has arrived, and has no end.
    Partial,
    /// Nothing has arrived since the last response.
    Idle,
    /// Input that arrived after a request has not been parsed.
    Unread,
}

impl Head {
    /// A new connection, whose first request head has to arrive before the deadline.
    pub(in crate::session) fn fresh(deadline: LoopTime) -> Head {
        Head { received: Vec::new(), progress: HeadProgress::Fresh, deadline, pending_responses: 0 }
    }

    /// The next request of a connection. `unread`: input that arrived after the last one.
    pub(in crate::session) fn next(
        unread: Vec<u8>,
        pending_responses: u32,
        limits: &Limits,
        now: LoopTime,
    ) -> Head {
        let progress = if unread.is_empty() { HeadProgress::Idle } else { HeadProgress::Unread };
        let deadline = now.after(limits.keep_alive_ms);
        Head { received: unread, progress, deadline, pending_responses }
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.deadline
    }

    pub(in crate::session) fn pending_responses(&self) -> u32 {
        self.pending_responses
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    /// Returns true if no part of a request has arrived.
    pub(in crate::session) fn is_silent(&self) -> bool {
        matches!(self.progress, HeadProgress::Fresh | HeadProgress::Idle)
    }

    /// Returns true if the connection waits for another request after a response.
    pub(in crate::session) fn is_idle(&self) -> bool {
        self.progress == HeadProgress::Idle
    }

    /// The reason to close the connection when the deadline expires.
    pub(in crate::session) fn timeout_reason(&self) -> Reason {
        if self.is_idle() { Reason::Idle } else { Reason::HandshakeTimeout }
    }

    /// Returns the input after the last request that has not been parsed.
    pub(in crate::session) fn take_unread(&mut self) -> Vec<u8> {
        if self.progress != HeadProgress::Unread {
            return Vec::new();
        }
        self.progress = HeadProgress::Idle;
        std::mem::take(&mut self.received)
    }

    /// The bytes of the head that arrived in earlier reads.
    pub(in crate::session) fn received(&self) -> &[u8] {
        &self.received
    }

    /// Takes received bytes. Returns the length of the head once it is complete. A head that arrives in several reads
    /// is kept in [`Head::received`]; nearly always it arrives complete, and is parsed without a copy.
    pub(in crate::session) fn take(
        &mut self,
        input: &[u8],
        limits: &Limits,
        now: LoopTime,
    ) -> Result<Option<usize>, HttpError> {
        let earlier_bytes = self.received.len();
        let bytes = if earlier_bytes == 0 {
            input
        } else {
            buffer::append(&mut self.received, input, limits.head_bytes_max);
            &self.received[..]
        };
        match request::find_head_end(bytes, earlier_bytes) {
            HeadEnd::At(end) if end <= limits.head_bytes_max => Ok(Some(end)),
            HeadEnd::BareLf => Err(HttpError::bad("a line ends in LF without CR")),
            HeadEnd::Tls => Err(HttpError::bad("this port does not use TLS: use http:// or ws://")),
            HeadEnd::Missing if bytes.len() < limits.head_bytes_max => {
                if earlier_bytes == 0 {
                    buffer::append(&mut self.received, input, limits.head_bytes_max);
                }
                if self.progress == HeadProgress::Idle {
                    self.deadline = now.after(limits.handshake_timeout_ms);
                }
                self.progress = HeadProgress::Partial;
                Ok(None)
            }
            HeadEnd::At(_) | HeadEnd::Missing => Err(HttpError::head_too_large(limits)),
        }
    }

    /// A response was queued.
    pub(in crate::session) fn responded(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// The client has read its responses. It was not read before that, so its time begins now.
    pub(in crate::session) fn restart_deadline(&mut self, limits: &Limits, now: LoopTime) {
        self.deadline = now.after(match self.progress {
            HeadProgress::Idle | HeadProgress::Unread => limits.keep_alive_ms,
            HeadProgress::Fresh | HeadProgress::Partial => limits.handshake_timeout_ms,
        });
    }
}
