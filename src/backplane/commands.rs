//! The commands that a link sends, and the keys of the log.

use super::resp::command;
use crate::ids::{MessageId, RunId};

/// Opens the log; begins an epoch if its data was replaced.
const OPEN_LUA: &str = include_str!("open.lua");

/// Appends an entry.
const APPEND_LUA: &str = include_str!("append.lua");

/// Maximum number of entries in one reply of `XREAD`. With 16, a node that catches up costs Redis 3.2 times the
/// processor time (entries of 1.6 KB, measured with Redis 7.0).
const READ_COUNT: &[u8] = b"64";

/// How long `XREAD` waits for an entry, in ms. Heartbeats end it earlier; a reply without entries shows that the
/// connection works while nothing can be appended.
const READ_BLOCK_MS: &[u8] = b"2500";

/// A command whose reply has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SentCommand {
    Auth,
    Select,
    SetName,
    LoadOpen,
    LoadAppend,
    InfoMemory,
    /// The epoch of the state.
    StateEpoch,
    Open,
    /// The script `open` on an open link, which allocates another block of client ids.
    AllocateBlock,
    /// An entry with this number.
    Append(u64),
    /// `WAIT` for replicas, with the number of the last entry that they must have.
    Wait(u64),
    /// `WAIT 0`, which returns at once.
    CountReplicas,
}

impl SentCommand {
    /// The command as an operator knows it, and as ACL rules name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            SentCommand::Auth => "AUTH",
            SentCommand::Select => "SELECT",
            SentCommand::SetName => "CLIENT SETNAME",
            SentCommand::LoadOpen | SentCommand::LoadAppend => "SCRIPT LOAD",
            SentCommand::InfoMemory => "INFO",
            SentCommand::StateEpoch => "HMGET",
            SentCommand::Open | SentCommand::AllocateBlock | SentCommand::Append(_) => "EVALSHA",
            SentCommand::Wait(_) | SentCommand::CountReplicas => "WAIT",
        }
    }
}

/// Encodes commands for one log. Both keys have one hash tag, so they are in one slot of a Redis Cluster.
#[derive(Debug)]
pub(super) struct Commands {
    log: Vec<u8>,
    state: Vec<u8>,
    /// The SHA-1 of the scripts, as `SCRIPT LOAD` returned them.
    pub(super) open_sha: Vec<u8>,
    pub(super) append_sha: Vec<u8>,
}

/// The arguments of `open`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenArguments {
    /// Identifies the log if it is created now.
    pub(super) birth: u32,
    pub(super) allocates_block: bool,
    pub(super) position: MessageId,
    /// From 1 to 1,000,000.
    pub(super) random: u64,
}

/// An entry as an argument of the script `append`.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryToAppend<'a> {
    pub(super) run: RunId,
    /// The entry's number in the run.
    pub(super) number: u64,
    /// The number of the entry before it if that one is in flight too, or else 0.
    pub(super) after: u64,
    /// The number of its items.
    pub(super) count: u64,
    pub(super) bytes: &'a [u8],
}

impl Commands {
    pub(super) fn new(name: &str) -> Commands {
        Commands {
            log: format!("{{oyez:{name}}}:log").into_bytes(),
            state: format!("{{oyez:{name}}}:state").into_bytes(),
            open_sha: Vec::new(),
            append_sha: Vec::new(),
        }
    }

    pub(super) fn load_scripts(out: &mut Vec<u8>) {
        command(out, &[b"SCRIPT", b"LOAD", OPEN_LUA.as_bytes()]);
        command(out, &[b"SCRIPT", b"LOAD", APPEND_LUA.as_bytes()]);
    }

    pub(super) fn state_epoch(&self, out: &mut Vec<u8>) {
        command(out, &[b"HMGET", &self.state, b"epoch"]);
    }

    pub(super) fn open(&self, out: &mut Vec<u8>, arguments: OpenArguments) {
        let OpenArguments { birth, allocates_block, position, random } = arguments;
        let (epoch, seq) = (position.epoch.to_string(), position.seq.to_string());
        let flag: &[u8] = if allocates_block { b"1" } else { b"0" };
        command(
            out,
            &[
                b"EVALSHA",
                &self.open_sha,
                b"2",
                &self.log,
                &self.state,
                format!("{birth:08x}").as_bytes(),
                flag,
                epoch.as_bytes(),
                seq.as_bytes(),
                random.to_string().as_bytes(),
            ],
        );
    }

    /// Appends an entry to the epoch of `applied`, if the log contains that id and the entry before of the same run.
    pub(super) fn append(
        &self,
        out: &mut Vec<u8>,
        applied: MessageId,
        entry: EntryToAppend<'_>,
        oldest_kept: MessageId,
    ) {
        let EntryToAppend { run, number, after, count, bytes } = entry;
        command(
            out,
            &[
                b"EVALSHA",
                &self.append_sha,
                b"2",
                &self.log,
                &self.state,
                applied.epoch.to_string().as_bytes(),
                applied.seq.to_string().as_bytes(),
                count.to_string().as_bytes(),
                bytes,
                oldest_kept.to_string().as_bytes(),
                run.to_string().as_bytes(),
                number.to_string().as_bytes(),
                after.to_string().as_bytes(),
            ],
        );
    }

    /// Waits until this number of replicas have everything that the connection has written. The reply is the number of
    /// replicas that have it. Redis executes later commands of the connection after that.
    pub(super) fn wait(out: &mut Vec<u8>, replicas: u32, timeout_ms: u32) {
        command(out, &[b"WAIT", replicas.to_string().as_bytes(), timeout_ms.to_string().as_bytes()]);
    }

    pub(super) fn read(&self, out: &mut Vec<u8>, position: MessageId) {
        let position = position.to_string();
        command(
            out,
            &[
                b"XREAD",
                b"COUNT",
                READ_COUNT,
                b"BLOCK",
                READ_BLOCK_MS,
                b"STREAMS",
                &self.log,
                position.as_bytes(),
            ],
        );
    }
}
