//! A client's byte stream over TLS, without a blocking call.
//!
//! Each TLS operation corresponds to one on a plain socket, so a loop treats both alike. A read takes the bytes that
//! the socket has and decrypts all of them, so that no bytes wait inside a session without an event to announce them. A
//! short write means that the socket is full, as for a plain socket. The session's own records (its part of the
//! handshake, a key update, an alert) are sent together with the outbox.

use std::io::{self, IoSlice, Read, Write};

use mio::net::TcpStream;
use rustls::ClientConnection;

use super::error::TlsError;
use crate::client::cause::Cause;
use crate::client::read::{ReadResult, read};

/// A quarter of the read buffer is for ciphertext. The rest is for the plaintext, which is shorter than the ciphertext,
/// and for that of a record whose beginning arrived with an earlier read.
const CIPHERTEXT_SHARE: usize = 4;

/// The client's side of a TLS connection that has not begun.
#[derive(Debug)]
pub struct TlsSession(ClientConnection);

impl TlsSession {
    pub(super) fn new(session: ClientConnection) -> TlsSession {
        TlsSession(session)
    }
}

/// A connection over TLS.
#[derive(Debug)]
pub struct TlsTransport {
    stream: TcpStream,
    session: ClientConnection,
    /// The last write returned WouldBlock; an event follows.
    is_blocked: bool,
    /// How the connection ended; returned once the bytes before it are read.
    end: Option<Cause>,
}

impl TlsTransport {
    /// A transport over a socket whose connection has been started.
    pub fn boxed(stream: TcpStream, TlsSession(session): TlsSession) -> Box<TlsTransport> {
        Box::new(TlsTransport { stream, session, is_blocked: false, end: None })
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Returns true until the handshake is complete.
    pub fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Returns true if the session has records to send and the socket is not known to be full.
    pub fn wants_write(&self) -> bool {
        !self.is_blocked && self.session.wants_write()
    }

    /// Records that the socket is writable again.
    pub fn unblock(&mut self) {
        self.is_blocked = false;
    }

    /// Sends close_notify, with one attempt.
    pub fn send_close_notify(&mut self) {
        self.session.send_close_notify();
        let _ = self.write_pending();
    }

    /// Reads once from the socket.
    pub fn read(&mut self, scratch: &mut [u8]) -> ReadResult {
        if let Some(end) = self.end {
            return ReadResult::Ended(end);
        }
        let (ciphertext, plaintext) = scratch.split_at_mut(scratch.len() / CIPHERTEXT_SHARE);
        let count = match read(&mut self.stream, ciphertext) {
            Ok(0) => return ReadResult::Ended(Cause::EndOfFile),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ReadResult::WouldBlock,
            Err(error) => return ReadResult::Ended(Cause::from(&error)),
        };
        let filled = self.decrypt(&ciphertext[..count], plaintext);
        let start = ciphertext.len();
        match self.end {
            Some(end) if filled == 0 => ReadResult::Ended(end),
            end => ReadResult::Bytes {
                range: start..start + filled,
                more: count == ciphertext.len() || end.is_some(),
            },
        }
    }

    /// Decrypts all of the ciphertext and returns the length of the plaintext in bytes.
    fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut [u8]) -> usize {
        let mut filled = 0;
        while !ciphertext.is_empty() && self.end.is_none() {
            // read_tls takes 4 KiB at a time, and nothing while the session holds decrypted bytes.
            if let Err(error) = self.session.read_tls(&mut ciphertext) {
                self.end = Some(Cause::from(&error));
                break;
            }
            match self.session.process_new_packets() {
                Ok(state) if state.peer_has_closed() => self.end = Some(Cause::EndOfFile),
                Ok(_) => {}
                Err(error) => {
                    self.end = Some(Cause::Tls(TlsError::from(&error)));
                    // The alert is sent with one attempt.
                    let _ = self.write_pending();
                }
            }
            while filled < plaintext.len() {
                match self.session.reader().read(&mut plaintext[filled..]) {
                    // WouldBlock means no further plaintext; 0 and UnexpectedEof mean that the peer has closed.
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
            }
        }
        filled
    }

    /// Encrypts and sends bytes. A short write means that the socket is full. Before the handshake is complete it also
    /// means that the session's buffer is full; then the end of the handshake allows the next write.
    ///
    /// # Errors
    /// The connection failed, or `WouldBlock`.
    pub fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.write_pending()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let offered: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut taken = self.session.writer().write_vectored(pieces)?;
        while self.write_pending()? && taken < offered {
            match self.session.writer().write(rest(pieces, taken))? {
                0 => break,
                count => taken += count,
            }
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Sends the pending records. Returns false if the socket is full before the last of them.
    ///
    /// # Errors
    /// The connection failed.
    pub fn write_pending(&mut self) -> io::Result<bool> {
        while !self.is_blocked && self.session.wants_write() {
            match self.session.write_tls(&mut self.stream) {
                Ok(0) => {
                    self.is_blocked = true;
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_blocked = true,
                Err(error) => {
                    // No later event can make this write succeed.
                    self.is_blocked = true;
                    return Err(error);
                }
            }
        }
        Ok(!self.session.wants_write())
    }
}

/// The unwritten rest of the piece in which the first `taken` bytes end.
fn rest<'a>(pieces: &'a [IoSlice<'_>], mut taken: usize) -> &'a [u8] {
    for piece in pieces {
        if taken < piece.len() {
            return &piece[taken..];
        }
        taken -= piece.len();
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_begins_in_the_piece_that_was_written_in_part() {
        let pieces = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        let check = |taken, left: &[u8]| assert_eq!(rest(&pieces, taken), left, "{taken}");
        check(0, b"ab");
        check(1, b"b");
        check(2, b"cde");
        check(4, b"e");
        check(5, b"");
    }
}
