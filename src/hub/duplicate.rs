//! Messages that are sent again under an idempotency key: the hub's side of [`super::idempotency`].

use super::idempotency::{IdempotencyKey, KeyUse};
use super::{Hub, Published};
use crate::ids::MessageId;
use crate::time::LoopTime;
use crate::wire::Kind;

/// An idempotency key that was used before.
#[derive(Clone, Copy, Debug)]
pub enum Duplicate {
    /// The key was used with the same payload: the message is already published.
    Same(Published),
    /// With another payload: the publisher has used the key for two messages, and the second one is not published.
    OtherPayload,
}

impl Hub {
    /// Finds the message that was published under a key before.
    pub fn find_duplicate(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        now: LoopTime,
    ) -> Option<Duplicate> {
        Some(match self.idempotency.find(key, kind, payload, now)? {
            KeyUse::SamePayload(log_index) => {
                let subscribers = self.info(key.channel).subscribers;
                Duplicate::Same(Published { id: self.id(log_index), log_index, subscribers })
            }
            KeyUse::OtherPayload => Duplicate::OtherPayload,
        })
    }

    /// Forgets an idempotency key that was recorded with this message or an earlier one.
    pub fn forget_key_until(&mut self, key: IdempotencyKey<'_>, message: MessageId) {
        if let Ok(log_index) = self.epochs.log_index(message, self.log_index) {
            self.idempotency.forget_until(key, log_index);
        }
    }

    /// Records the key of a published message.
    pub fn record_key(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        log_index: u64,
        now: LoopTime,
    ) {
        self.idempotency.record(key, kind, payload, log_index, now);
    }

    /// Identifies the table of idempotency keys. It continues with a history file.
    pub fn key_table_id(&self) -> u32 {
        self.idempotency.table_id()
    }

    /// Derives the order in which idempotency keys are evicted from the identity of a shared log.
    pub fn seed_idempotency(&mut self, birth: u32) {
        self.idempotency.seed(u64::from(birth));
    }

    /// Forgets the idempotency keys of messages after a log index, which a shared log has lost: all nodes must know the
    /// same keys.
    pub fn forget_keys_after(&mut self, log_index: u64) {
        self.idempotency.forget_after(log_index);
    }

    /// Forgets expired idempotency keys, by the time of the log.
    pub fn expire_keys(&mut self, log_time: LoopTime) {
        self.idempotency.expire(log_time);
    }
}
