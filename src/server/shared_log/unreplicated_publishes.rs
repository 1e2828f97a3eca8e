//! Messages that were applied, and whose acknowledgements wait for replicas (`--backplane-wait-replicas`).

use std::collections::VecDeque;

use crate::hub::Published;
use crate::ids::MessageId;
use crate::server::pending_publish::PendingPublish;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

/// A message whose acknowledgement waits for replicas.
#[derive(Debug)]
pub(super) struct UnreplicatedPublish {
    /// The number of the message's entry, counted by this node.
    pub(super) number: u64,
    /// The message's position in the log.
    pub(super) id: MessageId,
    /// When it becomes `unconfirmed`, while the log cannot be reached.
    pub(super) deadline: LoopTime,
    pub(super) pending: PendingPublish,
    pub(super) outcome: Result<Published, Rejection>,
}

/// The messages whose acknowledgements wait for replicas, in the order of the log.
#[derive(Debug, Default)]
pub(super) struct UnreplicatedPublishes(VecDeque<UnreplicatedPublish>);

impl UnreplicatedPublishes {
    /// Adds a message, which is later in the log than all others.
    pub(super) fn push(&mut self, publish: UnreplicatedPublish) {
        self.0.push_back(publish);
    }

    /// Takes the oldest message if the predicate selects it.
    pub(super) fn take_oldest(
        &mut self,
        is_due: impl Fn(&UnreplicatedPublish) -> bool,
    ) -> Option<UnreplicatedPublish> {
        if self.0.front().is_some_and(is_due) { self.0.pop_front() } else { None }
    }

    /// Takes the messages after this position of the log.
    pub(super) fn take_after(&mut self, survived: MessageId) -> VecDeque<UnreplicatedPublish> {
        let kept = self.0.partition_point(|publish| publish.id <= survived);
        self.0.split_off(kept)
    }

    /// The earliest deadline.
    pub(super) fn deadline(&self) -> Option<LoopTime> {
        self.0.front().map(|publish| publish.deadline)
    }
}
