//! Finds the channel with the largest history, for eviction under the limit of all histories together.
//!
//! The oldest message of the largest history is evicted first, and finding it must not cost a scan of a million
//! channels. So channels are listed in classes by powers of two of their bytes, and a channel moves to another class
//! only when its size has doubled or halved. Any channel of the highest class is the largest within a factor of two.

use crate::ids::ChannelId;

/// Class `n` holds the channels of 2^(n-1) up to 2^n bytes; class 0 those without history, which are not listed.
const CLASSES: usize = 33;

/// A channel's class, and its position in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SizeRank {
    class: u8,
    position: u32,
}

/// All channels with history, by class.
#[derive(Debug)]
pub(super) struct SizeClasses {
    classes: [Vec<ChannelId>; CLASSES],
}

/// A channel that moved into a freed position.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shifted {
    pub(super) channel: ChannelId,
    pub(super) rank: SizeRank,
}

impl SizeClasses {
    pub(super) fn new() -> SizeClasses {
        SizeClasses { classes: [const { Vec::new() }; CLASSES] }
    }

    /// Returns true if a channel of this rank must move when its history has this many bytes.
    pub(super) fn must_move(rank: SizeRank, bytes: usize) -> bool {
        rank.class != class_of(bytes)
    }

    /// Moves a channel to the class of its bytes.
    pub(super) fn move_channel(
        &mut self,
        channel: ChannelId,
        old: SizeRank,
        bytes: usize,
    ) -> (SizeRank, Option<Shifted>) {
        let mut shifted = None;
        if old.class > 0 {
            let class = &mut self.classes[usize::from(old.class)];
            class.swap_remove(old.position as usize);
            shifted = class.get(old.position as usize).map(|&channel| Shifted { channel, rank: old });
        }
        let class = class_of(bytes);
        let list = &mut self.classes[usize::from(class)];
        let rank = SizeRank { class, position: list.len() as u32 };
        if class > 0 {
            list.push(channel);
        }
        (rank, shifted)
    }

    /// Returns one of the channels with the largest histories.
    pub(super) fn largest(&self) -> Option<ChannelId> {
        self.classes.iter().rev().find_map(|class| class.last().copied())
    }
}

fn class_of(bytes: usize) -> u8 {
    let bits = usize::BITS - bytes.leading_zeros();
    bits.min(CLASSES as u32 - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn largest_channel_is_found_within_a_factor_of_two(sizes in prop::collection::vec((0u32..20, 0usize..100_000), 1..200)) {
            let mut classes = SizeClasses::new();
            let mut model = [(0, SizeRank::default()); 20];
            for (key, bytes) in sizes {
                let (size, rank) = &mut model[key as usize];
                *size = bytes;
                if SizeClasses::must_move(*rank, bytes) {
                    let (new, shifted) = classes.move_channel(ChannelId(key), *rank, bytes);
                    *rank = new;
                    if let Some(Shifted { channel, rank }) = shifted {
                        model[channel.0 as usize].1 = rank;
                    }
                }
                let most = model.iter().map(|(size, _)| *size).max().unwrap();
                match classes.largest() {
                    None => prop_assert_eq!(most, 0),
                    Some(channel) => prop_assert!(model[channel.0 as usize].0 * 2 > most),
                }
            }
        }
    }
}
