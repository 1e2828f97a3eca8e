//! Cross-origin requests: which pages may send requests, and which may read the responses (Fetch, CORS protocol).

use super::connection::{Outcome, respond};
use super::request::Request;
use super::response::{HttpError, ResponseOptions, Share};
use crate::access::origin::{self, OriginVerdict};
use crate::session::SessionContext;
use crate::session::intent::Intent;

/// Checks whether a page may send this request, and whether it may read the response (Fetch, CORS protocol).
///
/// A browser lets any page send a simple POST, and only hides the response: so a page that may not read responses may
/// not publish either.
pub(in crate::session) fn share(
    request: &Request<'_>,
    options: &mut ResponseOptions,
    ctx: &mut SessionContext<'_>,
) -> Result<(), HttpError> {
    let verdict = judge(request, ctx);
    match verdict {
        OriginVerdict::Absent | OriginVerdict::SameHost => Ok(()),
        OriginVerdict::Allowed | OriginVerdict::AnyPage => {
            let origin = request.fields.one("origin").ok().flatten();
            // Only an origin that a browser can send is repeated in a response.
            let is_printable =
                |origin: &&str| !origin.is_empty() && origin.bytes().all(|byte| byte.is_ascii_graphic());
            let origin = origin.and_then(|origin| std::str::from_utf8(origin).ok()).filter(is_printable);
            options.share = origin.map(|origin| Share {
                origin: origin.into(),
                credentials: verdict == OriginVerdict::Allowed,
            });
            Ok(())
        }
        OriginVerdict::Foreign if request.method == "GET" || request.method == "HEAD" => {
            // The page's script gets a network error, or its EventSource fails, and cannot read the reason.
            warn_of_origin(request, ctx);
            // Of two origins it is unknown which one the browser meant.
            if request.fields.one("origin").is_err() { Err(forbidden_origin()) } else { Ok(()) }
        }
        OriginVerdict::Foreign => {
            warn_of_origin(request, ctx);
            Err(forbidden_origin())
        }
    }
}

/// Classifies the origin of a request.
pub(in crate::session) fn judge(request: &Request<'_>, ctx: &SessionContext<'_>) -> OriginVerdict {
    match (request.fields.one("origin"), request.host()) {
        (Ok(origin), Ok(host)) => match origin::judge(origin, host, &ctx.http_config.origins) {
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

pub(in crate::session) fn forbidden_origin() -> HttpError {
    let message = "this origin is not allowed; allow it with --origin";
    HttpError::new(403, "forbidden_origin", message)
}

/// Logs a rejected origin, since the page cannot read the reason: its browser shows close code 1006, or a failed fetch.
pub(in crate::session) fn warn_of_origin(request: &Request<'_>, ctx: &mut SessionContext<'_>) {
    let sent = shown(request.fields.all("origin").next().unwrap_or_default());
    let why = match request.fields.one("origin") {
        Ok(_) => format!(
            "the page's origin is neither the Host nor listed: allow it with --origin '{sent}', \
             or let the proxy in front pass the Host that the page was loaded from"
        ),
        Err(_) => "Origin comes more than once".to_owned(),
    };
    warn(request, &format!("origin={sent}"), &why, ctx);
}

/// Logs a rejected Host that is not a name of this machine.
pub(in crate::session) fn warn_of_host(request: &Request<'_>, ctx: &mut SessionContext<'_>) {
    let why = "this server is open to its own machine only, by the name localhost or its address: \
               --anonymous or a key lets it answer to other names";
    let origin = shown(request.fields.all("origin").next().unwrap_or(b"none"));
    warn(request, &format!("origin={origin}"), why, ctx);
}

fn warn(request: &Request<'_>, origin: &str, why: &str, ctx: &mut SessionContext<'_>) {
    let Some(suppressed) = ctx.authenticator.rejection_log.take(ctx.now) else {
        ctx.metrics.log_lines_suppressed += 1;
        return;
    };
    let host = shown(request.host().ok().flatten().unwrap_or_default());
    // The query may hold a token.
    let path = shown(request.path.as_bytes());
    let more =
        if suppressed > 0 { format!(" ({suppressed} more since the last such line)") } else { String::new() };
    let line = format!("refused {origin} host={host} path={path}: {why}{more}");
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

/// The fields that a page wants to send, if it may: they are mirrored, since a list of our own would have to know what
/// libraries and tracing add.
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

pub(in crate::session) fn preflight(
    request: &Request<'_>,
    methods: &'static str,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let mut fields = vec![("Allow", methods)];
    if options.share.is_some() {
        fields.push(("Access-Control-Allow-Methods", methods));
        fields.push(("Access-Control-Allow-Headers", requested_headers(request)));
        // Browsers ask again after ten minutes at the latest (Chromium) or at the earliest (others: a day).
        fields.push(("Access-Control-Max-Age", "600"));
    }
    respond(options.respond(204, "", &fields, b""), &options, unread, pending_responses, ctx)
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
