//! A client's byte stream, plain or over TLS, without a blocking call.

use std::io::{self, IoSlice, Write};

use mio::net::TcpStream;

use super::cause::Cause;
use super::read::{ReadResult, read};
use super::tls::{TlsSession, TlsTransport};

/// A connection to a server.
#[derive(Debug)]
pub enum ClientTransport {
    /// A plain TCP connection.
    Plain(TcpStream),
    /// A TLS connection; boxed, so that plain connections do not pay for a session.
    Tls(Box<TlsTransport>),
}

impl ClientTransport {
    /// A transport over a socket whose connection has been started.
    pub fn new(stream: TcpStream, session: Option<TlsSession>) -> ClientTransport {
        match session {
            None => ClientTransport::Plain(stream),
            Some(session) => ClientTransport::Tls(TlsTransport::boxed(stream, session)),
        }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        match self {
            ClientTransport::Plain(stream) => stream,
            ClientTransport::Tls(tls) => tls.stream(),
        }
    }

    /// Reads once from the socket.
    pub fn read(&mut self, scratch: &mut [u8]) -> ReadResult {
        match self {
            ClientTransport::Plain(stream) => match read(stream, scratch) {
                Ok(0) => ReadResult::Ended(Cause::EndOfFile),
                Ok(count) => ReadResult::Bytes { range: 0..count, more: count == scratch.len() },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadResult::WouldBlock,
                Err(error) => ReadResult::Ended(Cause::from(&error)),
            },
            ClientTransport::Tls(tls) => tls.read(scratch),
        }
    }

    /// Returns true until the TLS handshake is complete.
    pub fn is_handshaking(&self) -> bool {
        match self {
            ClientTransport::Plain(_) => false,
            ClientTransport::Tls(tls) => tls.is_handshaking(),
        }
    }

    /// Returns true if TLS has records to send and the socket is not known to be full.
    pub fn wants_write(&self) -> bool {
        match self {
            ClientTransport::Plain(_) => false,
            ClientTransport::Tls(tls) => tls.wants_write(),
        }
    }

    /// Sends the pending TLS records. Returns false if the socket is full before the last of them.
    ///
    /// # Errors
    /// The connection failed.
    pub fn write_pending(&mut self) -> io::Result<bool> {
        match self {
            ClientTransport::Plain(_) => Ok(true),
            ClientTransport::Tls(tls) => tls.write_pending(),
        }
    }

    /// The socket is writable again.
    pub fn unblock(&mut self) {
        if let ClientTransport::Tls(tls) = self {
            tls.unblock();
        }
    }

    /// Sends close_notify over TLS, with one attempt.
    pub fn send_close_notify(&mut self) {
        if let ClientTransport::Tls(tls) = self {
            tls.send_close_notify();
        }
    }
}

impl Write for ClientTransport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            ClientTransport::Plain(stream) => stream.write(bytes),
            ClientTransport::Tls(tls) => tls.write(&[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            ClientTransport::Plain(stream) => stream.write_vectored(pieces),
            ClientTransport::Tls(tls) => tls.write(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
