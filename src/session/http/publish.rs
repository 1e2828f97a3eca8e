//! `POST /v1/publish/{channel}`: the head is checked before the body is received.

use bytes::Bytes;

use super::body::{Body, Framing, PublishRequest};
use super::exchange::{Exchange, Outcome};
use super::forwarded::forwarded_client;
use super::request::{Request, media_type};
use super::response::HttpError;
use crate::access::authenticator::Rights;
use crate::ids::ChannelName;
use crate::session::State;
use crate::session::context::SMALL_BYTES;
use crate::session::intent::Intent;
use crate::session::rejection::Rejection;
use crate::wire::Kind;
use crate::wire::command::KEY_BYTES_MAX;

/// Begins a publish request, and completes it if its body has arrived with the head.
pub(super) fn begin_publish(
    channel: ChannelName,
    rights: Rights,
    request: &Request<'_>,
    exchange: &mut Exchange<'_, '_>,
) -> Result<Outcome, HttpError> {
    let framing = Framing::of(request.body, exchange.ctx.limits)?;
    check_coding(request)?;
    let key = idempotency_key(request)?;
    let kind = kind_of(request)?;
    let expects_continue = expects_continue(request)?;
    let client = forwarded_client(request, exchange.ctx);
    let publish_request = PublishRequest { channel, kind, key, client, rights };
    if let Framing::Length(length) = framing
        && let Some((payload, unread)) = exchange.unread.split_at_checked(length)
    {
        exchange.unread = unread;
        exchange.closes_on_error = false;
        return publish_request.submit(Bytes::copy_from_slice(payload), exchange);
    }
    // A chunked body may be large.
    if exchange.ctx.is_memory_short && !matches!(framing, Framing::Length(..=SMALL_BYTES)) {
        return Err(Rejection::LowMemory.http());
    }
    // Not sent if a part of the body has arrived.
    if expects_continue && exchange.unread.is_empty() {
        let interim = Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n");
        exchange.ctx.intents.push(Intent::Send(interim));
    }
    let mut body = Body::begin(publish_request, framing, exchange);
    Ok(match body.receive(exchange.unread, exchange.ctx) {
        Outcome::Incomplete => Outcome::Become(State::Body(Box::new(body))),
        outcome => outcome,
    })
}

/// RFC 9110 8.4: the body would be published unchanged, without its coding being known to subscribers.
fn check_coding(request: &Request<'_>) -> Result<(), HttpError> {
    let is_coded = |coding: &[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    if request.fields.list("content-encoding").any(is_coded) {
        let message = "messages are not decoded: send the message without a Content-Encoding";
        return Err(HttpError::new(415, "content_encoding", message).with("Accept-Encoding", "identity"));
    }
    Ok(())
}

fn idempotency_key(request: &Request<'_>) -> Result<Option<Box<str>>, HttpError> {
    match request.fields.one("idempotency-key").map(|key| key.map(std::str::from_utf8)) {
        Ok(None) => Ok(None),
        Ok(Some(Ok(key))) if (1..=KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(Box::from(key))),
        _ => {
            let message = format!("Idempotency-Key must be sent once, with 1 to {KEY_BYTES_MAX} characters");
            Err(HttpError::new(400, "bad_key", message))
        }
    }
}

/// The type of the message, from the media type.
fn kind_of(request: &Request<'_>) -> Result<Kind, HttpError> {
    let value = request.fields.one("content-type").map_err(|_| HttpError::bad("Content-Type is repeated"))?;
    let media_type = media_type(value.unwrap_or_default());
    Ok(if media_type.eq_ignore_ascii_case(b"application/json") {
        Kind::Data
    } else if media_type.eq_ignore_ascii_case(b"application/octet-stream") {
        Kind::Binary
    } else {
        Kind::Text
    })
}

/// Returns true if the client sends the body after `100 Continue`.
fn expects_continue(request: &Request<'_>) -> Result<bool, HttpError> {
    match request.fields.one("expect") {
        // RFC 9110 10.1.1: an HTTP/1.0 client must not be sent 100 Continue.
        _ if request.minor_version == 0 => Ok(false),
        Ok(None) => Ok(false),
        Ok(Some(value)) if value.eq_ignore_ascii_case(b"100-continue") => Ok(true),
        _ => Err(HttpError::new(417, "expectation_failed", "the only supported Expect is 100-continue")),
    }
}
