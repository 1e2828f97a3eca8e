//! Method and path to route.

use percent_encoding::percent_decode_str;

use super::http::Refusal;
use crate::ids::ChannelName;

/// Where a request wants to go.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// `/ws` and `/ws/{channel}`.
    WebSocket {
        /// The channel to join.
        channel: ChannelName,
        /// `?echo=0` asks not to hear oneself.
        echo: bool,
    },
}

/// Finds the route of a request target's path and query.
///
/// # Errors
/// 404 where there is nothing, 400 where a part does not parse.
pub fn find(path: &str, query: Option<&str>) -> Result<Route, Refusal> {
    let channel = match path.strip_prefix("/ws") {
        Some("") => ChannelName::main(),
        Some(rest) => match rest.strip_prefix('/') {
            // A second segment is a path of its own; a '/' in a name would come as %2F, and is refused below.
            Some(name) if !name.contains('/') => {
                let name: Vec<u8> = percent_decode_str(name).collect();
                ChannelName::parse(&name).map_err(|why| Refusal::new(400, "bad_channel", why.to_string()))?
            }
            _ => return Err(not_found()),
        },
        None => return Err(not_found()),
    };
    Ok(Route::WebSocket { channel, echo: echo(query.unwrap_or(""))? })
}

fn not_found() -> Refusal {
    Refusal::new(404, "not_found", "there is nothing here; WebSockets connect to /ws or /ws/{channel}")
}

/// `echo=0` or `echo=1`, 1 by default. Names that we do not know are somebody else's business.
fn echo(query: &str) -> Result<bool, Refusal> {
    let mut echo = true;
    for pair in query.split('&') {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("echo", "0") => echo = false,
            ("echo", "1") => echo = true,
            ("echo", _) => return Err(Refusal::new(400, "bad_query", "echo is 0 or 1")),
            _ => {}
        }
    }
    Ok(echo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, query, expected: Result<(&str, bool), u16>| {
            let found = match find(path, query) {
                Ok(Route::WebSocket { channel, echo }) => Ok((channel.as_str().to_owned(), echo)),
                Err(refusal) => Err(refusal.status()),
            };
            assert_eq!(found, expected.map(|(name, echo)| (name.to_owned(), echo)), "{path}");
        };
        check("/ws", None, Ok(("main", true)));
        check("/ws/prices", None, Ok(("prices", true)));
        check("/ws/room%3A7", None, Ok(("room:7", true)));
        check("/ws", Some("echo=0"), Ok(("main", false)));
        check("/ws", Some("v=2&echo=0&echo=1"), Ok(("main", true)));
        check("/ws", Some("echo=no"), Err(400));
        check("/ws", Some("echo"), Err(400));
        for (path, status) in [
            ("/", 404),
            ("/wsx", 404),
            ("/ws/a/b", 404),
            ("/ws/a/", 404),
            ("/ws/", 400),
            ("/ws/..%2fx", 400),
            ("/ws/%00", 400),
            ("/ws/%c0%af", 400),
            ("/ws/a%0d%0ab", 400),
            ("/ws/%", 400),
        ] {
            check(path, None, Err(status));
        }
    }
}
