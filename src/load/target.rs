//! The server of a run: its address, the paths of channels, and the source addresses to connect from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::server_url::ServerUrl;
use crate::client::tls::TlsConnector;
use crate::client::trust::Trust;

/// The placeholder for the channel's name in the path of a URL.
const PLACEHOLDER: &str = "{channel}";

/// The path of `oyez serve`.
const DEFAULT_PATH: &str = "/ws/{channel}";

/// Maximum connections from one address if there are others: less than half of the 28,232 ports that Linux uses by
/// default.
const CONNECTIONS_PER_SOURCE_MAX: usize = 10_000;

/// A WebSocket server that broadcasts.
#[derive(Clone, Debug)]
pub struct BenchTarget {
    /// Its address.
    pub address: SocketAddr,
    /// `host:port`, for the Host field of the request.
    pub authority: String,
    /// The path, with or without the placeholder.
    path: String,
    /// Source addresses, used in turn; if empty, the kernel chooses.
    pub sources: Vec<IpAddr>,
    /// The TLS configuration, for `wss://`.
    pub tls: Option<TlsConnector>,
    /// Offer permessage-deflate.
    pub offers_deflate: bool,
}

impl BenchTarget {
    /// Looks up the address of a server. The default path is that of `oyez serve`, with the placeholder.
    ///
    /// # Errors
    /// The host has no address, or the certificate file cannot be used.
    pub fn resolve(url: &ServerUrl, trust: &Trust) -> Result<BenchTarget, String> {
        let authority = url.authority().to_owned();
        let mut addresses = (url.host(), url.port())
            .to_socket_addrs()
            .map_err(|error| format!("cannot find {authority}: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{authority} has no address"))?;
        let tls = if url.is_encrypted { Some(TlsConnector::new(url.host(), trust)?) } else { None };
        let path = url.path().unwrap_or(DEFAULT_PATH).to_owned();
        Ok(BenchTarget { address, authority, path, sources: Vec::new(), tls, offers_deflate: false })
    }

    /// Returns true if the path contains the placeholder.
    pub fn has_channels(&self) -> bool {
        self.path.contains(PLACEHOLDER)
    }

    /// The path of a channel.
    pub fn path(&self, channel: u32) -> String {
        self.path.replace(PLACEHOLDER, &format!("bench-{channel}"))
    }

    /// Starts a connection, the `number`-th of this run.
    ///
    /// # Errors
    /// No port or no descriptor is left, or the connection fails at once.
    pub fn connect(&self, number: u64, receive_buffer_bytes: Option<usize>) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer_bytes {
            // Before connecting, since the first segment announces the window.
            socket.set_recv_buffer_size(bytes)?;
        }
        if !self.sources.is_empty() {
            let source = self.sources[(number % self.sources.len() as u64) as usize];
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(TcpStream::from_std(socket.into())),
        }
    }

    /// Chooses source addresses if one has too few ports for all connections: on loopback all of 127.0.0.0/8 can be
    /// used. Each `run` uses different addresses, since the ports of the previous run are in TIME_WAIT for a minute.
    pub fn spread(&mut self, connections: usize, ports: usize, run: u32) {
        let is_ours = cfg!(target_os = "linux") && self.address.is_ipv4() && self.address.ip().is_loopback();
        if is_ours && self.sources.is_empty() {
            // The kernel first searches every other port for a free one. When those are taken, each search visits all
            // of them: 20,000 connections took 9.9 s from one source, and 0.5 s from two.
            let of_one = CONNECTIONS_PER_SOURCE_MAX.min(ports * 4 / 10);
            let sources = connections.div_ceil(of_one.max(1));
            if sources > 1 {
                // 127.0.0.x is left to other programs.
                let first = 0x7f00_0001 | (run % 0xffff + 1) << 8;
                let source = |number: usize| IpAddr::from(Ipv4Addr::from(first + number as u32));
                self.sources = (0..sources).map(source).collect();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(url: &str) -> BenchTarget {
        BenchTarget::resolve(&ServerUrl::parse(url).unwrap(), &Trust::Public).unwrap()
    }

    #[test]
    fn url_is_resolved_to_an_address_and_the_path_of_a_channel() {
        let check = |url: &str, address: &str, path: &str| {
            let target = resolve(url);
            assert_eq!(
                (target.address.to_string().as_str(), target.path(3).as_str()),
                (address, path),
                "{url}"
            );
        };
        check("ws://127.0.0.1:8080", "127.0.0.1:8080", "/ws/bench-3");
        check("ws://127.0.0.1:8080/", "127.0.0.1:8080", "/");
        check("ws://127.0.0.1/chat?room={channel}", "127.0.0.1:80", "/chat?room=bench-3");
        check("wss://[::1]", "[::1]:443", "/ws/bench-3");
        check("ws://[::1]:9/x", "[::1]:9", "/x");
        check(":9000", "127.0.0.1:9000", "/ws/bench-3");
    }

    #[test]
    fn sources_are_spread_when_one_has_too_few_ports() {
        let mut target = resolve("ws://127.0.0.1:1");
        target.spread(10_000, 28_000, 1);
        assert_eq!(target.sources.len(), 0);
        for (connections, ports, sources) in
            [(10_001, 28_000, 2), (100_000, 28_000, 10), (10_001, 64_000, 2), (5_000, 10_000, 2)]
        {
            target.sources.clear();
            target.spread(connections, ports, 1);
            assert_eq!(target.sources.len(), sources, "{connections} {ports}");
        }
        assert_eq!(target.sources[0].to_string(), "127.0.2.1");
        target.sources.clear();
        target.spread(100_000, 28_000, u32::MAX);
        assert!(target.sources.iter().all(|source| source.is_loopback()), "{:?}", target.sources);
    }
}
