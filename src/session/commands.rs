//! Received messages as intents: commands of `oyez.v1`, and messages of a raw WebSocket.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::SessionContext;
use super::auth_state::{self, AuthState};
use super::intent::{Intent, Receipt};
use super::rejection::Rejection;
use crate::access::limit::Limit;
use crate::access::rate_limiter::{RateKey, RateLimited, RateLimits};
use crate::access::token::TOKEN_BYTES_MAX;
use crate::close::Reason;
use crate::fault::TokenFault;
use crate::hub::SubscribeOptions;
use crate::wire::command::{self, ClientCommand, ClientRequest};
use crate::wire::notice::Notice;
use crate::wire::{Form, Kind};

/// Handles one text message of `oyez.v1`. An invalid command gets an error notice; an invalid token closes the
/// connection.
pub(super) fn receive(
    text: &str,
    auth: &mut Option<AuthState>,
    ctx: &mut SessionContext<'_>,
) -> Option<Reason> {
    let ClientRequest { reference, command } = command::parse(text);
    let owned = |reference: Option<&RawValue>| reference.map(RawValue::to_owned);
    let rights = || auth_state::rights(auth.as_ref());
    let intent = match command {
        Ok(ClientCommand::Subscribe { channel, since, echo }) => Intent::Subscribe {
            channel,
            options: SubscribeOptions { form: Form::Envelope, since, echo },
            rights: rights(),
            reference: owned(reference),
        },
        Ok(ClientCommand::Unsubscribe { channel }) => {
            Intent::Unsubscribe { channel, reference: owned(reference) }
        }
        Ok(ClientCommand::Publish { channel, kind, payload, key }) => Intent::Publish {
            channel: Some(channel),
            kind,
            payload: Bytes::from(payload.into_owned()),
            receipt: Receipt::Ack { reference: owned(reference), key: key.map(|key| Box::from(&*key)) },
            rights: rights(),
        },
        Ok(ClientCommand::Ping) => Intent::Send(Notice::Pong.to_frame().into()),
        Ok(ClientCommand::Auth { token }) if ctx.authenticator.verifier.is_some() => {
            return authenticate(&token, Form::Envelope, reference, auth, ctx);
        }
        Ok(ClientCommand::Auth { .. }) => {
            let message = "this server has no keys to verify tokens";
            Intent::Send(Notice::Error { reference, ch: None, code: "no_auth", message }.to_frame().into())
        }
        Err(why) => {
            let notice = Notice::Error { reference, ch: None, code: why.code, message: &why.message };
            Intent::Send(notice.to_frame().into())
        }
    };
    ctx.intents.push(intent);
    None
}

/// Handles one message of a raw WebSocket.
///
/// On a server with keys, a text that is an `auth` command of `oyez.v1` is not published: a client that sends one at
/// the wrong time would reveal its token to all subscribers.
pub(super) fn receive_raw(
    kind: Kind,
    payload: Bytes,
    auth: &mut Option<AuthState>,
    ctx: &mut SessionContext<'_>,
) -> Option<Reason> {
    if ctx.authenticator.verifier.is_some()
        && let Some(token) = token_in(kind, &payload)
    {
        return authenticate(&token, Form::Raw, None, auth, ctx);
    }
    if let Some(AuthState::Pending { .. }) = auth {
        return Some(bad_token(TokenFault::Missing, ctx));
    }
    let rights = auth_state::rights(auth.as_ref());
    ctx.intents.push(Intent::Publish { channel: None, kind, payload, receipt: Receipt::None, rights });
    None
}

/// Maximum length of a text that is parsed as an `auth` command: the longest token, and as much for the JSON around it.
const AUTH_BYTES_MAX: usize = 2 * TOKEN_BYTES_MAX;

fn token_in(kind: Kind, payload: &[u8]) -> Option<Cow<'_, str>> {
    if kind != Kind::Text
        || payload.len() > AUTH_BYTES_MAX
        || payload.trim_ascii_start().first() != Some(&b'{')
    {
        return None;
    }
    let text = std::str::from_utf8(payload).ok().filter(|text| text.contains("\"auth\""))?;
    match command::parse(text).command {
        Ok(ClientCommand::Auth { token }) => Some(token),
        _ => None,
    }
}

/// Verifies a token and updates the connection's rights. A token over the rate limit is not verified: the rights stay
/// as they are, and a raw WebSocket, whose protocol has no error messages, is closed.
fn authenticate(
    token: &str,
    form: Form,
    reference: Option<&RawValue>,
    auth: &mut Option<AuthState>,
    ctx: &mut SessionContext<'_>,
) -> Option<Reason> {
    let (who, pace) = (RateKey::Connection(ctx.id), RateLimits::for_auths(ctx.limits));
    if let Err(RateLimited { retry_ms, .. }) = ctx.authenticator.auths.take(who, pace, 0, ctx.now) {
        ctx.metrics.limit(Limit::Auths);
        if form == Form::Raw {
            return Some(Reason::RateLimited { retry_ms });
        }
        let error = Rejection::RateLimited { retry_ms }.v1(reference, None);
        ctx.intents.extend(error.map(|frame| Intent::Send(frame.into())));
        return None;
    }
    let grant = match ctx.authenticator.verify(token.as_bytes()) {
        Ok(rights) => rights?,
        Err(why) => return Some(bad_token(why, ctx)),
    };
    let rights = Some(grant.clone());
    let expires_ms = grant.expires_in_ms(ctx.authenticator.unix_now).unwrap_or(0);
    if form == Form::Envelope {
        let notice = Notice::Authenticated { reference, expires_ms };
        ctx.intents.push(Intent::Send(notice.to_frame().into()));
    }
    let before = auth.replace(AuthState::authenticated(grant, ctx));
    ctx.intents.push(match before {
        Some(AuthState::Pending { subscription: Some(subscription), .. }) => {
            let (channel, options) = *subscription;
            Intent::Subscribe { channel, options, rights, reference: None }
        }
        _ => Intent::Reauthorize { rights },
    });
    None
}

fn bad_token(why: TokenFault, ctx: &mut SessionContext<'_>) -> Reason {
    ctx.metrics.reject(why.as_str());
    Reason::BadToken { why }
}
