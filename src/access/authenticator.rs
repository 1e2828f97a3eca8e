//! Authentication: tokens and tickets, and the rights of clients without either.
//!
//! A client without credentials has the rights that the operator grants to anonymous clients, if any. A client with an
//! invalid token or ticket is rejected and does not become anonymous: a program whose token has expired must receive an
//! error, not fewer channels.

use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::grant::Grant;
use super::rate_limiter::RateLimiter;
use super::rejection_log::RejectionLog;
use super::ticket::{self, Redemption, StreamTicketError, Tickets};
use super::token::{LEEWAY_SECONDS, Verifier};
use crate::fault::TokenFault;
use crate::ids::{RunId, SlotId};
use crate::time::LoopTime;

/// The rights of a client: the grant of its token, or `None` for the rights of anonymous clients.
///
/// The `Option` costs no memory, and an anonymous connection holds no reference count.
pub type Rights = Option<Rc<Grant>>;

/// The rules of authentication, and the tickets.
#[derive(Debug)]
pub struct Authenticator {
    /// Verifies tokens; without a verifier tokens are neither required nor checked.
    pub verifier: Option<Verifier>,
    /// The rights of anonymous clients.
    pub anonymous: Rc<Grant>,
    /// True if a token is accepted in the URL's query, which proxies write to their logs.
    pub allow_query_token: bool,
    /// True if access is open only because the server listens on a loopback address. `Host` must then be a loopback
    /// name, or any page could gain access by DNS rebinding.
    pub loopback_only: bool,
    /// The rate limit of log lines about rejected pages.
    pub rejection_log: RejectionLog,
    /// The valid tickets.
    pub tickets: Tickets,
    /// The rate limiter of `auth` messages, each of which costs more than any other message.
    pub auths: RateLimiter,
    /// The wall-clock time, in seconds since 1970; the loop sets it once a turn.
    pub unix_now: u64,
    /// The `Date` header of the current second.
    pub date: DateCache,
}

/// The value of the `Date` header, formatted once a second.
#[derive(Debug, Default)]
pub struct DateCache {
    unix_seconds: u64,
    text: Rc<str>,
}

impl DateCache {
    fn at(&mut self, unix_seconds: u64) -> Rc<str> {
        if self.text.is_empty() || self.unix_seconds != unix_seconds {
            let time = UNIX_EPOCH + Duration::from_secs(unix_seconds);
            *self = DateCache { unix_seconds, text: httpdate::fmt_http_date(time).into() };
        }
        self.text.clone()
    }
}

impl Authenticator {
    /// An authenticator that grants every right to every client.
    pub fn open(tickets_max: usize) -> Authenticator {
        Authenticator {
            verifier: None,
            anonymous: Rc::new(Grant::everything()),
            allow_query_token: false,
            loopback_only: false,
            rejection_log: RejectionLog::default(),
            tickets: Tickets::new(tickets_max, tickets_max),
            auths: RateLimiter::new(),
            unix_now: 0,
            date: DateCache::default(),
        }
    }

    /// The value of the `Date` header (RFC 9110 6.6.1).
    pub fn http_date(&mut self) -> Rc<str> {
        self.date.at(self.unix_now)
    }

    /// The grant of these rights.
    pub fn grant<'a>(&'a self, rights: &'a Rights) -> &'a Grant {
        rights.as_deref().unwrap_or(&self.anonymous)
    }

    /// Returns true if anonymous clients have no rights.
    pub fn requires_token(&self) -> bool {
        let has_any = |patterns: &super::grant::Patterns| patterns.iter().next().is_some();
        let Grant { subscribe, publish, .. } = &*self.anonymous;
        self.verifier.is_some() && !has_any(subscribe) && !has_any(publish)
    }

    /// Verifies a token. Without a verifier it is ignored, and the client is anonymous.
    ///
    /// # Errors
    /// The token is invalid.
    pub fn verify(&self, token: &[u8]) -> Result<Rights, TokenFault> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        verifier.verify(token, self.unix_now).map(|grant| Some(Rc::new(grant)))
    }

    /// Redeems a ticket. `channel` is that of an event stream, for which [`Tickets::redeem_for_stream`] is called.
    /// Without a verifier the ticket is ignored, and the client is anonymous. If a shared log has redeemed the ticket,
    /// its result is returned.
    ///
    /// # Errors
    /// The ticket is unknown, has expired or was used for another request, its token has expired, or its stream is
    /// open.
    pub fn redeem(
        &mut self,
        ticket: &[u8],
        channel: Option<&str>,
        slot: SlotId,
        now: LoopTime,
    ) -> Result<Rights, TokenFault> {
        if self.verifier.is_none() {
            return Ok(None);
        }
        let hash = ticket::hash_of(ticket).ok_or(TokenFault::Ticket)?;
        let redeemed = match (self.tickets.take_redemption(slot, &hash), channel) {
            (Some(Redemption::Granted(grant)), _) => Ok(grant),
            (Some(Redemption::Rejected(error)), _) => Err(error),
            (Some(Redemption::LogDown | Redemption::Unconfirmed), _) => Err(StreamTicketError::Bad),
            (None, Some(channel)) => {
                self.tickets.redeem_for_stream(&hash, channel, (RunId::default(), Some(slot)), now)
            }
            (None, None) => self.tickets.redeem(&hash, now).ok_or(StreamTicketError::Bad),
        };
        // A ticket is not valid for longer than the token that it was issued for.
        let clock = self.unix_now.saturating_sub(LEEWAY_SECONDS);
        match redeemed {
            Ok(grant) if grant.has_expired(clock) => Err(TokenFault::Ticket),
            Ok(grant) => Ok(Some(grant)),
            Err(StreamTicketError::Bad) => Err(TokenFault::Ticket),
            Err(StreamTicketError::InUse) => Err(TokenFault::TicketInUse),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_is_formatted_once_a_second() {
        let mut date = DateCache::default();
        let first = date.at(784_111_777);
        assert_eq!(&*first, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(Rc::ptr_eq(&first, &date.at(784_111_777)));
        assert_eq!(&*date.at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(&*DateCache::default().at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
