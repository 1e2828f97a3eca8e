//! Clients of trusted proxies: the address that a proxy forwards, and the connections counted for it.

use std::net::IpAddr;

use super::request::Request;
use super::response::HttpError;
use crate::ids::Peer;
use crate::session::SessionContext;
use crate::session::rejection::Rejection;

/// The client for which a trusted proxy sent the request.
pub(super) fn forwarded_client(request: &Request<'_>, ctx: &SessionContext<'_>) -> Option<IpAddr> {
    ctx.limiter.forwarded_client(*ctx.peer, request.fields.all("x-forwarded-for"))
}

/// Counts a long-lived connection for its client. A direct connection was counted when it was accepted; one through a
/// trusted proxy is counted for the forwarded address from now on.
pub(super) fn count_connection(request: &Request<'_>, ctx: &mut SessionContext<'_>) -> Result<(), HttpError> {
    let Some(client) = forwarded_client(request, ctx) else { return Ok(()) };
    if client != ctx.peer.ip().to_canonical() {
        *ctx.peer = Peer::from(client);
    }
    ctx.limiter.admit(ctx.peer, ctx.now).map_err(|over| {
        ctx.metrics.limit(over.limit);
        Rejection::of_close(over.reason(), ctx.limits).http()
    })
}
