//! Request dispatch: host, route, origin, method, query and authentication are checked, then the request is processed.
//!
//! The checks are ordered by their cost and by the information that an error reveals; tokens are verified last.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;

use super::chunked::ChunkDecoder;
use super::connection::{
    self, Body, Framing, Outcome, PublishRequest, await_response, query_server, reject, reject_and_close,
    respond, submit_publish,
};
use super::cors::{forbidden_origin, judge, preflight, share, warn_of_host, warn_of_origin};
use super::last_response::send_and_close;
use super::request::{self, BodyLength, FieldRoom, Request};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use super::routes::{self, LIMIT_MAX, Parameters, Route};
use super::upgrade::{self, Protocol, Upgrade};
use crate::access::authenticator::Rights;
use crate::access::origin::{self, OriginVerdict};
use crate::close::Reason;
use crate::config::Asset;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, Peer, Since};
use crate::session::auth_state::{self, AuthState, CredentialSources};
use crate::session::closing::Closing;
use crate::session::context::SMALL_BYTES;
use crate::session::frame_scanner::FrameScanner;
use crate::session::intent::{Intent, Query};
use crate::session::open::Open;
use crate::session::rejection::Rejection;
use crate::session::streaming::Streaming;
use crate::session::{SessionContext, State};
use crate::wire::chunk::LAST_CHUNK;
use crate::wire::command::KEY_BYTES_MAX;
use crate::wire::{self, Form, Kind};

/// Cost of one HTTP request in a turn's budget, in addition to its bytes: parsing, routing and the response take about
/// as long as 16 small frames.
const REQUEST_COST_BYTES: usize = 1024;

/// Processes a request whose head is complete; `unread` is the input after it.
pub(in crate::session) fn serve(
    head: &[u8],
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.cost += REQUEST_COST_BYTES;
    let later = request::of_known_version(head);
    let head = later.as_deref().unwrap_or(head);
    let mut room = FieldRoom::new(ctx.limits);
    match request::parse(head, &mut room, ctx.limits) {
        // Frames may cause replies immediately, so the pending responses have to be sent first.
        Ok(request) if pending_responses > 0 && request.fields.lists("upgrade", "websocket") => {
            connection::wait([head, unread].concat(), pending_responses)
        }
        Ok(request) => dispatch(&request, unread, pending_responses, ctx),
        Err(error) => reject_and_close(&error, pending_responses, ctx),
    }
}

fn dispatch(
    request: &Request<'_>,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let mut options = request.response_options();
    options.date = ctx.authenticator.http_date();
    // Browsers always send a Host.
    if ctx.authenticator.loopback_only
        && let Ok(Some(host)) = request.host()
        && !origin::is_loopback_host(host)
    {
        let message = "this server accepts only requests to localhost or its address; configure --anonymous or a key to \
                       accept other host names";
        warn_of_host(request, ctx);
        return reject_and_close(&HttpError::new(421, "misdirected", message), pending_responses, ctx);
    }
    let has_body = !matches!(request.body, BodyLength::Absent | BodyLength::Bytes(0));
    let route = match routes::find(request.path, &ctx.http_config.assets) {
        Ok(route) => route,
        // `OPTIONS *` applies to the whole server; health checks of load balancers send it (HAProxy: `option httpchk`).
        Err(_) if request.method == "OPTIONS" && matches!(request.path, "*" | "/") && !has_body => {
            return preflight(
                request,
                "GET, HEAD, POST, DELETE, OPTIONS",
                options,
                unread,
                pending_responses,
                ctx,
            );
        }
        Err(error) => {
            if has_body || request.fields.lists("connection", "upgrade") {
                options.after = ConnectionHeader::Close;
            }
            // The request has no effect, so every origin may send it; an allowed origin may read the error.
            if share(request, &mut options, ctx).is_ok()
                && options.share.is_some()
                && request.method == "OPTIONS"
            {
                // A browser sends the request, and shows its 404, only after a successful preflight.
                return preflight(request, "GET, POST, OPTIONS", options, unread, pending_responses, ctx);
            }
            return reject(&error, options, unread, pending_responses, ctx);
        }
    };
    let is_web_socket = matches!(route, Route::WebSocket { .. });
    let takes_body = matches!(route, Route::Publish { .. }) && request.method == "POST";
    if is_web_socket || (has_body && !takes_body) {
        // A client whose upgrade fails sends no other request, and an unexpected body is not read.
        options.after = ConnectionHeader::Close;
    }
    if route.is_shared()
        && let Err(error) = share(request, &mut options, ctx)
    {
        options.after = ConnectionHeader::Close;
        return reject(&error, options, unread, pending_responses, ctx);
    }
    if request.method == "OPTIONS" && !has_body {
        return preflight(request, route.methods(), options, unread, pending_responses, ctx);
    }
    if !route.methods().split(", ").any(|method| method == request.method) {
        let methods = route.methods();
        let message = format!("the methods of this path are {methods}");
        let error = HttpError::new(405, "method_not_allowed", message).with("Allow", methods);
        return reject(&error, options, unread, pending_responses, ctx);
    }
    if has_body && !takes_body {
        let error = HttpError::bad("this request must not have a body");
        return reject(&error, options, unread, pending_responses, ctx);
    }
    let query = match Parameters::parse(request.query) {
        Ok(query) => query,
        Err(error) => {
            if takes_body {
                options.after = ConnectionHeader::Close;
            }
            return reject(&error, options, unread, pending_responses, ctx);
        }
    };
    let rights = match authorize(request, &route, ctx) {
        Ok(rights) => rights,
        Err(error) => {
            // Verifying a token is expensive. A client that sent an invalid one has to reconnect, which is rate limited.
            if takes_body || error.status() == 401 {
                options.after = ConnectionHeader::Close;
            }
            if matches!(route, Route::Events { .. }) && is_retryable_stream(request, &error) {
                return reject_stream(request, &error, options, unread, pending_responses, ctx);
            }
            return reject(&error, options, unread, pending_responses, ctx);
        }
    };
    match route {
        Route::WebSocket { channel } => open_web_socket(request, channel, &query, pending_responses, ctx),
        Route::Events { channel } => {
            stream_events(request, channel, rights, &query, options, unread, pending_responses, ctx)
        }
        Route::Publish { channel } => {
            begin_publish(request, channel, rights, options, unread, pending_responses, ctx)
        }
        Route::Channels => {
            let Parameters { prefix, after, limit, .. } = query;
            let listing = Query::Channels {
                prefix: prefix.unwrap_or_default(),
                after,
                limit: limit.unwrap_or(LIMIT_MAX),
                rights,
            };
            query_server(listing, options, unread, pending_responses, ctx)
        }
        Route::Channel { channel } => {
            query_server(Query::Channel { channel }, options, unread, pending_responses, ctx)
        }
        Route::History { channel } => {
            let since = query.since.unwrap_or(Since::Earliest);
            let limit = query.limit.unwrap_or(LIMIT_MAX);
            query_server(Query::History { channel, since, limit }, options, unread, pending_responses, ctx)
        }
        Route::Tickets => {
            let grant = rights.unwrap_or_else(|| ctx.authenticator.anonymous.clone());
            let client = client_of(request, ctx);
            query_server(Query::Ticket { grant, client }, options, unread, pending_responses, ctx)
        }
        Route::Connections => {
            let Some(sub) = query.sub else {
                let error = HttpError::new(400, "bad_query", "the parameter sub is missing");
                return reject(&error, options, unread, pending_responses, ctx);
            };
            let after = options.after;
            ctx.intents.push(Intent::DisconnectUser { sub, options });
            await_response(after, Reason::Served, unread, pending_responses)
        }
        Route::Ready => query_server(Query::Ready, options, unread, pending_responses, ctx),
        Route::Metrics => query_server(Query::Metrics, options, unread, pending_responses, ctx),
        Route::Health => {
            let response = options.respond(200, "text/plain", &[("Cache-Control", "no-store")], b"ok\n");
            respond(response, &options, unread, pending_responses, ctx)
        }
        Route::Asset(asset) => {
            respond(asset_response(asset, &options), &options, unread, pending_responses, ctx)
        }
    }
}

/// Authenticates the client and checks its rights. Public routes need no credentials.
fn authorize(
    request: &Request<'_>,
    route: &Route,
    ctx: &mut SessionContext<'_>,
) -> Result<Rights, HttpError> {
    let sources = match route {
        Route::Health | Route::Ready | Route::Metrics | Route::Asset(_) => return Ok(None),
        // A browser hides the status of a failed upgrade: an invalid token is reported by a close frame after it.
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
        Route::Channels => !ctx.authenticator.requires_token() || rights.is_some(),
        _ => true,
    };
    if is_allowed { Ok(rights) } else { Err(auth_state::forbidden(&rights, ctx.authenticator)) }
}

/// An embedded file. Its policy allows the page to load files of its own origin and to connect to it only. The files are
/// public, and pages of any origin may import the client module.
fn asset_response(asset: &Asset, options: &ResponseOptions) -> Vec<u8> {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let fields = [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", "no-cache"),
    ];
    options.respond(200, asset.content_type, &fields, asset.bytes)
}

/// The client for which a trusted proxy sent the request.
fn client_of(request: &Request<'_>, ctx: &SessionContext<'_>) -> Option<IpAddr> {
    ctx.limiter.forwarded_client(*ctx.peer, request.fields.all("x-forwarded-for"))
}

/// Counts a long-lived connection for its client. A direct connection was counted when it was accepted; one through a
/// trusted proxy is counted for the forwarded address from now on.
fn count_connection(request: &Request<'_>, ctx: &mut SessionContext<'_>) -> Result<(), HttpError> {
    let Some(client) = client_of(request, ctx) else { return Ok(()) };
    if client != ctx.peer.ip().to_canonical() {
        *ctx.peer = Peer::from(client);
    }
    ctx.limiter.admit(ctx.peer, ctx.now).map_err(|over| {
        ctx.metrics.limit(over.limit);
        Rejection::of_close(over.reason(), ctx.limits).http()
    })
}

fn open_web_socket(
    request: &Request<'_>,
    channel: Option<ChannelName>,
    query: &Parameters,
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let date = ctx.authenticator.http_date();
    let Upgrade { response, protocol, compression } =
        match upgrade::accept(request, &date, ctx.limits.deflate) {
            Ok(accepted) => accepted,
            Err(error) => return reject_and_close(&error, pending_responses, ctx),
        };
    // Browsers let every page open a WebSocket to another site: the server has to check the origin (RFC 6455 10.2).
    if judge(request, ctx) == OriginVerdict::Foreign {
        warn_of_origin(request, ctx);
        return reject_and_close(&forbidden_origin(), pending_responses, ctx);
    }
    if let Err(error) = count_connection(request, ctx) {
        return reject_and_close(&error, pending_responses, ctx);
    }
    let rights = auth_state::admit(request, CredentialSources::Subprotocol, ctx);
    ctx.outbox.queue(Rc::new(Bytes::from(response)));
    let rights = match rights {
        Ok(rights) => rights,
        Err(why) => {
            let reason = Reason::BadToken { why };
            let scanner = FrameScanner::new(compression.allows_compressed());
            return Outcome::Upgraded(Closing::begin_close_handshake(reason, scanner, ctx));
        }
    };
    let form = if protocol == Protocol::Raw { Form::Raw } else { Form::Envelope };
    let options = SubscribeOptions { form, since: query.since.unwrap_or(Since::Now), echo: query.echo };
    let channel = match protocol {
        Protocol::Raw => Some(channel.unwrap_or_else(ChannelName::main)),
        Protocol::V1 => channel,
    };
    let mut subscription = channel.map(|channel| (channel, options));
    let auth = if rights.is_none() && ctx.authenticator.requires_token() {
        Some(AuthState::pending(subscription.take(), ctx))
    } else {
        AuthState::of(rights.clone(), ctx)
    };
    match (protocol, subscription) {
        (Protocol::V1, subscription) => ctx.intents.push(Intent::SendHello { subscription, rights }),
        (Protocol::Raw, Some((channel, options))) => {
            ctx.intents.push(Intent::Subscribe { channel, options, rights, reference: None });
        }
        (Protocol::Raw, None) => {}
    }
    Outcome::Upgraded(State::Open(Open::new(protocol, compression, auth, ctx)))
}

#[allow(clippy::too_many_arguments)]
fn stream_events(
    request: &Request<'_>,
    channel: ChannelName,
    rights: Rights,
    query: &Parameters,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    // A browser that reconnects sends the cursor that it has reached by itself, and a polyfill in the query; both are
    // newer than the one in the URL that the page made. A polyfill without a cursor sends an empty text.
    let cursor = match request.fields.one("last-event-id") {
        Ok(None | Some(b"")) => Ok(query.last_event_id.or(query.since)),
        Ok(Some(id)) => Since::parse(id).map(Some).map_err(|_| ()),
        Err(_) => Err(()),
    };
    let Ok(since) = cursor else {
        let error = HttpError::new(400, "bad_cursor", "Last-Event-ID must be the id of an event");
        return reject(&error, options, unread, pending_responses, ctx);
    };
    if let Err(error) = count_connection(request, ctx) {
        if is_retryable_stream(request, &error) {
            return reject_stream(request, &error, options, unread, pending_responses, ctx);
        }
        let options = ResponseOptions { after: ConnectionHeader::Close, ..options };
        return reject(&error, options, unread, pending_responses, ctx);
    }
    // RFC 9112 6.1: no transfer coding for HTTP/1.0.
    let form = Form::of_events(request.minor_version > 0, query.envelope);
    let mut begin = options.event_stream(form.is_chunked());
    begin.extend_from_slice(&form.piece(|out| wire::append_retry(out, wire::RETRY_MS)));
    ctx.intents.push(Intent::Send(Bytes::from(begin)));
    let subscribe_options = SubscribeOptions { form, since: since.unwrap_or(Since::Now), echo: true };
    let streaming = Streaming::new(rights.clone(), form, ctx);
    let subscription = Intent::Subscribe { channel, options: subscribe_options, rights, reference: None };
    ctx.intents.push(subscription);
    Outcome::Become(State::Streaming(Box::new(streaming)))
}

/// Returns true if this is a temporary error (429, 503) for a request of an EventSource.
fn is_retryable_stream(request: &Request<'_>, error: &HttpError) -> bool {
    let is_stream = |one: &[u8]| {
        let essence = one.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"text/event-stream")
    };
    matches!(error.status(), 429 | 503) && request.fields.list("accept").any(is_stream)
}

/// Rejects an EventSource temporarily. It never reconnects after a status other than 200, so it gets a stream that sets the
/// reconnection time, and ends.
fn reject_stream(
    request: &Request<'_>,
    error: &HttpError,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.metrics.reject(error.code());
    let options = ResponseOptions { after: ConnectionHeader::Close, ..options };
    respond(ended_stream(request, &options), &options, unread, pending_responses, ctx)
}

/// An event stream that sets the reconnection time and ends.
fn ended_stream(request: &Request<'_>, options: &ResponseOptions) -> Vec<u8> {
    let form = Form::of_events(request.minor_version > 0, false);
    let mut response = options.event_stream(form.is_chunked());
    response.extend_from_slice(&form.piece(|out| wire::append_retry(out, wire::RETRY_MS)));
    if form.is_chunked() {
        response.extend_from_slice(LAST_CHUNK);
    }
    response
}

/// Responds to the first request of a connection that is not served, and closes it. The request is parsed only to
/// detect an EventSource and the origin of its page. An empty head is an invalid one.
pub(in crate::session) fn reject_connection(
    head: &[u8],
    reason: Reason,
    ctx: &mut SessionContext<'_>,
) -> State {
    let error = Rejection::of_close(reason, ctx.limits).http();
    let date = ctx.authenticator.http_date();
    let later = request::of_known_version(head);
    let mut room = FieldRoom::new(ctx.limits);
    let response = match request::parse(later.as_deref().unwrap_or(head), &mut room, ctx.limits) {
        Ok(request) => {
            let mut options =
                ResponseOptions { after: ConnectionHeader::Close, date, ..request.response_options() };
            let route = routes::find(request.path, &ctx.http_config.assets).ok();
            // A page of another origin cannot distinguish a response that it may not read from a failure.
            let may_read =
                route.as_ref().is_some_and(Route::is_shared) && share(&request, &mut options, ctx).is_ok();
            match route {
                Some(Route::Events { .. }) if may_read && is_retryable_stream(&request, &error) => {
                    ended_stream(&request, &options)
                }
                _ => error.respond(&options),
            }
        }
        Err(_) => error.respond(&ResponseOptions::last(date)),
    };
    send_and_close(reason, &error, response, ctx)
}

/// Begins a publish request: its head is checked before its body is read.
fn begin_publish(
    request: &Request<'_>,
    channel: ChannelName,
    rights: Rights,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let closing_options = ResponseOptions { after: ConnectionHeader::Close, ..options.clone() };
    let framing = match request.body {
        BodyLength::Absent => {
            let message = "send the message with a Content-Length (0 if it is empty) or in chunks";
            return reject(
                &HttpError::new(411, "length_required", message),
                closing_options,
                unread,
                pending_responses,
                ctx,
            );
        }
        BodyLength::Chunked => Framing::Chunked(ChunkDecoder::new()),
        BodyLength::Bytes(length) => match usize::try_from(length) {
            Ok(length) if length <= ctx.limits.body_bytes_max => Framing::Length(length),
            _ => {
                return reject(
                    &HttpError::body_too_large(ctx.limits),
                    closing_options,
                    unread,
                    pending_responses,
                    ctx,
                );
            }
        },
    };
    // RFC 9110 8.4: the body would be published unchanged, without its coding being known to subscribers.
    let is_coded = |coding: &[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    if request.fields.list("content-encoding").any(is_coded) {
        let message = "messages are not decoded: send the message without a Content-Encoding";
        let error = HttpError::new(415, "content_encoding", message).with("Accept-Encoding", "identity");
        return reject(&error, closing_options, unread, pending_responses, ctx);
    }
    let key = match request.fields.one("idempotency-key").map(|key| key.map(std::str::from_utf8)) {
        Ok(None) => None,
        Ok(Some(Ok(key))) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(Box::from(key)),
        _ => {
            let message = format!("Idempotency-Key must be sent once, with 1 to {KEY_BYTES_MAX} characters");
            return reject(
                &HttpError::new(400, "bad_key", message),
                closing_options,
                unread,
                pending_responses,
                ctx,
            );
        }
    };
    let kind = match request.fields.one("content-type") {
        Ok(media_type) => kind_of(media_type.unwrap_or_default()),
        Err(_) => {
            return reject(
                &HttpError::bad("Content-Type is repeated"),
                closing_options,
                unread,
                pending_responses,
                ctx,
            );
        }
    };
    let expects_continue = match request.fields.one("expect") {
        // RFC 9110 10.1.1: an HTTP/1.0 client must not be sent 100 Continue.
        _ if request.minor_version == 0 => false,
        Ok(None) => false,
        Ok(Some(value)) if value.eq_ignore_ascii_case(b"100-continue") => true,
        _ => {
            let error =
                HttpError::new(417, "expectation_failed", "the only supported Expect is 100-continue");
            return reject(&error, closing_options, unread, pending_responses, ctx);
        }
    };
    let client = client_of(request, ctx);
    let publish_request = PublishRequest { channel, kind, options, key, client, rights };
    if let Framing::Length(length) = framing
        && let Some((payload, unread)) = unread.split_at_checked(length)
    {
        return submit_publish(
            publish_request,
            Bytes::copy_from_slice(payload),
            unread,
            pending_responses,
            ctx,
        );
    }
    // A chunked body may be large.
    if ctx.is_memory_short && !matches!(framing, Framing::Length(..=SMALL_BYTES)) {
        return reject(&Rejection::LowMemory.http(), closing_options, unread, pending_responses, ctx);
    }
    // Not sent if a part of the body has arrived.
    if expects_continue && unread.is_empty() {
        ctx.intents.push(Intent::Send(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n")));
    }
    Body::begin(publish_request, framing, pending_responses, ctx).serve(unread, ctx)
}

/// The message type for a media type.
fn kind_of(media_type: &[u8]) -> Kind {
    let essence = media_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        Kind::Data
    } else if essence.eq_ignore_ascii_case(b"application/octet-stream") {
        Kind::Binary
    } else {
        Kind::Text
    }
}
