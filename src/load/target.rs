//! The server of a run: its address, the paths of channels, and the source addresses to connect from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use crate::client::tls::{TlsConnector, Trust};

/// The placeholder for the channel's name in the path of a URL.
const PLACEHOLDER: &str = "{channel}";

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
}

impl BenchTarget {
    /// Parses `ws://host[:port][/path]`, the same with `http`, `wss` or `https`, or without a scheme; `:port` alone is
    /// on 127.0.0.1. The default path is that of `oyez serve`, with the placeholder.
    ///
    /// # Errors
    /// The URL is invalid, the host has no address, or the certificate file cannot be used.
    pub fn parse(url: &str, trust: &Trust) -> Result<BenchTarget, String> {
        let bad = || format!("{url:?} is not a WebSocket URL: write ws://host:port, or wss://");
        let (rest, port, is_secure) = match url.split_once("://") {
            Some(("ws" | "http", rest)) => (rest, 80, false),
            Some(("wss" | "https", rest)) => (rest, 443, true),
            None => (url, 80, false),
            _ => return Err(bad()),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash..]),
            None => (rest, "/ws/{channel}"),
        };
        // A port alone is one of this machine, as in `oyez serve --listen :9000`.
        let is_port = authority.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        let authority = if is_port { format!("127.0.0.1{authority}") } else { authority.to_owned() };
        // The path becomes part of the request line, so it must not end the line.
        if authority.is_empty() || rest.contains(|c: char| c.is_ascii_control() || c == ' ' || c == '#') {
            return Err(bad());
        }
        let (host, with_port) =
            match authority.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()) {
                Some((host, _)) => (host, authority.clone()),
                None => (authority.as_str(), format!("{authority}:{port}")),
            };
        let mut addresses =
            with_port.to_socket_addrs().map_err(|error| format!("cannot find {authority}: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{authority} has no address"))?;
        // An IPv6 address has brackets in a URL, and none in a certificate.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let tls = if is_secure { Some(TlsConnector::new(host, trust)?) } else { None };
        Ok(BenchTarget { address, authority, path: path.to_owned(), sources: Vec::new(), tls })
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

    #[test]
    fn url_with_or_without_path_is_parsed() {
        let check = |url: &str, address: &str, path: &str| {
            let target = BenchTarget::parse(url, &Trust::Public).unwrap();
            assert_eq!(
                (target.address.to_string().as_str(), target.path(3).as_str()),
                (address, path),
                "{url}"
            );
        };
        check("ws://127.0.0.1:8080", "127.0.0.1:8080", "/ws/bench-3");
        check("ws://127.0.0.1:8080/", "127.0.0.1:8080", "/");
        check("ws://127.0.0.1/chat?room={channel}", "127.0.0.1:80", "/chat?room=bench-3");
        check("ws://[::1]:9/x", "[::1]:9", "/x");
        check("ws://[::1]", "[::1]:80", "/ws/bench-3");
        check("wss://[::1]", "[::1]:443", "/ws/bench-3");
        check("wss://127.0.0.1:9/x", "127.0.0.1:9", "/x");
        check("http://127.0.0.1:9", "127.0.0.1:9", "/ws/bench-3");
        check("https://127.0.0.1", "127.0.0.1:443", "/ws/bench-3");
        check("127.0.0.1:80", "127.0.0.1:80", "/ws/bench-3");
        check(":9000", "127.0.0.1:9000", "/ws/bench-3");
        check("ws://:9000/x", "127.0.0.1:9000", "/x");
        check("127.0.0.1:80/x", "127.0.0.1:80", "/x");
        for bad in [
            "",
            "ws://",
            "ws:///ws",
            "ftp://127.0.0.1",
            "wss://",
            "/x",
            ":",
            ":x",
            ":99999",
            "ws://127.0.0.1/a b",
        ] {
            assert!(BenchTarget::parse(bad, &Trust::Public).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_are_spread_when_one_has_too_few_ports() {
        let mut target = BenchTarget::parse("ws://127.0.0.1:1", &Trust::Public).unwrap();
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
