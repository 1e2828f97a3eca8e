//! Idempotency keys: a publisher that was disconnected before the response cannot know whether its message was
//! published, and sends it again under the same key.
//!
//! An entry is a fingerprint of channel, publisher and key, a hash of the payload, and the id that the message got the
//! first time. Entries outlive the program in the history file ([`super::stored_keys`]).

mod hash;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::access::identity::ClientIdentity;
use crate::config::IdempotencyLimits;
use crate::time::LoopTime;
use crate::wire::Kind;
use hash::KeyHasher;

/// The key of a message across retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey<'a> {
    /// The channel's name.
    pub channel: &'a str,
    /// The publisher: two publishers may use the same key.
    pub owner: ClientIdentity<'a>,
    /// The key that the publisher chose.
    pub key: &'a str,
}

/// A message that was published under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyUse {
    /// This message was published under the key, with the same payload.
    SamePayload(u64),
    /// A message with another payload was published under the key.
    OtherPayload,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    log_index: u64,
    payload: u64,
}

/// A key of one publisher, without the publisher.
#[derive(Clone, Copy, Debug)]
struct KeyEntry {
    fingerprint: [u64; 2],
    /// When the key was first used.
    at: LoopTime,
}

/// A key with all that is known of it, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredKey {
    pub(super) fingerprint: [u64; 2],
    /// The hash of the publisher.
    pub(super) owner: u64,
    /// The hash of the payload.
    pub(super) payload: u64,
    /// The message that was published.
    pub(super) log_index: u64,
    /// When the key was first used.
    pub(super) at: LoopTime,
}

/// The keys of the last minutes.
///
/// When the table is full, the publisher that holds the most keys loses its oldest: however many keys one of them uses,
/// publishers with fewer keep theirs, and a single publisher can use the whole table.
#[derive(Debug)]
pub(super) struct IdempotencyCache {
    records: HashMap<[u64; 2], Record>,
    /// The keys of each publisher, the oldest in front. There is no list of all keys in their order: with 100,000 keys
    /// of one publisher it took 8 MB of 13.
    owners: HashMap<u64, VecDeque<KeyEntry>>,
    /// The message of the oldest key of each publisher: messages are numbered in the order of their keys.
    oldest: BTreeSet<(u64, u64)>,
    /// How many keys each publisher holds.
    counts: BTreeSet<(usize, u64)>,
    hasher: KeyHasher,
    limits: IdempotencyLimits,
}

impl IdempotencyCache {
    pub(super) fn new(limits: IdempotencyLimits) -> IdempotencyCache {
        IdempotencyCache {
            records: HashMap::new(),
            owners: HashMap::new(),
            oldest: BTreeSet::new(),
            counts: BTreeSet::new(),
            hasher: KeyHasher::random(),
            limits,
        }
    }

    /// The seed of the hashes, without which stored keys are not found.
    pub(super) fn hash_seed(&self) -> [u64; 2] {
        self.hasher.seed()
    }

    /// All keys, in no order.
    pub(super) fn stored(&self) -> impl Iterator<Item = StoredKey> + '_ {
        self.owners.iter().flat_map(move |(&owner, entries)| {
            entries.iter().filter_map(move |&KeyEntry { fingerprint, at }| {
                let Record { log_index, payload } = *self.records.get(&fingerprint)?;
                Some(StoredKey { fingerprint, owner, payload, log_index, at })
            })
        })
    }

    /// Continues with stored keys, in the order of their messages, as far as the limits allow. The cache must be empty.
    /// Returns false if a key is there twice.
    pub(super) fn restore(&mut self, seed: [u64; 2], keys: &[StoredKey]) -> bool {
        debug_assert!(self.is_empty());
        self.hasher = KeyHasher::with_seed(seed);
        keys.iter().all(|key| {
            let is_new = !self.records.contains_key(&key.fingerprint);
            if is_new {
                self.insert(*key);
            }
            is_new
        })
    }

    /// Identifies the keys that are known: another number means that none of the keys before is.
    pub(super) fn table_id(&self) -> u32 {
        self.hasher.table_id()
    }

    /// Finds the message that was published under the key.
    pub(super) fn find(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        now: LoopTime,
    ) -> Option<KeyUse> {
        self.expire(now);
        let Record { log_index, payload: first } = *self.records.get(&self.hasher.fingerprint(key))?;
        Some(if first == self.hasher.payload(kind, payload) {
            KeyUse::SamePayload(log_index)
        } else {
            KeyUse::OtherPayload
        })
    }

    /// Records the key of a published message.
    pub(super) fn record(
        &mut self,
        key: IdempotencyKey<'_>,
        kind: Kind,
        payload: &[u8],
        log_index: u64,
        now: LoopTime,
    ) {
        self.insert(StoredKey {
            fingerprint: self.hasher.fingerprint(key),
            owner: self.hasher.owner(key.owner),
            payload: self.hasher.payload(kind, payload),
            log_index,
            at: now,
        });
    }

    fn insert(&mut self, StoredKey { fingerprint, owner, payload, log_index, at }: StoredKey) {
        if self.limits.keys_max == 0 {
            return;
        }
        if self.records.len() >= self.limits.keys_max
            && let Some(&(_, most)) = self.counts.last()
        {
            self.forget_oldest_of(most);
        }
        let replaced = self.records.insert(fingerprint, Record { log_index, payload });
        debug_assert!(replaced.is_none(), "a known key is not recorded again");
        let entries = self.owners.entry(owner).or_default();
        self.counts.remove(&(entries.len(), owner));
        if entries.is_empty() {
            self.oldest.insert((log_index, owner));
        }
        entries.push_back(KeyEntry { fingerprint, at });
        self.counts.insert((entries.len(), owner));
    }

    /// Forgets expired keys.
    pub(super) fn expire(&mut self, now: LoopTime) {
        while let Some(&(_, owner)) = self.oldest.first()
            && let Some(oldest) = self.owners.get(&owner).and_then(VecDeque::front)
            && oldest.at.after(self.limits.age_ms).is_due(now)
        {
            self.forget_oldest_of(owner);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn forget_oldest_of(&mut self, owner: u64) {
        let Some(entries) = self.owners.get_mut(&owner) else { return };
        self.counts.remove(&(entries.len(), owner));
        let Some(Record { log_index, .. }) =
            entries.pop_front().and_then(|entry| self.records.remove(&entry.fingerprint))
        else {
            return;
        };
        self.oldest.remove(&(log_index, owner));
        match entries.front().and_then(|next| self.records.get(&next.fingerprint)) {
            Some(next) => {
                self.oldest.insert((next.log_index, owner));
                self.counts.insert((entries.len(), owner));
            }
            None => {
                self.owners.remove(&owner);
            }
        }
        if self.records.is_empty() {
            // The capacity of a burst is not kept.
            self.records = HashMap::new();
            self.owners = HashMap::new();
        }
    }

    /// Forgets the key if its message has a log index of at most `log_index`.
    pub(super) fn forget_until(&mut self, key: IdempotencyKey<'_>, log_index: u64) {
        let fingerprint = self.hasher.fingerprint(key);
        if self.records.get(&fingerprint).is_none_or(|record| record.log_index > log_index) {
            return;
        }
        let owner = self.hasher.owner(key.owner);
        let Some(entries) = self.owners.get_mut(&owner) else { return };
        let Some(at) = entries.iter().position(|entry| entry.fingerprint == fingerprint) else { return };
        if at == 0 {
            return self.forget_oldest_of(owner);
        }
        self.counts.remove(&(entries.len(), owner));
        entries.remove(at);
        self.counts.insert((entries.len(), owner));
        self.records.remove(&fingerprint);
    }

    /// Uses the same order of publishers as all caches with this seed. The cache must be empty.
    pub(super) fn seed(&mut self, seed: u64) {
        debug_assert!(self.is_empty());
        self.hasher.owner_seed = seed;
    }

    /// Forgets the keys of messages after an index: the shared log has lost them.
    pub(super) fn forget_after(&mut self, log_index: u64) {
        let lost = self.records.values().any(|record| record.log_index > log_index);
        if !lost {
            return;
        }
        let owners: Vec<u64> = self.owners.keys().copied().collect();
        for owner in owners {
            self.forget_last_of(owner, log_index);
        }
    }

    fn forget_last_of(&mut self, owner: u64, log_index: u64) {
        let Some(entries) = self.owners.get_mut(&owner) else { return };
        let records = &mut self.records;
        let (before, first) =
            (entries.len(), entries.front().and_then(|entry| records.get(&entry.fingerprint)));
        let first = first.map(|record| record.log_index);
        while let Some(last) = entries.back()
            && records.get(&last.fingerprint).is_some_and(|record| record.log_index > log_index)
        {
            records.remove(&last.fingerprint);
            entries.pop_back();
        }
        let left = entries.len();
        if left == before {
            return;
        }
        self.counts.remove(&(before, owner));
        if left > 0 {
            self.counts.insert((left, owner));
        } else {
            self.owners.remove(&owner);
            if let Some(first) = first {
                self.oldest.remove(&(first, owner));
            }
        }
    }
}
