//! The last response of a connection that the server closes: an error.

use std::rc::Rc;

use bytes::Bytes;

use super::cors::check_origin;
use super::request::{self, FieldRoom, Request};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use super::routes::{self, Route};
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

/// Responds to the first request of a connection that is not served, and closes it. The request is parsed only to
/// detect an EventSource and the origin of its page. An empty head is an invalid one.
pub(in crate::session) fn reject_connection(
    head: &[u8],
    reason: Reason,
    ctx: &mut SessionContext<'_>,
) -> State {
    let error = Rejection::of_close(reason, ctx.limits).http();
    let later = request::of_known_version(head);
    let mut room = FieldRoom::new(ctx.limits);
    let response = match request::parse(later.as_deref().unwrap_or(head), &mut room, ctx.limits) {
        Ok(request) => rejection_response(&request, &error, ctx),
        Err(_) => error.respond(&ResponseOptions::last(ctx.authenticator.http_date())),
    };
    send_and_close(reason, &error, response, ctx)
}

fn rejection_response(request: &Request<'_>, error: &HttpError, ctx: &mut SessionContext<'_>) -> Vec<u8> {
    let mut options = request.response_options(ctx.authenticator.http_date());
    options.after = ConnectionHeader::Close;
    let route = routes::find(request.path, &ctx.http_config.assets).ok();
    let is_event_source = matches!(route, Some(Route::Events { .. })) && request.accepts_event_stream();
    // A page of another origin cannot distinguish a response that it may not read from a failure.
    if route.is_some_and(|route| route.is_cross_origin()) {
        match check_origin(request, ctx) {
            Ok(origin) => options.allowed_origin = origin,
            Err(_) => return error.respond(&options),
        }
    }
    if is_event_source && error.is_temporary() {
        options.ended_event_stream()
    } else {
        error.respond(&options)
    }
}

/// Queues an error response, the last of its connection.
fn send_and_close(
    reason: Reason,
    error: &HttpError,
    response: Vec<u8>,
    ctx: &mut SessionContext<'_>,
) -> State {
    ctx.metrics.reject(error.code());
    ctx.outbox.queue(Rc::new(Bytes::from(response)));
    Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now)
}
