//! The gate: who may come in, and as whom.
//!
//! A client shows a token, a ticket, or nothing. Who shows nothing has the rights that the operator gives to
//! everybody, and those may be none. Who shows something bad has no rights at all, not even those: a program
//! whose token has ended is to hear of it, and not to find fewer channels than yesterday.

use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use super::grant::Grant;
use super::rate_limiter::RateLimiter;
use super::rejection_log::RejectionLog;
use super::ticket::{StreamTicketError, Tickets};
use super::token::{LEEWAY_SECONDS, Verifier};
use crate::close::TokenFault;
use crate::ids::SlotId;
use crate::time::LoopTime;

/// Whose rights something is done with: those of a token, or with `None` those of everybody.
pub type Rights = Option<Rc<Grant>>;

/// The rules at the way in, and the tickets that are out.
#[derive(Debug)]
pub struct Authenticator {
    /// Who judges tokens; with none nobody is asked for one, and one that is shown is not looked at.
    pub verifier: Option<Verifier>,
    /// What everybody may do.
    pub anonymous: Rc<Grant>,
    /// May a token stand in the address, where logs and histories see it?
    pub allow_query_token: bool,
    /// Is everything open only because nobody reaches it from elsewhere? Then requests have to be sent to
    /// this machine by its own names, or any page could come in by bending a name of its own (DNS rebinding).
    pub loopback_only: bool,
    /// The rate limit of log lines about refused pages.
    pub rejection_log: RejectionLog,
    /// The tickets that are out.
    pub tickets: Tickets,
    /// Those who show tokens in their messages at the moment: a check costs more than any other message does.
    pub auths: RateLimiter,
    /// The time on the wall, in seconds since 1970; the loop sets it once a turn.
    pub unix_now: u64,
    /// The same time as an HTTP date, for the second in which it was last needed.
    pub date: DateCache,
}

/// The value of `Date`, made once for all answers of a second.
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
    /// Everybody may do everything.
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

    /// The value of `Date` (RFC 9110 6.6.1).
    pub fn http_date(&mut self) -> Rc<str> {
        self.date.at(self.unix_now)
    }

    /// The rights that a pass gives.
    pub fn grant<'a>(&'a self, rights: &'a Rights) -> &'a Grant {
        rights.as_deref().unwrap_or(&self.anonymous)
    }

    /// Is nothing open to who has not shown a token?
    pub fn requires_token(&self) -> bool {
        let has_any = |patterns: &super::grant::Patterns| patterns.iter().next().is_some();
        let Grant { subscribe, publish, .. } = &*self.anonymous;
        self.verifier.is_some() && !has_any(subscribe) && !has_any(publish)
    }

    /// Judges a token. Without a verifier it is not looked at, and gives nothing.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn verify(&self, token: &[u8]) -> Result<Rights, TokenFault> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        verifier.verify(token, self.unix_now).map(|grant| Some(Rc::new(grant)))
    }

    /// Takes a ticket. Without a verifier it is not looked at, and gives nothing.
    ///
    /// # Errors
    /// It is none, was used, or has ended, or its token has.
    pub fn redeem(&mut self, ticket: &[u8], now: LoopTime) -> Result<Rights, TokenFault> {
        if self.verifier.is_none() {
            return Ok(None);
        }
        // It is good for no longer than the token that it stands for.
        let clock = self.unix_now.saturating_sub(LEEWAY_SECONDS);
        let grant = self.tickets.redeem(ticket, now).filter(|grant| !grant.has_expired(clock));
        grant.map(Some).ok_or(TokenFault::Ticket)
    }

    /// Takes a ticket for an event stream: see [`Tickets::redeem_for_stream`].
    ///
    /// # Errors
    /// The ticket is unknown, was used for something else or has expired, its token has expired, or its stream is open.
    pub fn redeem_for_stream(
        &mut self,
        ticket: &[u8],
        channel: &str,
        slot: SlotId,
        now: LoopTime,
    ) -> Result<Rights, TokenFault> {
        if self.verifier.is_none() {
            return Ok(None);
        }
        let clock = self.unix_now.saturating_sub(LEEWAY_SECONDS);
        match self.tickets.redeem_for_stream(ticket, channel, slot, now) {
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
    fn date_is_made_once_a_second() {
        let mut date = DateCache::default();
        let first = date.at(784_111_777);
        assert_eq!(&*first, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(Rc::ptr_eq(&first, &date.at(784_111_777)));
        assert_eq!(&*date.at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(&*DateCache::default().at(0), "Thu, 01 Jan 1970 00:00:00 GMT");
    }
}
