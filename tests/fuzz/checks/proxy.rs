//! Addresses that proxies send: a header of the PROXY protocol is complete at one length only, and has the client that
//! was encoded; `X-Forwarded-For` that a client forges does not change its address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use oyez::access::proxy::{
    Network, PROXY_HEADER_BYTES_MAX, ProxyHeader, forwarded_client, is_trusted, parse_proxy_header,
};

use super::Input;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The first byte selects what the rest is.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => check_header(input.0),
        1 => check_header(&[SIGNATURE, input.0].concat()),
        2 => check_encoded(input),
        _ => check_forwarded(input),
    }
}

fn check_header(bytes: &[u8]) {
    let whole = parse_proxy_header(bytes);
    let end = match whole {
        ProxyHeader::Whole { bytes: end, client } => {
            assert!((16..=PROXY_HEADER_BYTES_MAX.min(bytes.len())).contains(&end));
            assert!(client.is_none_or(|client| client.ip() == client.ip().to_canonical()));
            assert_eq!(parse_proxy_header(&bytes[..end]), whole, "what follows does not matter");
            end
        }
        ProxyHeader::Incomplete => bytes.len(),
        ProxyHeader::Missing | ProxyHeader::Version1 | ProxyHeader::Bad => 0,
    };
    for cut in (0..end).step_by(1 + end / 64) {
        assert_eq!(parse_proxy_header(&bytes[..cut]), ProxyHeader::Incomplete, "cut at {cut}");
    }
}

/// The header that a proxy sends for a client, with TLV fields.
fn check_encoded(mut input: Input<'_>) {
    let is_v4 = input.u8() & 1 == 1;
    let (address, port) = (input.bytes(if is_v4 { 4 } else { 16 }), input.u32() as u16);
    let ip = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
        (Ok(octets), _) => IpAddr::from(octets),
        (_, Ok(octets)) => IpAddr::from(octets),
        _ => return,
    };
    let mut content = [address, address, &port.to_be_bytes(), &[0, 80]].concat();
    for _ in 0..input.u8() % 4 {
        let (kind, length) = (input.u8(), usize::from(input.u8()));
        let value = input.bytes(length);
        content.push(kind);
        content.extend_from_slice(&(value.len() as u16).to_be_bytes());
        content.extend_from_slice(value);
    }
    let length = content.len() as u16;
    let header = [
        &SIGNATURE[..],
        &[0x21, if address.len() == 4 { 0x11 } else { 0x21 }],
        &length.to_be_bytes(),
        &content,
    ]
    .concat();
    // The unspecified address is not a client's.
    let client = Some(SocketAddr::new(ip.to_canonical(), port)).filter(|_| ip != Ipv6Addr::UNSPECIFIED);
    assert_eq!(parse_proxy_header(&header), ProxyHeader::Whole { bytes: header.len(), client });
    check_header(&[&header, input.0].concat());
}

/// Networks, the address of the peer and lines, separated by line feeds.
fn check_forwarded(input: Input<'_>) {
    let mut lines = input.0.split(|byte| *byte == b'\n');
    let networks = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let networks: Vec<Network> = networks.split(' ').filter_map(|text| Network::parse(text).ok()).collect();
    for network in &networks {
        assert_eq!(Network::parse(&network.to_string()).as_ref(), Ok(network));
    }
    let peer = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let Ok(peer) = peer.parse::<IpAddr>() else { return };
    let lines: Vec<&[u8]> = lines.collect();
    let client = forwarded_client(peer, lines.iter().copied(), &networks);
    assert_eq!(client, client.to_canonical());
    if !is_trusted(peer, &networks) {
        assert_eq!(client, peer.to_canonical());
    }
    if !is_trusted(client, &networks) {
        // The client sent them before the first proxy appended its address.
        for forged in [&b"203.0.113.66"[..], b"10.0.0.1, 127.0.0.1", b"unknown,"] {
            let lines = std::iter::once(forged).chain(lines.iter().copied()).collect::<Vec<_>>();
            assert_eq!(forwarded_client(peer, lines.into_iter(), &networks), client);
        }
    }
}
