//! The bytes of `pub` and `sub`, plain or within TLS, as tungstenite takes them: a stream to read and write.
//!
//! It blocks or not as its socket does. What TLS has to say by itself goes out before each read and write.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockRef;

use crate::load::tally::Cause;
use crate::load::tls::Tls;
use crate::load::transport::{Input, Transport};

/// Room for 16 KiB of ciphertext and for what it says.
const ROOM_BYTES: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Stream {
    transport: Transport,
    /// Empty for a plain connection, which reads to where it is told.
    room: Vec<u8>,
    /// Where in the room the bytes are that nobody has taken.
    unread: Range<usize>,
}

impl Stream {
    /// Over a socket that is connected.
    pub(super) fn new(stream: TcpStream, tls: Option<&Tls>) -> io::Result<Stream> {
        let session = tls.map(Tls::session).transpose().map_err(|failure| no_good(&failure.to_string()))?;
        let room = vec![0; if session.is_some() { ROOM_BYTES } else { 0 }];
        // mio's socket does not mind one that blocks, and nobody registers it.
        let transport = Transport::new(mio::net::TcpStream::from_std(stream), session);
        Ok(Stream { transport, room, unread: 0..0 })
    }

    /// From here on nothing waits.
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        SockRef::from(self.transport.stream()).set_nonblocking(true)
    }

    /// Sends what TLS has to say. Whether the socket is full, only a try can tell here.
    fn push(&mut self) -> io::Result<bool> {
        self.transport.unblock();
        self.transport.push()
    }

    fn read_from(transport: &mut Transport, room: &mut [u8]) -> io::Result<Range<usize>> {
        match transport.read(room) {
            Input::Bytes { place, .. } => Ok(place),
            Input::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Input::End(Cause::EndOfFile) => Err(io::ErrorKind::UnexpectedEof.into()),
            Input::End(Cause::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            Input::End(cause) => Err(no_good(&cause.to_string())),
        }
    }
}

/// TLS that will not be better the next time.
fn no_good(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.room.is_empty() {
            return match Stream::read_from(&mut self.transport, buffer) {
                Ok(place) => Ok(place.len()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                Err(error) => Err(error),
            };
        }
        while self.unread.is_empty() {
            self.push()?;
            match Stream::read_from(&mut self.transport, &mut self.room) {
                // Nothing, if TLS had only things of its own to say.
                Ok(place) => self.unread = place,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let count = self.unread.len().min(buffer.len());
        let end = self.unread.start + count;
        buffer[..count].copy_from_slice(&self.room[self.unread.start..end]);
        self.unread.start = end;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.transport.unblock();
        self.transport.write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.transport.unblock();
        self.transport.write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.push()? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.transport.stream().as_raw_fd()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.transport.goodbye();
    }
}
