//! Takes the place of the module `tls` in a build without the cargo feature `tls`: no client connects over TLS.
//!
//! The types have no values, so the compiler removes the branches that handle them.

use std::fmt;
use std::io::{self, IoSlice};

use mio::net::TcpStream;

use super::read::ReadResult;
use super::trust::{Certificates, Trust};

/// The error of every attempt to use TLS.
const NO_TLS: &str = "this build of oyez has no TLS: build it with the cargo feature tls";

/// A TLS configuration. This build has no TLS, so no value of this type exists.
#[derive(Clone, Debug)]
pub enum TlsConnector {}

/// A TLS session. This build has no TLS, so no value of this type exists.
#[derive(Debug)]
pub enum TlsSession {}

/// A TLS connection. This build has no TLS, so no value of this type exists.
#[derive(Debug)]
pub enum TlsTransport {}

/// A TLS failure. This build has no TLS, so no value of this type exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsError {}

impl TlsConnector {
    /// Fails: this build has no TLS.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: &str, _: &Trust) -> Result<TlsConnector, String> {
        Err(NO_TLS.to_owned())
    }

    /// Fails: this build has no TLS.
    ///
    /// # Errors
    /// Always.
    pub fn with_protocols(
        _: &str,
        _: &Trust,
        _: Vec<Vec<u8>>,
        _: &'static str,
    ) -> Result<TlsConnector, String> {
        Err(NO_TLS.to_owned())
    }

    /// Returns this configuration for another host.
    ///
    /// # Errors
    /// None.
    pub fn for_host(&self, _: &str) -> Result<TlsConnector, String> {
        match *self {}
    }

    /// The client's side of one connection.
    ///
    /// # Errors
    /// None.
    pub fn session(&self) -> Result<TlsSession, TlsError> {
        match *self {}
    }

    /// Returns whether certificates are verified.
    pub fn certificates(&self) -> Certificates {
        match *self {}
    }

    /// The flag for the file with the trusted authorities.
    pub fn ca_flag(&self) -> &'static str {
        match *self {}
    }
}

impl TlsTransport {
    /// A transport over a socket.
    pub fn boxed(_: TcpStream, session: TlsSession) -> Box<TlsTransport> {
        match session {}
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        match *self {}
    }

    /// Returns true until the handshake is complete.
    pub fn is_handshaking(&self) -> bool {
        match *self {}
    }

    /// Returns true if the session has records to send.
    pub fn wants_write(&self) -> bool {
        match *self {}
    }

    /// Records that the socket is writable again.
    pub fn unblock(&mut self) {
        match *self {}
    }

    /// Sends close_notify.
    pub fn send_close_notify(&mut self) {
        match *self {}
    }

    /// Reads once from the socket.
    pub fn read(&mut self, _: &mut [u8]) -> ReadResult {
        match *self {}
    }

    /// Encrypts and sends bytes.
    ///
    /// # Errors
    /// None.
    pub fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        match *self {}
    }

    /// Sends the pending records.
    ///
    /// # Errors
    /// None.
    pub fn write_pending(&mut self) -> io::Result<bool> {
        match *self {}
    }
}

impl TlsError {
    /// Advice, if the user can do something about the failure.
    pub fn advice(self, _: &str) -> Option<String> {
        match self {}
    }

    /// [`TlsError::advice`] about an error of which only the text is left.
    pub fn advice_about(_: &str) -> Option<String> {
        None
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
