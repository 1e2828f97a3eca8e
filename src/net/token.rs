//! Packs a connection's id, a slab key and a generation, into the token that epoll returns with each event.
//!
//! The generation in the token is what keeps an event that arrives late from reaching the next connection in the slot.

use mio::Token;

use crate::ids::SlotId;

// A token holds a key and a generation of 32 bits each.
const _: () = assert!(usize::BITS >= 64, "Oyez requires a 64-bit target");

/// Packs an id into a token.
pub fn token_of(id: SlotId) -> Token {
    Token((id.generation as usize) << 32 | id.key as usize)
}

/// Unpacks the id from a token.
pub fn id_of(token: Token) -> SlotId {
    SlotId { key: token.0 as u32, generation: (token.0 >> 32) as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_returns_the_id_that_was_packed() {
        for (key, generation) in [(0, 0), (7, 1), (u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
            let id = SlotId { key, generation };
            assert_eq!(id_of(token_of(id)), id);
        }
    }
}
