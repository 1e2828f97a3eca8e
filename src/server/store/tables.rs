//! The format of the history file: tables of a database.
//!
//! A commit is complete or absent, also after a crash or a power failure. It is made in **two phases** (`redb`): with
//! one phase, if the newest commit does not match its checksums, it may have been interrupted or damaged later, and the
//! database returns to the previous one in both cases. With two phases it is damage, and is reported as damage.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use redb::{
    Builder, Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, TableError, WriteTransaction,
};

use crate::hub::change::{Change, ChannelPosition};
use crate::hub::persist::LogHead;
use crate::hub::snapshot::Snapshot;
use crate::hub::stored_keys::{KEY_BYTES, StoredKeys};
use crate::server::clock_snapshot::ClockSnapshot;

/// Pages that the database caches; new pages are rarely read again.
const CACHE_BYTES: usize = 4 << 20;

/// Epoch, last message, last message of removed channels that are not remembered, time of the log, the three clocks,
/// salt of client ids, and whether the shutdown was clean.
type StateRow = (u64, u64, u64, u64, u64, u64, u64, u32, bool);

/// The state of the log, in one row.
const STATE: TableDefinition<'_, (), StateRow> = TableDefinition::new("state");

/// The position of each channel: number, last, evicted through. A removed channel is one without messages whose last
/// message is evicted.
const CHANNELS: TableDefinition<'_, &str, (u64, u64, u64)> = TableDefinition::new("channels");

/// Messages that were written together, under their channel and the last of them.
const MESSAGES: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("messages");

/// The idempotency keys of a clean shutdown: the epoch of their messages, and the seed of their hashes. A file of a
/// version without keys lacks this table and the next, and such a version ignores them.
const KEYS_STATE: TableDefinition<'_, (), (u64, u64, u64)> = TableDefinition::new("idempotency");

/// The idempotency keys, many in a row.
const KEYS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("idempotency_keys");

/// Bytes of a row of keys: with its overhead below 64 KiB, since the database gives a row a power of two.
const KEYS_ROW_BYTES: usize = 1_300 * KEY_BYTES;

/// The state of the log and the clocks, written with each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogState {
    pub(super) head: LogHead,
    /// The time of the log, in milliseconds.
    pub(super) log_ms: u64,
    pub(super) clocks: ClockSnapshot,
    /// The salt of client ids, which differ across restarts too.
    pub(super) clients: u32,
    /// The shutdown was clean: all is written.
    pub(super) is_clean: bool,
}

/// The reason why a file cannot be used.
#[derive(Debug)]
pub(super) enum Problem {
    Io(io::Error),
    InUse,
    NotRegular,
    Foreign,
    /// Its tables are of another version.
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
            // Its first bytes are not those of a database.
            redb::Error::Io(error) if error.kind() == ErrorKind::InvalidData => Problem::Foreign,
            redb::Error::Io(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Problem::Damaged("it ends too early".into())
            }
            redb::Error::Io(error) => Problem::Io(error),
            error => Problem::Other(error),
        }
    }
}

/// The contents of a file.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) state: LogState,
    pub(super) snapshot: Snapshot,
    /// The idempotency keys, if they are those of the state.
    pub(super) keys: Option<StoredKeys>,
}

/// A history file that is open, and locked.
#[derive(Debug)]
pub(super) struct Tables {
    database: Database,
}

impl Tables {
    /// Opens or creates the file, and verifies every checksum, also of pages that are not read.
    pub(super) fn open(path: &Path) -> Result<Tables, Problem> {
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(Problem::NotRegular),
            _ => {}
        }
        // Messages are for clients that may subscribe, not for all users of this machine.
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

    /// Reads the last commit; `None` if the file is new. The times of messages depend on the state.
    pub(super) fn read(
        &self,
        begin: impl FnOnce(&LogState) -> Snapshot,
    ) -> Result<Option<Contents>, Problem> {
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
        let (epoch, log_index, max_removed_index, log_ms, unix_ms, boot_ms, boot, clients, is_clean) =
            row.value();
        let head = LogHead { epoch, log_index, max_removed_index };
        let state =
            LogState { head, log_ms, clocks: ClockSnapshot { unix_ms, boot_ms, boot }, clients, is_clean };
        let (channels, messages) = (transaction.open_table(CHANNELS)?, transaction.open_table(MESSAGES)?);
        let mut snapshot = begin(&state);
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
            snapshot
                .put(name, ChannelPosition { number, last, evicted_through }, &bytes)
                .map_err(|_| Problem::Damaged(format!("channel {name} contradicts itself")))?;
        }
        if count != messages.len()? {
            return Err(Problem::Damaged("it has messages of a channel that is missing".into()));
        }
        let keys = read_keys(&transaction, &state)?;
        Ok(Some(Contents { state, snapshot, keys }))
    }

    /// Writes changes and the state of the log in one commit, and replaces the idempotency keys if they are given. If
    /// it `syncs`, this commit and all earlier ones are safe on the disk when it returns; otherwise they are after the
    /// next one that does.
    pub(super) fn write(
        &self,
        state: &LogState,
        changes: &[Change],
        keys: Option<&StoredKeys>,
        syncs: bool,
    ) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_two_phase_commit(true);
        transaction.set_durability(if syncs { Durability::Immediate } else { Durability::None })?;
        {
            let LogState { head, log_ms, clocks, clients, is_clean } = *state;
            let row = (
                head.epoch,
                head.log_index,
                head.max_removed_index,
                log_ms,
                clocks.unix_ms,
                clocks.boot_ms,
                clocks.boot,
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
        if let Some(keys) = keys {
            write_keys(&transaction, keys, state.head.epoch)?;
        }
        Ok(transaction.commit()?)
    }
}

/// Reads the idempotency keys, if the shutdown that wrote them was the last one, or all later servers have continued
/// its log: in another epoch, an id that was acknowledged may belong to no message.
fn read_keys(transaction: &ReadTransaction, state: &LogState) -> Result<Option<StoredKeys>, Problem> {
    let table = match transaction.open_table(KEYS_STATE) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let Some((epoch, first, second)) = table.get(())?.map(|row| row.value()) else { return Ok(None) };
    if !state.is_clean || epoch != state.head.epoch {
        return Ok(None);
    }
    let mut stored = StoredKeys { seed: [first, second], keys: Vec::new() };
    for row in transaction.open_table(KEYS)?.iter()? {
        stored.keys.extend_from_slice(row?.1.value());
    }
    Ok(Some(stored))
}

fn write_keys(transaction: &WriteTransaction, stored: &StoredKeys, epoch: u64) -> Result<(), redb::Error> {
    let [first, second] = stored.seed;
    transaction.open_table(KEYS_STATE)?.insert((), (epoch, first, second))?;
    transaction.delete_table(KEYS)?;
    let mut table = transaction.open_table(KEYS)?;
    for (number, row) in (0..).zip(stored.keys.chunks(KEYS_ROW_BYTES)) {
        table.insert(number, row)?;
    }
    Ok(())
}
