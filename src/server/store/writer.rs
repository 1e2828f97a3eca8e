//! The thread that writes the history file: the only thread in addition to the loop's, since writes to a disk block,
//! and a sync takes from a millisecond to seconds.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use log::error;

use super::tables::{LogState, Tables};
use crate::hub::change::Change;
use crate::hub::stored_keys::StoredKeys;

/// Maximum number of batches that the thread has not written.
pub(super) const BATCHES_MAX: usize = 4;

/// Maximum of unsynced bytes, after which a sync is forced; a slow disk writes as much in a second.
const UNSYNCED_MAX: usize = 8 << 20;

/// A batch to be written.
#[derive(Debug)]
pub(super) struct WriteBatch {
    pub(super) state: LogState,
    pub(super) changes: Vec<Change>,
    /// The idempotency keys, in the last batch.
    pub(super) keys: Option<StoredKeys>,
    /// True if the batch has to be safe on the disk when its result is sent.
    pub(super) syncs: bool,
}

impl WriteBatch {
    fn bytes(&self) -> usize {
        let keys = self.keys.as_ref().map_or(0, |stored| stored.keys.len());
        self.changes.iter().map(Change::bytes).sum::<usize>() + keys
    }
}

/// The result of a batch.
#[derive(Debug)]
pub(super) enum WriteResult {
    Written {
        /// Bytes of the batch.
        bytes: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// The write failed, and no further one is tried.
    Failed,
}

/// The handle of the thread.
pub(super) type Thread = thread::JoinHandle<()>;

/// Starts the thread. It ends when the channel of batches is closed, after the last batch of a run, or when a write
/// fails.
pub(super) fn start(
    path: PathBuf,
    identity: FileIdentity,
    tables: Tables,
    batches: Receiver<WriteBatch>,
    results: Sender<WriteResult>,
) -> io::Result<Thread> {
    let writer = Writer { path, identity, tables, unsynced: 0 };
    thread::Builder::new().name("history-file".into()).spawn(move || writer.run(&batches, &results))
}

/// The identity of the file, whatever its name: device and inode.
pub(super) type FileIdentity = (u64, u64);

/// Returns the identity of the file that has this name now.
pub(super) fn identity(path: &Path) -> io::Result<FileIdentity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// The reason why the file is no longer written.
enum WriteError {
    Database(redb::Error),
    /// The file was removed, or its name is now that of another file.
    Replaced,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Database(error) => error.fmt(f),
            WriteError::Replaced => {
                f.write_str("the file was removed, moved or replaced while it was in use")
            }
        }
    }
}

impl From<redb::Error> for WriteError {
    fn from(error: redb::Error) -> WriteError {
        WriteError::Database(error)
    }
}

struct Writer {
    path: PathBuf,
    identity: FileIdentity,
    tables: Tables,
    unsynced: usize,
}

impl Writer {
    fn run(mut self, batches: &Receiver<WriteBatch>, results: &Sender<WriteResult>) {
        for batch in batches {
            let is_last = batch.state.is_clean;
            let result = self.write(&batch).unwrap_or_else(|error| {
                error!(
                    "history file {}: {error}; clients are still served, but messages published from now on do not \
                     survive a restart, after which clients are notified of a gap",
                    self.path.display()
                );
                WriteResult::Failed
            });
            let has_failed = matches!(result, WriteResult::Failed);
            // If the loop has ended, the channel of batches is closed as well.
            let _ = results.send(result);
            if is_last || has_failed {
                break;
            }
        }
    }

    fn write(&mut self, batch: &WriteBatch) -> Result<WriteResult, WriteError> {
        let bytes = batch.bytes();
        self.unsynced += bytes;
        let syncs = batch.syncs || self.unsynced > UNSYNCED_MAX;
        self.tables.write(&batch.state, &batch.changes, batch.keys.as_ref(), syncs)?;
        if syncs {
            self.unsynced = 0;
        }
        // The contents of a file without a name are lost when it is closed, and no write reports that.
        let file = fs::metadata(&self.path).map_err(|_| WriteError::Replaced)?;
        if (file.dev(), file.ino()) != self.identity {
            return Err(WriteError::Replaced);
        }
        let file_bytes = file.len();
        Ok(WriteResult::Written { bytes: bytes as u64, file_bytes })
    }
}
