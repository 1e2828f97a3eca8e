//! The history file, as tables of a database.
//!
//! A commit is whole or not at all, also when the process is killed or the power goes. It is made in **two
//! phases** (`redb`), since with one a newest commit that does not fit its checksums may be one that was
//! interrupted or one that was damaged later, and the database goes back to the one before in either case.
//! With two it is damage, and nobody may pretend otherwise.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    TableError,
};

use super::clock_snapshot::ClockSnapshot;
use crate::hub::change::{Change, ChannelPosition};
use crate::hub::persist::LogHead;
use crate::hub::snapshot::Snapshot;

/// Pages that the database keeps in memory; what is written is new, and seldom looked at again.
const CACHE_BYTES: usize = 4 << 20;

/// Epoch, last message, last message of removed channels that are not remembered, log's time, the stamp's three, clients' salt, and whether
/// the run has ended in order.
type StateRow = (u64, u64, u64, u64, u64, u64, u64, u32, bool);

/// How far all is, in one row.
const STATE: TableDefinition<'_, (), StateRow> = TableDefinition::new("state");

/// How far each channel is: number, last, floor. A removed channel is one without messages, whose floor is its last.
const CHANNELS: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("channels");

/// Messages that were written together, under their channel and the last of them.
const MESSAGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("messages");

/// What is written of the hub and its times with each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) head: LogHead,
    /// The log's time, in milliseconds.
    pub(super) log_ms: u64,
    pub(super) stamp: ClockSnapshot,
    /// What makes the names of clients differ, over restarts too.
    pub(super) clients: u32,
    /// The process has ended in order, and all is written.
    pub(super) is_clean: bool,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Problem {
    Io(io::Error),
    InUse,
    NoFile,
    Foreign,
    /// Its tables are not those of this version.
    OtherVersion,
    Damaged(String),
    Other(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Problem {
    fn from(error: E) -> Problem {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen => Problem::InUse,
            redb::Error::Corrupted(what) => Problem::Damaged(what),
            redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. } => Problem::OtherVersion,
            // It does not begin as a database does.
            redb::Error::Io(error) if error.kind() == ErrorKind::InvalidData => Problem::Foreign,
            redb::Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Problem::Damaged("it ends too early".into())
            }
            redb::Error::Io(error) => Problem::Io(error),
            error => Problem::Other(error),
        }
    }
}

/// A history file that is open, and locked.
#[derive(Debug)]
pub(super) struct Tables {
    database: Database,
}

impl Tables {
    /// Opens the file, or makes it, and looks at all of it: every checksum, not only those of what is read.
    pub(super) fn open(path: &Path) -> Result<Tables, Problem> {
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(Problem::NoFile),
            _ => {}
        }
        // What is kept is for those who may subscribe, and not for everybody on this machine.
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Problem::Io)?;
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
        Ok(Tables { database: builder.create(path)? })
    }

    /// What was written last; nothing if it is new. The state tells by which clock messages go into the past.
    pub(super) fn read(
        &self,
        begin: impl FnOnce(&State) -> Snapshot,
    ) -> Result<Option<(State, Snapshot)>, Problem> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(STATE) {
            Err(TableError::TableDoesNotExist(_)) => {
                let is_empty = transaction.list_tables()?.next().is_none()
                    && transaction.list_multimap_tables()?.next().is_none();
                return if is_empty { Ok(None) } else { Err(Problem::Foreign) };
            }
            table => table?,
        };
        let Some(row) = table.get(())? else { return Ok(None) };
        let (epoch, seq, max_removed_seq, log_ms, unix_ms, boot_ms, boot, clients, is_clean) = row.value();
        let head = LogHead { epoch, seq, max_removed_seq };
        let state =
            State { head, log_ms, stamp: ClockSnapshot { unix_ms, boot_ms, boot }, clients, is_clean };
        let (channels, messages) = (transaction.open_table(CHANNELS)?, transaction.open_table(MESSAGES)?);
        let mut past = begin(&state);
        let mut count = 0;
        let mut bytes = Vec::new();
        for row in channels.iter()? {
            let (name, position) = row?;
            let (name, (number, last, evicted_through)) = (name.value(), position.value());
            bytes.clear();
            for row in messages.range((name, 0)..=(name, u64::MAX))? {
                bytes.extend_from_slice(row?.1.value());
                count += 1;
            }
            past.put(name, ChannelPosition { number, last, evicted_through }, &bytes)
                .map_err(|_| Problem::Damaged(format!("channel {name} contradicts itself")))?;
        }
        if count != messages.len()? {
            return Err(Problem::Damaged("it has messages of channels that it does not have".into()));
        }
        Ok(Some((state, past)))
    }

    /// Writes changes and how far all is, in one commit. If it `syncs` that and all before it is safe on the
    /// disk then; otherwise it is when the next one that does is.
    pub(super) fn write(&self, state: &State, changes: &[Change], syncs: bool) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.set_durability(if syncs { Durability::Immediate } else { Durability::None })?;
        {
            let State { head, log_ms, stamp, clients, is_clean } = *state;
            let row = (
                head.epoch,
                head.seq,
                head.max_removed_seq,
                log_ms,
                stamp.unix_ms,
                stamp.boot_ms,
                stamp.boot,
                clients,
                is_clean,
            );
            transaction.open_table(STATE)?.insert((), row)?;
            let mut channels = transaction.open_table(CHANNELS)?;
            let mut rows = transaction.open_table(MESSAGES)?;
            for change in changes {
                match change {
                    Change::Removed { name } => {
                        channels.remove(&**name)?;
                        rows.retain_in((&**name, 0)..=(&**name, u64::MAX), |_, _| false)?;
                    }
                    Change::Channel { name, position, messages } => {
                        let ChannelPosition { number, last, evicted_through } = *position;
                        channels.insert(&**name, (number, last, evicted_through))?;
                        rows.retain_in((&**name, 0)..=(&**name, evicted_through), |_, _| false)?;
                        if !messages.is_empty() {
                            rows.insert((&**name, last), messages.as_slice())?;
                        }
                    }
                }
            }
        }
        Ok(transaction.commit()?)
    }
}
