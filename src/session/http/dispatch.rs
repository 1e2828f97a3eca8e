//! Request dispatch: host, route, origin, method, query and authentication are checked, then the request is processed.
//!
//! The checks are ordered by their cost and by the information that an error reveals; tokens are verified last.

use super::cors::{check_host, check_origin, preflight};
use super::exchange::{Exchange, Outcome};
use super::handlers;
use super::publish::begin_publish;
use super::request::{self, FieldRoom, Request};
use super::responding::{AfterResponses, Responding};
use super::response::HttpError;
use super::routes::{self, Parameters, Route};
use crate::access::authenticator::Rights;
use crate::session::SessionContext;
use crate::session::auth_state::{self, CredentialSources};
use crate::session::context::LogMode;
use crate::session::intent::{Intent, Query, RequestLog};
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};

/// Cost of one HTTP request in a turn's budget, in addition to its bytes: parsing, routing and the response take about
/// as long as 16 small frames.
const REQUEST_COST_BYTES: usize = 1024;

/// Processes a request whose head is complete; `unread` is the input after it.
pub(super) fn serve(
    head: &[u8],
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.cost += REQUEST_COST_BYTES;
    let limits = ctx.limits;
    let later = request::of_known_version(head);
    let head = later.as_deref().unwrap_or(head);
    let mut room = FieldRoom::new(limits);
    let mut exchange = Exchange::new(unread, pending_responses, ctx);
    exchange.head = head;
    let result = match request::parse(head, &mut room, limits) {
        // Frames may cause replies immediately, so the pending responses have to be sent first.
        Ok(request) if pending_responses > 0 && request.fields.lists("upgrade", "websocket") => {
            let again = [head, unread].concat();
            Ok(Outcome::Become(Responding::begin(again, pending_responses, AfterResponses::Next, None)))
        }
        Ok(request) => dispatch(&request, &mut exchange),
        Err(error) => Err(error),
    };
    exchange.finish(result)
}

fn dispatch(request: &Request<'_>, exchange: &mut Exchange<'_, '_>) -> Result<Outcome, HttpError> {
    if exchange.ctx.logs_requests {
        exchange.ctx.intents.push(Intent::LogRequest(Box::new(RequestLog::new(request))));
    }
    check_host(request, exchange.ctx)?;
    exchange.frame_for(request);
    let route = match routes::find(request.path, &exchange.ctx.http_config.assets) {
        Ok(route) => route,
        Err(error) => return dispatch_without_route(error, request, exchange),
    };
    let is_web_socket = matches!(route, Route::WebSocket { .. });
    let takes_body = matches!(route, Route::Publish { .. }) && request.method == "POST";
    let has_unexpected_body = request.has_body() && !takes_body;
    if is_web_socket || has_unexpected_body {
        // A client whose upgrade fails sends no other request, and an unexpected body is not read.
        exchange.close_after();
    }
    exchange.closes_on_error = takes_body;
    if route.is_cross_origin() {
        let origin = check_origin(request, exchange.ctx);
        exchange.closes_on_error |= origin.is_err();
        exchange.options.allowed_origin = origin?;
    }
    if request.method == "OPTIONS" && !request.has_body() {
        return Ok(preflight(request, route.methods(), exchange));
    }
    if !route.allows(request.method) {
        let methods = route.methods();
        let message = format!("the methods of this path are {methods}");
        return Err(HttpError::new(405, "method_not_allowed", message).with("Allow", methods));
    }
    if has_unexpected_body {
        return Err(HttpError::bad("this request must not have a body"));
    }
    exchange.is_event_source = matches!(route, Route::Events { .. }) && request.accepts_event_stream();
    check_log_mode(&route, exchange)?;
    let parameters = Parameters::parse(request.query)?;
    if let Route::Events { channel } = &route
        && let Some(wait) = exchange.redeem_in_log(request, CredentialSources::Ticket(channel))?
    {
        return Ok(wait);
    }
    let rights = authorize(request, &route, exchange.ctx)?;
    handle(route, rights, parameters, request, exchange)
}

/// A server that has not read a shared log up to its end has incomplete histories: no client may resume from them.
fn check_log_mode(route: &Route, exchange: &Exchange<'_, '_>) -> Result<(), HttpError> {
    let is_served = matches!(route, Route::Health | Route::Ready | Route::Metrics);
    if exchange.ctx.log_mode == LogMode::Starting && !is_served {
        return Err(Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS }.http());
    }
    Ok(())
}

/// Processes a request to an unknown path.
fn dispatch_without_route(
    error: HttpError,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    let (is_options, has_body) = (request.method == "OPTIONS", request.has_body());
    // `OPTIONS *` applies to the whole server; health checks of load balancers send it (HAProxy: `option httpchk`).
    if is_options && matches!(request.path, "*" | "/") && !has_body {
        return Ok(preflight(request, "GET, HEAD, POST, DELETE, OPTIONS", exchange));
    }
    if has_body || request.fields.lists("connection", "upgrade") {
        exchange.close_after();
    }
    // The request has no effect, so every origin may send it; an allowed origin may read the error.
    exchange.options.allowed_origin = check_origin(request, exchange.ctx).ok().flatten();
    if is_options && exchange.options.allowed_origin.is_some() {
        // A browser sends the request, and shows its 404, only after a successful preflight.
        return Ok(preflight(request, "GET, POST, OPTIONS", exchange));
    }
    Err(error)
}

/// Authenticates the client and checks its rights. Public routes need no credentials.
fn authorize(
    request: &Request<'_>,
    route: &Route,
    ctx: &mut SessionContext<'_>,
) -> Result<Rights, HttpError> {
    let sources = match route {
        Route::Health | Route::Ready | Route::Asset(_) => return Ok(None),
        Route::Metrics => return auth_state::check_metrics_token(request, ctx).map(|()| None),
        // Authenticated after its upgrade.
        Route::WebSocket { .. } => return Ok(None),
        Route::Events { channel } => CredentialSources::Ticket(channel),
        _ => CredentialSources::Plain,
    };
    let rights = auth_state::admit(request, sources, ctx).map_err(auth_state::unauthorized)?;
    let grant = ctx.authenticator.grant(&rights);
    let is_allowed = match route {
        Route::Events { channel } | Route::Channel { channel } | Route::History { channel } => {
            grant.may_subscribe(channel)
        }
        Route::Publish { channel } => grant.may_publish(channel),
        Route::Connections => grant.admin,
        // A ticket replaces a token, so a client without one gets none.
        Route::Tickets => rights.is_some() || ctx.authenticator.verifier.is_none(),
        Route::Channels | Route::Nodes => !ctx.authenticator.requires_token() || rights.is_some(),
        _ => true,
    };
    if is_allowed { Ok(rights) } else { Err(auth_state::forbidden(&rights, ctx.authenticator)) }
}

fn handle(
    route: Route,
    rights: Rights,
    parameters: Parameters,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    match route {
        Route::WebSocket { channel } => handlers::open_web_socket(channel, &parameters, request, exchange),
        Route::Events { channel } => handlers::stream_events(channel, rights, &parameters, request, exchange),
        Route::Publish { channel } => begin_publish(channel, rights, request, exchange),
        Route::Channels => Ok(handlers::list_channels(rights, parameters, exchange)),
        Route::Channel { channel } => Ok(exchange.query(Query::Channel { channel })),
        Route::History { channel } => Ok(handlers::read_history(channel, &parameters, exchange)),
        Route::Tickets => Ok(handlers::issue_ticket(rights, request, exchange)),
        Route::Connections => handlers::disconnect_user(parameters, exchange),
        Route::Nodes => Ok(exchange.query(Query::Nodes)),
        Route::Ready => Ok(exchange.query(Query::Ready)),
        Route::Metrics => Ok(exchange.query(Query::Metrics)),
        Route::Health => Ok(handlers::respond_healthy(exchange)),
        Route::Asset(asset) => Ok(handlers::send_asset(asset, request, exchange)),
    }
}
