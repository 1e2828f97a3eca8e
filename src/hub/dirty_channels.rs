//! The list of channels that have changed since the history file was written.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::rc::Rc;

use crate::ids::ChannelId;

/// Which channels have changed since they were written.
#[derive(Debug, Default)]
pub(super) struct DirtyChannels {
    /// No longer than there are keys: a channel that ends stays on it, and stands for the next of its key.
    pub(super) changed: VecDeque<ChannelId>,
    /// Who is on it, by key.
    is_listed: Vec<bool>,
    /// Names of channels that were removed, or were forgotten after that. They are written before any other, and each
    /// is remembered or has a row in the file: so there are no more of them than the limits of both allow.
    pub(super) removed: BTreeSet<Rc<str>>,
}

impl DirtyChannels {
    /// A channel's history has changed.
    pub(super) fn note(&mut self, id: ChannelId) {
        let key = id.0 as usize;
        if key >= self.is_listed.len() {
            self.is_listed.resize(key + 1, false);
        }
        if !mem::replace(&mut self.is_listed[key], true) {
            self.changed.push_back(id);
        }
    }

    /// The first of the list is done with.
    pub(super) fn strike(&mut self) {
        if let Some(ChannelId(key)) = self.changed.pop_front() {
            self.is_listed[key as usize] = false;
        }
    }

    /// Releases memory after a flood of channels.
    pub(super) fn shrink(&mut self) {
        if self.changed.is_empty() {
            self.changed = VecDeque::new();
            self.is_listed = Vec::new();
        }
    }

    /// A channel was removed.
    pub(super) fn note_removed(&mut self, name: Rc<str>) {
        self.removed.insert(name);
    }

    /// A removed channel is no longer remembered. One that the file does not have leaves nothing to write.
    pub(super) fn note_forgotten(&mut self, name: Rc<str>, is_written: bool) {
        if is_written {
            self.removed.insert(name);
        } else {
            self.removed.remove(&name);
        }
    }
}
