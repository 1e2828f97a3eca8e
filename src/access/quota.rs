//! Quotas: the maximum number of units of a shared resource, such as tickets, that one client may hold.
//!
//! A table counts the units of each client ([`ClientIdentity`]). A client that holds none takes no memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::identity::ClientIdentity;
use crate::tables::shrink::shrink_sparse;

/// A client, as a hash under random keys: no client can choose a name that collides with that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuotaKey(u64);

/// The error of [`Quotas::take`]: the client holds the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaExceeded;

/// The units that each client holds.
#[derive(Debug)]
pub struct Quotas {
    hasher: RandomState,
    held: HashMap<QuotaKey, u32>,
    most: u32,
}

impl Quotas {
    /// An empty table; each client may hold up to `most` units.
    pub fn new(most: usize) -> Quotas {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Quotas { hasher: RandomState::new(), held: HashMap::new(), most }
    }

    /// The key of a client in this table.
    pub fn key(&self, client: ClientIdentity<'_>) -> QuotaKey {
        QuotaKey(self.hasher.hash_one(client))
    }

    /// Returns true if the client holds the maximum.
    pub fn is_full(&self, key: QuotaKey) -> bool {
        self.held.get(&key).copied().unwrap_or(0) >= self.most
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// The client holds the maximum.
    pub fn take(&mut self, key: QuotaKey) -> Result<(), QuotaExceeded> {
        if self.is_full(key) {
            return Err(QuotaExceeded);
        }
        *self.held.entry(key).or_default() += 1;
        Ok(())
    }

    /// Releases one unit.
    pub fn release(&mut self, key: QuotaKey) {
        let Some(held) = self.held.get_mut(&key) else { return };
        *held -= 1;
        if *held == 0 {
            self.held.remove(&key);
            shrink_sparse(&mut self.held);
        }
    }

    /// The number of clients that hold a unit.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Returns true if no client holds a unit.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn quota_is_per_subject_or_network_and_is_released() {
        let mut quotas = Quotas::new(2);
        let key = |quotas: &Quotas, sub, address: &str| {
            quotas.key(ClientIdentity::of(sub, address.parse::<IpAddr>().unwrap()))
        };
        let subject = key(&quotas, Some("alice"), "192.0.2.1");
        assert_eq!(
            subject,
            key(&quotas, Some("alice"), "192.0.2.2"),
            "a subject has one quota at all addresses"
        );
        let keys = [key(&quotas, None, "192.0.2.1"), key(&quotas, None, "192.0.2.2"), subject];
        for key in keys {
            assert_eq!(
                (quotas.take(key), quotas.take(key), quotas.take(key)),
                (Ok(()), Ok(()), Err(QuotaExceeded))
            );
        }
        quotas.release(subject);
        assert_eq!((quotas.take(subject), quotas.take(keys[0])), (Ok(()), Err(QuotaExceeded)));
        let networks = ["2001:db8::1", "2001:db8::2"].map(|address| key(&quotas, None, address));
        assert_eq!(networks[0], networks[1], "one customer's network");
    }

    #[test]
    fn released_quotas_of_many_clients_leave_no_memory() {
        let mut quotas = Quotas::new(1);
        let key = |quotas: &Quotas, number: u32| {
            quotas.key(ClientIdentity::of(None, std::net::Ipv4Addr::from(number).into()))
        };
        for number in 0..10_000 {
            assert_eq!(quotas.take(key(&quotas, number)), Ok(()));
        }
        for number in 0..10_000 {
            quotas.release(key(&quotas, number));
        }
        assert!(quotas.is_empty() && quotas.held.capacity() <= 16, "{}", quotas.held.capacity());
    }
}
