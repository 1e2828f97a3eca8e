//! Gauges and counters of the link to a log that several nodes share.

use super::label_values::label_values;

label_values! {
    /// What an error reply of the log's server means.
    pub enum ErrorKind {
        /// Another node has begun an epoch, or the scripts are not loaded.
        Epoch = "epoch",
        /// Another server has the keys.
        Moved = "moved",
        /// The server cannot serve now.
        Unavailable = "unavailable",
        /// The server has no memory for an entry.
        OutOfMemory = "out_of_memory",
        /// The log is newer than this program.
        NewerVersion = "newer_version",
        /// Permissions, password, or keys of another program.
        Rejected = "rejected",
    }
}

label_values! {
    /// The rule that found a loss.
    pub enum LossReason {
        /// Entries were trimmed before this node read them.
        Trimmed = "trimmed",
        /// Entries of a node are missing before its next one.
        Jump = "jump",
        /// A new epoch does not continue from this node's position.
        Marker = "marker",
        /// Another node has applied entries that this one has not.
        Report = "report",
        /// A node has not reported.
        RollCall = "roll_call",
    }
}

label_values! {
    /// Why an epoch began.
    pub enum EpochReason {
        /// The log was empty.
        New = "new",
        /// The log was changed by another program.
        Damaged = "damaged",
        /// Another primary, or a restart.
        Moved = "moved",
        /// A reason that this version does not know.
        Other = "other",
    }
}

impl EpochReason {
    /// The reason that a marker names.
    pub fn of(word: &str) -> EpochReason {
        EpochReason::ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(EpochReason::Other)
    }
}

label_values! {
    /// The node of an entry.
    pub enum EntrySource {
        /// This node.
        Own = "own",
        /// Another node.
        Other = "other",
    }
}

/// Gauges and counters of the link to a log that several nodes share.
#[derive(Clone, Copy, Debug, Default)]
pub struct BackplaneStats {
    /// True if the node has applied everything that the log contained when the link was opened.
    pub is_up: bool,
    /// Number of live nodes, this node included.
    pub nodes: usize,
    /// Items of the log that this node knows of and has not applied.
    pub lag_items: u64,
    /// How long the oldest own entry waits to be read back, in ms: 0 if none was sent.
    pub lag_ms: u32,
    /// Bytes of publishes that are not acknowledged.
    pub pending_bytes: usize,
    /// Publishes that are not acknowledged.
    pub pending: usize,
    /// Bytes of the log's entries.
    pub log_bytes: u64,
    /// Links that were opened.
    pub links_opened: u64,
    /// Links that were lost, and attempts that failed.
    pub links_lost: u64,
    /// Error replies.
    pub errors: [u64; ErrorKind::COUNT],
    /// Replicas that had the last entries at the end of the last wait.
    pub replicas: u64,
    /// Number of waits that ended with too few replicas.
    pub waits_expired: u64,
    /// Counters of the entries that were read from the log.
    pub read: ReadCounters,
}

/// Counters of the entries that were read from the log since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadCounters {
    /// Entries that were applied.
    pub entries: [u64; EntrySource::COUNT],
    /// Items of these entries.
    pub items: [u64; EntrySource::COUNT],
    /// Entries that were skipped as duplicates.
    pub duplicates: u64,
    /// Losses that all subscribers were notified of.
    pub discontinuities: [u64; LossReason::COUNT],
    /// Epochs that began.
    pub epochs: [u64; EpochReason::COUNT],
}
