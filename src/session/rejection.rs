//! Rejected requests: one cause, and its form in HTTP, in `oyez.v1` and as a close.
//!
//! The same limit can be exceeded by an HTTP request, a message of `oyez.v1` and a raw WebSocket. The three forms are
//! derived from one value, so that code and text are the same everywhere.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::http::response::HttpError;
use crate::access::connection_limiter::TOO_MANY_RETRY_MS;
use crate::access::limit::Limit;
use crate::close::Reason;
use crate::config::Limits;
use crate::wire::notice::Notice;

/// When a client retries that was rejected because the shared log cannot be reached: it may be back in a round trip.
pub const BACKPLANE_RETRY_MS: u32 = 1_000;

/// Why a request, a message or a connection is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The client's grant does not include the right.
    PermissionDenied,
    /// The connection already subscribes to the channel.
    AlreadySubscribed,
    /// The connection does not subscribe to the channel.
    NotSubscribed,
    /// The connection, or the publisher, has its maximum number of channels.
    TooManyChannels(Limit),
    /// The table of channels is full.
    ChannelTableFull,
    /// The table of connections is full.
    ConnectionTableFull,
    /// The client's address has its maximum number of connections.
    TooManyConnections,
    /// The idempotency key belongs to a message with another payload.
    KeyReused,
    /// A rate limit was exceeded.
    RateLimited {
        /// Milliseconds until the request would be accepted.
        retry_ms: u32,
    },
    /// The process is close to its memory budget. Incomplete messages leave it within their deadline of 30 s, and
    /// connections that do not read are closed earlier.
    LowMemory,
    /// The server is shutting down.
    Draining {
        /// Milliseconds until the client should reconnect.
        retry_ms: u32,
    },
    /// The shared log cannot be reached, or this node has not read it up to its end since it started.
    BackplaneDown {
        /// Milliseconds until the client should retry.
        retry_ms: u32,
    },
    /// The shared log cannot be reached, and the message was not published.
    NotPublished {
        /// Milliseconds until the client should retry.
        retry_ms: u32,
    },
    /// The message was sent to the shared log, and not read back in time: it may have been published.
    Unconfirmed,
    /// The shared log has no memory left. The message was not published.
    BackplaneFull,
    /// The request head was not complete in time.
    HeadTimeout {
        /// The limit.
        timeout_ms: u32,
    },
    /// The request body was not complete in time.
    BodyTimeout {
        /// The limit.
        timeout_ms: u32,
    },
    /// The connection is closing: nothing may follow its close frame (RFC 6455 5.5.1), so no error is sent.
    ConnectionClosing,
}

impl Rejection {
    /// The rejection that an HTTP client receives when its connection is closed for this reason.
    pub(super) fn of_close(reason: Reason, limits: &Limits) -> Rejection {
        match reason {
            Reason::HandshakeTimeout => Rejection::HeadTimeout { timeout_ms: limits.handshake_timeout_ms },
            Reason::BodyTimeout => Rejection::BodyTimeout { timeout_ms: limits.body_timeout_ms },
            Reason::Drain { retry_ms } => Rejection::Draining { retry_ms },
            Reason::RateLimited { retry_ms } => Rejection::RateLimited { retry_ms },
            Reason::BackplaneDown { retry_ms } => Rejection::BackplaneDown { retry_ms },
            // HTTP clients are closed as slow only to free memory.
            Reason::LowMemory | Reason::Slow => Rejection::LowMemory,
            Reason::TooManyConnections => Rejection::TooManyConnections,
            _ => Rejection::ConnectionTableFull,
        }
    }

    /// The error code: the same in HTTP, in `oyez.v1` and in metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Rejection::PermissionDenied => "forbidden",
            Rejection::AlreadySubscribed => "already_subscribed",
            Rejection::NotSubscribed => "not_subscribed",
            Rejection::TooManyChannels(_) => "too_many_channels",
            Rejection::ChannelTableFull | Rejection::ConnectionTableFull => "over_capacity",
            Rejection::TooManyConnections => "too_many_connections",
            Rejection::KeyReused => "key_reused",
            Rejection::RateLimited { .. } => "rate_limited",
            Rejection::LowMemory => "low_memory",
            Rejection::Draining { .. } => "drain",
            Rejection::BackplaneDown { .. } | Rejection::NotPublished { .. } => "backplane_down",
            Rejection::Unconfirmed => "unconfirmed",
            Rejection::BackplaneFull => "backplane_full",
            Rejection::HeadTimeout { .. } => "handshake_timeout",
            Rejection::BodyTimeout { .. } => "body_timeout",
            Rejection::ConnectionClosing => "closing",
        }
    }

    fn message(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Rejection::PermissionDenied => "permission denied",
            Rejection::AlreadySubscribed => "already subscribed to this channel",
            Rejection::NotSubscribed => "not subscribed to this channel",
            Rejection::TooManyChannels(Limit::ChannelsPerPublisher) => {
                "this client has created its maximum number of channels; a channel is removed after its last \
                 subscriber and message"
            }
            Rejection::TooManyChannels(_) => "this connection has its maximum number of channels",
            Rejection::ChannelTableFull => "the server has its maximum number of channels",
            Rejection::ConnectionTableFull => "the server has its maximum number of connections",
            Rejection::TooManyConnections => "this address has its maximum number of connections",
            Rejection::KeyReused => "a message with another payload was published with this idempotency key",
            Rejection::RateLimited { retry_ms } => {
                return format!("rate limit exceeded, retry_ms={retry_ms}").into();
            }
            Rejection::LowMemory => "the server is low on memory",
            Rejection::Draining { .. } => "the server is shutting down",
            Rejection::BackplaneDown { .. } => "the backplane is down",
            Rejection::NotPublished { .. } => "not published: the backplane is down",
            Rejection::Unconfirmed => {
                "the backplane has not confirmed the request in time; it may have been carried out: send it again, a message with the same key"
            }
            Rejection::BackplaneFull => "not carried out: Redis is out of memory (maxmemory); retry later",
            Rejection::HeadTimeout { timeout_ms } => {
                return format!("the request head was not complete after {timeout_ms} ms").into();
            }
            Rejection::BodyTimeout { timeout_ms } => {
                return format!("the request body was not complete after {timeout_ms} ms").into();
            }
            Rejection::ConnectionClosing => "the connection is closing",
        })
    }

    fn status(&self) -> u16 {
        match self {
            Rejection::PermissionDenied => 403,
            Rejection::HeadTimeout { .. } | Rejection::BodyTimeout { .. } => 408,
            Rejection::AlreadySubscribed | Rejection::NotSubscribed => 409,
            // draft-ietf-httpapi-idempotency-key-header-06 2.7.
            Rejection::KeyReused => 422,
            Rejection::TooManyChannels(_) | Rejection::TooManyConnections | Rejection::RateLimited { .. } => {
                429
            }
            Rejection::ChannelTableFull
            | Rejection::ConnectionTableFull
            | Rejection::LowMemory
            | Rejection::Draining { .. }
            | Rejection::BackplaneDown { .. }
            | Rejection::NotPublished { .. }
            | Rejection::Unconfirmed
            | Rejection::BackplaneFull
            | Rejection::ConnectionClosing => 503,
        }
    }

    /// The value of `Retry-After`, before it is rounded up to seconds.
    fn retry_ms(&self) -> Option<u32> {
        match self {
            Rejection::RateLimited { retry_ms }
            | Rejection::Draining { retry_ms }
            | Rejection::BackplaneDown { retry_ms }
            | Rejection::NotPublished { retry_ms } => Some(*retry_ms),
            Rejection::Unconfirmed => Some(BACKPLANE_RETRY_MS),
            Rejection::TooManyChannels(_) | Rejection::TooManyConnections => Some(TOO_MANY_RETRY_MS),
            Rejection::ChannelTableFull | Rejection::ConnectionTableFull | Rejection::ConnectionClosing => {
                Some(1_000)
            }
            Rejection::LowMemory | Rejection::BackplaneFull => Some(5_000),
            Rejection::PermissionDenied
            | Rejection::AlreadySubscribed
            | Rejection::NotSubscribed
            | Rejection::KeyReused
            | Rejection::HeadTimeout { .. }
            | Rejection::BodyTimeout { .. } => None,
        }
    }

    /// The error response to an HTTP request.
    pub fn http(&self) -> HttpError {
        let error = HttpError::new(self.status(), self.code(), self.message());
        match self.retry_ms() {
            Some(retry_ms) => error.retry_after(retry_ms),
            None => error,
        }
    }

    /// The error frame of `oyez.v1`, if one may be sent.
    pub fn v1(&self, reference: Option<&RawValue>, ch: Option<&str>) -> Option<Vec<u8>> {
        if *self == Rejection::ConnectionClosing {
            return None;
        }
        let notice = Notice::Error { reference, ch, code: self.code(), message: &self.message() };
        Some(notice.to_frame())
    }

    /// The reason with which a connection is closed whose protocol has no error messages (a raw WebSocket, an event
    /// stream). `None`: it stays open.
    pub fn close(&self) -> Option<Reason> {
        match *self {
            Rejection::PermissionDenied => Some(Reason::Forbidden),
            Rejection::ChannelTableFull => Some(Reason::OverCapacity),
            Rejection::ConnectionTableFull => Some(Reason::NoRoom),
            Rejection::TooManyConnections => Some(Reason::TooManyConnections),
            Rejection::RateLimited { retry_ms } => Some(Reason::RateLimited { retry_ms }),
            Rejection::LowMemory => Some(Reason::LowMemory),
            Rejection::Draining { retry_ms } => Some(Reason::Drain { retry_ms }),
            Rejection::BackplaneDown { retry_ms } | Rejection::NotPublished { retry_ms } => {
                Some(Reason::BackplaneDown { retry_ms })
            }
            Rejection::Unconfirmed => Some(Reason::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS }),
            Rejection::BackplaneFull => Some(Reason::BackplaneFull { retry_ms: 5_000 }),
            Rejection::HeadTimeout { .. } => Some(Reason::HandshakeTimeout),
            Rejection::BodyTimeout { .. } => Some(Reason::BodyTimeout),
            Rejection::AlreadySubscribed
            | Rejection::NotSubscribed
            | Rejection::TooManyChannels(_)
            | Rejection::KeyReused
            | Rejection::ConnectionClosing => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::session::http::response::ResponseOptions;

    const SAMPLES: [Rejection; 8] = [
        Rejection::PermissionDenied,
        Rejection::TooManyChannels(Limit::ChannelsPerPublisher),
        Rejection::ChannelTableFull,
        Rejection::RateLimited { retry_ms: 1_500 },
        Rejection::Draining { retry_ms: 0 },
        Rejection::BackplaneDown { retry_ms: 1_000 },
        Rejection::Unconfirmed,
        Rejection::BackplaneFull,
    ];

    #[test]
    fn rejection_has_the_same_code_and_text_in_http_and_v1() {
        for rejection in SAMPLES {
            let response = rejection.http().respond(&ResponseOptions::last(Rc::default()));
            let response = String::from_utf8(response).unwrap();
            let frame = rejection.v1(None, Some("prices")).unwrap();
            let frame = String::from_utf8_lossy(&frame).into_owned();
            let text = format!("\"code\":\"{}\",\"message\":\"{}\"", rejection.code(), rejection.message());
            assert!(response.contains(&text), "{response}");
            assert!(frame.contains(&text), "{frame}");
        }
        assert_eq!(Rejection::ConnectionClosing.v1(None, None), None);
    }

    #[test]
    fn retry_after_is_never_zero() {
        for (retry_ms, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2")] {
            for rejection in [Rejection::Draining { retry_ms }, Rejection::RateLimited { retry_ms }] {
                let response = rejection.http().respond(&ResponseOptions::last(Rc::default()));
                let response = String::from_utf8(response).unwrap();
                assert!(response.contains(&format!("\r\nRetry-After: {seconds}\r\n")), "{response}");
            }
        }
    }
}
