//! The identity of a client, for quotas and idempotency keys that outlive its connection.

use std::net::IpAddr;

use super::address::AddressBlock;

/// A client: the subject of its token, or the network that an anonymous client connects from.
///
/// It is not the connection, since a client that reconnects must not get a new quota, and retries a publish on another
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientIdentity<'a> {
    /// The `sub` of a token.
    Subject(&'a str),
    /// An IPv4 address or the /64 of an IPv6 address.
    Network(u64),
}

impl<'a> ClientIdentity<'a> {
    /// The identity of a client at this address whose token has this `sub`, if any.
    pub fn of(sub: Option<&'a str>, address: IpAddr) -> ClientIdentity<'a> {
        match sub {
            Some(sub) => ClientIdentity::Subject(sub),
            None => ClientIdentity::Network(AddressBlock::from(address).number()),
        }
    }
}
