//! An Oyez server that `--url` names, and blocking connects to it.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::byte_stream::ByteStream;
use super::server_url::ServerUrl;
use super::tls::TlsConnector;
use super::trust::Trust;

/// Maximum time to connect, and maximum time for each response of the server during the handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// TCP keep-alive after 30 s of silence, then every 10 s: a server whose machine or network has failed is detected
/// within a minute, without a packet from it.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// The address of a server, and the kind of transport.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: EndpointAddress,
    security: Security,
}

#[derive(Clone, Debug)]
enum EndpointAddress {
    /// A host and a port.
    Url(ServerUrl),
    /// The path of a Unix socket.
    Unix(PathBuf),
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

/// Why a connection or a request failed.
#[derive(Debug)]
pub enum AttemptError {
    /// A permanent failure: the same request would be rejected again.
    Rejected(String),
    /// A temporary failure: a later attempt may succeed.
    Unreachable(String),
    /// The server requests another attempt: 503 with `Retry-After`.
    Unavailable {
        /// The response.
        why: String,
        /// The time until the next attempt.
        retry_after: Duration,
    },
}

impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttemptError::Rejected(why)
            | AttemptError::Unreachable(why)
            | AttemptError::Unavailable { why, .. } => f.write_str(why),
        }
    }
}

impl Endpoint {
    /// Parses a [`ServerUrl`], or `unix:` and the path of a Unix socket. The URL that `oyez serve` prints is accepted
    /// with its path; any other path is not, since the channel is a separate argument.
    ///
    /// # Errors
    /// The text is not such a URL.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("the path is missing: write unix:/run/oyez/oyez.sock".to_owned());
            }
            let address = EndpointAddress::Unix(path.into());
            return Ok(Endpoint { address, security: Security::Plain });
        }
        let url = ServerUrl::parse(text)?;
        if !matches!(url.path(), None | Some("/" | "/ws" | "/ws/")) {
            return Err("the channel is a separate argument: write ws://host:port".to_owned());
        }
        let security = if url.is_encrypted { Security::TlsWithoutTrust } else { Security::Plain };
        Ok(Endpoint { address: EndpointAddress::Url(url), security })
    }

    /// Returns true for `wss://` and `https://`.
    pub fn is_encrypted(&self) -> bool {
        matches!(&self.address, EndpointAddress::Url(url) if url.is_encrypted)
    }

    /// Sets the certificates to accept. An encrypted endpoint cannot be connected to before that.
    ///
    /// # Errors
    /// The certificate file cannot be used.
    pub fn with_trust(mut self, trust: &Trust) -> Result<Endpoint, String> {
        if let EndpointAddress::Url(url) = &self.address
            && url.is_encrypted
        {
            self.security = Security::Tls(TlsConnector::new(url.host(), trust)?);
        }
        Ok(self)
    }

    /// Opens a connection on which no bytes have been sent. Blocks for at most [`CONNECT_TIMEOUT`] per address.
    ///
    /// # Errors
    /// The server cannot be reached, or TLS cannot be started.
    pub fn open(&self) -> Result<ByteStream, AttemptError> {
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(tls) => Some(tls),
            Security::TlsWithoutTrust => {
                return Err(AttemptError::Rejected(format!(
                    "{self}: no certificates to trust are configured"
                )));
            }
        };
        let unreachable = |error: io::Error| AttemptError::Unreachable(format!("{self}: {error}"));
        self.open_socket().and_then(|stream| ByteStream::new(stream, tls)).map_err(unreachable)
    }

    /// The host and port as in the URL, for the `Host` field of a request. A Unix socket has no host; `localhost` is
    /// used.
    pub fn authority(&self) -> &str {
        match &self.address {
            EndpointAddress::Url(url) => url.authority(),
            EndpointAddress::Unix(_) => "localhost",
        }
    }

    fn open_socket(&self) -> io::Result<TcpStream> {
        let url = match &self.address {
            EndpointAddress::Url(url) => url,
            EndpointAddress::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
                // Bounds connect(2) too, which waits while the backlog is full.
                socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
                socket.connect(&SockAddr::unix(path)?)?;
                // The calls of a `TcpStream` work on any stream socket.
                return Ok(socket.into());
            }
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (url.host(), url.port()).to_socket_addrs()? {
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
        match &self.address {
            EndpointAddress::Url(url) => url.fmt(f),
            EndpointAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn url_with_the_path_of_a_channel_is_rejected() {
        for text in
            [":9000", "ws://x", "x:9", "ws://127.0.0.1:8080/ws", "wss://[::1]/ws/", "http://x/", "unix:/x"]
        {
            assert!(Endpoint::parse(text).is_ok(), "{text}");
        }
        for text in ["ws://x/ws/channel", "x:1/ws/channel", "ws://x/?a=b", ":9/ws/{channel}", "", "unix:"] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
