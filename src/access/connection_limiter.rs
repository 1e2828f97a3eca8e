//! Who comes in, and from where.
//!
//! Whoever connects is the client, unless it is a proxy that the operator trusts: that one says for whom
//! it speaks, in the PROXY protocol for a whole connection, in `X-Forwarded-For` for one request. The
//! address found so is what logs name and what limits per address count.
//!
//! What is counted is a connection that one client has to itself: one that came from no proxy, and a
//! WebSocket or an event stream that came through one. A proxy's own connections carry requests of many
//! clients, and are nobody's.

use std::net::IpAddr;

use super::address::{AddressLimits, Addresses, Admission};
use super::proxy::{self, Network};
use super::rate::Rate;
use crate::access::limit::Limit;
use crate::close::Reason;
use crate::config::Limits;
use crate::ids::Peer;
use crate::time::LoopTime;

/// Addresses without connections that are remembered for the sake of their handshakes: about 4 MiB. An
/// attacker needs more than that many to have one forgotten, and then has no need of it.
const SPARE_ADDRESSES: usize = 65_536;

/// Proxies that the operator trusts.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// Where they are.
    pub networks: Vec<Network>,
    /// Do they begin each connection with a header of the PROXY protocol?
    pub send_header: bool,
}

/// An address has as much as it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitExceeded {
    /// Which limit it is over.
    pub limit: Limit,
    /// When to come back, in milliseconds.
    pub retry_ms: u32,
}

impl LimitExceeded {
    /// Why the connection ends.
    pub fn reason(self) -> Reason {
        match self.limit {
            Limit::ConnectionsPerAddress => Reason::TooManyConnections,
            _ => Reason::RateLimited { retry_ms: self.retry_ms },
        }
    }
}

/// How long somebody whose address has too many connections should stay away: nobody knows when one of
/// them ends.
pub const TOO_MANY_RETRY_MS: u32 = 10_000;

/// Finds out who comes, and counts.
#[derive(Debug)]
pub struct ConnectionLimiter {
    proxies: Proxies,
    addresses: Addresses,
}

impl ConnectionLimiter {
    /// A door to which no proxy leads.
    pub fn new(limits: &Limits) -> ConnectionLimiter {
        let most = limits.connections_per_address_max;
        let limits = AddressLimits {
            connections_max: (most > 0).then_some(most),
            handshakes: Rate::each_second(limits.handshakes_per_second),
        };
        ConnectionLimiter { proxies: Proxies::default(), addresses: Addresses::new(limits, SPARE_ADDRESSES) }
    }

    /// Believes these proxies from now on.
    pub fn trust(&mut self, proxies: Proxies) {
        self.proxies = proxies;
    }

    /// Is this a proxy that the operator trusts?
    pub fn trusts(&self, address: IpAddr) -> bool {
        proxy::is_trusted(address, &self.proxies.networks)
    }

    /// Does a connection from there begin with a header of the PROXY protocol? From anybody else it is
    /// what it looks like: no request.
    pub fn awaits_header(&self, address: IpAddr) -> bool {
        self.proxies.send_header && self.trusts(address)
    }

    /// For whom the peer speaks in a request with these `X-Forwarded-For` lines; `None` for itself.
    pub fn forwarded_client<'a>(
        &self,
        peer: Peer,
        lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> Option<IpAddr> {
        let is_proxy = self.trusts(peer.ip());
        is_proxy.then(|| proxy::forwarded_client(peer.ip(), lines, &self.proxies.networks))
    }

    /// Somebody comes with a connection of its own, and is counted until [`ConnectionLimiter::leave`]. A trusted proxy is
    /// not: it speaks for others.
    ///
    /// # Errors
    /// Its address has as much as it may have.
    pub fn admit(&mut self, peer: &mut Peer, now: LoopTime) -> Result<(), LimitExceeded> {
        if self.trusts(peer.ip()) {
            return Ok(());
        }
        match self.addresses.admit(peer.ip(), now) {
            Admission::Admitted => {
                peer.is_counted = true;
                Ok(())
            }
            Admission::TooManyConnections => {
                Err(LimitExceeded { limit: Limit::ConnectionsPerAddress, retry_ms: TOO_MANY_RETRY_MS })
            }
            Admission::RateLimited { retry_ms } => Err(LimitExceeded { limit: Limit::Handshakes, retry_ms }),
        }
    }

    /// A connection is gone.
    pub fn release(&mut self, peer: Peer) {
        if peer.is_counted {
            self.addresses.release(peer.ip());
        }
    }

    /// Drops addresses whose connections and handshakes no longer count.
    pub fn expire(&mut self, now: LoopTime) {
        self.addresses.expire(now);
    }

    /// How many addresses are known.
    pub fn addresses(&self) -> usize {
        self.addresses.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn peer(text: &str) -> Peer {
        Peer::from(text.parse::<SocketAddr>().unwrap())
    }

    fn limiter(connections_per_address_max: u32) -> ConnectionLimiter {
        let mut limiter =
            ConnectionLimiter::new(&Limits { connections_per_address_max, ..Limits::default() });
        limiter.trust(Proxies { networks: vec![Network::parse("10.0.0.0/8").unwrap()], send_header: true });
        limiter
    }

    #[test]
    fn a_proxy_speaks_for_others_and_is_not_counted() {
        let (mut limiter, now) = (limiter(1), LoopTime::from_millis(0));
        for _ in 0..3 {
            let mut proxy = peer("10.0.0.1:1");
            assert_eq!(limiter.admit(&mut proxy, now), Ok(()));
            assert!(!proxy.is_counted);
        }
        assert_eq!(limiter.addresses(), 0);
        let lines = || [&b"192.0.2.66, 203.0.113.9"[..]].into_iter();
        assert_eq!(
            limiter.forwarded_client(peer("10.0.0.1:1"), lines()),
            Some("203.0.113.9".parse().unwrap())
        );
        assert_eq!(limiter.forwarded_client(peer("203.0.113.7:1"), lines()), None);
        assert!(limiter.awaits_header("10.0.0.1".parse().unwrap()));
        assert!(!limiter.awaits_header("203.0.113.7".parse().unwrap()));
    }

    #[test]
    fn who_was_counted_is_counted_out_once() {
        let (mut limiter, now) = (limiter(1), LoopTime::from_millis(0));
        let (mut one, mut two) = (peer("203.0.113.7:1"), peer("203.0.113.7:2"));
        assert_eq!(limiter.admit(&mut one, now), Ok(()));
        let over = limiter.admit(&mut two, now).unwrap_err();
        assert_eq!((over.limit, over.reason()), (Limit::ConnectionsPerAddress, Reason::TooManyConnections));
        // Who was turned away takes nobody's place with it when it goes.
        limiter.release(two);
        assert!(limiter.admit(&mut two, now).is_err());
        limiter.release(one);
        assert_eq!(limiter.admit(&mut two, now), Ok(()));
    }
}
