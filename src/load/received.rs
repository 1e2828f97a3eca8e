//! Order checking: detects lost, duplicate and reordered messages of one publisher.
//!
//! Only the order of messages of the same publisher is checked, since that is what every broadcast server promises,
//! with one thread or with several.

/// The messages of one publisher that one client has received.
#[derive(Clone, Debug)]
pub struct ReceivedSequences {
    /// The first sequence that the client has to receive; `None` until a short-lived client receives its first.
    from: Option<u32>,
    /// One more than the highest received sequence.
    next: u32,
    /// Bit mask of the last 64 sequences before `next`; bit 0 is `next - 1`. It distinguishes duplicates from late
    /// messages, as the replay window of IPsec does (RFC 4303 3.4.3).
    seen: u64,
}

/// How a message fits into the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The next sequence.
    InOrder,
    /// A later sequence: the skipped messages are lost or late.
    Early {
        /// Number of skipped messages.
        missing: u32,
    },
    /// A skipped sequence, after a later one.
    Late,
    /// A sequence that was already received.
    Duplicate,
}

impl ReceivedSequences {
    /// For a client that subscribed before the message with sequence `next`.
    pub fn at(next: u32) -> ReceivedSequences {
        ReceivedSequences { from: Some(next), next, seen: 0 }
    }

    /// For a client that joins later: the first received message is its first.
    pub fn joining() -> ReceivedSequences {
        ReceivedSequences { from: None, next: 0, seen: 0 }
    }

    /// Records a message.
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

    /// Returns true if the message was received. Sequences before the window count as received.
    pub fn has_seen(&self, sequence: u32) -> bool {
        if sequence >= self.next {
            return false;
        }
        self.bit(sequence).is_none_or(|bit| self.seen & bit != 0)
    }

    /// Number of messages before `end` after the highest received one.
    pub fn not_received(&self, end: u32) -> u32 {
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
    fn messages_in_order_are_not_missing() {
        let mut cursor = ReceivedSequences::at(5);
        assert_eq!(cursor.take(5), Arrival::InOrder);
        assert_eq!(cursor.take(6), Arrival::InOrder);
        assert_eq!(cursor.not_received(7), 0);
        assert_eq!(cursor.not_received(9), 2);
    }

    #[test]
    fn early_late_and_duplicate_messages_are_distinguished() {
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
    fn gap_wider_than_the_window_counts_old_messages_as_received() {
        let mut cursor = ReceivedSequences::at(0);
        assert_eq!(cursor.take(1_000), Arrival::Early { missing: 1_000 });
        assert_eq!(cursor.take(999), Arrival::Late);
        assert_eq!(cursor.take(1_001), Arrival::InOrder);
        assert!(!cursor.has_seen(998) && cursor.has_seen(999) && cursor.has_seen(1_000));
    }

    #[test]
    fn joining_client_misses_no_message_before_its_first() {
        let mut cursor = ReceivedSequences::joining();
        assert_eq!(cursor.not_received(50), 0);
        assert_eq!(cursor.take(40), Arrival::InOrder);
        assert_eq!(cursor.take(42), Arrival::Early { missing: 1 });
        assert_eq!(cursor.not_received(50), 7);
    }
}
