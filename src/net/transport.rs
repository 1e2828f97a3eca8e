//! What a slot reads from and writes to.
//!
//! The engine is generic over it: it is a socket, or TLS over one ([`super::tls`]), or, in the tests, a
//! transport in memory that splits, blocks and fails as they please. A server has one kind only, so a
//! plain connection pays nothing for TLS: neither bytes in its slot nor a question at each read.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};

use crate::close::TlsFault;
use crate::time::LoopTime;

/// A non-blocking byte stream in both directions.
///
/// Its contract with **drain or requeue**: a read that has taken all there is says so, and then an event
/// tells of more. A write that took less than it was offered has found no room, and an event, or
/// [`Transport::wants_write`], tells when it is worth another.
pub trait Transport: Write {
    /// The engine is about to read it, for a client at this address.
    fn begin_read(&mut self, _client: IpAddr) {}

    /// Reads once.
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome;

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

    /// Has it something to send that is in no outbox, or can it take what it has turned down? TLS has its
    /// own things to say, and they may come of a read.
    fn wants_write(&self) -> bool {
        false
    }

    /// Does it hold back what the socket has not taken?
    fn holds_back(&self) -> bool {
        false
    }

    /// Memory that it holds for incomplete records or for bytes that the peer has not taken.
    fn held_bytes(&self) -> usize {
        0
    }

    /// Returns true if a record has been incomplete for this long. Called a few times a second.
    fn is_record_late(&mut self, _now: LoopTime, _timeout_ms: u32) -> bool {
        false
    }

    /// Returns true if the peer has taken nothing for this long of the bytes that are held back.
    fn is_write_late(&mut self, _now: LoopTime, _timeout_ms: u32) -> bool {
        false
    }

    /// Sends what it holds back; `false` if the socket did not take all of it.
    ///
    /// # Errors
    /// The connection is gone.
    fn push(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Returns what reads have cost since the last call in addition to the bytes they returned, in bytes of the turn's
    /// budget.
    fn take_read_cost(&mut self) -> usize {
        0
    }

    /// The socket takes bytes again, or is to be asked.
    fn unblock(&mut self) {}

    /// The connection is over. A last word, if it goes out at once.
    fn send_close_notify(&mut self) {}
}

/// What one read found.
#[derive(Debug)]
pub enum ReadOutcome {
    /// Bytes.
    Bytes {
        /// How many.
        count: usize,
        /// There may be more, and no event will say so.
        more: bool,
    },
    /// Bytes without plaintext. There may be more, or an end of file, and no event will announce it.
    Silent,
    /// Nothing for now; an event will say when there is more.
    Blocked,
    /// Nothing yet, and no event will say when: it has to be read again in a later turn.
    Later,
    /// Nothing ever again.
    EndOfFile,
    /// The connection is gone.
    Failed,
    /// What came is no good TLS; why, the peer will be told.
    Insecure(TlsFault),
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

    fn holds_back(&self) -> bool {
        (**self).holds_back()
    }

    fn held_bytes(&self) -> usize {
        (**self).held_bytes()
    }

    fn is_record_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        (**self).is_record_late(now, timeout_ms)
    }

    fn is_write_late(&mut self, now: LoopTime, timeout_ms: u32) -> bool {
        (**self).is_write_late(now, timeout_ms)
    }

    fn push(&mut self) -> io::Result<bool> {
        (**self).push()
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

/// Reads once, again if a signal came between. A short read has taken all there was.
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
