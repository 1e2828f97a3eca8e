//! Authentication of a connection: the credentials in a request, and the grant and its expiry while the connection
//! lives.
//!
//! A connection may outlive its token, so expiry is checked by a deadline and not only at the handshake.

use std::borrow::Cow;
use std::rc::Rc;

use super::http::request::Request;
use super::http::response::HttpError;
use super::http::routes;
use super::http::upgrade;
use super::rejection::Rejection;
use super::{LogMode, SessionContext};
use crate::access::authenticator::{Authenticator, Rights};
use crate::access::grant::Grant;
use crate::access::ticket::{TicketHash, hash_of};
use crate::close::Reason;
use crate::fault::TokenFault;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, SlotId};
use crate::time::LoopTime;

/// The state of a connection that is not anonymous.
#[derive(Debug)]
pub(super) enum AuthState {
    /// No token yet: until the client sends one, it may do nothing, and at the deadline it is closed with 4008.
    Pending {
        deadline: LoopTime,
        /// The subscription that the request named, made after authentication.
        subscription: Option<Box<(ChannelName, SubscribeOptions)>>,
    },
    /// A token was verified. The connection is closed at the deadline unless the client sends another token.
    Authenticated { grant: Rc<Grant>, deadline: LoopTime },
}

/// Maximum distance of a deadline, in milliseconds: a day, see [`LoopTime`]. A token that is valid for longer is
/// checked once a day.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

impl AuthState {
    /// A client without a token, on a server without anonymous access.
    pub(super) fn pending(
        subscription: Option<(ChannelName, SubscribeOptions)>,
        ctx: &SessionContext<'_>,
    ) -> AuthState {
        let deadline = ctx.now.after(ctx.limits.auth_timeout_ms);
        AuthState::Pending { deadline, subscription: subscription.map(Box::new) }
    }

    /// A client with a verified token or ticket.
    pub(super) fn authenticated(grant: Rc<Grant>, ctx: &SessionContext<'_>) -> AuthState {
        let deadline = expiry_deadline(&grant, ctx);
        AuthState::Authenticated { grant, deadline }
    }

    /// The state for these rights; `None` for an anonymous client.
    pub(super) fn of(rights: Rights, ctx: &SessionContext<'_>) -> Option<AuthState> {
        rights.map(|grant| AuthState::authenticated(grant, ctx))
    }

    pub(super) fn grant(&self) -> Option<&Rc<Grant>> {
        match self {
            AuthState::Pending { .. } => None,
            AuthState::Authenticated { grant, .. } => Some(grant),
        }
    }

    /// The time by which the client has to send a token, or another one.
    pub(super) fn deadline(&self) -> LoopTime {
        match self {
            AuthState::Pending { deadline, .. } | AuthState::Authenticated { deadline, .. } => *deadline,
        }
    }

    /// Returns the reason to close the connection if its deadline has expired without a valid token.
    pub(super) fn expire(&mut self, ctx: &SessionContext<'_>) -> Option<Reason> {
        if !self.deadline().is_due(ctx.now) {
            return None;
        }
        match self {
            AuthState::Pending { .. } => Some(Reason::AuthTimeout),
            AuthState::Authenticated { grant, .. } if grant.has_expired(ctx.authenticator.unix_now) => {
                Some(Reason::TokenExpired)
            }
            AuthState::Authenticated { grant, deadline } => {
                *deadline = expiry_deadline(grant, ctx);
                None
            }
        }
    }
}

/// The end of the grace period after a token's expiry. A token that was accepted within the clock leeway has it too.
fn expiry_deadline(grant: &Grant, ctx: &SessionContext<'_>) -> LoopTime {
    let left =
        grant.expires_at.map(|end| end.saturating_sub(ctx.authenticator.unix_now).saturating_mul(1_000));
    let left_ms = left.map_or(DAY_MS, |left_ms| left_ms.saturating_add(ctx.limits.token_grace_ms.into()));
    ctx.now.after(left_ms.min(DAY_MS) as u32)
}

/// The rights of a connection; `None` for an anonymous client.
pub(super) fn rights(auth: Option<&AuthState>) -> Rights {
    auth.and_then(AuthState::grant).cloned()
}

/// Where a request may carry a credential, in addition to `Authorization` and `?token=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CredentialSources<'a> {
    /// Nowhere else.
    Plain,
    /// A ticket: an event stream of this channel, to which a browser adds no field.
    Ticket(&'a ChannelName),
    /// A ticket, or a subprotocol's name: a WebSocket.
    Subprotocol,
}

impl CredentialSources<'_> {
    /// The channel of an event stream.
    pub(super) fn stream(&self) -> Option<&str> {
        match self {
            CredentialSources::Ticket(channel) => Some(channel.as_str()),
            CredentialSources::Plain | CredentialSources::Subprotocol => None,
        }
    }
}

/// The prefix of a token in the list of subprotocols: the only request header that a page can set on a WebSocket.
const IN_SUBPROTOCOL: &str = "oyez.token.";

/// Authenticates a request. Of several credentials, the one that is exposed to the fewest others is used.
pub(super) fn admit(
    request: &Request<'_>,
    sources: CredentialSources<'_>,
    ctx: &mut SessionContext<'_>,
) -> Result<Rights, TokenFault> {
    let SessionContext { authenticator, now, id, .. } = ctx;
    if authenticator.verifier.is_none() {
        return Ok(None);
    }
    let rights = verify_credential(request, sources, authenticator, *id, *now);
    if let Err(fault) = &rights {
        ctx.metrics.reject(fault.as_str());
    }
    rights
}

fn verify_credential(
    request: &Request<'_>,
    sources: CredentialSources<'_>,
    authenticator: &mut Authenticator,
    id: SlotId,
    now: LoopTime,
) -> Result<Rights, TokenFault> {
    match find_credential(request, sources)? {
        Credential::Token(token) => authenticator.verify(token),
        Credential::Ticket(ticket) => authenticator.redeem(&ticket, sources.stream(), id, now),
        Credential::QueryToken(token) if authenticator.allow_query_token => authenticator.verify(&token),
        Credential::QueryToken(_) => Err(TokenFault::InAddress),
        Credential::None => Ok(None),
    }
}

/// The credential of a request that is used.
enum Credential<'a> {
    Token(&'a [u8]),
    Ticket(Cow<'a, [u8]>),
    QueryToken(Cow<'a, [u8]>),
    None,
}

fn find_credential<'a>(
    request: &Request<'a>,
    sources: CredentialSources<'_>,
) -> Result<Credential<'a>, TokenFault> {
    let field = request.fields.one("authorization").map_err(|_| TokenFault::Unclear)?;
    // Another scheme (Basic) is meant for a proxy in front of this server.
    if let Some(token) = field.and_then(bearer) {
        return Ok(Credential::Token(token));
    }
    if sources == CredentialSources::Subprotocol {
        let in_list = |one: &'_ [u8]| one.starts_with(IN_SUBPROTOCOL.as_bytes());
        let mut tokens = request.fields.list(upgrade::PROTOCOLS).filter(|one| in_list(one));
        match (tokens.next(), tokens.next()) {
            (Some(token), None) => return Ok(Credential::Token(&token[IN_SUBPROTOCOL.len()..])),
            (Some(_), Some(_)) => return Err(TokenFault::Unclear),
            (None, _) => {}
        }
    }
    if sources != CredentialSources::Plain
        && let Some(ticket) = routes::secret(request.query, "ticket")
    {
        return Ok(Credential::Ticket(ticket));
    }
    Ok(routes::secret(request.query, "token").map_or(Credential::None, Credential::QueryToken))
}

/// The ticket of a request that a shared log has to redeem before the request is processed.
pub(super) fn ticket_for_log(
    request: &Request<'_>,
    sources: CredentialSources<'_>,
    ctx: &SessionContext<'_>,
) -> Option<TicketHash> {
    if ctx.log_mode == LogMode::Own || ctx.authenticator.verifier.is_none() {
        return None;
    }
    match find_credential(request, sources) {
        Ok(Credential::Ticket(ticket)) => hash_of(&ticket),
        _ => None,
    }
}

/// Checks the token of a request for the metrics, if they require one.
pub(super) fn check_metrics_token(request: &Request<'_>, ctx: &SessionContext<'_>) -> Result<(), HttpError> {
    let Some(expected) = &ctx.http_config.metrics_token else { return Ok(()) };
    match request.fields.one("authorization") {
        Ok(None) => Err(unauthorized(TokenFault::Missing)),
        Ok(Some(field)) if bearer(field).is_some_and(|token| expected.is(token)) => Ok(()),
        _ => Err(unauthorized(TokenFault::NoKey)),
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750 2.1).
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let (scheme, after_scheme) = field.split_at_checked(6)?;
    let is_whole_word = after_scheme.first().is_none_or(|byte| *byte == b' ');
    (scheme.eq_ignore_ascii_case(b"bearer") && is_whole_word).then(|| after_scheme.trim_ascii())
}

/// 401: the credential is missing or invalid. A ticket whose event stream is still open gets 503, so that the client
/// retries with it.
pub(super) fn unauthorized(fault: TokenFault) -> HttpError {
    if fault == TokenFault::TicketInUse {
        return HttpError::new(503, fault.as_str(), fault.to_string()).retry_after(1_000);
    }
    // RFC 6750 3.1: a challenge to a request without credentials has no error code.
    let challenge = if fault == TokenFault::Missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
    HttpError::new(401, fault.as_str(), fault.to_string()).with("WWW-Authenticate", challenge)
}

/// The error for a client that lacks a right: the same whether or not the channel exists. A client without a token gets
/// 401, since a token may help.
pub(super) fn forbidden(rights: &Rights, authenticator: &Authenticator) -> HttpError {
    if rights.is_none() && authenticator.verifier.is_some() {
        return unauthorized(TokenFault::Missing);
    }
    Rejection::PermissionDenied.http()
}
