//! Acknowledgements that wait for replicas (`--backplane-wait-replicas`).
//!
//! The messages were read back from the log and are delivered; only their acknowledgements wait. They are sent in the
//! order of the log when enough replicas have the entry, and become `unconfirmed` if too few replicas have it in time,
//! or if the entry is lost with its primary.

use super::SharedLog;
use super::unreplicated_publishes::UnreplicatedPublish;
use crate::hub::Published;
use crate::ids::MessageId;
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::server::pending_publish::PendingPublish;
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
            Some(SharedLog { unreplicated: Some(unreplicated), publish_timeout_ms, .. }) => {
                let deadline = now.after(*publish_timeout_ms);
                unreplicated.push(UnreplicatedPublish { number, id, deadline, pending, outcome });
            }
            _ => self.finish_publish(&pending, outcome, now),
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
        let unreplicated = self.shared_log.as_mut().and_then(|log| log.unreplicated.as_mut());
        for unreplicated in unreplicated.map(|publishes| publishes.take_after(survived)).unwrap_or_default() {
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
        self.shared_log.as_mut()?.unreplicated.as_mut()?.take_oldest(is_due)
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
