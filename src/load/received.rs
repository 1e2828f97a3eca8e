//! Did a client get every message once and in order?
//!
//! Order is judged within what one publisher sent: that is what every broadcast server promises, with
//! one thread or with many.

/// What one client got of one publisher.
#[derive(Clone, Debug)]
pub struct ReceivedSequences {
    /// The lowest sequence that the client is to get: it may have come later than the first.
    from: Option<u32>,
    /// One more than the highest that it got.
    next: u32,
    /// Which of the 64 before `next` it got; bit 0 is `next - 1`. The replay window of IPsec
    /// (RFC 4303 3.4.3), to tell what comes twice from what comes late.
    seen: u64,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// After the one before it.
    InOrder,
    /// Before so many others, which may be lost or still come.
    Early {
        /// How many.
        missing: u32,
    },
    /// After a later one.
    Late,
    /// Again.
    Duplicate,
}

impl ReceivedSequences {
    /// The cursor of a client that is there before the publisher's next message, number `next`.
    pub fn at(next: u32) -> ReceivedSequences {
        ReceivedSequences { from: Some(next), next, seen: 0 }
    }

    /// The cursor of a client that joins in the middle: whatever comes first is its first.
    pub fn joining() -> ReceivedSequences {
        ReceivedSequences { from: None, next: 0, seen: 0 }
    }

    /// Takes note of a message.
    pub fn take(&mut self, sequence: u32) -> Arrival {
        if self.from.is_none() {
            self.from = Some(sequence);
            self.next = sequence;
        }
        if sequence >= self.next {
            let missing = sequence - self.next;
            self.seen = self.seen.checked_shl(missing.saturating_add(1)).unwrap_or(0) | 1;
            self.next = sequence + 1;
            return if missing == 0 { Arrival::InOrder } else { Arrival::Early { missing } };
        }
        if self.has_seen(sequence) {
            return Arrival::Duplicate;
        }
        if let Some(bit) = self.bit(sequence) {
            self.seen |= bit;
        }
        Arrival::Late
    }

    /// Did the message come? Of what lies further back than the window, it is taken that it did.
    pub fn has_seen(&self, sequence: u32) -> bool {
        if sequence >= self.next {
            return false;
        }
        self.bit(sequence).is_none_or(|bit| self.seen & bit != 0)
    }

    /// How many of the messages up to `end` have not come, beside those that are missing in between.
    pub fn behind(&self, end: u32) -> u32 {
        match self.from {
            Some(_) => end.saturating_sub(self.next),
            None => 0,
        }
    }

    fn bit(&self, sequence: u32) -> Option<u64> {
        1u64.checked_shl(self.next - 1 - sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_in_order() {
        let mut cursor = ReceivedSequences::at(5);
        assert_eq!(cursor.take(5), Arrival::InOrder);
        assert_eq!(cursor.take(6), Arrival::InOrder);
        assert_eq!(cursor.behind(7), 0);
        assert_eq!(cursor.behind(9), 2);
    }

    #[test]
    fn a_gap_a_late_one_and_one_that_comes_twice() {
        let mut cursor = ReceivedSequences::at(0);
        assert_eq!(cursor.take(0), Arrival::InOrder);
        assert_eq!(cursor.take(3), Arrival::Early { missing: 2 });
        assert!(!cursor.has_seen(1) && !cursor.has_seen(2) && cursor.has_seen(3) && !cursor.has_seen(4));
        assert_eq!(cursor.take(2), Arrival::Late);
        assert_eq!(cursor.take(2), Arrival::Duplicate);
        assert_eq!(cursor.take(0), Arrival::Duplicate);
        assert_eq!(cursor.take(1), Arrival::Late);
        assert_eq!(cursor.take(4), Arrival::InOrder);
    }

    #[test]
    fn a_gap_wider_than_the_window() {
        let mut cursor = ReceivedSequences::at(0);
        assert_eq!(cursor.take(1_000), Arrival::Early { missing: 1_000 });
        assert_eq!(cursor.take(999), Arrival::Late);
        assert_eq!(cursor.take(1_001), Arrival::InOrder);
        assert!(!cursor.has_seen(998) && cursor.has_seen(999) && cursor.has_seen(1_000));
    }

    #[test]
    fn a_newcomer_misses_nothing_before_its_first() {
        let mut cursor = ReceivedSequences::joining();
        assert_eq!(cursor.behind(50), 0);
        assert_eq!(cursor.take(40), Arrival::InOrder);
        assert_eq!(cursor.take(42), Arrival::Early { missing: 1 });
        assert_eq!(cursor.behind(50), 7);
    }
}
