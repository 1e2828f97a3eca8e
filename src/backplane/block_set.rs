//! The set of client id blocks that a node has, as its heartbeats contain it.

/// The number of distinct blocks: blocks that are this many apart have the same ids.
pub(super) const BLOCKS: u64 = 256;

/// A set of blocks of client ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSet([u8; BlockSet::BYTES]);

impl BlockSet {
    /// Bytes in a heartbeat.
    pub(super) const BYTES: usize = (BLOCKS / 8) as usize;

    /// Returns true if a block has the same ids as a block in the set.
    pub fn contains(self, block: u64) -> bool {
        let at = block % BLOCKS;
        self.0[(at / 8) as usize] & 1 << (at % 8) != 0
    }

    /// Adds a block.
    pub fn insert(&mut self, block: u64) {
        let at = block % BLOCKS;
        self.0[(at / 8) as usize] |= 1 << (at % 8);
    }

    /// The set as encoded in a heartbeat.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Decodes the set of a heartbeat; empty if the heartbeat has none.
    pub(super) fn from_bytes(bytes: &[u8]) -> BlockSet {
        BlockSet(bytes.try_into().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_have_the_same_ids_are_one() {
        let mut blocks = BlockSet::default();
        assert!((0..BLOCKS).all(|block| !blocks.contains(block)));
        blocks.insert(BLOCKS + 7);
        blocks.insert(255);
        let blocks = BlockSet::from_bytes(blocks.as_bytes());
        let found: Vec<u64> = (0..2 * BLOCKS).filter(|block| blocks.contains(*block)).collect();
        assert_eq!(found, [7, 255, BLOCKS + 7, BLOCKS + 255]);
        assert_eq!(BlockSet::from_bytes(&[1]), BlockSet::default());
    }
}
