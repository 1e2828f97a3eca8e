//! One read of a client's socket, and its result.

use std::io::{self, Read};
use std::ops::Range;

use mio::net::TcpStream;

use super::cause::Cause;

/// The result of one read.
#[derive(Debug)]
pub enum ReadResult {
    /// Bytes at this range of the buffer; an empty range if only TLS records without plaintext arrived.
    Bytes {
        /// The range.
        range: Range<usize>,
        /// There may be more bytes, and no event will announce them.
        more: bool,
    },
    /// No bytes until the next event.
    WouldBlock,
    /// The connection ended.
    Ended(Cause),
}

/// Reads once, and again after a signal.
pub(super) fn read(stream: &mut TcpStream, scratch: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(scratch) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
