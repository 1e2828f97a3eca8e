//! What a request comes to: who asks, from which page, for what, and whether it may.
//!
//! The order of the questions is that of their price, and of what an answer gives away: a request for another
//! machine's name, a path that there is not, a page that may not ask, a method, a query, and only then a token.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;

use super::chunked::ChunkDecoder;
use super::connection::{
    self, Body, Framing, Outcome, PublishRequest, answer, ask, refuse, reject_and_close, respond,
    submit_publish,
};
use super::cors::{forbidden_origin, judge, preflight, share, warn_of_host, warn_of_origin};
use super::request::{self, Body as Length, FieldRoom, Request};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use super::routes::{self, LIMIT_MAX, Query, Route};
use super::upgrade::{self, Protocol};
use crate::access::authenticator::Rights;
use crate::access::origin::{self, OriginVerdict};
use crate::close::Reason;
use crate::config::Asset;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, Peer, Since};
use crate::session::REQUEST_COST_BYTES;
use crate::session::auth_state::{self, AuthState, CredentialSources};
use crate::session::frame_scanner::FrameScanner;
use crate::session::heartbeat::Heartbeat;
use crate::session::intent::{Intent, Question};
use crate::session::rejection::Rejection;
use crate::session::{Open, SessionContext, State, Streaming};
use crate::wire::chunk::LAST_CHUNK;
use crate::wire::command::KEY_BYTES_MAX;
use crate::wire::{self, Form, Kind};

/// Serves a request whose head is complete; `rest` is what came behind it.
pub(in crate::session) fn serve(
    head: &[u8],
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.cost += REQUEST_COST_BYTES;
    let later = request::of_known_version(head);
    let head = later.as_deref().unwrap_or(head);
    let mut room = FieldRoom::new(ctx.limits);
    match request::parse(head, &mut room, ctx.limits) {
        // Its frames may be answered at once, so the answers before it have to be out.
        Ok(request) if pending_responses > 0 && request.fields.lists("upgrade", "websocket") => {
            connection::wait([head, rest].concat(), pending_responses)
        }
        Ok(request) => dispatch(&request, rest, pending_responses, ctx),
        Err(refusal) => reject_and_close(&refusal, pending_responses, ctx),
    }
}

fn dispatch(
    request: &Request<'_>,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let mut manner = request.manner();
    manner.date = ctx.authenticator.http_date();
    // A program that names no host at all is no browser.
    if ctx.authenticator.loopback_only
        && let Ok(Some(host)) = request.host()
        && !origin::is_loopback_host(host)
    {
        let message = "this server is open to its own machine only, by the name localhost or its address; \
                       --anonymous or a key lets it answer to other names";
        warn_of_host(request, ctx);
        return reject_and_close(&HttpError::new(421, "misdirected", message), pending_responses, ctx);
    }
    let has_body = !matches!(request.body, Length::Unsaid | Length::Bytes(0));
    let route = match routes::find(request.path, &ctx.http_config.assets) {
        Ok(route) => route,
        // `OPTIONS *` is about the whole server; health checks of load balancers send it (HAProxy: `option httpchk`).
        Err(_) if request.method == "OPTIONS" && matches!(request.path, "*" | "/") && !has_body => {
            return preflight(
                request,
                "GET, HEAD, POST, DELETE, OPTIONS",
                manner,
                rest,
                pending_responses,
                ctx,
            );
        }
        Err(refusal) => {
            if has_body || request.fields.lists("connection", "upgrade") {
                manner.after = ConnectionHeader::Close;
            }
            // Nothing is done, so nobody is kept from asking; a page that may ask elsewhere is told what was wrong.
            if share(request, &mut manner, ctx).is_ok()
                && manner.share.is_some()
                && request.method == "OPTIONS"
            {
                // A browser shows it the answer to what it wants to ask, and only if this one is good.
                return preflight(request, "GET, POST, OPTIONS", manner, rest, pending_responses, ctx);
            }
            return refuse(&refusal, manner, rest, pending_responses, ctx);
        }
    };
    let is_web_socket = matches!(route, Route::WebSocket { .. });
    let takes_body = matches!(route, Route::Publish { .. }) && request.method == "POST";
    if is_web_socket || (has_body && !takes_body) {
        // Whoever asked for a WebSocket and gets none has nothing else to say, and a body that nobody wants
        // is not read.
        manner.after = ConnectionHeader::Close;
    }
    if route.is_shared()
        && let Err(refusal) = share(request, &mut manner, ctx)
    {
        manner.after = ConnectionHeader::Close;
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    }
    if request.method == "OPTIONS" && !has_body {
        return preflight(request, route.methods(), manner, rest, pending_responses, ctx);
    }
    if !route.methods().split(", ").any(|method| method == request.method) {
        let methods = route.methods();
        let message = format!("this path takes {methods}");
        let refusal = HttpError::new(405, "method_not_allowed", message).with("Allow", methods);
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    }
    if has_body && !takes_body {
        let refusal = HttpError::bad("this request takes no body");
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    }
    let query = match Query::parse(request.query) {
        Ok(query) => query,
        Err(refusal) => {
            if takes_body {
                manner.after = ConnectionHeader::Close;
            }
            return refuse(&refusal, manner, rest, pending_responses, ctx);
        }
    };
    let rights = match enter(request, &route, ctx) {
        Ok(rights) => rights,
        Err(refusal) => {
            // Looking at a token is dear. Whoever has shown a bad one comes anew, and is counted for it.
            if takes_body || refusal.status() == 401 {
                manner.after = ConnectionHeader::Close;
            }
            if matches!(route, Route::Events { .. }) && is_tried_again(request, &refusal) {
                return end_stream(request, &refusal, manner, rest, pending_responses, ctx);
            }
            return refuse(&refusal, manner, rest, pending_responses, ctx);
        }
    };
    match route {
        Route::WebSocket { channel } => open_web_socket(request, channel, &query, pending_responses, ctx),
        Route::Events { channel } => {
            stream_events(request, channel, rights, &query, manner, rest, pending_responses, ctx)
        }
        Route::Publish { channel } => {
            begin_publish(request, channel, rights, manner, rest, pending_responses, ctx)
        }
        Route::Channels => {
            let Query { prefix, after, limit, .. } = query;
            let question = Question::Channels {
                prefix: prefix.unwrap_or_default(),
                after,
                limit: limit.unwrap_or(LIMIT_MAX),
                rights,
            };
            ask(question, manner, rest, pending_responses, ctx)
        }
        Route::Channel { channel } => {
            ask(Question::Channel { channel }, manner, rest, pending_responses, ctx)
        }
        Route::History { channel } => {
            let since = query.since.unwrap_or(Since::Earliest);
            let limit = query.limit.unwrap_or(LIMIT_MAX);
            ask(Question::History { channel, since, limit }, manner, rest, pending_responses, ctx)
        }
        Route::Tickets => {
            let grant = rights.unwrap_or_else(|| ctx.authenticator.anonymous.clone());
            let client = client_of(request, ctx);
            ask(Question::Ticket { grant, client }, manner, rest, pending_responses, ctx)
        }
        Route::Connections => {
            let Some(sub) = query.sub else {
                let refusal = HttpError::new(400, "bad_query", "sub is missing: whose connections");
                return refuse(&refusal, manner, rest, pending_responses, ctx);
            };
            let after = manner.after;
            ctx.intents.push(Intent::DisconnectUser { sub, manner });
            respond(after, Reason::Served, rest, pending_responses)
        }
        Route::Ready => ask(Question::Ready, manner, rest, pending_responses, ctx),
        Route::Metrics => ask(Question::Metrics, manner, rest, pending_responses, ctx),
        Route::Health => {
            let response = manner.respond(200, "text/plain", &[("Cache-Control", "no-store")], b"ok\n");
            answer(response, &manner, rest, pending_responses, ctx)
        }
        Route::Asset(asset) => answer(asset_response(asset, &manner), &manner, rest, pending_responses, ctx),
    }
}

/// Judges who asks, and whether it may. What there is to see without a right asks nobody for one.
fn enter(request: &Request<'_>, route: &Route, ctx: &mut SessionContext<'_>) -> Result<Rights, HttpError> {
    let ways = match route {
        Route::Health | Route::Ready | Route::Metrics | Route::Asset(_) => return Ok(None),
        // A browser does not see how its upgrade is answered: what its token is worth is said behind it.
        Route::WebSocket { .. } => return Ok(None),
        Route::Events { channel } => CredentialSources::Ticket(channel),
        _ => CredentialSources::Plain,
    };
    let rights = auth_state::admit(request, ways, ctx).map_err(auth_state::unauthorized)?;
    let grant = ctx.authenticator.grant(&rights);
    let may = match route {
        Route::Events { channel } | Route::Channel { channel } | Route::History { channel } => {
            grant.may_subscribe(channel)
        }
        Route::Publish { channel } => grant.may_publish(channel),
        Route::Connections => grant.admin,
        // A ticket stands for a token.
        Route::Tickets => rights.is_some() || ctx.authenticator.verifier.is_none(),
        Route::Channels => !ctx.authenticator.requires_token() || rights.is_some(),
        _ => true,
    };
    if may { Ok(rights) } else { Err(auth_state::forbidden(&rights, ctx.authenticator)) }
}

/// The page may load its own files and talk to its own server, and nothing else. The files are public, and
/// pages of any origin may import the client module.
fn asset_response(asset: &Asset, manner: &ResponseOptions) -> Vec<u8> {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let fields = [
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", "no-cache"),
    ];
    manner.respond(200, asset.content_type, &fields, asset.bytes)
}

/// The client that a request is of, if a trusted proxy sent it for somebody.
fn client_of(request: &Request<'_>, ctx: &SessionContext<'_>) -> Option<IpAddr> {
    ctx.limiter.forwarded_client(*ctx.peer, request.fields.all("x-forwarded-for"))
}

/// A connection becomes one client's, for as long as it lasts. If it came from that client itself, it has been
/// counted since it came; if it came through a proxy, it is from now on.
fn come_in(request: &Request<'_>, ctx: &mut SessionContext<'_>) -> Result<(), HttpError> {
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
    query: &Query,
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let (response, protocol) = match upgrade::accept(request, &ctx.authenticator.http_date()) {
        Ok(accepted) => accepted,
        Err(refusal) => return reject_and_close(&refusal, pending_responses, ctx),
    };
    // No rule of a browser's stops a page from opening a WebSocket to another site (RFC 6455 10.2).
    if judge(request, ctx) == OriginVerdict::Foreign {
        warn_of_origin(request, ctx);
        return reject_and_close(&forbidden_origin(), pending_responses, ctx);
    }
    if let Err(refusal) = come_in(request, ctx) {
        return reject_and_close(&refusal, pending_responses, ctx);
    }
    let rights = auth_state::admit(request, CredentialSources::Subprotocol, ctx);
    ctx.outbox.queue(Rc::new(Bytes::from(response)));
    let rights = match rights {
        Ok(rights) => rights,
        Err(why) => {
            let reason = Reason::BadToken { why };
            return Outcome::Upgraded(crate::session::begin_close(reason, FrameScanner::new(), ctx));
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
        Some(AuthState::expected(subscription.take(), ctx))
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
    Outcome::Upgraded(State::Open(Open::new(protocol, auth, ctx)))
}

#[allow(clippy::too_many_arguments)]
fn stream_events(
    request: &Request<'_>,
    channel: ChannelName,
    rights: Rights,
    query: &Query,
    manner: ResponseOptions,
    rest: &[u8],
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
        let refusal = HttpError::new(400, "bad_cursor", "Last-Event-ID is an id as an event carries it");
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    };
    if let Err(refusal) = come_in(request, ctx) {
        if is_tried_again(request, &refusal) {
            return end_stream(request, &refusal, manner, rest, pending_responses, ctx);
        }
        let manner = ResponseOptions { after: ConnectionHeader::Close, ..manner };
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    }
    // RFC 9112 6.1: no transfer coding for HTTP/1.0.
    let form = Form::of_events(request.minor_version > 0, query.envelope);
    let mut begin = manner.event_stream(form.is_chunked());
    begin.extend_from_slice(&form.piece(|out| wire::append_retry(out, wire::RETRY_MS)));
    ctx.intents.push(Intent::Send(Bytes::from(begin)));
    let options = SubscribeOptions { form, since: since.unwrap_or(Since::Now), echo: true };
    let auth = AuthState::of(rights.clone(), ctx).map(Box::new);
    ctx.intents.push(Intent::Subscribe { channel, options, rights, reference: None });
    Outcome::Become(State::Streaming(Box::new(Streaming { auth, heartbeat: Heartbeat::heard(ctx), form })))
}

/// Returns true if this is a temporary error (429, 503) for a request of an EventSource.
fn is_tried_again(request: &Request<'_>, refusal: &HttpError) -> bool {
    let is_stream = |one: &[u8]| {
        let essence = one.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"text/event-stream")
    };
    matches!(refusal.status(), 429 | 503) && request.fields.list("accept").any(is_stream)
}

/// Refuses an EventSource temporarily. It stops for ever at any status but 200, so it gets a stream that sets the time
/// to reconnect, and ends.
fn end_stream(
    request: &Request<'_>,
    refusal: &HttpError,
    manner: ResponseOptions,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.metrics.reject(refusal.code());
    let manner = ResponseOptions { after: ConnectionHeader::Close, ..manner };
    answer(ended_stream(request, &manner), &manner, rest, pending_responses, ctx)
}

/// An event stream that sets the reconnection time and ends.
fn ended_stream(request: &Request<'_>, manner: &ResponseOptions) -> Vec<u8> {
    let form = Form::of_events(request.minor_version > 0, false);
    let mut response = manner.event_stream(form.is_chunked());
    response.extend_from_slice(&form.piece(|out| wire::append_retry(out, wire::RETRY_MS)));
    if form.is_chunked() {
        response.extend_from_slice(LAST_CHUNK);
    }
    response
}

/// Responds to the first request of a connection that is not served, and closes it. The request is parsed only to
/// find out whether an EventSource sent it, and from which page. An empty head is one that cannot be read.
pub(in crate::session) fn refuse_connection(
    head: &[u8],
    reason: Reason,
    ctx: &mut SessionContext<'_>,
) -> State {
    let refusal = Rejection::of_close(reason, ctx.limits).http();
    let date = ctx.authenticator.http_date();
    let later = request::of_known_version(head);
    let mut room = FieldRoom::new(ctx.limits);
    let response = match request::parse(later.as_deref().unwrap_or(head), &mut room, ctx.limits) {
        Ok(request) => {
            let mut manner = ResponseOptions { after: ConnectionHeader::Close, date, ..request.manner() };
            let route = routes::find(request.path, &ctx.http_config.assets).ok();
            // A page of another origin cannot distinguish a response that it may not read from a failure.
            let may_read =
                route.as_ref().is_some_and(Route::is_shared) && share(&request, &mut manner, ctx).is_ok();
            match route {
                Some(Route::Events { .. }) if may_read && is_tried_again(&request, &refusal) => {
                    ended_stream(&request, &manner)
                }
                _ => refusal.respond(&manner),
            }
        }
        Err(_) => refusal.respond(&ResponseOptions::last(date)),
    };
    crate::session::say_last(reason, &refusal, response, ctx.limits, ctx.metrics, ctx.now, ctx.outbox)
}

/// A request to publish: its head is judged before its body is read.
fn begin_publish(
    request: &Request<'_>,
    channel: ChannelName,
    rights: Rights,
    manner: ResponseOptions,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let unread = ResponseOptions { after: ConnectionHeader::Close, ..manner.clone() };
    let framing = match request.body {
        Length::Unsaid => {
            let message = "a message has a Content-Length, 0 if it is empty, or comes in chunks";
            return refuse(
                &HttpError::new(411, "length_required", message),
                unread,
                rest,
                pending_responses,
                ctx,
            );
        }
        Length::Chunked => Framing::Chunked(ChunkDecoder::new()),
        Length::Bytes(length) => match usize::try_from(length) {
            Ok(length) if length <= ctx.limits.body_bytes_max => Framing::Length(length),
            _ => return refuse(&HttpError::body_too_large(ctx.limits), unread, rest, pending_responses, ctx),
        },
    };
    // RFC 9110 8.4: it would be published as it is, and its subscribers would not know of the coding.
    let is_coded = |coding: &[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    if request.fields.list("content-encoding").any(is_coded) {
        let message = "a message is published as it is: send it without a Content-Encoding";
        let refusal = HttpError::new(415, "content_encoding", message).with("Accept-Encoding", "identity");
        return refuse(&refusal, unread, rest, pending_responses, ctx);
    }
    let key = match request.fields.one("idempotency-key").map(|key| key.map(std::str::from_utf8)) {
        Ok(None) => None,
        Ok(Some(Ok(key))) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Some(Box::from(key)),
        _ => {
            let message = format!("Idempotency-Key comes once and has 1 to {KEY_BYTES_MAX} characters");
            return refuse(&HttpError::new(400, "bad_key", message), unread, rest, pending_responses, ctx);
        }
    };
    let kind = match request.fields.one("content-type") {
        Ok(media_type) => kind_of(media_type.unwrap_or_default()),
        Err(_) => {
            return refuse(
                &HttpError::bad("Content-Type comes more than once"),
                unread,
                rest,
                pending_responses,
                ctx,
            );
        }
    };
    let asks_first = match request.fields.one("expect") {
        // RFC 9110 10.1.1: HTTP/1.0 does not know it, and must not be told to go on.
        _ if request.minor_version == 0 => false,
        Ok(None) => false,
        Ok(Some(value)) if value.eq_ignore_ascii_case(b"100-continue") => true,
        _ => {
            let refusal = HttpError::new(417, "expectation_failed", "of Expect only 100-continue is known");
            return refuse(&refusal, unread, rest, pending_responses, ctx);
        }
    };
    let client = client_of(request, ctx);
    let order = PublishRequest { channel, kind, manner, key, client, rights };
    if let Framing::Length(length) = framing
        && let Some((payload, rest)) = rest.split_at_checked(length)
    {
        return submit_publish(order, Bytes::copy_from_slice(payload), rest, pending_responses, ctx);
    }
    // A body in chunks has no length that is known to be small.
    if ctx.is_memory_short && !matches!(framing, Framing::Length(..=SMALL_BYTES)) {
        return refuse(&Rejection::LowMemory.http(), unread, rest, pending_responses, ctx);
    }
    // Nor when a part of the body is there already.
    if asks_first && rest.is_empty() {
        ctx.intents.push(Intent::Send(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n")));
    }
    Body::begin(order, framing, pending_responses, ctx).serve(rest, ctx)
}

/// Maximum bytes of an incomplete message or body that is accepted under memory pressure: as much as a request's head.
pub const SMALL_BYTES: usize = 4 << 10;

/// What a body of this media type is published as.
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
