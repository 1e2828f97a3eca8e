//! The handlers of the routes that are not one query. Their requests have passed all checks.

use std::rc::Rc;

use bytes::Bytes;

use super::cors::check_websocket_origin;
use super::exchange::{Exchange, Outcome};
use super::forwarded::{count_connection, forwarded_client};
use super::request::Request;
use super::response::HttpError;
use super::routes::{LIMIT_MAX, Parameters};
use super::upgrade::{self, Protocol, Upgrade};
use crate::access::authenticator::Rights;
use crate::close::Reason;
use crate::config::Asset;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, Since};
use crate::session::State;
use crate::session::auth_state::{self, AuthState, CredentialSources};
use crate::session::closing::Closing;
use crate::session::frame_scanner::FrameScanner;
use crate::session::intent::{Intent, Query};
use crate::session::open::Open;
use crate::session::streaming::Streaming;
use crate::wire::Form;

/// `/ws` and `/ws/{channel}`.
pub(super) fn open_web_socket(
    channel: Option<ChannelName>,
    parameters: &Parameters,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    let Upgrade { response, protocol, compression } =
        upgrade::accept(request, &exchange.options.date, exchange.ctx.limits.deflate.mode)?;
    check_websocket_origin(request, exchange.ctx)?;
    if let Some(wait) = exchange.redeem_in_log(request, CredentialSources::Subprotocol)? {
        return Ok(wait);
    }
    count_connection(request, exchange.ctx)?;
    let ctx = &mut *exchange.ctx;
    // A browser hides the status of a failed upgrade: an invalid token is reported by a close frame after it.
    let rights = auth_state::admit(request, CredentialSources::Subprotocol, ctx);
    ctx.outbox.queue(Rc::new(Bytes::from(response)));
    let rights = match rights {
        Ok(rights) => rights,
        Err(why) => {
            let reason = Reason::BadToken { why };
            let scanner = FrameScanner::new(compression.allows_compressed());
            let closing = Closing::begin_close_handshake(reason, scanner, ctx);
            return Ok(exchange.upgrade(closing));
        }
    };
    let form = if protocol == Protocol::Raw { Form::Raw } else { Form::Envelope };
    let options =
        SubscribeOptions { form, since: parameters.since.unwrap_or(Since::Now), echo: parameters.echo };
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
    let open = Open::new(protocol, compression, auth, ctx);
    Ok(exchange.upgrade(State::Open(open)))
}

/// `/sse/{channel}`.
pub(super) fn stream_events(
    channel: ChannelName,
    rights: Rights,
    parameters: &Parameters,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    let since = event_cursor(parameters, request)?;
    // The stream is the last response of the connection.
    exchange.close_after();
    count_connection(request, exchange.ctx)?;
    let Exchange { options, ctx, .. } = exchange;
    ctx.intents.push(Intent::Send(Bytes::from(options.begin_event_stream())));
    let form = Form::of_events(options.is_chunked, parameters.envelope);
    let streaming = Streaming::new(rights.clone(), form, ctx);
    let options = SubscribeOptions { form, since, echo: true };
    ctx.intents.push(Intent::Subscribe { channel, options, rights, reference: None });
    Ok(Outcome::Become(State::Streaming(Box::new(streaming))))
}

/// The position from which an event stream begins.
///
/// A browser that reconnects sends the cursor that it has reached by itself, and a polyfill in the query; both are
/// newer than the one in the URL that the page made. A polyfill without a cursor sends an empty text.
fn event_cursor(parameters: &Parameters, request: &Request<'_>) -> Result<Since, HttpError> {
    let cursor = match request.fields.one("last-event-id") {
        Ok(None | Some(b"")) => Ok(parameters.last_event_id.or(parameters.since)),
        Ok(Some(id)) => Since::parse(id).map(Some).map_err(|_| ()),
        Err(_) => Err(()),
    };
    match cursor {
        Ok(cursor) => Ok(cursor.unwrap_or(Since::Now)),
        Err(()) => Err(HttpError::new(400, "bad_cursor", "Last-Event-ID must be the id of an event")),
    }
}

/// `/v1/channels`.
pub(super) fn list_channels(
    rights: Rights,
    parameters: Parameters,
    exchange: &mut Exchange<'_, '_>,
) -> Outcome {
    let Parameters { prefix, after, limit, .. } = parameters;
    let limit = limit.unwrap_or(LIMIT_MAX);
    exchange.query(Query::Channels { prefix: prefix.unwrap_or_default(), after, limit, rights })
}

/// `/v1/channels/{channel}/history`.
pub(super) fn read_history(
    channel: ChannelName,
    parameters: &Parameters,
    exchange: &mut Exchange<'_, '_>,
) -> Outcome {
    let since = parameters.since.unwrap_or(Since::Earliest);
    let limit = parameters.limit.unwrap_or(LIMIT_MAX);
    exchange.query(Query::History { channel, since, limit })
}

/// `/v1/tickets`.
pub(super) fn issue_ticket(
    rights: Rights,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Outcome {
    let grant = rights.unwrap_or_else(|| exchange.ctx.authenticator.anonymous.clone());
    let client = forwarded_client(request, exchange.ctx);
    exchange.ctx.intents.push(Intent::IssueTicket { grant, client, options: exchange.options.clone() });
    exchange.await_response(Reason::Served)
}

/// `/v1/connections`.
pub(super) fn disconnect_user(
    parameters: Parameters,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    let Some(sub) = parameters.sub else {
        return Err(HttpError::new(400, "bad_query", "the parameter sub is missing"));
    };
    exchange.ctx.intents.push(Intent::DisconnectUser { sub, options: exchange.options.clone() });
    Ok(exchange.await_response(Reason::Served))
}

/// `/healthz`.
pub(super) fn respond_healthy(exchange: &mut Exchange<'_, '_>) -> Outcome {
    let fields = [("Cache-Control", "no-store")];
    exchange.respond(exchange.options.respond(200, "text/plain", &fields, b"ok\n"))
}

/// An embedded file. Its policy allows the page to load files of its own origin and to connect to it only. The files
/// are public, and pages of any origin may import the client module.
///
/// A cache asks before each use (`no-cache`), so that the page always matches the server; while nothing has changed,
/// the response is 304.
pub(super) fn send_asset(asset: &Asset, request: &Request<'_>, exchange: &mut Exchange<'_, '_>) -> Outcome {
    let gzip = request.accepts_gzip();
    // RFC 9110 8.8.3.3: representations that differ in their coding have different tags.
    let tag = if gzip { format!("\"{}-gzip\"", asset.tag) } else { format!("\"{}\"", asset.tag) };
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                  img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let mut fields = vec![
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", "no-cache"),
        ("Vary", "Accept-Encoding"),
        ("ETag", &tag),
    ];
    if request.has_current(&tag) {
        return exchange.respond(exchange.options.respond(304, asset.content_type, &fields, b""));
    }
    if gzip {
        fields.push(("Content-Encoding", "gzip"));
    }
    let body = if gzip { asset.gzip } else { asset.bytes };
    exchange.respond(exchange.options.respond(200, asset.content_type, &fields, body))
}
