//! The last response of a connection that the server closes: an error.

use std::rc::Rc;

use bytes::Bytes;

use super::response::{HttpError, ResponseOptions};
use crate::close::Reason;
use crate::session::closing::{CloseStep, Closing};
use crate::session::rejection::Rejection;
use crate::session::{SessionContext, State};

/// Queues the error response to a client whose connection is closed.
pub(in crate::session) fn close_with_error(
    reason: Reason,
    options: &ResponseOptions,
    ctx: &mut SessionContext<'_>,
) -> State {
    let error = Rejection::of_close(reason, ctx.limits).http();
    let response = error.respond(options);
    send_and_close(reason, &error, response, ctx)
}

/// Queues an error response, the last of its connection.
pub(in crate::session) fn send_and_close(
    reason: Reason,
    error: &HttpError,
    response: Vec<u8>,
    ctx: &mut SessionContext<'_>,
) -> State {
    ctx.metrics.reject(error.code());
    ctx.outbox.queue(Rc::new(Bytes::from(response)));
    Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now)
}
