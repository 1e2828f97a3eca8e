//! Standard output and standard error of all commands. Nothing else writes to them.
//!
//! `println!` and `eprintln!` panic when a write fails, and writes do fail: the reader of a pipe exits (`| head -1`),
//! a terminal closes, a disk is full. With `panic = "abort"` such a command dies of SIGABRT, and its exit status is
//! lost. Here a failed write is a value:
//!
//! - standard output is the result. A reader that is gone ends the command quietly with status 0, as in ripgrep: it
//!   has got what it wanted. Any other failure, such as a full disk, is an error with status 1;
//! - standard error is for a person who watches. If nobody can read it, the command goes on without it.

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::{AsRawFd, RawFd};

use super::Failure;

/// Prints a result that is whole.
pub(super) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = Stdout::lock();
    out.write(text.to_string().as_bytes())?;
    out.flush()
}

/// A line on standard error, in one write: lines of several processes do not mix.
pub(super) fn note(text: impl Display) {
    let _ = io::stderr().write_all(format!("oyez: {text}\n").as_bytes());
}

/// Returns true if a person reads standard error.
pub(super) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Standard output, buffered: a result that comes in parts.
#[derive(Debug)]
pub(super) struct Stdout(BufWriter<StdoutLock<'static>>);

impl Stdout {
    /// Until it is dropped, nothing else writes there.
    pub(super) fn lock() -> Stdout {
        Stdout(BufWriter::new(io::stdout().lock()))
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(|error| failed(&error))
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|error| failed(&error))
    }
}

impl AsRawFd for Stdout {
    fn as_raw_fd(&self) -> RawFd {
        self.0.get_ref().as_raw_fd()
    }
}

fn failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Failed(format!("standard output: {error}")),
    }
}
