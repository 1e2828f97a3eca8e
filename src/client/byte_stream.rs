//! A connection as `Read` and `Write`, plain or over TLS, for tungstenite and for single HTTP requests.
//!
//! It blocks if and only if its socket does. Pending TLS records are sent before each read and write.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockRef;

use super::cause::Cause;
use super::read::ReadResult;
use super::tls::TlsConnector;
use super::transport::ClientTransport;

/// Room for 16 KiB of ciphertext and for its plaintext.
const BUFFER_BYTES: usize = 64 << 10;

/// A connection to a server.
#[derive(Debug)]
pub struct ByteStream {
    transport: ClientTransport,
    /// Empty for a plain connection, which reads into the caller's buffer.
    buffer: Vec<u8>,
    /// The range of the buffer that has not been read yet.
    unread: Range<usize>,
    /// The flag for the file with the trusted authorities.
    ca_flag: &'static str,
}

impl ByteStream {
    /// A stream over a connected socket.
    ///
    /// # Errors
    /// The TLS session cannot be started.
    pub fn new(stream: TcpStream, tls: Option<&TlsConnector>) -> io::Result<ByteStream> {
        // mio's stream may be blocking as long as it is not registered.
        ByteStream::over(mio::net::TcpStream::from_std(stream), tls)
    }

    /// A stream over a connected socket of a loop, which may be registered.
    ///
    /// # Errors
    /// The TLS session cannot be started.
    pub fn over(stream: mio::net::TcpStream, tls: Option<&TlsConnector>) -> io::Result<ByteStream> {
        let session =
            tls.map(TlsConnector::session).transpose().map_err(|error| permanent(&error.to_string()))?;
        let buffer = vec![0; if session.is_some() { BUFFER_BYTES } else { 0 }];
        let transport = ClientTransport::new(stream, session);
        let ca_flag = tls.map_or("", TlsConnector::ca_flag);
        Ok(ByteStream { transport, buffer, unread: 0..0, ca_flag })
    }

    /// Continues the TLS handshake. Returns true if it is complete, false if it waits for the socket.
    ///
    /// # Errors
    /// The connection or the handshake failed.
    pub fn handshake(&mut self) -> io::Result<bool> {
        while self.transport.is_handshaking() {
            self.write_pending()?;
            match ByteStream::read_from(&mut self.transport, &mut self.buffer, self.ca_flag) {
                // The first bytes of the server may follow its last record of the handshake.
                Ok(range) => self.unread = range,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Makes later reads and writes return WouldBlock instead of waiting.
    ///
    /// # Errors
    /// The system call fails.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        SockRef::from(self.transport.stream()).set_nonblocking(true)
    }

    /// Sends the pending TLS records. Only an attempt shows whether the socket is full, since no events are seen here.
    fn write_pending(&mut self) -> io::Result<bool> {
        self.transport.unblock();
        self.transport.write_pending()
    }

    fn read_from(
        transport: &mut ClientTransport,
        buffer: &mut [u8],
        ca_flag: &str,
    ) -> io::Result<Range<usize>> {
        match transport.read(buffer) {
            ReadResult::Bytes { range, .. } => Ok(range),
            ReadResult::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
            ReadResult::Ended(Cause::EndOfFile) => Err(io::ErrorKind::UnexpectedEof.into()),
            ReadResult::Ended(Cause::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            ReadResult::Ended(cause @ Cause::Tls(error)) => Err(match error.advice(ca_flag) {
                Some(advice) => permanent(&format!("{cause}: {advice}")),
                None => permanent(&cause.to_string()),
            }),
            ReadResult::Ended(cause) => Err(permanent(&cause.to_string())),
        }
    }
}

/// A TLS failure that a new attempt would meet again.
fn permanent(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Read for ByteStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            return match ByteStream::read_from(&mut self.transport, buffer, self.ca_flag) {
                Ok(range) => Ok(range.len()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                Err(error) => Err(error),
            };
        }
        while self.unread.is_empty() {
            self.write_pending()?;
            match ByteStream::read_from(&mut self.transport, &mut self.buffer, self.ca_flag) {
                // The range is empty if only TLS's own records arrived.
                Ok(range) => self.unread = range,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let count = self.unread.len().min(buffer.len());
        let end = self.unread.start + count;
        buffer[..count].copy_from_slice(&self.buffer[self.unread.start..end]);
        self.unread.start = end;
        Ok(count)
    }
}

impl Write for ByteStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.transport.unblock();
        self.transport.write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.transport.unblock();
        self.transport.write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.write_pending()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl AsRawFd for ByteStream {
    fn as_raw_fd(&self) -> RawFd {
        self.transport.stream().as_raw_fd()
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        self.transport.send_close_notify();
    }
}
