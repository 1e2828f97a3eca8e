//! The closing state: the last bytes are written, and the peer's close frame and EOF are awaited.
//!
//! Each step has a deadline, so a peer that neither reads nor closes cannot keep its slot.
//!
//! # Why the close flag is set later than the state
//!
//! A session enters `Closing` as soon as it is read, but its slot is marked as closing only in the deliver phase, when
//! `Intent::BeginClose` is applied. Intents are applied in the order in which they were queued, so messages published
//! earlier in the same turn are delivered to this subscriber first, and its close frame follows them. Nothing may
//! follow a close frame (RFC 6455 5.5.1): a slot whose flag was set with the state would lose those messages, and one
//! whose frame was queued with the state would send them after it.

use std::rc::Rc;

use super::State;
use super::frame_scanner::{FrameScanner, ScanStop};
use super::intent::Intent;
use super::{AfterFlush, SessionContext};
use crate::access::grant::Grant;
use crate::close::Reason;
use crate::config::Limits;
use crate::net::outbox::Outbox;
use crate::time::LoopTime;
use crate::wire;

/// A close in progress.
#[derive(Debug)]
pub struct Closing {
    pub(super) reason: Reason,
    pub(super) step: CloseStep,
    /// `--close-timeout-ms` after the last write.
    pub(super) deadline: LoopTime,
    /// `--drain-ms` after the begin of the close: a peer that reads a byte at a time cannot move the deadline past it.
    deadline_max: LoopTime,
    pub(super) client: ClosedClient,
}

/// The client of a connection that is closing or closed.
#[derive(Debug, Default)]
pub enum ClosedClient {
    /// A client without a grant.
    #[default]
    Anonymous,
    /// An authenticated client; the log names its user.
    Authenticated(Rc<Grant>),
    /// A client that closed its connection after its HTTP requests, or without one.
    Requests,
    /// A client over a connection limit. The server counts it until the slot is freed.
    Rejected,
}

impl From<Option<Rc<Grant>>> for ClosedClient {
    fn from(grant: Option<Rc<Grant>>) -> ClosedClient {
        grant.map_or(ClosedClient::Anonymous, ClosedClient::Authenticated)
    }
}

/// The step of a close.
#[derive(Debug)]
pub(super) enum CloseStep {
    /// The server's close frame is queued or sent; the peer's is awaited.
    AwaitClose(FrameScanner),
    /// The last bytes are queued. Once they are written, the write side is shut down.
    Flushing,
    /// The peer has sent EOF; queued bytes are written, then the socket is closed.
    HalfClosed,
    /// The write side is shut down; the peer's EOF is awaited. Closing a socket that has unread input makes the kernel
    /// send a reset, and a reset can overtake the close frame.
    AwaitEndOfFile,
}

impl Closing {
    pub(super) fn begin(reason: Reason, step: CloseStep, limits: &Limits, now: LoopTime) -> State {
        State::Closing(Box::new(Closing {
            reason,
            step,
            deadline: now.after(limits.close_timeout_ms),
            deadline_max: now.after(limits.drain_ms),
            client: ClosedClient::Anonymous,
        }))
    }

    /// Begins to close an open WebSocket from the server's side: the close frame is the last that is queued. `scanner`:
    /// the position in the peer's frames.
    pub(super) fn begin_close_handshake(
        reason: Reason,
        scanner: FrameScanner,
        ctx: &mut SessionContext<'_>,
    ) -> State {
        if reason == Reason::Slow {
            // A slow client would never reach a close frame at the end of its queue.
            ctx.outbox.drop_unstarted();
        }
        ctx.intents.push(Intent::BeginClose { close_frame: wire::close(reason) });
        let step =
            if reason.awaits_peers_close() { CloseStep::AwaitClose(scanner) } else { CloseStep::Flushing };
        Closing::begin(reason, step, ctx.limits, ctx.now)
    }

    /// Restarts the deadlines of a close whose frame had to wait.
    pub(super) fn restart(&mut self, limits: &Limits, now: LoopTime) {
        self.deadline = now.after(limits.close_timeout_ms);
        self.deadline_max = now.after(limits.drain_ms);
    }

    /// Discards input, except the peer's close frame.
    pub(super) fn receive(&mut self, input: &[u8], ctx: &SessionContext<'_>) {
        if let CloseStep::AwaitClose(scanner) = &mut self.step {
            match scanner.scan(input, ctx.limits.message_bytes_max) {
                (_, ScanStop::EndOfInput) => {}
                (_, ScanStop::CloseFrame | ScanStop::Protocol | ScanStop::TooBig) => {
                    self.step = CloseStep::Flushing
                }
            }
        }
    }

    /// Handles the peer's EOF. Returns true if the close is complete.
    pub(super) fn end_of_file(&mut self) -> bool {
        let is_complete = matches!(self.step, CloseStep::AwaitEndOfFile);
        if !is_complete {
            self.step = CloseStep::HalfClosed;
        }
        is_complete
    }

    pub(super) fn flushed(
        &mut self,
        written: usize,
        outbox: &Outbox,
        limits: &Limits,
        now: LoopTime,
    ) -> AfterFlush {
        if written > 0 {
            self.deadline = now.after(limits.close_timeout_ms).min(self.deadline_max);
        }
        match self.step {
            _ if !outbox.is_empty() => AfterFlush::Nothing,
            CloseStep::Flushing => {
                self.step = CloseStep::AwaitEndOfFile;
                AfterFlush::ShutDownWrite
            }
            CloseStep::HalfClosed => AfterFlush::Close(self.reason),
            CloseStep::AwaitClose(_) | CloseStep::AwaitEndOfFile => AfterFlush::Nothing,
        }
    }
}
