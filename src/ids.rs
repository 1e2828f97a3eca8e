//! Names for things: slots, channels, peers.
//!
//! A bare `usize` never leaves the module that made it: a [`SlotId`] cannot be mistaken for a
//! [`ChannelId`], and neither can be added up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// One life of one slot.
///
/// The slab gives a key out again as soon as its slot is reaped. The generation tells the new tenant
/// from the old, so an event or an intent that comes late never reaches the wrong connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    /// The place in the slab.
    pub key: u32,
    /// Which tenant of that place.
    pub generation: u32,
}

/// A channel's place in the hub, good for as long as the channel has members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId(pub(crate) u32);

/// A channel's name: 1 to [`ChannelName::BYTES_MAX`] bytes of `[A-Za-z0-9_.:-]`.
///
/// The alphabet needs no quoting in a URL, a log line, a metric or a shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelName(Box<str>);

/// Why a text is no channel name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChannelName {
    /// It has no bytes.
    Empty,
    /// It has more than [`ChannelName::BYTES_MAX`].
    TooLong,
    /// It has a byte outside the alphabet.
    BadByte,
}

impl ChannelName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// The channel of a client that names none.
    pub fn main() -> ChannelName {
        ChannelName("main".into())
    }

    /// Checks a name.
    ///
    /// # Errors
    /// Says which of the three rules the name breaks.
    pub fn parse(name: &[u8]) -> Result<ChannelName, BadChannelName> {
        if name.is_empty() {
            return Err(BadChannelName::Empty);
        }
        if name.len() > Self::BYTES_MAX {
            return Err(BadChannelName::TooLong);
        }
        let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(byte);
        match std::str::from_utf8(name) {
            Ok(text) if name.iter().all(in_alphabet) => Ok(ChannelName(text.into())),
            _ => Err(BadChannelName::BadByte),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BadChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadChannelName::Empty => write!(f, "the channel name is empty"),
            BadChannelName::TooLong => write!(f, "the channel name is over {} bytes", ChannelName::BYTES_MAX),
            BadChannelName::BadByte => write!(f, "a channel name is made of A-Z a-z 0-9 _ . : -"),
        }
    }
}

/// Who is at the other end: 20 bytes in a slot where `SocketAddr` takes 32.
///
/// Kept because the kernel forgets it: `getpeername` on a connection that was reset fails, and that is
/// when an operator wants to read it in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer { ip: address.ip(), port: address.port() }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.ip, self.port).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_names() {
        let longest = [b'a'; 255];
        for good in [&b"main"[..], b"a", b"room.7:x_y-Z", &longest] {
            assert!(ChannelName::parse(good).is_ok(), "{good:?}");
        }
        let check = |bad: &[u8], why| assert_eq!(ChannelName::parse(bad), Err(why), "{bad:?}");
        check(b"", BadChannelName::Empty);
        check(&[b'a'; 256], BadChannelName::TooLong);
        for bad in
            [&b"../x"[..], b"a b", b"a\0", b"a\r\n", b"\xc0\xaf", "ä".as_bytes(), b"a/b", b"a%20", b"a\x1b"]
        {
            check(bad, BadChannelName::BadByte);
        }
    }
}
