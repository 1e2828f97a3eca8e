//! A random number generator, splitmix64: the pauses of the nodes of one log must differ.

/// The state of the generator.
#[derive(Debug)]
pub(super) struct RandomNumbers(u64);

impl RandomNumbers {
    pub(super) fn new(seed: u64) -> RandomNumbers {
        RandomNumbers(seed)
    }

    /// The next number, from 0 to `max`.
    pub(super) fn next(&mut self, max: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % (max + 1)
    }
}
