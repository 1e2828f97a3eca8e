//! Faults: errors in a client's TLS, PROXY header or token. They are details of a close or of an error
//! response.

use std::fmt;

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
/// it takes one byte of a close reason, which every slot holds.
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

#[cfg(test)]
mod tests {
    use super::*;

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
