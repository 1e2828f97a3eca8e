//! Decides when a slab releases memory after a flood.
//!
//! Shrinking walks the slab, and may free nothing while its highest key is in use: so it is tried when most entries are
//! free, again when half of the remaining ones are removed, and once a second while most entries stay free.

use std::collections::HashMap;
use std::hash::Hash;

use crate::time::LoopTime;

/// A slab shrinks when fewer than one in this many of its entries are in use.
const SHRINK_BELOW: usize = 4;

/// A scan of a million entries takes some milliseconds.
const RETRY_MS: u32 = 1_000;

/// Releases the memory of a hash table of which less than an eighth is in use. Call it after removing an entry: each
/// call that shrinks halves the table at least, so its cost is shared by as many removals.
pub(crate) fn shrink_sparse<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    if table.len() < table.capacity() / 8 {
        table.shrink_to(2 * table.len());
    }
}

/// Decides when one slab shrinks.
#[derive(Debug)]
pub struct ShrinkTrigger {
    /// Entries that are never released.
    retained: usize,
    below: usize,
    /// The last attempt that was made because a second had passed.
    tried: Option<LoopTime>,
}

impl ShrinkTrigger {
    /// For a slab that never releases this many entries.
    pub fn new(retained: usize) -> ShrinkTrigger {
        ShrinkTrigger { retained, below: usize::MAX, tried: None }
    }

    fn is_sparse(&mut self, len: usize, capacity: usize) -> bool {
        if len >= capacity / SHRINK_BELOW {
            self.below = usize::MAX;
            self.tried = None;
        }
        len < capacity / SHRINK_BELOW && capacity > self.retained
    }

    /// Returns true if a slab of this many entries and places is to be shrunk at a certain time.
    pub fn is_due_at(&mut self, len: usize, capacity: usize, now: LoopTime) -> bool {
        let is_due =
            self.is_sparse(len, capacity) && self.tried.is_none_or(|tried| tried.after(RETRY_MS).is_due(now));
        if is_due {
            self.tried = Some(now);
        }
        is_due
    }

    /// Returns true if a slab of this many entries and places is to be shrunk after one entry was removed.
    pub fn is_due_after_removal(&mut self, len: usize, capacity: usize) -> bool {
        if !self.is_sparse(len, capacity) || len >= self.below {
            return false;
        }
        self.below = (len / 2).max(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_whose_highest_key_is_in_use_is_walked_a_few_times() {
        let mut trigger = ShrinkTrigger::new(100);
        let tries = (0..250_000).rev().filter(|&len| trigger.is_due_after_removal(len, 1_000_000)).count();
        assert_eq!(tries, 18, "log2 of a quarter of a million");
        assert!(!trigger.is_due_after_removal(0, 100), "that capacity is retained");
        assert!(
            !trigger.is_due_after_removal(500, 1_000) && trigger.is_due_after_removal(249, 1_000),
            "it has grown meanwhile"
        );
        let start = LoopTime::from_millis(0);
        let tries = (0..3_000).filter(|&millis| trigger.is_due_at(9, 1_000, start.after(millis))).count();
        assert_eq!(tries, 3, "once a second, since the highest key may be free by now");
    }
}
