//! Origin matching against a model. Random origins are built from parts and compared part by part; random bytes must
//! never panic.

use oyez::access::origin::{OriginPattern, OriginVerdict, classify};
use proptest::prelude::*;

/// The parts of an origin; few choices, so that equal ones occur.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    scheme: &'static str,
    labels: Vec<&'static str>,
    port: Option<u16>,
}

impl Parts {
    fn host(&self) -> String {
        self.labels.join(".")
    }

    fn with_port(&self, host: &str) -> String {
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    fn text(&self) -> String {
        format!("{}://{}", self.scheme, self.with_port(&self.host()))
    }

    fn real_port(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let scheme = prop::sample::select(vec!["http", "https"]);
    let label = prop::sample::select(vec!["a", "b", "ab", "example", "com"]);
    let port = prop::sample::select(vec![None, None, Some(80), Some(443), Some(8080)]);
    (scheme, prop::collection::vec(label, 1..4), port).prop_map(|(scheme, labels, port)| Parts {
        scheme,
        labels,
        port,
    })
}

fn verdict(origin: &str, host: &str, patterns: &[String]) -> OriginVerdict {
    let patterns: Vec<OriginPattern> =
        patterns.iter().map(|text| OriginPattern::parse(text).unwrap()).collect();
    classify(Some(origin.as_bytes()), Some(host.as_bytes()), &patterns)
}

proptest! {
    #[test]
    fn origin_matches_patterns_and_hosts_by_parts(
        origin in parts(),
        server in parts(),
        listed in prop::collection::vec((parts(), any::<bool>()), 0..4),
        upper in any::<bool>(),
    ) {
        let patterns: Vec<String> = listed.iter().map(|(parts, below)| {
            let host = if *below { format!("*.{}", parts.host()) } else { parts.host() };
            format!("{}://{}", parts.scheme, parts.with_port(&host))
        }).collect();
        let is_listed = listed.iter().any(|(parts, below)| {
            let host = if *below {
                origin.labels.len() > parts.labels.len() && origin.labels.ends_with(&parts.labels)
            } else {
                origin.labels == parts.labels
            };
            host && origin.scheme == parts.scheme && origin.real_port() == parts.real_port()
        });
        // A `Host` without a port has the default port of the page's scheme.
        let same_port = match server.port {
            None => origin.real_port() == if origin.scheme == "https" { 443 } else { 80 },
            Some(port) => origin.real_port() == port,
        };
        let expected = if origin.labels == server.labels && same_port {
            OriginVerdict::SameHost
        } else if is_listed {
            OriginVerdict::Allowed
        } else {
            OriginVerdict::Foreign
        };
        let text = if upper { origin.text().to_uppercase() } else { origin.text() };
        prop_assert_eq!(verdict(&text, &server.with_port(&server.host()), &patterns), expected);
    }

    /// Any bytes added before or after a valid origin make it another origin.
    #[test]
    fn origin_with_added_bytes_is_another(
        origin in parts(),
        at in any::<prop::sample::Index>(),
        added in "[a-z0-9@:/.?#\\\\ ,%\\[\\]*_-]{1,4}|\u{0}|\u{a0}|\u{430}",
    ) {
        let good = origin.text();
        let at = at.index(good.len() + 1);
        let other = format!("{}{added}{}", &good[..at], &good[at..]);
        let host = origin.with_port(&origin.host());
        let found = verdict(&other, &host, std::slice::from_ref(&good));
        // The scheme's own port may be written or not, and the same host is that by either scheme;
        // nothing else has two forms.
        let own = if origin.scheme == "https" { ":443" } else { ":80" };
        let same = origin.port.is_none() && other == format!("{good}{own}");
        let other_scheme = other == good.replace("http://", "https://");
        let slashed = other.strip_suffix('/').unwrap_or(&other);
        let same = same || slashed == good || origin.port.is_none() && slashed == format!("{good}{own}");
        let other_scheme = other_scheme || slashed == good.replace("http://", "https://");
        prop_assert_eq!(found != OriginVerdict::Foreign, same || other_scheme, "{}", other);
    }

    #[test]
    fn random_bytes_never_panic(
        origin in prop::collection::vec(any::<u8>(), 0..40),
        host in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        prop_assert_eq!(classify(Some(&origin), Some(&host), &[]), OriginVerdict::Foreign);
    }

    #[test]
    fn random_text_in_patterns_never_panics(text in "[a-z*:/.\\[\\]0-9é-]{0,20}") {
        if let Ok(pattern) = OriginPattern::parse(&text) {
            prop_assert_eq!(OriginPattern::parse(&pattern.to_string()), Ok(pattern));
        }
    }
}
