//! Every close has a name.
//!
//! One table gives each reason its close code, the word that stands in the log, in the metric's label
//! and in the close frame, and what a client should do. Private codes follow the ranges that Pusher's
//! protocol made common: 4000-4099 do not come back unchanged, 4100-4199 come back later, 4200-4299 come
//! back as told.

use std::fmt;

use crate::ids::GapReason;

/// Why a connection ended, or is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer began the close handshake (RFC 6455 7.1.4).
    PeerClosed,
    /// The peer's end of file came without a close handshake.
    EndOfFile,
    /// The socket failed: a reset, a broken pipe, a TCP timeout.
    Reset,
    /// The request was answered with an HTTP error; which one is in the log.
    Refused {
        /// The status of the answer.
        status: u16,
    },
    /// The table of connections is full; answered with 503.
    NoRoom,
    /// The request head was not complete in time.
    HandshakeTimeout,
    /// The peer broke RFC 6455.
    Protocol,
    /// A text message was not UTF-8 (RFC 6455 8.1).
    NotUtf8,
    /// A message was over the limit.
    TooBig {
        /// The limit that it broke, in bytes.
        message_bytes_max: u32,
    },
    /// Something that should not happen.
    Internal,
    /// The table of channels is full.
    OverCapacity,
    /// The peer did not read what was sent to it.
    Slow,
    /// No sign of life after a ping.
    NoPong,
    /// The server is going away.
    Drain {
        /// When to come back, in milliseconds: spread, so that not everybody comes at once.
        retry_ms: u32,
    },
    /// The server had to go before the close was complete.
    Cut,
    /// The request was answered, and the client asked for no other.
    Served,
    /// A connection kept for further requests saw none for too long.
    Idle,
    /// A request's body was not complete in time; answered with 408.
    BodyTimeout,
    /// A binary message where the subprotocol has only text.
    Unsupported,
    /// The cursor asks for more than is kept, and a raw WebSocket has no words for that.
    Gap {
        /// Why it is not kept.
        why: GapReason,
    },
    /// What came was no good TLS; the peer got an alert.
    TlsFailed {
        /// What was wrong.
        fault: TlsFault,
    },
    /// The peer came or published faster than it may.
    RateLimited {
        /// When to come back, in milliseconds.
        retry_ms: u32,
    },
    /// The peer's address has as many connections as it may; answered with 429.
    TooManyConnections,
    /// A trusted proxy did not say for whom it speaks.
    ProxyHeader {
        /// What came in place of a header of the PROXY protocol.
        fault: ProxyFault,
    },
    /// A token, or what was shown in its place, is not taken. A browser cannot see the status of a handshake,
    /// so it is told behind the upgrade.
    BadToken {
        /// What is wrong with it.
        why: TokenFault,
    },
    /// Its token does not give it that, or its rights were taken away.
    Forbidden,
    /// It was to show a token, and has not in time.
    AuthTimeout,
    /// Its token has ended, and no new one came.
    TokenExpired,
    /// A message was not complete in time.
    MessageTimeout,
    /// The process is close to its memory budget, and accepts no large message that is not complete.
    LowMemory,
}

/// What was wrong with the peer's TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFault {
    /// It was a request in plain HTTP, and was answered with 400.
    PlainHttp,
    /// It was no TLS.
    NotTls,
    /// No version, cipher suite or protocol in common.
    NoCommonParameters,
    /// The peer sent an alert: it does not like our certificate, or does not know who signed it.
    Alert(u8),
    /// It broke the protocol.
    Protocol,
    /// A record could not be decrypted.
    BadRecord,
    /// A record was not complete in time.
    RecordTimeout,
    /// Something that should not happen.
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

/// What is wrong with the beginning of a proxy's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyFault {
    /// It is no header of the PROXY protocol, version 2.
    Missing,
    /// It is a header of version 1: the proxy has to be configured to send version 2.
    Version1,
    /// It begins as one and is none.
    Bad,
    /// It ended before it was whole.
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

/// What is wrong with a token, or with what is shown in its place. It says nothing of what was shown, so a log, a
/// metric and a client can all be told; and it takes one byte of a [`Reason`], which every slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// It is longer than any token that is taken.
    TooLong,
    /// Not three parts in base64url, or its claims are not an object in JSON (RFC 7519 7.2).
    Malformed,
    /// Its header is not one: no algorithm, `none`, or one that does not exist.
    Header,
    /// Its header asks for something that is not understood here (RFC 7515 4.1.11).
    Critical,
    /// No key is for its algorithm and its `kid`.
    NoKey,
    /// No key has made its signature.
    Signature,
    /// It has no end.
    NoExpiry,
    /// It has ended.
    Expired,
    /// It has not begun.
    NotYet,
    /// It is for somebody else.
    Audience,
    /// It is from somebody else.
    Issuer,
    /// This claim is of a wrong type, or says what it cannot say.
    Claim(ClaimName),
    /// It is a ticket that is none, was used, or has ended.
    Ticket,
    /// It is the ticket of an event stream that is still open.
    TicketInUse,
    /// It stands in the address, and that is not allowed here.
    InAddress,
    /// It comes twice, or in a way that cannot be read.
    Unclear,
    /// It is not there, where it has to be.
    Missing,
}

/// A claim that a token's rights depend on (RFC 7519 4.1), or a part of the claim `oyez`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimName {
    /// Its end.
    Exp,
    /// Its beginning.
    Nbf,
    /// Whom it is for.
    Aud,
    /// Who has made it.
    Iss,
    /// Whose it is.
    Sub,
    /// The user (`sub` and `info`).
    Info,
    /// The rights that it gives.
    Oyez,
    /// The channels that may be heard.
    OyezSubscribe,
    /// The channels that may be published on.
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

/// A sentence for people.
impl fmt::Display for TokenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenFault::TooLong => "the token is over 8 KiB",
            TokenFault::Malformed => "not a JWT",
            TokenFault::Header => "the token's header names no algorithm that is taken",
            TokenFault::Critical => "the token's header asks for what is not understood",
            TokenFault::NoKey => "there is no key for the token's algorithm and kid",
            TokenFault::Signature => "the token's signature is not by a key that is known",
            TokenFault::NoExpiry => "the token has no exp, and one without an end is not taken",
            TokenFault::Expired => "the token has expired",
            TokenFault::NotYet => "the token is not valid yet (nbf)",
            TokenFault::Audience => "the token is for another audience (aud)",
            TokenFault::Issuer => "the token is from another issuer (iss)",
            TokenFault::Claim(name) => return write!(f, "the token's claim {name} is not what it has to be"),
            TokenFault::Ticket => "the ticket is none, was used, or has ended",
            TokenFault::TicketInUse => "the event stream of this ticket is still open; try again",
            TokenFault::InAddress => {
                "a token in the address is not taken here: ask for a ticket, POST /v1/tickets"
            }
            TokenFault::Unclear => "a token or a ticket comes once, as Authorization: Bearer TOKEN",
            TokenFault::Missing => "this takes a token: Authorization: Bearer TOKEN",
        })
    }
}

impl std::error::Error for TokenFault {}

impl Reason {
    /// How many reasons there are: the length of a table that has a line for each.
    pub const COUNT: usize = 30;

    /// This reason's line in such a table.
    pub fn index(self) -> usize {
        match self {
            Reason::PeerClosed => 0,
            Reason::EndOfFile => 1,
            Reason::Reset => 2,
            Reason::Refused { .. } => 3,
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
        }
    }

    /// The words of all reasons, in the order of [`Reason::index`].
    pub const WORDS: [&str; Reason::COUNT] = [
        "peer_closed",
        "end_of_file",
        "reset",
        "refused",
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
    ];

    /// One word for logs, metrics and the close frame's reason.
    pub fn as_str(self) -> &'static str {
        Reason::WORDS[self.index()]
    }

    /// The code of the close frame that we send for this reason, or `None` where we send none of our
    /// own: the peer's is echoed, or there is nobody left to tell.
    pub fn code(self) -> Option<u16> {
        match self {
            Reason::PeerClosed | Reason::EndOfFile | Reason::Reset | Reason::Cut => None,
            Reason::Refused { .. } | Reason::NoRoom | Reason::HandshakeTimeout => None,
            Reason::Served | Reason::Idle | Reason::BodyTimeout => None,
            // Nothing that we send would be understood.
            Reason::TlsFailed { .. } => None,
            Reason::TooManyConnections | Reason::ProxyHeader { .. } => None,
            Reason::Protocol => Some(1002),
            Reason::Unsupported => Some(1003),
            Reason::NotUtf8 => Some(1007),
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
            Reason::MessageTimeout => Some(4104),
            Reason::Drain { .. } => Some(4200),
            Reason::TokenExpired => Some(4201),
        }
    }

    /// May the frames that the peer sends after our close frame be trusted to end in its own?
    ///
    /// Not after it broke the framing; then we hang up as soon as our close frame is out.
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
        )
    }
}

/// The close frame's reason: the word, then `name=value` where a client can use one; at most 123 bytes
/// (RFC 6455 5.5).
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        match self {
            Reason::Refused { status } => write!(f, " status={status}"),
            Reason::TooBig { message_bytes_max } => write!(f, " message_bytes_max={message_bytes_max}"),
            Reason::Drain { retry_ms } | Reason::RateLimited { retry_ms } => {
                write!(f, " retry_ms={retry_ms}")
            }
            Reason::Gap { why } => write!(f, " why={}", why.as_str()),
            Reason::TlsFailed { fault } => write!(f, " why={fault}"),
            Reason::ProxyHeader { fault } => write!(f, " why={}", fault.as_str()),
            Reason::BadToken { why } => write!(f, " why={}", why.as_str()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason, each with the code that a client sees.
    fn table() -> Vec<(Reason, Option<u16>, &'static str)> {
        vec![
            (Reason::PeerClosed, None, "peer_closed"),
            (Reason::EndOfFile, None, "end_of_file"),
            (Reason::Reset, None, "reset"),
            (Reason::Refused { status: 404 }, None, "refused status=404"),
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
            (Reason::MessageTimeout, Some(4104), "message_timeout"),
            (Reason::LowMemory, Some(1013), "low_memory"),
        ]
    }

    #[test]
    fn each_reason_has_a_code_a_word_and_a_line_of_its_own() {
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
    fn each_fault_of_a_token_has_a_word_and_a_sentence_of_its_own() {
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
            // It stands in JSON as it is.
            assert!(!one.to_string().contains(['"', '\\']), "{one}");
        }
        assert_eq!(size_of::<TokenFault>(), 1);
    }
}
