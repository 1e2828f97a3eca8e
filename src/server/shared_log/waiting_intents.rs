//! Intents of connections that wait until this node has read a shared log up to its present end.

use std::collections::{HashMap, VecDeque};

use crate::ids::SlotId;
use crate::session::intent::Intent;
use crate::time::LoopTime;

/// The waiting intents of all connections.
#[derive(Debug, Default)]
pub(super) struct WaitingIntents {
    /// By connection: a subscription or query with a cursor that is ahead of this node, and the later intents.
    intents: HashMap<SlotId, Vec<Intent>>,
    /// The connections, in the order of the entries that they wait for. Some may have closed.
    barriers: VecDeque<Barrier>,
    /// The connection whose next intent is applied without waiting again.
    released: Option<SlotId>,
}

/// An own entry that has to be read back before the intents of a connection are applied.
#[derive(Clone, Copy, Debug)]
pub(super) struct Barrier {
    pub(super) slot: SlotId,
    /// The number of the entry.
    pub(super) number: u64,
    pub(super) deadline: LoopTime,
}

/// The intents of a connection that no longer wait.
#[derive(Debug)]
pub(super) struct ReleasedIntents {
    pub(super) slot: SlotId,
    pub(super) intents: Vec<Intent>,
    /// False if the deadline expired before the entry was read back.
    pub(super) is_applied: bool,
}

impl WaitingIntents {
    /// Returns true if intents of the connection wait.
    pub(super) fn contains(&self, slot: SlotId) -> bool {
        self.intents.contains_key(&slot)
    }

    /// Makes the next intents of a connection wait.
    pub(super) fn begin(&mut self, barrier: Barrier) {
        self.intents.insert(barrier.slot, Vec::new());
        self.barriers.push_back(barrier);
    }

    /// Adds an intent of a connection that waits.
    pub(super) fn push(&mut self, slot: SlotId, intent: Intent) {
        if let Some(intents) = self.intents.get_mut(&slot) {
            intents.push(intent);
        }
    }

    /// Takes the intents of the next connection whose entry was read back, or whose deadline has expired.
    /// `applied_number`: the last own entry that was read back; `None` if that is unknown.
    pub(super) fn release_next(
        &mut self,
        applied_number: Option<u64>,
        now: LoopTime,
    ) -> Option<ReleasedIntents> {
        loop {
            let Barrier { slot, number, deadline } = *self.barriers.front()?;
            let is_applied = applied_number.is_some_and(|applied| applied >= number);
            if !is_applied && !deadline.is_due(now) {
                return None;
            }
            self.barriers.pop_front();
            if let Some(intents) = self.intents.remove(&slot) {
                return Some(ReleasedIntents { slot, intents, is_applied });
            }
        }
    }

    /// Lets the next intent of a connection pass.
    pub(super) fn pass_next(&mut self, slot: SlotId) {
        self.released = Some(slot);
    }

    /// Returns true if the intent of a connection is to pass, once after [`WaitingIntents::pass_next`].
    pub(super) fn take_pass(&mut self, slot: SlotId) -> bool {
        self.released.take_if(|released| *released == slot).is_some()
    }

    /// The earliest deadline.
    pub(super) fn deadline(&self) -> Option<LoopTime> {
        self.barriers.front().map(|barrier| barrier.deadline)
    }

    /// Drops the intents of a connection that has ended.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.intents.remove(&slot);
    }
}
