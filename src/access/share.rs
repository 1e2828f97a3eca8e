//! Shares: the part of a common resource that one client may hold.
//!
//! A table counts how much each client ([`Identity`]) holds now, so a client that holds nothing costs nothing.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::identity::Identity;
use crate::tables::shrink::shrink_sparse;

/// A client, as a hash under random keys: no client can choose a name that collides with that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareKey(u64);

/// The client holds as much as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareFull;

/// What each client holds.
#[derive(Debug)]
pub struct Shares {
    hasher: RandomState,
    held: HashMap<ShareKey, u32>,
    most: u32,
}

impl Shares {
    /// An empty table; each client may hold `most`.
    pub fn new(most: usize) -> Shares {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        Shares { hasher: RandomState::new(), held: HashMap::new(), most }
    }

    /// The key of a client in this table.
    pub fn key(&self, client: Identity<'_>) -> ShareKey {
        ShareKey(self.hasher.hash_one(client))
    }

    /// Returns true if the client holds as much as it may.
    pub fn is_full(&self, key: ShareKey) -> bool {
        self.held.get(&key).copied().unwrap_or(0) >= self.most
    }

    /// Takes one more.
    ///
    /// # Errors
    /// The client holds as much as it may.
    pub fn take(&mut self, key: ShareKey) -> Result<(), ShareFull> {
        if self.is_full(key) {
            return Err(ShareFull);
        }
        *self.held.entry(key).or_default() += 1;
        Ok(())
    }

    /// Releases one.
    pub fn give_back(&mut self, key: ShareKey) {
        let Some(held) = self.held.get_mut(&key) else { return };
        *held -= 1;
        if *held == 0 {
            self.held.remove(&key);
            shrink_sparse(&mut self.held);
        }
    }

    /// How many clients hold something.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Returns true if no client holds anything.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn share_is_per_person_or_address_and_comes_back() {
        let mut shares = Shares::new(2);
        let key = |shares: &Shares, sub, address: &str| {
            shares.key(Identity::of(sub, address.parse::<IpAddr>().unwrap()))
        };
        let person = key(&shares, Some("alice"), "192.0.2.1");
        assert_eq!(person, key(&shares, Some("alice"), "192.0.2.2"), "a person is the same everywhere");
        let keys = [key(&shares, None, "192.0.2.1"), key(&shares, None, "192.0.2.2"), person];
        for key in keys {
            assert_eq!(
                (shares.take(key), shares.take(key), shares.take(key)),
                (Ok(()), Ok(()), Err(ShareFull))
            );
        }
        shares.give_back(person);
        assert_eq!((shares.take(person), shares.take(keys[0])), (Ok(()), Err(ShareFull)));
        let networks = ["2001:db8::1", "2001:db8::2"].map(|address| key(&shares, None, address));
        assert_eq!(networks[0], networks[1], "one customer's network");
    }

    #[test]
    fn shares_of_a_crowd_leave_no_memory() {
        let mut shares = Shares::new(1);
        let key = |shares: &Shares, number: u32| {
            shares.key(Identity::of(None, std::net::Ipv4Addr::from(number).into()))
        };
        for number in 0..10_000 {
            assert_eq!(shares.take(key(&shares, number)), Ok(()));
        }
        for number in 0..10_000 {
            shares.give_back(key(&shares, number));
        }
        assert!(shares.is_empty() && shares.held.capacity() <= 16, "{}", shares.held.capacity());
    }
}
