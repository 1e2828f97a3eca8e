//! The lines that a link writes to the server's log, and the reasons for which it is lost.

use std::fmt;

use super::discontinuity::{LossCause, MissingEntries};
use super::entry::BadEntry;
use super::remedy::remedy;
use super::resp::RespError;
use crate::ids::{MessageId, RunId};
use crate::plural::plural;

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
                let cause = cause.reason().as_str();
                write!(f, "discontinuity reason={cause} run={run} numbers={first}..{last} channels=all")
            }
            LinkNotice::Discontinuity { cause, missing: None } => {
                write!(f, "discontinuity reason={} channels=all", cause.reason().as_str())
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
