//! Unit tests of the cache of idempotency keys, and a comparison with a list of all keys.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn at(millis: u64) -> LoopTime {
    LoopTime::from_millis(millis)
}

fn of<'a>(channel: &'a str, key: &'a str) -> IdempotencyKey<'a> {
    IdempotencyKey { channel, owner: ClientIdentity::Subject("alice"), key }
}

fn find(idempotency: &mut IdempotencyCache, key: IdempotencyKey<'_>, now: LoopTime) -> Option<u64> {
    match idempotency.find(key, Kind::Text, b"x", now)? {
        KeyUse::SamePayload(log_index) => Some(log_index),
        KeyUse::OtherPayload => panic!("the payload is the same"),
    }
}

fn record(idempotency: &mut IdempotencyCache, key: IdempotencyKey<'_>, log_index: u64, now: LoopTime) {
    idempotency.record(key, Kind::Text, b"x", log_index, now);
}

#[test]
fn key_is_found_in_its_channel_until_it_expires() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
    assert_eq!(find(&mut idempotency, of("a", "k"), at(0)), None);
    record(&mut idempotency, of("a", "k"), 7, at(0));
    record(&mut idempotency, of("b", "k"), 8, at(200));
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
    let owners = [
        ClientIdentity::Subject("a"),
        ClientIdentity::Subject("b"),
        ClientIdentity::Network(1),
        ClientIdentity::Network(2),
    ];
    for (owner, log_index) in owners.into_iter().zip(1..) {
        let key = IdempotencyKey { owner, ..of("a", "k") };
        assert_eq!(find(&mut idempotency, key, at(0)), None);
        record(&mut idempotency, key, log_index, at(0));
    }
    for (owner, log_index) in owners.into_iter().zip(1..) {
        assert_eq!(find(&mut idempotency, IdempotencyKey { owner, ..of("a", "k") }, at(0)), Some(log_index));
    }
}

#[test]
fn key_with_another_payload_is_found_as_reused() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
    idempotency.record(of("a", "k"), Kind::Text, b"1", 7, at(0));
    for (kind, payload, known) in [
        (Kind::Text, &b"1"[..], KeyUse::SamePayload(7)),
        (Kind::Text, b"2", KeyUse::OtherPayload),
        (Kind::Text, b"", KeyUse::OtherPayload),
        (Kind::Data, b"1", KeyUse::OtherPayload),
    ] {
        assert_eq!(idempotency.find(of("a", "k"), kind, payload, at(1)), Some(known), "{kind:?} {payload:?}");
    }
}

#[test]
fn key_is_forgotten_up_to_an_index_and_recorded_again() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 10, age_ms: 300 });
    for (key, log_index) in [("1", 1), ("2", 2), ("3", 3)] {
        record(&mut idempotency, of("a", key), log_index, at(0));
    }
    for key in ["2", "1"] {
        idempotency.forget_until(of("a", key), 0);
        assert!(find(&mut idempotency, of("a", key), at(1)).is_some(), "its message is later");
        idempotency.forget_until(of("a", key), 2);
        assert_eq!(find(&mut idempotency, of("a", key), at(1)), None);
        record(&mut idempotency, of("a", key), 4, at(1));
    }
    idempotency.forget_until(of("a", "unknown"), 9);
    assert_eq!(find(&mut idempotency, of("a", "3"), at(2)), Some(3));
    assert_eq!(find(&mut idempotency, of("a", "2"), at(300)), Some(4), "its age begins again");
    assert_eq!(find(&mut idempotency, of("a", "2"), at(301)), None);
    assert!(idempotency.is_empty() && idempotency.owners.is_empty() && idempotency.counts.is_empty());
}

#[test]
fn publisher_with_most_keys_takes_no_room_from_others() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 6, age_ms: 300 });
    fn of_owner(number: u64, key: &str) -> IdempotencyKey<'_> {
        IdempotencyKey { owner: ClientIdentity::Network(number), ..of("a", key) }
    }
    record(&mut idempotency, of_owner(1, "first"), 1, at(0));
    record(&mut idempotency, of_owner(2, "first"), 2, at(0));
    for log_index in 3..103 {
        let key = log_index.to_string();
        record(&mut idempotency, of_owner(9, &key), log_index, at(1));
    }
    assert_eq!(find(&mut idempotency, of_owner(1, "first"), at(2)), Some(1));
    assert_eq!(find(&mut idempotency, of_owner(2, "first"), at(2)), Some(2));
    let known = (3..103)
        .filter(|log_index| find(&mut idempotency, of_owner(9, &log_index.to_string()), at(2)).is_some());
    assert_eq!(known.collect::<Vec<u64>>(), [99, 100, 101, 102], "its own newest");
    assert_eq!(find(&mut idempotency, of_owner(1, "first"), at(301)), None);
    assert!(idempotency.is_empty() && idempotency.owners.is_empty() && idempotency.counts.is_empty());
    assert!(idempotency.oldest.is_empty());
}

#[test]
fn full_cache_evicts_the_oldest_key() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 3, age_ms: 300 });
    for log_index in 0..5 {
        record(&mut idempotency, of("a", &log_index.to_string()), log_index, at(0));
    }
    let known: Vec<u64> = (0..5)
        .filter_map(|log_index| find(&mut idempotency, of("a", &log_index.to_string()), at(1)))
        .collect();
    assert_eq!(known, [2, 3, 4]);
    let mut none = IdempotencyCache::new(IdempotencyLimits { keys_max: 0, age_ms: 300 });
    record(&mut none, of("a", "k"), 1, at(0));
    assert_eq!(find(&mut none, of("a", "k"), at(0)), None);
}

#[test]
fn keys_of_lost_messages_are_forgotten() {
    let mut idempotency = IdempotencyCache::new(IdempotencyLimits { keys_max: 6, age_ms: 300 });
    fn of_owner(number: u64, key: &str) -> IdempotencyKey<'_> {
        IdempotencyKey { owner: ClientIdentity::Network(number), ..of("a", key) }
    }
    for (log_index, owner) in [(1, 1), (2, 2), (3, 1), (4, 3), (5, 1)] {
        record(&mut idempotency, of_owner(owner, &log_index.to_string()), log_index, at(0));
    }
    idempotency.forget_after(2);
    let known = |idempotency: &mut IdempotencyCache, log_index: u64, owner| {
        find(idempotency, of_owner(owner, &log_index.to_string()), at(1)).is_some()
    };
    let left = [(1, 1), (2, 2), (3, 1), (4, 3), (5, 1)]
        .map(|(log_index, owner)| known(&mut idempotency, log_index, owner));
    assert_eq!(left, [true, true, false, false, false]);
    assert_eq!((idempotency.oldest.len(), idempotency.counts.len(), idempotency.owners.len()), (2, 2, 2));
    // The numbers of lost messages are those of other messages later.
    for log_index in 3..20 {
        record(&mut idempotency, of_owner(1, &format!("again {log_index}")), log_index, at(1));
    }
    assert!(known(&mut idempotency, 2, 2));
    assert_eq!((idempotency.records.len(), idempotency.oldest.len()), (6, 2));
    idempotency.forget_after(0);
    assert!(idempotency.is_empty() && idempotency.owners.is_empty() && idempotency.oldest.is_empty());
}

#[test]
fn caches_of_one_seed_evict_the_same_keys() {
    let publishers: Vec<u64> = (0..40).collect();
    let cache = |seed| {
        let mut cache = IdempotencyCache::new(IdempotencyLimits { keys_max: 20, age_ms: 300 });
        cache.seed(seed);
        for (&owner, log_index) in publishers.iter().zip(1..) {
            let key = IdempotencyKey { owner: ClientIdentity::Network(owner), ..of("a", "k") };
            record(&mut cache, key, log_index, at(0));
        }
        let left: Vec<u64> = publishers
            .iter()
            .copied()
            .filter(|&owner| {
                let key = IdempotencyKey { owner: ClientIdentity::Network(owner), ..of("a", "k") };
                find(&mut cache, key, at(1)).is_some()
            })
            .collect();
        left
    };
    assert_eq!(cache(7), cache(7));
    assert_ne!(cache(7), cache(8), "the order is that of the seed");
}

#[test]
fn hashes_are_the_same_in_each_release() {
    let mut cache = IdempotencyCache::new(IdempotencyLimits { keys_max: 1, age_ms: 300 });
    assert!(cache.restore([1, 2], &[]));
    record(&mut cache, of("a", "k"), 7, at(0));
    let network = cache.hasher.owner(ClientIdentity::Network(9));
    let key = cache.stored().next().unwrap();
    // Computed by another implementation. A history file that was written has these numbers.
    assert_eq!(key.fingerprint, [2_215_551_713_602_792_603, 7_699_430_886_319_068_630]);
    assert_eq!((key.owner, network), (9_282_587_293_668_014_548, 1_654_547_814_371_402_750));
    assert_eq!((key.payload, cache.table_id()), (17_415_805_421_364_230_699, 2_153_145_248));
}

#[test]
fn restored_keys_are_found_and_expire_as_before() {
    let limits = IdempotencyLimits { keys_max: 10, age_ms: 300 };
    let mut first = IdempotencyCache::new(limits);
    record(&mut first, of("a", "1"), 1, at(0));
    record(&mut first, of("a", "2"), 2, at(100));
    let mut stored: Vec<StoredKey> = first.stored().collect();
    stored.sort_unstable_by_key(|key| key.log_index);
    let mut second = IdempotencyCache::new(limits);
    assert_ne!(second.table_id(), first.table_id());
    assert!(second.restore(first.hash_seed(), &stored));
    assert_eq!(second.table_id(), first.table_id());
    assert_eq!(find(&mut second, of("a", "1"), at(299)), Some(1));
    assert_eq!(second.find(of("a", "2"), Kind::Text, b"y", at(299)), Some(KeyUse::OtherPayload));
    record(&mut second, of("a", "3"), 3, at(299));
    assert_eq!(find(&mut second, of("a", "1"), at(300)), None);
    assert_eq!(find(&mut second, of("a", "2"), at(399)), Some(2));
    assert_eq!(find(&mut second, of("a", "3"), at(598)), Some(3));
    let mut fewer = IdempotencyCache::new(IdempotencyLimits { keys_max: 1, age_ms: 300 });
    assert!(fewer.restore(first.hash_seed(), &stored));
    assert_eq!(find(&mut fewer, of("a", "1"), at(101)), None, "over the limit");
    assert_eq!(find(&mut fewer, of("a", "2"), at(101)), Some(2));
    stored.push(stored[0]);
    assert!(!IdempotencyCache::new(limits).restore(first.hash_seed(), &stored), "twice");
}

#[test]
fn entry_of_a_key_has_24_bytes() {
    assert_eq!((size_of::<KeyEntry>(), size_of::<([u64; 2], Record)>()), (24, 32));
}

proptest! {
    /// Against a list of all keys in their order.
    #[test]
    fn cache_equals_its_model(
        steps in vec((0u64..4, 0u32..120, 0u64..3), 1..200),
        keys_max in 1usize..12,
    ) {
        const AGE_MS: u32 = 300;
        let mut cache = IdempotencyCache::new(IdempotencyLimits { keys_max, age_ms: AGE_MS });
        let mut list: Vec<(u64, u64, u64)> = Vec::new();
        let mut millis = 0;
        for (log_index, (owner, key, wait)) in (0u64..).zip(steps) {
            millis += wait * 40;
            let now = at(millis);
            let name = key.to_string();
            let of_owner = IdempotencyKey { owner: ClientIdentity::Network(owner), ..of("a", &name) };
            list.retain(|&(_, _, since)| millis - since < u64::from(AGE_MS));
            // The key of a message, by its number.
            let known = list.iter().find(|one| (one.0, one.1) == (owner, u64::from(key)));
            let found = find(&mut cache, of_owner, now);
            prop_assert_eq!(found.is_some(), known.is_some());
            if known.is_none() {
                if list.len() >= keys_max {
                    let held = |owner| list.iter().filter(|one| one.0 == owner).count();
                    let most = list.iter().map(|one| held(one.0)).max().unwrap();
                    // Of publishers with as many keys, any may lose one: the model follows the cache.
                    let mut oldest: Vec<usize> = (0..4)
                        .filter(|&owner| held(owner) == most)
                        .filter_map(|owner| list.iter().position(|one| one.0 == owner))
                        .collect();
                    cache.record(of_owner, Kind::Text, b"x", log_index, now);
                    oldest.retain(|&index| {
                        let (owner, key, _) = list[index];
                        let name = key.to_string();
                        let key = IdempotencyKey { owner: ClientIdentity::Network(owner), ..of("a", &name) };
                        cache.find(key, Kind::Text, b"x", now).is_none()
                    });
                    prop_assert_eq!(oldest.len(), 1, "one publisher with the most keys loses its oldest");
                    list.remove(oldest[0]);
                } else {
                    cache.record(of_owner, Kind::Text, b"x", log_index, now);
                }
                list.push((owner, u64::from(key), millis));
            }
            prop_assert_eq!(cache.records.len(), list.len());
            prop_assert_eq!(cache.oldest.len(), cache.owners.len());
            prop_assert_eq!(cache.counts.len(), cache.owners.len());
        }
    }
}
