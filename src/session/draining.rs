//! A connection that is being closed.

use std::rc::Rc;

use super::State;
use super::walker::{Halt, Walker};
use super::{AfterFlush, Desk};
use crate::access::grant::Grant;
use crate::close::Reason;
use crate::config::Limits;
use crate::hub::outbox::Outbox;
use crate::moment::Moment;

/// What is known of the close.
#[derive(Debug)]
pub struct Draining {
    pub(super) reason: Reason,
    pub(super) closing: Closing,
    /// The end of patience; moved on when the peer takes bytes.
    pub(super) until: Moment,
    /// The end of patience with a peer that takes a byte at a time.
    until_at_most: Moment,
    /// The rights that it had by a token.
    pub(super) grant: Option<Rc<Grant>>,
}

/// How far a close has come.
#[derive(Debug)]
pub(super) enum Closing {
    /// Our close frame is queued or out; the peer's is to come.
    AwaitClose(Walker),
    /// All has been said; what is queued has yet to go out, and then our end of file.
    Flushing,
    /// The peer's end of file came first; what is queued has yet to go out.
    HalfClosed,
    /// Our end of file is out. To close the socket before the peer's end of file has come could make the
    /// kernel send a reset, and a reset can overtake the close frame.
    AwaitEndOfFile,
}

impl Draining {
    pub(super) fn begin(reason: Reason, closing: Closing, limits: &Limits, now: Moment) -> State {
        State::Draining(Box::new(Draining {
            reason,
            closing,
            until: now.after(limits.close_timeout_ms),
            until_at_most: now.after(limits.drain_ms),
            grant: None,
        }))
    }

    /// Nothing that comes now is wanted, but for the peer's close frame.
    pub(super) fn receive(&mut self, input: &[u8], desk: &Desk<'_>) {
        if let Closing::AwaitClose(walker) = &mut self.closing {
            match walker.walk(input, desk.limits.message_bytes_max) {
                (_, Halt::EndOfInput) => {}
                (_, Halt::CloseFrame | Halt::Protocol | Halt::TooBig) => self.closing = Closing::Flushing,
            }
        }
    }

    /// Takes the peer's end of file; true if that was all that was missing.
    pub(super) fn end_of_file(&mut self) -> bool {
        let is_over = matches!(self.closing, Closing::AwaitEndOfFile);
        if !is_over {
            self.closing = Closing::HalfClosed;
        }
        is_over
    }

    pub(super) fn flushed(
        &mut self,
        written: usize,
        outbox: &Outbox,
        limits: &Limits,
        now: Moment,
    ) -> AfterFlush {
        if written > 0 {
            self.until = now.after(limits.close_timeout_ms).or_earlier(self.until_at_most);
        }
        match self.closing {
            _ if !outbox.is_empty() => AfterFlush::Nothing,
            Closing::Flushing => {
                self.closing = Closing::AwaitEndOfFile;
                AfterFlush::ShutDownWrite
            }
            Closing::HalfClosed => AfterFlush::Doom(self.reason),
            Closing::AwaitClose(_) | Closing::AwaitEndOfFile => AfterFlush::Nothing,
        }
    }
}
