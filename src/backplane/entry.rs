//! Entries of the log, and the items in them: encoding and decoding.
//!
//! An entry is appended by one node in one command: the messages that its clients published in one turn, or a notice of
//! the node itself. All numbers are little-endian:
//!
//! | part | bytes |
//! | --- | --- |
//! | entry | version u8 (1), flags u8 (bit 0: resent), run u32, number u64, items |
//! | item | kind u8, length u32, body |
//!
//! | kind | item | body |
//! | --- | --- | --- |
//! | 1 | message | flags u8, [client u32], [user: length u32, JSON], channel: length u8, name, [owner, key: length u8, text, epoch u64, seq u64], payload |
//! | 2 | heartbeat | connections u32, subscriptions u32, program version u32, [blocks of client ids: 256 bits] |
//! | 3 | epoch report | epoch of the marker u64, count u16, count × (run u32, number u64) |
//! | 4 | disconnect | ref u32, sub |
//! | 5 | disconnect result | addressed run u32, ref u32, connections u32 |
//! | 6 | ticket | SHA-256 of the ticket 32 B, owner, grant as JSON |
//! | 7 | redeem | SHA-256 of the ticket 32 B, channel of an event stream: length u8, name |
//! | 8 | settings | idempotency keys u32, their age in ms u32 |
//! | 9 | shutdown | empty |
//! | 10 | placeholder | empty: replaces an entry that was given up |
//! | 11 | stream ended | SHA-256 of its ticket 32 B, channel: length u8, name, grant as JSON |
//! | 12 | subscriber counts | flags u8, [range: two names], count × (subscribers u32, channel: length u8, name) |
//!
//! Flags of a message: bits 0 and 1 are the payload's kind (text 0, binary 1, data 2); bit 2: a client follows; bit 3:
//! an owner, a key, and the id of the last entry up to which the key is unknown follow; bit 4: a user follows. An owner
//! is a byte 0 and a network (u64), or a byte 1, a length (u16) and a subject.
//!
//! Flags of subscriber counts: bit 0: the other nodes are to send all of their counts; bit 1: a range follows, which
//! begins after its first name and ends with its second, or with the last channel if the second is empty. Channels of
//! the range that are not listed have no subscribers.
//!
//! Item i (from 1) of c in the entry with id (e, s) has the id (e, s - c + i): a message's id is that of its item.
//! Unknown kinds are counted and skipped, and bytes after the fields of a known kind are ignored, so that newer
//! programs can add fields.

use super::block_set::BlockSet;
pub use super::fields::BadEntry;
use super::fields::{FieldReader, append_numbers, append_owner, append_short, owner_len_max, text};
use crate::access::identity::ClientIdentity;
use crate::ids::{ChannelName, ClientId, MessageId, RunId};
use crate::wire::Kind;

/// The version of the format.
const VERSION: u8 = 1;

/// Bytes of an entry before its items.
pub const HEADER_BYTES: usize = 14;

/// Bytes of an item before its body.
const ITEM_HEADER_BYTES: usize = 5;

/// The position of the flags in an entry.
const FLAGS_AT: usize = 1;

/// The entry may be a copy: its node has sent it before, on a connection that was lost.
const RESENT: u8 = 1;

/// The other nodes are to send all of their numbers.
const REQUEST: u8 = 1;

/// The numbers are those of all channels in a range.
const RANGE: u8 = 1 << 1;

const CLIENT: u8 = 1 << 2;
const KEY: u8 = 1 << 3;
const USER: u8 = 1 << 4;

/// Maximum number of runs in a report: its count has 16 bits, and the table of runs is bounded by the same number.
pub const REPORTED_RUNS_MAX: usize = 4096;

/// The header of an entry: its node and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// The node's process: a random number, new at each start.
    pub run: RunId,
    /// The number of the entry among those of its run, from 1, without holes.
    pub number: u64,
    /// True if the entry was sent before, on a connection that was lost.
    pub is_resent: bool,
}

impl EntryHeader {
    /// Appends the header.
    pub fn append(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[VERSION, if self.is_resent { RESENT } else { 0 }]);
        out.extend_from_slice(&self.run.0.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
    }
}

/// Marks an encoded entry as resent.
pub fn mark_resent(entry: &mut [u8]) {
    if let Some(flags) = entry.get_mut(FLAGS_AT) {
        *flags |= RESENT;
    }
}

/// Returns true if two encoded entries are copies: they differ at most in the flag `resent`.
pub fn are_copies(one: &[u8], other: &[u8]) -> bool {
    let parts =
        |entry: &[u8]| entry.split_at_checked(FLAGS_AT + 1).map(|(start, rest)| (start[0], rest.len()));
    parts(one).is_some() && parts(one) == parts(other) && one[FLAGS_AT + 1..] == other[FLAGS_AT + 1..]
}

/// A message of a client, with everything that a node needs to publish it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMessage<'a> {
    /// The name of its channel.
    pub channel: &'a str,
    /// The kind of its payload.
    pub kind: Kind,
    /// Its payload. Text and data are valid UTF-8.
    pub payload: &'a [u8],
    /// The publisher's connection, if it is a WebSocket.
    pub client: Option<ClientId>,
    /// The publisher's user as JSON, if its token has a `sub`.
    pub user: Option<&'a str>,
    /// The idempotency key.
    pub key: Option<LogKey<'a>>,
}

/// The idempotency key of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogKey<'a> {
    /// The publisher that it belongs to.
    pub owner: ClientIdentity<'a>,
    /// The key.
    pub key: &'a str,
    /// The last entry that the node had applied when it looked for the key, and did not find it. Every node compares
    /// the message with later entries only, so nodes whose copies of the log begin at different entries decide alike.
    pub unknown_until: MessageId,
}

/// The numbers of an epoch report: the last number of each run that the reporting node has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunNumbers<'a>(&'a [u8]);

impl<'a> RunNumbers<'a> {
    /// Bytes of one run.
    const ROW_BYTES: usize = 12;

    /// Encodes the numbers into a buffer that the result borrows; at most [`REPORTED_RUNS_MAX`] of them.
    pub fn encode(numbers: impl Iterator<Item = (RunId, u64)>, buffer: &'a mut Vec<u8>) -> RunNumbers<'a> {
        buffer.clear();
        for (run, number) in numbers.take(REPORTED_RUNS_MAX) {
            buffer.extend_from_slice(&run.0.to_le_bytes());
            buffer.extend_from_slice(&number.to_le_bytes());
        }
        RunNumbers(buffer)
    }

    /// Runs and their numbers.
    pub fn iter(self) -> impl Iterator<Item = (RunId, u64)> + 'a {
        self.0.chunks_exact(Self::ROW_BYTES).map(|row| {
            let mut fields = FieldReader(row);
            (RunId(fields.u32().unwrap_or(0)), fields.u64().unwrap_or(0))
        })
    }

    fn count(self) -> u16 {
        u16::try_from(self.0.len() / Self::ROW_BYTES).unwrap_or(u16::MAX)
    }
}

/// The numbers of a node's subscribers, by channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelCounts<'a>(&'a [u8]);

impl<'a> ChannelCounts<'a> {
    /// Appends one number to a buffer for [`ChannelCounts::encoded`].
    pub fn push(buffer: &mut Vec<u8>, channel: &str, subscribers: u32) {
        append_numbers(buffer, &[subscribers]);
        append_short(buffer, channel);
    }

    /// The numbers that were appended to the buffer.
    pub fn encoded(buffer: &'a [u8]) -> ChannelCounts<'a> {
        ChannelCounts(buffer)
    }

    /// Channels and their numbers.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, u32)> {
        let mut fields = FieldReader(self.0);
        std::iter::from_fn(move || fields.channel_count().ok())
    }

    fn check(self) -> Result<ChannelCounts<'a>, BadEntry> {
        let mut fields = FieldReader(self.0);
        while !fields.0.is_empty() {
            fields.channel_count()?;
        }
        Ok(self)
    }
}

/// A message or a notice in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A message of a client.
    Message(LogMessage<'a>),
    /// Shows that the node is alive.
    Heartbeat {
        /// Open connections of the node.
        connections: u32,
        /// Subscriptions of the node.
        subscriptions: u32,
        /// The version of the program.
        version: u32,
        /// The blocks of client ids of the node.
        blocks: BlockSet,
    },
    /// The numbers that the node has applied, after it has read the marker of an epoch.
    EpochReport {
        /// The epoch that the marker begins.
        epoch: u64,
        /// The last number of each run.
        numbers: RunNumbers<'a>,
    },
    /// A request to close all connections of a user.
    Disconnect {
        /// Identifies the request among those of its node.
        reference: u32,
        /// The user.
        sub: &'a str,
    },
    /// The answer of one node to a [`Item::Disconnect`].
    DisconnectResult {
        /// The node that made the request.
        run: RunId,
        /// The request's reference.
        reference: u32,
        /// How many connections this node has closed.
        connections: u32,
    },
    /// A ticket that was issued. Its lifetime begins with the time of the entry.
    Ticket {
        /// The SHA-256 of the ticket. The ticket itself never leaves its node.
        hash: &'a [u8; 32],
        /// The client that holds it.
        owner: ClientIdentity<'a>,
        /// Its grant as JSON.
        grant: &'a str,
    },
    /// A request to redeem a ticket. The first one in the log is granted.
    Redeem {
        /// The SHA-256 of the ticket.
        hash: &'a [u8; 32],
        /// The channel, if it is for an event stream.
        channel: Option<&'a str>,
    },
    /// Settings that all nodes must share.
    Settings {
        /// `--idempotency-keys-max`
        idempotency_keys: u32,
        /// `--idempotency-age-seconds` in ms.
        idempotency_age_ms: u32,
    },
    /// The node shuts down: this is its last entry.
    Shutdown,
    /// Replaces an entry that was given up, under the same number.
    Placeholder,
    /// An event stream has ended: its ticket is valid again for a limited time.
    StreamEnded {
        /// The SHA-256 of the ticket.
        hash: &'a [u8; 32],
        /// The channel of the stream.
        channel: &'a str,
        /// The grant of the ticket as JSON, for nodes that have not read the entry in which it was issued.
        grant: &'a str,
    },
    /// Numbers of subscribers of the node.
    SubscriberCounts {
        /// True if the other nodes are to send all of their numbers.
        is_request: bool,
        /// If given, the numbers are those of all channels of the node after the first name, up to the second or, if
        /// that is empty, up to the last channel.
        range: Option<(&'a str, &'a str)>,
        /// The numbers.
        counts: ChannelCounts<'a>,
    },
    /// A kind that this version of the program does not know.
    Unknown(u8),
}

/// A decoded entry. All of its items were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its node and its number.
    pub header: EntryHeader,
    /// How many items it has; at least one.
    pub count: u64,
    items: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Decodes an entry and checks all of its items.
    ///
    /// # Errors
    /// The first rule of the format that the bytes break.
    pub fn parse(bytes: &'a [u8]) -> Result<Entry<'a>, BadEntry> {
        let mut fields = FieldReader(bytes);
        let version = fields.u8()?;
        if version != VERSION {
            return Err(BadEntry::Version(version));
        }
        let is_resent = fields.u8()? & RESENT != 0;
        let header = EntryHeader { run: RunId(fields.u32()?), number: fields.u64()?, is_resent };
        let items = fields.0;
        let mut count = 0;
        while !fields.0.is_empty() {
            let (kind, body) = fields.item()?;
            if let Item::Message(message) = Item::parse(kind, body)? {
                check_message(&message)?;
            }
            count += 1;
        }
        if count == 0 { Err(BadEntry::Truncated) } else { Ok(Entry { header, count, items }) }
    }

    /// Its items, in order.
    pub fn items(&self) -> Items<'a> {
        Items(FieldReader(self.items))
    }
}

/// The items of an [`Entry`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Items<'a>(FieldReader<'a>);

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        let (kind, body) = self.0.item().ok()?;
        Item::parse(kind, body).ok()
    }
}

/// The checks that are made once, and not by each iteration over the items.
fn check_message(message: &LogMessage<'_>) -> Result<(), BadEntry> {
    if ChannelName::parse(message.channel.as_bytes()).is_err() {
        return Err(BadEntry::ChannelName);
    }
    if message.kind != Kind::Binary && std::str::from_utf8(message.payload).is_err() {
        return Err(BadEntry::Utf8);
    }
    Ok(())
}

impl<'a> Item<'a> {
    fn parse(kind: u8, body: &'a [u8]) -> Result<Item<'a>, BadEntry> {
        let mut fields = FieldReader(body);
        Ok(match kind {
            1 => Item::Message(LogMessage::parse(fields)?),
            2 => Item::Heartbeat {
                connections: fields.u32()?,
                subscriptions: fields.u32()?,
                version: fields.u32()?,
                blocks: fields.bytes(BlockSet::BYTES).map_or(BlockSet::default(), BlockSet::from_bytes),
            },
            3 => {
                let (epoch, count) = (fields.u64()?, usize::from(fields.u16()?));
                Item::EpochReport { epoch, numbers: RunNumbers(fields.bytes(count * RunNumbers::ROW_BYTES)?) }
            }
            4 => Item::Disconnect { reference: fields.u32()?, sub: text(fields.0)? },
            5 => Item::DisconnectResult {
                run: RunId(fields.u32()?),
                reference: fields.u32()?,
                connections: fields.u32()?,
            },
            6 => Item::Ticket { hash: fields.hash()?, owner: fields.owner()?, grant: text(fields.0)? },
            7 => Item::Redeem {
                hash: fields.hash()?,
                channel: Some(fields.short_text()?).filter(|channel| !channel.is_empty()),
            },
            8 => Item::Settings { idempotency_keys: fields.u32()?, idempotency_age_ms: fields.u32()? },
            9 => Item::Shutdown,
            10 => Item::Placeholder,
            11 => Item::StreamEnded {
                hash: fields.hash()?,
                channel: fields.short_text()?,
                grant: text(fields.0)?,
            },
            12 => {
                let flags = fields.u8()?;
                let range = if flags & RANGE == 0 {
                    None
                } else {
                    Some((fields.short_text()?, fields.short_text()?))
                };
                let counts = ChannelCounts(fields.0).check()?;
                Item::SubscriberCounts { is_request: flags & REQUEST != 0, range, counts }
            }
            other => Item::Unknown(other),
        })
    }

    fn kind(&self) -> u8 {
        match self {
            Item::Message(_) => 1,
            Item::Heartbeat { .. } => 2,
            Item::EpochReport { .. } => 3,
            Item::Disconnect { .. } => 4,
            Item::DisconnectResult { .. } => 5,
            Item::Ticket { .. } => 6,
            Item::Redeem { .. } => 7,
            Item::Settings { .. } => 8,
            Item::Shutdown => 9,
            Item::Placeholder => 10,
            Item::StreamEnded { .. } => 11,
            Item::SubscriberCounts { .. } => 12,
            Item::Unknown(kind) => *kind,
        }
    }

    /// Appends the item to an entry. A body of 4 GiB or more is cut; flags bound messages far below that.
    pub fn append(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        match *self {
            Item::Message(message) => message.append(out),
            Item::Heartbeat { connections, subscriptions, version, blocks } => {
                append_numbers(out, &[connections, subscriptions, version]);
                if blocks != BlockSet::default() {
                    out.extend_from_slice(blocks.as_bytes());
                }
            }
            Item::EpochReport { epoch, numbers } => {
                out.extend_from_slice(&epoch.to_le_bytes());
                out.extend_from_slice(&numbers.count().to_le_bytes());
                out.extend_from_slice(numbers.0);
            }
            Item::Disconnect { reference, sub } => {
                append_numbers(out, &[reference]);
                out.extend_from_slice(sub.as_bytes());
            }
            Item::DisconnectResult { run, reference, connections } => {
                append_numbers(out, &[run.0, reference, connections]);
            }
            Item::Ticket { hash, owner, grant } => {
                out.extend_from_slice(hash);
                append_owner(out, owner);
                out.extend_from_slice(grant.as_bytes());
            }
            Item::Redeem { hash, channel } => {
                out.extend_from_slice(hash);
                append_short(out, channel.unwrap_or(""));
            }
            Item::StreamEnded { hash, channel, grant } => {
                out.extend_from_slice(hash);
                append_short(out, channel);
                out.extend_from_slice(grant.as_bytes());
            }
            Item::SubscriberCounts { is_request, range, counts } => {
                let request = if is_request { REQUEST } else { 0 };
                out.push(request | if range.is_some() { RANGE } else { 0 });
                if let Some((after, upto)) = range {
                    append_short(out, after);
                    append_short(out, upto);
                }
                out.extend_from_slice(counts.0);
            }
            Item::Settings { idempotency_keys, idempotency_age_ms } => {
                append_numbers(out, &[idempotency_keys, idempotency_age_ms]);
            }
            Item::Shutdown | Item::Placeholder | Item::Unknown(_) => {}
        }
        let length = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Maximum number of bytes that [`Item::append`] appends.
    pub fn len_max(&self) -> usize {
        ITEM_HEADER_BYTES
            + match self {
                Item::Message(message) => message.len_max(),
                Item::EpochReport { numbers, .. } => 10 + numbers.0.len(),
                Item::Disconnect { sub, .. } => 4 + sub.len(),
                Item::Ticket { owner, grant, .. } => 32 + owner_len_max(*owner) + grant.len(),
                Item::Redeem { channel, .. } => 33 + channel.map_or(0, str::len),
                Item::StreamEnded { channel, grant, .. } => 33 + channel.len() + grant.len(),
                Item::SubscriberCounts { range, counts, .. } => {
                    3 + range.map_or(0, |(after, upto)| after.len() + upto.len()) + counts.0.len()
                }
                Item::Heartbeat { .. } => 12 + BlockSet::BYTES,
                _ => 40,
            }
    }
}

impl<'a> LogMessage<'a> {
    fn parse(mut fields: FieldReader<'a>) -> Result<LogMessage<'a>, BadEntry> {
        let flags = fields.u8()?;
        let kind = match flags & 0b11 {
            0 => Kind::Text,
            1 => Kind::Binary,
            2 => Kind::Data,
            _ => return Err(BadEntry::Field),
        };
        let client = if flags & CLIENT == 0 { None } else { Some(ClientId::from_bits(fields.u32()?)) };
        let user = if flags & USER == 0 {
            None
        } else {
            let length = fields.u32()? as usize;
            Some(text(fields.bytes(length)?)?)
        };
        let channel = fields.short_text()?;
        let key = if flags & KEY == 0 { None } else { Some(LogKey::parse(&mut fields)?) };
        Ok(LogMessage { channel, kind, payload: fields.0, client, user, key })
    }

    fn append(&self, out: &mut Vec<u8>) {
        let kind = match self.kind {
            Kind::Text => 0,
            Kind::Binary => 1,
            Kind::Data => 2,
        };
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        out.push(
            kind | flag(self.client.is_some(), CLIENT)
                | flag(self.key.is_some(), KEY)
                | flag(self.user.is_some(), USER),
        );
        if let Some(client) = self.client {
            out.extend_from_slice(&client.to_bits().to_le_bytes());
        }
        if let Some(user) = self.user {
            append_numbers(out, &[user.len() as u32]);
            out.extend_from_slice(user.as_bytes());
        }
        append_short(out, self.channel);
        if let Some(LogKey { owner, key, unknown_until }) = self.key {
            append_owner(out, owner);
            append_short(out, key);
            out.extend_from_slice(&unknown_until.epoch.to_le_bytes());
            out.extend_from_slice(&unknown_until.seq.to_le_bytes());
        }
        out.extend_from_slice(self.payload);
    }

    fn len_max(&self) -> usize {
        let key = self.key.map_or(0, |LogKey { owner, key, .. }| 16 + owner_len_max(owner) + key.len());
        16 + self.user.map_or(0, str::len) + self.channel.len() + key + self.payload.len()
    }
}

impl<'a> LogKey<'a> {
    fn parse(fields: &mut FieldReader<'a>) -> Result<LogKey<'a>, BadEntry> {
        let (owner, key) = (fields.owner()?, fields.short_text()?);
        Ok(LogKey { owner, key, unknown_until: MessageId { epoch: fields.u64()?, seq: fields.u64()? } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_kinds_and_trailing_fields_are_skipped() {
        let mut bytes = Vec::new();
        EntryHeader { run: RunId(7), number: 1, is_resent: false }.append(&mut bytes);
        bytes.extend_from_slice(&[200, 3, 0, 0, 0, 1, 2, 3]);
        // A heartbeat with a field of a newer version, which is shorter than the blocks.
        bytes.extend_from_slice(&[2, 14, 0, 0, 0]);
        append_numbers(&mut bytes, &[1, 2, 3]);
        bytes.extend_from_slice(&[9, 9]);
        let entry = Entry::parse(&bytes).unwrap();
        let items: Vec<Item<'_>> = entry.items().collect();
        let blocks = BlockSet::default();
        let heartbeat = Item::Heartbeat { connections: 1, subscriptions: 2, version: 3, blocks };
        assert_eq!(items, [Item::Unknown(200), heartbeat]);
    }

    #[test]
    fn entry_that_breaks_the_format_is_rejected() {
        let entry = |items: &[u8]| {
            let mut bytes = Vec::new();
            EntryHeader { run: RunId(7), number: 1, is_resent: false }.append(&mut bytes);
            bytes.extend_from_slice(items);
            bytes
        };
        let check = |bytes: &[u8], why| assert_eq!(Entry::parse(bytes), Err(why), "{bytes:?}");
        check(&[], BadEntry::Truncated);
        check(&entry(&[]), BadEntry::Truncated);
        check(&[2; 40], BadEntry::Version(2));
        check(&entry(&[10, 1, 0, 0, 0]), BadEntry::Truncated);
        check(&entry(&[2, 4, 0, 0, 0, 1, 1, 1, 1]), BadEntry::Truncated);
        check(&entry(&[1, 3, 0, 0, 0, 3, 1, b'a']), BadEntry::Field);
        check(&entry(&[1, 3, 0, 0, 0, 0, 1, b'/']), BadEntry::ChannelName);
        check(&entry(&[1, 2, 0, 0, 0, 0, 0]), BadEntry::ChannelName);
        check(&entry(&[1, 4, 0, 0, 0, 0, 1, b'a', 0xff]), BadEntry::Utf8);
        assert!(Entry::parse(&entry(&[1, 4, 0, 0, 0, 1, 1, b'a', 0xff])).is_ok());
    }
}
