//! The budget of TLS handshakes in one turn, which the addresses of the waiting clients share.

use std::cell::Cell;

use crate::access::address::AddressBlock;

/// A turn's budget of handshakes, and its use by each address.
///
/// **Fair between addresses**: while clients of several addresses (for IPv6, of several /64 networks) wait, each
/// address may have an equal part of the budget, and at least one handshake. Which addresses wait is known from the
/// turn before. So a client of another address gets its handshake in the turn after its first, as long as fewer
/// addresses flood the server than the budget has handshakes.
pub(super) struct Handshakes {
    per_turn: usize,
    pub(super) left: Cell<usize>,
    /// The share of one address in this turn.
    share: Cell<usize>,
    /// The address of the connection being read.
    pub(super) reader: Cell<Option<AddressBlock>>,
    /// The handshakes of each address in this turn.
    used: Cell<Vec<(AddressBlock, usize)>>,
    /// Addresses whose clients have to wait for the next turn, at most as many as there are handshakes in one.
    waiting: Cell<Vec<AddressBlock>>,
}

impl Handshakes {
    pub(super) fn new(per_turn: usize) -> Handshakes {
        Handshakes {
            per_turn,
            left: Cell::new(per_turn),
            share: Cell::new(per_turn),
            reader: Cell::default(),
            used: Cell::default(),
            waiting: Cell::default(),
        }
    }

    pub(super) fn begin_turn(&self) {
        let (mut used, mut waiting) = (self.used.take(), self.waiting.take());
        self.left.set(self.per_turn);
        self.share.set((self.per_turn / waiting.len().max(1)).max(1));
        used.clear();
        waiting.clear();
        self.used.set(used);
        self.waiting.set(waiting);
    }

    /// Returns true if the ClientHello of the connection being read may be answered in this turn.
    pub(super) fn admits(&self) -> bool {
        let Some(reader) = self.reader.get() else { return self.left.get() > 0 };
        let (used, mut waiting) = (self.used.take(), self.waiting.take());
        let count = used.iter().find(|(block, _)| *block == reader).map_or(0, |(_, count)| *count);
        let is_admitted = self.left.get() > 0 && count < self.share.get();
        if !is_admitted && waiting.len() < self.per_turn && !waiting.contains(&reader) {
            waiting.push(reader);
        }
        self.used.set(used);
        self.waiting.set(waiting);
        is_admitted
    }

    pub(super) fn spend(&self) {
        self.left.set(self.left.get().saturating_sub(1));
        let Some(reader) = self.reader.get() else { return };
        let mut used = self.used.take();
        match used.iter_mut().find(|(block, _)| *block == reader) {
            Some((_, count)) => *count += 1,
            None => used.push((reader, 1)),
        }
        self.used.set(used);
    }
}
