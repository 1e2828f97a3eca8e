//! `--listen`: addresses and Unix sockets, with the permissions of the socket's file.
//!
//! A list is separated by commas, in the environment and in the flag. `mode=0660` is a part of the list that belongs to
//! the Unix socket before it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};

use super::failure::Failure;
use crate::config::ListenAddress;

/// The permission bits of chmod(2) that have a meaning for a socket.
const MODE_MAX: u32 = 0o777;

/// A part of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ListenPart {
    /// An address.
    Address(ListenAddress),
    /// The permissions of the Unix socket before it.
    Mode(u32),
}

impl ListenPart {
    /// Parses one part.
    pub(super) fn parse(text: &str) -> Result<ListenPart, String> {
        if let Some(digits) = text.strip_prefix("mode=") {
            return match u32::from_str_radix(digits, 8) {
                Ok(mode @ 0..=MODE_MAX) if digits.len() >= 3 => Ok(ListenPart::Mode(mode)),
                _ => Err("write the permissions of a Unix socket as mode=0660".to_owned()),
            };
        }
        match text.strip_prefix("unix:") {
            Some("") => Err("the path is missing: write unix:/run/oyez/oyez.sock".to_owned()),
            // nginx and systemd use `@` for the abstract namespace, in which any user can take a name.
            Some(path) if path.starts_with('@') => {
                Err("abstract sockets have no permissions: write a path, as unix:/run/oyez/oyez.sock"
                    .to_owned())
            }
            Some(path) => Ok(ListenPart::Address(ListenAddress::Unix { path: path.into(), mode: None })),
            None => tcp_address(text).map(|address| ListenPart::Address(ListenAddress::Tcp(address))),
        }
    }
}

/// Joins the permissions with their sockets.
pub(super) fn join(parts: &[ListenPart]) -> Result<Vec<ListenAddress>, Failure> {
    let mut addresses = Vec::new();
    for part in parts {
        match (part, addresses.last_mut()) {
            (ListenPart::Address(address), _) => addresses.push(address.clone()),
            (ListenPart::Mode(given), Some(ListenAddress::Unix { mode: mode @ None, .. })) => {
                *mode = Some(*given)
            }
            (ListenPart::Mode(_), _) => {
                let why = "--listen: mode= follows the Unix socket that it is for: --listen unix:/run/oyez/oyez.sock,mode=0660";
                return Err(Failure::Usage(why.to_owned()));
            }
        }
    }
    for (at, address) in addresses.iter().enumerate() {
        if addresses[..at].iter().any(|earlier| is_same(earlier, address)) {
            return Err(Failure::Usage(format!("--listen: {address} is listed twice")));
        }
    }
    Ok(addresses)
}

/// Returns true if two sockets cannot have these addresses. Port 0 is another port each time.
fn is_same(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => one == other && one.port() != 0,
        (ListenAddress::Unix { path: one, .. }, ListenAddress::Unix { path: other, .. }) => one == other,
        _ => false,
    }
}

/// `127.0.0.1:9000`, `[::1]:9000`, `localhost:9000`, `:9000` or `9000`.
fn tcp_address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => ("", text),
    };
    let bad = || "write ADDR:PORT, as 127.0.0.1:9000 or [::1]:9000, a port alone, or unix:PATH".to_owned();
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.is_empty() {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    // An IPv6 address needs brackets: without them its last part would be a port.
    if host.contains(':') && !host.starts_with('[') {
        return Err(bad());
    }
    let found: Vec<SocketAddr> = (format!("{host}:{port}").to_socket_addrs())
        .map_err(|error| format!("cannot find the address of {host}: {error}"))?
        .collect();
    let version_4 = found.iter().find(|address| address.is_ipv4());
    version_4.or(found.first()).copied().ok_or_else(|| format!("{host} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Vec<ListenAddress>, Failure> {
        join(&texts.iter().map(|text| ListenPart::parse(text).unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn address_is_parsed() {
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:9", "[::1]:9"),
            ("9000", "127.0.0.1:9000"),
            (":9000", "127.0.0.1:9000"),
            ("localhost:9000", "127.0.0.1:9000"),
            ("0", "127.0.0.1:0"),
        ] {
            assert_eq!(parse(&[text]).unwrap(), [ListenAddress::Tcp(address.parse().unwrap())], "{text}");
        }
        for text in [
            "",
            ":",
            "nonsense",
            "127.0.0.1",
            "127.0.0.1:",
            "localhost",
            "::1",
            "::1:9",
            "65536",
            "-1",
            "[::1]",
            "unix:",
            "unix:@oyez",
            "/run/oyez.sock",
            "mode=",
            "mode=660x",
            "mode=1777",
            "mode=7",
            "mode=0o660",
        ] {
            assert!(ListenPart::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn mode_belongs_to_the_socket_before_it() {
        let unix = |path: &str, mode| ListenAddress::Unix { path: path.into(), mode };
        assert_eq!(
            parse(&["unix:/a", "mode=0660", "9000", "unix:b", "unix:/c", "mode=600"]).unwrap(),
            [
                unix("/a", Some(0o660)),
                ListenAddress::Tcp("127.0.0.1:9000".parse().unwrap()),
                unix("b", None),
                unix("/c", Some(0o600))
            ]
        );
        for list in [&["mode=0660"][..], &["9000", "mode=0660"], &["unix:/a", "mode=0660", "mode=0660"]] {
            assert!(parse(list).is_err(), "{list:?}");
        }
    }

    #[test]
    fn address_that_is_listed_twice_is_an_error() {
        for list in [&["9000", "127.0.0.1:9000"][..], &["unix:/a", "9000", "unix:/a", "mode=0600"]] {
            let why = parse(list).unwrap_err().to_string();
            assert!(why.ends_with(" is listed twice"), "{why}");
        }
        assert_eq!(parse(&["0", "0", "[::1]:9000", "127.0.0.1:9000"]).unwrap().len(), 4);
    }
}
