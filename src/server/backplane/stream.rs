//! A connection to the Redis server, over TCP, TLS or a Unix socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use crate::client::byte_stream::ByteStream;
use crate::client::tls::TlsConnector;

/// A connection.
#[derive(Debug)]
pub(super) enum LogStream {
    Tcp(TcpStream),
    Tls(ByteStream),
    Unix(UnixStream),
}

impl LogStream {
    /// Begins to connect.
    pub(super) fn tcp(address: SocketAddr, user_timeout_ms: u32) -> io::Result<LogStream> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        // A peer that vanishes without an end of file is noticed while bytes wait for it.
        #[cfg(target_os = "linux")]
        SockRef::from(&stream)
            .set_tcp_user_timeout(Some(Duration::from_millis(u64::from(user_timeout_ms))))?;
        Ok(LogStream::Tcp(stream))
    }

    /// Connects.
    pub(super) fn unix(path: &Path) -> io::Result<LogStream> {
        UnixStream::connect(path).map(LogStream::Unix)
    }

    /// Begins TLS on an established connection. A Unix socket is never encrypted.
    pub(super) fn encrypt(self, tls: &TlsConnector) -> io::Result<LogStream> {
        Ok(match self {
            LogStream::Tcp(stream) => LogStream::Tls(ByteStream::over(stream, Some(tls))?),
            LogStream::Tls(_) | LogStream::Unix(_) => self,
        })
    }

    /// Continues the TLS handshake. Returns true if it is complete.
    pub(super) fn handshake(&mut self) -> io::Result<bool> {
        match self {
            LogStream::Tcp(_) | LogStream::Unix(_) => Ok(true),
            LogStream::Tls(stream) => stream.handshake(),
        }
    }

    /// Registers the socket for all events.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            LogStream::Tcp(stream) => registry.register(stream, token, interest),
            // The socket was registered when its connect was begun.
            LogStream::Tls(_) => Ok(()),
            LogStream::Unix(stream) => registry.register(stream, token, interest),
        }
    }

    /// Returns true if the connection is established, false if it is not yet.
    pub(super) fn is_connected(&self) -> io::Result<bool> {
        let LogStream::Tcp(stream) = self else { return Ok(true) };
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Read for LogStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            LogStream::Tcp(stream) => stream.read(buffer),
            LogStream::Tls(stream) => stream.read(buffer),
            LogStream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for LogStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            LogStream::Tcp(stream) => stream.write(bytes),
            LogStream::Tls(stream) => stream.write(bytes),
            LogStream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            LogStream::Tcp(_) | LogStream::Unix(_) => Ok(()),
            LogStream::Tls(stream) => stream.flush(),
        }
    }
}
