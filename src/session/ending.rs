//! The end of a connection: how each state is closed, and the client that is kept until the end is logged.

use std::mem;

use super::auth_state::AuthState;
use super::closing::{CloseStep, ClosedClient, Closing};
use super::http::last_response::close_with_error;
use super::http::responding::Responding;
use super::http::response::ResponseOptions;
use super::{SessionContext, State};
use crate::close::Reason;
use crate::config::Limits;
use crate::time::LoopTime;

/// How a connection ended, for the log.
#[derive(Debug)]
pub struct Ended {
    /// The reason.
    pub reason: Reason,
    /// The client.
    pub client: ClosedClient,
}

impl State {
    /// Begins to close the connection. Does nothing if a close has begun.
    pub fn close(&mut self, reason: Reason, ctx: &mut SessionContext<'_>) {
        match self {
            // After a TLS failure the client can read no HTTP response.
            State::ProxyHeader { .. }
            | State::Rejected(_)
            | State::Head(_)
            | State::Body(_)
            | State::Responding(_)
                if matches!(reason, Reason::TlsFailed { .. }) =>
            {
                self.become_next(Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now));
            }
            // A message that waits for a shared log is acknowledged when that has it: it may be published.
            State::Responding(responding)
                if matches!(reason, Reason::Drain { .. }) && responding.awaits_log() =>
            {
                responding.close_after(Reason::Served);
            }
            // An error response cannot be sent within another response. A drain lets that be completed; any other
            // close omits its last chunk, so that the client detects that it is incomplete (RFC 9112 8).
            State::Responding(responding) if responding.has_begun() => {
                if !matches!(reason, Reason::Drain { .. }) {
                    ctx.outbox.drop_unstarted();
                    *self = Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now);
                }
            }
            State::ProxyHeader { .. } | State::Rejected(_) | State::Head(_) | State::Responding(_) => {
                let options = ResponseOptions::last(ctx.authenticator.http_date());
                self.become_next(close_with_error(reason, &options, ctx));
            }
            State::Body(body) => *self = close_with_error(reason, &body.last_options(), ctx),
            State::Open(open) => {
                let grant = open.auth().and_then(AuthState::grant).cloned();
                *self = Closing::begin_close_handshake(reason, open.take_scanner(), ctx)
                    .with_client(grant.into());
            }
            State::Streaming(streaming) => {
                let closing = streaming.close(reason, ctx);
                self.become_next(closing);
            }
            State::Closing(_) | State::Dead(_) => {}
        }
    }

    /// Restarts the deadlines of a close whose frame had to wait for the acknowledgements of the peer's messages.
    pub fn restart_close(&mut self, limits: &Limits, now: LoopTime) {
        if let State::Closing(closing) = self {
            closing.restart(limits, now);
        }
    }

    /// Replaces the reason of a close that the peer began after a message that is rejected: an echo of the peer's own
    /// code would confirm that message. Returns false if the connection is not closing.
    pub fn replace_close_reason(&mut self, reason: Reason) -> bool {
        match self {
            State::Closing(closing) => {
                closing.reason = reason;
                true
            }
            _ => false,
        }
    }

    /// Handles the peer's EOF, after all received bytes.
    pub fn end_of_file(&mut self) {
        match self {
            State::ProxyHeader { .. } => self.become_next(State::dead(Reason::EndOfFile)),
            State::Rejected(rejected) => {
                let reason = rejected.reason();
                self.become_next(State::dead(reason));
            }
            State::Head(head) if head.is_silent() && head.pending_responses() == 0 => {
                let (reason, client) = (Reason::EndOfFile, ClosedClient::Requests);
                *self = State::Dead(Box::new(Ended { reason, client }));
            }
            // A request that is not complete will never be. Pending responses are still sent.
            State::Head(head) => *self = Responding::half_closed(head.pending_responses()),
            State::Body(body) => *self = Responding::half_closed(body.pending_responses()),
            State::Responding(responding) => responding.end_of_file(),
            State::Open(_) | State::Streaming(_) => self.become_next(State::dead(Reason::EndOfFile)),
            State::Closing(closing) => {
                if closing.end_of_file() {
                    let reason = closing.reason;
                    self.become_next(State::dead(reason));
                }
            }
            State::Dead(_) => {}
        }
    }

    /// Handles a socket error.
    pub fn fail(&mut self) {
        match self {
            // The reason of a close that has begun is more informative than the socket error.
            State::Closing(closing) => {
                let reason = closing.reason;
                self.become_next(State::dead(reason));
            }
            State::Dead(_) => {}
            _ => self.become_next(State::dead(Reason::Reset)),
        }
    }

    /// The state of a closed connection.
    pub fn dead(reason: Reason) -> State {
        State::Dead(Box::new(Ended { reason, client: ClosedClient::Anonymous }))
    }

    /// Closes the connection, in any state.
    pub fn end(&mut self, reason: Reason) {
        self.become_next(State::dead(reason));
    }

    /// Changes the state. The client is kept until the end of the connection is logged.
    pub(super) fn become_next(&mut self, next: State) {
        let client = match self {
            State::Closing(closing) => mem::take(&mut closing.client),
            State::Dead(ended) => mem::take(&mut ended.client),
            State::Rejected(_) => ClosedClient::Rejected,
            _ => self.auth().and_then(AuthState::grant).cloned().into(),
        };
        *self = next.with_client(client);
    }

    fn with_client(mut self, client: ClosedClient) -> State {
        match &mut self {
            State::Closing(closing) => closing.client = client,
            State::Dead(ended) => ended.client = client,
            _ => {}
        }
        self
    }
}
