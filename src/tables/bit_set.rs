//! A set of small keys as a bitmap with a summary.
//!
//! Connections are marked and visited by key. A list of ids takes 8 bytes for each marked connection, and grows to the
//! number of all of them with the first broadcast; a bitmap takes one bit, and needs no second mark in the connection.
//! The summary has a bit for each word of the bitmap that is not zero, so the search for the next key skips 4,096
//! absent keys at a time.

/// Bits of a word.
const WORD_BITS: usize = u64::BITS as usize;

/// A set of keys.
#[derive(Clone, Debug, Default)]
pub struct BitSet {
    words: Vec<u64>,
    /// A bit for each word that is not zero.
    summary: Vec<u64>,
    len: usize,
}

impl BitSet {
    /// An empty set, which has no memory.
    pub const fn new() -> BitSet {
        BitSet { words: Vec::new(), summary: Vec::new(), len: 0 }
    }

    /// Returns true if the set has no keys.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns true if the key is in the set.
    pub fn contains(&self, key: usize) -> bool {
        self.words.get(key / WORD_BITS).is_some_and(|word| word & bit(key) != 0)
    }

    /// Adds a key. Returns true if it was not in the set.
    pub fn insert(&mut self, key: usize) -> bool {
        let index = key / WORD_BITS;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
            self.summary.resize(index / WORD_BITS + 1, 0);
        }
        let word = &mut self.words[index];
        let is_new = *word & bit(key) == 0;
        if *word == 0 {
            self.summary[index / WORD_BITS] |= bit(index);
        }
        *word |= bit(key);
        self.len += usize::from(is_new);
        is_new
    }

    /// Removes a key. Returns true if it was in the set.
    pub fn remove(&mut self, key: usize) -> bool {
        let index = key / WORD_BITS;
        let Some(word) = self.words.get_mut(index) else { return false };
        let was_in = *word & bit(key) != 0;
        *word &= !bit(key);
        if *word == 0 {
            self.summary[index / WORD_BITS] &= !bit(index);
        }
        self.len -= usize::from(was_in);
        was_in
    }

    /// Returns the lowest key that is at least `from`.
    pub fn next_from(&self, from: usize) -> Option<usize> {
        let index = from / WORD_BITS;
        if let Some(low) = lowest_from(*self.words.get(index)?, from % WORD_BITS) {
            return Some(index * WORD_BITS + low);
        }
        let index = self.next_word(index + 1)?;
        Some(index * WORD_BITS + self.words[index].trailing_zeros() as usize)
    }

    /// Returns the index of the first word from `from` on that is not zero.
    fn next_word(&self, from: usize) -> Option<usize> {
        let first = from / WORD_BITS;
        if let Some(low) = lowest_from(*self.summary.get(first)?, from % WORD_BITS) {
            return Some(first * WORD_BITS + low);
        }
        let after = first + 1;
        let further = self.summary[after..].iter().position(|&word| word != 0)? + after;
        Some(further * WORD_BITS + self.summary[further].trailing_zeros() as usize)
    }

    /// Releases the memory for keys from `end` on, which are not in the set.
    pub fn shrink_to(&mut self, end: usize) {
        debug_assert!(self.next_from(end).is_none(), "a key in the set is not released");
        let words = end.div_ceil(WORD_BITS);
        self.words.truncate(words);
        self.words.shrink_to_fit();
        self.summary.truncate(words.div_ceil(WORD_BITS));
        self.summary.shrink_to_fit();
    }
}

/// The bit of a key within its word.
fn bit(key: usize) -> u64 {
    1 << (key % WORD_BITS)
}

/// Returns the lowest set bit of a word that is at least `from`, which is less than 64.
fn lowest_from(word: u64, from: usize) -> Option<usize> {
    let rest = word & (u64::MAX << from);
    (rest != 0).then(|| rest.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is inserted, removed and released, in few or in many words.
        #[test]
        fn bit_set_equals_a_set(
            steps in prop::collection::vec((0u8..8, 0usize..20_000), 1..300),
            span in prop::sample::select(vec![3usize, 64, 65, 300, 4_096, 20_000]),
        ) {
            let (mut keys, mut model) = (BitSet::new(), BTreeSet::new());
            for (step, key) in steps {
                let key = key % span;
                match step {
                    0..4 => prop_assert_eq!(keys.insert(key), model.insert(key)),
                    4..7 => prop_assert_eq!(keys.remove(key), model.remove(&key)),
                    _ => keys.shrink_to(model.last().map_or(0, |last| last + 1)),
                }
                prop_assert_eq!(keys.is_empty(), model.is_empty());
                prop_assert_eq!(keys.contains(key), model.contains(&key));
                prop_assert_eq!(keys.next_from(key), model.range(key..).next().copied());
                prop_assert_eq!(keys.next_from(0), model.first().copied());
            }
            let mut from = 0;
            let listed = std::iter::from_fn(|| {
                let key = keys.next_from(from)?;
                from = key + 1;
                Some(key)
            });
            prop_assert!(listed.eq(model.iter().copied()));
        }
    }
}
