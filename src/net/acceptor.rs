//! Turns an accepted socket into a connection's transport: plain TCP, or TLS ([`super::tls`]).
//!
//! A server has one kind of transport, chosen at compile time by a type parameter and not at each read: the slots of a
//! plain server hold sockets and nothing else.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use mio::net::TcpStream;

use super::transport::Transport;

/// Makes transports of accepted sockets.
pub trait Acceptor {
    /// The transport of its connections.
    type Transport: Transport;

    /// Begins a turn, with the value of the `Date` header.
    fn begin_turn(&mut self, _date: Rc<str>) {}

    /// Makes a transport of a socket.
    ///
    /// # Errors
    /// The TLS configuration is invalid.
    fn accept(&mut self, socket: TcpStream) -> io::Result<Self::Transport>;

    /// Reloads the acceptor's files, for clients that connect from now on. Returns false if it has no files. `now` is
    /// the time since 1970.
    ///
    /// # Errors
    /// A file is invalid; the configuration stays as it was.
    fn reload(&mut self, now: Duration) -> Result<bool, String>;

    /// The end of the certificate's validity, in seconds since 1970; `None` without a certificate.
    fn certificate_expires_at(&self) -> Option<u64> {
        None
    }

    /// The response to a client over the connection limit, sent in one write without reading its request.
    fn overload_response(&self, http_response: impl FnOnce() -> Vec<u8>) -> Vec<u8>;
}

/// Plain TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Acceptor for Plain {
    type Transport = TcpStream;

    fn accept(&mut self, socket: TcpStream) -> io::Result<TcpStream> {
        Ok(socket)
    }

    fn reload(&mut self, _: Duration) -> Result<bool, String> {
        Ok(false)
    }

    fn overload_response(&self, http_response: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        http_response()
    }
}
