//! What somebody may do.
//!
//! Rights are lists of patterns for channel names. A pattern is
//!
//! - a channel name, which means this channel and no other, or
//! - the beginning of channel names, perhaps an empty one, and a `*` at its end: every channel that begins
//!   so. `room.*` is `room.7` and `room.7.typing`, not `room` and not `rooms`; `*` is every channel.
//!
//! There is no other wildcard, and no pattern takes a right away: what a grant does not name, it does
//! not give.

use std::fmt;
use std::num::NonZeroU32;

use crate::ids::{BadChannelName, ChannelName, User};

/// Patterns for channel names, in one piece of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns(
    /// With a space between each two. No name has one.
    Box<str>,
);

impl Patterns {
    /// Checks and keeps patterns.
    ///
    /// # Errors
    /// Says what is wrong with the first that is none.
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

    /// Does one of the patterns mean this channel?
    pub fn include(&self, channel: &ChannelName) -> bool {
        self.include_name(channel.as_str())
    }

    /// The same for the name of a channel that is there.
    pub fn include_name(&self, name: &str) -> bool {
        self.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == pattern,
        })
    }

    /// Each pattern as it was written.
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

/// Why a text is no pattern for channel names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPattern {
    /// A star where none can be.
    Star,
    /// What is written is no channel name, nor the beginning of one.
    Name(BadChannelName),
}

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPattern::Star => f.write_str("a * comes once, at the end: room.*"),
            BadPattern::Name(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for BadPattern {}

/// The rights of one person, or of everybody who shows no token.
///
/// It is shared and never changes: a connection holds a count on it, and one that shows no token nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The channels that may be heard.
    pub subscribe: Patterns,
    /// The channels that may be published on.
    pub publish: Patterns,
    /// Who it is, if the token says so.
    pub sub: Option<Box<str>>,
    /// The user that subscribers receive with its messages, if it has a `sub`.
    pub user: Option<User>,
    /// When it ends, in seconds since 1970; a grant that needs no token never ends.
    pub expires_at: Option<u64>,
    /// May other people's connections be closed?
    pub admin: bool,
    /// The most messages a second from a connection, where that is another number than the server's.
    pub messages_per_second: Option<NonZeroU32>,
    /// The most bytes a second from a connection, where that is another number than the server's.
    pub bytes_per_second: Option<NonZeroU32>,
}

impl Grant {
    /// Every right on every channel, without end: what a server gives that only its own machine reaches.
    pub fn everything() -> Grant {
        let all = Patterns("*".into());
        Grant { subscribe: all.clone(), publish: all, admin: true, ..Grant::default() }
    }

    /// Reads the rights of those who show no token, as the operator writes them:
    /// `subscribe=public.*,news publish=chat`. Words of one kind add up.
    ///
    /// # Errors
    /// Says which word is wrong and what to write.
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

    /// May this channel be heard, its history too?
    pub fn may_subscribe(&self, channel: &ChannelName) -> bool {
        self.subscribe.include(channel)
    }

    /// May this channel be published on?
    pub fn may_publish(&self, channel: &ChannelName) -> bool {
        self.publish.include(channel)
    }

    /// Has it ended at `now`, in seconds since 1970?
    pub fn has_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// The time until it expires, in milliseconds from `now`, which is in seconds since 1970; `None` if it never does.
    pub fn expires_in_ms(&self, now: u64) -> Option<u64> {
        self.expires_at.map(|end| end.saturating_sub(now).saturating_mul(1_000))
    }
}

/// Why a text gives no rights to those who show no token.
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
            RuleFault::Admin => write!(f, "{word:?}: only a token makes somebody an admin"),
            RuleFault::NoRule => write!(f, "{word:?} is no rule: write {example}"),
            RuleFault::Nothing => {
                write!(f, "no rights are named: write {example}, or subscribe=* publish=* for all channels")
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
    fn a_pattern_means_what_is_written_and_no_more() {
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
    fn no_pattern_means_no_channel() {
        assert!(!Patterns::default().include(&name("main")));
        assert!(!Patterns::parse([]).unwrap().include(&name("main")));
        let grant = Grant { subscribe: Patterns::parse(["a"]).unwrap(), ..Grant::default() };
        assert!(grant.may_subscribe(&name("a")) && !grant.may_publish(&name("a")));
        let grant = Grant { publish: Patterns::parse(["a"]).unwrap(), ..Grant::default() };
        assert!(!grant.may_subscribe(&name("a")) && grant.may_publish(&name("a")));
        assert!(!grant.admin && Grant::everything().may_publish(&name("a")));
    }

    #[test]
    fn what_is_no_pattern() {
        for bad in ["**", "*.room", "r*m", "room.*.x", "room.**"] {
            assert_eq!(Patterns::parse(["a", bad]), Err(BadPattern::Star), "{bad}");
        }
        for bad in ["", " ", "a b", "a\n", "a\0", "a/b", "ä", "a/*", "?", "[a]", " *", &"a".repeat(256)] {
            assert!(matches!(Patterns::parse(["a", bad]), Err(BadPattern::Name(_))), "{bad:?}");
        }
    }

    #[test]
    fn rules_for_those_who_show_no_token() {
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
        check("public.*", "\"public.*\" is no rule");
        check("subscribe", "\"subscribe\" is no rule");
        check("Subscribe=a", "\"Subscribe=a\" is no rule");
        check("subscribe=a admin=true", "only a token");
        check("subscribe=", "empty");
        check("subscribe=a,", "empty");
        check("subscribe=a,,b", "empty");
        check("subscribe=*.a", "at the end");
        check("subscribe=ä", "A-Z");
        check("subscribe=a\u{1b}[31m", "\\u{1b}");
    }

    #[test]
    fn a_grant_is_small() {
        assert!(size_of::<Grant>() <= 88, "{}", size_of::<Grant>());
        assert_eq!(size_of::<Option<std::rc::Rc<Grant>>>(), 8);
    }
}
