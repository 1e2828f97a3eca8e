//! Heartbeats: entries that show that a node is alive, and that its link works.

use super::{Link, LinkState};
use crate::backplane::entry::Item;
use crate::backplane::pending::Content;
use crate::time::LoopTime;

/// Time between two heartbeats, in ms.
const HEARTBEAT_MS: u32 = 2000;

/// The version of the program in heartbeats: 8 bits each for major, minor and patch.
const PROGRAM_VERSION: u32 = version_part(env!("CARGO_PKG_VERSION_MAJOR")) << 16
    | version_part(env!("CARGO_PKG_VERSION_MINOR")) << 8
    | version_part(env!("CARGO_PKG_VERSION_PATCH"));

/// Parses a number of at most 255.
const fn version_part(text: &str) -> u32 {
    match u8::from_str_radix(text, 10) {
        Ok(number) => number as u32,
        Err(_) => 255,
    }
}

/// The counts of a node for its heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NodeCounts {
    connections: u32,
    subscriptions: u32,
}

impl<P> Link<P> {
    /// Appends a heartbeat, unless an entry waits to be sent for the first time. When [`Link::applied_number`] has
    /// reached the returned number, everything that the log contained at the time of this call was applied.
    pub fn barrier(&mut self, now: LoopTime) -> u64 {
        if let Some(number) = self.log.own.last_unsent() {
            return number;
        }
        let heartbeat = self.heartbeat();
        self.log.own.push_notice(&heartbeat, Content::Notice, now)
    }

    /// Sets the counts of this node for its next heartbeats.
    pub fn set_counts(&mut self, connections: u32, subscriptions: u32) {
        self.counts = NodeCounts { connections, subscriptions };
    }

    /// Appends a heartbeat, unless the last entry has not been appended yet: that entry serves as one, so repeated
    /// attempts do not add entries.
    pub(super) fn beat(&mut self, now: LoopTime) {
        if let LinkState::Running { next_heartbeat, .. } = &mut self.state {
            *next_heartbeat = now.after(HEARTBEAT_MS);
        }
        if self.log.own.is_last_appended() {
            self.barrier(now);
        }
    }

    pub(super) fn heartbeat(&self) -> Item<'static> {
        let NodeCounts { connections, subscriptions } = self.counts;
        Item::Heartbeat { connections, subscriptions, version: PROGRAM_VERSION, blocks: self.blocks.own() }
    }
}
