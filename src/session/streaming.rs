//! An event stream: server-sent events until one side closes the connection.

use std::rc::Rc;

use super::auth_state::AuthState;
use super::closing::{CloseStep, Closing};
use super::heartbeat::Heartbeat;
use super::intent::Intent;
use super::{Due, SessionContext, State};
use crate::access::authenticator::Rights;
use crate::close::Reason;
use crate::time::LoopTime;
use crate::wire::chunk::LAST_CHUNK;
use crate::wire::{self, Form};

/// A stream of server-sent events. The client sends nothing but EOF.
///
/// It lives in a box of 32 bytes: with the authentication state in the slot, every connection would be 8 bytes larger.
#[derive(Debug)]
pub struct Streaming {
    /// `None` for an anonymous client.
    auth: Option<Box<AuthState>>,
    heartbeat: Heartbeat,
    /// The framing of its events.
    form: Form,
}

impl Streaming {
    pub(super) fn new(rights: Rights, form: Form, ctx: &SessionContext<'_>) -> Streaming {
        let auth = AuthState::of(rights, ctx).map(Box::new);
        Streaming { auth, heartbeat: Heartbeat::received(ctx), form }
    }

    /// `None` for an anonymous client.
    pub(super) fn auth(&self) -> Option<&AuthState> {
        self.auth.as_deref()
    }

    pub(super) fn auth_mut(&mut self) -> Option<&mut AuthState> {
        self.auth.as_deref_mut()
    }

    /// The time of the next comment.
    pub(super) fn heartbeat_deadline(&self) -> Option<LoopTime> {
        self.heartbeat.deadline()
    }

    /// Sends a comment on an idle stream, so that intermediaries keep the connection open.
    pub(super) fn send_comment(&mut self, ctx: &mut SessionContext<'_>) -> Due {
        ctx.outbox.queue(Rc::new(self.form.piece(wire::append_comment)));
        self.heartbeat = Heartbeat::received(ctx);
        Due::Flush
    }

    /// Begins to close the connection.
    pub(super) fn close(&self, reason: Reason, ctx: &mut SessionContext<'_>) -> State {
        let mut last = Vec::new();
        if let Reason::Drain { retry_ms } = reason {
            last.extend_from_slice(&self.form.piece(|out| wire::append_retry(out, retry_ms)));
        }
        if reason == Reason::Slow {
            // A slow client does not read its queue and misses events: the last chunk is omitted, which marks the body
            // as incomplete.
            ctx.outbox.drop_unstarted();
        } else if self.form.is_chunked() {
            last.extend_from_slice(LAST_CHUNK);
        }
        ctx.intents.push(Intent::BeginClose { close_frame: Some(last.into()) });
        Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now)
    }
}
