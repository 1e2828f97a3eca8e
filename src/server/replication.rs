//! Answers to publishers that wait for replicas (`--backplane-wait-replicas`).
//!
//! The messages were read back from the log and are delivered; only their acknowledgements wait. They are given in the order
//! of the log when enough replicas have the entry, and become `unconfirmed` if not, or if the entry is lost with its primary.

use super::engine::Engine;
use super::held_answer::HeldAnswer;
use super::pending_publish::PendingPublish;
use crate::hub::Published;
use crate::ids::MessageId;
use crate::net::transport::Transport;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Answers the publisher of a message that was applied: now, or when replicas have its entry.
    pub(super) fn answer_applied(
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
                log.held.push_back(HeldAnswer { number, id, deadline, pending, outcome });
            }
            _ => self.answer(&pending, outcome, now),
        }
    }

    /// Answers a publisher, and closes its connection if that has waited for the answer.
    pub(super) fn answer(
        &mut self,
        pending: &PendingPublish,
        outcome: Result<Published, Rejection>,
        now: LoopTime,
    ) {
        let close = self.count_answered(pending);
        match outcome {
            Ok(published) => self.acknowledge(pending, published, now),
            Err(rejection) => self.reject_publish(pending, rejection, now),
        }
        if let Some(close) = close {
            self.queue_close_frame(pending.slot, close.close_frame, now);
        }
    }

    /// Replicas were waited for, up to this own entry.
    pub(super) fn release_held_answers(&mut self, upto: u64, is_replicated: bool, now: LoopTime) {
        while let Some(held) = self.take_held(|held| held.number <= upto) {
            self.release(held, is_replicated, now);
        }
    }

    /// Ends the waiting of messages after the last id that has survived in a new epoch.
    pub(super) fn fail_lost_answers(&mut self, survived: MessageId, now: LoopTime) {
        let place = |id: MessageId| (id.epoch, id.seq);
        let Some(log) = &mut self.shared_log else { return };
        let kept = log.held.partition_point(|held| place(held.id) <= place(survived));
        for held in log.held.split_off(kept) {
            self.release(held, false, now);
        }
    }

    /// Ends the waiting of messages while the log cannot be reached.
    pub(super) fn expire_held_answers(&mut self, now: LoopTime) {
        while let Some(held) = self.take_held(|held| held.deadline.is_due(now)) {
            self.release(held, false, now);
        }
    }

    fn take_held(&mut self, is_due: impl Fn(&HeldAnswer) -> bool) -> Option<HeldAnswer> {
        let held = &mut self.shared_log.as_mut()?.held;
        if held.front().is_some_and(is_due) { held.pop_front() } else { None }
    }

    fn release(&mut self, held: HeldAnswer, is_replicated: bool, now: LoopTime) {
        let HeldAnswer { pending, mut outcome, .. } = held;
        if outcome.is_ok() && !is_replicated {
            self.shared.metrics.backplane_unconfirmed += 1;
            outcome = Err(Rejection::Unconfirmed);
        }
        self.answer(&pending, outcome, now);
    }
}
