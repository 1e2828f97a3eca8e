//! The parts of a web origin and of a `Host` field: scheme, host and port, as browsers write them (RFC 6454 6.2).

use std::net::Ipv6Addr;

/// An `Origin` field of one well-formed origin: `scheme "://" host [ ":" port ]` (RFC 6454 6.2).
pub(super) struct Origin<'a> {
    pub(super) scheme: &'a str,
    pub(super) host: Host<'a>,
    /// The default port of the scheme if none is written; `None` for schemes without one.
    pub(super) port: Option<u16>,
}

impl<'a> Origin<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Origin<'a>> {
        let (scheme, rest) = text.split_once("://")?;
        let (host, port) = split_port(rest)?;
        let port = port.or_else(|| default_port(scheme));
        is_scheme(scheme).then_some(Origin { scheme, host, port })
    }

    /// Returns true if this is the host and port of a `Host` field. A missing port is the default port of the origin's
    /// scheme, since a browser omits it in both fields.
    pub(super) fn is_at(&self, host: Option<&[u8]>) -> bool {
        let web = default_port(self.scheme);
        let named = host.and_then(|field| std::str::from_utf8(field).ok()).and_then(split_port);
        match named {
            Some((host, port)) if web.is_some() => self.host == host && self.port == port.or(web),
            _ => false,
        }
    }
}

/// A host name or an IPv6 address.
#[derive(Clone, Copy)]
pub(super) enum Host<'a> {
    Name(&'a str),
    V6(Ipv6Addr),
}

impl Host<'_> {
    /// Returns true if it is a loopback address or a name that no name server resolves. RFC 6761 6.3 reserves
    /// `localhost` and all names below it for loopback addresses, and browsers resolve them themselves.
    pub(super) fn is_loopback_name(&self) -> bool {
        match self {
            Host::V6(address) => {
                address.is_loopback() || address.to_ipv4_mapped().is_some_and(|address| address.is_loopback())
            }
            Host::Name(name) => {
                let labels = name.strip_suffix('.').unwrap_or(name);
                labels.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
                    || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl PartialEq for Host<'_> {
    fn eq(&self, other: &Host<'_>) -> bool {
        match (self, other) {
            (Host::Name(one), Host::Name(other)) => one.eq_ignore_ascii_case(other),
            (Host::V6(one), Host::V6(other)) => one == other,
            _ => false,
        }
    }
}

/// Maximum length of a host name (RFC 1035 2.3.4).
const NAME_BYTES_MAX: usize = 255;

/// Splits `host` or `host:port`; `None` if the text is neither.
pub(super) fn split_port(text: &str) -> Option<(Host<'_>, Option<u16>)> {
    let (host, rest) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, rest) = bracketed.split_once(']')?;
            (Host::V6(address.parse().ok()?), rest)
        }
        None => {
            let (name, rest) = text.split_at(memchr::memchr(b':', text.as_bytes()).unwrap_or(text.len()));
            (is_name(name).then_some(Host::Name(name))?, rest)
        }
    };
    match rest.strip_prefix(':') {
        None => rest.is_empty().then_some((host, None)),
        Some(port) => Some((host, Some(parse_port(port)?))),
    }
}

/// Returns true for labels of letters, digits, `-` and `_`, separated by dots. A name with a dot at its end is another
/// name.
fn is_name(name: &str) -> bool {
    let in_alphabet = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let labels = name.strip_suffix('.').unwrap_or(name);
    name.len() <= NAME_BYTES_MAX
        && labels
            .as_bytes()
            .split(|&byte| byte == b'.')
            .all(|label| !label.is_empty() && label.iter().copied().all(in_alphabet))
}

/// Parses a port in the form that browsers send: without a sign or leading zeros.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !text.starts_with('0')).then(|| text.parse().ok())?
}

/// RFC 3986 3.1.
pub(super) fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// The default port of a web scheme. Schemes of programs with embedded pages (`capacitor://localhost`,
/// `chrome-extension://…`) have none.
pub(super) fn default_port(scheme: &str) -> Option<u16> {
    let is = |name: &str| scheme.eq_ignore_ascii_case(name);
    if is("https") {
        Some(443)
    } else if is("http") {
        Some(80)
    } else {
        None
    }
}
