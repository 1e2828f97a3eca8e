//! Determines the address of a client, and enforces the limits per address.
//!
//! The peer of a connection is the client, unless it is a trusted proxy. A trusted proxy names the client: in the PROXY
//! protocol for a whole connection, in `X-Forwarded-For` for one request. This address is logged, and limits per
//! address apply to it.
//!
//! A connection counts against the limit if it belongs to one client: every direct connection, and a WebSocket or an
//! event stream through a proxy. The other connections of a proxy carry requests of many clients, and do not count.

use std::net::IpAddr;

use super::address::{AddressLimits, Addresses, Admission};
use super::proxy::{self, Network};
use super::rate::Rate;
use crate::access::limit::Limit;
use crate::close::Reason;
use crate::config::Limits;
use crate::ids::Peer;
use crate::time::LoopTime;

/// Maximum addresses without connections whose handshake rates are retained: about 4 MiB. An attacker needs more
/// addresses than that to have one evicted, and then gains nothing from it.
const SPARE_ADDRESSES: usize = 65_536;

/// Proxies that the operator trusts.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// The addresses of the proxies.
    pub networks: Vec<Network>,
    /// True if they send a PROXY protocol header at the start of each connection.
    pub send_header: bool,
}

/// The error of [`ConnectionLimiter::admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitExceeded {
    /// The limit.
    pub limit: Limit,
    /// Milliseconds after which the client may retry.
    pub retry_ms: u32,
}

impl LimitExceeded {
    /// The reason to close the connection with.
    pub fn reason(self) -> Reason {
        match self.limit {
            Limit::ConnectionsPerAddress => Reason::TooManyConnections,
            _ => Reason::RateLimited { retry_ms: self.retry_ms },
        }
    }
}

/// The retry delay of a client whose address has too many connections. It is a guess, since the time at which one of
/// them closes is not known.
pub const TOO_MANY_RETRY_MS: u32 = 10_000;

/// The trusted proxies, and the connections and handshake rates of all addresses.
#[derive(Debug)]
pub struct ConnectionLimiter {
    proxies: Proxies,
    addresses: Addresses,
}

impl ConnectionLimiter {
    /// A limiter without trusted proxies.
    pub fn new(limits: &Limits) -> ConnectionLimiter {
        let most = limits.connections_per_address_max;
        let limits = AddressLimits {
            connections_max: (most > 0).then_some(most),
            handshakes: Rate::each_second(limits.handshakes_per_second),
        };
        ConnectionLimiter { proxies: Proxies::default(), addresses: Addresses::new(limits, SPARE_ADDRESSES) }
    }

    /// Replaces the trusted proxies.
    pub fn trust(&mut self, proxies: Proxies) {
        self.proxies = proxies;
    }

    /// Returns true if the address is that of a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        proxy::is_trusted(address, &self.proxies.networks)
    }

    /// Returns true if a connection from this address must start with a PROXY protocol header. From any other address
    /// such a header is a malformed request.
    pub fn awaits_header(&self, address: IpAddr) -> bool {
        self.proxies.send_header && self.trusts(address)
    }

    /// The client of a request with these `X-Forwarded-For` lines, or `None` if the peer is the client.
    pub fn forwarded_client<'a>(
        &self,
        peer: Peer,
        lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    ) -> Option<IpAddr> {
        let is_proxy = self.trusts(peer.ip());
        is_proxy.then(|| proxy::forwarded_client(peer.ip(), lines, &self.proxies.networks))
    }

    /// Admits a connection and counts it until [`ConnectionLimiter::release`]. Connections of a trusted proxy are not
    /// counted.
    ///
    /// # Errors
    /// A limit of the address is exceeded.
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

    /// Releases a connection that was admitted.
    pub fn release(&mut self, peer: Peer) {
        if peer.is_counted {
            self.addresses.release(peer.ip());
        }
    }

    /// Drops the addresses that no longer count: see [`Addresses::expire`].
    pub fn expire(&mut self, now: LoopTime) {
        self.addresses.expire(now);
    }

    /// The number of addresses in the table.
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
    fn trusted_proxy_names_the_client_and_is_not_counted() {
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
    fn rejected_connection_does_not_release_that_of_another() {
        let (mut limiter, now) = (limiter(1), LoopTime::from_millis(0));
        let (mut one, mut two) = (peer("203.0.113.7:1"), peer("203.0.113.7:2"));
        assert_eq!(limiter.admit(&mut one, now), Ok(()));
        let over = limiter.admit(&mut two, now).unwrap_err();
        assert_eq!((over.limit, over.reason()), (Limit::ConnectionsPerAddress, Reason::TooManyConnections));
        // The release of a rejected connection does not change the count.
        limiter.release(two);
        assert!(limiter.admit(&mut two, now).is_err());
        limiter.release(one);
        assert_eq!(limiter.admit(&mut two, now), Ok(()));
    }
}
