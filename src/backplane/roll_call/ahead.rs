//! Entries that this node has applied and the log has lost.
//!
//! Their nodes send them again, and this node skips them then. A client that moves here from another node before that
//! misses them.

use std::collections::BTreeMap;

use crate::ids::RunId;

/// The entries of all epochs that this node has applied and the log has lost.
#[derive(Debug, Default)]
pub(super) struct AheadEntries {
    /// By the epoch of the marker.
    epochs: BTreeMap<u64, AheadOfEpoch>,
}

#[derive(Debug)]
struct AheadOfEpoch {
    /// Runs, and the number of the last entry of each that this node has applied.
    awaited: BTreeMap<RunId, u64>,
    /// After this log time no run sends them again. `None` until this node's report is read, which the others wait for.
    deadline_ms: Option<u64>,
}

impl AheadEntries {
    /// Records entries that were lost with an epoch's begin. `awaited`: runs, and the number of the last entry of each.
    pub(super) fn begin(&mut self, epoch: u64, awaited: BTreeMap<RunId, u64>, deadline_ms: Option<u64>) {
        self.epochs.insert(epoch, AheadOfEpoch { awaited, deadline_ms });
    }

    /// Records that a run has reached this number again, or has passed it.
    pub(super) fn reach(&mut self, run: RunId, number: u64) {
        for AheadOfEpoch { awaited, .. } in self.epochs.values_mut() {
            if awaited.get(&run).is_some_and(|awaited| *awaited <= number) {
                awaited.remove(&run);
            }
        }
    }

    /// Records that this node's report for an epoch was read.
    pub(super) fn report_was_read(&mut self, epoch: u64, deadline_ms: u64) {
        if let Some(ahead) = self.epochs.get_mut(&epoch) {
            ahead.deadline_ms = Some(deadline_ms);
        }
    }

    /// Returns true if the log has lost no entry that this node has applied.
    pub(super) fn is_empty(&self) -> bool {
        self.epochs.is_empty()
    }

    /// Removes the entries of epochs that were sent again, or whose deadline has expired. Returns true if there were
    /// any.
    pub(super) fn end_expired(&mut self, now_ms: u64) -> bool {
        let before = self.epochs.len();
        self.epochs.retain(|_, AheadOfEpoch { awaited, deadline_ms }| match *deadline_ms {
            Some(deadline_ms) => !awaited.is_empty() && now_ms <= deadline_ms,
            None => true,
        });
        self.epochs.len() < before
    }
}
