//! Input of a connection that speaks HTTP/1.1: received bytes to requests, and to the next state.
//!
//! [`Head`] and [`Body`] gather a request, and [`dispatch`] processes it.

use super::body::Body;
use super::dispatch;
use super::exchange::{Exchange, Outcome};
use super::head::Head;
use crate::session::{SessionContext, State};

/// Handles bytes received between requests or in a head. Returns the number of consumed bytes, and the next state if it
/// changes.
pub(in crate::session) fn receive_head(
    head: &mut Head,
    input: &[u8],
    ctx: &mut SessionContext<'_>,
) -> (usize, Option<State>) {
    let earlier_bytes = head.received().len();
    let Some(end) = head.take(input, ctx.limits, ctx.now).transpose() else { return (input.len(), None) };
    let bytes = if earlier_bytes == 0 { input } else { head.received() };
    let pending_responses = head.pending_responses();
    let outcome = match end {
        Ok(end) => dispatch::serve(&bytes[..end], &input[end - earlier_bytes..], pending_responses, ctx),
        Err(error) => Exchange::new(&[], pending_responses, ctx).finish(Err(error)),
    };
    match outcome {
        Outcome::Incomplete => (input.len(), None),
        Outcome::Next { unread_bytes } => {
            *head = Head::next(Vec::new(), pending_responses + 1, ctx.limits, ctx.now);
            (input.len() - unread_bytes, None)
        }
        Outcome::Become(state) => (input.len(), Some(state)),
        Outcome::Upgraded { state, unread_bytes } => (input.len() - unread_bytes, Some(state)),
    }
}

/// Handles bytes received in a body. Returns the number of consumed bytes, and the next state if it changes.
pub(in crate::session) fn receive_body(
    body: &mut Body,
    input: &[u8],
    ctx: &mut SessionContext<'_>,
) -> (usize, Option<State>) {
    match body.receive(input, ctx) {
        Outcome::Incomplete => (input.len(), None),
        Outcome::Next { unread_bytes } => {
            let head = Head::next(Vec::new(), body.pending_responses() + 1, ctx.limits, ctx.now);
            (input.len() - unread_bytes, Some(State::Head(Box::new(head))))
        }
        Outcome::Become(state) => (input.len(), Some(state)),
        Outcome::Upgraded { state, unread_bytes } => (input.len() - unread_bytes, Some(state)),
    }
}
