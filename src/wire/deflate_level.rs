//! The compression level of a batch: higher, the more subscribers share its cost.
//!
//! A message is compressed once for all subscribers, and sent to each of them with a system call of 4 to 5 us. With a
//! thousand of them the best level takes less than a hundredth of that, and saves a third of the bytes of the fastest
//! one.
//!
//! Two figures bound the choice: the usual cost of a level, and its **worst case**. The time of the search for matches
//! depends on the text, and a publisher may send an adversarial one: random text of two letters has a match at nearly
//! every position of the window.

/// What a level costs: measured with zlib-rs 0.6 and the messages of `benches/pairs/messages.py` in a context of 32
/// KiB, on an AMD EPYC. The bench `deflate` (`benches/pieces.rs`) measures similar ones.
struct LevelCost {
    level: u8,
    ns_per_message: usize,
    ns_per_kib: usize,
    /// The cost for the worst of 14 kinds of texts with small alphabets and short repetitions.
    worst_ns_per_kib: usize,
}

/// The levels that are worth more than the fastest one, the best first. 7 costs as much as 8; 2 to 5 cost as much as 6
/// with small messages.
const LEVEL_COSTS: [LevelCost; 3] = [
    LevelCost { level: 9, ns_per_message: 4_500, ns_per_kib: 6_000, worst_ns_per_kib: 1_500_000 },
    LevelCost { level: 8, ns_per_message: 4_500, ns_per_kib: 8_000, worst_ns_per_kib: 500_000 },
    LevelCost { level: 6, ns_per_message: 3_000, ns_per_kib: 4_000, worst_ns_per_kib: 70_000 },
];

/// The usual cost of a batch for each subscriber: 2 to 3 percent of a `send`.
const NS_PER_SUBSCRIBER_MAX: usize = 100;

/// The worst cost of a batch for each subscriber: as much as a `send`. So a message that was made to be expensive costs
/// at most as much as two others.
const WORST_NS_PER_SUBSCRIBER_MAX: usize = 5_000;

/// The level of batches with a message above [`LARGE_BYTES`], if no better one is worth it. A dashboard of 8,545 bytes,
/// of which a fifth changes, takes 295 bytes and 9 us with this level, 487 bytes and 3 us with that of small ones;
/// messages of 1 KiB gain less.
const LEVEL_OF_LARGE: u8 = 3;
const LEVEL_OF_SMALL: u8 = 1;
const LARGE_BYTES: usize = 4 << 10;

/// The messages of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BatchSize {
    pub(super) messages: usize,
    /// Bytes of all messages.
    pub(super) bytes: usize,
    /// Bytes of the largest message.
    pub(super) largest_bytes: usize,
}

/// Returns the level of a batch that is sent to this number of subscribers.
pub(super) fn level(size: BatchSize, subscribers: usize) -> u8 {
    let is_worth_it = |cost: &&LevelCost| {
        let of_bytes = |ns_per_kib| size.bytes.saturating_mul(ns_per_kib) / 1_024;
        let usual =
            size.messages.saturating_mul(cost.ns_per_message).saturating_add(of_bytes(cost.ns_per_kib));
        usual <= subscribers.saturating_mul(NS_PER_SUBSCRIBER_MAX)
            && of_bytes(cost.worst_ns_per_kib) <= subscribers.saturating_mul(WORST_NS_PER_SUBSCRIBER_MAX)
    };
    match LEVEL_COSTS.iter().find(is_worth_it) {
        Some(cost) => cost.level,
        None if size.largest_bytes > LARGE_BYTES => LEVEL_OF_LARGE,
        None => LEVEL_OF_SMALL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level_of(messages: usize, bytes_each: usize, subscribers: usize) -> u8 {
        let size = BatchSize { messages, bytes: messages * bytes_each, largest_bytes: bytes_each };
        level(size, subscribers)
    }

    #[test]
    fn level_is_the_better_the_more_subscribers_share_it() {
        for bytes in [64, 167, 901, 8_545, 64 << 10, 1 << 20] {
            let levels: Vec<u8> = [0, 1, 10, 100, 1_000, 10_000, 100_000]
                .map(|subscribers| level_of(1, bytes, subscribers))
                .into();
            assert!(levels.is_sorted(), "{bytes}: {levels:?}");
            assert_eq!(levels[0], if bytes > 4_096 { 3 } else { 1 });
        }
        assert_eq!([10, 100, 1_000].map(|subscribers| level_of(1, 167, subscribers)), [1, 9, 9]);
        assert_eq!([1, 1_000].map(|subscribers| level_of(1, 8_545, subscribers)), [3, 8]);
        assert_eq!(level_of(1, usize::MAX, 100_000), 3, "without overflow");
    }

    #[test]
    fn large_batch_is_compressed_fast() {
        assert_eq!([1, 64, 4_000].map(|messages| level_of(messages, 167, 1_000)), [9, 1, 1]);
    }

    #[test]
    fn worst_case_of_a_message_is_bounded_by_its_sends() {
        for subscribers in [1, 30, 100, 1_000, 10_000] {
            for kib in [1, 4, 16, 64, 256] {
                let level = level_of(1, kib << 10, subscribers);
                let cost = LEVEL_COSTS.iter().find(|cost| cost.level == level);
                let worst = cost.map_or(0, |cost| kib * cost.worst_ns_per_kib);
                assert!(worst <= 5_000 * subscribers, "{kib} KiB, {subscribers} subscribers: level {level}");
            }
        }
    }
}
