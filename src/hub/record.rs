//! One change of a channel, as bytes.
//!
//! A record of a channel says how far it is (number, last message, floor), and has the messages since its
//! last record. **Newer records win**: a floor lets go of the messages before it, so whoever reads a
//! channel's records in order ends up with what was kept when the last of them was written.
//!
//! Numbers are little-endian and of fixed width; checksums are the business of whoever keeps the bytes.

use crate::ids::ClientId;
use crate::wire::Kind;

/// The first byte of a record.
const CHANNEL: u8 = 1;
const ENDED: u8 = 2;

/// A bit of a message's kind: it has a sender.
const HAS_SENDER: u8 = 0x80;

/// Bytes of [`Figures`].
const FIGURES_BYTES: usize = 28;

/// How far a channel is, and how many messages follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// The number of its last message.
    pub(super) number: u64,
    /// Its last message in the log.
    pub(super) last: u64,
    /// The last message that is not kept.
    pub(super) floor: u64,
    /// Messages in this record.
    pub(super) count: u32,
}

/// A message of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) seq: u64,
    /// When it was published, by the log's time in milliseconds.
    pub(super) at: u64,
    pub(super) kind: Kind,
    pub(super) from: Option<ClientId>,
    pub(super) payload: &'a [u8],
}

/// What a record says.
#[derive(Clone, Debug)]
pub(super) enum Record<'a> {
    Channel { name: &'a str, figures: Figures, messages: Vec<Message<'a>> },
    Ended { name: &'a str },
}

/// Bytes that no record is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRecord;

pub(super) fn put_end(out: &mut Vec<u8>, name: &str) {
    out.push(ENDED);
    put_name(out, name);
}

/// [`put_figures`] and as many messages have to follow.
pub(super) fn begin_channel(out: &mut Vec<u8>, name: &str) {
    out.push(CHANNEL);
    put_name(out, name);
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
}

pub(super) fn put_figures(out: &mut Vec<u8>, figures: Figures) {
    let start = out.len();
    out.resize(start + FIGURES_BYTES, 0);
    set_figures(&mut out[start..], figures);
}

/// Overwrites what [`put_figures`] has put.
pub(super) fn set_figures(out: &mut [u8], figures: Figures) {
    let Figures { number, last, floor, count } = figures;
    out[..8].copy_from_slice(&number.to_le_bytes());
    out[8..16].copy_from_slice(&last.to_le_bytes());
    out[16..24].copy_from_slice(&floor.to_le_bytes());
    out[24..28].copy_from_slice(&count.to_le_bytes());
}

pub(super) fn put_message(out: &mut Vec<u8>, message: &Message<'_>) {
    let Message { seq, at, kind, from, payload } = *message;
    let kind = match kind {
        Kind::Text => 0,
        Kind::Binary => 1,
        Kind::Data => 2,
    };
    out.extend_from_slice(&seq.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
    out.push(if from.is_some() { kind | HAS_SENDER } else { kind });
    if let Some(from) = from {
        out.extend_from_slice(&from.to_bits().to_le_bytes());
    }
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Takes records off the front of bytes.
#[derive(Debug)]
pub(super) struct Records<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BadRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        (!self.0.is_empty()).then(|| self.record().ok_or(BadRecord))
    }
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Option<Record<'a>> {
        let [tag] = self.array()?;
        let [length] = self.array()?;
        let name = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        match tag {
            ENDED => Some(Record::Ended { name }),
            CHANNEL => {
                let (number, last, floor) = (self.u64()?, self.u64()?, self.u64()?);
                let count = u32::from_le_bytes(self.array()?);
                let mut messages = Vec::new();
                for _ in 0..count {
                    messages.push(self.message()?);
                }
                Some(Record::Channel { name, figures: Figures { number, last, floor, count }, messages })
            }
            _ => None,
        }
    }

    fn message(&mut self) -> Option<Message<'a>> {
        let (seq, at) = (self.u64()?, self.u64()?);
        let [kind] = self.array()?;
        let from = if kind & HAS_SENDER == 0 {
            None
        } else {
            Some(ClientId::from_bits(u32::from_le_bytes(self.array()?)))
        };
        let kind = match kind & !HAS_SENDER {
            0 => Kind::Text,
            1 => Kind::Binary,
            2 => Kind::Data,
            _ => return None,
        };
        let length = u32::from_le_bytes(self.array()?);
        Some(Message { seq, at, kind, from, payload: self.take(length as usize)? })
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}
