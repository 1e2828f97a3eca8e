//! What a slot reads from and writes to.
//!
//! The engine is generic over it, so that the tests can run the same code over a transport in memory
//! that splits, blocks and fails as they please.

use std::io::{self, Read, Write};
use std::net::Shutdown;

/// A non-blocking byte stream in both directions.
pub trait Transport: Read + Write {
    /// Sends an end of file after what was written.
    ///
    /// # Errors
    /// The connection is gone already.
    fn shut_down_write(&mut self) -> io::Result<()>;

    /// Looks at what has come on the socket itself, from its first byte that was not read, and takes
    /// nothing. It is asked before anything is read.
    ///
    /// # Errors
    /// As of a read. A transport that cannot look says so.
    fn peek(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes so many bytes off the socket, which have been looked at.
    ///
    /// # Errors
    /// As of a read.
    fn skip(&mut self, _count: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Transport for mio::net::TcpStream {
    fn shut_down_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }

    fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        mio::net::TcpStream::peek(self, buffer)
    }

    fn skip(&mut self, count: usize) -> io::Result<()> {
        io::copy(&mut Read::by_ref(self).take(count as u64), &mut io::sink()).map(|_| ())
    }
}

/// What one read found.
#[derive(Debug)]
pub enum ReadOutcome {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now; an event will say when there is more.
    Blocked,
    /// Nothing ever again.
    EndOfFile,
    /// The connection is gone.
    Failed,
}

/// Reads once, again if a signal came between.
pub fn read(transport: &mut impl Read, buffer: &mut [u8]) -> ReadOutcome {
    loop {
        return match transport.read(buffer) {
            Ok(0) => ReadOutcome::EndOfFile,
            Ok(count) => ReadOutcome::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Blocked,
            Err(_) => ReadOutcome::Failed,
        };
    }
}
