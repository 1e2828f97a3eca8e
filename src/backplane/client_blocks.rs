//! The allocation of client ids: a node takes them from blocks, which are numbered by a counter in the log's state.

use super::block_set::{BLOCKS, BlockSet};

/// The blocks of a node, and the one that it needs.
#[derive(Debug)]
pub(super) struct ClientBlocks {
    is_needed: bool,
    /// A block that was allocated, and not yet checked against the blocks of other nodes.
    allocated: Option<u64>,
    /// Number of allocated blocks that were rejected since other nodes have them.
    rejected: u64,
    own: BlockSet,
}

impl ClientBlocks {
    /// A node without a block, which needs its first one.
    pub(super) fn new() -> ClientBlocks {
        ClientBlocks { is_needed: true, allocated: None, rejected: 0, own: BlockSet::default() }
    }

    /// The blocks of the node, for its heartbeats.
    pub(super) fn own(&self) -> BlockSet {
        self.own
    }

    /// Returns true if a block is to be allocated.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// Requests another block.
    pub(super) fn request(&mut self) {
        self.is_needed = true;
    }

    /// Records the block that was allocated, if one was needed.
    pub(super) fn allocated(&mut self, block: u64) {
        if std::mem::take(&mut self.is_needed) {
            self.allocated = Some(block);
        }
    }

    /// Takes the block that was allocated, unless a node has it already: the counter begins again when the log's keys
    /// are deleted, and blocks that are 256 apart have the same ids. If the block is taken, another one is requested.
    pub(super) fn take(&mut self, is_taken: impl Fn(u64) -> bool) -> Option<u64> {
        let block = self.allocated.take()?;
        if self.rejected < BLOCKS && is_taken(block) {
            self.rejected += 1;
            self.is_needed = true;
            return None;
        }
        self.rejected = 0;
        self.own.insert(block);
        Some(block)
    }
}
