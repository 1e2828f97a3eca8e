//! Routing: the path of a request to a route, and its query to parameters.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::response::HttpError;
use crate::access::printable::is_name;
use crate::config::Asset;
use crate::ids::{ChannelName, Since};

/// The route of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ws` and `/ws/{channel}`.
    WebSocket {
        /// The channel that the path names.
        channel: Option<ChannelName>,
    },
    /// `/sse/{channel}`: server-sent events.
    Events {
        /// The channel.
        channel: ChannelName,
    },
    /// `/v1/publish/{channel}`.
    Publish {
        /// The channel.
        channel: ChannelName,
    },
    /// `/v1/channels`.
    Channels,
    /// `/v1/channels/{channel}`.
    Channel {
        /// The channel.
        channel: ChannelName,
    },
    /// `/v1/channels/{channel}/history`.
    History {
        /// The channel.
        channel: ChannelName,
    },
    /// `/v1/tickets`.
    Tickets,
    /// `/v1/connections`.
    Connections,
    /// `/v1/nodes`.
    Nodes,
    /// `/healthz`: liveness.
    Health,
    /// `/readyz`: whether the server accepts new clients.
    Ready,
    /// `/metrics`.
    Metrics,
    /// A file embedded in the program.
    Asset(&'static Asset),
}

impl Route {
    /// The value of `Allow`.
    pub fn methods(&self) -> &'static str {
        match self {
            Route::WebSocket { .. } => "GET, OPTIONS",
            Route::Publish { .. } | Route::Tickets => "POST, OPTIONS",
            Route::Connections => "DELETE, OPTIONS",
            Route::Events { .. } => "GET, OPTIONS",
            Route::Channels | Route::Channel { .. } | Route::History { .. } | Route::Nodes => {
                "GET, HEAD, OPTIONS"
            }
            Route::Health | Route::Ready | Route::Metrics | Route::Asset(_) => "GET, HEAD, OPTIONS",
        }
    }

    /// Returns true if requests to it may have this method.
    pub fn allows(&self, method: &str) -> bool {
        self.methods().split(", ").any(|one| one == method)
    }

    /// Returns true if pages of other origins may send requests to it, where the operator allows them.
    pub fn is_cross_origin(&self) -> bool {
        match self {
            Route::Publish { .. } | Route::Tickets | Route::Connections | Route::Events { .. } => true,
            Route::Channels | Route::Channel { .. } | Route::History { .. } | Route::Nodes => true,
            Route::WebSocket { .. } => false,
            Route::Health | Route::Ready | Route::Metrics | Route::Asset(_) => false,
        }
    }
}

/// Finds the route of a path.
///
/// # Errors
/// 404 for an unknown path, 400 for an invalid channel name.
pub fn find(path: &str, assets: &[&'static Asset]) -> Result<Route, HttpError> {
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    let route = match (parts.next().unwrap_or(""), parts.next(), parts.next(), parts.next(), parts.next()) {
        ("ws", None, ..) => Route::WebSocket { channel: None },
        ("ws", Some(name), None, ..) => Route::WebSocket { channel: Some(channel(name)?) },
        ("sse", Some(name), None, ..) => Route::Events { channel: channel(name)? },
        ("v1", Some("publish"), Some(name), None, _) => Route::Publish { channel: channel(name)? },
        ("v1", Some("channels"), None, ..) => Route::Channels,
        ("v1", Some("channels"), Some(name), None, _) => Route::Channel { channel: channel(name)? },
        ("v1", Some("channels"), Some(name), Some("history"), None) => {
            Route::History { channel: channel(name)? }
        }
        ("v1", Some("tickets"), None, ..) => Route::Tickets,
        ("v1", Some("connections"), None, ..) => Route::Connections,
        ("v1", Some("nodes"), None, ..) => Route::Nodes,
        ("healthz", None, ..) => Route::Health,
        ("readyz", None, ..) => Route::Ready,
        ("metrics", None, ..) => Route::Metrics,
        _ => match assets.iter().find(|asset| asset.path == path) {
            Some(asset) => Route::Asset(asset),
            None => return Err(not_found()),
        },
    };
    if path.starts_with('/') { Ok(route) } else { Err(not_found()) }
}

fn not_found() -> HttpError {
    let message = "no such path; WebSockets connect to /ws or /ws/{channel}";
    HttpError::new(404, "not_found", message)
}

/// Decodes a path segment as a channel name. A '/' would be encoded as %2F, and is not allowed in a name.
fn channel(segment: &str) -> Result<ChannelName, HttpError> {
    let name: Cow<'_, [u8]> = percent_decode_str(segment).into();
    ChannelName::parse(&name).map_err(|why| HttpError::new(400, "bad_channel", why.to_string()))
}

/// The parameters of a query string. Unknown names are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `since`: the position from which messages are sent.
    pub since: Option<Since>,
    /// The cursor that an event stream has reached, from a client that cannot send `Last-Event-ID` as a header
    /// field: polyfills of EventSource reconnect with `lastEventId`, `lastEventID` or `Last-Event-ID`.
    pub last_event_id: Option<Since>,
    /// `echo`: whether the client receives its own messages. 1 by default.
    pub echo: bool,
    /// True if the data of each event is to be the envelope of `oyez.v1`.
    pub envelope: bool,
    /// `limit`: the maximum number of entries.
    pub limit: Option<usize>,
    /// `prefix`: list the names with this prefix.
    pub prefix: Option<Box<str>>,
    /// `after`: list the names after this one.
    pub after: Option<Box<str>>,
    /// `sub`: a user.
    pub sub: Option<Box<str>>,
}

/// Maximum length of a value: a channel name with every byte escaped.
const VALUE_BYTES_MAX: usize = 3 * ChannelName::BYTES_MAX;

impl Parameters {
    /// Parses a query string.
    ///
    /// # Errors
    /// 400 if a value is invalid.
    pub fn parse(query: &str) -> Result<Parameters, HttpError> {
        let mut parameters = Parameters::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = if name.eq_ignore_ascii_case("last-event-id") { "lastEventId" } else { name };
            let name = if name == "lastEventID" { "lastEventId" } else { name };
            if !matches!(
                name,
                "since" | "lastEventId" | "echo" | "envelope" | "limit" | "prefix" | "after" | "sub"
            ) {
                continue;
            }
            if value.len() > VALUE_BYTES_MAX {
                return Err(bad_query("a value of the query is too long"));
            }
            let value = decode(value);
            match name {
                "since" => parameters.since = Some(cursor(&value)?),
                // Empty before the first event, as in the header field.
                "lastEventId" if value.is_empty() => {}
                "lastEventId" => parameters.last_event_id = Some(cursor(&value)?),
                "echo" | "envelope" => {
                    let is_on = match &value[..] {
                        b"0" => false,
                        b"1" => true,
                        _ => return Err(bad_query(&format!("{name} is 0 or 1"))),
                    };
                    if name == "echo" {
                        parameters.echo = is_on;
                    } else {
                        parameters.envelope = is_on;
                    }
                }
                "limit" => {
                    let limit = std::str::from_utf8(&value).ok().and_then(|value| value.parse().ok());
                    let limit = limit.filter(|limit| (1..=LIMIT_MAX).contains(limit));
                    parameters.limit =
                        Some(limit.ok_or_else(|| bad_query(&format!("limit is 1 to {LIMIT_MAX}")))?);
                }
                "prefix" => parameters.prefix = Some(part_of_name(&value)?),
                "sub" => {
                    let sub = std::str::from_utf8(&value).ok().filter(|sub| is_name(sub));
                    parameters.sub = Some(Box::from(
                        sub.ok_or_else(|| bad_query("sub must be a user name as in a token"))?,
                    ));
                }
                _ => parameters.after = Some(part_of_name(&value)?),
            }
        }
        Ok(parameters)
    }
}

fn bad_query(message: &str) -> HttpError {
    HttpError::new(400, "bad_query", message)
}

fn cursor(value: &[u8]) -> Result<Since, HttpError> {
    Since::parse(value).map_err(|why| HttpError::new(400, "bad_cursor", why.to_string()))
}

/// The beginning of a channel name.
fn part_of_name(value: &[u8]) -> Result<Box<str>, HttpError> {
    let in_alphabet = ChannelName::parse(value).is_ok() || value.is_empty();
    let text = std::str::from_utf8(value).ok().filter(|_| in_alphabet);
    text.map(Box::from).ok_or_else(|| bad_query("prefix and after consist of A-Z a-z 0-9 _ . : -"))
}

impl Default for Parameters {
    fn default() -> Parameters {
        Parameters {
            since: None,
            last_event_id: None,
            echo: true,
            envelope: false,
            limit: None,
            prefix: None,
            after: None,
            sub: None,
        }
    }
}

/// A secret in a query string. It is not part of [`Parameters`], which may be logged.
pub(in crate::session) fn secret<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(one, _)| *one == name).map(|(_, value)| decode(value))
}

/// A value of a query as forms and `URLSearchParams` encode it: `+` is a space
/// (WHATWG URL, application/x-www-form-urlencoded parsing).
fn decode(value: &str) -> Cow<'_, [u8]> {
    let decoded: Cow<'_, [u8]> = percent_decode_str(value).into();
    if !value.contains('+') {
        return decoded;
    }
    // Before the escapes are decoded: %2B is a plus.
    let spaced = value.replace('+', " ");
    Cow::Owned(percent_decode_str(&spaced).collect())
}

/// Maximum length of a page: 1,000 channels are about 150 KB, and 0.3 ms of the loop's time.
pub const LIMIT_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    static PAGE: Asset = Asset { path: "/", content_type: "text/html", bytes: b"x", gzip: b"", tag: "" };

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn path_is_routed_or_rejected() {
        let check = |path: &str, expected: Result<Route, u16>| {
            let found = find(path, &[&PAGE]).map_err(|error| error.status());
            assert_eq!(found, expected, "{path}");
        };
        check("/ws", Ok(Route::WebSocket { channel: None }));
        check("/ws/prices", Ok(Route::WebSocket { channel: Some(name("prices")) }));
        check("/ws/room%3A7", Ok(Route::WebSocket { channel: Some(name("room:7")) }));
        check("/sse/a", Ok(Route::Events { channel: name("a") }));
        check("/v1/publish/a", Ok(Route::Publish { channel: name("a") }));
        check("/v1/channels", Ok(Route::Channels));
        check("/v1/channels/a", Ok(Route::Channel { channel: name("a") }));
        check("/v1/channels/a/history", Ok(Route::History { channel: name("a") }));
        check("/v1/tickets", Ok(Route::Tickets));
        check("/v1/connections", Ok(Route::Connections));
        check("/healthz", Ok(Route::Health));
        check("/readyz", Ok(Route::Ready));
        check("/metrics", Ok(Route::Metrics));
        check("/", Ok(Route::Asset(&PAGE)));
        for (path, status) in [
            ("", 404),
            ("*", 404),
            ("ws", 404),
            ("/wsx", 404),
            ("//ws", 404),
            ("/ws/a/b", 404),
            ("/ws/a/", 404),
            ("/ws/", 400),
            ("/ws/..%2fx", 400),
            ("/ws/%00", 400),
            ("/ws/%c0%af", 400),
            ("/ws/a%0d%0ab", 400),
            ("/ws/%", 400),
            ("/sse", 404),
            ("/sse/", 400),
            ("/v1", 404),
            ("/v1/publish", 404),
            ("/v1/publish/a/b", 404),
            ("/v1/channels/", 400),
            ("/v1/channels/a/histor", 404),
            ("/v1/channels/a/history/", 404),
            ("/metrics/", 404),
            ("/index.html", 404),
        ] {
            check(path, Err(status));
        }
    }

    #[test]
    fn plus_in_a_query_is_a_space() {
        let pairs =
            [("a+b", "a b"), ("a%20b", "a b"), ("a%2Bb", "a+b"), ("+%2B", " +"), ("+", " "), ("", "")];
        for (text, expected) in pairs {
            assert_eq!(decode(text), expected.as_bytes(), "{text}");
        }
        assert_eq!(Parameters::parse("sub=alice+smith").unwrap().sub.as_deref(), Some("alice smith"));
        assert_eq!(secret("x=1&ticket=a+b", "ticket").unwrap(), &b"a b"[..]);
        assert!(Parameters::parse("prefix=a+b").is_err(), "a channel name has no space");
    }

    #[test]
    fn query_is_parsed_or_rejected() {
        let none = Parameters::default();
        let check =
            |text: &str, expected: Parameters| assert_eq!(Parameters::parse(text), Ok(expected), "{text}");
        check("", none.clone());
        check("v=2&&echo=0&x", Parameters { echo: false, ..none.clone() });
        check("echo=0&echo=1", none.clone());
        check("envelope=1", Parameters { envelope: true, ..none.clone() });
        let id = MessageId { epoch: 5, seq: 6 };
        check("since=5-6", Parameters { since: Some(Since::After(id)), ..none.clone() });
        check(
            "since=5%2D6&limit=7",
            Parameters { since: Some(Since::After(id)), limit: Some(7), ..none.clone() },
        );
        check("since=latest", Parameters { since: Some(Since::Latest), ..none.clone() });
        check(
            "prefix=room.&after=room%3A7",
            Parameters { prefix: Some("room.".into()), after: Some("room:7".into()), ..none },
        );
        for name in ["lastEventId", "lastEventID", "Last-Event-ID", "last-event-id"] {
            let read = Parameters::parse(&format!("{name}=5-6&since=latest")).unwrap();
            assert_eq!(
                (read.last_event_id, read.since),
                (Some(Since::After(id)), Some(Since::Latest)),
                "{name}"
            );
            check(&format!("{name}="), Parameters::default());
            assert!(Parameters::parse(&format!("{name}=x")).is_err());
        }
        for bad in [
            "echo=no",
            "envelope=yes",
            "echo",
            "since=",
            "since=x",
            "limit=0",
            "limit=1001",
            "limit=-1",
            "prefix=%00",
            "after=a/b",
        ] {
            assert!(Parameters::parse(bad).is_err(), "{bad}");
        }
        assert!(Parameters::parse(&format!("since={}", "1".repeat(64 << 10))).is_err());
    }
}
