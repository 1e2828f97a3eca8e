//! `--backplane-wait-replicas`: acknowledgements wait until this number of replicas have their entries.

use std::collections::VecDeque;

use super::event::LinkNotice;
use super::line_limits::LineLimits;
use crate::time::LoopTime;

/// The replicas that are waited for.
#[derive(Debug)]
pub(super) struct ReplicaWait {
    /// How many; 0: none are waited for.
    wanted: u32,
    /// While they are waited for: when the reply must have arrived.
    until: Option<LoopTime>,
    /// Results about entries that are not read back yet: the number of the last one, and whether enough replicas have it.
    results: VecDeque<(u64, bool)>,
    /// True after the log line about missing replicas, until the one that they are back.
    lacks_replicas: bool,
    /// How many replicas had everything when they were last counted.
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

    /// When the reply must have arrived, while replicas are waited for.
    pub(super) fn until(&self) -> Option<LoopTime> {
        self.until
    }

    /// How many replicas had everything when they were last counted.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Waits that ended without enough replicas.
    pub(super) fn expired(&self) -> u64 {
        self.expired
    }

    /// The command was sent.
    pub(super) fn begin(&mut self, until: LoopTime) {
        self.until = Some(until);
    }

    /// Replicas were counted.
    pub(super) fn counted(&mut self, count: u64) {
        self.count = count;
    }

    /// This number of replicas have the entries up to `entry`. Returns the notice of a change.
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

    /// The next result, if the entries that it is about were applied: the number of the last one, and whether enough replicas
    /// have it.
    pub(super) fn next_result(&mut self, applied_number: u64) -> Option<(u64, bool)> {
        let &(upto, _) = self.results.front()?;
        if upto > applied_number {
            return None;
        }
        self.results.pop_front()
    }

    /// The link is lost. The next one waits for replicas after its first entries, which includes all entries before them.
    pub(super) fn lose_link(&mut self) {
        self.until = None;
        self.results.clear();
    }
}
