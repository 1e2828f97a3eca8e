//! Removed channels: the last message that each of them had.
//!
//! A channel is removed when it has neither subscribers nor history. A subscriber that resumes with an older cursor has
//! missed messages and must be notified; one that subscribes to a channel that never had a message has missed none. So
//! the names are remembered, in bounded memory: the channel whose last message is the oldest is forgotten first, and
//! from then on cursors before that message count as incomplete on every channel that is not known
//! ([`RemovedChannels::max_removed_index`]).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The memory of a removed channel in addition to its name: the header and rounding of the name's allocation, and its
/// place in both tables, of which the hash table is up to half empty.
pub(super) const REMOVED_CHANNEL_BYTES: usize = 160;

/// The removed channels that are remembered.
#[derive(Debug)]
pub(super) struct RemovedChannels {
    by_name: HashMap<Rc<str>, Removed>,
    /// The removed channels by their last message.
    by_log_index: BTreeMap<u64, Rc<str>>,
    bytes: usize,
    bytes_max: usize,
    /// The last message of any channel that was forgotten.
    max_removed_index: u64,
}

/// A removed channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Removed {
    /// The channel's last message in the log.
    pub(super) last: u64,
    /// The history file has a row with its name.
    pub(super) is_written: bool,
}

impl RemovedChannels {
    pub(super) fn new(bytes_max: usize) -> RemovedChannels {
        RemovedChannels {
            by_name: HashMap::new(),
            by_log_index: BTreeMap::new(),
            bytes: 0,
            bytes_max,
            max_removed_index: 0,
        }
    }

    pub(super) fn max_removed_index(&self) -> u64 {
        self.max_removed_index
    }

    /// A channel that is not remembered may have had any message up to this one.
    pub(super) fn raise(&mut self, log_index: u64) {
        self.max_removed_index = self.max_removed_index.max(log_index);
    }

    /// The last message that a channel may have had that does not exist now.
    pub(super) fn last(&self, name: &str) -> u64 {
        self.get(name).map_or(self.max_removed_index, |removed| removed.last)
    }

    pub(super) fn get(&self, name: &str) -> Option<Removed> {
        self.by_name.get(name).copied()
    }

    /// Remembers a channel. Others may have to be forgotten for it: see [`RemovedChannels::forget_over_limit`].
    pub(super) fn insert(&mut self, name: Rc<str>, removed: Removed) {
        self.remove(&name);
        self.bytes += REMOVED_CHANNEL_BYTES + name.len();
        self.by_log_index.insert(removed.last, name.clone());
        self.by_name.insert(name, removed);
    }

    /// Takes out a channel that exists again.
    pub(super) fn remove(&mut self, name: &str) -> Option<Removed> {
        let (name, removed) = self.by_name.remove_entry(name)?;
        self.by_log_index.remove(&removed.last);
        self.bytes -= REMOVED_CHANNEL_BYTES + name.len();
        Some(removed)
    }

    /// Forgets the channel whose last message is the oldest, if there are more than the limit allows.
    pub(super) fn forget_over_limit(&mut self) -> Option<(Rc<str>, Removed)> {
        if self.bytes <= self.bytes_max {
            return None;
        }
        self.forget_oldest()
    }

    /// Forgets the channel whose last message is the oldest, if that is not after `log_index`.
    pub(super) fn forget_until(&mut self, log_index: u64) -> Option<(Rc<str>, Removed)> {
        let (&last, _) = self.by_log_index.first_key_value()?;
        if last <= log_index { self.forget_oldest() } else { None }
    }

    fn forget_oldest(&mut self) -> Option<(Rc<str>, Removed)> {
        let (_, name) = self.by_log_index.first_key_value()?;
        let name = name.clone();
        let removed = self.remove(&name)?;
        self.raise(removed.last);
        Some((name, removed))
    }

    /// The history file has a row with this name, or no longer has one.
    pub(super) fn mark_written(&mut self, name: &str, is_written: bool) {
        if let Some(removed) = self.by_name.get_mut(name) {
            removed.is_written = is_written;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Panics if the parts contradict each other; for debug builds and tests.
    pub(super) fn check(&self) {
        assert!(self.bytes <= self.bytes_max);
        assert_eq!(self.by_name.len(), self.by_log_index.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_channel_with_oldest_message_is_forgotten_first() {
        let mut removed = RemovedChannels::new(3 * (REMOVED_CHANNEL_BYTES + 1));
        let mut forgotten = Vec::new();
        for (name, last) in [("a", 5), ("b", 2), ("c", 9), ("d", 7), ("e", 3)] {
            removed.insert(name.into(), Removed { last, is_written: false });
            forgotten.extend(std::iter::from_fn(|| removed.forget_over_limit()));
            removed.check();
        }
        let names: Vec<&str> = forgotten.iter().map(|(name, _)| &**name).collect();
        assert_eq!((names, removed.max_removed_index()), (vec!["b", "e"], 3));
        assert_eq!((removed.last("a"), removed.last("c"), removed.last("never")), (5, 9, 3));
        removed.insert("a".into(), Removed { last: 10, is_written: true });
        assert_eq!((removed.last("a"), removed.len()), (10, 3));
        for name in ["a", "c", "d"] {
            assert!(removed.remove(name).is_some());
        }
        assert_eq!((removed.remove("never"), removed.bytes()), (None, 0));
    }
}
