//! Close reasons: every close has a name, which determines its close code, log word and metric label.
//!
//! The close frame carries the word too. Private codes follow the ranges that Pusher's protocol made common: 4000-4099
//! do not retry unchanged, 4100-4199 back off and retry, 4200-4299 reconnect as the reason says.

use std::borrow::Cow;
use std::fmt;

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

/// The cause of a TLS failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// A plain HTTP request; the response is 400.
    PlainHttp,
    /// Neither TLS nor HTTP.
    NotTls,
    /// No version, cipher suite or protocol in common.
    NoCommonParameters,
    /// The peer sent an alert: it rejects the certificate, or does not trust its issuer.
    Alert(u8),
    /// A protocol violation.
    Protocol,
    /// A record could not be decrypted.
    BadRecord,
    /// A record was incomplete at its deadline.
    RecordTimeout,
    /// An internal error.
    Internal,
}

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsFault::PlainHttp => f.write_str("plain_http"),
            TlsFault::NotTls => f.write_str("not_tls"),
            TlsFault::NoCommonParameters => f.write_str("nothing_in_common"),
            TlsFault::Alert(code) => write!(f, "alert_{code}"),
            TlsFault::Protocol => f.write_str("protocol"),
            TlsFault::BadRecord => f.write_str("bad_record"),
            TlsFault::RecordTimeout => f.write_str("record_timeout"),
            TlsFault::Internal => f.write_str("internal"),
        }
    }
}

/// The error in a PROXY protocol header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyFault {
    /// The connection does not start with a header of version 2.
    Missing,
    /// A header of version 1: the proxy must be configured to send version 2.
    Version1,
    /// A malformed header.
    Bad,
    /// The peer sent EOF within the header.
    Incomplete,
}

impl ProxyFault {
    /// One word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyFault::Missing => "missing",
            ProxyFault::Version1 => "version_1_expected_2",
            ProxyFault::Bad => "bad",
            ProxyFault::Incomplete => "incomplete",
        }
    }
}

/// The error in a token or ticket. It holds no part of the token, so it can appear in logs, metrics and responses; and
/// it takes one byte of a [`Reason`], which every slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// The token is longer than the maximum.
    TooLong,
    /// Not three parts in base64url, or the claims are not a JSON object (RFC 7519 7.2).
    Malformed,
    /// An invalid header: the algorithm is missing, `none` or unknown.
    Header,
    /// The header requires an extension that is not supported (RFC 7515 4.1.11).
    Critical,
    /// No key matches the algorithm and the `kid`.
    NoKey,
    /// No key verifies the signature.
    Signature,
    /// The claim `exp` is missing.
    NoExpiry,
    /// The token has expired.
    Expired,
    /// The token is not valid yet.
    NotYet,
    /// The token is for another audience.
    Audience,
    /// The token is from another issuer.
    Issuer,
    /// A claim of a wrong type or with an invalid value.
    Claim(ClaimName),
    /// The ticket is unknown, was used or has expired.
    Ticket,
    /// The event stream of the ticket is still open.
    TicketInUse,
    /// A token in the URL, which the server does not accept.
    InAddress,
    /// More than one token, or a malformed `Authorization` header.
    Unclear,
    /// The required token is missing.
    Missing,
}

/// A claim that is validated (RFC 7519 4.1), or a member of the claim `oyez`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimName {
    /// The expiry.
    Exp,
    /// The time before which the token is not valid.
    Nbf,
    /// The audience.
    Aud,
    /// The issuer.
    Iss,
    /// The subject.
    Sub,
    /// The public information about the user.
    Info,
    /// The rights.
    Oyez,
    /// The channels that the bearer may subscribe to.
    OyezSubscribe,
    /// The channels that the bearer may publish on.
    OyezPublish,
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClaimName::Exp => "exp",
            ClaimName::Nbf => "nbf",
            ClaimName::Aud => "aud",
            ClaimName::Iss => "iss",
            ClaimName::Sub => "sub",
            ClaimName::Info => "info",
            ClaimName::Oyez => "oyez",
            ClaimName::OyezSubscribe => "oyez.subscribe",
            ClaimName::OyezPublish => "oyez.publish",
        })
    }
}

impl TokenFault {
    /// One word, for logs, metrics and clients.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenFault::TooLong => "token_too_long",
            TokenFault::Malformed => "token_malformed",
            TokenFault::Header => "token_header",
            TokenFault::Critical => "token_critical",
            TokenFault::NoKey => "token_no_key",
            TokenFault::Signature => "token_signature",
            TokenFault::NoExpiry => "token_no_expiry",
            TokenFault::Expired => "token_expired",
            TokenFault::NotYet => "token_not_yet",
            TokenFault::Audience => "token_audience",
            TokenFault::Issuer => "token_issuer",
            TokenFault::Claim(_) => "token_claim",
            TokenFault::Ticket => "bad_ticket",
            TokenFault::TicketInUse => "ticket_in_use",
            TokenFault::InAddress => "token_in_address",
            TokenFault::Unclear => "token_unclear",
            TokenFault::Missing => "token_missing",
        }
    }
}

/// The error message for clients.
impl fmt::Display for TokenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenFault::TooLong => "the token is longer than 8 KiB",
            TokenFault::Malformed => "the token is not a JWT",
            TokenFault::Header => "the algorithm in the token's header is missing or not supported",
            TokenFault::Critical => "the token's header requires an extension that is not supported (crit)",
            TokenFault::NoKey => "no key for the token's algorithm and kid",
            TokenFault::Signature => "invalid signature: no key of the server verifies the token",
            TokenFault::NoExpiry => "the token has no expiry (exp), which is required",
            TokenFault::Expired => "the token has expired",
            TokenFault::NotYet => "the token is not valid yet (nbf)",
            TokenFault::Audience => "the token is for another audience (aud)",
            TokenFault::Issuer => "the token is from another issuer (iss)",
            TokenFault::Claim(name) => return write!(f, "the token's claim {name} is invalid"),
            TokenFault::Ticket => "the ticket is unknown, was used or has expired",
            TokenFault::TicketInUse => "the event stream of this ticket is still open; try again",
            TokenFault::InAddress => {
                "a token in the URL is not accepted: request a ticket with POST /v1/tickets"
            }
            TokenFault::Unclear => "send one token or ticket, as Authorization: Bearer TOKEN",
            TokenFault::Missing => "a token is required: Authorization: Bearer TOKEN",
        })
    }
}

impl std::error::Error for TokenFault {}

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

    #[test]
    fn each_token_fault_has_its_word_and_message() {
        let faults = [
            TokenFault::TooLong,
            TokenFault::Malformed,
            TokenFault::Header,
            TokenFault::Critical,
            TokenFault::NoKey,
            TokenFault::Signature,
            TokenFault::NoExpiry,
            TokenFault::Expired,
            TokenFault::NotYet,
            TokenFault::Audience,
            TokenFault::Issuer,
            TokenFault::Claim(ClaimName::Exp),
            TokenFault::Ticket,
            TokenFault::TicketInUse,
            TokenFault::InAddress,
            TokenFault::Unclear,
            TokenFault::Missing,
        ];
        for (place, one) in faults.iter().enumerate() {
            for other in &faults[..place] {
                assert_ne!(one.as_str(), other.as_str());
                assert_ne!(one.to_string(), other.to_string());
            }
            // The text is inserted in JSON without escaping.
            assert!(!one.to_string().contains(['"', '\\']), "{one}");
        }
        assert_eq!(size_of::<TokenFault>(), 1);
    }
}
