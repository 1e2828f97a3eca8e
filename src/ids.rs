//! Identifiers: slots, channels, messages, cursors, clients, users and peers.
//!
//! Each is a newtype, and a bare `usize` never leaves the module that made it: a [`SlotId`] cannot be passed as a
//! [`ChannelId`], and arithmetic on either does not compile.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A connection: the key of its slot, and a generation.
///
/// The slab reuses a key as soon as its slot is reaped. The generation distinguishes the connections that had the same
/// key, so a late event or intent never reaches the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId {
    /// The index in the slab.
    pub key: u32,
    /// The number of the connection among all that were accepted.
    pub generation: u32,
}

/// A channel's index in the hub, valid while the channel has subscribers or history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId(pub(crate) u32);

/// A channel's name: 1 to [`ChannelName::BYTES_MAX`] bytes of `[A-Za-z0-9_.:-]`.
///
/// The alphabet needs no quoting in a URL, a log line, a metric or a shell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelName(Box<str>);

/// The error of [`ChannelName::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChannelName {
    /// An empty name.
    Empty,
    /// More than [`ChannelName::BYTES_MAX`] bytes.
    TooLong,
    /// A byte outside the alphabet.
    BadByte,
}

impl ChannelName {
    /// Maximum length of a name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// The channel of a client that connects without naming one.
    pub fn main() -> ChannelName {
        ChannelName("main".into())
    }

    /// Validates a name.
    ///
    /// # Errors
    /// The rule that the name breaks.
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

    /// The name as a string slice.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A message's id: its log, and its sequence number in the log.
///
/// One counter numbers the messages of all channels, so one id is a cursor for any set of channels. On the wire it is
/// `<epoch>-<seq>`, and opaque to clients. Ids of one log are ordered by epoch first: in a shared log, a later epoch
/// has a greater number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    /// Identifies the log: a random number, different for each log.
    pub epoch: u64,
    /// The message's number in the log, from 1.
    pub seq: u64,
}

impl MessageId {
    /// Maximum length of an id in bytes: two numbers of 64 bits and a hyphen.
    pub const BYTES_MAX: usize = 41;

    /// Parses an id in its wire form, digits and one hyphen.
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

/// The cursor of a subscription: the position in the log from which it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// New messages only.
    Now,
    /// The last message, followed by new messages.
    Latest,
    /// The whole retained history, followed by new messages.
    Earliest,
    /// All messages after the one with this id.
    After(MessageId),
}

/// The error of [`Since::parse`]: not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCursor;

impl Since {
    /// Parses `latest`, `earliest` or an id.
    ///
    /// # Errors
    /// The text is something else.
    pub fn parse(text: &[u8]) -> Result<Since, BadCursor> {
        match text {
            b"latest" => Ok(Since::Latest),
            b"earliest" => Ok(Since::Earliest),
            id => MessageId::parse(id).map(Since::After).ok_or(BadCursor),
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Since::Now => f.write_str("now"),
            Since::Latest => f.write_str("latest"),
            Since::Earliest => f.write_str("earliest"),
            Since::After(id) => id.fmt(f),
        }
    }
}

impl fmt::Display for BadCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("since must be the id of a message, latest, or earliest")
    }
}

/// The reason of a [`Gap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The messages were evicted from the history by its limits.
    Evicted,
    /// The cursor belongs to another log: the server has started a new one since.
    Epoch,
    /// The connection did not read fast enough.
    Slow,
    /// The cursor is ahead of the log.
    Future,
    /// The shared log has lost messages, or this node has not read them.
    Lost,
}

impl GapReason {
    /// One word for clients and the server's log.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Evicted => "evicted",
            GapReason::Epoch => "epoch",
            GapReason::Slow => "slow",
            GapReason::Future => "future",
            GapReason::Lost => "lost",
        }
    }
}

/// Messages of one channel that a subscriber does not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The client's cursor: the last message before the gap.
    pub after: MessageId,
    /// The cursor after the gap: the last missed message, or a later one before which no message is retained.
    pub resume: MessageId,
    /// The number of missed messages, if it is known.
    pub missed: Option<u64>,
    /// The reason.
    pub why: GapReason,
}

/// A client's public id: identifies the connection that a message was published on.
///
/// It is the slot's generation, scrambled with a salt of the process. So it does not reveal the number of connections,
/// and does not identify another client after a restart of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u32);

/// The client ids of a process, by the generations of its slots.
///
/// A single server counts from its salt. Nodes that share a log allocate blocks of 2^24 ids there, since `?echo=0`
/// compares the ids of the clients of all nodes.
#[derive(Debug)]
pub struct ClientIds {
    salt: u32,
    /// The binary logarithm of the number of ids in a block.
    block_bits: u32,
    blocks: Vec<u32>,
}

/// A block of client ids is for 2^24 connections, so ids of 32 bits have 256 blocks.
const BLOCK_BITS: u32 = 24;

/// Another block is allocated when a sixteenth of the ids is left. That is a million, more connections than a node
/// accepts during an outage of the log.
const BLOCK_RESERVE: u64 = 16;

impl Default for ClientIds {
    fn default() -> ClientIds {
        ClientIds::with_block_bits(BLOCK_BITS)
    }
}

impl ClientIds {
    /// Ids that are counted from a salt.
    pub fn from_salt(salt: u32) -> ClientIds {
        ClientIds { salt, ..ClientIds::default() }
    }

    /// Ids in blocks of two to the power of `block_bits`, which is the same for all processes.
    pub fn with_block_bits(block_bits: u32) -> ClientIds {
        ClientIds { salt: 0, block_bits, blocks: Vec::new() }
    }

    /// Returns true if another block is to be allocated: the last one is nearly used up. `next` is the next slot.
    pub fn needs_block(&self, next: SlotId) -> bool {
        let block = 1_u64 << self.block_bits;
        let allocated = self.blocks.len() as u64 * block;
        allocated > 0 && u64::from(next.generation) + block / BLOCK_RESERVE >= allocated
    }

    /// Adds a block of ids. The first block is for the generations from 0 on, and each further one for those that
    /// follow.
    pub fn add_block(&mut self, block: u32) {
        self.blocks.push(block);
    }

    /// The client that a slot belongs to. A process that has no further block uses the ids of its last one again.
    #[inline]
    pub fn of(&self, slot: SlotId) -> ClientId {
        let generation = slot.generation;
        let block = self.blocks.get((generation >> self.block_bits) as usize).or(self.blocks.last());
        match block {
            None => ClientId::of(slot, self.salt),
            Some(block) => {
                let start = block << self.block_bits;
                let generation = generation & ((1 << self.block_bits) - 1);
                ClientId::of(SlotId { generation, ..slot }, start)
            }
        }
    }

    /// The salt with which a next process that reads the same history continues after the last id of this one.
    pub fn next_salt(&self, next: SlotId) -> u32 {
        self.salt.wrapping_add(next.generation)
    }
}

impl ClientId {
    /// The client that a slot belongs to.
    pub fn of(slot: SlotId, salt: u32) -> ClientId {
        // An addition, a multiplication by an odd number and an xor with a right shift are all bijective: two
        // generations never have the same id.
        let mixed = slot.generation.wrapping_add(salt).wrapping_mul(0x9e37_79b1);
        ClientId((mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b))
    }

    /// The id as a number, for the history file.
    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    /// The inverse of [`ClientId::to_bits`].
    pub(crate) fn from_bits(bits: u32) -> ClientId {
        ClientId(bits)
    }
}

/// An authenticated user: the claims `sub` and `info` of a publisher's token.
///
/// Stored as the JSON that subscribers receive, and shared by all messages that are published with one token. In an
/// `Arc`, since a grant holds it, and grants are values of flags, which may cross threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User(Arc<Box<str>>);

impl User {
    /// A user by its id and, as JSON, the claim `info`.
    pub fn new(id: &str, info: Option<&str>) -> User {
        let id = serde_json::Value::from(id);
        // In JSON a line end is white space, since one within a string is escaped. In an event stream it ends a field.
        let info =
            info.map_or(String::new(), |info| format!(",\"info\":{}", info.replace(['\r', '\n'], " ")));
        User::from_json(&format!("{{\"id\":{id}{info}}}"))
    }

    /// A user from the JSON of [`User::as_json`].
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
    /// The connection, if it is a WebSocket.
    pub client: Option<ClientId>,
    /// The user, if the publisher's token has a `sub`.
    pub user: Option<User>,
}

/// A run: one life of a process, identified by a random number. It is written as eight hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u32);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
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
            BadChannelName::TooLong => {
                write!(f, "the channel name is longer than {} bytes", ChannelName::BYTES_MAX)
            }
            BadChannelName::BadByte => write!(f, "a channel name may contain A-Z a-z 0-9 _ . : - only"),
        }
    }
}

/// The address of a connection's peer: 20 bytes in a slot where `SocketAddr` takes 32.
///
/// Stored, since `getpeername` fails on a connection that was reset, which is when an operator needs the address in the
/// log, and since the kernel does not know the client of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    ip: IpAddr,
    /// 0 if only the address is known: `X-Forwarded-For` has no port.
    port: u16,
    /// True if the connection counts against the limit of its address, until it is released.
    pub is_counted: bool,
}

/// Stands for the address of all clients of Unix sockets, which have none: the unspecified address, from which no
/// packet arrives. They share the limits per address.
pub const UNIX_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// How [`UNIX_ADDRESS`] is written in logs, flags and `X-Forwarded-For`, as nginx does.
pub const UNIX_ADDRESS_TEXT: &str = "unix:";

impl Peer {
    /// The peer of a connection on a Unix socket.
    pub const UNIX: Peer = Peer { ip: UNIX_ADDRESS, port: 0, is_counted: false };

    /// The IP address; [`UNIX_ADDRESS`] for a Unix socket.
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
            _ if self.ip == UNIX_ADDRESS => f.write_str(UNIX_ADDRESS_TEXT),
            0 => self.ip.fmt(f),
            port => SocketAddr::new(self.ip, port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_is_parsed_only_in_its_displayed_form() {
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
    fn client_ids_of_processes_with_different_blocks_differ() {
        let slot = |generation| SlotId { key: 0, generation };
        let ids = |blocks: &[u32]| {
            let mut ids = ClientIds::from_salt(99);
            blocks.iter().for_each(|&block| ids.add_block(block));
            ids
        };
        let (one, other) = (ids(&[1, 4]), ids(&[2, 3]));
        let block = 1 << BLOCK_BITS;
        let generations = [0, 1, block - 1, block, block + 1, 2 * block - 1];
        let mut all: Vec<String> = [&one, &other]
            .iter()
            .flat_map(|ids| generations.map(|at| ids.of(slot(at)).to_string()))
            .collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2 * generations.len());
        let alone = ids(&[]);
        assert_eq!(alone.of(slot(7)), ClientId::of(slot(7), 99));
        assert_eq!(alone.next_salt(slot(7)), 106);
    }

    #[test]
    fn client_ids_of_different_generations_differ() {
        let client = |generation| ClientId::of(SlotId { key: 0, generation }, 7).to_string();
        let mut ids: Vec<String> = (0..10_000).map(client).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.len() == 8));
    }

    #[test]
    fn channel_name_with_a_byte_outside_the_alphabet_is_rejected() {
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
