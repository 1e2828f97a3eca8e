//! Standard output and standard error of all commands. Nothing else writes to them.
//!
//! `println!` and `eprintln!` panic when a write fails, and writes do fail: the reader of a pipe exits (`| head -1`),
//! a terminal closes, a disk is full. With `panic = "abort"` such a command dies of SIGABRT, and its exit status is
//! lost. Here a failed write is a value:
//!
//! - standard output is the result. A reader that exits ends the command quietly with status 0, as in ripgrep: it has
//!   read enough. Any other failure, such as a full disk, is an error with status 1;
//! - standard error is for the user at the terminal. If it cannot be written, the command continues without it.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::os::fd::{AsRawFd, RawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::failure::Failure;
use crate::access::printable::is_trick;

/// Prints a complete result.
pub(super) fn print(text: impl Display) -> Result<(), Failure> {
    let mut out = Stdout::lock();
    out.write(text.to_string().as_bytes())?;
    out.flush()
}

/// A line on standard error, in one write: lines of several processes do not mix.
pub(super) fn note(text: impl Display) {
    let _ = io::stderr().write_all(format!("oyez: {text}\n").as_bytes());
}

/// Returns true if standard error is a terminal.
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

    pub(super) fn is_terminal(&self) -> bool {
        self.0.get_ref().is_terminal()
    }

    /// Registers for the error event that is raised when the reader exits. A file has no reader and cannot be
    /// registered.
    pub(super) fn watch(&self, registry: &Registry, token: Token) {
        let _ = registry.register(&mut SourceFd(&self.as_raw_fd()), token, Interest::WRITABLE);
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

/// Escapes bytes for a terminal. Characters that would move the cursor, change colours or change the direction of the
/// text are escaped as in JSON, so that JSON stays JSON; so are bytes that are not UTF-8. Line feeds and tabs stay.
pub(super) fn visible(bytes: &[u8]) -> Cow<'_, str> {
    let is_plain = |letter: char| matches!(letter, '\n' | '\t') || !is_trick(letter);
    if let Ok(text) = str::from_utf8(bytes)
        && text.chars().all(is_plain)
    {
        return text.into();
    }
    let mut shown = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                _ if is_plain(letter) => shown.push(letter),
                _ => shown.push_str(&format!("\\u{:04x}", u32::from(letter))),
            }
        }
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02x}")));
    }
    shown.into()
}

fn failed(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Failed(format!("standard output: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn control_characters_are_escaped() {
        for (bytes, shown) in [
            (&b"plain \t text\n"[..], "plain \t text\n"),
            ("gr\u{fc}\u{df} dich, \u{1f600}".as_bytes(), "gr\u{fc}\u{df} dich, \u{1f600}"),
            (b"\x1b[31mred\x1b]0;title\x07", "\\u001b[31mred\\u001b]0;title\\u0007"),
            (b"over\rwritten", "over\\u000dwritten"),
            ("\u{9b}31m\u{202e}evil".as_bytes(), "\\u009b31m\\u202eevil"),
            (b"\xff\xfe ok", "\\xff\\xfe ok"),
        ] {
            assert_eq!(visible(bytes), shown);
        }
    }
}
