//! Cross-origin requests: which pages may send requests, and which may read the responses (Fetch, CORS protocol).

use super::exchange::{Exchange, Outcome};
use super::request::Request;
use super::response::{AllowedOrigin, HttpError};
use crate::access::origin::{self, OriginVerdict};
use crate::session::SessionContext;
use crate::session::intent::Intent;

/// Checks whether a page may send this request. Returns its origin if it is another one and may read the response
/// (Fetch, CORS protocol).
///
/// A browser lets any page send a simple POST, and only hides the response: so a page that may not read responses may
/// not publish either.
pub(super) fn check_origin(
    request: &Request<'_>,
    ctx: &mut SessionContext<'_>,
) -> Result<Option<AllowedOrigin>, HttpError> {
    let verdict = classify_origin(request, ctx);
    match verdict {
        OriginVerdict::Absent | OriginVerdict::SameHost => Ok(None),
        OriginVerdict::Allowed | OriginVerdict::AnyPage => {
            let origin = request.fields.one("origin").ok().flatten();
            // Only an origin that a browser can send is repeated in a response.
            let is_printable =
                |origin: &&str| !origin.is_empty() && origin.bytes().all(|byte| byte.is_ascii_graphic());
            let origin = origin.and_then(|origin| std::str::from_utf8(origin).ok()).filter(is_printable);
            let credentials = verdict == OriginVerdict::Allowed;
            Ok(origin.map(|origin| AllowedOrigin { origin: origin.into(), credentials }))
        }
        OriginVerdict::Foreign if request.method == "GET" || request.method == "HEAD" => {
            // The page's script gets a network error, or its EventSource fails, and cannot read the reason.
            log_rejected_origin(request, ctx);
            // Of two origins it is unknown which one the browser meant.
            if request.fields.one("origin").is_err() { Err(forbidden_origin()) } else { Ok(None) }
        }
        OriginVerdict::Foreign => Err(reject_origin(request, ctx)),
    }
}

/// Checks whether a page may open a WebSocket. Browsers let every page do that to another site, so the server has to
/// check the origin (RFC 6455 10.2).
pub(super) fn check_websocket_origin(
    request: &Request<'_>,
    ctx: &mut SessionContext<'_>,
) -> Result<(), HttpError> {
    match classify_origin(request, ctx) {
        OriginVerdict::Foreign => Err(reject_origin(request, ctx)),
        OriginVerdict::Absent | OriginVerdict::SameHost | OriginVerdict::Allowed | OriginVerdict::AnyPage => {
            Ok(())
        }
    }
}

/// Classifies the origin of a request.
fn classify_origin(request: &Request<'_>, ctx: &SessionContext<'_>) -> OriginVerdict {
    match (request.fields.one("origin"), request.host()) {
        (Ok(origin), Ok(host)) => match origin::classify(origin, host, &ctx.http_config.origins) {
            // A server that is reachable from its own machine only accepts the pages served by this machine.
            OriginVerdict::Foreign
                if ctx.authenticator.loopback_only && origin.is_some_and(origin::is_loopback_origin) =>
            {
                OriginVerdict::Allowed
            }
            verdict => verdict,
        },
        _ => OriginVerdict::Foreign,
    }
}

fn reject_origin(request: &Request<'_>, ctx: &mut SessionContext<'_>) -> HttpError {
    log_rejected_origin(request, ctx);
    forbidden_origin()
}

/// Checks that a request to a server that is open to its own machine only names this machine. Browsers always send a
/// Host, so a page of another name that resolves to this machine is rejected (DNS rebinding).
pub(super) fn check_host(request: &Request<'_>, ctx: &mut SessionContext<'_>) -> Result<(), HttpError> {
    if !ctx.authenticator.loopback_only {
        return Ok(());
    }
    match request.host() {
        Ok(Some(host)) if !origin::is_loopback_host(host) => {
            log_rejected_host(request, ctx);
            let message = "this server accepts only requests to localhost or its address; configure --anonymous or \
                           a key to accept other host names";
            Err(HttpError::new(421, "misdirected", message))
        }
        _ => Ok(()),
    }
}

fn forbidden_origin() -> HttpError {
    let message = "this origin is not allowed; allow it with --origin";
    HttpError::new(403, "forbidden_origin", message)
}

/// Logs a rejected origin, since the page cannot read the reason: its browser shows close code 1006, or a failed fetch.
fn log_rejected_origin(request: &Request<'_>, ctx: &mut SessionContext<'_>) {
    let sent = shown(request.fields.all("origin").next().unwrap_or_default());
    let why = match request.fields.one("origin") {
        Ok(_) => format!(
            "the page's origin is neither the Host nor listed: allow it with --origin '{sent}', \
             or let the proxy in front pass the Host that the page was loaded from"
        ),
        Err(_) => "Origin comes more than once".to_owned(),
    };
    log_rejection(request, &format!("origin={sent}"), &why, ctx);
}

/// Logs a rejected Host that is not a name of this machine.
fn log_rejected_host(request: &Request<'_>, ctx: &mut SessionContext<'_>) {
    let why = "this server is open to its own machine only, by the name localhost or its address: \
               --anonymous or a key lets it answer to other names";
    let origin = shown(request.fields.all("origin").next().unwrap_or(b"none"));
    log_rejection(request, &format!("origin={origin}"), why, ctx);
}

fn log_rejection(request: &Request<'_>, origin: &str, why: &str, ctx: &mut SessionContext<'_>) {
    let Some(suppressed) = ctx.authenticator.rejection_log.take(ctx.now) else {
        ctx.metrics.log_lines_suppressed += 1;
        return;
    };
    let host = shown(request.host().ok().flatten().unwrap_or_default());
    // The query may hold a token.
    let path = shown(request.path.as_bytes());
    let more =
        if suppressed > 0 { format!(" ({suppressed} more since the last such line)") } else { String::new() };
    let line = format!("rejected {origin} host={host} path={path}: {why}{more}");
    ctx.intents.push(Intent::Warn(line.into()));
}

/// Bytes sent by a client, for the log: escaped, and at most 100.
fn shown(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 100;
    match bytes.split_at_checked(SHOWN_BYTES_MAX) {
        Some((begin, [_, ..])) => format!("{}...", begin.escape_ascii()),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// The longest list of header fields that is mirrored in the response to a preflight request.
const HEADERS_BYTES_MAX: usize = 1024;

/// The header fields that a page requests to send, if it may: they are mirrored, since a fixed list would have to
/// contain all fields that libraries and tracing add.
fn requested_headers<'a>(request: &Request<'a>) -> &'a str {
    let is_list = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, ".contains(byte);
    match request.fields.one("access-control-request-headers") {
        Ok(Some(list)) if list.len() <= HEADERS_BYTES_MAX && !list.is_empty() && list.iter().all(is_list) => {
            std::str::from_utf8(list).unwrap_or(HEADERS)
        }
        _ => HEADERS,
    }
}

/// The fields that this server reads.
const HEADERS: &str = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID";

/// Responds to a preflight request, and to OPTIONS of other clients.
pub(super) fn preflight(
    request: &Request<'_>,
    methods: &'static str,
    exchange: &mut Exchange<'_, '_>,
) -> Outcome {
    let mut fields = vec![("Allow", methods)];
    if exchange.options.allowed_origin.is_some() {
        fields.push(("Access-Control-Allow-Methods", methods));
        fields.push(("Access-Control-Allow-Headers", requested_headers(request)));
        // Browsers ask again after ten minutes at the latest (Chromium) or at the earliest (others: a day).
        fields.push(("Access-Control-Max-Age", "600"));
    }
    exchange.respond(exchange.options.respond(204, "", &fields, b""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logged_bytes_are_printable_and_short() {
        assert_eq!(shown(b"https://a.example"), "https://a.example");
        assert_eq!(shown(b"a\x1b[31m\r\n\xe2\x80\xa8"), "a\\x1b[31m\\r\\n\\xe2\\x80\\xa8");
        assert_eq!(shown(&[b'a'; 100]), "a".repeat(100));
        assert_eq!(shown(&[b'a'; 5_000]), format!("{}...", "a".repeat(100)));
    }
}
