//! What becomes of an accepted socket before it is a connection: nothing, or TLS.
//!
//! A server has one entrance, and its kind is known when the server is compiled for it, not asked at every
//! read: the slots of a plain server hold sockets and nothing else.

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

/// A fatal internal_error in the clear (RFC 8446 6): there is no time for a handshake.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The way in.
pub trait Acceptor {
    /// What comes out of it.
    type Transport: Transport;

    /// A turn begins, with this value of `Date`.
    fn begin_turn(&mut self, _date: Rc<str>) {}

    /// Takes a socket in.
    ///
    /// # Errors
    /// It cannot be made into what it is to be.
    fn accept(&mut self, socket: TcpStream) -> io::Result<Self::Transport>;

    /// Reads its files again, for clients that connect from now on. Returns false if it has none.
    ///
    /// # Errors
    /// A file cannot be used; then nothing changes.
    fn reload(&mut self, now: UnixTime) -> Result<bool, String>;

    /// What somebody is told, in one write and without a look at what it wants, when there is no room.
    fn overload_response(&self, http_response: impl FnOnce() -> Vec<u8>) -> Vec<u8>;
}

/// Sockets as they are.
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

/// TLS, with the certificate of the day.
#[derive(Debug)]
pub struct Tls {
    files: config::TlsFiles,
    config: Arc<ServerConfig>,
    buffers: Rc<TlsBuffers>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// Says which file cannot be used, and why.
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
    /// In a box, since keys are large, and slots move when the slab grows.
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
        let config = certificate::load(&self.files, certificate::Resumption::Of(&self.config), now)?;
        self.config = Arc::new(config);
        Ok(true)
    }

    fn overload_response(&self, _: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        INTERNAL_ERROR.to_vec()
    }
}
