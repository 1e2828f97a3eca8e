//! What the server knows and a client of HTTP asks for, as JSON.

use std::fmt::Write as _;
use std::ops::Bound;

use crate::access::grant::Patterns;
use crate::hub::{Hub, Standing};
use crate::ids::{MessageId, Since};
use crate::moment::Moment;
use crate::wire::notice::gap_json;

/// A page of the channels that somebody may hear, in the order of their names.
pub(super) fn channels(
    hub: &Hub,
    visible: &Patterns,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> String {
    let mut names = visible_names(hub, visible, prefix, after);
    let page: Vec<&str> = names.by_ref().take(limit).collect();
    let mut out = String::from("{\"channels\":[");
    for (place, name) in page.iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        append_channel(&mut out, hub, name);
    }
    match (names.next(), page.last()) {
        (Some(_), Some(last)) => {
            let _ = writeln!(out, "],\"next\":\"{last}\"}}");
        }
        _ => out.push_str("],\"next\":null}\n"),
    }
    out
}

/// The names that the patterns mean. What lies between two patterns is skipped and not looked through: how
/// long it takes depends on what is shown, not on all there is.
fn visible_names<'a>(
    hub: &'a Hub,
    visible: &'a Patterns,
    prefix: &'a str,
    after: Option<&str>,
) -> impl Iterator<Item = &'a str> {
    let mut at = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.to_owned()));
    std::iter::from_fn(move || {
        loop {
            let name = hub.names(prefix, at.as_ref().map(String::as_str)).next()?;
            if visible.include_name(name) {
                at = Bound::Excluded(name.to_owned());
                return Some(name);
            }
            // A pattern that begins before this name has no name behind it, or it would be among them.
            let beginnings = visible.iter().map(|pattern| pattern.trim_end_matches('*'));
            at = Bound::Included(beginnings.filter(|start| *start > name).min()?.to_owned());
        }
    })
}

/// One channel. Of one that is not there is told that it is empty: it exists when somebody comes.
pub(super) fn channel(hub: &Hub, name: &str) -> String {
    let mut out = String::new();
    append_channel(&mut out, hub, name);
    out.push('\n');
    out
}

fn append_channel(out: &mut String, hub: &Hub, name: &str) {
    let Standing { members, head, floor, messages, bytes } = hub.standing(name);
    let id = |seq| MessageId { epoch: hub.head().epoch, seq };
    let head = head.map_or("null".to_owned(), |head| format!("\"{}\"", id(head)));
    let _ = write!(
        out,
        "{{\"channel\":\"{name}\",\"members\":{members},\"head\":{head},\"floor\":\"{}\",\"messages\":{messages},\"bytes\":{bytes}}}",
        id(floor)
    );
}

/// A page of what is kept of a channel.
pub(super) fn history(hub: &mut Hub, name: &str, since: Since, limit: usize, now: Moment) -> Vec<u8> {
    let page = hub.page(name, since, limit, now);
    let standing = hub.standing(name);
    let head = hub.head();
    let floor = MessageId { seq: standing.floor, ..head };
    let gap = page.gap.map_or("null".to_owned(), |gap| gap_json(name, &gap));
    let next = page.next.map_or("null".to_owned(), |next| format!("\"{next}\""));
    let mut out = b"{\"messages\":[".to_vec();
    out.extend_from_slice(&page.envelopes);
    let rest = format!("],\"next\":{next},\"gap\":{gap},\"head\":\"{head}\",\"floor\":\"{floor}\"}}\n");
    out.extend_from_slice(rest.as_bytes());
    out
}
