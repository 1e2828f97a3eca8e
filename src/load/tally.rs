//! What became of connections: attempted, opened, refused and lost, each by phase and by cause.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use hdrhistogram::Histogram;

use super::tls;

/// How far a connection had come when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// TCP.
    Connect,
    /// The request is out.
    Handshake,
    /// It was open.
    Open,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A system call failed, with this `errno`.
    Errno(i32),
    /// The answer was no 101.
    Status(u16),
    /// The server closed with this code.
    Code(u16),
    /// The connection ended without a close frame.
    EndOfFile,
    /// Nothing came in time.
    Timeout,
    /// TLS failed.
    Tls(tls::Failure),
    /// What came is not allowed.
    Broken(&'static str),
}

impl Phase {
    /// One word for reports.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Handshake => "handshake",
            Phase::Open => "open",
        }
    }
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
            Cause::Tls(failure) => failure.fmt(f),
            Cause::Broken(why) => f.write_str(why),
        }
    }
}

/// The names of what `connect`, `read` and `write` fail with in practice.
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

/// How often each thing happened.
pub type Causes = BTreeMap<(Phase, Cause), u64>;

/// The counts of one run, or of one part of it.
#[derive(Debug)]
pub struct Tally {
    /// Connections begun.
    pub attempted: u64,
    /// Handshakes completed.
    pub opened: u64,
    /// Those that never opened.
    pub refused: Causes,
    /// Those that were open and were not meant to end.
    pub lost: Causes,
    /// Those that were open and had stalled.
    pub stalled: Causes,
    /// From the call of `connect` to the answer's last byte, TLS included, in nanoseconds.
    pub handshakes: Histogram<u64>,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        Tally {
            attempted: 0,
            opened: 0,
            refused: Causes::new(),
            lost: Causes::new(),
            stalled: Causes::new(),
            handshakes: histogram(),
        }
    }

    /// How many never opened.
    pub fn refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

/// A minute in nanoseconds: what takes longer is recorded as that.
const NANOS_MAX: u64 = 60_000_000_000;

/// A histogram of nanoseconds at three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, 3).expect("the bounds are in order")
}
