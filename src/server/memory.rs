//! The memory budget of the process, and the steps that come into force as memory use approaches it.
//!
//! The budget is compared with the allocator's own count of bytes in use, size classes included. A sum kept by the
//! server would be incomplete and drift: outboxes share pieces with each other and with histories, buffers have
//! capacity beyond their length, TLS does not report the size of its state. [`MemoryBudget`] is pure: it takes the
//! count as an argument, and returns the steps in force. [`super::relief`] carries them out.
//!
//! # The allocator
//!
//! The `oyez` binary uses jemalloc, for what a budget needs: a count of all bytes in use that is cheap to read, and
//! pages that return to the system after a flood.
//!
//! | | glibc | jemalloc | mimalloc (3) |
//! | --- | --- | --- | --- |
//! | resident, without connections | 5.7 MB | 6.9 MB | 12.2 MB |
//! | resident for each idle subscriber, from 2,000 to 18,000 | 97 bytes | 90 bytes | 261 bytes |
//! | incomplete messages of 2,000 clients: before, at the peak | 5.7, 142 MB | 6.9, 145 MB | 12.5, 190 MB |
//! | 2, 4, 8 and 12 s after those clients have closed | 132 MB | 98, 63, 7.6 and 7.6 MB | 190 MB |
//! | processor time of a delivery in user space, 200 subscribers | 100 to 240 ns | 110 to 280 ns | not measured |
//! | processor time that it adds to a build from scratch, of 83 s | | 73 s | 4 s |
//!
//! glibc returns memory at the top of its heap, which is rarely the memory that a flood frees, and `malloc_trim` needs
//! `unsafe`. jemalloc returns unused pages in a background thread that shares no data with the server (without it, only
//! during allocations: 142 MB after 12 s). Its count takes 15 us, and a nanosecond between exact ones: see
//! `src/allocator.rs`. mimalloc and glibc have to be counted by a wrapper, without size classes: a build without the
//! cargo feature `jemalloc` does so, for the sake of its size.
//!
//! By default jemalloc returns a page that has been unused for 10 s, as in the table; `src/allocator.rs` sets 300 ms.
//! Resident bytes for each of 10,000 subscribers after bursts of 64 messages of 512 bytes were 217 with the default and
//! 142 with 300 ms; with 50, 100 and 150 ms idle connections take no less than with 300.
//!
//! Until they are returned, freed pages are resident: tables that grow with the connections are therefore not copied
//! as they grow, see [`crate::tables::chunked_slab`]. glibc moves large ones with `mremap`.
//!
//! The count is read at most once a millisecond, which is as often as the loop's clock moves.

use crate::metrics::MemoryStep;

/// Returns the number of bytes that the allocator of this process has in use.
///
/// It is a parameter since the allocator belongs to the binary, and so that tests can choose the count.
pub type AllocatedBytes = fn() -> u64;

/// A step ends this many percent below where it begins, so that it does not begin and end with every
/// connection.
const HYSTERESIS_PERCENT: u64 = 5;

/// Where a step begins, in percent of the budget.
///
/// Below the first step nothing changes. Requests that are under way when it begins still need memory, and the 10
/// percent up to the second step are reserved for them.
fn begins_at_percent(step: MemoryStep) -> u64 {
    match step {
        MemoryStep::RejectLarge => 75,
        MemoryStep::CloseLargest => 85,
        MemoryStep::EvictHistory => 90,
        MemoryStep::RejectConnections => 95,
    }
}

/// The budget, the last count, and the steps in force.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBudget {
    /// 0: no budget.
    bytes_max: u64,
    used_bytes: u64,
    in_force: [bool; MemoryStep::COUNT],
}

/// A step that began or ended.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepChange {
    /// The step is in force from now on.
    Began,
    /// The step is no longer in force.
    Ended,
}

impl MemoryBudget {
    /// A budget in bytes; 0: no budget.
    pub fn new(bytes_max: u64) -> MemoryBudget {
        MemoryBudget { bytes_max, ..MemoryBudget::default() }
    }

    /// The budget; 0: no budget.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// The last count.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Takes a new count. Returns the steps that begin or end, in their order.
    pub fn observe(&mut self, used_bytes: u64) -> impl Iterator<Item = (MemoryStep, StepChange)> + use<> {
        self.used_bytes = used_bytes;
        let before = self.in_force;
        for step in MemoryStep::ALL {
            let percent = begins_at_percent(step);
            let in_force = &mut self.in_force[step as usize];
            *in_force = self.bytes_max > 0
                && if *in_force {
                    used_bytes > share(self.bytes_max, percent - HYSTERESIS_PERCENT)
                } else {
                    used_bytes >= share(self.bytes_max, percent)
                };
        }
        let after = self.in_force;
        MemoryStep::ALL.into_iter().filter_map(move |step| {
            match (before[step as usize], after[step as usize]) {
                (false, true) => Some((step, StepChange::Began)),
                (true, false) => Some((step, StepChange::Ended)),
                _ => None,
            }
        })
    }

    /// Returns true if the step is in force.
    pub fn is_in_force(&self, step: MemoryStep) -> bool {
        self.in_force[step as usize]
    }

    /// Returns the number of bytes that have to be freed for the step to end.
    pub fn excess_bytes(&self, step: MemoryStep, used_bytes: u64) -> u64 {
        if !self.is_in_force(step) {
            return 0;
        }
        used_bytes.saturating_sub(share(self.bytes_max, begins_at_percent(step) - HYSTERESIS_PERCENT))
    }
}

/// A percentage of the budget. A budget is at least 100 bytes, and at most 2^57.
fn share(bytes_max: u64, percent: u64) -> u64 {
    bytes_max / 100 * percent
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_force(budget: &MemoryBudget) -> usize {
        MemoryStep::ALL.into_iter().filter(|&step| budget.is_in_force(step)).count()
    }

    #[test]
    fn steps_begin_in_their_order_and_end_below_where_they_began() {
        let mut budget = MemoryBudget::new(1_000);
        let mut steps_at = |used: u64| {
            let changes: Vec<_> = budget.observe(used).collect();
            (in_force(&budget), changes)
        };
        assert_eq!(steps_at(749), (0, vec![]));
        assert_eq!(steps_at(750), (1, vec![(MemoryStep::RejectLarge, StepChange::Began)]));
        assert_eq!(steps_at(850), (2, vec![(MemoryStep::CloseLargest, StepChange::Began)]));
        assert_eq!(steps_at(801), (2, vec![]), "not yet");
        assert_eq!(steps_at(800), (1, vec![(MemoryStep::CloseLargest, StepChange::Ended)]));
        let (count, changes) = steps_at(5_000);
        assert_eq!(count, 4);
        assert_eq!(
            changes.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
            [MemoryStep::CloseLargest, MemoryStep::EvictHistory, MemoryStep::RejectConnections]
        );
        let (count, changes) = steps_at(10);
        assert!(count == 0 && changes.len() == 4 && changes.iter().all(|(_, how)| *how == StepChange::Ended));
    }

    #[test]
    fn budget_of_zero_begins_no_step() {
        let mut budget = MemoryBudget::new(0);
        assert_eq!(budget.observe(u64::MAX).count(), 0);
        assert_eq!((in_force(&budget), budget.used_bytes()), (0, u64::MAX));
        assert_eq!(budget.excess_bytes(MemoryStep::CloseLargest, u64::MAX), 0);
    }

    proptest! {
        /// Whatever the counts: a later step is never in force without the earlier ones, a step is in force from its
        /// beginning on and never at or below its end, and freeing the excess ends it.
        #[test]
        fn steps_are_nested_and_end_with_their_excess(
            max in 1_000u64..1 << 40,
            counts in prop::collection::vec(0u64..120, 1..60),
        ) {
            let mut budget = MemoryBudget::new(max);
            for percent in counts {
                let used = share(max, percent);
                for (step, change) in budget.observe(used) {
                    prop_assert_eq!(budget.is_in_force(step), change == StepChange::Began);
                }
                let forced = MemoryStep::ALL.map(|step| budget.is_in_force(step));
                prop_assert!(forced.is_sorted_by(|earlier, later| earlier >= later), "{:?}", forced);
                for step in MemoryStep::ALL {
                    let begins = begins_at_percent(step);
                    prop_assert!(percent < begins || budget.is_in_force(step));
                    prop_assert!(percent > begins - HYSTERESIS_PERCENT || !budget.is_in_force(step));
                    let excess = budget.excess_bytes(step, used);
                    prop_assert_eq!(excess > 0, budget.is_in_force(step));
                    let mut relieved = budget;
                    let _ = relieved.observe(used - excess).count();
                    prop_assert!(!relieved.is_in_force(step));
                }
            }
        }
    }
}
