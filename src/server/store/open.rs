//! What happens to a history file at start: it is locked, checked, read, and marked as being in use.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use log::{info, warn};
use signal_hook::consts::SIGXFSZ;

use super::stamp::{Stamp, away_ms, new_epoch};
use super::tables::{Problem, State, Tables};
use super::{BATCHES_MAX, Round, Store, Times, writer};
use crate::config::{HistoryFile, Limits};
use crate::hub::Hub;
use crate::hub::journal::{Head, Hour};
use crate::hub::past::{Past, Restored};

/// A history file that is in use from now on, and what was in it.
#[derive(Debug)]
pub struct Opened {
    /// The loop's end of it.
    pub store: Store,
    /// The hub as it was.
    pub hub: Hub,
    /// The salt of clients' names, if they go on ([`crate::server::engine::Engine::next_client`]).
    pub clients: Option<u32>,
}

/// Why a history file cannot be used, in words for the person who named it.
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    problem: Problem,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "--history-file {path}: ")?;
        match &self.problem {
            Problem::Io(error) => {
                write!(f, "cannot be used: {error}")?;
                match error.kind() {
                    ErrorKind::NotFound => write!(f, "; make its folder first"),
                    ErrorKind::PermissionDenied => {
                        write!(f, "; the server has to be allowed to read and write the file, and to make it")
                    }
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                        write!(
                            f,
                            "; make room, or raise the limit of a file's size, and start again: nothing is lost by that"
                        )
                    }
                    _ => Ok(()),
                }
            }
            Problem::InUse => write!(f, "another process uses it; end that one, or give each its own file"),
            Problem::NoFile => {
                write!(f, "is not a plain file; name a file, which is made if it is not there")
            }
            Problem::Foreign => write!(f, "is no history file of oyez, and was left as it is; name another"),
            Problem::OtherVersion => write!(
                f,
                "was written by another version of oyez; use the one that wrote it, or name another file"
            ),
            Problem::Damaged(what) => write!(
                f,
                "is damaged ({what}). Put back a copy, or begin without it (mv '{path}' '{path}.damaged'): clients are told \
                 then that something is missing"
            ),
            Problem::Other(error) => write!(f, "cannot be used: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// Opens a history file, or makes one, and restores the hub under the limits of today. When this returns,
/// the file says on the disk that it is in use.
///
/// # Errors
/// The file cannot be used, and what was in it still is.
pub fn open(file: &HistoryFile, limits: &Limits, times: Times, stamp: Stamp) -> Result<Opened, OpenError> {
    let fail = |problem| OpenError { path: file.path.clone(), problem };
    // Over the limit of a file's size a write fails like any other, instead of ending the process.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(|error| fail(Problem::Io(error)))?;
    let tables = Tables::open(&file.path).map_err(fail)?;
    let log_ms_at = |state: &State| state.log_ms + away_ms(state.stamp, stamp, limits.history.age_ms);
    let begin = |state: &State| Past::new(&limits.history, Hour { now: times.now, millis: log_ms_at(state) });
    let (hub, state) = match tables.read(begin).map_err(fail)? {
        None => {
            info!("history file {}: new", file.path.display());
            let mut hub = Hub::new(limits, new_epoch());
            hub.begin_journal();
            (hub, None)
        }
        Some((state, past)) => {
            let State { head, is_clean, .. } = state;
            let epoch = if is_clean { head.epoch } else { new_epoch() };
            let log_ms = log_ms_at(&state);
            let (hub, restored) = Hub::restore(limits, Head { epoch, ..head }, past);
            tell(&file.path, is_clean, restored, &hub);
            (hub, Some(State { log_ms, ..state }))
        }
    };
    let clients = state.map(|state| state.clients);
    let log_ms = state.map_or(0, |state| state.log_ms);
    let mark =
        State { head: hub.journal_head(), log_ms, stamp, clients: clients.unwrap_or(0), is_clean: false };
    tables.write(&mark, &[], true).map_err(|error| fail(error.into()))?;
    let identity = writer::identity(&file.path).map_err(|error| fail(Problem::Io(error)))?;
    let (orders, received) = mpsc::sync_channel(BATCHES_MAX);
    let (sent, reports) = mpsc::channel();
    let thread = writer::start(file.path.clone(), identity, tables, received, sent)
        .map_err(|error| fail(Problem::Io(error)))?;
    let store = Store {
        path: file.path.clone(),
        sync_ms: u64::from(file.sync_ms),
        born_ms: log_ms.saturating_sub(times.millis),
        orders,
        reports,
        thread: Some(thread),
        outstanding: 0,
        round: Round::Idle,
        next_round_ms: 0,
        oldest_ms: 0,
        waiting_since_ms: None,
        is_late: false,
    };
    Ok(Opened { store, hub, clients })
}

fn tell(path: &Path, is_clean: bool, restored: Restored, hub: &Hub) {
    let Restored { messages, dropped } = restored;
    let (path, channels) = (path.display(), hub.channels());
    let counts = format!("{messages} messages in {channels} channels, {dropped} too old or over the limits");
    if is_clean {
        info!("history file {path}: {counts}");
    } else {
        warn!(
            "history file {path}: {counts}; it was not ended in order, so a new epoch begins and clients are told of a gap"
        );
    }
}
