//! Takes the place of the module `tls` in a build without the cargo feature `tls`: there is no acceptor with TLS.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use mio::net::TcpStream;

use super::acceptor::Acceptor;
use crate::config;

/// An acceptor with TLS. This build has none, so no value of this type exists.
#[derive(Debug)]
pub enum Tls {}

impl Tls {
    /// Fails: this build has no TLS.
    ///
    /// # Errors
    /// Always.
    pub fn load(
        _: config::TlsFiles,
        _: &config::TlsConfig,
        _: fn(Rc<str>) -> Vec<u8>,
        _: Duration,
    ) -> Result<Tls, String> {
        Err("this build has no TLS: build it with the cargo feature tls".to_owned())
    }
}

impl Acceptor for Tls {
    type Transport = TcpStream;

    fn accept(&mut self, _: TcpStream) -> io::Result<TcpStream> {
        match *self {}
    }

    fn reload(&mut self, _: Duration) -> Result<bool, String> {
        match *self {}
    }

    fn overload_response(&self, _: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
        match *self {}
    }
}
