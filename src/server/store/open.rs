//! What happens to a history file at start: it is locked, read, judged, and marked as being in use.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use log::{info, warn};
use signal_hook::consts::SIGXFSZ;

use super::format::{BadPreamble, Batches, Header, Next, Preamble, Stamp, What, away_ms};
use super::log_file::{LogFile, lock, name_beside};
use super::{BATCHES_MAX, Round, Store, Times, header, writer};
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

#[derive(Debug)]
enum Problem {
    /// It cannot be opened, locked or read.
    Read(io::Error),
    /// It cannot be written.
    Write(io::Error),
    InUse,
    NoFile,
    Foreign,
    Newer {
        format: u32,
    },
    Damaged {
        at: u64,
        length: u64,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "--history-file {path}: ")?;
        match &self.problem {
            Problem::Read(error) | Problem::Write(error) => {
                write!(
                    f,
                    "cannot be {}: {error}",
                    if matches!(self.problem, Problem::Read(_)) { "opened" } else { "written" }
                )?;
                match error.kind() {
                    ErrorKind::NotFound => write!(f, "; make its folder first"),
                    ErrorKind::PermissionDenied => {
                        write!(
                            f,
                            "; the server has to be allowed to read and write the file and to make files in its folder"
                        )
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
            Problem::Newer { format } => write!(
                f,
                "has format {format}, and this oyez reads format {}; use the oyez that wrote it, or name another file",
                super::format::FORMAT
            ),
            Problem::Damaged { at, length } => write!(
                f,
                "is damaged at byte {at} of {length}, where it was safe on the disk before; it was left as it is. Put back a \
                 copy, or begin without it (mv '{path}' '{path}.damaged'): clients are told then that something is missing"
            ),
        }
    }
}

impl std::error::Error for OpenError {}

/// What a file tells.
struct Found {
    past: Past,
    last: Header,
    /// Where its last whole batch ends.
    end: u64,
    ordinal: u64,
    is_clean: bool,
}

/// Opens a history file, or makes one, and restores the hub under the limits of today. When this returns,
/// the file says on the disk that it is in use.
///
/// # Errors
/// The file cannot be used; nothing of it was changed, but for a tail that was never safe on the disk.
pub fn open(file: &HistoryFile, limits: &Limits, times: Times, stamp: Stamp) -> Result<Opened, OpenError> {
    // A link stays one when the file behind it is written anew.
    let path = fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone());
    let fail = |problem| OpenError { path: file.path.clone(), problem };
    // Over the limit of a file's size a write fails like any other, instead of ending the process.
    signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))
        .map_err(|error| fail(Problem::Read(error)))?;
    let mut locked = open_locked(&path).map_err(fail)?;
    // Left by a process that was killed while it made one.
    let _ = fs::remove_file(name_beside(&path));
    let length = locked.metadata().map_err(|error| fail(Problem::Read(error)))?.len();
    let (mut log, hub, log_ms, clients) = if length == 0 {
        let mut hub = Hub::new(limits, stamp.unix_ms);
        hub.begin_journal();
        info!("history file {}: new", path.display());
        let log = LogFile::beside(&path).map_err(|error| fail(Problem::Write(error)))?;
        (log, hub, 0, None)
    } else {
        let mut preamble = Vec::new();
        (&mut locked)
            .take(Preamble::BYTES as u64)
            .read_to_end(&mut preamble)
            .map_err(|error| fail(Problem::Read(error)))?;
        let preamble = Preamble::parse(&preamble).map_err(|bad| {
            fail(match bad {
                BadPreamble::Foreign => Problem::Foreign,
                BadPreamble::Damaged => Problem::Damaged { at: 0, length },
                BadPreamble::Newer { format } => Problem::Newer { format },
            })
        })?;
        let found = read(&locked, preamble, length).map_err(fail)?;
        let Found { past, last, end, ordinal, is_clean } = found;
        let epoch = if is_clean { last.head.epoch } else { stamp.unix_ms.max(last.head.epoch + 1) };
        let log_ms = last.log_ms + away_ms(last.stamp, stamp, limits.history.age_ms);
        let hour = Hour { now: times.now, millis: log_ms };
        let (hub, restored) = Hub::restore(limits, Head { epoch, ..last.head }, past, hour);
        tell(&path, is_clean, length - end, restored, &hub);
        let cut = |file: &mut File| {
            file.set_len(end)?;
            file.seek(SeekFrom::Start(end))
        };
        cut(&mut locked).map_err(|error| fail(Problem::Write(error)))?;
        let log = LogFile { file: locked, salt: preamble.salt, length: end, synced: end, ordinal };
        (log, hub, log_ms, Some(last.clients))
    };
    let mark = Header { clients: clients.unwrap_or(0), log_ms, ..header(What::Open, &hub, stamp) };
    let mark = |log: &mut LogFile| {
        log.append(mark, &[])?;
        if length == 0 { log.install(&path) } else { log.sync() }
    };
    mark(&mut log).map_err(|error| {
        if length > 0 {
            // Half a mark would make an end of what was ended in order.
            let _ = log.file.set_len(log.synced);
        }
        fail(Problem::Write(error))
    })?;
    let (orders, received) = mpsc::sync_channel(BATCHES_MAX);
    let (sent, reports) = mpsc::channel();
    let thread =
        writer::start(path.clone(), log, received, sent).map_err(|error| fail(Problem::Write(error)))?;
    let store = Store {
        path,
        sync_ms: u64::from(file.sync_ms),
        born_ms: log_ms.saturating_sub(times.millis),
        orders: Some(orders),
        reports,
        thread: Some(thread),
        outstanding: 0,
        spare: Vec::new(),
        round: Round::Idle,
        next_round_ms: 0,
        is_late: false,
        has_failed: false,
    };
    Ok(Opened { store, hub, clients })
}

/// Opens the file and takes its lock; an empty one is made if there is none.
fn open_locked(path: &Path) -> Result<File, Problem> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(Problem::NoFile),
        _ => {}
    }
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Problem::Read)?;
        match lock(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(Problem::InUse),
            Err(error) => return Err(Problem::Read(error)),
        }
        // The process that had the lock may have put another file there just before it ended.
        let is_there = file.metadata().and_then(|own| Ok(own.ino() == fs::metadata(path)?.ino()));
        if is_there.map_err(Problem::Read)? {
            return Ok(file);
        }
    }
}

/// Reads all batches.
fn read(file: &File, preamble: Preamble, length: u64) -> Result<Found, Problem> {
    let damaged = |at| Problem::Damaged { at, length };
    let input = BufReader::with_capacity(1 << 20, file);
    let mut batches = Batches::new(input, preamble.salt, length);
    let mut past = Past::default();
    let mut last = None;
    loop {
        let at = batches.at();
        match batches.next().map_err(Problem::Read)? {
            Next::Batch(header) => {
                past.read(batches.body()).map_err(|_| damaged(at))?;
                last = Some(header);
            }
            next @ (Next::End | Next::Torn) => {
                // A file has its first batch before it has its name.
                let last: Header = last.ok_or(damaged(at))?;
                let is_clean = last.what == What::Clean && matches!(next, Next::End);
                let ordinal = batches.ordinal();
                return Ok(Found { past, last, end: at, ordinal, is_clean });
            }
            Next::Damaged => return Err(damaged(at)),
        }
    }
}

fn tell(path: &Path, is_clean: bool, torn: u64, restored: Restored, hub: &Hub) {
    let Restored { messages, dropped } = restored;
    let (path, channels) = (path.display(), hub.channels());
    let counts = format!("{messages} messages in {channels} channels, {dropped} too old or over the limits");
    if is_clean {
        info!("history file {path}: {counts}");
    } else {
        warn!(
            "history file {path}: {counts}; it was not ended in order, so a new epoch begins and clients are told of a gap \
             ({torn} bytes at its end were being written and are dropped)"
        );
    }
}
