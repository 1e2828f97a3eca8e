//! Acknowledgements that wait for replicas (`--backplane-wait-replicas`).
//!
//! The messages were read back from the log and are delivered; only their acknowledgements wait. They are sent in the
//! order of the log when enough replicas have the entry, and become `unconfirmed` if too few replicas have it in time,
//! or if the entry is lost with its primary.

use super::engine::Engine;
use super::pending_publish::PendingPublish;
use super::unreplicated_publish::UnreplicatedPublish;
use crate::hub::Published;
use crate::ids::MessageId;
use crate::net::transport::Transport;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Responds to the publisher of a message that was applied: now, or when replicas have its entry.
    pub(super) fn finish_applied_publish(
        &mut self,
        number: u64,
        id: MessageId,
        pending: PendingPublish,
        outcome: Result<Published, Rejection>,
        now: LoopTime,
    ) {
        match &mut self.shared_log {
            Some(log) if log.waits_for_replicas => {
                let deadline = now.after(log.publish_timeout_ms);
                log.unreplicated.push_back(UnreplicatedPublish { number, id, deadline, pending, outcome });
            }
            _ => self.finish_publish(&pending, outcome, now),
        }
    }

    /// Sends a publisher its acknowledgement or rejection, and the close frame that has waited for it.
    pub(super) fn finish_publish(
        &mut self,
        pending: &PendingPublish,
        outcome: Result<Published, Rejection>,
        now: LoopTime,
    ) {
        let close = self.count_finished(pending);
        match outcome {
            Ok(published) => self.acknowledge(pending, published, now),
            Err(rejection) => self.reject_publish(pending, rejection, now),
        }
        if let Some(close) = close {
            self.queue_close_frame(pending.slot, close.close_frame, now);
        }
    }

    /// Responds to the publishers of this node's entries up to number `upto`. `is_replicated` is false if too few
    /// replicas have them.
    pub(super) fn release_unreplicated_publishes(&mut self, upto: u64, is_replicated: bool, now: LoopTime) {
        while let Some(unreplicated) = self.take_unreplicated(|unreplicated| unreplicated.number <= upto) {
            self.finish_unreplicated(unreplicated, is_replicated, now);
        }
    }

    /// Reports the messages after the last id that survived in a new epoch as unconfirmed.
    pub(super) fn fail_lost_publishes(&mut self, survived: MessageId, now: LoopTime) {
        let Some(log) = &mut self.shared_log else { return };
        let kept = log.unreplicated.partition_point(|unreplicated| unreplicated.id <= survived);
        for unreplicated in log.unreplicated.split_off(kept) {
            self.finish_unreplicated(unreplicated, false, now);
        }
    }

    /// Reports the messages whose deadline has expired while the log cannot be reached as unconfirmed.
    pub(super) fn expire_unreplicated_publishes(&mut self, now: LoopTime) {
        while let Some(unreplicated) =
            self.take_unreplicated(|unreplicated| unreplicated.deadline.is_due(now))
        {
            self.finish_unreplicated(unreplicated, false, now);
        }
    }

    fn take_unreplicated(
        &mut self,
        is_due: impl Fn(&UnreplicatedPublish) -> bool,
    ) -> Option<UnreplicatedPublish> {
        let unreplicated = &mut self.shared_log.as_mut()?.unreplicated;
        if unreplicated.front().is_some_and(is_due) { unreplicated.pop_front() } else { None }
    }

    fn finish_unreplicated(&mut self, unreplicated: UnreplicatedPublish, is_replicated: bool, now: LoopTime) {
        let UnreplicatedPublish { pending, mut outcome, .. } = unreplicated;
        if outcome.is_ok() && !is_replicated {
            self.shared.metrics.backplane_unconfirmed += 1;
            outcome = Err(Rejection::Unconfirmed);
        }
        self.finish_publish(&pending, outcome, now);
    }
}
