//! A connection that is being closed.

use std::rc::Rc;

use super::State;
use super::frame_scanner::{FrameScanner, ScanStop};
use super::{AfterFlush, SessionContext};
use crate::access::grant::Grant;
use crate::close::Reason;
use crate::config::Limits;
use crate::net::outbox::Outbox;
use crate::time::LoopTime;

/// What is known of the close.
#[derive(Debug)]
pub struct Closing {
    pub(super) reason: Reason,
    pub(super) closing: CloseStep,
    /// The end of patience; moved on when the peer takes bytes.
    pub(super) until: LoopTime,
    /// The end of patience with a peer that takes a byte at a time.
    until_at_most: LoopTime,
    /// The rights that it had by a token.
    pub(super) grant: Option<Rc<Grant>>,
}

/// How far a close has come.
#[derive(Debug)]
pub(super) enum CloseStep {
    /// Our close frame is queued or out; the peer's is to come.
    AwaitClose(FrameScanner),
    /// All has been said; what is queued has yet to go out, and then our end of file.
    Flushing,
    /// The peer's end of file came first; what is queued has yet to go out.
    HalfClosed,
    /// Our end of file is out. To close the socket before the peer's end of file has come could make the
    /// kernel send a reset, and a reset can overtake the close frame.
    AwaitEndOfFile,
}

impl Closing {
    pub(super) fn begin(reason: Reason, closing: CloseStep, limits: &Limits, now: LoopTime) -> State {
        State::Closing(Box::new(Closing {
            reason,
            closing,
            until: now.after(limits.close_timeout_ms),
            until_at_most: now.after(limits.drain_ms),
            grant: None,
        }))
    }

    /// Nothing that comes now is wanted, but for the peer's close frame.
    pub(super) fn receive(&mut self, input: &[u8], ctx: &SessionContext<'_>) {
        if let CloseStep::AwaitClose(scanner) = &mut self.closing {
            match scanner.scan(input, ctx.limits.message_bytes_max) {
                (_, ScanStop::EndOfInput) => {}
                (_, ScanStop::CloseFrame | ScanStop::Protocol | ScanStop::TooBig) => {
                    self.closing = CloseStep::Flushing
                }
            }
        }
    }

    /// Takes the peer's end of file; true if that was all that was missing.
    pub(super) fn end_of_file(&mut self) -> bool {
        let is_over = matches!(self.closing, CloseStep::AwaitEndOfFile);
        if !is_over {
            self.closing = CloseStep::HalfClosed;
        }
        is_over
    }

    pub(super) fn flushed(
        &mut self,
        written: usize,
        outbox: &Outbox,
        limits: &Limits,
        now: LoopTime,
    ) -> AfterFlush {
        if written > 0 {
            self.until = now.after(limits.close_timeout_ms).min(self.until_at_most);
        }
        match self.closing {
            _ if !outbox.is_empty() => AfterFlush::Nothing,
            CloseStep::Flushing => {
                self.closing = CloseStep::AwaitEndOfFile;
                AfterFlush::ShutDownWrite
            }
            CloseStep::HalfClosed => AfterFlush::Close(self.reason),
            CloseStep::AwaitClose(_) | CloseStep::AwaitEndOfFile => AfterFlush::Nothing,
        }
    }
}
