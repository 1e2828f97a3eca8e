//! The reasons why a server does not start.

use std::fmt;
use std::io;

use super::store::OpenError;
use crate::net::listeners::ListenError;

/// The reason why a server does not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen(ListenError),
    /// The system provides no poll or signals.
    System(io::Error),
    /// The history file cannot be used.
    HistoryFile(OpenError),
    /// The connections to the backplane cannot be set up.
    Backplane(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen(error) => error.fmt(f),
            StartError::System(error) => write!(f, "cannot set up the event loop: {error}"),
            StartError::HistoryFile(error) => error.fmt(f),
            StartError::Backplane(error) => write!(f, "cannot set up the backplane: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<ListenError> for StartError {
    fn from(error: ListenError) -> StartError {
        StartError::Listen(error)
    }
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError::System(error)
    }
}
