//! Web pages of other origins: which may ask here, and which may read the answer (Fetch, CORS protocol).

use super::Desk;
use super::http::Request;
use super::plain::{Outcome, answer};
use super::response::{Manner, Refusal};
use crate::access::origin::{self, OriginVerdict};

/// May the page that sends this request do so, and may it read the answer (Fetch, CORS protocol)?
///
/// A browser lets any page send a simple POST, and only hides the answer: so a page that is not allowed
/// to read may not publish either.
pub(super) fn share(request: &Request<'_>, manner: &mut Manner, desk: &Desk<'_>) -> Result<(), Refusal> {
    match judge(request, desk) {
        OriginVerdict::Absent | OriginVerdict::SameHost => Ok(()),
        OriginVerdict::Allowed => {
            let origin = request.fields.one("origin").ok().flatten();
            manner.allow_origin = origin.and_then(|origin| std::str::from_utf8(origin).ok()).map(Box::from);
            Ok(())
        }
        OriginVerdict::Foreign if request.method == "GET" || request.method == "HEAD" => {
            // Which of two a browser has meant cannot be known.
            if request.fields.one("origin").is_err() { Err(forbidden_origin()) } else { Ok(()) }
        }
        OriginVerdict::Foreign => Err(forbidden_origin()),
    }
}

/// What the page of a request is to this server.
pub(super) fn judge(request: &Request<'_>, desk: &Desk<'_>) -> OriginVerdict {
    match (request.fields.one("origin"), request.fields.one("host")) {
        (Ok(origin), Ok(host)) => origin::judge(origin, host, &desk.site.origins),
        _ => OriginVerdict::Foreign,
    }
}

pub(super) fn forbidden_origin() -> Refusal {
    let message = "pages of this origin may not ask here; --origin allows them";
    Refusal::new(403, "forbidden_origin", message)
}

pub(super) fn preflight(
    methods: &'static str,
    manner: Manner,
    rest: &[u8],
    owed: u32,
    desk: &mut Desk<'_>,
) -> Outcome {
    let mut fields = vec![("Allow", methods)];
    if manner.allow_origin.is_some() {
        fields.push(("Access-Control-Allow-Methods", methods));
        let headers = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID";
        fields.push(("Access-Control-Allow-Headers", headers));
        // Browsers ask again after ten minutes at the latest (Chromium) or at the earliest (others: a day).
        fields.push(("Access-Control-Max-Age", "600"));
    }
    answer(manner.respond(204, "", &fields, b""), &manner, rest, owed, desk)
}
