//! The list of channels that have changed since the history file was written.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::rc::Rc;

use crate::ids::ChannelId;

/// The channels that have changed since they were written.
#[derive(Debug, Default)]
pub(super) struct DirtyChannels {
    /// At most one entry per key: the entry of a removed channel stays, and serves the next channel with its key.
    pub(super) changed: VecDeque<ChannelId>,
    /// The listed keys.
    is_listed: Vec<bool>,
    /// Names of channels that were removed, or forgotten after that. They are written before all others. Each is
    /// remembered or has a row in the file, so the limits of both bound their number.
    pub(super) removed: BTreeSet<Rc<str>>,
}

impl DirtyChannels {
    /// Lists a channel whose history has changed.
    pub(super) fn mark(&mut self, id: ChannelId) {
        let key = id.0 as usize;
        if key >= self.is_listed.len() {
            self.is_listed.resize(key + 1, false);
        }
        if !mem::replace(&mut self.is_listed[key], true) {
            self.changed.push_back(id);
        }
    }

    /// Removes the first of the list, which is written.
    pub(super) fn remove_first(&mut self) {
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

    /// Lists a removed channel.
    pub(super) fn mark_removed(&mut self, name: Rc<str>) {
        self.removed.insert(name);
    }

    /// Lists a removed channel that is no longer remembered. If the file does not have it, there is nothing to write.
    pub(super) fn mark_forgotten(&mut self, name: Rc<str>, is_written: bool) {
        if is_written {
            self.removed.insert(name);
        } else {
            self.removed.remove(&name);
        }
    }
}
