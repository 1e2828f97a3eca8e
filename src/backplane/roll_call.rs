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

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::block_set::BlockSet;
use crate::ids::{MessageId, RunId};

/// A node without an entry for this long, in ms, has timed out: three of its heartbeats are missing.
pub(super) const LIVE_MS: u64 = 6_000;

/// A node whose last entry is older than this when an epoch ends, in ms, need not report. It is longer than [`LIVE_MS`],
/// since a node that has timed out may only have been stopped or cut off: it continues, publishes, and the entry may be
/// lost with the log before another node has read it. If it then crashes, its missing report is all that shows the
/// loss. The price is a needless gap if the log begins a new epoch within a minute of a node's crash.
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

/// Entries that this node has applied and the log has lost. Their nodes send them again, and this node skips them then:
/// a client that moves here from another node before that misses them.
#[derive(Clone, Debug)]
struct Ahead {
    /// Runs, and the number of the last entry of each that this node has applied.
    awaited: BTreeMap<RunId, u64>,
    /// After this log time no run sends them again. `None` until this node's report is read, which the others wait for.
    deadline_ms: Option<u64>,
}

/// The number of an entry, compared with the last one of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Numbering {
    /// The next entry of its run, or the first one that this node reads.
    Next,
    /// The entry was applied before.
    Duplicate,
    /// Entries from this number on are missing.
    Jump { first_missing: u64 },
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
    /// Entries ahead of the log, by the epoch of the marker.
    ahead: BTreeMap<u64, Ahead>,
    changes: Vec<Membership>,
}

impl RollCall {
    /// An empty table for a log whose entries are kept for `age_ms`.
    pub(super) fn new(age_ms: u64) -> RollCall {
        RollCall { memory_ms: age_ms.saturating_mul(2), ..RollCall::default() }
    }

    /// Redis' time of the last entry, in ms.
    pub(super) fn redis_ms(&self) -> u64 {
        self.redis_ms
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
        let (last, announced) = match self.runs.get(&run) {
            Some(state) => (state.last_number, state.announced_through),
            None if self.has_caught_up => (0, 0),
            None => return Numbering::Next,
        };
        if number <= last {
            Numbering::Duplicate
        } else if number == last + 1 {
            Numbering::Next
        } else if number - 1 <= announced {
            Numbering::AnnouncedJump
        } else {
            Numbering::Jump { first_missing: last.max(announced) + 1 }
        }
    }

    /// Records that an entry is applied. Returns true if an earlier copy of it may have been trimmed unread: then
    /// cursors from other nodes before this entry are incomplete.
    pub(super) fn apply(&mut self, run: RunId, number: u64, id: MessageId, is_resent: bool) -> bool {
        self.applied_ms = self.now_ms;
        self.settle(run, number);
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
        });
        if !state.is_live() {
            state.presence = Presence::Live;
            self.changes.push(Membership::Joined(run));
        }
        state.is_aligned |= !is_resent;
        (state.last_number, state.last_id) = (number, id);
        state.seen_ms = self.now_ms;
        !state.is_aligned
    }

    /// Records that a run has reached this number again, or has passed it.
    fn settle(&mut self, run: RunId, number: u64) {
        for ahead in self.ahead.values_mut() {
            if ahead.awaited.get(&run).is_some_and(|awaited| *awaited <= number) {
                ahead.awaited.remove(&run);
            }
        }
    }

    /// Records that an entry is skipped as a duplicate.
    pub(super) fn skip(&mut self, run: RunId, number: u64) {
        self.settle(run, number);
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
        self.runs.values_mut().for_each(|state| state.is_aligned = false);
        if let Some(epoch) = epoch {
            let awaited = self.numbers().collect();
            let deadline_ms = Some(self.now_ms.saturating_add(REPORT_TIMEOUT_MS));
            self.ahead.insert(epoch, Ahead { awaited, deadline_ms });
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

    /// Begins a roll call for a marker that was read: every run that may have published before it must report. `position` is
    /// that of this node before the marker, `survived` the last id that the log still has.
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
            self.ahead.insert(epoch, Ahead { awaited, deadline_ms: None });
        }
        let shared_id = if position < survived { position } else { survived };
        self.shared_id = Some(shared_id);
        // No node could append during the outage, so the end of the previous epoch decides which nodes may have
        // published. One that has shut down publishes nothing more.
        let since = self.applied_ms.saturating_sub(EXPECTED_MS);
        let is_expected = |state: &RunState| {
            state.presence != Presence::ShutDown && state.seen_ms >= since && state.last_number > 0
        };
        let expected =
            self.runs.iter().filter(|(_, state)| is_expected(state)).map(|(run, _)| *run).collect();
        self.calls.push(Call {
            epoch,
            shared_id,
            deadline_ms: self.now_ms.saturating_add(REPORT_TIMEOUT_MS),
            expected,
        });
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
        if is_own && let Some(ahead) = self.ahead.get_mut(&epoch) {
            ahead.deadline_ms = Some(deadline_ms);
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
        let (before, now) = (self.ahead.len(), self.now_ms);
        self.ahead.retain(|_, ahead| match ahead.deadline_ms {
            Some(deadline_ms) => !ahead.awaited.is_empty() && now <= deadline_ms,
            None => true,
        });
        self.ahead.len() < before
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64) -> MessageId {
        MessageId { epoch: 1, seq }
    }

    /// A table of a node that has caught up and has read one entry of each of these runs, numbered 1.
    fn table(runs: &[u32]) -> RollCall {
        let mut table = RollCall::new(300_000);
        table.catch_up();
        table.advance(1_000_000);
        for &run in runs {
            assert_eq!(table.compare(RunId(run), 1), Numbering::Next);
            assert!(!table.apply(RunId(run), 1, id(u64::from(run)), false));
        }
        while table.next_change().is_some() {}
        table
    }

    #[test]
    fn numbers_are_next_duplicate_or_a_jump() {
        let table = table(&[7]);
        assert_eq!(table.compare(RunId(7), 2), Numbering::Next);
        assert_eq!(table.compare(RunId(7), 1), Numbering::Duplicate);
        assert_eq!(table.compare(RunId(7), 4), Numbering::Jump { first_missing: 2 });
        // An unknown run is new, and begins with 1, but not during the first catch-up.
        assert_eq!(table.compare(RunId(8), 3), Numbering::Jump { first_missing: 1 });
        assert_eq!(RollCall::new(1).compare(RunId(8), 3), Numbering::Next);
    }

    #[test]
    fn run_that_does_not_report_is_a_loss_after_ten_seconds() {
        let mut table = table(&[1, 2]);
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(1), true, 5, [].into_iter());
        table.advance(1_010_000);
        assert_eq!(table.next_loss(), None);
        table.advance(1_010_001);
        assert_eq!(table.next_loss(), Some(Loss::RollCall { after: id(9), runs: vec![RunId(2)] }));
        assert_eq!(table.next_loss(), None);
    }

    #[test]
    fn run_that_has_timed_out_must_report_for_a_minute() {
        for (silence_ms, is_expected) in [(6_001, true), (60_000, true), (60_001, false)] {
            let mut table = table(&[1, 2]);
            for time_ms in [2_000, 4_000, 6_001, silence_ms] {
                table.advance(1_000_000 + time_ms);
                table.apply(RunId(1), time_ms, id(time_ms), false);
            }
            assert_eq!(table.next_change(), Some(Membership::TimedOut(RunId(2))));
            table.begin_epoch(5, id(9), id(9), false);
            table.report(RunId(1), true, 5, [].into_iter());
            table.advance(1_100_000);
            let loss = Loss::RollCall { after: id(9), runs: vec![RunId(2)] };
            assert_eq!(table.next_loss(), is_expected.then_some(loss), "{silence_ms} ms");
        }
    }

    #[test]
    fn run_that_has_shut_down_need_not_report() {
        let mut table = table(&[1, 2]);
        table.apply(RunId(2), 2, id(5), false);
        table.shut_down(RunId(2));
        assert_eq!((table.next_change(), table.live()), (Some(Membership::ShutDown(RunId(2))), 1));
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(1), true, 5, [].into_iter());
        table.advance(1_100_000);
        assert_eq!(table.next_loss(), None);
    }

    #[test]
    fn entry_that_another_node_has_applied_is_a_loss_once() {
        let mut table = table(&[1, 2]);
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(1), true, 5, [].into_iter());
        table.report(RunId(3), false, 5, [(RunId(1), 1), (RunId(2), 4)].into_iter());
        assert_eq!(table.next_loss(), None, "run 2 may send them again");
        table.report(RunId(2), false, 5, [].into_iter());
        assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (2, 4) }));
        assert_eq!(table.next_loss(), None);
        table.report(RunId(4), false, 5, [(RunId(2), 4)].into_iter());
        assert_eq!(table.next_loss(), None);
        assert_eq!(table.compare(RunId(2), 5), Numbering::AnnouncedJump);
    }

    /// A run that has published on an old primary meanwhile jumps over more than other nodes could report.
    #[test]
    fn jump_over_more_than_was_announced_is_a_loss_of_the_rest() {
        let mut table = table(&[1, 2]);
        table.begin_epoch(5, id(9), id(9), false);
        table.report(RunId(3), false, 5, [(RunId(2), 4)].into_iter());
        table.advance(1_010_001);
        assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (2, 4) }));
        assert_eq!(table.compare(RunId(2), 7), Numbering::Jump { first_missing: 5 });
        table.report(RunId(1), true, 5, [(RunId(2), 6)].into_iter());
        table.report(RunId(2), false, 5, [].into_iter());
        assert_eq!(table.next_loss(), Some(Loss::Report { run: RunId(2), numbers: (5, 6) }));
    }

    #[test]
    fn run_whose_entries_the_log_still_has_is_not_reported() {
        let mut table = table(&[1, 2]);
        table.apply(RunId(1), 2, id(7), false);
        table.apply(RunId(2), 2, id(8), false);
        assert_eq!(table.numbers_after(id(7)).collect::<Vec<_>>(), [(RunId(2), 2)]);
        assert_eq!(table.numbers_after(id(8)).count(), 0);
    }

    #[test]
    fn clock_that_is_set_back_expires_nothing() {
        let mut table = table(&[1]);
        table.begin_epoch(5, id(9), id(9), false);
        table.advance(1_000);
        assert_eq!((table.next_loss(), table.next_change()), (None, None));
        table.advance(11_000);
        assert_eq!(table.next_loss(), None);
        table.advance(11_001);
        assert_eq!(table.next_loss(), Some(Loss::RollCall { after: id(9), runs: vec![RunId(1)] }));
    }

    /// The node is ahead until the other runs have sent the entries again that it has applied, or no longer can.
    #[test]
    fn node_is_ahead_until_lost_entries_are_sent_again() {
        let ahead = || {
            let mut table = table(&[1, 2, 3]);
            table.begin_epoch(5, id(1), id(1), true);
            assert!(table.is_ahead() && !table.end_ahead());
            table
        };
        let mut table = ahead();
        table.skip(RunId(3), 1);
        table.apply(RunId(2), 2, id(20), false);
        assert!(!table.end_ahead(), "the own report was not read");
        table.report(RunId(1), true, 5, [].into_iter());
        assert!(table.end_ahead() && !table.is_ahead());
        // Run 3 has ended.
        let mut table = ahead();
        table.report(RunId(1), true, 5, [].into_iter());
        table.skip(RunId(2), 1);
        table.advance(1_010_000);
        assert!(!table.end_ahead());
        table.advance(1_010_001);
        assert!(table.end_ahead());
    }

    #[test]
    fn nodes_are_not_timed_out_by_an_outage_of_the_log() {
        let mut table = table(&[1, 2]);
        table.advance(1_060_000);
        table.apply(RunId(1), 2, id(3), false);
        assert_eq!((table.next_change(), table.live()), (None, 2));
        // Node 1 sends heartbeats again, node 2 does not.
        for (number, time_ms) in [(3, 1_062_000), (4, 1_064_000), (5, 1_066_000)] {
            table.advance(time_ms);
            assert_eq!(table.next_change(), None);
            table.apply(RunId(1), number, id(number), false);
        }
        table.advance(1_067_000);
        assert_eq!((table.next_change(), table.live()), (Some(Membership::TimedOut(RunId(2))), 1));
        assert_eq!(table.next_change(), None);
    }

    #[test]
    fn times_near_the_end_of_the_clock_do_not_overflow() {
        let mut table = table(&[1]);
        for time_ms in [u64::MAX, u64::MAX] {
            table.advance(time_ms);
            table.begin_epoch(5, id(9), id(9), false);
            table.report(RunId(1), true, 5, [(RunId(2), u64::MAX)].into_iter());
            table.lose_range(Some(6));
            table.apply(RunId(1), u64::MAX, id(u64::MAX), false);
            while table.next_loss().is_some() {}
        }
        assert_eq!(table.compare(RunId(1), u64::MAX), Numbering::Duplicate);
    }

    #[test]
    fn table_of_runs_is_bounded() {
        let mut table = table(&[]);
        for run in 0..2 * RUNS_MAX as u32 {
            table.apply(RunId(run), 1, id(1), false);
        }
        assert_eq!(table.runs.len(), RUNS_MAX);
    }
}
