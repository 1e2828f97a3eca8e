//! `--backplane-wait-replicas`: acknowledgements wait until this number of replicas have their entries.

use std::collections::VecDeque;

use super::line_limits::LineLimits;
use super::notice::LinkNotice;
use crate::time::LoopTime;

/// The state of waiting for replicas.
#[derive(Debug)]
pub(super) struct ReplicaWait {
    /// Required number of replicas; 0: entries do not wait.
    wanted: u32,
    /// The deadline of the reply to `WAIT`, while one is in flight.
    until: Option<LoopTime>,
    /// Results for entries that are not read back yet: the number of the last entry, and whether enough replicas have
    /// it.
    results: VecDeque<(u64, bool)>,
    /// True from the log line about missing replicas to the one about enough replicas.
    lacks_replicas: bool,
    /// Number of replicas that had all entries when they were last counted.
    count: u64,
    /// Waits that ended without enough replicas.
    expired: u64,
}

impl ReplicaWait {
    pub(super) fn new(wanted: u32) -> ReplicaWait {
        ReplicaWait {
            wanted,
            until: None,
            results: VecDeque::new(),
            lacks_replicas: false,
            count: 0,
            expired: 0,
        }
    }

    /// Returns true if entries are followed by a wait.
    pub(super) fn is_enabled(&self) -> bool {
        self.wanted > 0
    }

    /// The deadline of the reply to `WAIT`, while one is in flight.
    pub(super) fn until(&self) -> Option<LoopTime> {
        self.until
    }

    /// Number of replicas that had all entries when they were last counted.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Waits that ended without enough replicas.
    pub(super) fn expired(&self) -> u64 {
        self.expired
    }

    /// Records that `WAIT` was sent.
    pub(super) fn begin(&mut self, until: LoopTime) {
        self.until = Some(until);
    }

    /// Records the number of replicas.
    pub(super) fn counted(&mut self, count: u64) {
        self.count = count;
    }

    /// Records that this number of replicas have the entries up to `entry`. Returns a notice if that is a change.
    pub(super) fn end(
        &mut self,
        entry: u64,
        replicas: u64,
        lines: &mut LineLimits,
        now: LoopTime,
    ) -> Option<LinkNotice> {
        let wanted = self.wanted;
        let is_replicated = replicas >= u64::from(wanted);
        self.until = None;
        self.count = replicas;
        self.expired += u64::from(!is_replicated);
        self.results.push_back((entry, is_replicated));
        if is_replicated && std::mem::take(&mut self.lacks_replicas) {
            return Some(LinkNotice::ReplicasBack { replicas });
        }
        if is_replicated || self.lacks_replicas || !lines.logs_replicas(now) {
            return None;
        }
        self.lacks_replicas = true;
        Some(LinkNotice::ReplicasMissing { replicas, wanted })
    }

    /// The next result, if its entries were applied: the number of the last entry, and whether enough replicas have it.
    pub(super) fn next_result(&mut self, applied_number: u64) -> Option<(u64, bool)> {
        let &(upto, _) = self.results.front()?;
        if upto > applied_number {
            return None;
        }
        self.results.pop_front()
    }

    /// Records that the link is lost. The next link waits for replicas after its first entries, which covers all
    /// entries before them.
    pub(super) fn lose_link(&mut self) {
        self.until = None;
        self.results.clear();
    }
}
