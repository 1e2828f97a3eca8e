//! The cost of a slice of a long response, which the budget of a turn bounds.

use std::ops::AddAssign;

use crate::hub::replay::Work;

/// The cost of a slice, as an estimate of the time that it takes: a clock would have to be read for each slice, and
/// tests could not predict a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) nanos: u64,
}

impl Cost {
    /// No work.
    pub(super) const NONE: Cost = Cost { nanos: 0 };

    /// Fixed cost of a slice: its entries on two lists, its allocation, and the call that writes it.
    pub(super) const SLICE: Cost = Cost { nanos: 3_000 };

    /// The cost of the work, and of the bytes that are to be written. A slice of 16 KiB of a history page takes 16 us
    /// of processor time with its turn and its write; one of a listing 26 us, 10 of them for its 133 channels.
    pub(super) fn of(work: Work, queued: usize) -> Cost {
        let encoded = work.encoded as u64 / 2 + 100 * work.entries as u64;
        Cost { nanos: Cost::SLICE.nanos + encoded + queued as u64 / 4 }
    }

    /// The counters as text, 32 us, and a walk over all slots for the bytes in their outboxes: 14 us for 8,000. Sums
    /// that are updated with each write would cost more than they save.
    pub(super) fn of_metrics(slots: usize) -> Cost {
        Cost { nanos: 35_000 + 2 * slots as u64 }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.nanos += other.nanos;
    }
}
