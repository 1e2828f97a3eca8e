//! The failure of a command, with its exit status.

use std::fmt;

/// Why a command failed; decides the exit status.
#[derive(Debug)]
pub(super) enum Failure {
    /// The arguments cannot work: status 2.
    Usage(String),
    /// The command failed: status 1.
    Failed(String),
    /// Messages are missing, and --exit-on-gap is set: status 3.
    Gap(String),
    /// The reader of standard output has closed it (`| head -1`): status 0, without an error.
    ReaderGone,
}

impl Failure {
    pub(super) fn status(&self) -> u8 {
        match self {
            Failure::ReaderGone => 0,
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Gap(_) => 3,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) | Failure::Failed(text) | Failure::Gap(text) => f.write_str(text),
            Failure::ReaderGone => f.write_str("the reader of standard output is gone"),
        }
    }
}
