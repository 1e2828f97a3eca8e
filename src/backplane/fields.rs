//! The fields of an entry of the log: numbers in little endian, and texts after their lengths.

use std::fmt;

use crate::access::identity::ClientIdentity;
use crate::ids::ChannelName;

/// The error of an entry that no version of this program has written, or a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadEntry {
    /// The version of the format is unknown.
    Version(u8),
    /// The entry ends within its header or an item, or has no items.
    Truncated,
    /// A channel's name is outside the alphabet.
    ChannelName,
    /// A text is not UTF-8.
    Utf8,
    /// A field has an invalid value.
    Field,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadEntry::Version(version) => write!(f, "version {version} of the format is unknown"),
            BadEntry::Truncated => f.write_str("it ends within an item"),
            BadEntry::ChannelName => f.write_str("invalid channel name"),
            BadEntry::Utf8 => f.write_str("a text is not UTF-8"),
            BadEntry::Field => f.write_str("invalid field"),
        }
    }
}

pub(super) fn append_numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

pub(super) fn append_owner(out: &mut Vec<u8>, owner: ClientIdentity<'_>) {
    match owner {
        ClientIdentity::Network(network) => {
            out.push(0);
            out.extend_from_slice(&network.to_le_bytes());
        }
        ClientIdentity::Subject(sub) => {
            // A token's `sub` is part of a request's head, which `--request-head-bytes-max` bounds.
            let sub = &sub.as_bytes()[..sub.len().min(usize::from(u16::MAX))];
            out.push(1);
            out.extend_from_slice(&(sub.len() as u16).to_le_bytes());
            out.extend_from_slice(sub);
        }
    }
}

pub(super) fn owner_len_max(owner: ClientIdentity<'_>) -> usize {
    match owner {
        ClientIdentity::Subject(sub) => 3 + sub.len(),
        ClientIdentity::Network(_) => 9,
    }
}

/// Appends a text of at most 255 bytes: a channel's name or an idempotency key, which their parsers bound.
pub(super) fn append_short(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(usize::from(u8::MAX))];
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

pub(super) fn text(bytes: &[u8]) -> Result<&str, BadEntry> {
    std::str::from_utf8(bytes).map_err(|_| BadEntry::Utf8)
}

/// A reader of the bytes that are not decoded yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FieldReader<'a>(pub(super) &'a [u8]);

impl<'a> FieldReader<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], BadEntry> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadEntry::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], BadEntry> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(BadEntry::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, BadEntry> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, BadEntry> {
        self.array().copied().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, BadEntry> {
        self.array().copied().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, BadEntry> {
        self.array().copied().map(u64::from_le_bytes)
    }

    pub(super) fn hash(&mut self) -> Result<&'a [u8; 32], BadEntry> {
        self.array()
    }

    pub(super) fn short_text(&mut self) -> Result<&'a str, BadEntry> {
        let length = usize::from(self.u8()?);
        text(self.bytes(length)?)
    }

    pub(super) fn channel_count(&mut self) -> Result<(&'a str, u32), BadEntry> {
        let (subscribers, channel) = (self.u32()?, self.short_text()?);
        match ChannelName::parse(channel.as_bytes()) {
            Ok(_) => Ok((channel, subscribers)),
            Err(_) => Err(BadEntry::ChannelName),
        }
    }

    pub(super) fn owner(&mut self) -> Result<ClientIdentity<'a>, BadEntry> {
        match self.u8()? {
            0 => Ok(ClientIdentity::Network(self.u64()?)),
            1 => {
                let length = usize::from(self.u16()?);
                Ok(ClientIdentity::Subject(text(self.bytes(length)?)?))
            }
            _ => Err(BadEntry::Field),
        }
    }

    /// The kind and the body of an item.
    pub(super) fn item(&mut self) -> Result<(u8, &'a [u8]), BadEntry> {
        let kind = self.u8()?;
        let length = self.u32()? as usize;
        Ok((kind, self.bytes(length)?))
    }
}
