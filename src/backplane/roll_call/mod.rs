//! The roll call: the numbers of all nodes' entries, the nodes that are alive, and the losses that they show.
//!
//! Each node numbers its entries without holes. A reader that knows the last number of every run therefore finds each
//! entry that the log lost as a jump, and each entry that was sent twice as a number that it has applied before. Jumps
//! need a next entry of the same run. For nodes that are no longer running there are two more rules: after the marker
//! of an epoch every node appends a report of the numbers that it has applied, and every node that may have
//! published before it must report.
//!
//! All times are *log time*: the sum of the forward steps of Redis' clock, so a clock that is set back neither expires
//! nor postpones a deadline, and none expires while the link is lost. The node's own heartbeats keep log time running.

mod ahead;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::block_set::BlockSet;
use crate::ids::{MessageId, RunId};
use ahead::AheadEntries;

/// A node without an entry for this long, in ms, has timed out: three of its heartbeats are missing.
pub(super) const LIVE_MS: u64 = 6_000;

/// A node whose last entry is older than this when an epoch ends, in ms, need not report. It is longer than
/// [`LIVE_MS`], since a node that has timed out may only have been stopped or cut off: it continues, publishes, and the
/// entry may be lost with the log before another node has read it. If it then crashes, its missing report is all that
/// shows the loss. The price is a needless gap if the log begins a new epoch within a minute of a node's crash.
const EXPECTED_MS: u64 = 60_000;

/// Maximum time in ms for the reports after a marker. A link is re-established within 2 s of a failover's end.
const REPORT_TIMEOUT_MS: u64 = 10_000;

/// If no node has appended anything for this long, in ms, the log itself was unavailable: every node sends a heartbeat
/// every 2 s.
const OUTAGE_MS: u64 = LIVE_MS / 2;

/// The blocks of client ids of a node are not used again for this long after its last entry, in ms: a node that was
/// started again every second would otherwise use up all of them.
const BLOCK_MS: u64 = 60_000;

/// Time between two looks at all runs, in ms.
const SWEEP_MS: u64 = 500;

/// Maximum number of runs in the table. A run takes 104 bytes, and is forgotten when its entries are trimmed.
const RUNS_MAX: usize = super::entry::REPORTED_RUNS_MAX;

/// Maximum number of markers whose reports are awaited; the hub's table of epochs has as many rows.
const MARKERS_MAX: usize = 64;

/// The contents of the last heartbeat of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeHeartbeat {
    /// Open connections.
    pub connections: u32,
    /// Subscriptions.
    pub subscriptions: u32,
    /// The version of the program: 8 bits each for major, minor and patch.
    pub version: u32,
    /// The node's blocks of client ids.
    pub blocks: BlockSet,
}

/// A node that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveNode {
    /// The run of the node.
    pub run: RunId,
    /// The last heartbeat of the node.
    pub heartbeat: NodeHeartbeat,
    /// Time of the log since its last entry, in ms.
    pub seen_ms: u64,
}

/// Whether a node is alive, as far as the log shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Live,
    TimedOut,
    ShutDown,
}

/// The state of one run, as far as this node has read it.
#[derive(Clone, Copy, Debug)]
struct RunState {
    heartbeat: NodeHeartbeat,
    /// The number of the run's last entry that was applied.
    last_number: u64,
    /// The id of that entry.
    last_id: MessageId,
    /// Log time of that entry.
    seen_ms: u64,
    presence: Presence,
    /// The last number whose loss was announced before the run was read again; 0 if none was.
    announced_through: u64,
    /// True if an entry that was sent once was applied since the start or the last trimmed range. Until then a copy may
    /// be the second one of an entry whose first copy was trimmed.
    is_aligned: bool,
    /// True if its next entries may be in a range that was trimmed unread.
    may_be_trimmed: bool,
}

impl RunState {
    fn is_live(&self) -> bool {
        self.presence == Presence::Live
    }

    /// The last number that was applied, or whose loss was announced.
    fn known_through(&self) -> u64 {
        self.last_number.max(self.announced_through)
    }
}

/// The nodes that must report after a marker.
#[derive(Clone, Debug)]
struct Call {
    epoch: u64,
    shared_id: MessageId,
    deadline_ms: u64,
    expected: BTreeSet<RunId>,
}

/// Entries that another node has applied, and this node has not.
#[derive(Clone, Copy, Debug)]
struct Missing {
    epoch: u64,
    number: u64,
    deadline_ms: u64,
}

/// The number of an entry, compared with the last one of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbering {
    /// The next entry of its run, or the first one that this node reads.
    Next,
    /// The entry was applied before.
    Duplicate,
    /// Entries from this number on are missing. They may have been trimmed unread.
    Jump { first_missing: u64, may_be_trimmed: bool },
    /// Entries are missing, and the loss of all of them was announced.
    AnnouncedJump,
}

/// A loss that a report or the end of a roll call shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Another node has applied the run's entries from one number to another, and the run does not send them again.
    Report { run: RunId, numbers: (u64, u64) },
    /// Nodes have not reported, so it is unknown whether their acknowledged messages are lost.
    RollCall { after: MessageId, runs: Vec<RunId> },
}

/// A change of the nodes that are alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    Joined(RunId),
    TimedOut(RunId),
    ShutDown(RunId),
}

/// The numbers and the state of all runs.
#[derive(Debug, Default)]
pub(super) struct RollCall {
    /// The run of this node.
    own_run: RunId,
    runs: BTreeMap<RunId, RunState>,
    /// True once the node has reached the end of the log. A run that is unknown later is new.
    has_caught_up: bool,
    /// Log time.
    now_ms: u64,
    /// Redis' time of the last entry, in ms.
    redis_ms: u64,
    /// Log time of the last entry that was applied.
    applied_ms: u64,
    /// How long a run is remembered after its last entry, in ms.
    memory_ms: u64,
    /// Log time at which the last outage has ended; kept until every node must have sent a heartbeat again.
    outage_ended_ms: Option<u64>,
    /// Log time of the next look at all runs.
    next_sweep_ms: u64,
    calls: Vec<Call>,
    /// The last id before the latest marker that this node has applied and the log still has.
    shared_id: Option<MessageId>,
    missing: BTreeMap<RunId, Missing>,
    /// Epochs of markers, and runs whose reports for them were read.
    reported: VecDeque<(u64, BTreeSet<RunId>)>,
    ahead: AheadEntries,
    changes: Vec<Membership>,
}

impl RollCall {
    /// An empty table of the node `own_run`, for a log whose entries are kept for `age_ms`.
    pub(super) fn new(own_run: RunId, age_ms: u64) -> RollCall {
        RollCall { own_run, memory_ms: age_ms.saturating_mul(2), ..RollCall::default() }
    }

    /// Advances log time to that of an entry or marker.
    pub(super) fn advance(&mut self, redis_ms: u64) {
        if self.redis_ms > 0 {
            let step = redis_ms.saturating_sub(self.redis_ms);
            self.now_ms = self.now_ms.saturating_add(step);
            if step > OUTAGE_MS && self.has_caught_up {
                self.outage_ended_ms = Some(self.now_ms);
            }
        }
        self.redis_ms = redis_ms;
        if self.now_ms < self.next_sweep_ms {
            return;
        }
        self.next_sweep_ms = self.now_ms.saturating_add(SWEEP_MS);
        let expired = self.now_ms.saturating_sub(LIVE_MS);
        // After an outage, every node gets the time to send its next heartbeats.
        self.outage_ended_ms.take_if(|ended| *ended < expired);
        for (run, state) in &mut self.runs {
            if state.is_live() && state.seen_ms < expired && self.outage_ended_ms.is_none() {
                state.presence = Presence::TimedOut;
                self.changes.push(Membership::TimedOut(*run));
            }
        }
        let forgotten = self.now_ms.saturating_sub(self.memory_ms);
        if self.runs.len() > RUNS_MAX / 2 {
            self.runs.retain(|_, state| state.is_live() || state.seen_ms >= forgotten);
        }
    }

    /// Records that the node has reached the end of the log.
    pub(super) fn catch_up(&mut self) {
        self.has_caught_up = true;
    }

    /// Compares the number of an entry with the last one of its run.
    pub(super) fn compare(&self, run: RunId, number: u64) -> Numbering {
        let (last, known_through, may_be_trimmed) = match self.runs.get(&run) {
            Some(state) => (state.last_number, state.known_through(), state.may_be_trimmed),
            None if self.has_caught_up => (0, 0, false),
            None => return Numbering::Next,
        };
        if number <= last {
            Numbering::Duplicate
        } else if number == last + 1 {
            Numbering::Next
        } else if number - 1 <= known_through {
            Numbering::AnnouncedJump
        } else {
            Numbering::Jump { first_missing: known_through + 1, may_be_trimmed }
        }
    }

    /// Records that an entry is applied. Returns true if an earlier copy of it may have been trimmed unread: then
    /// cursors from other nodes before this entry are incomplete.
    pub(super) fn apply(&mut self, run: RunId, number: u64, id: MessageId, is_resent: bool) -> bool {
        self.applied_ms = self.now_ms;
        self.ahead.reach(run, number);
        if self.runs.len() >= RUNS_MAX && !self.runs.contains_key(&run) {
            let oldest = self.runs.iter().min_by_key(|(_, state)| state.seen_ms).map(|(run, _)| *run);
            oldest.and_then(|run| self.runs.remove(&run));
        }
        let state = self.runs.entry(run).or_insert(RunState {
            heartbeat: NodeHeartbeat::default(),
            last_number: 0,
            last_id: id,
            seen_ms: 0,
            presence: Presence::TimedOut,
            announced_through: 0,
            is_aligned: false,
            may_be_trimmed: false,
        });
        if !state.is_live() {
            state.presence = Presence::Live;
            self.changes.push(Membership::Joined(run));
        }
        state.is_aligned |= !is_resent;
        state.may_be_trimmed = false;
        (state.last_number, state.last_id) = (number, id);
        state.seen_ms = self.now_ms;
        !state.is_aligned
    }

    /// Records that an entry is skipped as a duplicate.
    pub(super) fn skip(&mut self, run: RunId, number: u64) {
        self.ahead.reach(run, number);
    }

    /// The id after which entries of a run are missing: the id of its last applied entry. Without one, they follow the
    /// latest marker's `shared_id`, since this node has everything before that.
    pub(super) fn loss_after(&self, run: RunId) -> Option<MessageId> {
        self.runs
            .get(&run)
            .filter(|state| state.last_number > 0)
            .map(|state| state.last_id)
            .or(self.shared_id)
    }

    /// Records that a range of the log was trimmed unread. `epoch`: the marker of this epoch is part of it, so this
    /// node does not know where the data of the previous epochs ended.
    pub(super) fn lose_range(&mut self, epoch: Option<u64>) {
        for state in self.runs.values_mut() {
            (state.is_aligned, state.may_be_trimmed) = (false, true);
        }
        if let Some(epoch) = epoch {
            let awaited = self.numbers().collect();
            let deadline_ms = Some(self.now_ms.saturating_add(REPORT_TIMEOUT_MS));
            self.ahead.begin(epoch, awaited, deadline_ms);
        }
    }

    /// Records that a node has sent its last entry.
    pub(super) fn shut_down(&mut self, run: RunId) {
        if let Some(state) = self.runs.get_mut(&run)
            && state.is_live()
        {
            state.presence = Presence::ShutDown;
            // A node that has shut down has no connections.
            state.heartbeat.blocks = BlockSet::default();
            self.changes.push(Membership::ShutDown(run));
        }
        self.calls.iter_mut().for_each(|call| {
            call.expected.remove(&run);
        });
    }

    /// Begins a roll call for a marker that was read: every run that may have published before it must report.
    /// `position` is that of this node before the marker, `survived` the last id that the log still has.
    pub(super) fn begin_epoch(
        &mut self,
        epoch: u64,
        position: MessageId,
        survived: MessageId,
        is_loss: bool,
    ) {
        if is_loss {
            let is_lost = |state: &RunState| state.last_id > survived;
            let lost = self.runs.iter().filter(|(_, state)| is_lost(state));
            let awaited = lost.map(|(run, state)| (*run, state.last_number)).collect();
            self.ahead.begin(epoch, awaited, None);
        }
        let shared_id = if position < survived { position } else { survived };
        self.shared_id = Some(shared_id);
        // No node could append during the outage, so the end of the previous epoch decides which nodes may have
        // published. One that has shut down publishes nothing more. This node has all of its own messages, and reads its
        // own report late if it was cut off.
        let since = self.applied_ms.saturating_sub(EXPECTED_MS);
        let is_expected = |run: RunId, state: &RunState| {
            run != self.own_run
                && state.presence != Presence::ShutDown
                && state.seen_ms >= since
                && state.last_number > 0
        };
        let runs = self.runs.iter().filter(|(run, state)| is_expected(**run, state));
        let mut call = Call {
            epoch,
            shared_id,
            deadline_ms: self.now_ms.saturating_add(REPORT_TIMEOUT_MS),
            expected: runs.map(|(run, _)| *run).collect(),
        };
        // The log has lost a marker that is later than the last id that survived. Nodes that have not read it cannot
        // report for it, and report for this one.
        for lost in self.calls.extract_if(.., |call| call.epoch > survived.epoch) {
            call.expected.extend(lost.expected);
            call.shared_id = call.shared_id.min(lost.shared_id);
        }
        self.calls.push(call);
        self.reported.push_back((epoch, BTreeSet::new()));
        if self.reported.len() > MARKERS_MAX {
            self.reported.pop_front();
        }
    }

    /// Records a report that was read.
    pub(super) fn report(
        &mut self,
        run: RunId,
        is_own: bool,
        epoch: u64,
        numbers: impl Iterator<Item = (RunId, u64)>,
    ) {
        if let Some((_, runs)) = self.reported.iter_mut().find(|(marker, _)| *marker == epoch) {
            runs.insert(run);
        }
        for call in self.calls.iter_mut().filter(|call| call.epoch == epoch) {
            call.expected.remove(&run);
        }
        let deadline_ms = self.now_ms.saturating_add(REPORT_TIMEOUT_MS);
        for (other, number) in numbers {
            let known = self.runs.get(&other).map_or(0, RunState::known_through);
            if known < number && self.missing.len() < RUNS_MAX {
                let missing = self.missing.entry(other).or_insert(Missing { epoch, number, deadline_ms });
                missing.number = missing.number.max(number);
            }
        }
        if is_own {
            self.ahead.report_was_read(epoch, deadline_ms);
        }
    }

    /// The last number of each run that this node has applied.
    fn numbers(&self) -> impl Iterator<Item = (RunId, u64)> + '_ {
        self.runs.iter().map(|(run, state)| (*run, state.last_number))
    }

    /// The last number of each run whose last entry is later than the last id that survived, for this node's report.
    /// All other entries are in the log, or were trimmed from it: a node that started later has never read the trimmed
    /// ones, and would report them as lost.
    pub(super) fn numbers_after(&self, survived: MessageId) -> impl Iterator<Item = (RunId, u64)> + '_ {
        let later = self.runs.iter().filter(move |(_, state)| state.last_id > survived);
        later.map(|(run, state)| (*run, state.last_number))
    }

    /// The next loss that is certain now.
    pub(super) fn next_loss(&mut self) -> Option<Loss> {
        let (runs, now) = (&self.runs, self.now_ms);
        let known = |run: &RunId| runs.get(run).map_or(0, RunState::known_through);
        self.missing.retain(|run, missing| known(run) < missing.number);
        let certain = self.missing.iter().find(|(run, missing)| {
            let has_reported =
                |(epoch, runs): &(u64, BTreeSet<RunId>)| *epoch == missing.epoch && runs.contains(run);
            now > missing.deadline_ms || self.reported.iter().any(has_reported)
        });
        if let Some((&run, &Missing { number, .. })) = certain {
            self.missing.remove(&run);
            let numbers = (known(&run) + 1, number);
            if let Some(state) = self.runs.get_mut(&run) {
                state.announced_through = number;
            }
            return Some(Loss::Report { run, numbers });
        }
        self.calls.retain(|call| !call.expected.is_empty());
        let expired = self.calls.iter().position(|call| now > call.deadline_ms)?;
        let Call { shared_id, expected, .. } = self.calls.remove(expired);
        Some(Loss::RollCall { after: shared_id, runs: expected.into_iter().collect() })
    }

    /// Returns true if this node has applied entries that the log has lost, and that other nodes may receive yet: a
    /// client that attaches with a cursor was on another node, and may miss them.
    pub(super) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Returns true if a time in which this node was ahead of the log has ended: cursors of other nodes before the
    /// position are incomplete here.
    pub(super) fn end_ahead(&mut self) -> bool {
        self.ahead.end_expired(self.now_ms)
    }

    /// Nodes that are alive.
    pub(super) fn live(&self) -> usize {
        self.live_runs().count()
    }

    /// Records a heartbeat.
    pub(super) fn heartbeat(&mut self, run: RunId, heartbeat: NodeHeartbeat) {
        if let Some(state) = self.runs.get_mut(&run) {
            state.heartbeat = heartbeat;
        }
    }

    /// Returns true if another node has a block with the same client ids. It may be silent for a while, and its clients
    /// stay connected.
    pub(super) fn has_block(&self, own_run: RunId, block: u64) -> bool {
        let since = self.now_ms.saturating_sub(BLOCK_MS);
        let mut others = self.runs.iter().filter(|(run, state)| **run != own_run && state.seen_ms >= since);
        others.any(|(_, state)| state.heartbeat.blocks.contains(block))
    }

    /// The nodes that are alive, in the order of their runs.
    pub(super) fn live_nodes(&self) -> impl Iterator<Item = LiveNode> + '_ {
        let live = self.runs.iter().filter(|(_, state)| state.is_live());
        live.map(|(run, state)| LiveNode {
            run: *run,
            heartbeat: state.heartbeat,
            seen_ms: self.now_ms.saturating_sub(state.seen_ms),
        })
    }

    /// The runs of the nodes that are alive.
    pub(super) fn live_runs(&self) -> impl Iterator<Item = RunId> + '_ {
        self.runs.iter().filter(|(_, state)| state.is_live()).map(|(run, _)| *run)
    }

    /// The next change of the nodes that are alive. Changes from before the end of the log was reached are not
    /// reported.
    pub(super) fn next_change(&mut self) -> Option<Membership> {
        if !self.has_caught_up {
            self.changes.clear();
        }
        if self.changes.is_empty() { None } else { Some(self.changes.remove(0)) }
    }
}
