//! What a link reports: entries and markers to apply, losses, answers to publishers, and log lines.

use std::collections::VecDeque;
use std::fmt;

use super::entry::{BadEntry, Item, Items};
use super::remedy::remedy;
use super::resp::RespError;
use crate::ids::{MessageId, RunId};
use crate::plural::plural;

/// An event of a [`Link`](super::link::Link), in the order of the log.
#[derive(Debug)]
pub enum LinkEvent<'a, P> {
    /// The log is open: its identity and its end are known.
    Opened(OpenedLog),
    /// A block of client ids that no other process uses: one before the first [`LinkEvent::Up`], and more on request.
    ClientBlock(u64),
    /// The node has applied everything that the log contained when it was opened.
    Up {
        /// True if it is the first time since the start of the process.
        is_first: bool,
    },
    /// An entry to apply.
    Entry(LogEntry<'a, P>),
    /// An epoch begins.
    Marker(Marker),
    /// Messages are missing: all subscribers must be notified, before the next event.
    Discontinuity(LogDiscontinuity),
    /// Cursors before this id are incomplete for clients that attach from now on; attached subscribers miss nothing.
    RaiseEvicted {
        /// The last entry that was applied.
        upto: MessageId,
    },
    /// Publishes that are not acknowledged.
    Failed {
        /// The acknowledgements of the publishes, in the order of submission.
        pending: Vec<P>,
        /// The reason.
        why: PublishFailure,
    },
    /// The result of waiting for replicas (`--backplane-wait-replicas`), for entries that were read back.
    Replicated {
        /// The number of the last own entry.
        upto: u64,
        /// True if enough replicas have the entries.
        is_replicated: bool,
    },
    /// A line for the server's log.
    Notice(LinkNotice),
}

/// The log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedLog {
    /// The newest epoch, and the seq of its last item.
    pub end: MessageId,
    /// `same`, or the reason for which an epoch was begun: `new`, `damaged` or `moved`.
    pub reason: String,
    /// Identifies the log, also across epochs.
    pub birth: u32,
    /// Redis' time in ms.
    pub time_ms: u64,
}

/// An entry of the log.
#[derive(Debug)]
pub struct LogEntry<'a, P> {
    /// The id of its last item: the entry's id in the stream.
    pub last: MessageId,
    /// The seq of its first item.
    pub first_seq: u64,
    /// The process that appended it.
    pub run: RunId,
    /// True if this process appended it.
    pub is_own: bool,
    /// The number of the entry among those of that process.
    pub number: u64,
    /// True if nothing was read from the log before.
    pub is_first: bool,
    /// Redis' time in ms at which it was appended.
    pub time_ms: u64,
    /// Time in ms from the submission to now, of an own entry.
    pub round_trip_ms: Option<u32>,
    /// The size of the entry.
    pub bytes: usize,
    pub(super) items: Items<'a>,
    pub(super) next_index: u64,
    pub(super) pending: VecDeque<(u64, P)>,
}

/// An item of an entry.
#[derive(Debug)]
pub struct LogItem<'a, P> {
    /// The id of the item: for a message, the message's id.
    pub id: MessageId,
    /// The item.
    pub item: Item<'a>,
    /// The acknowledgement that waits for it.
    pub pending: Option<P>,
}

impl<'a, P> LogEntry<'a, P> {
    /// The next item. Items that a node does not use are skipped by calling this again.
    pub fn next_item(&mut self) -> Option<LogItem<'a, P>> {
        let item = self.items.next()?;
        let index = self.next_index;
        self.next_index += 1;
        let is_pending = self.pending.front().is_some_and(|(of, _)| *of == index);
        let pending = if is_pending { self.pending.pop_front().map(|(_, pending)| pending) } else { None };
        Some(LogItem { id: MessageId { epoch: self.last.epoch, seq: self.first_seq + index }, item, pending })
    }
}

/// Entries of one run that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingEntries {
    /// The run.
    pub run: RunId,
    /// The number of the first entry.
    pub first: u64,
    /// The number of the last entry.
    pub last: u64,
}

/// The begin of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The new epoch.
    pub epoch: u64,
    /// The seq before the first entry of the epoch that this node reads: 0 unless entries were trimmed.
    pub first_seq: u64,
    /// The last id that survived. 0-0 if nothing did, or if it is unknown.
    pub survived: MessageId,
    /// True if nothing was read from the log before.
    pub is_first: bool,
    /// Redis' time in ms.
    pub time_ms: u64,
    /// A loss up to the marker.
    pub discontinuity: Option<LogDiscontinuity>,
}

/// A point in a node's copy of the log before which the copy is incomplete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogDiscontinuity {
    /// The missing messages have ids greater than this one.
    pub after: MessageId,
    /// The copy is incomplete up to this id: everything that was applied, and the hole.
    pub upto: MessageId,
    /// The number of missing messages, if it is known.
    pub missed: Option<u64>,
    /// The rule that found it.
    pub cause: LossCause,
}

impl LogDiscontinuity {
    /// Returns true if the cursor `upto` is incomplete too, and not only those before it: the loss was found when it
    /// was the position, so clients may have received it as a cursor before anything was known.
    pub fn includes_upto(&self) -> bool {
        matches!(self.cause, LossCause::Jump | LossCause::Report | LossCause::RollCall)
    }
}

/// The rule that found a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// Entries were trimmed before this node read them.
    Trimmed,
    /// Entries of a node are missing before its next one.
    Jump,
    /// A new epoch has begun, and its data do not continue from this node's position.
    Marker,
    /// Another node has applied entries that this one has not.
    Report,
    /// A node has not reported.
    RollCall,
}

impl LossCause {
    /// Returns true if the messages were removed by the limits of the log, and not lost by a failure.
    pub fn is_eviction(self) -> bool {
        self == LossCause::Trimmed
    }

    /// One word for the server's log and for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            LossCause::Trimmed => "trimmed",
            LossCause::Jump => "jump",
            LossCause::Marker => "marker",
            LossCause::Report => "report",
            LossCause::RollCall => "roll_call",
        }
    }
}

/// The reason for which a publish is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishFailure {
    /// The message was not published: the log was not reachable for too long, or too many publishes wait for it.
    BackplaneDown,
    /// The message may or may not have been published.
    Unconfirmed,
    /// The message was not published: Redis is out of memory.
    BackplaneFull,
}

/// The reason for which a link was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkLoss {
    /// The driver reports a failed lookup, connect or handshake, an error of a socket, or its end.
    Connection(String),
    /// The replies of this phase did not arrive in time.
    Timeout(&'static str),
    /// A heartbeat was not read back in time.
    HeartbeatTimeout,
    /// The bytes are not RESP2.
    Resp(RespError),
    /// The reply is not one that the command has.
    UnexpectedReply(&'static str),
    /// An entry of the log does not parse.
    BadEntry(MessageId, BadEntry),
    /// An entry of the log was not written by this program.
    ForeignEntry(MessageId),
    /// Redis has replied with an error.
    ErrorReply {
        /// The command.
        command: &'static str,
        /// The text of the error.
        text: String,
    },
    /// The server's data is of an older epoch: it is probably a primary that was replaced.
    OlderPrimary(u64),
}

impl fmt::Display for LinkLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkLoss::Connection(text) => f.write_str(text),
            LinkLoss::Timeout(phase) => write!(f, "timeout: {phase}"),
            LinkLoss::HeartbeatTimeout => f.write_str("heartbeat timeout: own entries are not read back"),
            LinkLoss::Resp(error) => error.fmt(f),
            LinkLoss::UnexpectedReply(command) => write!(f, "unexpected reply to {command}"),
            LinkLoss::BadEntry(id, why) => {
                write!(
                    f,
                    "entry {id} of the log is invalid: {why}; if it is of another program, delete it (XDEL)"
                )
            }
            LinkLoss::ForeignEntry(id) => {
                write!(f, "entry {id} of the log is of another program: delete it (XDEL)")
            }
            LinkLoss::ErrorReply { command, text } => write!(f, "{command}: {text}"),
            LinkLoss::OlderPrimary(epoch) => {
                write!(f, "its data is of the older epoch {epoch}: probably a primary that was replaced")
            }
        }
    }
}

/// A line for the server's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNotice {
    /// The log was opened.
    Connected {
        /// The address of the server.
        address: String,
        /// The newest epoch.
        epoch: u64,
        /// How many items the node has to read, if it has read this epoch before.
        lag: Option<u64>,
    },
    /// The node has applied everything that the log contained when it was opened.
    Up {
        /// Time since the link was lost, or since the start.
        after_ms: u32,
    },
    /// The link was lost.
    Lost {
        /// The reason.
        reason: LinkLoss,
        /// The pause before the next attempt.
        retry_ms: u32,
    },
    /// An epoch begins.
    NewEpoch {
        /// The epoch.
        epoch: u64,
        /// Why it was begun.
        reason: String,
        /// The last id that survived.
        survived: MessageId,
        /// The last entry that this node has applied.
        position: MessageId,
    },
    /// Messages are missing.
    Discontinuity {
        /// The rule that found it.
        cause: LossCause,
        /// The entries that are missing, if their numbers are known.
        missing: Option<MissingEntries>,
    },
    /// Nodes have not reported after a marker.
    RollCallIncomplete {
        /// The runs of the nodes.
        runs: Vec<RunId>,
    },
    /// Redis may evict the keys of the log.
    MayEvict {
        /// The `maxmemory-policy` of Redis.
        policy: String,
    },
    /// A node is alive.
    NodeJoined(RunId),
    /// A node has sent nothing for 6 s.
    NodeTimedOut(RunId),
    /// A node has shut down.
    NodeShutDown(RunId),
    /// Redis rejects a command, and an operator must act.
    Rejected {
        /// The command.
        command: &'static str,
        /// The text of the error.
        text: String,
    },
    /// The log was written by a newer version of this program.
    NewerVersion {
        /// The text of the error.
        text: String,
    },
    /// Redis is out of memory.
    OutOfMemory,
    /// Fewer replicas than `--backplane-wait-replicas` requires have the last entries.
    ReplicasMissing {
        /// Number of replicas that have them.
        replicas: u64,
        /// Number of replicas that are required.
        wanted: u32,
    },
    /// Enough replicas have the last entries again.
    ReplicasBack {
        /// Number of replicas that have them.
        replicas: u64,
    },
}

impl LinkNotice {
    /// Returns true if the process must exit when this happens before the link was up for the first time: a wrong
    /// password or permission at the start is a mistake in the configuration.
    pub fn is_fatal_at_start(&self) -> bool {
        matches!(self, LinkNotice::Rejected { .. } | LinkNotice::NewerVersion { .. })
    }

    /// The level of the line.
    pub fn level(&self) -> log::Level {
        match self {
            LinkNotice::Connected { .. }
            | LinkNotice::Up { .. }
            | LinkNotice::ReplicasBack { .. }
            | LinkNotice::NodeJoined(_)
            | LinkNotice::NodeTimedOut(_)
            | LinkNotice::NodeShutDown(_) => log::Level::Info,
            LinkNotice::Lost { .. }
            | LinkNotice::NewEpoch { .. }
            | LinkNotice::Discontinuity { .. }
            | LinkNotice::RollCallIncomplete { .. }
            | LinkNotice::ReplicasMissing { .. }
            | LinkNotice::MayEvict { .. } => log::Level::Warn,
            LinkNotice::Rejected { .. } | LinkNotice::NewerVersion { .. } | LinkNotice::OutOfMemory => {
                log::Level::Error
            }
        }
    }
}

impl fmt::Display for LinkNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("backplane: ")?;
        match self {
            LinkNotice::Connected { address, epoch, lag: Some(lag) } => {
                write!(f, "connected to {address}, epoch {epoch}, lag {}", plural(*lag, "item"))
            }
            LinkNotice::Connected { address, epoch, lag: None } => {
                write!(f, "connected to {address}, epoch {epoch}, reading it from the start")
            }
            LinkNotice::Up { after_ms } => write!(f, "up after {after_ms} ms"),
            LinkNotice::Lost { reason, retry_ms } => {
                write!(f, "connection lost: {reason}; retrying in {retry_ms} ms")
            }
            LinkNotice::NewEpoch { epoch, reason, survived, position } => {
                write!(f, "new epoch {epoch} reason={reason} last_survived={survived} position={position}")
            }
            LinkNotice::Discontinuity { cause, missing: Some(MissingEntries { run, first, last }) } => {
                let cause = cause.as_str();
                write!(f, "discontinuity reason={cause} run={run} numbers={first}..{last} channels=all")
            }
            LinkNotice::Discontinuity { cause, missing: None } => {
                write!(f, "discontinuity reason={} channels=all", cause.as_str())
            }
            LinkNotice::RollCallIncomplete { runs } => {
                f.write_str("roll call incomplete, missing runs ")?;
                for (at, run) in runs.iter().take(10).enumerate() {
                    write!(f, "{}{run}", if at == 0 { "" } else { "," })?;
                }
                if runs.len() > 10 { write!(f, " and {} more", runs.len() - 10) } else { Ok(()) }
            }
            LinkNotice::MayEvict { policy } => write!(
                f,
                "maxmemory-policy {policy}: Redis may evict the log, a gap for all subscribers; run CONFIG SET \
                 maxmemory-policy noeviction, and change the configuration file of Redis"
            ),
            LinkNotice::NodeJoined(run) => write!(f, "node {run} joined"),
            LinkNotice::NodeTimedOut(run) => write!(f, "node {run} timed out"),
            LinkNotice::NodeShutDown(run) => write!(f, "node {run} shut down"),
            LinkNotice::Rejected { command, text } => match remedy(command, text) {
                Some(remedy) => write!(f, "{command} rejected: {}; {remedy}", text.trim_end_matches('.')),
                None => write!(f, "{command} rejected: {text}"),
            },
            LinkNotice::NewerVersion { text } => {
                write!(f, "the log was written by a newer version of this program: {text}")
            }
            LinkNotice::ReplicasMissing { replicas, wanted } => {
                write!(
                    f,
                    "replicas with the last entries: {replicas} of {wanted}; publishes are unconfirmed: check the replicas and --backplane-wait-timeout-ms"
                )
            }
            LinkNotice::ReplicasBack { replicas } => {
                write!(f, "replicas with the last entries: {replicas}; publishes are acknowledged again")
            }
            LinkNotice::OutOfMemory => {
                f.write_str("Redis is out of memory: publishes are rejected; raise maxmemory, well above --backplane-bytes-max")
            }
        }
    }
}
