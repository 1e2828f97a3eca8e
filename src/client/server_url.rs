//! The URL of a server, as `--url` of `oyez pub`, `oyez sub` and `oyez bench` names it.

use std::fmt;

use http::Uri;

/// A server's scheme, host and port, and the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// True for `wss://` and `https://`.
    pub is_encrypted: bool,
    authority: String,
    host: String,
    port: Option<u16>,
    path: Option<String>,
}

impl ServerUrl {
    /// Parses `ws://host[:port][/path]`, the same with `http`, `wss` or `https`, or without a scheme; a port alone,
    /// `:9000` or `9000`, is on 127.0.0.1, as in `oyez serve --listen :9000`.
    ///
    /// # Errors
    /// The text is not such a URL.
    pub fn parse(text: &str) -> Result<ServerUrl, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("ws", text));
        // Schemes have no case (RFC 3986 3.1).
        let scheme = scheme.to_ascii_lowercase();
        let is_port = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        let rest = match rest.strip_prefix(':') {
            Some(port) => format!("127.0.0.1:{port}"),
            None if is_port => format!("127.0.0.1:{rest}"),
            None => rest.to_owned(),
        };
        let is_encrypted = match scheme.as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err(format!("{text:?} is not a WebSocket URL: write ws://host:port, or wss://")),
        };
        // The parser drops a fragment, which no request has.
        let uri: Option<Uri> =
            if rest.contains('#') { None } else { format!("{scheme}://{rest}").parse().ok() };
        let uri = uri.ok_or_else(|| format!("{text:?} is not a URL: write ws://host:port"))?;
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| format!("no host in {text:?}: write ws://host:port"))?;
        if authority.as_str().contains('@') {
            return Err("a URL with a user or password is not supported: use --token-file".to_owned());
        }
        let port = authority.port_u16();
        if port == Some(0) || (port.is_none() && !authority.as_str().ends_with(authority.host())) {
            return Err("the port is not a number from 1 to 65535".to_owned());
        }
        Ok(ServerUrl {
            is_encrypted,
            authority: authority.to_string(),
            // Brackets belong to an IPv6 address in a URL, not in a lookup or a certificate.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            path: rest.contains(['/', '?']).then(|| uri.path_and_query().map(ToString::to_string)).flatten(),
        })
    }

    /// The host and port as in the URL, for the `Host` field of a request.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; without one in the URL that of its scheme.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.is_encrypted { 443 } else { 80 })
    }

    /// The path and query, if the URL has them.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "wss" } else { "ws" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerUrl;

    #[test]
    fn url_with_or_without_scheme_host_port_and_path_is_parsed() {
        let check = |text: &str, host: &str, port: u16, path: Option<&str>| {
            let url = ServerUrl::parse(text).unwrap();
            assert_eq!((url.host(), url.port(), url.path()), (host, port, path), "{text}");
            assert_eq!(url.is_encrypted, text.starts_with("wss") || text.starts_with("https"), "{text}");
        };
        check("ws://127.0.0.1:8080", "127.0.0.1", 8080, None);
        check("ws://127.0.0.1:8080/", "127.0.0.1", 8080, Some("/"));
        check("ws://127.0.0.1/chat?room={channel}", "127.0.0.1", 80, Some("/chat?room={channel}"));
        check("ws://127.0.0.1?room={channel}", "127.0.0.1", 80, Some("/?room={channel}"));
        check("ws://[::1]:9/x", "::1", 9, Some("/x"));
        check("[::1]:9", "::1", 9, None);
        check("ws://[::1]", "::1", 80, None);
        check("wss://[::1]", "::1", 443, None);
        check("wss://127.0.0.1:9/ws", "127.0.0.1", 9, Some("/ws"));
        check("http://example.org", "example.org", 80, None);
        check("https://example.org", "example.org", 443, None);
        check("example.org", "example.org", 80, None);
        check("localhost:9000", "localhost", 9000, None);
        check("127.0.0.1:80/x", "127.0.0.1", 80, Some("/x"));
        check(":9000", "127.0.0.1", 9000, None);
        check("ws://:9000/x", "127.0.0.1", 9000, Some("/x"));
        check("wss://:9000", "127.0.0.1", 9000, None);
        check("9000", "127.0.0.1", 9000, None);
        check("WS://Example.org", "Example.org", 80, None);
    }

    #[test]
    fn invalid_url_is_rejected_with_its_reason() {
        for (text, reason) in [
            ("", "is not a URL"),
            ("ws://", "is not a URL"),
            ("ws:///ws", "is not a URL"),
            ("/x", "is not a URL"),
            ("ws://127.0.0.1/a b", "is not a URL"),
            ("ws://127.0.0.1/a#b", "is not a URL"),
            ("ftp://127.0.0.1", "is not a WebSocket URL"),
            (":", "is not a number"),
            (":x", "is not a number"),
            (":99999", "is not a number"),
            ("ws://x:0", "is not a number"),
            ("ws://x:99999", "is not a number"),
            ("ws://alice@x", "user or password"),
        ] {
            let error = ServerUrl::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
