//! Why a client's connection failed or ended, in a form that can be counted and reported.

use std::fmt;
use std::io;

use super::tls::TlsError;

/// Why a connection failed or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A system call failed with this `errno`.
    Errno(i32),
    /// The server rejected the handshake with this HTTP status.
    Status(u16),
    /// The server sent a close frame with this code.
    Code(u16),
    /// The server closed the connection without a close frame.
    EndOfFile,
    /// A deadline expired.
    Timeout,
    /// TLS failed.
    Tls(TlsError),
    /// The server sent invalid data.
    Invalid(&'static str),
}

impl From<&io::Error> for Cause {
    fn from(error: &io::Error) -> Cause {
        match error.raw_os_error() {
            Some(errno) => Cause::Errno(errno),
            None => Cause::EndOfFile,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Errno(errno) => match name(*errno) {
                Some(name) => f.write_str(name),
                None => write!(f, "errno {errno}"),
            },
            Cause::Status(status) => write!(f, "HTTP {status}"),
            Cause::Code(1005) => write!(f, "close without a code"),
            Cause::Code(code) => write!(f, "close {code}"),
            Cause::EndOfFile => write!(f, "end of file"),
            Cause::Timeout => write!(f, "timeout"),
            Cause::Tls(error) => error.fmt(f),
            Cause::Invalid(why) => f.write_str(why),
        }
    }
}

/// The names of the errors that `connect`, `read` and `write` return in practice.
fn name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EACCES => "EACCES",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EMFILE => "EMFILE",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENFILE => "ENFILE",
        libc::ENOBUFS => "ENOBUFS",
        libc::ENOMEM => "ENOMEM",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::ETIMEDOUT => "ETIMEDOUT",
        _ => return None,
    })
}
