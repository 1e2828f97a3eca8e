//! The reasons why a server does not start.

use std::fmt;
use std::io;

use super::store::OpenError;

/// The reason why a server does not start.
#[derive(Debug)]
pub enum StartError {
    /// The address is in use, or the system provides no poll or signals.
    Listen(io::Error),
    /// The history file cannot be used.
    HistoryFile(OpenError),
    /// The connections to the backplane cannot be set up.
    Backplane(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen(error) => write!(f, "cannot listen: {error}"),
            StartError::HistoryFile(error) => error.fmt(f),
            StartError::Backplane(error) => write!(f, "cannot set up the backplane: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError::Listen(error)
    }
}
