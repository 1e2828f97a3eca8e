//! Opening a history file at start: it is locked, verified and loaded, and then marked as being in use.
//!
//! These are two steps, since the server listens in between: a server that cannot listen leaves the file as it was.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use log::{info, warn};
use signal_hook::consts::SIGXFSZ;

use super::Store;
use super::tables::{Contents, LogState, Problem, Tables};
use super::writer::{self, BATCHES_MAX};
use crate::config::{HistoryFile, Limits};
use crate::hub::Hub;
use crate::hub::persist::{LogHead, LogTime};
use crate::hub::snapshot::{Restored, Snapshot};
use crate::hub::stored_keys::InvalidKeys;
use crate::plural::plural;
use crate::server::clock_snapshot::{ClockSnapshot, ProcessTime, downtime_ms, new_epoch};

/// A history file that is marked as being in use, and its contents.
#[derive(Debug)]
pub struct Opened {
    /// The loop's side of it.
    pub store: Store,
    /// The restored hub.
    pub hub: Hub,
    /// The salt of client ids, if they continue ([`crate::server::engine::Engine::next_client`]).
    pub clients: Option<u32>,
}

/// The reason why a history file cannot be used, for the operator.
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
                    ErrorKind::NotFound => write!(f, "; create its directory first"),
                    ErrorKind::PermissionDenied => {
                        write!(f, "; the server must be allowed to read, write and create the file")
                    }
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                        write!(
                            f,
                            "; free disk space, or raise the file size limit (`ulimit -f`), and start again: no messages are lost"
                        )
                    }
                    _ => Ok(()),
                }
            }
            Problem::InUse => write!(f, "another process uses it; stop that process, or choose another file"),
            Problem::NotRegular => {
                write!(
                    f,
                    "is not a regular file; choose a regular file, which is created if it does not exist"
                )
            }
            Problem::Foreign => {
                write!(f, "is not a history file of oyez, and is unchanged; choose another file")
            }
            Problem::OtherVersion => write!(
                f,
                "was written by another version of oyez; use the version that wrote it, or choose another file"
            ),
            Problem::Damaged(what) => write!(
                f,
                "is damaged ({what}). Put back a copy, or start without it (mv '{path}' '{path}.damaged'): clients are \
                 notified of the gap"
            ),
            Problem::Other(error) => write!(f, "cannot be used: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// A history file that is loaded and locked, but not marked as being in use.
#[derive(Debug)]
pub struct Loaded {
    file: HistoryFile,
    tables: Tables,
    hub: Hub,
    clients: Option<u32>,
    log_ms: u64,
    clocks: ClockSnapshot,
    started_ms: u64,
}

/// Opens or creates a history file, and restores the hub under the current limits.
///
/// # Errors
/// The file cannot be used, and its contents are unchanged.
pub fn load(
    file: &HistoryFile,
    limits: &Limits,
    time: ProcessTime,
    clocks: ClockSnapshot,
) -> Result<Loaded, OpenError> {
    let fail = |problem| OpenError { path: file.path.clone(), problem };
    // Over the limit of a file's size a write fails like any other, instead of ending the process.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(|error| fail(Problem::Io(error)))?;
    let tables = Tables::open(&file.path).map_err(fail)?;
    let log_ms_at =
        |state: &LogState| state.log_ms + downtime_ms(state.clocks, clocks, limits.history.age_ms);
    let begin = |state: &LogState| {
        Snapshot::new(&limits.history, LogTime { now: time.now, millis: log_ms_at(state) })
    };
    let (hub, state) = match tables.read(begin).map_err(fail)? {
        None => {
            info!("history file {}: new", file.path.display());
            let mut hub = Hub::new(limits, new_epoch());
            hub.begin_tracking_changes();
            (hub, None)
        }
        Some(Contents { state, snapshot, keys }) => {
            let LogState { head, is_clean, .. } = state;
            let epoch = if is_clean { head.epoch } else { new_epoch() };
            let log_ms = log_ms_at(&state);
            let (mut hub, restored) = Hub::restore(limits, LogHead { epoch, ..head }, snapshot);
            if let Some(keys) = keys {
                hub.restore_keys(&keys, LogTime { now: time.now, millis: log_ms }).map_err(
                    |InvalidKeys| fail(Problem::Damaged("its idempotency keys are invalid".into())),
                )?;
            }
            log_loaded(&file.path, is_clean, restored, &hub);
            (hub, Some(LogState { log_ms, ..state }))
        }
    };
    let clients = state.map(|state| state.clients);
    let log_ms = state.map_or(0, |state| state.log_ms);
    let started_ms = log_ms.saturating_sub(time.millis);
    Ok(Loaded { file: file.clone(), tables, hub, clients, log_ms, clocks, started_ms })
}

impl Loaded {
    /// Marks the file as being in use. When this returns, the mark is safe on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark_in_use(self) -> Result<Opened, OpenError> {
        let Loaded { file: HistoryFile { path, sync_ms }, tables, hub, clients, log_ms, clocks, started_ms } =
            self;
        let fail = |problem| OpenError { path: path.clone(), problem };
        let clients_salt = clients.unwrap_or(0);
        let mark = LogState { head: hub.log_head(), log_ms, clocks, clients: clients_salt, is_clean: false };
        tables.write(&mark, &[], None, true).map_err(|error| fail(error.into()))?;
        let identity = writer::identity(&path).map_err(|error| fail(Problem::Io(error)))?;
        let (batches, received) = mpsc::sync_channel(BATCHES_MAX);
        let (sent, results) = mpsc::channel();
        let thread = writer::start(path.clone(), identity, tables, received, sent)
            .map_err(|error| fail(Problem::Io(error)))?;
        let store = Store::new(path, sync_ms, started_ms, batches, results, Some(thread));
        Ok(Opened { store, hub, clients })
    }
}

fn log_loaded(path: &Path, is_clean: bool, restored: Restored, hub: &Hub) {
    let Restored { messages, dropped } = restored;
    let (path, channels) = (path.display(), hub.channels());
    let (messages, channels) = (plural(messages, "message"), plural(channels, "channel"));
    let counts = format!("{messages} in {channels}, {dropped} too old or over the limits");
    if is_clean {
        info!("history file {path}: {counts}");
    } else {
        warn!(
            "history file {path}: {counts}; unclean shutdown: a new epoch begins, and clients are notified of a gap"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::access::identity::ClientIdentity;
    use crate::hub::idempotency::IdempotencyKey;
    use crate::hub::stored_keys::StoredKeys;
    use crate::ids::{ChannelName, Sender};
    use crate::metrics::Metrics;
    use crate::time::LoopTime;
    use crate::wire::Kind;

    const CLOCKS: ClockSnapshot = ClockSnapshot { unix_ms: 1_000, boot_ms: 1_000, boot: 1 };

    #[test]
    fn file_that_was_only_loaded_is_as_clean_as_before() {
        let name = format!("oyez-loaded-{}", std::process::id());
        let file = HistoryFile { path: std::env::temp_dir().join(name), sync_ms: 1_000 };
        let (limits, time) = (Limits::default(), ProcessTime { now: LoopTime::from_millis(5), millis: 5 });
        let load = || {
            let start = Instant::now();
            loop {
                match load(&file, &limits, time, CLOCKS) {
                    // The writer's thread ends after its store.
                    Err(OpenError { problem: Problem::InUse, .. })
                        if start.elapsed() < Duration::from_secs(60) =>
                    {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    loaded => return loaded.unwrap(),
                }
            }
        };
        let Opened { store, mut hub, .. } = load().mark_in_use().unwrap();
        let epoch = hub.head().epoch;
        let channel = hub.open(&ChannelName::parse(b"a").unwrap()).unwrap();
        hub.publish(channel, Kind::Text, b"x", Sender::default(), None);
        while let Some(channel) = hub.next_open_batch() {
            let _ = hub.finish_batch(channel, time.now);
        }
        let timeout = Duration::from_secs(60);
        assert!(store.finish(&mut hub, &mut Metrics::default(), 1, time, CLOCKS, timeout));
        // A server that cannot listen, since another one listens on its address by now.
        drop(load());
        let again = load();
        assert_eq!((again.hub.head().epoch, again.hub.history_usage().messages), (epoch, 1));
        // A server that is killed.
        drop(again.mark_in_use().unwrap());
        assert_ne!(load().hub.head().epoch, epoch);
        std::fs::remove_file(&file.path).unwrap();
    }
    /// A file that a version without idempotency keys continues keeps those of before, unused: they are for messages of
    /// its epoch only.
    #[test]
    fn keys_are_restored_in_their_epoch_only() {
        let name = format!("oyez-keys-{}", std::process::id());
        let file = HistoryFile { path: std::env::temp_dir().join(name), sync_ms: 1_000 };
        let (limits, time) = (Limits::default(), ProcessTime { now: LoopTime::from_millis(5), millis: 5 });
        let key = IdempotencyKey { channel: "a", owner: ClientIdentity::Subject("alice"), key: "k" };
        let mut hub = Hub::new(&limits, 7);
        let channel = hub.open(&ChannelName::parse(b"a").unwrap()).unwrap();
        let published = hub.publish(channel, Kind::Text, b"x", Sender::default(), None);
        hub.record_key(key, Kind::Text, b"x", published.log_index, time.now);
        let keys = hub.stored_keys(LogTime { now: time.now, millis: time.millis });
        let state = |epoch, is_clean| {
            let head = LogHead { epoch, ..hub.log_head() };
            LogState { head, log_ms: 5, clocks: CLOCKS, clients: 1, is_clean }
        };
        let is_known = |state: LogState, keys| {
            Tables::open(&file.path).unwrap().write(&state, &[], keys, true).unwrap();
            let mut hub = load(&file, &limits, time, CLOCKS).unwrap().hub;
            hub.find_duplicate(key, Kind::Text, b"x", time.now).is_some()
        };
        assert!(!is_known(state(7, true), None), "the file of a version without keys");
        assert!(is_known(state(7, true), Some(&keys)));
        assert!(is_known(state(7, true), None), "continued by such a version");
        assert!(!is_known(state(8, true), None), "which was killed, and began a new epoch");
        assert!(!is_known(state(7, false), None), "killed");
        let damaged = StoredKeys { keys: keys.keys[1..].to_vec(), ..keys };
        Tables::open(&file.path).unwrap().write(&state(7, true), &[], Some(&damaged), true).unwrap();
        let error = load(&file, &limits, time, CLOCKS).unwrap_err();
        assert!(matches!(error.problem, Problem::Damaged(_)), "{error}");
        std::fs::remove_file(&file.path).unwrap();
    }
}
