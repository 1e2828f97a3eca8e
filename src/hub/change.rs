//! One change of a channel, as it is encoded for the history file.
//!
//! A change has the channel's position ([`ChannelPosition`]) and its messages since the last change, encoded one after
//! the other. **The latest wins**: `evicted_through` drops the messages up to it, so a reader that has applied a
//! channel's changes in order has the history as it was when the last of them was made.
//!
//! Numbers are little-endian and of fixed width. The storage has to detect corruption.

use crate::ids::ClientId;
use crate::wire::Kind;

/// A bit of a message's kind: it has a sender.
const HAS_SENDER: u8 = 0x80;

/// A bit of a message's kind: its sender has a user.
const HAS_USER: u8 = 0x40;

/// A change of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The channel exists.
    Channel {
        /// Its name.
        name: Box<str>,
        /// The channel's position in the log.
        position: ChannelPosition,
        /// The encoded messages since the last change, in order; may be empty.
        messages: Vec<u8>,
    },
    /// The channel was removed, with its history.
    Removed {
        /// Its name.
        name: Box<str>,
    },
}

impl Change {
    /// The approximate size of the change in bytes.
    pub fn bytes(&self) -> usize {
        let (Change::Channel { name, .. } | Change::Removed { name }) = self;
        let messages = if let Change::Channel { messages, .. } = self { messages.len() } else { 0 };
        name.len() + size_of::<ChannelPosition>() + messages
    }
}

/// A channel's position in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelPosition {
    /// The number of the channel's last message.
    pub number: u64,
    /// Its last message in the log.
    pub last: u64,
    /// The last evicted message.
    pub evicted_through: u64,
}

/// A message of a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChangeMessage<'a> {
    pub(super) log_index: u64,
    /// When it was published, by the log's time in milliseconds.
    pub(super) at: u64,
    pub(super) kind: Kind,
    pub(super) client: Option<ClientId>,
    /// As JSON.
    pub(super) user: Option<&'a str>,
    pub(super) payload: &'a [u8],
}

/// Bytes that are not a valid change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidChange;

/// The number of a kind in the file.
pub(super) fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Text => 0,
        Kind::Binary => 1,
        Kind::Data => 2,
    }
}

pub(super) fn put_message(out: &mut Vec<u8>, message: &ChangeMessage<'_>) {
    let ChangeMessage { log_index, at, kind, client, user, payload } = *message;
    out.extend_from_slice(&log_index.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    let has_client = if client.is_some() { HAS_SENDER } else { 0 };
    let has_user = if user.is_some() { HAS_USER } else { 0 };
    out.push(kind_code(kind) | has_client | has_user);
    if let Some(client) = client {
        out.extend_from_slice(&client.to_bits().to_le_bytes());
    }
    if let Some(user) = user {
        out.extend_from_slice(&(user.len() as u32).to_le_bytes());
        out.extend_from_slice(user.as_bytes());
    }
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Decodes messages from the front of bytes.
#[derive(Debug)]
pub(super) struct ChangeMessages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for ChangeMessages<'a> {
    type Item = Result<ChangeMessage<'a>, InvalidChange>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.message().ok_or(InvalidChange))
    }
}

impl<'a> ChangeMessages<'a> {
    fn message(&mut self) -> Option<ChangeMessage<'a>> {
        let log_index = u64::from_le_bytes(self.array()?);
        let at = u64::from_le_bytes(self.array()?);
        let [kind] = self.array()?;
        let client = if kind & HAS_SENDER == 0 {
            None
        } else {
            Some(ClientId::from_bits(u32::from_le_bytes(self.array()?)))
        };
        let user = if kind & HAS_USER == 0 { None } else { Some(std::str::from_utf8(self.bytes()?).ok()?) };
        let kind = match kind & !(HAS_SENDER | HAS_USER) {
            0 => Kind::Text,
            1 => Kind::Binary,
            2 => Kind::Data,
            _ => return None,
        };
        let payload = self.bytes()?;
        Some(ChangeMessage { log_index, at, kind, client, user, payload })
    }

    /// Length-prefixed bytes.
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?);
        let (bytes, rest) = self.0.split_at_checked(length as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}
