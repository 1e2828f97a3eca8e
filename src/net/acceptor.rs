//! Turns an accepted socket into a connection's transport: plain TCP, or TLS.
//!
//! A server has one kind of transport, chosen at compile time by a type parameter and not at each read: the slots of a
//! plain server hold sockets and nothing else.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;

use super::certificate;
use super::tls::{TlsBuffers, TlsStream};
use super::transport::Transport;
use crate::config;

/// A fatal internal_error alert in the clear (RFC 8446 6): overload leaves no time for a handshake.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

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

    /// Reloads its files, for clients that connect from now on. Returns false if it has none.
    ///
    /// # Errors
    /// A file is invalid; the configuration stays as it was.
    fn reload(&mut self, now: UnixTime) -> Result<bool, String>;

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

    fn reload(&mut self, _: UnixTime) -> Result<bool, String> {
        Ok(false)
    }

    fn overload_response(&self, http_response: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        http_response()
    }
}

/// TLS, with a certificate that can be reloaded.
#[derive(Debug)]
pub struct Tls {
    files: config::TlsFiles,
    config: Arc<ServerConfig>,
    buffers: Rc<TlsBuffers>,
}

impl Tls {
    /// Loads certificate and key.
    ///
    /// # Errors
    /// Names the invalid file and the reason.
    pub fn load(
        files: config::TlsFiles,
        limits: &config::TlsConfig,
        plain_http_response: fn(Rc<str>) -> Vec<u8>,
        now: UnixTime,
    ) -> Result<Tls, String> {
        let config = certificate::load(&files, certificate::Resumption::New(limits), now)?;
        let buffers = Rc::new(TlsBuffers::new(limits.handshakes_per_turn, plain_http_response));
        Ok(Tls { files, config: Arc::new(config), buffers })
    }
}

impl Acceptor for Tls {
    /// Boxed, since the keys of a session would make every slot large.
    type Transport = Box<TlsStream<TcpStream>>;

    fn begin_turn(&mut self, date: Rc<str>) {
        self.buffers.begin_turn(date);
    }

    fn accept(&mut self, socket: TcpStream) -> io::Result<Self::Transport> {
        TlsStream::accept(socket, self.config.clone(), self.buffers.clone())
            .map(Box::new)
            .map_err(io::Error::other)
    }

    fn reload(&mut self, now: UnixTime) -> Result<bool, String> {
        let config = certificate::load(&self.files, certificate::Resumption::Keep(&self.config), now)?;
        self.config = Arc::new(config);
        Ok(true)
    }

    fn overload_response(&self, _: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        INTERNAL_ERROR.to_vec()
    }
}
