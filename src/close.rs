//! Close reasons: every close has a name, which determines its close code, log word and metric label.
//!
//! The close frame carries the word too. Private codes follow the ranges that Pusher's protocol made common: 4000-4099
//! do not retry unchanged, 4100-4199 back off and retry, 4200-4299 reconnect as the reason says.

use std::borrow::Cow;
use std::fmt;

use crate::fault::{ProxyFault, TlsFault, TokenFault};
use crate::ids::GapReason;

/// The reason of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer began the close handshake (RFC 6455 7.1.4).
    PeerClosed,
    /// The peer sent EOF without a close handshake.
    EndOfFile,
    /// A socket error: a reset, a broken pipe, a TCP timeout.
    Reset,
    /// The request was rejected with an HTTP error, whose code is in the log.
    Rejected {
        /// The status of the response.
        status: u16,
    },
    /// The maximum number of connections is reached; the response is 503.
    NoRoom,
    /// The request head was incomplete at its deadline.
    HandshakeTimeout,
    /// The peer violated RFC 6455.
    Protocol,
    /// A text message was not UTF-8 (RFC 6455 8.1).
    NotUtf8,
    /// The data of a compressed message could not be decompressed (RFC 7692 7.2.2).
    BadDeflate,
    /// A message exceeded the limit.
    TooBig {
        /// The limit, in bytes.
        message_bytes_max: u32,
    },
    /// An internal error.
    Internal,
    /// The maximum number of channels is reached.
    OverCapacity,
    /// A slow consumer: the peer did not read its messages fast enough.
    Slow,
    /// The peer sent nothing after a ping.
    NoPong,
    /// The server is shutting down.
    Drain {
        /// Milliseconds after which the client should reconnect. Spread, so that clients do not reconnect all at once.
        retry_ms: u32,
    },
    /// The server ended before the close was complete.
    Cut,
    /// The response was sent, and the connection is not kept alive.
    Served,
    /// A keep-alive connection received no further request in time.
    Idle,
    /// A request's body was incomplete at its deadline; the response is 408.
    BodyTimeout,
    /// A binary message on a subprotocol that only has text messages.
    Unsupported,
    /// Messages after the cursor are no longer retained, and a raw WebSocket has no notice for that.
    Gap {
        /// The reason of the gap.
        why: GapReason,
    },
    /// TLS failed; the peer received an alert.
    TlsFailed {
        /// The cause.
        fault: TlsFault,
    },
    /// A rate limit of handshakes or messages was exceeded.
    RateLimited {
        /// Milliseconds after which the client may retry.
        retry_ms: u32,
    },
    /// The peer's address has the maximum number of connections; the response is 429.
    TooManyConnections,
    /// A trusted proxy did not send a valid PROXY protocol header.
    ProxyHeader {
        /// The cause.
        fault: ProxyFault,
    },
    /// A token or ticket was rejected. A browser cannot see the status of a handshake, so it receives this close after
    /// the upgrade.
    BadToken {
        /// The cause.
        why: TokenFault,
    },
    /// Permission denied: the token does not grant the right, or the client's rights were revoked.
    Forbidden,
    /// The client had to authenticate, and did not in time.
    AuthTimeout,
    /// The token expired, and the client did not send a new one.
    TokenExpired,
    /// A message was incomplete at its deadline.
    MessageTimeout,
    /// The process is near its memory budget, and rejects large incomplete messages.
    LowMemory,
    /// A message of a raw WebSocket, or its subscription, needs the shared log, which cannot be reached.
    BackplaneDown {
        /// Milliseconds after which the client may retry.
        retry_ms: u32,
    },
    /// Redis has no memory left for the message of a raw WebSocket.
    BackplaneFull {
        /// Milliseconds after which the client may retry.
        retry_ms: u32,
    },
    /// Messages of the shared log are missing here, and a raw WebSocket has no notice for that.
    Lost,
}

/// The value of [`Reason::detail`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// A time, a status or a number of bytes.
    Number(u32),
    /// The cause, in one word.
    Word(Cow<'static, str>),
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detail::Number(number) => number.fmt(f),
            Detail::Word(word) => f.write_str(word),
        }
    }
}

impl Reason {
    /// The number of reasons.
    pub const COUNT: usize = 34;

    /// The field that completes the reason in the log and in the close frame.
    pub fn detail(self) -> Option<(&'static str, Detail)> {
        let word = |text: &'static str| Detail::Word(text.into());
        Some(match self {
            Reason::Rejected { status } => ("status", Detail::Number(status.into())),
            Reason::TooBig { message_bytes_max } => ("message_bytes_max", Detail::Number(message_bytes_max)),
            Reason::Drain { retry_ms }
            | Reason::RateLimited { retry_ms }
            | Reason::BackplaneDown { retry_ms }
            | Reason::BackplaneFull { retry_ms } => ("retry_ms", Detail::Number(retry_ms)),
            Reason::Gap { why } => ("why", word(why.as_str())),
            Reason::TlsFailed { fault } => ("why", Detail::Word(fault.to_string().into())),
            Reason::ProxyHeader { fault } => ("why", word(fault.as_str())),
            Reason::BadToken { why } => ("why", word(why.as_str())),
            _ => return None,
        })
    }

    /// The index of this reason in a table of all reasons, such as [`Reason::WORDS`].
    pub fn index(self) -> usize {
        match self {
            Reason::PeerClosed => 0,
            Reason::EndOfFile => 1,
            Reason::Reset => 2,
            Reason::Rejected { .. } => 3,
            Reason::HandshakeTimeout => 4,
            Reason::Protocol => 5,
            Reason::NotUtf8 => 6,
            Reason::TooBig { .. } => 7,
            Reason::Internal => 8,
            Reason::OverCapacity => 9,
            Reason::Slow => 10,
            Reason::NoPong => 11,
            Reason::Drain { .. } => 12,
            Reason::Cut => 13,
            Reason::NoRoom => 14,
            Reason::Served => 15,
            Reason::Idle => 16,
            Reason::BodyTimeout => 17,
            Reason::Unsupported => 18,
            Reason::Gap { .. } => 19,
            Reason::TlsFailed { .. } => 20,
            Reason::RateLimited { .. } => 21,
            Reason::TooManyConnections => 22,
            Reason::ProxyHeader { .. } => 23,
            Reason::BadToken { .. } => 24,
            Reason::Forbidden => 25,
            Reason::AuthTimeout => 26,
            Reason::TokenExpired => 27,
            Reason::MessageTimeout => 28,
            Reason::LowMemory => 29,
            Reason::Lost => 30,
            Reason::BadDeflate => 31,
            Reason::BackplaneDown { .. } => 32,
            Reason::BackplaneFull { .. } => 33,
        }
    }

    /// The words of all reasons, in the order of [`Reason::index`].
    pub const WORDS: [&str; Reason::COUNT] = [
        "peer_closed",
        "end_of_file",
        "reset",
        "rejected",
        "handshake_timeout",
        "protocol",
        "not_utf8",
        "too_big",
        "internal",
        "over_capacity",
        "slow",
        "no_pong",
        "drain",
        "cut",
        "no_room",
        "served",
        "idle",
        "body_timeout",
        "unsupported",
        "gap",
        "tls_failed",
        "rate_limited",
        "too_many_connections",
        "proxy_header",
        "bad_token",
        "forbidden",
        "auth_timeout",
        "token_expired",
        "message_timeout",
        "low_memory",
        "lost",
        "bad_deflate",
        "backplane_down",
        "backplane_full",
    ];

    /// One word for logs, metrics and the close frame's reason.
    pub fn as_str(self) -> &'static str {
        Reason::WORDS[self.index()]
    }

    /// The code of the close frame for this reason, or `None` if the server does not initiate the close handshake: it
    /// echoes the peer's code, or there is no open WebSocket.
    pub fn code(self) -> Option<u16> {
        match self {
            Reason::PeerClosed | Reason::EndOfFile | Reason::Reset | Reason::Cut => None,
            Reason::Rejected { .. } | Reason::NoRoom | Reason::HandshakeTimeout => None,
            Reason::Served | Reason::Idle | Reason::BodyTimeout => None,
            // No WebSocket yet.
            Reason::TlsFailed { .. } => None,
            Reason::TooManyConnections | Reason::ProxyHeader { .. } => None,
            Reason::Protocol => Some(1002),
            Reason::Unsupported => Some(1003),
            Reason::NotUtf8 | Reason::BadDeflate => Some(1007),
            Reason::TooBig { .. } => Some(1009),
            Reason::Internal => Some(1011),
            // "Try Again Later" in the IANA's registry of close codes.
            Reason::LowMemory => Some(1013),
            Reason::BadToken { .. } => Some(4001),
            Reason::Forbidden => Some(4003),
            Reason::AuthTimeout => Some(4008),
            Reason::Gap { .. } => Some(4010),
            Reason::OverCapacity => Some(4100),
            Reason::RateLimited { .. } => Some(4101),
            Reason::Slow => Some(4102),
            Reason::NoPong => Some(4103),
            Reason::Lost => Some(4104),
            Reason::BackplaneDown { .. } | Reason::BackplaneFull { .. } => Some(4104),
            Reason::MessageTimeout => Some(4105),
            Reason::Drain { .. } => Some(4200),
            Reason::TokenExpired => Some(4201),
        }
    }

    /// Returns true if the server waits for the peer's close frame after it has sent its own.
    ///
    /// It does not after a framing error, since the peer's further frames cannot be parsed: it closes the connection as
    /// soon as its close frame is written.
    pub fn awaits_peers_close(self) -> bool {
        matches!(
            self,
            Reason::Unsupported
                | Reason::Gap { .. }
                | Reason::OverCapacity
                | Reason::RateLimited { .. }
                | Reason::Slow
                | Reason::NoPong
                | Reason::Drain { .. }
                | Reason::BadToken { .. }
                | Reason::Forbidden
                | Reason::AuthTimeout
                | Reason::TokenExpired
                | Reason::MessageTimeout
                | Reason::LowMemory
                | Reason::Lost
                | Reason::BackplaneDown { .. }
                | Reason::BackplaneFull { .. }
        )
    }
}

/// The close frame's reason: the word, then `name=value` where a client can use one; at most 123 bytes
/// (RFC 6455 5.5).
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self.detail() {
            Some((name, detail)) => write!(f, " {name}={detail}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason, with its close code and the text of the close frame.
    fn table() -> Vec<(Reason, Option<u16>, &'static str)> {
        vec![
            (Reason::PeerClosed, None, "peer_closed"),
            (Reason::EndOfFile, None, "end_of_file"),
            (Reason::Reset, None, "reset"),
            (Reason::Rejected { status: 404 }, None, "rejected status=404"),
            (Reason::HandshakeTimeout, None, "handshake_timeout"),
            (Reason::Protocol, Some(1002), "protocol"),
            (Reason::NotUtf8, Some(1007), "not_utf8"),
            (
                Reason::TooBig { message_bytes_max: u32::MAX },
                Some(1009),
                "too_big message_bytes_max=4294967295",
            ),
            (Reason::Internal, Some(1011), "internal"),
            (Reason::OverCapacity, Some(4100), "over_capacity"),
            (Reason::Slow, Some(4102), "slow"),
            (Reason::NoPong, Some(4103), "no_pong"),
            (Reason::Drain { retry_ms: 8_350 }, Some(4200), "drain retry_ms=8350"),
            (Reason::Cut, None, "cut"),
            (Reason::NoRoom, None, "no_room"),
            (Reason::Served, None, "served"),
            (Reason::Idle, None, "idle"),
            (Reason::BodyTimeout, None, "body_timeout"),
            (Reason::Unsupported, Some(1003), "unsupported"),
            (Reason::Gap { why: GapReason::Evicted }, Some(4010), "gap why=evicted"),
            (Reason::TlsFailed { fault: TlsFault::Alert(48) }, None, "tls_failed why=alert_48"),
            (Reason::RateLimited { retry_ms: u32::MAX }, Some(4101), "rate_limited retry_ms=4294967295"),
            (Reason::TooManyConnections, None, "too_many_connections"),
            (Reason::ProxyHeader { fault: ProxyFault::Missing }, None, "proxy_header why=missing"),
            (Reason::BadToken { why: TokenFault::Expired }, Some(4001), "bad_token why=token_expired"),
            (Reason::Forbidden, Some(4003), "forbidden"),
            (Reason::AuthTimeout, Some(4008), "auth_timeout"),
            (Reason::TokenExpired, Some(4201), "token_expired"),
            (Reason::MessageTimeout, Some(4105), "message_timeout"),
            (Reason::LowMemory, Some(1013), "low_memory"),
            (Reason::Lost, Some(4104), "lost"),
            (Reason::BadDeflate, Some(1007), "bad_deflate"),
            (Reason::BackplaneDown { retry_ms: 1_000 }, Some(4104), "backplane_down retry_ms=1000"),
            (Reason::BackplaneFull { retry_ms: 5_000 }, Some(4104), "backplane_full retry_ms=5000"),
        ]
    }

    #[test]
    fn each_reason_has_its_code_word_and_index() {
        let table = table();
        assert_eq!(table.len(), Reason::COUNT);
        for (line, (reason, code, text)) in table.into_iter().enumerate() {
            assert_eq!(reason.index(), line, "{reason:?}");
            assert_eq!(reason.code(), code, "{reason:?}");
            assert_eq!(reason.to_string(), text);
            assert!(text.starts_with(reason.as_str()));
            assert!(text.len() <= 123, "RFC 6455 5.5 leaves 123 bytes: {text}");
        }
        let mut words = Reason::WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::COUNT);
    }
}
