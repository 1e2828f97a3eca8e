//! Idempotency keys, as they are encoded for the history file.
//!
//! They are written once, at a clean shutdown, since only then the next server continues with the same ids, which the
//! acknowledgement of a repeated message has. A key is stored as the fingerprint under which it is looked up, so the
//! file has neither keys nor publishers in clear.
//!
//! Numbers are little-endian and of fixed width. The storage has to detect corruption.

use super::Hub;
use super::idempotency::StoredKey;
use super::persist::LogTime;

/// The encoded bytes of a key: fingerprint, publisher, payload, message, time of the log.
pub const KEY_BYTES: usize = 48;

/// The keys of a hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredKeys {
    /// The seed of the hashes.
    pub seed: [u64; 2],
    /// The keys, each of [`KEY_BYTES`], in no order.
    pub keys: Vec<u8>,
}

/// Bytes that are not stored keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidKeys;

impl Hub {
    /// Encodes the idempotency keys.
    pub fn stored_keys(&self, log_time: LogTime) -> StoredKeys {
        let mut keys = Vec::new();
        for StoredKey { fingerprint, owner, payload, log_index, at } in self.idempotency.stored() {
            let age_ms = u64::from(log_time.now.millis_since(at));
            let at = log_time.millis.saturating_sub(age_ms);
            for number in [fingerprint[0], fingerprint[1], owner, payload, log_index, at] {
                keys.extend_from_slice(&number.to_le_bytes());
            }
        }
        StoredKeys { seed: self.idempotency.hash_seed(), keys }
    }

    /// Continues with stored keys, as far as the present limits allow. The hub must have none.
    ///
    /// # Errors
    /// The bytes are not what [`Hub::stored_keys`] encodes for this log. The hub must not be used then.
    pub fn restore_keys(&mut self, stored: &StoredKeys, log_time: LogTime) -> Result<(), InvalidKeys> {
        let (rows, []) = stored.keys.as_chunks::<KEY_BYTES>() else { return Err(InvalidKeys) };
        let mut keys: Vec<StoredKey> = rows.iter().map(|row| decode(row, log_time)).collect();
        keys.sort_unstable_by_key(|key| key.log_index);
        if keys.last().is_some_and(|last| last.log_index > self.log_index) {
            return Err(InvalidKeys);
        }
        self.idempotency.restore(stored.seed, &keys).then_some(()).ok_or(InvalidKeys)
    }
}

fn decode(row: &[u8; KEY_BYTES], log_time: LogTime) -> StoredKey {
    let mut numbers = [0; KEY_BYTES / 8];
    for (number, bytes) in numbers.iter_mut().zip(row.as_chunks().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    let [first, second, owner, payload, log_index, at] = numbers;
    // A key lives for at most a day, the maximum of its flag; a `LoopTime` spans only weeks.
    let age_ms = log_time.millis.saturating_sub(at).min(u64::from(u32::MAX / 4)) as u32;
    StoredKey { fingerprint: [first, second], owner, payload, log_index, at: log_time.now.before(age_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::identity::ClientIdentity;
    use crate::config::{IdempotencyLimits, Limits};
    use crate::hub::Duplicate;
    use crate::hub::idempotency::IdempotencyKey;
    use crate::time::LoopTime;
    use crate::wire::Kind;

    fn limits() -> Limits {
        let idempotency = IdempotencyLimits { keys_max: 100, age_ms: 1_000 };
        Limits { idempotency, ..Limits::default() }
    }

    fn at(loop_ms: u64, millis: u64) -> LogTime {
        LogTime { now: LoopTime::from_millis(loop_ms), millis }
    }

    fn key(key: &str) -> IdempotencyKey<'_> {
        IdempotencyKey { channel: "a", owner: ClientIdentity::Network(1), key }
    }

    /// A hub whose log has ten messages, with a key that was used at the loop's time 400.
    fn hub() -> Hub {
        let mut hub = Hub { log_index: 10, ..Hub::new(&limits(), 1) };
        hub.record_key(key("k"), Kind::Text, b"x", 10, LoopTime::from_millis(400));
        hub
    }

    #[test]
    fn age_of_a_key_continues_by_the_time_of_the_log() {
        let stored = hub().stored_keys(at(900, 10_900));
        assert_eq!(stored.keys.len(), KEY_BYTES);
        // Another loop, 300 ms later.
        let restore = || {
            let mut hub = Hub { log_index: 10, ..Hub::new(&limits(), 1) };
            hub.restore_keys(&stored, at(7, 11_200)).unwrap();
            hub
        };
        let is_known = |loop_ms| {
            let now = LoopTime::from_millis(loop_ms);
            let found = restore().find_duplicate(key("k"), Kind::Text, b"x", now);
            matches!(found, Some(Duplicate::Same(published)) if published.log_index == 10)
        };
        assert!(is_known(7) && is_known(206), "800 ms old, and 999");
        assert!(!is_known(207));
        assert_eq!(restore().key_table_id(), hub_of(&stored).key_table_id());
        assert_ne!(restore().key_table_id(), hub().key_table_id());
    }

    fn hub_of(stored: &StoredKeys) -> Hub {
        let mut hub = Hub { log_index: 10, ..Hub::new(&limits(), 1) };
        hub.restore_keys(stored, at(0, 0)).unwrap();
        hub
    }

    #[test]
    fn invalid_keys_are_rejected() {
        let stored = hub().stored_keys(at(900, 900));
        let restore = |log_index, keys: Vec<u8>| {
            let mut hub = Hub { log_index, ..Hub::new(&limits(), 1) };
            hub.restore_keys(&StoredKeys { keys, ..stored }, at(900, 900))
        };
        let keys = &stored.keys;
        assert_eq!(restore(10, keys.clone()), Ok(()));
        assert_eq!(restore(10, Vec::new()), Ok(()));
        assert_eq!(restore(9, keys.clone()), Err(InvalidKeys), "a message that was not published");
        assert_eq!(restore(10, keys[1..].to_vec()), Err(InvalidKeys));
        assert_eq!(restore(10, [&keys[..], keys].concat()), Err(InvalidKeys), "twice");
    }
}
