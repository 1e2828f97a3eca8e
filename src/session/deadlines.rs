//! The deadlines of a connection, and the actions when they expire.

use super::auth_state::AuthState;
use super::heartbeat::Heartbeat;
use super::{AfterFlush, Due, SessionContext, State};
use crate::close::Reason;
use crate::config::Limits;
use crate::net::outbox::Outbox;
use crate::time::LoopTime;

/// Extension of the deadline of a message whose end may be unread: longer than any turn.
const UNREAD_MESSAGE_MS: u32 = 1_000;

impl State {
    /// The time at which [`State::expire`] has to be called.
    pub fn deadline(&self) -> Option<LoopTime> {
        match self {
            State::ProxyHeader { deadline } => Some(*deadline),
            State::Rejected(rejected) => Some(rejected.deadline()),
            State::Head(head) => Some(head.deadline()),
            State::Body(body) => Some(body.deadline()),
            State::Open(_) | State::Streaming(_) => {
                let auth_deadline = self.auth().map(AuthState::deadline);
                self.heartbeat_deadline()
                    .into_iter()
                    .chain(auth_deadline)
                    .chain(self.message_deadline())
                    .reduce(LoopTime::min)
            }
            State::Closing(closing) => Some(closing.deadline),
            State::Responding(_) | State::Dead(_) => None,
        }
    }

    /// The time of the next ping, or the deadline of a pong.
    fn heartbeat_deadline(&self) -> Option<LoopTime> {
        match self {
            State::Open(open) => open.heartbeat.deadline(),
            State::Streaming(streaming) => streaming.heartbeat_deadline(),
            _ => None,
        }
    }

    /// The deadline of an incomplete message.
    fn message_deadline(&self) -> Option<LoopTime> {
        match self {
            State::Open(open) => open.message_deadline(),
            _ => None,
        }
    }

    /// Returns true if only a ping, or a comment in an event stream, is due.
    pub fn is_ping_due(&self, now: LoopTime) -> bool {
        let is_due = match self {
            State::Open(open) => {
                matches!(open.heartbeat, Heartbeat::Quiet { ping_at } if ping_at.is_due(now))
            }
            State::Streaming(streaming) => streaming.heartbeat_deadline().is_some_and(|at| at.is_due(now)),
            _ => false,
        };
        is_due && !self.auth().is_some_and(|auth| auth.deadline().is_due(now))
    }

    /// Handles an expired deadline. `is_unread`: the socket is still to be read in this turn.
    pub fn expire(&mut self, is_unread: bool, ctx: &mut SessionContext<'_>) -> Due {
        if let State::Open(open) = self
            && open.heartbeat == Heartbeat::Overdue
            && !is_unread
        {
            self.close(Reason::NoPong, ctx);
            return Due::Flush;
        }
        if !self.deadline().is_some_and(|deadline| deadline.is_due(ctx.now)) {
            return Due::Nothing;
        }
        // The end of the message may have arrived without being read yet. The extension is limited, since a client can
        // always have something unread.
        let extension_ms = if is_unread { UNREAD_MESSAGE_MS } else { 0 };
        if self.message_deadline().is_some_and(|deadline| deadline.after(extension_ms).is_due(ctx.now)) {
            self.close(Reason::MessageTimeout, ctx);
            return Due::Flush;
        }
        if let Some(reason) = self.auth_mut().and_then(|auth| auth.expire(ctx)) {
            self.close(reason, ctx);
            return Due::Flush;
        }
        let is_heartbeat_due = self.heartbeat_deadline().is_some_and(|at| at.is_due(ctx.now));
        match self {
            // The deadline was that of the authentication or the message.
            State::Open(_) | State::Streaming(_) if !is_heartbeat_due => Due::Nothing,
            // The request may have arrived: the turn's budget was used up, or the client has not read the previous
            // response. Whether it reads fast enough is checked by the outbox.
            State::ProxyHeader { .. } | State::Rejected(_) | State::Head(_) | State::Body(_)
                if is_unread || !ctx.outbox.is_empty() =>
            {
                Due::Nothing
            }
            State::ProxyHeader { .. } => Due::Close(Reason::HandshakeTimeout),
            State::Rejected(rejected) => {
                let reason = rejected.reason();
                self.close(reason, ctx);
                Due::Flush
            }
            // No request, so no 408: browsers open spare connections.
            State::Head(head) if head.is_silent() => Due::Close(head.timeout_reason()),
            State::Head(head) => {
                let reason = head.timeout_reason();
                self.close(reason, ctx);
                Due::Flush
            }
            State::Body(_) => {
                self.close(Reason::BodyTimeout, ctx);
                Due::Flush
            }
            State::Open(open) => open.check_liveness(ctx),
            State::Streaming(streaming) => streaming.send_comment(ctx),
            State::Closing(closing) => Due::Close(closing.reason),
            State::Responding(_) | State::Dead(_) => Due::Nothing,
        }
    }

    /// Updates deadlines after a flush.
    pub fn flushed(&mut self, written: usize, outbox: &Outbox, limits: &Limits, now: LoopTime) -> AfterFlush {
        match self {
            State::Closing(closing) => closing.flushed(written, outbox, limits, now),
            State::Head(head) if written > 0 && outbox.is_empty() => {
                head.restart_deadline(limits, now);
                AfterFlush::Nothing
            }
            State::Body(body) if written > 0 && outbox.is_empty() => {
                body.restart_deadline(limits, now);
                AfterFlush::Nothing
            }
            _ => AfterFlush::Nothing,
        }
    }
}
