//! Who is at the other end: what it shows, and what that is worth, for as long as the connection lives.

use std::rc::Rc;

use super::Desk;
use super::http::Request;
use super::response::Refusal;
use super::routes;
use super::upgrade;
use crate::access::gate::{Gate, Pass};
use crate::access::grant::Grant;
use crate::close::{Reason, TokenFault};
use crate::hub::Wish;
use crate::ids::{ChannelName, SlotId};
use crate::moment::Moment;

/// Whoever is not just everybody.
#[derive(Debug)]
pub(super) enum Guest {
    /// It may do nothing before it shows a token, which it has to do until then.
    Expected {
        until: Moment,
        /// The subscription that its request asked for.
        then: Option<Box<(ChannelName, Wish)>>,
    },
    /// It has shown one, and is let go then if it shows no other.
    Known { grant: Rc<Grant>, until: Moment },
}

/// The furthest that a deadline may lie ahead, in milliseconds: a day, see [`Moment`]. A token that is good for
/// longer is looked at once a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl Guest {
    /// Somebody without a token, where that is nobody.
    pub(super) fn expected(then: Option<(ChannelName, Wish)>, desk: &Desk<'_>) -> Guest {
        Guest::Expected { until: desk.now.after(desk.limits.auth_timeout_ms), then: then.map(Box::new) }
    }

    /// Somebody with a token, or with what was given for one.
    pub(super) fn known(grant: Rc<Grant>, desk: &Desk<'_>) -> Guest {
        let until = let_go_at(&grant, desk);
        Guest::Known { grant, until }
    }

    /// Whoever shows this pass.
    pub(super) fn of(pass: Pass, desk: &Desk<'_>) -> Option<Guest> {
        pass.map(|grant| Guest::known(grant, desk))
    }

    pub(super) fn grant(&self) -> Option<&Rc<Grant>> {
        match self {
            Guest::Expected { .. } => None,
            Guest::Known { grant, .. } => Some(grant),
        }
    }

    /// When it has to have shown a token.
    pub(super) fn deadline(&self) -> Moment {
        match self {
            Guest::Expected { until, .. } | Guest::Known { until, .. } => *until,
        }
    }

    /// Why it has to go, if it has to now.
    pub(super) fn expire(&mut self, desk: &Desk<'_>) -> Option<Reason> {
        if !self.deadline().has_come(desk.now) {
            return None;
        }
        match self {
            Guest::Expected { .. } => Some(Reason::AuthTimeout),
            Guest::Known { grant, .. } if grant.has_expired(desk.gate.unix_now) => Some(Reason::TokenExpired),
            Guest::Known { grant, until } => {
                *until = let_go_at(grant, desk);
                None
            }
        }
    }
}

/// When the grace behind a token's end is over. One that was taken in the leeway of clocks has its grace too.
fn let_go_at(grant: &Grant, desk: &Desk<'_>) -> Moment {
    let left = grant.expires_at.map(|end| end.saturating_sub(desk.gate.unix_now).saturating_mul(1_000));
    let left_ms = left.map_or(DAY_MS, |left_ms| left_ms.saturating_add(desk.limits.token_grace_ms.into()));
    desk.now.after(left_ms.min(DAY_MS) as u32)
}

/// The pass of whoever is there.
pub(super) fn pass(guest: Option<&Guest>) -> Pass {
    guest.and_then(Guest::grant).cloned()
}

/// What a request may bring its token in, beside `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways<'a> {
    /// Nothing.
    Plain,
    /// A ticket: an event stream of this channel, to which a browser adds no field.
    Ticket(&'a ChannelName),
    /// A ticket, or a subprotocol's name: a WebSocket.
    Subprotocol,
}

/// Before a token in the list of subprotocols, the one place for it that a browser offers a page.
const IN_SUBPROTOCOL: &str = "oyez.token.";

/// Judges what a request shows. Where several things are shown, the one that the fewest others see counts.
pub(super) fn admit(request: &Request<'_>, ways: Ways<'_>, desk: &mut Desk<'_>) -> Result<Pass, TokenFault> {
    let Desk { gate, now, id, .. } = desk;
    if gate.verifier.is_none() {
        return Ok(None);
    }
    let pass = look(request, ways, gate, *id, *now);
    if let Err(fault) = &pass {
        desk.metrics.reject(fault.word());
    }
    pass
}

fn look(
    request: &Request<'_>,
    ways: Ways<'_>,
    gate: &mut Gate,
    id: SlotId,
    now: Moment,
) -> Result<Pass, TokenFault> {
    let field = request.fields.one("authorization").map_err(|_| TokenFault::Unclear)?;
    // Another scheme is between the client and a proxy in front.
    if let Some(token) = field.and_then(bearer) {
        return gate.verify(token);
    }
    if ways == Ways::Subprotocol {
        let in_list = |one: &'_ [u8]| one.starts_with(IN_SUBPROTOCOL.as_bytes());
        let mut tokens = request.fields.list(upgrade::PROTOCOLS).filter(|one| in_list(one));
        match (tokens.next(), tokens.next()) {
            (Some(token), None) => return gate.verify(&token[IN_SUBPROTOCOL.len()..]),
            (Some(_), Some(_)) => return Err(TokenFault::Unclear),
            (None, _) => {}
        }
    }
    if ways != Ways::Plain
        && let Some(ticket) = routes::secret(request.query, "ticket")
    {
        return match ways {
            Ways::Ticket(channel) => gate.redeem_for_stream(&ticket, channel.as_str(), id, now),
            Ways::Plain | Ways::Subprotocol => gate.redeem(&ticket, now),
        };
    }
    match routes::secret(request.query, "token") {
        Some(token) if gate.allow_query_token => gate.verify(&token),
        Some(_) => Err(TokenFault::InAddress),
        None => Ok(None),
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 2.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = field.split_at_checked(6)?;
    let is_alone = rest.first().is_none_or(|byte| *byte == b' ');
    (scheme.eq_ignore_ascii_case(b"bearer") && is_alone).then(|| rest.trim_ascii())
}

/// 401: what it shows is not taken. It is not told that to another in place of this one.
pub(super) fn unauthorized(fault: TokenFault) -> Refusal {
    if fault == TokenFault::TicketInUse {
        return Refusal::unavailable(fault.word(), &fault.to_string(), 1);
    }
    // RFC 6750 3.1: no error code for who has shown nothing.
    let challenge = if fault == TokenFault::Missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
    Refusal::new(401, fault.word(), fault.to_string()).with("WWW-Authenticate", challenge)
}

/// What a client hears that lacks a right: the same whether the channel is there or not. A token may help who
/// has shown none.
pub(super) fn forbidden(pass: &Pass, gate: &Gate) -> Refusal {
    if pass.is_none() && gate.verifier.is_some() {
        return unauthorized(TokenFault::Missing);
    }
    Refusal::new(403, "forbidden", FORBIDDEN)
}

/// A sentence for who lacks a right.
pub const FORBIDDEN: &str = "your rights do not reach that far";
