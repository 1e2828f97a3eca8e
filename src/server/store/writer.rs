//! The thread that writes: the only one beside the loop's, since a write to a disk blocks, and waiting for
//! the disk to be safe takes from a millisecond to seconds.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use log::error;

use super::tables::{State, Tables};
use crate::hub::change::Change;

/// Unsynced bytes after which the disk is made to catch up; what a slow one writes in a second.
const UNSYNCED_MAX: usize = 8 << 20;

/// A batch to be written.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) state: State,
    pub(super) changes: Vec<Change>,
    /// It has to be safe on the disk at once.
    pub(super) syncs: bool,
}

impl WriteBatch {
    fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

/// What has become of an order.
#[derive(Debug)]
pub(super) enum WriteResult {
    Written {
        /// What it had.
        bytes: u64,
        /// How large the file is now.
        file_bytes: u64,
    },
    /// Nothing is written any more.
    Failed,
}

/// The thread, to be waited for.
pub(super) type Thread = thread::JoinHandle<()>;

/// Begins to write. The thread ends when the orders do, after the last of a run, or when it fails.
pub(super) fn start(
    path: PathBuf,
    identity: Identity,
    tables: Tables,
    orders: Receiver<WriteBatch>,
    reports: Sender<WriteResult>,
) -> io::Result<Thread> {
    let writer = Writer { path, identity, tables, unsynced: 0 };
    thread::Builder::new().name("history-file".into()).spawn(move || writer.run(&orders, &reports))
}

/// The identity of the file, whatever its name: device and inode.
pub(super) type Identity = (u64, u64);

/// Which file has that name now.
pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Why the file is no longer written.
enum Failure {
    Database(redb::Error),
    /// The file was removed, or its name is now that of another file.
    Replaced,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Database(error) => error.fmt(f),
            Failure::Replaced => f.write_str("the file was removed, moved or replaced while it was in use"),
        }
    }
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Failure {
        Failure::Database(error)
    }
}

struct Writer {
    path: PathBuf,
    identity: Identity,
    tables: Tables,
    unsynced: usize,
}

impl Writer {
    fn run(mut self, orders: &Receiver<WriteBatch>, reports: &Sender<WriteResult>) {
        for order in orders {
            let is_last = order.state.is_clean;
            let report = self.write(&order).unwrap_or_else(|failure| {
                error!(
                    "history file {}: {failure}; everybody is served on, but what is published from now on does not \
                     outlive this process, and after a restart clients are told that something is missing",
                    self.path.display()
                );
                WriteResult::Failed
            });
            let has_failed = matches!(report, WriteResult::Failed);
            // If nobody listens any more, the channel of orders says so as well.
            let _ = reports.send(report);
            if is_last || has_failed {
                break;
            }
        }
    }

    fn write(&mut self, order: &WriteBatch) -> Result<WriteResult, Failure> {
        let bytes = order.bytes();
        self.unsynced += bytes;
        let syncs = order.syncs || self.unsynced > UNSYNCED_MAX;
        self.tables.write(&order.state, &order.changes, syncs)?;
        if syncs {
            self.unsynced = 0;
        }
        // Data in a file without a name are lost when it is closed, and no write fails because of that.
        let file = fs::metadata(&self.path).map_err(|_| Failure::Replaced)?;
        if (file.dev(), file.ino()) != self.identity {
            return Err(Failure::Replaced);
        }
        let file_bytes = file.len();
        Ok(WriteResult::Written { bytes: bytes as u64, file_bytes })
    }
}
