//! Origin checks: which web pages may connect (RFC 6454 7, RFC 6455 10.2).
//!
//! Any page that a user opens can open a WebSocket to any site, and to hosts of the user's own network; browsers do not
//! apply the same-origin policy to WebSockets. They send the origin of the page in `Origin`, and the server must check
//! it.
//!
//! Pages of the server's own host are allowed, and so are the origins that the operator lists. A request without
//! `Origin` does not come from a page and is not checked here.
//!
//! A web origin is parsed and compared in parts, since attacks exploit comparisons of text:
//! `https://example.com.evil.test`, `https://example.com@evil.test`, `https://evilexample.com`. Other origins (`null`,
//! `file://`, `app://.`) have no parts and are compared as a whole. Comparisons ignore case, and one slash at the end,
//! which some programs add.

use std::fmt;
use std::net::Ipv6Addr;

use super::parsed_origin::{Host, Origin, default_port, is_scheme, split_port};

/// The result of [`classify`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginVerdict {
    /// No `Origin` field: the client is not a web page.
    Absent,
    /// A page of the host that the request was sent to.
    SameHost,
    /// A page that the operator lists.
    Allowed,
    /// Another page; the operator allows all origins.
    AnyPage,
    /// Another page, or a malformed origin.
    Foreign,
}

/// Checks an `Origin` field against the `Host` field of the request and the operator's patterns.
///
/// A request with two fields of either name must be rejected earlier, since a proxy may have checked the other one.
///
/// The same host is the host and port of `Host`, whatever the scheme: where TLS ends at a proxy, the page is `https`
/// and the request that arrives here is not. `null`, which sandboxed pages and local files send, is not a host; only
/// the patterns `null` and `*` match it.
pub fn classify(origin: Option<&[u8]>, host: Option<&[u8]>, patterns: &[OriginPattern]) -> OriginVerdict {
    let Some(origin) = origin else {
        return OriginVerdict::Absent;
    };
    let text = std::str::from_utf8(origin).ok().map(without_slash);
    let parsed = text.and_then(Origin::parse);
    let is_listed = |pattern: &OriginPattern| match &pattern.0 {
        Pattern::Any => false,
        Pattern::Whole(whole) => text.is_some_and(|text| text.eq_ignore_ascii_case(without_slash(whole))),
        Pattern::One { .. } => parsed.as_ref().is_some_and(|origin| pattern.matches(origin)),
    };
    if parsed.as_ref().is_some_and(|origin| origin.is_at(host)) {
        OriginVerdict::SameHost
    } else if patterns.iter().any(is_listed) {
        OriginVerdict::Allowed
    } else if patterns.iter().any(|pattern| pattern.0 == Pattern::Any) {
        OriginVerdict::AnyPage
    } else {
        OriginVerdict::Foreign
    }
}

/// An origin without one slash at its end, but for those of the `//` before the host.
fn without_slash(origin: &str) -> &str {
    let begin = origin.find("://").map_or(0, |at| at + 3);
    if origin.len() > begin { origin.strip_suffix('/').unwrap_or(origin) } else { origin }
}

/// Returns true if this is the origin of a page that this machine serves, at any port, such as a development server.
/// Only programs of this machine can serve one, since no name server resolves its name.
pub fn is_loopback_origin(origin: &[u8]) -> bool {
    let parsed = std::str::from_utf8(origin).ok().map(without_slash).and_then(Origin::parse);
    parsed.is_some_and(|origin| default_port(origin.scheme).is_some() && origin.host.is_loopback_name())
}

/// Returns true if `Host` is a loopback address or `localhost`, which no name server resolves.
///
/// A server without access rules that listens on a loopback address can still be reached by every page that the user
/// opens: if the page's own name resolves to 127.0.0.1 the second time (DNS rebinding), the page has the same host as
/// the server. Such a server must only accept requests whose `Host` is a loopback name.
pub fn is_loopback_host(host: &[u8]) -> bool {
    let Some((host, _)) = std::str::from_utf8(host).ok().and_then(split_port) else {
        return false;
    };
    host.is_loopback_name()
}

/// A pattern for the origins that the operator allows.
///
/// One of
/// - `https://app.example.com`, `http://localhost:5173`: this origin only. The default port is that of the scheme.
/// - `https://*.example.com`: every host below `example.com`, at any depth; not `example.com` itself.
/// - `null`, `file://`, `app://.`, `capacitor://localhost`: the origins of sandboxed pages, local files and programs
///   with embedded pages, compared as a whole.
/// - `*`: every page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginPattern(Pattern);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Any,
    /// Another origin, in lower case, compared as a whole.
    Whole(Box<str>),
    /// Scheme and host are in lower case.
    One {
        scheme: Box<str>,
        host: HostPattern,
        port: Option<u16>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HostPattern {
    Name(Box<str>),
    /// The text after the `*`, including its dot.
    Below(Box<str>),
    V6(Ipv6Addr),
}

impl OriginPattern {
    /// Parses a pattern in the operator's syntax.
    ///
    /// # Errors
    /// The mistake, and the correct syntax.
    pub fn parse(text: &str) -> Result<OriginPattern, BadOriginPattern> {
        if text == "*" {
            return Ok(OriginPattern(Pattern::Any));
        }
        let lower = text.to_ascii_lowercase();
        let Some((scheme, rest)) = lower.split_once("://") else {
            return match &lower[..] {
                "null" => Ok(OriginPattern(Pattern::Whole("null".into()))),
                _ => Err(BadOriginPattern::NoScheme),
            };
        };
        match scheme {
            "ws" => return Err(BadOriginPattern::SocketScheme("http")),
            "wss" => return Err(BadOriginPattern::SocketScheme("https")),
            _ => {}
        }
        if !rest.is_ascii() {
            return Err(BadOriginPattern::NotAscii);
        }
        let whole = &lower;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let is_web = default_port(scheme).is_some();
        if is_web && rest.contains(['/', '?', '#']) {
            return Err(BadOriginPattern::Path);
        }
        let (below, name) = match rest.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, rest),
        };
        if name.contains('*') {
            return Err(BadOriginPattern::Star);
        }
        if !is_scheme(scheme) {
            return Err(BadOriginPattern::NotAnOrigin);
        }
        let Some((host, port)) = split_port(name) else {
            let may_be_sent = whole.bytes().all(|byte| byte.is_ascii_graphic());
            return if is_web || below || !may_be_sent {
                Err(BadOriginPattern::NotAnOrigin)
            } else {
                Ok(OriginPattern(Pattern::Whole(whole[..].into())))
            };
        };
        let host = match (host, below) {
            (Host::Name(name), false) => HostPattern::Name(name.into()),
            (Host::Name(name), true) => HostPattern::Below(format!(".{name}").into()),
            (Host::V6(address), false) => HostPattern::V6(address),
            (Host::V6(_), true) => return Err(BadOriginPattern::Star),
        };
        let port = port.or_else(|| default_port(scheme));
        Ok(OriginPattern(Pattern::One { scheme: scheme.into(), host, port }))
    }

    fn matches(&self, origin: &Origin<'_>) -> bool {
        let Pattern::One { scheme, host, port } = &self.0 else { return false };
        let same_host = match (host, &origin.host) {
            (HostPattern::Name(name), Host::Name(other)) => name.eq_ignore_ascii_case(other),
            // A name does not begin with a dot, so at least one label precedes the ending.
            (HostPattern::Below(ending), Host::Name(other)) => other
                .len()
                .checked_sub(ending.len())
                .is_some_and(|start| other[start..].eq_ignore_ascii_case(ending)),
            (HostPattern::V6(address), Host::V6(other)) => address == other,
            _ => false,
        };
        same_host && scheme.eq_ignore_ascii_case(origin.scheme) && *port == origin.port
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match &self.0 {
            Pattern::Any => return f.write_str("*"),
            Pattern::Whole(text) => return f.write_str(text),
            Pattern::One { scheme, host, port } => (scheme, host, port),
        };
        match host {
            HostPattern::Name(name) => write!(f, "{scheme}://{name}")?,
            HostPattern::Below(ending) => write!(f, "{scheme}://*{ending}")?,
            HostPattern::V6(address) => write!(f, "{scheme}://[{address}]")?,
        }
        match port {
            Some(port) if default_port(scheme) != Some(*port) => write!(f, ":{port}"),
            _ => Ok(()),
        }
    }
}

/// The error of [`OriginPattern::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOriginPattern {
    /// A bare host without a scheme.
    NoScheme,
    /// The URL of the socket in place of the page's; the page has this scheme.
    SocketScheme(&'static str),
    /// A host that browsers send in its ASCII form.
    NotAscii,
    /// A path, query or fragment after the host and port.
    Path,
    /// A `*` in a wrong place.
    Star,
    /// Anything else.
    NotAnOrigin,
}

impl fmt::Display for BadOriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadOriginPattern::NoScheme => f.write_str(
                "an origin starts with a scheme: write https://app.example.com, or * for all pages",
            ),
            BadOriginPattern::SocketScheme(scheme) => {
                write!(f, "an origin is the URL of the page, not of the socket: write {scheme}://")
            }
            BadOriginPattern::NotAscii => {
                f.write_str("browsers send such a host in its ASCII form: write xn--…")
            }
            BadOriginPattern::Path => f.write_str("an origin ends after host and port: leave out the path"),
            BadOriginPattern::Star => {
                f.write_str("a * must be alone, or first in the host name: https://*.example.com")
            }
            BadOriginPattern::NotAnOrigin => {
                f.write_str("not an origin: write https://host, https://host:port, https://*.host or *")
            }
        }
    }
}

impl std::error::Error for BadOriginPattern {}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<OriginPattern> {
        texts.iter().map(|text| OriginPattern::parse(text).unwrap()).collect()
    }

    #[test]
    fn request_without_origin_is_of_no_page() {
        assert_eq!(classify(None, Some(b"example.com"), &[]), OriginVerdict::Absent);
        assert_eq!(classify(None, None, &patterns(&["*"])), OriginVerdict::Absent);
    }

    #[test]
    fn origin_is_own_with_the_same_host_and_port() {
        let check = |origin: &str, host: &str, same: bool| {
            let verdict = classify(Some(origin.as_bytes()), Some(host.as_bytes()), &[]);
            let expected = if same { OriginVerdict::SameHost } else { OriginVerdict::Foreign };
            assert_eq!(verdict, expected, "{origin} at {host}");
        };
        check("http://example.com", "example.com", true);
        check("https://example.com", "example.com", true);
        check("https://example.com", "EXAMPLE.com", true);
        check("https://example.com", "example.com:443", true);
        check("https://example.com:443", "example.com", true);
        check("http://example.com:8080", "example.com:8080", true);
        check("https://example.com:8080", "example.com:8080", true);
        check("http://127.0.0.1:8080", "127.0.0.1:8080", true);
        check("http://[::1]:8080", "[::1]:8080", true);
        check("http://[0:0::1]:8080", "[::1]:8080", true);
        check("http://[::1]", "[::1]", true);
        check("https://example.com.", "example.com.", true);
        check("http://example.com", "example.com:443", false);
        check("http://example.com", "example.com:8080", false);
        check("http://example.com:8080", "example.com", false);
        check("http://example.com:8081", "example.com:8080", false);
        check("http://localhost:8080", "127.0.0.1:8080", false);
        check("http://[::2]:8080", "[::1]:8080", false);
        check("https://example.com.", "example.com", false);
        check("https://app.example.com", "example.com", false);
        check("https://example.com", "app.example.com", false);
        check("https://example.com.evil.test", "example.com", false);
        check("https://evilexample.com", "example.com", false);
        check("null", "null", false);
        check("capacitor://localhost", "localhost", false);
        check("https://example.com", "", false);
        check("https://example.com", "example.com, example.com", false);
        assert_eq!(classify(Some(b"https://example.com"), None, &[]), OriginVerdict::Foreign);
    }

    /// A malformed origin is foreign, even if it begins or ends like an allowed one.
    const NO_ORIGINS: [&str; 34] = [
        "",
        "example.com",
        "//example.com",
        "https:example.com",
        "https:/example.com",
        "https://",
        "https://example.com//",
        "https://example.com/path",
        "https://example.com?",
        "https://example.com#",
        "https://example.com#.example.com",
        "https://example.com\\",
        "https://user@example.com",
        "https://example.com@evil.test",
        "https://example.com:443@evil.test",
        "https://example.com:",
        "https://example.com:0443",
        "https://example.com:+443",
        "https://example.com:65979",
        "https://example.com:443:443",
        "https://example.com https://example.com",
        "https://example.com, https://example.com",
        " https://example.com",
        "https://example.com ",
        "https://.example.com",
        "https://a..example.com",
        "https://*.example.com",
        "https://example.com\0",
        "https://ex\u{430}mple.com",
        "https://%65xample.com",
        "https://[::1",
        "https://[::1]x",
        "https://[example.com]",
        "1https://example.com",
    ];

    #[test]
    fn origin_that_no_browser_sends_is_foreign() {
        let named = ["https://example.com", "https://*.example.com", "null", "file://", "app://."];
        let all = patterns(&named);
        let any = patterns(&["*"]);
        for text in NO_ORIGINS {
            let verdict = classify(Some(text.as_bytes()), Some(b"example.com"), &any);
            assert_eq!(verdict, OriginVerdict::AnyPage, "{text}: all pages are let in");
            let verdict = classify(Some(text.as_bytes()), Some(b"example.com"), &all);
            assert_eq!(verdict, OriginVerdict::Foreign, "{text}");
        }
        assert_eq!(classify(Some(b"https://example.com\xff"), None, &all), OriginVerdict::Foreign);
        assert_eq!(classify(Some(b"https://[::1%25eth0]"), None, &all), OriginVerdict::Foreign);
        let long = format!("https://{}.example.com", "a".repeat(250));
        assert_eq!(classify(Some(long.as_bytes()), None, &all), OriginVerdict::Foreign);
    }

    fn check(pattern: &str, origin: &str, allowed: bool) {
        let verdict = classify(Some(origin.as_bytes()), Some(b"server.test"), &patterns(&[pattern]));
        let expected = if allowed { OriginVerdict::Allowed } else { OriginVerdict::Foreign };
        assert_eq!(verdict, expected, "{origin} by {pattern}");
    }

    #[test]
    fn pattern_allows_the_origins_that_it_matches_and_no_others() {
        let one = "https://app.example.com";
        check(one, "https://app.example.com", true);
        check(one, "https://app.example.com:443", true);
        check(one, "HTTPS://App.Example.COM", true);
        check("HTTPS://App.Example.COM:443", "https://app.example.com", true);
        check(one, "http://app.example.com", false);
        check(one, "http://app.example.com:443", false);
        check(one, "https://app.example.com:8443", false);
        check(one, "https://app.example.com.", false);
        check(one, "https://example.com", false);
        check(one, "https://b.app.example.com", false);
        check(one, "https://app.example.com.evil.test", false);
        check(one, "https://evil-app.example.com", false);
        check(one, "https://appxexample.com", false);
        check(one, "null", false);
        check(one, "https://app.example.com/", true);
        check("https://app.example.com/", "https://app.example.com", true);
        check(one, "https://app.example.com//", false);
        let below = "https://*.example.com";
        check(below, "https://a.example.com", true);
        check(below, "https://a.b.example.com", true);
        check(below, "https://A.EXAMPLE.com", true);
        check(below, "https://example.com", false);
        check(below, "https://evilexample.com", false);
        check(below, "https://a.example.com.evil.test", false);
        check(below, "https://a.example.com:8443", false);
        check(below, "http://a.example.com", false);
        check("https://*.example.com:8443", "https://a.example.com:8443", true);
        check("https://*.example.com:8443", "https://a.example.com", false);
        check("http://localhost:5173", "http://localhost:5173", true);
        check("http://localhost:5173", "http://localhost", false);
        check("https://[2001:db8::1]", "https://[2001:DB8:0::1]", true);
        check("https://[2001:db8::1]", "https://[2001:db8::2]", false);
        check("https://xn--mnchen-3ya.example", "https://xn--mnchen-3ya.example", true);
        check("capacitor://localhost", "capacitor://localhost", true);
        check("capacitor://localhost", "http://localhost", false);
    }

    #[test]
    fn pattern_of_an_origin_without_a_host_allows_that_origin_alone() {
        for whole in [
            "null",
            "file://",
            "app://.",
            "app://-",
            "ionic://localhost",
            "chrome-extension://abc",
            "tauri://localhost",
        ] {
            for sent in [whole.to_owned(), whole.to_uppercase(), format!("{whole}/")] {
                check(whole, &sent, true);
            }
            check(whole, &format!("{whole}x"), false);
            check(whole, "", false);
            check("https://app.example.com", whole, false);
        }
        check("file:///", "file://", true);
        check("app://.", "app://", false);
        check("app://x/y", "app://x/y", true);
    }

    #[test]
    fn pattern_of_all_origins_allows_every_page() {
        let any = patterns(&["https://app.example.com", "*"]);
        for origin in [&b"https://anything.test:9"[..], b"null", b"", b"file://", b"app://.", b"x/", b"\xff"]
        {
            assert_eq!(
                classify(Some(origin), Some(b"server.test"), &any),
                OriginVerdict::AnyPage,
                "{origin:?}"
            );
        }
        let named = classify(Some(b"https://app.example.com"), Some(b"server.test"), &any);
        assert_eq!(named, OriginVerdict::Allowed, "a listed origin is distinguished from any page");
    }

    #[test]
    fn loopback_origin_is_allowed_by_its_own_pattern() {
        for origin in [
            "http://localhost:5173",
            "https://localhost",
            "http://127.0.0.1:3000",
            "http://[::1]:8",
            "http://app.localhost:1",
            "http://LocalHost.:80/",
            "http://[::ffff:127.0.0.1]:9",
        ] {
            assert!(is_loopback_origin(origin.as_bytes()), "{origin}");
        }
        for origin in [
            "",
            "null",
            "localhost",
            "file://",
            "http://localhost.evil.test",
            "http://evillocalhost",
            "http://10.0.0.1",
            "http://0.0.0.0",
            "http://127.0.0.1.nip.io",
            "app://localhost",
            "http://localhost@evil.test",
            "http://evil.test/localhost",
        ] {
            assert!(!is_loopback_origin(origin.as_bytes()), "{origin}");
        }
    }

    #[test]
    fn invalid_pattern_is_rejected_with_a_hint() {
        let check = |text: &str, why: BadOriginPattern, says: &str| {
            assert_eq!(OriginPattern::parse(text), Err(why), "{text}");
            assert!(why.to_string().contains(says), "{why}");
        };
        check("", BadOriginPattern::NoScheme, "https://app.example.com");
        check("app.example.com", BadOriginPattern::NoScheme, "https://app.example.com");
        check("*.example.com", BadOriginPattern::NoScheme, "https://app.example.com");
        check("app:", BadOriginPattern::NoScheme, "* for all");
        check("app://x y", BadOriginPattern::NotAnOrigin, "https://host");
        check("app://*.x:y", BadOriginPattern::NotAnOrigin, "https://host");
        check("wss://app.example.com", BadOriginPattern::SocketScheme("https"), "write https://");
        check("ws://localhost", BadOriginPattern::SocketScheme("http"), "write http://");
        check("https://münchen.example", BadOriginPattern::NotAscii, "xn--");
        check("https://app.example.com//", BadOriginPattern::Path, "leave out the path");
        check("https://app.example.com/x", BadOriginPattern::Path, "leave out the path");
        check("https://app.*.com", BadOriginPattern::Star, "https://*.example.com");
        check("https://*", BadOriginPattern::Star, "https://*.example.com");
        check("https://*.*.com", BadOriginPattern::Star, "https://*.example.com");
        check("https://*.[::1]", BadOriginPattern::Star, "https://*.example.com");
        check("*://example.com", BadOriginPattern::NotAnOrigin, "https://host");
        check("https://", BadOriginPattern::NotAnOrigin, "https://host");
        check("https://*.", BadOriginPattern::NotAnOrigin, "https://host");
        check("https://a:b", BadOriginPattern::NotAnOrigin, "https://host");
        check("https://user@example.com", BadOriginPattern::NotAnOrigin, "https://host");
        check("https://a b", BadOriginPattern::NotAnOrigin, "https://host");
    }

    #[test]
    fn pattern_is_displayed_as_it_is_written() {
        for text in [
            "*",
            "null",
            "file://",
            "app://.",
            "https://a.b",
            "https://*.a.b:8443",
            "http://[::1]:8080",
            "capacitor://localhost",
        ] {
            assert_eq!(OriginPattern::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(OriginPattern::parse("HTTPS://A.b:443").unwrap().to_string(), "https://a.b");
    }

    #[test]
    fn host_that_dns_cannot_redirect_is_recognized() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]",
            "[::1]:8080",
            "localhost.",
            "LocalHost.:8080",
            "a.localhost",
            "a.b.localhost:1",
            "a.localhost.",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]:80",
        ] {
            assert!(is_loopback_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "evil.test",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "10.0.0.1",
            "0x7f.1",
            "xlocalhost",
            "localhost..",
            ".localhost",
            "127.0.0.1.",
            "[::ffff:10.0.0.1]",
            "[::127.0.0.1]",
            "localhost:",
        ] {
            assert!(!is_loopback_host(host.as_bytes()), "{host}");
        }
    }
}
