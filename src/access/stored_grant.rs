//! A grant as JSON, for a log that several nodes share: a ticket that one node has issued is redeemed on another.
//!
//! The client's token does not enter the log, since it is valid for longer than a ticket.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::grant::{Grant, Patterns};
use crate::ids::User;

#[derive(Serialize, Deserialize)]
struct StoredGrant {
    subscribe: Vec<String>,
    publish: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// JSON in a string, so that subscribers receive the same text on all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    admin: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages_per_second: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<NonZeroU32>,
}

/// Encodes a grant.
pub fn to_json(grant: &Grant) -> String {
    let patterns = |patterns: &Patterns| patterns.iter().map(str::to_owned).collect();
    let stored = StoredGrant {
        subscribe: patterns(&grant.subscribe),
        publish: patterns(&grant.publish),
        sub: grant.sub.as_deref().map(str::to_owned),
        user: grant.user.as_ref().map(|user| user.as_json().to_owned()),
        expires_at: grant.expires_at,
        admin: grant.admin,
        messages_per_second: grant.messages_per_second,
        bytes_per_second: grant.bytes_per_second,
    };
    // Strings and numbers are always valid JSON.
    serde_json::to_string(&stored).unwrap_or_default()
}

/// Decodes a grant; `None` if the text is invalid.
pub fn from_json(json: &str) -> Option<Grant> {
    let stored: StoredGrant = serde_json::from_str(json).ok()?;
    let patterns = |list: &[String]| Patterns::parse(list.iter().map(String::as_str)).ok();
    Some(Grant {
        subscribe: patterns(&stored.subscribe)?,
        publish: patterns(&stored.publish)?,
        sub: stored.sub.map(Into::into),
        user: stored.user.as_deref().map(User::from_json),
        expires_at: stored.expires_at,
        admin: stored.admin,
        messages_per_second: stored.messages_per_second,
        bytes_per_second: stored.bytes_per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_is_decoded_as_it_was_encoded() {
        let full = Grant {
            subscribe: Patterns::parse(["room.*", "news"]).unwrap(),
            publish: Patterns::parse(["chat"]).unwrap(),
            sub: Some("alice \"q\" \u{e4}".into()),
            user: Some(User::new("alice", Some("{\"color\": 1.50}"))),
            expires_at: Some(1_800_000_000),
            admin: true,
            messages_per_second: NonZeroU32::new(5),
            bytes_per_second: NonZeroU32::new(6),
        };
        for grant in [full, Grant::default(), Grant::everything()] {
            assert_eq!(from_json(&to_json(&grant)), Some(grant));
        }
        assert_eq!(from_json("{}"), None);
        assert_eq!(from_json("{\"subscribe\":[\"a b\"],\"publish\":[]}"), None);
    }
}
