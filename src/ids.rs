//! Names for things: slots, channels, messages, clients, peers.
//!
//! A bare `usize` never leaves the module that made it: a [`SlotId`] cannot be mistaken for a
//! [`ChannelId`], and neither can be added up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

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

/// A channel's place in the hub, good for as long as the channel has members or history.
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

/// A message's id: which log it stands in, and where.
///
/// One counter numbers the messages of all channels, so one id is a cursor for any set of them. On the
/// wire it is `<epoch>-<seq>`, and opaque to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId {
    /// Which log: a random number, another for each log.
    pub epoch: u64,
    /// Its number in the log; the first message has 1.
    pub seq: u64,
}

impl MessageId {
    /// The longest id in bytes: two numbers of 64 bits and a hyphen.
    pub const BYTES_MAX: usize = 41;

    /// Reads an id as it stands on the wire, digits and one hyphen.
    pub fn parse(text: &[u8]) -> Option<MessageId> {
        if text.len() > Self::BYTES_MAX || !text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') {
            return None;
        }
        let (epoch, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(MessageId { epoch: epoch.parse().ok()?, seq: seq.parse().ok()? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// From where somebody wants to hear a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// What is published from now on.
    Now,
    /// The last message, then what is published from now on.
    Latest,
    /// All that is kept, and so on.
    Earliest,
    /// All that follows the message with this id, and so on.
    After(MessageId),
}

/// A text is no cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCursor;

impl Since {
    /// Reads `latest`, `earliest` or an id.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &[u8]) -> Result<Since, BadCursor> {
        match text {
            b"latest" => Ok(Since::Latest),
            b"earliest" => Ok(Since::Earliest),
            id => MessageId::parse(id).map(Since::After).ok_or(BadCursor),
        }
    }
}

impl fmt::Display for BadCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("since is an id as a message carries it, or latest, or earliest")
    }
}

/// Why somebody does not get all that a cursor asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The history keeps no more than its limits allow.
    Evicted,
    /// The cursor is of another log: the server has begun a new one since.
    Epoch,
    /// The connection did not read fast enough.
    Slow,
    /// The cursor is ahead of the log.
    Future,
}

impl GapReason {
    /// One word for clients and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Evicted => "evicted",
            GapReason::Epoch => "epoch",
            GapReason::Slow => "slow",
            GapReason::Future => "future",
        }
    }
}

/// Messages of one channel that somebody will not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last message before them, as far as the client knows.
    pub after: MessageId,
    /// The last of them, or a message before which nothing is kept: what follows it comes next.
    pub resume: MessageId,
    /// How many they are, where that is known.
    pub missed: Option<u64>,
    /// Why they are not there.
    pub why: GapReason,
}

/// A client, as others see it: the sender of messages on one connection.
///
/// It is the slot's generation stirred with a salt of the process, so that nobody takes it for a count of
/// connections, and nobody for somebody else who came before the server was started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u32);

impl ClientId {
    /// The client behind a slot.
    pub fn of(slot: SlotId, salt: u32) -> ClientId {
        // Adding, multiplying by an odd number and xoring a right shift can all be undone: no two of a process
        // are the same.
        let stirred = slot.generation.wrapping_add(salt).wrapping_mul(0x9e37_79b1);
        ClientId((stirred ^ stirred >> 15).wrapping_mul(0x85eb_ca6b))
    }

    /// The client as a number, to be written down.
    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    /// The client that was written down as a number.
    pub(crate) fn from_bits(bits: u32) -> ClientId {
        ClientId(bits)
    }
}

/// A user, as the server vouches for it: what the token of a publisher says in `sub` and `info`.
///
/// It is kept as the JSON that subscribers are sent, and shared by all messages that are published with one token. In an
/// `Arc`, since a grant holds it and grants are values of flags, which may cross threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(Arc<Box<str>>);

impl User {
    /// A user by its id and, as JSON, the claim `info`.
    pub fn new(id: &str, info: Option<&str>) -> User {
        let id = serde_json::Value::from(id);
        // In JSON a line end is white space: one within a string is escaped. An event stream would end a field there.
        let info =
            info.map_or(String::new(), |info| format!(",\"info\":{}", info.replace(['\r', '\n'], " ")));
        User::from_json(&format!("{{\"id\":{id}{info}}}"))
    }

    /// A user as it was stored, in JSON.
    pub(crate) fn from_json(json: &str) -> User {
        User(Arc::new(json.into()))
    }

    /// `{"id":"alice","info":{…}}`.
    pub fn as_json(&self) -> &str {
        &self.0
    }
}

/// The publisher of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sender {
    /// The connection, where it was a WebSocket.
    pub client: Option<ClientId>,
    /// The user of its token, where it had one with a `sub`.
    pub user: Option<User>,
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
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
/// when an operator wants to read it in the log. And it never knew whom a proxy speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    ip: IpAddr,
    /// 0 where only the address is known: a proxy does not name the port.
    port: u16,
    /// Is it among the connections of its address, and to be taken off them when it goes?
    pub is_counted: bool,
}

impl Peer {
    /// Its address.
    pub fn ip(self) -> IpAddr {
        self.ip
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer { ip: address.ip(), port: address.port(), is_counted: false }
    }
}

impl From<IpAddr> for Peer {
    fn from(ip: IpAddr) -> Peer {
        Peer { ip, port: 0, is_counted: false }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            0 => self.ip.fmt(f),
            port => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let longest = MessageId { epoch: u64::MAX, seq: u64::MAX };
        assert_eq!(longest.to_string().len(), MessageId::BYTES_MAX);
        for id in [longest, MessageId { epoch: 1_790_000_000_000, seq: 0 }] {
            assert_eq!(Since::parse(id.to_string().as_bytes()), Ok(Since::After(id)));
        }
        assert_eq!(Since::parse(b"latest"), Ok(Since::Latest));
        assert_eq!(Since::parse(b"earliest"), Ok(Since::Earliest));
        let long = vec![b'1'; 64 << 10];
        for bad in [
            &b""[..],
            b"-",
            b"1-",
            b"-1",
            b"1-2-3",
            b"1",
            b"+1-2",
            b"1-+2",
            b"0x1-2",
            b"1-2 ",
            b"LATEST",
            b"18446744073709551616-1",
            b"1-18446744073709551616",
            &long,
        ] {
            assert_eq!(Since::parse(bad), Err(BadCursor), "{bad:?}");
        }
    }

    #[test]
    fn clients_differ() {
        let client = |generation| ClientId::of(SlotId { key: 0, generation }, 7).to_string();
        let mut ids: Vec<String> = (0..10_000).map(client).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.len() == 8));
    }

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
