//! Messages that may come again: a publisher whose connection was cut before the answer cannot know
//! whether it was heard, and sends the same again under the same key.
//!
//! What is kept is a fingerprint of channel and key, and the id that the message got the first time. Two
//! hashes of 64 bits under random keys make the fingerprint: nobody can choose a key that collides with
//! somebody else's, and by chance none does.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use crate::config::RepeatLimits;
use crate::moment::Moment;

/// The keys of the last minutes.
#[derive(Debug)]
pub(super) struct Repeats {
    seqs: HashMap<u128, u64>,
    /// In the order in which they came.
    order: VecDeque<(Moment, u128)>,
    hashers: [RandomState; 2],
    limits: RepeatLimits,
}

impl Repeats {
    pub(super) fn new(limits: RepeatLimits) -> Repeats {
        Repeats {
            seqs: HashMap::new(),
            order: VecDeque::new(),
            hashers: [RandomState::new(), RandomState::new()],
            limits,
        }
    }

    /// The message that was published on that channel under that key.
    pub(super) fn find(&mut self, channel: &str, key: &str, now: Moment) -> Option<u64> {
        self.expire(now);
        self.seqs.get(&self.fingerprint(channel, key)).copied()
    }

    /// Keeps the key of a message that was published. The oldest goes when there is no room.
    pub(super) fn keep(&mut self, channel: &str, key: &str, seq: u64, now: Moment) {
        if self.limits.keys_max == 0 {
            return;
        }
        if self.order.len() >= self.limits.keys_max {
            self.forget_oldest();
        }
        let fingerprint = self.fingerprint(channel, key);
        self.seqs.insert(fingerprint, seq);
        self.order.push_back((now, fingerprint));
    }

    /// Lets go of what is too old.
    pub(super) fn expire(&mut self, now: Moment) {
        while self.order.front().is_some_and(|(at, _)| at.after(self.limits.age_ms).has_come(now)) {
            self.forget_oldest();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn forget_oldest(&mut self) {
        if let Some((_, fingerprint)) = self.order.pop_front() {
            self.seqs.remove(&fingerprint);
        }
        if self.order.is_empty() {
            // A burst of keys must not be paid for ever after.
            self.order = VecDeque::new();
            self.seqs = HashMap::new();
        }
    }

    fn fingerprint(&self, channel: &str, key: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one((channel, key))));
        high << 64 | low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn a_key_is_known_in_its_channel_for_its_time() {
        let mut repeats = Repeats::new(RepeatLimits { keys_max: 10, age_ms: 300 });
        assert_eq!(repeats.find("a", "k", at(0)), None);
        repeats.keep("a", "k", 7, at(0));
        repeats.keep("b", "k", 8, at(200));
        assert_eq!(repeats.find("a", "k", at(299)), Some(7));
        assert_eq!(repeats.find("ak", "", at(299)), None);
        assert_eq!(repeats.find("a", "k", at(300)), None);
        assert_eq!(repeats.find("b", "k", at(300)), Some(8));
        assert_eq!(repeats.find("b", "k", at(500)), None);
        assert!(repeats.is_empty() && repeats.seqs.capacity() == 0);
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let mut repeats = Repeats::new(RepeatLimits { keys_max: 3, age_ms: 300 });
        for seq in 0..5 {
            repeats.keep("a", &seq.to_string(), seq, at(0));
        }
        let known: Vec<u64> = (0..5).filter_map(|seq| repeats.find("a", &seq.to_string(), at(1))).collect();
        assert_eq!(known, [2, 3, 4]);
        let mut none = Repeats::new(RepeatLimits { keys_max: 0, age_ms: 300 });
        none.keep("a", "k", 1, at(0));
        assert_eq!(none.find("a", "k", at(0)), None);
    }
}
