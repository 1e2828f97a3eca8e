//! Limits per IP address: concurrent connections, and handshakes per second.
//!
//! A table counts the connections and the handshakes of each address. IPv6 addresses are counted by /64, since a
//! provider assigns at least a /64 to each customer, who can use any address in it.
//!
//! The table is bounded. It has at most as many addresses with connections as there are connections. Addresses without
//! connections are retained for their handshake rate, up to a maximum, and the oldest is evicted first. An attacker
//! with more addresses than that is not stopped by a limit per address in any case.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::rate::{Rate, Take, TokenBucket};
use crate::time::LoopTime;

/// An IPv4 address or the /64 of an IPv6 address, in eight bytes.
///
/// IPv4 addresses take the numbers of the IPv6 networks that begin with four zero bytes, which are not assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AddressBlock(u64);

impl From<IpAddr> for AddressBlock {
    fn from(address: IpAddr) -> AddressBlock {
        match address.to_canonical() {
            IpAddr::V4(address) => AddressBlock(u64::from(u32::from(address))),
            IpAddr::V6(address) => AddressBlock((u128::from(address) >> 64) as u64),
        }
    }
}

impl AddressBlock {
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// The limits of one address; `None`: unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressLimits {
    /// Maximum concurrent connections.
    pub connections_max: Option<u32>,
    /// Rate of handshakes, including failed ones.
    pub handshakes: Option<Rate>,
}

/// The result of [`Addresses::admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// The connection is within the limits, and counts until [`Addresses::release`].
    Admitted,
    /// The address has the maximum number of connections.
    TooManyConnections,
    /// The address exceeds its rate of handshakes.
    RateLimited {
        /// Milliseconds until the next handshake is admitted.
        retry_ms: u32,
    },
}

/// The connections and handshake rates of all addresses.
#[derive(Debug)]
pub struct Addresses {
    limits: AddressLimits,
    /// Maximum addresses without connections.
    spare: usize,
    entries: HashMap<AddressBlock, AddressEntry>,
    /// Each address once; the next candidate for eviction is at the front.
    queue: VecDeque<AddressBlock>,
    /// Entries that have connections.
    occupied: usize,
}

#[derive(Debug)]
struct AddressEntry {
    connections: u32,
    handshakes: Option<TokenBucket>,
}

impl Addresses {
    /// An empty table that retains up to `spare` addresses without connections.
    pub fn new(limits: AddressLimits, spare: usize) -> Addresses {
        Addresses {
            limits,
            spare: spare.max(1),
            entries: HashMap::new(),
            queue: VecDeque::new(),
            occupied: 0,
        }
    }

    /// Admits a connection if its address is within the limits.
    pub fn admit(&mut self, address: IpAddr, now: LoopTime) -> Admission {
        let AddressLimits { connections_max, handshakes } = self.limits;
        if connections_max.is_none() && handshakes.is_none() {
            return Admission::Admitted;
        }
        let block = AddressBlock::from(address);
        if !self.entries.contains_key(&block) {
            self.evict();
            self.queue.push_back(block);
        }
        let entry = self.entries.entry(block).or_insert(AddressEntry {
            connections: 0,
            handshakes: handshakes.map(|rate| TokenBucket::full(rate, now)),
        });
        if let (Some(rate), Some(bucket)) = (handshakes, &mut entry.handshakes)
            && let Take::Denied { retry_ms } = bucket.take(rate, 1, now)
        {
            return Admission::RateLimited { retry_ms };
        }
        if connections_max.is_some_and(|most| entry.connections >= most) {
            return Admission::TooManyConnections;
        }
        entry.connections += 1;
        self.occupied += usize::from(entry.connections == 1);
        Admission::Admitted
    }

    /// Releases a connection that was admitted.
    pub fn release(&mut self, address: IpAddr) {
        if let Some(entry) = self.entries.get_mut(&AddressBlock::from(address))
            && entry.connections > 0
        {
            entry.connections -= 1;
            self.occupied -= usize::from(entry.connections == 0);
        }
    }

    /// Drops the addresses that have no connections and a full bucket, and refills the other buckets. It must be called
    /// well within the 24 days that a [`LoopTime`] spans, since the age of an older bucket would appear to be zero.
    pub fn expire(&mut self, now: LoopTime) {
        let rate = self.limits.handshakes;
        self.entries.retain(|_, entry| {
            let is_full = match (rate, &mut entry.handshakes) {
                (Some(rate), Some(bucket)) => bucket.is_full(rate, now),
                _ => true,
            };
            entry.connections > 0 || !is_full
        });
        self.queue.retain(|block| self.entries.contains_key(block));
        self.entries.shrink_to(2 * self.entries.len());
        self.queue.shrink_to(2 * self.queue.len());
    }

    /// The number of addresses in the table.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Evicts addresses without connections, until there is room for one more. Addresses with connections move from the
    /// front to the back of the queue, so the cost of a pass over them is shared by `spare` new addresses.
    fn evict(&mut self) {
        while self.entries.len() - self.occupied >= self.spare {
            let Some(block) = self.queue.pop_front() else {
                return;
            };
            match self.entries.get(&block) {
                Some(entry) if entry.connections > 0 => self.queue.push_back(block),
                _ => {
                    self.entries.remove(&block);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::num::NonZeroU32;

    fn limits(connections_max: Option<u32>, per_second: Option<u32>) -> AddressLimits {
        let rate = |number| NonZeroU32::new(number).unwrap();
        let handshakes = per_second.map(|number| Rate { per_second: rate(number), burst: rate(number) });
        AddressLimits { connections_max, handshakes }
    }

    fn now() -> LoopTime {
        LoopTime::from_millis(0)
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(number))
    }

    #[test]
    fn connection_above_the_limit_of_its_address_is_rejected() {
        let mut addresses = Addresses::new(limits(Some(2), None), 8);
        assert_eq!(addresses.admit(v4(1), now()), Admission::Admitted);
        assert_eq!(addresses.admit(v4(1), now()), Admission::Admitted);
        assert_eq!(addresses.admit(v4(1), now()), Admission::TooManyConnections);
        assert_eq!(addresses.admit(v4(2), now()), Admission::Admitted);
        addresses.release(v4(1));
        assert_eq!(addresses.admit(v4(1), now()), Admission::Admitted);
        assert_eq!(addresses.admit(v4(1), now()), Admission::TooManyConnections);
        addresses.release(v4(9));
    }

    #[test]
    fn rejected_handshake_counts_against_the_rate() {
        let mut addresses = Addresses::new(limits(Some(1), Some(2)), 8);
        assert_eq!(addresses.admit(v4(1), now()), Admission::Admitted);
        assert_eq!(addresses.admit(v4(1), now()), Admission::TooManyConnections);
        assert_eq!(addresses.admit(v4(1), now()), Admission::RateLimited { retry_ms: 500 });
        addresses.release(v4(1));
        assert_eq!(addresses.admit(v4(1), now().after(499)), Admission::RateLimited { retry_ms: 1 });
        assert_eq!(addresses.admit(v4(1), now().after(500)), Admission::Admitted);
    }

    #[test]
    fn ipv6_addresses_of_one_64_share_their_limits() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let mut addresses = Addresses::new(limits(Some(1), None), 8);
        assert_eq!(addresses.admit(address("2001:db8::1"), now()), Admission::Admitted);
        assert_eq!(addresses.admit(address("2001:db8::ffff:1:2:3"), now()), Admission::TooManyConnections);
        assert_eq!(addresses.admit(address("2001:db8:0:1::1"), now()), Admission::Admitted);
        assert_eq!(addresses.admit(address("192.0.2.1"), now()), Admission::Admitted);
        assert_eq!(addresses.admit(address("::ffff:192.0.2.1"), now()), Admission::TooManyConnections);
        assert_eq!(addresses.admit(address("192.0.2.2"), now()), Admission::Admitted);
    }

    #[test]
    fn table_without_limits_stays_empty() {
        let mut addresses = Addresses::new(AddressLimits::default(), 8);
        assert_eq!(addresses.admit(v4(1), now()), Admission::Admitted);
        addresses.release(v4(1));
        assert!(addresses.is_empty());
    }

    /// A hundred thousand addresses leave at most `spare` entries, and open connections remain counted.
    #[test]
    fn table_is_bounded_and_keeps_addresses_with_connections() {
        let mut addresses = Addresses::new(limits(Some(1), Some(1)), 100);
        for number in 0..50 {
            assert_eq!(addresses.admit(v4(number), now()), Admission::Admitted);
        }
        for number in 1_000_u128..100_000 {
            let address = IpAddr::V6(Ipv6Addr::from(number << 64));
            assert_eq!(addresses.admit(address, now()), Admission::Admitted);
            addresses.release(address);
            assert!(addresses.len() <= 150 && addresses.queue.len() == addresses.len());
        }
        for number in 0..50 {
            assert_eq!(addresses.admit(v4(number), now().after(5_000)), Admission::TooManyConnections);
            addresses.release(v4(number));
        }
        assert_eq!(addresses.occupied, 0);
    }

    /// An address that reconnects often is not evicted earlier.
    #[test]
    fn reconnecting_does_not_reset_the_rate() {
        let mut addresses = Addresses::new(limits(None, Some(3)), 4);
        let mut admitted = 0;
        for _ in 0..1_000 {
            if addresses.admit(v4(7), now()) == Admission::Admitted {
                admitted += 1;
                addresses.release(v4(7));
            }
        }
        assert_eq!(admitted, 3);
        assert_eq!(addresses.len(), 1);
    }
}
