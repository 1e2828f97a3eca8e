//! Grants: the channels that a client may subscribe to and publish on.
//!
//! Rights are lists of patterns for channel names. A pattern is
//!
//! - a channel name, which matches this channel only, or
//! - a prefix, possibly empty, followed by `*`, which matches every channel with this prefix. `room.*` matches `room.7`
//!   and `room.7.typing`, but neither `room` nor `rooms`; `*` matches every channel.
//!
//! There is no other wildcard, and no pattern revokes a right: a channel that no pattern matches is not granted.

use std::fmt;
use std::num::NonZeroU32;

use crate::ids::{BadChannelName, ChannelName, User};

/// Patterns for channel names, in one allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(
    /// Separated by spaces, which no name contains.
    Box<str>,
);

impl Patterns {
    /// Validates and stores patterns.
    ///
    /// # Errors
    /// The error of the first invalid pattern.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Patterns, BadPattern> {
        let mut kept = String::new();
        for pattern in patterns {
            check(pattern)?;
            if !kept.is_empty() {
                kept.push(' ');
            }
            kept.push_str(pattern);
        }
        Ok(Patterns(kept.into()))
    }

    /// Returns true if one of the patterns matches this channel.
    pub fn include(&self, channel: &ChannelName) -> bool {
        self.include_name(channel.as_str())
    }

    /// The same as [`Patterns::include`] for the name of an existing channel, which is valid.
    pub fn include_name(&self, name: &str) -> bool {
        // The usual pattern, that of anonymous clients.
        if &*self.0 == "*" {
            return true;
        }
        self.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        })
    }

    /// The patterns in their written form.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_ascii_whitespace()
    }
}

fn check(pattern: &str) -> Result<(), BadPattern> {
    let beginning = match pattern.strip_suffix('*') {
        Some("") => return Ok(()),
        Some(beginning) => beginning,
        None => pattern,
    };
    match ChannelName::parse(beginning.as_bytes()) {
        Ok(_) => Ok(()),
        Err(BadChannelName::BadByte) if beginning.contains('*') => Err(BadPattern::Star),
        Err(why) => Err(BadPattern::Name(why)),
    }
}

/// The error of [`Patterns::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPattern {
    /// A `*` before the end.
    Star,
    /// Neither a channel name nor the prefix of one.
    Name(BadChannelName),
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPattern::Star => f.write_str("a * may appear once, at the end: room.*"),
            BadPattern::Name(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for BadPattern {}

/// The rights of the bearer of a token, or of anonymous clients.
///
/// It is immutable and shared: a connection with a token holds a reference count (`authenticator::Rights`), and an
/// anonymous connection holds nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Channels that the client may subscribe to, including their history.
    pub subscribe: Patterns,
    /// Channels that the client may publish on.
    pub publish: Patterns,
    /// The subject of the token, if it has one.
    pub sub: Option<Box<str>>,
    /// The user that subscribers receive with the client's messages, if the token has a `sub`.
    pub user: Option<User>,
    /// The expiry of the token, in seconds since 1970; `None` for the grant of anonymous clients.
    pub expires_at: Option<u64>,
    /// True if the client may close the connections of other users.
    pub admin: bool,
    /// Maximum messages per second of a connection, if it differs from the server's limit.
    pub messages_per_second: Option<NonZeroU32>,
    /// Maximum bytes per second of a connection, if it differs from the server's limit.
    pub bytes_per_second: Option<NonZeroU32>,
}

impl Grant {
    /// Every right on every channel, without expiry: the rights on a server that only listens on a loopback address.
    pub fn everything() -> Grant {
        let all = Patterns("*".into());
        Grant { subscribe: all.clone(), publish: all, admin: true, ..Grant::default() }
    }

    /// Parses the rights of anonymous clients in the operator's syntax: `subscribe=public.*,news publish=chat`. Rules
    /// of one kind add up.
    ///
    /// # Errors
    /// Names the invalid rule and the correct syntax.
    pub fn anonymous(rules: &str) -> Result<Grant, BadRules> {
        let (mut subscribe, mut publish) = (Vec::new(), Vec::new());
        for word in rules.split_whitespace() {
            let bad = |why| BadRules { word: word.to_owned(), why };
            let (list, patterns) = match word.split_once('=') {
                Some(("subscribe", patterns)) => (&mut subscribe, patterns),
                Some(("publish", patterns)) => (&mut publish, patterns),
                Some(("admin", _)) => return Err(bad(RuleFault::Admin)),
                _ => return Err(bad(RuleFault::NoRule)),
            };
            for pattern in patterns.split(',') {
                check(pattern).map_err(|why| bad(RuleFault::Pattern(why)))?;
                list.push(pattern);
            }
        }
        let bad = |why| BadRules { word: rules.to_owned(), why };
        if subscribe.is_empty() && publish.is_empty() {
            return Err(bad(RuleFault::Nothing));
        }
        let parse = |list| Patterns::parse(list).map_err(|why| bad(RuleFault::Pattern(why)));
        Ok(Grant { subscribe: parse(subscribe)?, publish: parse(publish)?, ..Grant::default() })
    }

    /// Returns true if the client may subscribe to this channel and read its history.
    pub fn may_subscribe(&self, channel: &ChannelName) -> bool {
        self.subscribe.include(channel)
    }

    /// Returns true if the client may publish on this channel.
    pub fn may_publish(&self, channel: &ChannelName) -> bool {
        self.publish.include(channel)
    }

    /// Returns true if it has expired at `now`, in seconds since 1970.
    pub fn has_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Milliseconds from `now`, in seconds since 1970, until it expires; `None` if it does not expire.
    pub fn expires_in_ms(&self, now: u64) -> Option<u64> {
        self.expires_at.map(|end| end.saturating_sub(now).saturating_mul(1_000))
    }
}

/// The error of [`Grant::anonymous`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRules {
    word: String,
    why: RuleFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleFault {
    Admin,
    NoRule,
    Nothing,
    Pattern(BadPattern),
}

impl fmt::Display for BadRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = &self.word;
        let example = "subscribe=public.* publish=chat,room.*";
        match self.why {
            RuleFault::Admin => write!(f, "{word:?}: only a token can grant admin rights"),
            RuleFault::NoRule => write!(f, "{word:?} is not a rule: write {example}"),
            RuleFault::Nothing => {
                write!(f, "no rules: write {example}, or subscribe=* publish=* for all channels")
            }
            RuleFault::Pattern(why) => write!(f, "{word:?}: {why}"),
        }
    }
}

impl std::error::Error for BadRules {}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn pattern_matches_its_name_or_prefix_only() {
        let check = |pattern: &str, channel: &str, included: bool| {
            let patterns = Patterns::parse([pattern]).unwrap();
            assert_eq!(patterns.include(&name(channel)), included, "{channel} by {pattern}");
        };
        check("room.7", "room.7", true);
        check("room.7", "room.70", false);
        check("room.7", "room.", false);
        check("room.7", "Room.7", false);
        check("room.7", "roomx7", false);
        check("room.*", "room.7", true);
        check("room.*", "room.7.typing", true);
        check("room.*", "room.", true);
        check("room.*", "room", false);
        check("room.*", "rooms", false);
        check("room.*", "xroom.7", false);
        check("room*", "rooms", true);
        check("*", "anything", true);
        let longest = "a".repeat(ChannelName::BYTES_MAX);
        check(&longest, &longest, true);
        check(&format!("{longest}*"), &longest, true);
    }

    #[test]
    fn grant_without_patterns_matches_no_channel() {
        assert!(!Patterns::default().include(&name("main")));
        assert!(!Patterns::parse([]).unwrap().include(&name("main")));
        let grant = Grant { subscribe: Patterns::parse(["a"]).unwrap(), ..Grant::default() };
        assert!(grant.may_subscribe(&name("a")) && !grant.may_publish(&name("a")));
        let grant = Grant { publish: Patterns::parse(["a"]).unwrap(), ..Grant::default() };
        assert!(!grant.may_subscribe(&name("a")) && grant.may_publish(&name("a")));
        assert!(!grant.admin && Grant::everything().may_publish(&name("a")));
    }

    #[test]
    fn malformed_pattern_is_rejected() {
        for bad in ["**", "*.room", "r*m", "room.*.x", "room.**"] {
            assert_eq!(Patterns::parse(["a", bad]), Err(BadPattern::Star), "{bad}");
        }
        for bad in ["", " ", "a b", "a\n", "a\0", "a/b", "ä", "a/*", "?", "[a]", " *", &"a".repeat(256)] {
            assert!(matches!(Patterns::parse(["a", bad]), Err(BadPattern::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn rules_of_anonymous_clients_are_parsed() {
        let grant = Grant::anonymous("  subscribe=public.*,news publish=chat\tsubscribe=chat ").unwrap();
        assert_eq!(grant.subscribe.iter().collect::<Vec<_>>(), ["public.*", "news", "chat"]);
        assert_eq!(grant.publish.iter().collect::<Vec<_>>(), ["chat"]);
        assert_eq!((grant.sub, grant.admin, grant.expires_at), (None, false, None));
        assert!(Grant::anonymous("subscribe=*").unwrap().publish.iter().next().is_none());
        let check = |rules: &str, says: &str| {
            let text = Grant::anonymous(rules).unwrap_err().to_string();
            assert!(text.contains(says), "{rules}: {text}");
        };
        check("", "subscribe=* publish=*");
        check("public.*", "\"public.*\" is not a rule");
        check("subscribe", "\"subscribe\" is not a rule");
        check("Subscribe=a", "\"Subscribe=a\" is not a rule");
        check("subscribe=a admin=true", "only a token");
        check("subscribe=", "empty");
        check("subscribe=a,", "empty");
        check("subscribe=a,,b", "empty");
        check("subscribe=*.a", "at the end");
        check("subscribe=ä", "A-Z");
        check("subscribe=a\u{1b}[31m", "\\u{1b}");
    }

    #[test]
    fn grant_of_few_patterns_is_small() {
        assert!(size_of::<Grant>() <= 88, "{}", size_of::<Grant>());
        assert_eq!(size_of::<Option<std::rc::Rc<Grant>>>(), 8);
    }
}
