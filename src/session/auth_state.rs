//! Who is at the other end: what it shows, and what that is worth, for as long as the connection lives.

use std::rc::Rc;

use super::SessionContext;
use super::http::request::Request;
use super::http::response::HttpError;
use super::http::routes;
use super::http::upgrade;
use super::rejection::Rejection;
use crate::access::authenticator::{Authenticator, Rights};
use crate::access::grant::Grant;
use crate::close::{Reason, TokenFault};
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, SlotId};
use crate::time::LoopTime;

/// Whoever is not just everybody.
#[derive(Debug)]
pub(super) enum AuthState {
    /// It may do nothing before it shows a token, which it has to do until then.
    Expected {
        until: LoopTime,
        /// The subscription that its request asked for.
        then: Option<Box<(ChannelName, SubscribeOptions)>>,
    },
    /// It has shown one, and is let go then if it shows no other.
    Known { grant: Rc<Grant>, until: LoopTime },
}

/// The furthest that a deadline may lie ahead, in milliseconds: a day, see [`LoopTime`]. A token that is good for
/// longer is looked at once a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl AuthState {
    /// Somebody without a token, where that is nobody.
    pub(super) fn expected(
        then: Option<(ChannelName, SubscribeOptions)>,
        ctx: &SessionContext<'_>,
    ) -> AuthState {
        AuthState::Expected { until: ctx.now.after(ctx.limits.auth_timeout_ms), then: then.map(Box::new) }
    }

    /// Somebody with a token, or with what was given for one.
    pub(super) fn known(grant: Rc<Grant>, ctx: &SessionContext<'_>) -> AuthState {
        let until = let_go_at(&grant, ctx);
        AuthState::Known { grant, until }
    }

    /// Whoever shows this pass.
    pub(super) fn of(rights: Rights, ctx: &SessionContext<'_>) -> Option<AuthState> {
        rights.map(|grant| AuthState::known(grant, ctx))
    }

    pub(super) fn grant(&self) -> Option<&Rc<Grant>> {
        match self {
            AuthState::Expected { .. } => None,
            AuthState::Known { grant, .. } => Some(grant),
        }
    }

    /// When it has to have shown a token.
    pub(super) fn deadline(&self) -> LoopTime {
        match self {
            AuthState::Expected { until, .. } | AuthState::Known { until, .. } => *until,
        }
    }

    /// Why it has to go, if it has to now.
    pub(super) fn expire(&mut self, ctx: &SessionContext<'_>) -> Option<Reason> {
        if !self.deadline().is_due(ctx.now) {
            return None;
        }
        match self {
            AuthState::Expected { .. } => Some(Reason::AuthTimeout),
            AuthState::Known { grant, .. } if grant.has_expired(ctx.authenticator.unix_now) => {
                Some(Reason::TokenExpired)
            }
            AuthState::Known { grant, until } => {
                *until = let_go_at(grant, ctx);
                None
            }
        }
    }
}

/// When the grace behind a token's end is over. One that was taken in the leeway of clocks has its grace too.
fn let_go_at(grant: &Grant, ctx: &SessionContext<'_>) -> LoopTime {
    let left =
        grant.expires_at.map(|end| end.saturating_sub(ctx.authenticator.unix_now).saturating_mul(1_000));
    let left_ms = left.map_or(DAY_MS, |left_ms| left_ms.saturating_add(ctx.limits.token_grace_ms.into()));
    ctx.now.after(left_ms.min(DAY_MS) as u32)
}

/// The pass of whoever is there.
pub(super) fn rights(auth: Option<&AuthState>) -> Rights {
    auth.and_then(AuthState::grant).cloned()
}

/// What a request may bring its token in, beside `Authorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CredentialSources<'a> {
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
pub(super) fn admit(
    request: &Request<'_>,
    ways: CredentialSources<'_>,
    ctx: &mut SessionContext<'_>,
) -> Result<Rights, TokenFault> {
    let SessionContext { authenticator, now, id, .. } = ctx;
    if authenticator.verifier.is_none() {
        return Ok(None);
    }
    let rights = look(request, ways, authenticator, *id, *now);
    if let Err(fault) = &rights {
        ctx.metrics.reject(fault.as_str());
    }
    rights
}

fn look(
    request: &Request<'_>,
    ways: CredentialSources<'_>,
    authenticator: &mut Authenticator,
    id: SlotId,
    now: LoopTime,
) -> Result<Rights, TokenFault> {
    let field = request.fields.one("authorization").map_err(|_| TokenFault::Unclear)?;
    // Another scheme is between the client and a proxy in front.
    if let Some(token) = field.and_then(bearer) {
        return authenticator.verify(token);
    }
    if ways == CredentialSources::Subprotocol {
        let in_list = |one: &'_ [u8]| one.starts_with(IN_SUBPROTOCOL.as_bytes());
        let mut tokens = request.fields.list(upgrade::PROTOCOLS).filter(|one| in_list(one));
        match (tokens.next(), tokens.next()) {
            (Some(token), None) => return authenticator.verify(&token[IN_SUBPROTOCOL.len()..]),
            (Some(_), Some(_)) => return Err(TokenFault::Unclear),
            (None, _) => {}
        }
    }
    if ways != CredentialSources::Plain
        && let Some(ticket) = routes::secret(request.query, "ticket")
    {
        return match ways {
            CredentialSources::Ticket(channel) => {
                authenticator.redeem_for_stream(&ticket, channel.as_str(), id, now)
            }
            CredentialSources::Plain | CredentialSources::Subprotocol => authenticator.redeem(&ticket, now),
        };
    }
    match routes::secret(request.query, "token") {
        Some(token) if authenticator.allow_query_token => authenticator.verify(&token),
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
pub(super) fn unauthorized(fault: TokenFault) -> HttpError {
    if fault == TokenFault::TicketInUse {
        return HttpError::new(503, fault.as_str(), fault.to_string()).retry_after(1_000);
    }
    // RFC 6750 3.1: no error code for who has shown nothing.
    let challenge = if fault == TokenFault::Missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
    HttpError::new(401, fault.as_str(), fault.to_string()).with("WWW-Authenticate", challenge)
}

/// What a client hears that lacks a right: the same whether the channel is there or not. A token may help who
/// has shown none.
pub(super) fn forbidden(rights: &Rights, authenticator: &Authenticator) -> HttpError {
    if rights.is_none() && authenticator.verifier.is_some() {
        return unauthorized(TokenFault::Missing);
    }
    Rejection::PermissionDenied.http()
}
