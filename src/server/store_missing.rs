//! Takes the place of the module `store` in a build without the cargo feature `history-file`: histories are kept in
//! memory only.
//!
//! The types have no values, so the compiler removes the branches that handle them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::clock_snapshot::{ClockSnapshot, ProcessTime};
use crate::config::{HistoryFile, Limits};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::time::LoopTime;

/// Maximum time that the shutdown waits for a history file: zero.
pub const SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::ZERO;

/// Maximum time after a second signal.
pub const FORCED_SHUTDOWN_WRITE_TIMEOUT: Duration = Duration::ZERO;

/// A history file. This build has none, so no value of this type exists.
#[derive(Debug)]
pub enum Store {}

/// A loaded history file. This build has none, so no value of this type exists.
#[derive(Debug)]
pub enum Loaded {}

/// The contents of a history file.
#[derive(Debug)]
pub struct Opened {
    /// The loop's side of it.
    pub store: Store,
    /// The restored hub.
    pub hub: Hub,
    /// The salt of client ids.
    pub clients: Option<u32>,
}

/// The error of every attempt to use a history file.
#[derive(Debug)]
pub struct OpenError(PathBuf);

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        write!(
            f,
            "--history-file {path}: this build has no history file: build it with the cargo feature history-file"
        )
    }
}

impl std::error::Error for OpenError {}

/// Fails: this build has no history file.
///
/// # Errors
/// Always.
pub fn load(file: &HistoryFile, _: &Limits, _: ProcessTime, _: ClockSnapshot) -> Result<Loaded, OpenError> {
    Err(OpenError(file.path.clone()))
}

impl Loaded {
    /// Marks the file as being in use.
    ///
    /// # Errors
    /// None.
    pub fn mark_in_use(self) -> Result<Opened, OpenError> {
        match self {}
    }
}

impl Store {
    /// Returns the time of the next call.
    pub fn next(&self, _: &Hub, _: ProcessTime) -> Option<LoopTime> {
        match *self {}
    }

    /// Sends changes to the file.
    pub fn flush_changes(
        &mut self,
        _: &mut Hub,
        _: &mut Metrics,
        _: u32,
        _: ProcessTime,
        _: impl FnOnce() -> ClockSnapshot,
    ) {
        match *self {}
    }

    /// Completes the file.
    pub fn finish(
        self,
        _: &mut Hub,
        _: &mut Metrics,
        _: u32,
        _: ProcessTime,
        _: ClockSnapshot,
        _: Duration,
    ) -> bool {
        match self {}
    }
}
