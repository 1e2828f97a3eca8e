//! The address of an Oyez server, as `--url` names it, and blocking connects to it.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use http::Uri;
use socket2::{SockRef, TcpKeepalive};

use super::byte_stream::ByteStream;
use super::tls::{TlsConnector, Trust};

/// Maximum time to connect, and maximum time for each answer of the server during the handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// TCP keep-alive after 30 s of silence, then every 10 s: a server whose machine or network has failed is detected within
/// a minute, without a packet from it.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// A server's host, port and kind of transport.
#[derive(Clone, Debug)]
pub struct Endpoint {
    authority: String,
    port: u16,
    host: String,
    security: Security,
}

/// The scheme of the URL, and the TLS configuration once it is known.
#[derive(Clone, Debug)]
enum Security {
    /// `ws://`
    Plain,
    /// `wss://`, before [`Endpoint::with_trust`].
    TlsWithoutTrust,
    /// `wss://`
    Tls(TlsConnector),
}

/// Why a connection attempt failed.
#[derive(Debug)]
pub enum ConnectError {
    /// A permanent failure: the same request would be rejected again.
    Rejected(String),
    /// A temporary failure: a later attempt may succeed.
    Unreachable(String),
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Rejected(why) | ConnectError::Unreachable(why) => f.write_str(why),
        }
    }
}

impl Endpoint {
    /// Parses `ws://host:port`, the same with `http`, `wss` or `https`, or `host:port` alone. The URL that `oyez serve`
    /// prints is accepted with its path.
    ///
    /// # Errors
    /// The text is not such a URL.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("ws://{text}") };
        let uri: Uri = whole.parse().map_err(|_| "not a URL: write ws://host:port".to_owned())?;
        let (security, standard_port) = match uri.scheme_str() {
            Some("ws" | "http") => (Security::Plain, 80),
            Some("wss" | "https") => (Security::TlsWithoutTrust, 443),
            _ => return Err("not a WebSocket URL: write ws://host:port, or wss://".to_owned()),
        };
        if !matches!(uri.path(), "" | "/" | "/ws" | "/ws/") || uri.query().is_some() {
            return Err("the channel is a separate argument: write ws://host:port".to_owned());
        }
        let authority = uri.authority().ok_or("no host in the URL")?;
        // Brackets belong to an IPv6 address in a URL, not in a lookup.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err("no host in the URL: write ws://host:port".to_owned());
        }
        let port = match (authority.port_u16(), authority.as_str().ends_with(authority.host())) {
            (Some(port), _) => port,
            (None, true) => standard_port,
            (None, false) => return Err("the port is not a number from 1 to 65535".to_owned()),
        };
        Ok(Endpoint { authority: authority.to_string(), port, host, security })
    }

    /// Returns true for `wss://` and `https://`.
    pub fn is_encrypted(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    /// Sets the certificates to accept. An encrypted endpoint cannot be connected to before that.
    ///
    /// # Errors
    /// The certificate file cannot be used.
    pub fn with_trust(mut self, trust: &Trust) -> Result<Endpoint, String> {
        if self.is_encrypted() {
            self.security = Security::Tls(TlsConnector::new(&self.host, trust)?);
        }
        Ok(self)
    }

    /// Opens a connection on which no bytes have been sent. Blocks for at most [`CONNECT_TIMEOUT`] per address.
    ///
    /// # Errors
    /// The server cannot be reached, or TLS cannot be started.
    pub fn open(&self) -> Result<ByteStream, ConnectError> {
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(tls) => Some(tls),
            Security::TlsWithoutTrust => {
                return Err(ConnectError::Rejected(format!(
                    "{self}: no certificates to trust are configured"
                )));
            }
        };
        let unreachable = |error: io::Error| ConnectError::Unreachable(format!("{self}: {error}"));
        self.open_socket().and_then(|stream| ByteStream::new(stream, tls)).map_err(unreachable)
    }

    /// The host and port as in the URL, for the `Host` field of a request.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    fn open_socket(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE)?;
                    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
                    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted() { "wss" } else { "ws" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn url_with_or_without_scheme_and_port_is_parsed() {
        let check = |text: &str, host: &str, port: u16| {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port), (host, port), "{text}");
        };
        check("ws://127.0.0.1:8080", "127.0.0.1", 8080);
        check("ws://127.0.0.1:8080/ws", "127.0.0.1", 8080);
        check("ws://example.org/", "example.org", 80);
        check("ws://[::1]:9", "::1", 9);
        check("wss://[::1]", "::1", 443);
        check("wss://127.0.0.1:8080/ws", "127.0.0.1", 8080);
        check("http://127.0.0.1:8080/", "127.0.0.1", 8080);
        check("http://example.org", "example.org", 80);
        check("https://example.org", "example.org", 443);
        check("127.0.0.1:8080", "127.0.0.1", 8080);
        check("localhost:9000", "localhost", 9000);
        check("example.org", "example.org", 80);
        check("[::1]:9", "::1", 9);
        for bad in [
            "",
            ":8080",
            "ftp://x",
            "ws://x/ws/channel",
            "x:1/ws/channel",
            "ws://x/?a=b",
            "ws://",
            "ws://x:99999",
            "x:99999",
        ] {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }
}
