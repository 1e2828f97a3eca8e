//! The address of a client that connects through a proxy: `X-Forwarded-For` and the PROXY protocol.
//!
//! A proxy is the peer of all its connections, and names the client in `X-Forwarded-For` or in the PROXY protocol. Any
//! client can forge these, so only trusted proxies are believed, and only the hops that trusted proxies have added to
//! the list.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ids::{UNIX_ADDRESS, UNIX_ADDRESS_TEXT};

/// A network in CIDR notation: `10.0.0.0/8`, `2001:db8::/32`, `127.0.0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// Length of the prefix, in bits.
    length: u8,
}

/// The error of [`Network::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadNetwork {
    /// An invalid address or prefix length.
    Form,
    /// Host bits are set; the network without them.
    HostBits(Network),
}

impl Network {
    /// Parses a network in CIDR notation, an address, or `unix:`, which is the Unix sockets.
    ///
    /// # Errors
    /// The mistake, and the correct syntax.
    pub fn parse(text: &str) -> Result<Network, BadNetwork> {
        if text == UNIX_ADDRESS_TEXT {
            return Ok(Network { address: UNIX_ADDRESS, length: 128 });
        }
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadNetwork::Form)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            None => most,
            Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(BadNetwork::Form);
            }
            Some(digits) => digits.parse().map_err(|_| BadNetwork::Form)?,
        };
        if length > most {
            return Err(BadNetwork::Form);
        }
        if address == UNIX_ADDRESS && length > 0 {
            return Err(BadNetwork::Form);
        }
        let network = Network { address: beginning(address, length), length };
        if network.address == address { Ok(network) } else { Err(BadNetwork::HostBits(network)) }
    }

    /// Returns true for the Unix sockets, which are part of no other network, and so not of `::/0`.
    fn is_unix(self) -> bool {
        self.address == UNIX_ADDRESS && self.length > 0
    }

    /// Returns true if the address is in the network. An IPv4-mapped IPv6 address is IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address == UNIX_ADDRESS {
            return self.is_unix();
        }
        address.is_ipv4() == self.address.is_ipv4() && beginning(address, self.length) == self.address
    }
}

fn beginning(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unix() {
            return f.write_str(UNIX_ADDRESS_TEXT);
        }
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Display for BadNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadNetwork::Form => f.write_str(
                "not a network: write 10.0.0.0/8, 2001:db8::/32, an address, or unix: for the Unix sockets",
            ),
            BadNetwork::HostBits(network) => {
                write!(f, "host bits are set after the /{}: write {network}", network.length)
            }
        }
    }
}

impl std::error::Error for BadNetwork {}

/// Returns true if the address is that of a trusted proxy.
pub fn is_trusted(address: IpAddr, proxies: &[Network]) -> bool {
    proxies.iter().any(|network| network.contains(address))
}

/// The client of a request from `peer` with these `X-Forwarded-For` lines, in their order.
///
/// Each proxy appends the address of its peer. So the list is read from the right: addresses that trusted proxies have
/// appended are believed, the first one that is not a trusted proxy is the client, and the addresses to the left of it
/// may be forged by the client. If an entry is not an address, the proxy that appended it is the last known hop.
pub fn forwarded_client<'a>(
    peer: IpAddr,
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    proxies: &[Network],
) -> IpAddr {
    let mut client = peer.to_canonical();
    let mut hops = lines.rev().flat_map(|line| line.rsplit(|byte| *byte == b','));
    while is_trusted(client, proxies) {
        match hops.next().and_then(hop_address) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`, or `unix:` for a client of a
/// proxy's Unix socket.
fn hop_address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop.trim_ascii()).ok()?;
    if text == UNIX_ADDRESS_TEXT {
        return Some(UNIX_ADDRESS);
    }
    let bare =
        text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).filter(|text| text.contains(':'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    address
        .or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
        .map(|ip| ip.to_canonical())
        .filter(|ip| *ip != UNIX_ADDRESS)
}

/// The result of [`parse_proxy_header`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// More bytes are needed.
    Incomplete,
    /// A complete header.
    Whole {
        /// The length of the header, after which the connection's data begins.
        bytes: usize,
        /// The client; `None` for a connection of the proxy itself (a health check), or from a socket without an IP
        /// address.
        client: Option<SocketAddr>,
    },
    /// Not a header.
    Missing,
    /// A header of version 1, which is text (2.1).
    Version1,
    /// A malformed header.
    Bad,
}

/// The first bytes of every header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The first bytes of every header of version 1.
const SIGNATURE_1: &[u8] = b"PROXY ";

/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;

/// Maximum length of a header: the addresses, and the TLV fields with which a proxy describes its TLS connection. The
/// protocol has no other limit than its length field, and sends the header in one segment.
pub const PROXY_HEADER_BYTES_MAX: usize = 4 << 10;

/// Parses the header of the PROXY protocol, version 2
/// (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, 2.2).
pub fn parse_proxy_header(bytes: &[u8]) -> ProxyHeader {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        let is_version_1 = bytes.starts_with(SIGNATURE_1);
        return if is_version_1 { ProxyHeader::Version1 } else { ProxyHeader::Missing };
    }
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED_BYTES) else {
        return ProxyHeader::Incomplete;
    };
    let (version_and_command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED_BYTES + length > PROXY_HEADER_BYTES_MAX {
        return ProxyHeader::Bad;
    }
    let Some(content) = rest.get(..length) else {
        return ProxyHeader::Incomplete;
    };
    let client = match (version_and_command, family) {
        // LOCAL: a connection of the proxy itself; the rest is skipped.
        (0x20, _) => Some(None),
        // PROXY over TCP and IPv4, over TCP and IPv6, of an unspecified family, and over a Unix socket.
        (0x21, 0x11) => tcp4(content),
        (0x21, 0x21) => tcp6(content),
        (0x21, 0x00) => Some(None),
        (0x21, 0x31) => (content.len() >= 216).then_some(None),
        _ => None,
    };
    match client {
        Some(client) => ProxyHeader::Whole { bytes: FIXED_BYTES + length, client },
        None => ProxyHeader::Bad,
    }
}

/// Source and destination address, source and destination port, TLV fields.
fn tcp4(content: &[u8]) -> Option<Option<SocketAddr>> {
    let (source, rest) = content.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<4>()?;
    port(rest).map(|port| Some(SocketAddr::from((*source, port))))
}

fn tcp6(content: &[u8]) -> Option<Option<SocketAddr>> {
    let (source, rest) = content.split_first_chunk::<16>()?;
    let (_, rest) = rest.split_first_chunk::<16>()?;
    let address = IpAddr::from(*source).to_canonical();
    // The unspecified address is not the client's.
    port(rest).map(|port| Some(SocketAddr::new(address, port)).filter(|_| address != UNIX_ADDRESS))
}

/// The source port, if the rest is well-formed: two ports, followed by TLV fields of a type, a length and a value.
fn port(rest: &[u8]) -> Option<u16> {
    let (ports, mut additions) = rest.split_first_chunk::<4>()?;
    while let Some((head, after)) = additions.split_first_chunk::<3>() {
        additions = after.get(usize::from(u16::from_be_bytes([head[1], head[2]]))..)?;
    }
    additions.is_empty().then_some(u16::from_be_bytes([ports[0], ports[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| Network::parse(text).unwrap()).collect()
    }

    #[test]
    fn network_contains_addresses_with_its_prefix() {
        let check = |network: &str, address: &str, inside: bool| {
            let found = Network::parse(network).unwrap().contains(ip(address));
            assert_eq!(found, inside, "{address} in {network}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.0/8", "::ffff:10.1.2.3", true);
        check("10.0.0.0/8", "a00::", false);
        check("192.0.2.7", "192.0.2.7", true);
        check("192.0.2.7", "192.0.2.6", false);
        check("192.0.2.6/31", "192.0.2.7", true);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "2001:db8::1", true);
        check("::/0", "10.0.0.1", false);
        check("2001:db8::/33", "2001:db8:7fff::", true);
        check("2001:db8::/33", "2001:db8:8000::", false);
        check("::1", "::1", true);
        check("unix:", "::", true);
        check("unix:", "::1", false);
        check("::/0", "::", false);
    }

    #[test]
    fn invalid_network_is_rejected_with_a_hint() {
        for bad in [
            "",
            "x",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/8/8",
            "/8",
            "::",
            "::/64",
            "unix:/x",
        ] {
            assert_eq!(Network::parse(bad), Err(BadNetwork::Form), "{bad}");
        }
        let why = Network::parse("10.1.2.3/8").unwrap_err();
        assert_eq!(why.to_string(), "host bits are set after the /8: write 10.0.0.0/8");
        assert!(Network::parse("2001:db8::1/64").unwrap_err().to_string().contains("2001:db8::/64"));
    }

    #[test]
    fn forwarded_address_counts_only_from_trusted_proxies() {
        let proxies = networks(&["10.0.0.0/8", "::1"]);
        let check = |peer: &str, lines: &[&str], client: &str| {
            let lines = lines.iter().map(|line| line.as_bytes());
            assert_eq!(forwarded_client(ip(peer), lines, &proxies), ip(client), "{peer}");
        };
        check("10.0.0.1", &["203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["192.0.2.66, 203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["192.0.2.66, 203.0.113.9,10.0.0.2 ,\t10.0.0.3"], "203.0.113.9");
        check("10.0.0.1", &["192.0.2.66", "203.0.113.9", "10.0.0.2"], "203.0.113.9");
        check("10.0.0.1", &[], "10.0.0.1");
        check("10.0.0.1", &["10.0.0.9, 10.0.0.2"], "10.0.0.9");
        check("203.0.113.9", &["192.0.2.66"], "203.0.113.9");
        check("203.0.113.9", &["10.0.0.1"], "203.0.113.9");
        check("10.0.0.1", &["192.0.2.66, unknown"], "10.0.0.1");
        check("10.0.0.1", &["192.0.2.66, , 10.0.0.2"], "10.0.0.2");
        check("10.0.0.1", &["192.0.2.66, 10.0.0.2,"], "10.0.0.1");
        check("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9");
        check("10.0.0.1", &["2001:db8::1"], "2001:db8::1");
        check("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1");
        check("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1");
        check("10.0.0.1", &["[203.0.113.9]"], "10.0.0.1");
        check("10.0.0.1", &["192.0.2.66, ::ffff:10.0.0.2"], "192.0.2.66");
        check("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9 192.0.2.66"], "10.0.0.1");
        check("10.0.0.1", &["\u{1b}[31m"], "10.0.0.1");
        assert_eq!(forwarded_client(ip("10.0.0.1"), [&b"\xff"[..]].into_iter(), &proxies), ip("10.0.0.1"));
        // Unix sockets are written as nginx writes them, and not as the unspecified address.
        check("::", &["192.0.2.66, 203.0.113.9"], "::");
        check("10.0.0.1", &["203.0.113.9, unix:"], "::");
        let proxies = networks(&["10.0.0.0/8", "unix:"]);
        let check = |peer: &str, lines: &[&str], client: &str| {
            let lines = lines.iter().map(|line| line.as_bytes());
            assert_eq!(forwarded_client(ip(peer), lines, &proxies), ip(client), "{peer}");
        };
        check("::", &["192.0.2.66, 203.0.113.9"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, unix:"], "203.0.113.9");
        check("10.0.0.1", &["203.0.113.9, ::"], "10.0.0.1");
        let long = "10.0.0.2,".repeat(100_000);
        check("10.0.0.1", &[&format!("203.0.113.9,{}10.0.0.3", long)], "203.0.113.9");
    }

    fn header(version_and_command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[version_and_command, family], &length, content].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90];

    fn v6() -> Vec<u8> {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        [&address.octets()[..], &[0; 16], &[0x12, 0x67, 0x1f, 0x90]].concat()
    }

    #[test]
    fn proxy_header_names_the_client() {
        let check = |header: Vec<u8>, client: Option<&str>| {
            let client = client.map(|text| text.parse().unwrap());
            let expected = ProxyHeader::Whole { bytes: header.len(), client };
            assert_eq!(parse_proxy_header(&header), expected);
            let with_more = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(parse_proxy_header(&with_more), expected);
            for cut in 0..header.len() {
                assert_eq!(parse_proxy_header(&header[..cut]), ProxyHeader::Incomplete, "cut at {cut}");
            }
        };
        check(header(0x21, 0x11, &V4), Some("203.0.113.9:4711"));
        check(header(0x21, 0x21, &v6()), Some("[2001:db8::1]:4711"));
        let additions = [4, 0, 2, 7, 7, 0x20, 0, 0];
        check(header(0x21, 0x11, &[&V4[..], &additions].concat()), Some("203.0.113.9:4711"));
        check(header(0x20, 0x00, &[]), None);
        check(header(0x20, 0x11, &V4), None);
        check(header(0x20, 0xff, b"skipped"), None);
        check(header(0x21, 0x00, b"skipped"), None);
        check(header(0x21, 0x31, &[0; 216]), None);
        check(header(0x21, 0x21, &[&[0; 32][..], &[0x12, 0x67, 0x1f, 0x90]].concat()), None);
    }

    #[test]
    fn bytes_that_are_not_a_proxy_header_are_classified() {
        for other in [&b"G"[..], b"GET / HTTP/1.1\r\n", b"\r\n\r\nGET", b"PROXYS", b"\x16\x03\x01"] {
            assert_eq!(parse_proxy_header(other), ProxyHeader::Missing, "{other:?}");
        }
        for version_1 in [&b"PROXY TCP4 1.2.3.4"[..], b"PROXY UNKNOWN\r\n"] {
            assert_eq!(parse_proxy_header(version_1), ProxyHeader::Version1);
        }
        let check = |header: Vec<u8>| assert_eq!(parse_proxy_header(&header), ProxyHeader::Bad, "{header:?}");
        check(header(0x11, 0x11, &V4));
        check(header(0x22, 0x11, &V4));
        check(header(0x31, 0x11, &V4));
        check(header(0x21, 0x12, &V4));
        check(header(0x21, 0x10, &V4));
        check(header(0x21, 0x41, &V4));
        check(header(0x21, 0x21, &V4));
        check(header(0x21, 0x31, &V4));
        for short in 0..V4.len() {
            check(header(0x21, 0x11, &V4[..short]));
        }
        for short in 0..v6().len() {
            check(header(0x21, 0x21, &v6()[..short]));
        }
        for bad in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0xff, 0xff, 0], &[4, 0, 0, 4, 0, 2, 7]] {
            check(header(0x21, 0x11, &[&V4[..], bad].concat()));
        }
        check(header(0x20, 0x00, &[0; PROXY_HEADER_BYTES_MAX - FIXED_BYTES + 1]));
        // The announced length is rejected before its bytes arrive.
        check([&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat());
    }
}
