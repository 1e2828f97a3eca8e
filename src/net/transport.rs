//! The byte stream of a connection, which a slot reads from and writes to.
//!
//! The engine is generic over it: a socket, TLS over a socket ([`super::tls`]), or, in the tests, a transport in memory
//! that splits, blocks and fails on command. A server has one kind only, so a plain connection pays nothing for TLS:
//! neither bytes in its slot nor a branch at each read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};

use crate::fault::TlsFault;
use crate::time::LoopTime;

/// A non-blocking byte stream in both directions.
///
/// Its part of **drain or requeue**: a read reports whether it has drained the socket, in which case an event announces
/// more. A short write has filled the socket's buffer, and an event, or [`Transport::wants_write`], announces when to
/// write again.
pub trait Transport: Write {
    /// Called before a read, with the client's address.
    fn begin_read(&mut self, _client: IpAddr) {}

    /// Reads once.
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome;

    /// Half-closes the connection after the bytes written before.
    ///
    /// # Errors
    /// The connection is closed.
    fn shut_down_write(&mut self) -> io::Result<()>;

    /// Peeks at the unread bytes of the socket itself, below TLS, before anything is read.
    ///
    /// # Errors
    /// The same as for a read; `Unsupported` for a transport that cannot peek.
    fn peek(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Discards this many bytes of the socket, which were peeked at before.
    ///
    /// # Errors
    /// The same as for a read.
    fn skip(&mut self, _count: usize) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns true if the transport has bytes to send that are in no outbox, or accepts a write that it rejected
    /// before. TLS sends handshake messages and alerts, which may result from a read.
    fn wants_write(&self) -> bool {
        false
    }

    /// Returns true if it buffers bytes that the socket has not accepted.
    fn has_pending_write(&self) -> bool {
        false
    }

    /// Memory of its buffers for incomplete records and for bytes that the socket has not accepted.
    fn buffered_bytes(&self) -> usize {
        0
    }

    /// Returns true if a record has been incomplete for this long. Called a few times a second.
    fn is_record_late(&mut self, _now: LoopTime, _timeout_ms: u32) -> bool {
        false
    }

    /// Returns true if the socket has accepted none of the buffered bytes for this long.
    fn is_write_late(&mut self, _now: LoopTime, _timeout_ms: u32) -> bool {
        false
    }

    /// Writes the buffered bytes; returns false if the socket did not accept all of them.
    ///
    /// # Errors
    /// The connection is closed.
    fn write_pending(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Returns the cost of the reads since the last call in addition to the bytes they returned, in bytes of the turn's
    /// budget.
    fn take_read_cost(&mut self) -> usize {
        0
    }

    /// Records that the socket is writable again, or that a write is to be tried.
    fn unblock(&mut self) {}

    /// Sends a close_notify alert as the connection closes, if the socket accepts it at once.
    fn send_close_notify(&mut self) {}
}

/// The result of one read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Bytes.
    Bytes {
        /// The number of bytes.
        count: usize,
        /// There may be more, which no event will announce.
        more: bool,
    },
    /// Bytes without plaintext. There may be more, or an end of file, and no event will announce it.
    NoPlaintext,
    /// No bytes; an event will announce more.
    Blocked,
    /// No bytes yet, and no event will announce them: it must be read again in a later turn.
    Deferred,
    /// The peer has sent an end of file.
    EndOfFile,
    /// The connection has failed.
    Failed,
    /// The peer violated TLS; an alert will be sent.
    TlsFailed(TlsFault),
}

impl Transport for mio::net::TcpStream {
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        read(self, buffer)
    }

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

impl<T: Transport> Transport for Box<T> {
    fn begin_read(&mut self, client: IpAddr) {
        (**self).begin_read(client);
    }

    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        (**self).receive(buffer)
    }

    fn shut_down_write(&mut self) -> io::Result<()> {
        (**self).shut_down_write()
    }

    fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).peek(buffer)
    }

    fn skip(&mut self, count: usize) -> io::Result<()> {
        (**self).skip(count)
    }

    fn wants_write(&self) -> bool {
        (**self).wants_write()
    }

    fn has_pending_write(&self) -> bool {
        (**self).has_pending_write()
    }

    fn buffered_bytes(&self) -> usize {
        (**self).buffered_bytes()
    }

    fn is_record_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        (**self).is_record_late(now, timeout_ms)
    }

    fn is_write_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        (**self).is_write_late(now, timeout_ms)
    }

    fn write_pending(&mut self) -> io::Result<bool> {
        (**self).write_pending()
    }

    fn take_read_cost(&mut self) -> usize {
        (**self).take_read_cost()
    }

    fn unblock(&mut self) {
        (**self).unblock();
    }

    fn send_close_notify(&mut self) {
        (**self).send_close_notify();
    }
}

/// Reads once, and again if a signal interrupts. A short read has drained the socket.
pub fn read(stream: &mut impl Read, buffer: &mut [u8]) -> ReadOutcome {
    loop {
        return match stream.read(buffer) {
            Ok(0) => ReadOutcome::EndOfFile,
            Ok(count) => ReadOutcome::Bytes { count, more: count == buffer.len() },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ReadOutcome::Blocked,
            Err(_) => ReadOutcome::Failed,
        };
    }
}
