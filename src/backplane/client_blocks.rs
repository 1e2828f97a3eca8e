//! The allocation of client ids: a node takes them from blocks, which a counter in the log numbers.

use super::block_set::{BLOCKS, BlockSet};

/// The blocks of a node, and the one that it needs.
#[derive(Debug)]
pub(super) struct ClientBlocks {
    is_needed: bool,
    /// A block that was allocated, and is not known to be free of other nodes' clients.
    allocated: Option<u64>,
    /// How many blocks were allocated that other nodes have.
    rejected: u64,
    own: BlockSet,
}

impl ClientBlocks {
    /// Without a block: the first one is needed.
    pub(super) fn new() -> ClientBlocks {
        ClientBlocks { is_needed: true, allocated: None, rejected: 0, own: BlockSet::default() }
    }

    /// Those of the node, for its heartbeats.
    pub(super) fn own(&self) -> BlockSet {
        self.own
    }

    /// Returns true if a block is to be allocated.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// Another block is needed.
    pub(super) fn request(&mut self) {
        self.is_needed = true;
    }

    /// A block was allocated, if one was needed.
    pub(super) fn allocated(&mut self, block: u64) {
        if std::mem::take(&mut self.is_needed) {
            self.allocated = Some(block);
        }
    }

    /// Takes the block that was allocated, unless a node has it already: the counter begins again when the log's keys are
    /// deleted, and blocks that are 256 apart have the same ids. Another one is needed then.
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
