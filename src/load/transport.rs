//! A client's bytes, as they are or within TLS, without a blocking call.
//!
//! TLS is driven by hand: each step is one that the loop would take for a plain socket too. A read takes
//! what the socket has, and decrypts all of it; so nothing waits inside a session, for which no event
//! would come. A write that is short has found the socket full, as a plain one has. What a session has to
//! say by itself (its part of the handshake, a key update, an alert) is sent with what the outbox has.

use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;

use mio::net::TcpStream;
use rustls::ClientConnection;

use super::tally::Cause;
use super::tls;

/// Of the read buffer so much is for what came; the rest is for what that says, which is less, and for
/// a record whose beginning came before.
const CIPHERTEXT_SHARE: usize = 4;

/// A connection.
#[derive(Debug)]
pub enum Transport {
    /// Bytes as they are.
    Plain(TcpStream),
    /// Bytes within TLS; boxed, so that plain connections do not pay for a session.
    Tls(Box<Secured>),
}

/// A connection with TLS.
#[derive(Debug)]
pub struct Secured {
    stream: TcpStream,
    session: ClientConnection,
    /// The socket said no, and will raise an event.
    is_blocked: bool,
    /// How it ended, told once what came before is read.
    end: Option<Cause>,
}

/// What one read found.
#[derive(Debug)]
pub enum Input {
    /// Bytes, at this place in the buffer; none, if TLS had only things of its own to say.
    Bytes {
        /// The place.
        place: Range<usize>,
        /// There may be more, and no event will say so.
        more: bool,
    },
    /// Nothing, until an event comes.
    Nothing,
    /// Nothing more.
    End(Cause),
}

impl Transport {
    /// A connection that has been begun.
    pub fn new(stream: TcpStream, session: Option<ClientConnection>) -> Transport {
        match session {
            None => Transport::Plain(stream),
            Some(session) => {
                Transport::Tls(Box::new(Secured { stream, session, is_blocked: false, end: None }))
            }
        }
    }

    /// Its socket.
    pub fn stream(&self) -> &TcpStream {
        match self {
            Transport::Plain(stream) => stream,
            Transport::Tls(secured) => &secured.stream,
        }
    }

    /// One read.
    pub fn read(&mut self, scratch: &mut [u8]) -> Input {
        match self {
            Transport::Plain(stream) => match read(stream, scratch) {
                Ok(0) => Input::End(Cause::EndOfFile),
                Ok(count) => Input::Bytes { place: 0..count, more: count == scratch.len() },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Nothing,
                Err(error) => Input::End(Cause::from(&error)),
            },
            Transport::Tls(secured) => secured.read(scratch),
        }
    }

    /// Has TLS something to send, and may it try?
    pub fn wants_write(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            Transport::Tls(secured) => !secured.is_blocked && secured.session.wants_write(),
        }
    }

    /// Sends what TLS has to send; false if the socket does not take all of it.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn push(&mut self) -> io::Result<bool> {
        match self {
            Transport::Plain(_) => Ok(true),
            Transport::Tls(secured) => secured.push(),
        }
    }

    /// The socket takes bytes again.
    pub fn unblock(&mut self) {
        if let Transport::Tls(secured) = self {
            secured.is_blocked = false;
        }
    }

    /// Tells the server that nothing more comes, if it can be told at once.
    pub fn goodbye(&mut self) {
        if let Transport::Tls(secured) = self {
            secured.session.send_close_notify();
            let _ = secured.push();
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(stream) => stream.write(bytes),
            Transport::Tls(secured) => secured.write(&[IoSlice::new(bytes)]),
        }
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Plain(stream) => stream.write_vectored(pieces),
            Transport::Tls(secured) => secured.write(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Secured {
    fn read(&mut self, scratch: &mut [u8]) -> Input {
        if let Some(end) = self.end {
            return Input::End(end);
        }
        let (ciphertext, plaintext) = scratch.split_at_mut(scratch.len() / CIPHERTEXT_SHARE);
        let came = match read(&mut self.stream, ciphertext) {
            Ok(0) => return Input::End(Cause::EndOfFile),
            Ok(came) => came,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Input::Nothing,
            Err(error) => return Input::End(Cause::from(&error)),
        };
        let filled = self.decrypt(&ciphertext[..came], plaintext);
        let start = ciphertext.len();
        match self.end {
            Some(end) if filled == 0 => Input::End(end),
            end => {
                Input::Bytes { place: start..start + filled, more: came == ciphertext.len() || end.is_some() }
            }
        }
    }

    /// Takes all that came, and says how many bytes it said.
    fn decrypt(&mut self, mut ciphertext: &[u8], plaintext: &mut [u8]) -> usize {
        let mut filled = 0;
        while !ciphertext.is_empty() && self.end.is_none() {
            // It takes 4 KiB at a time, and nothing while it holds decrypted bytes.
            if let Err(error) = self.session.read_tls(&mut ciphertext) {
                self.end = Some(Cause::from(&error));
                break;
            }
            match self.session.process_new_packets() {
                Ok(state) if state.peer_has_closed() => self.end = Some(Cause::EndOfFile),
                Ok(_) => {}
                Err(error) => {
                    self.end = Some(Cause::Tls(tls::Failure::from(&error)));
                    // The alert, for which there is one try.
                    let _ = self.push();
                }
            }
            while filled < plaintext.len() {
                match self.session.reader().read(&mut plaintext[filled..]) {
                    // "Would block", for it has no more, and "closed" in one.
                    Ok(0) | Err(_) => break,
                    Ok(count) => filled += count,
                }
            }
        }
        filled
    }

    /// Takes less than it is offered only when the socket is full; or before the handshake is over, when
    /// it says no to what is longer than a session holds, and its end is what is to be waited for.
    fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.push()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let offered: usize = pieces.iter().map(|piece| piece.len()).sum();
        let mut taken = self.session.writer().write_vectored(pieces)?;
        while self.push()? && taken < offered {
            match self.session.writer().write(rest(pieces, taken))? {
                0 => break,
                count => taken += count,
            }
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn push(&mut self) -> io::Result<bool> {
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
                    // No event comes that would make it better.
                    self.is_blocked = true;
                    return Err(error);
                }
            }
        }
        Ok(!self.session.wants_write())
    }
}

/// What is left of the piece in which so many bytes end.
fn rest<'a>(pieces: &'a [IoSlice<'_>], mut taken: usize) -> &'a [u8] {
    for piece in pieces {
        if taken < piece.len() {
            return &piece[taken..];
        }
        taken -= piece.len();
    }
    &[]
}

/// Reads once, again if a signal came between.
fn read(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(scratch) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_pieces() {
        let pieces = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
        let check = |taken, left: &[u8]| assert_eq!(rest(&pieces, taken), left, "{taken}");
        check(0, b"ab");
        check(1, b"b");
        check(2, b"cde");
        check(4, b"e");
        check(5, b"");
    }
}
