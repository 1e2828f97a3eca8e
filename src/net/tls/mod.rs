//! TLS of the server: certificate and key from their files, and the acceptor that starts TLS on each connection.
//!
//! In a build without the cargo feature `tls`, `tls_missing` takes the place of this module.

mod buffers;
mod certificate;
mod handshakes;
mod stream;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use rustls::ServerConfig;

use super::acceptor::Acceptor;
use crate::config;
use certificate::{LoadedCertificate, Resumption};

pub use buffers::TlsBuffers;
pub use stream::TlsStream;

/// A fatal internal_error alert in the clear (RFC 8446 6): overload leaves no time for a handshake.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// TLS, with a certificate that can be reloaded.
#[derive(Debug)]
pub struct Tls {
    files: config::TlsFiles,
    config: Arc<ServerConfig>,
    expires_at: Option<u64>,
    buffers: Rc<TlsBuffers>,
}

impl Tls {
    /// Loads certificate and key. `now` is the time since 1970.
    ///
    /// # Errors
    /// Names the invalid file and the reason.
    pub fn load(
        files: config::TlsFiles,
        limits: &config::TlsConfig,
        plain_http_response: fn(Rc<str>) -> Vec<u8>,
        now: Duration,
    ) -> Result<Tls, String> {
        let LoadedCertificate { config, expires_at } =
            certificate::load(&files, Resumption::New(limits), now)?;
        let buffers = Rc::new(TlsBuffers::new(limits.handshakes_per_turn, plain_http_response));
        Ok(Tls { files, config: Arc::new(config), expires_at, buffers })
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

    fn reload(&mut self, now: Duration) -> Result<bool, String> {
        let LoadedCertificate { config, expires_at } =
            certificate::load(&self.files, Resumption::Keep(&self.config), now)?;
        self.config = Arc::new(config);
        self.expires_at = expires_at;
        Ok(true)
    }

    fn certificate_expires_at(&self) -> Option<u64> {
        self.expires_at
    }

    fn overload_response(&self, _: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        INTERNAL_ERROR.to_vec()
    }
}
