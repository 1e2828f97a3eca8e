//! Idempotency keys: a publisher that was disconnected before the answer cannot know whether its message was published,
//! and sends it again under the same key.
//!
//! An entry is a fingerprint of channel, publisher and key, a hash of the payload, and the id that the message got the
//! first time. Two hashes of 64 bits under random keys make the fingerprint: no publisher can choose a key that
//! collides with that of another, and by chance none does. One such hash tells payloads apart: a publisher that could
//! make two of them collide would lose a message of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use crate::access::identity::Identity;
use crate::config::IdempotencyLimits;
use crate::time::LoopTime;
use crate::wire::Kind;

/// The key of a message across retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey<'a> {
    /// The channel's name.
    pub channel: &'a str,
    /// The publisher: two publishers may use the same key.
    pub owner: Identity<'a>,
    /// The key that the publisher chose.
    pub key: &'a str,
}

/// A message that was published under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// This message was published under it, with the same payload.
    Same(u64),
    /// A message with another payload was published under it.
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    seq: u64,
    payload: u64,
}

/// When a key was first used, and by which publisher.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: LoopTime,
    fingerprint: u128,
    owner: u64,
}

/// The keys of the last minutes.
#[derive(Debug)]
///
/// When the table is full, the publisher that holds the most keys loses its oldest: however many keys one of them uses,
/// publishers with fewer keep theirs, and a single publisher can use the whole table.
pub(super) struct IdempotencyCache {
    records: HashMap<u128, Record>,
    /// By their number, which is the order in which they came.
    order: BTreeMap<u64, Entry>,
    next: u64,
    /// The numbers of each publisher's keys, the oldest in front.
    owners: HashMap<u64, VecDeque<u64>>,
    /// How many keys each publisher holds.
    counts: BTreeSet<(usize, u64)>,
    hashers: [RandomState; 2],
    limits: IdempotencyLimits,
}

impl IdempotencyCache {
    pub(super) fn new(limits: IdempotencyLimits) -> IdempotencyCache {
        IdempotencyCache {
            records: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            owners: HashMap::new(),
            counts: BTreeSet::new(),
            hashers: [RandomState::new(), RandomState::new()],
            limits,
        }
    }

    /// Finds the message that was published under the key.
    pub(super) fn find(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        now: LoopTime,
    ) -> Option<Known> {
        self.expire(now);
        let Record { seq, payload: first } = *self.records.get(&self.fingerprint(key))?;
        Some(if first == self.payload_hash(kind, payload) { Known::Same(seq) } else { Known::Other })
    }

    /// Keeps the key of a message that was published.
    pub(super) fn keep(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        seq: u64,
        now: LoopTime,
    ) {
        if self.limits.keys_max == 0 {
            return;
        }
        if self.order.len() >= self.limits.keys_max {
            let largest = self.counts.last().and_then(|(_, owner)| self.owners.get(owner)?.front().copied());
            if let Some(number) = largest {
                self.forget(number);
            }
        }
        let fingerprint = self.fingerprint(key);
        let record = Record { seq, payload: self.payload_hash(kind, payload) };
        self.records.insert(fingerprint, record);
        let owner = self.hashers[1].hash_one(key.owner);
        let number = self.next;
        self.next += 1;
        self.order.insert(number, Entry { at: now, fingerprint, owner });
        let numbers = self.owners.entry(owner).or_default();
        self.counts.remove(&(numbers.len(), owner));
        numbers.push_back(number);
        self.counts.insert((numbers.len(), owner));
    }

    /// Lets go of what is too old.
    pub(super) fn expire(&mut self, now: LoopTime) {
        while let Some((&number, kept)) = self.order.first_key_value()
            && kept.at.after(self.limits.age_ms).is_due(now)
        {
            self.forget(number);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Forgets a key that is the oldest of its publisher.
    fn forget(&mut self, number: u64) {
        let Some(Entry { fingerprint, owner, .. }) = self.order.remove(&number) else { return };
        self.records.remove(&fingerprint);
        if let Some(numbers) = self.owners.get_mut(&owner) {
            self.counts.remove(&(numbers.len(), owner));
            let oldest = numbers.pop_front();
            debug_assert_eq!(oldest, Some(number));
            if numbers.is_empty() {
                self.owners.remove(&owner);
            } else {
                self.counts.insert((numbers.len(), owner));
            }
        }
        if self.order.is_empty() {
            // A burst of keys must not be paid for ever after.
            self.records = HashMap::new();
            self.owners = HashMap::new();
        }
    }

    fn fingerprint(&self, key: IdempotencyKey<'_>) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(key)));
        high << 64 | low
    }

    fn payload_hash(&self, kind: Kind, payload: &[u8]) -> u64 {
        self.hashers[0].hash_one((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> LoopTime {
        LoopTime::from_millis(millis)
    }

    fn of<'a>(channel: &'a str, key: &'a str) -> IdempotencyKey<'a> {
        IdempotencyKey { channel, owner: Identity::Subject("alice"), key }
    }

    fn find(idempotency: &mut IdempotencyCache, key: IdempotencyKey<'_>, now: LoopTime) -> Option<u64> {
        match idempotency.find(key, Kind::Text, b"x", now)? {
            Known::Same(seq) => Some(seq),
            Known::Other => panic!("the payload is the same"),
        }
    }

    fn keep(idempotency: &mut IdempotencyCache, key: IdempotencyKey<'_>, seq: u64, now: LoopTime) {
        idempotency.keep(key, Kind::Text, b"x", seq, now);
    }

    #[test]
    fn a_key_is_known_in_its_channel_for_its_time() {
        let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
        assert_eq!(find(&mut idempotency, of("a", "k"), at(0)), None);
        keep(&mut idempotency, of("a", "k"), 7, at(0));
        keep(&mut idempotency, of("b", "k"), 8, at(200));
        assert_eq!(find(&mut idempotency, of("a", "k"), at(299)), Some(7));
        assert_eq!(find(&mut idempotency, of("ak", ""), at(299)), None);
        assert_eq!(find(&mut idempotency, of("a", "k"), at(300)), None);
        assert_eq!(find(&mut idempotency, of("b", "k"), at(300)), Some(8));
        assert_eq!(find(&mut idempotency, of("b", "k"), at(500)), None);
        assert!(idempotency.is_empty() && idempotency.records.capacity() == 0);
    }

    #[test]
    fn keys_of_other_publishers_do_not_collide() {
        let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
        let owners =
            [Identity::Subject("a"), Identity::Subject("b"), Identity::Network(1), Identity::Network(2)];
        for (owner, seq) in owners.into_iter().zip(1..) {
            let key = IdempotencyKey { owner, ..of("a", "k") };
            assert_eq!(find(&mut idempotency, key, at(0)), None);
            keep(&mut idempotency, key, seq, at(0));
        }
        for (owner, seq) in owners.into_iter().zip(1..) {
            assert_eq!(find(&mut idempotency, IdempotencyKey { owner, ..of("a", "k") }, at(0)), Some(seq));
        }
    }

    #[test]
    fn another_payload_under_the_same_key_is_known_as_that() {
        let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
        idempotency.keep(of("a", "k"), Kind::Text, b"1", 7, at(0));
        for (kind, payload, known) in [
            (Kind::Text, &b"1"[..], Known::Same(7)),
            (Kind::Text, b"2", Known::Other),
            (Kind::Text, b"", Known::Other),
            (Kind::Data, b"1", Known::Other),
        ] {
            assert_eq!(
                idempotency.find(of("a", "k"), kind, payload, at(1)),
                Some(known),
                "{kind:?} {payload:?}"
            );
        }
    }

    #[test]
    fn publisher_with_most_keys_takes_no_room_from_others() {
        let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 6, age_ms: 300 });
        fn of_owner(number: u64, key: &str) -> IdempotencyKey<'_> {
            IdempotencyKey { owner: Identity::Network(number), ..of("a", key) }
        }
        keep(&mut idempotency, of_owner(1, "first"), 1, at(0));
        keep(&mut idempotency, of_owner(2, "first"), 2, at(0));
        for seq in 3..103 {
            let key = seq.to_string();
            keep(&mut idempotency, of_owner(9, &key), seq, at(1));
        }
        assert_eq!(find(&mut idempotency, of_owner(1, "first"), at(2)), Some(1));
        assert_eq!(find(&mut idempotency, of_owner(2, "first"), at(2)), Some(2));
        let known =
            (3..103).filter(|seq| find(&mut idempotency, of_owner(9, &seq.to_string()), at(2)).is_some());
        assert_eq!(known.collect::<Vec<u64>>(), [99, 100, 101, 102], "its own newest");
        assert_eq!(find(&mut idempotency, of_owner(1, "first"), at(301)), None);
        assert!(idempotency.is_empty() && idempotency.owners.is_empty() && idempotency.counts.is_empty());
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 3, age_ms: 300 });
        for seq in 0..5 {
            keep(&mut idempotency, of("a", &seq.to_string()), seq, at(0));
        }
        let known: Vec<u64> =
            (0..5).filter_map(|seq| find(&mut idempotency, of("a", &seq.to_string()), at(1))).collect();
        assert_eq!(known, [2, 3, 4]);
        let mut none = IdempotencyCache::new(IdempotencyLimits { keys_max: 0, age_ms: 300 });
        keep(&mut none, of("a", "k"), 1, at(0));
        assert_eq!(find(&mut none, of("a", "k"), at(0)), None);
    }
}
