//! A queue of connections in which addresses take turns.
//!
//! Each address (an IPv4 address, or the /64 of an IPv6 address) has a separate queue while it has connections that
//! wait, and the queues are served round robin: a connection waits for one entry of each other address, however many
//! connections these have. Clients of one HTTP proxy share its turn, since a plain request belongs to the connection
//! that it arrives on.
//!
//! An address without waiting connections costs nothing.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use crate::access::address::AddressBlock;
use crate::ids::SlotId;

/// A queue in which addresses take turns.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// The waiting connections of each address, none of them empty. Its keys are hashed with random seeds, since
    /// clients choose among addresses.
    queues: HashMap<AddressBlock, VecDeque<SlotId>>,
    /// The addresses that have a queue, each once; the next to be served in front.
    rotation: VecDeque<AddressBlock>,
}

impl FairQueue {
    /// Appends a connection to the queue of its address.
    pub(super) fn push(&mut self, id: SlotId, ip: IpAddr) {
        let block = AddressBlock::from(ip);
        let queue = self.queues.entry(block).or_default();
        if queue.is_empty() {
            self.rotation.push_back(block);
        }
        queue.push_back(id);
    }

    /// Takes the next connection of the next address.
    pub(super) fn pop(&mut self) -> Option<SlotId> {
        let block = self.rotation.pop_front()?;
        let queue = self.queues.get_mut(&block)?;
        let id = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&block);
        } else {
            self.rotation.push_back(block);
        }
        Some(id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rotation.is_empty()
    }

    /// Releases memory beyond the need of this many connections.
    pub(super) fn shrink_to(&mut self, most: usize) {
        self.queues.shrink_to(most);
        self.queues.values_mut().for_each(|queue| queue.shrink_to(most));
        self.rotation.shrink_to(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: u32) -> SlotId {
        SlotId { key, generation: 0 }
    }

    #[test]
    fn addresses_take_turns_and_each_queue_keeps_its_order() {
        let mut queue = FairQueue::default();
        let network = |number: u32| format!("2001:db8::{number}").parse().unwrap();
        (0..100).for_each(|number| queue.push(id(number), network(number)));
        queue.push(id(100), "192.0.2.1".parse().unwrap());
        queue.push(id(101), "2001:db8:0:1::1".parse().unwrap());
        queue.push(id(102), "::ffff:192.0.2.1".parse().unwrap());
        let popped: Vec<u32> = std::iter::from_fn(|| queue.pop()).map(|id| id.key).collect();
        assert_eq!(popped[..8], [0, 100, 101, 1, 102, 2, 3, 4]);
        assert_eq!(popped[8..], (5..100).collect::<Vec<u32>>());
        assert!(queue.is_empty() && queue.pop().is_none() && queue.queues.is_empty());
    }

    #[test]
    fn address_queued_again_waits_for_its_turn() {
        let mut queue = FairQueue::default();
        let [one, two] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        queue.push(id(1), one);
        queue.push(id(2), two);
        queue.push(id(3), two);
        assert_eq!(queue.pop(), Some(id(1)));
        queue.push(id(1), one);
        let popped: Vec<u32> = std::iter::from_fn(|| queue.pop()).map(|id| id.key).collect();
        assert_eq!(popped, [2, 1, 3]);
    }
}
