//! A non-blocking connection to Redis or a Sentinel, and its readiness.

use std::io;

use mio::event::Event;
use mio::{Registry, Token};

use super::stream::LogStream;
use crate::client::tls::TlsConnector;

/// A connection to a Redis server or a Sentinel.
pub(super) struct LogConnection {
    pub(super) stream: LogStream,
    /// The socket may have bytes: an event reported them, and no read has found the socket empty since.
    pub(super) is_readable: bool,
    pub(super) is_writable: bool,
}

impl LogConnection {
    /// Registers a socket whose connect has begun.
    pub(super) fn register(
        stream: io::Result<LogStream>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<LogConnection> {
        let mut stream = stream?;
        stream.register(registry, token)?;
        Ok(LogConnection { stream, is_readable: false, is_writable: false })
    }

    /// Records an event.
    pub(super) fn mark(&mut self, event: &Event) {
        self.is_readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.is_writable |= event.is_writable() || event.is_error();
    }

    /// Returns true if the connection is established.
    pub(super) fn is_established(&mut self) -> io::Result<bool> {
        // A spurious event: the next one reports the result.
        self.is_writable = self.is_writable && self.stream.is_connected()?;
        Ok(self.is_writable)
    }

    /// Begins TLS.
    pub(super) fn encrypt(self, tls: &TlsConnector) -> io::Result<LogConnection> {
        Ok(LogConnection { stream: self.stream.encrypt(tls)?, ..self })
    }
}
