//! A WebSocket client's connection, as `pub` and `sub` use it.
//!
//! The handshake is made blocking, within a time limit; then the socket stops blocking and goes under the
//! command's own poll.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use http::Uri;
use socket2::{SockRef, TcpKeepalive};
use tungstenite::client::client_with_config;
use tungstenite::error::ProtocolError;
use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{ClientRequestBuilder, Error, WebSocket};

use super::Failure;
use super::stream::Stream;
use super::trust::TrustFlags;
use crate::load::tls::Tls;
use crate::session::upgrade;

/// How long a connection may take to be made, and how long the server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message that is taken: the most that a server can be told to let through.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// When nothing comes, the kernel asks the server's kernel after so long, and then every few seconds: a
/// server whose machine or network is gone is noticed within a minute, though it said nothing.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// A connection.
pub(super) type Connection = WebSocket<Stream>;

/// Which server to talk to.
#[derive(Clone, Debug)]
pub(super) struct Server {
    authority: String,
    port: u16,
    host: String,
    security: Security,
}

/// What `--url` says about TLS.
#[derive(Clone, Debug)]
enum Security {
    /// `ws://`
    Plain,
    /// `wss://`, and whom to trust is yet to be said.
    Asked,
    /// `wss://`
    Tls(Tls),
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// It is no use trying again: the request itself is refused.
    Refused(String),
    /// It may work later.
    Unreachable(String),
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoConnection::Refused(why) | NoConnection::Unreachable(why) => f.write_str(why),
        }
    }
}

impl Server {
    /// Parses `--url`: `ws://host:port`, the same with `http`, `wss` or `https`, or `host:port` alone. The address that
    /// `oyez serve` prints is taken too, path and all.
    pub(super) fn parse(text: &str) -> Result<Server, String> {
        let whole = if text.contains("://") { text.to_owned() } else { format!("ws://{text}") };
        let uri: Uri = whole.parse().map_err(|_| "not a URL: write ws://host:port".to_owned())?;
        let (security, standard_port) = match uri.scheme_str() {
            Some("ws" | "http") => (Security::Plain, 80),
            Some("wss" | "https") => (Security::Asked, 443),
            _ => return Err("not a WebSocket URL: write ws://host:port, or wss://".to_owned()),
        };
        if !matches!(uri.path(), "" | "/" | "/ws" | "/ws/") || uri.query().is_some() {
            return Err("the channel is an argument of its own: write ws://host:port".to_owned());
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
        Ok(Server { authority: authority.to_string(), port, host, security })
    }

    /// Says which certificates are good.
    ///
    /// # Errors
    /// The file of certificates cannot be used, or is given where nothing is encrypted.
    pub(super) fn trusting(mut self, flags: &TrustFlags) -> Result<Server, Failure> {
        match self.security {
            Security::Plain if flags.is_given() => {
                return Err(Failure::Usage("--tls-ca and --tls-insecure need wss://".to_owned()));
            }
            Security::Plain => {}
            Security::Asked | Security::Tls(_) => {
                self.security = Security::Tls(Tls::new(&self.host, &flags.trust()).map_err(Failure::Failed)?);
            }
        }
        Ok(self)
    }

    /// Opens a connection on which nothing has been sent. It blocks, within [`CONNECT_TIMEOUT`].
    pub(super) fn open(&self) -> Result<Stream, NoConnection> {
        let tls = match &self.security {
            Security::Plain => None,
            Security::Tls(tls) => Some(tls),
            Security::Asked => {
                return Err(NoConnection::Refused(format!("{self}: nobody said whom to trust")));
            }
        };
        let unreachable = |error: io::Error| NoConnection::Unreachable(format!("{self}: {error}"));
        self.open_socket().and_then(|stream| Stream::new(stream, tls)).map_err(unreachable)
    }

    /// The host and port, as a request names them.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Connects to a path, speaks a subprotocol there if one is named, and shows a token if there is one. The socket does not block any more
    /// when it is returned.
    pub(super) fn connect(
        &self,
        path: &str,
        protocol: Option<&str>,
        token: Option<&str>,
    ) -> Result<Connection, NoConnection> {
        let unreachable = |error: io::Error| NoConnection::Unreachable(format!("{self}: {error}"));
        let stream = self.open()?;
        let refused = |error: http::uri::InvalidUri| NoConnection::Refused(format!("{self}: {error}"));
        let uri: Uri = format!("ws://{}{path}", self.authority).parse().map_err(refused)?;
        let request = ClientRequestBuilder::new(uri);
        let request = match protocol {
            Some(protocol) => request.with_sub_protocol(protocol),
            None => request,
        };
        let request = match token {
            Some(token) => request.with_header("Authorization", format!("Bearer {token}")),
            None => request,
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(64 << 10)
            .write_buffer_size(64 << 10)
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .max_message_size(Some(MESSAGE_BYTES_MAX));
        let (socket, _) =
            client_with_config(request, stream, Some(config)).map_err(|error| self.no_connection(error))?;
        socket.get_ref().set_nonblocking().map_err(unreachable)?;
        Ok(socket)
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

    fn no_connection<T: tungstenite::handshake::HandshakeRole>(
        &self,
        error: HandshakeError<T>,
    ) -> NoConnection {
        match error {
            HandshakeError::Failure(Error::Http(response)) => {
                let status = response.status();
                let text = format!("{self}: the server answered {status}");
                // 429 and 503 pass; the other answers would be the same the next time.
                if matches!(status.as_u16(), 429 | 500..) {
                    NoConnection::Unreachable(text)
                } else {
                    NoConnection::Refused(text)
                }
            }
            HandshakeError::Failure(Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_))) => {
                NoConnection::Refused(format!("{self}: the server does not speak {}", upgrade::V1))
            }
            HandshakeError::Failure(Error::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                NoConnection::Refused(format!("{self}: {error}"))
            }
            HandshakeError::Failure(error) => NoConnection::Unreachable(format!("{self}: {error}")),
            HandshakeError::Interrupted(_) => {
                NoConnection::Unreachable(format!("{self}: no answer in {} s", CONNECT_TIMEOUT.as_secs()))
            }
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if matches!(self.security, Security::Plain) { "ws" } else { "wss" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// Does the error only say that the socket would block?
pub(super) fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// A close frame in words.
pub(super) fn describe(frame: Option<&CloseFrame>) -> String {
    match frame {
        // The server's words, on somebody's terminal.
        Some(frame) => format!("{} {}", u16::from(frame.code), frame.reason.escape_debug()),
        None => "no code".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::Server;

    #[test]
    fn urls() {
        let check = |text: &str, host: &str, port: u16| {
            let server = Server::parse(text).unwrap();
            assert_eq!((server.host.as_str(), server.port), (host, port), "{text}");
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
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }
}
