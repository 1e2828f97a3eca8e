//! The history file, byte by byte.
//!
//! A file begins with a [`Preamble`], and goes on with batches: a [`Header`] of fixed size and a body of
//! records ([`crate::hub::journal`]). Batches are only ever appended. What tells an interrupted writing
//! from damage:
//!
//! - Header and body have a checksum each, and the header's is salted with a random number of the file's
//!   own, so that nothing that a client publishes passes for a header.
//! - Batches are numbered.
//! - A header says how much of the file was safe on the disk (`synced`) when it was written. If a batch is
//!   broken and a later header says that it was safe, it has been damaged since, and nobody may pretend
//!   otherwise. If none does, it was being written when the process or the machine ended: that is **the torn
//!   tail**, and it was never promised to anybody.
//! - The last batch of a run that ended in order is [`What::Clean`], and the end of file follows it.

use std::io::{self, Read, Seek, SeekFrom};

use crate::hub::journal::Head;

/// The first bytes of every history file, of whatever format.
pub(super) const MAGIC: [u8; 8] = *b"oyezhist";

/// The format that is written and read here. One that is read differently gets another number.
pub(super) const FORMAT: u32 = 1;

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    pub(super) salt: u64,
}

/// Why a file does not begin with a preamble of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadPreamble {
    Foreign,
    Damaged,
    Newer { format: u32 },
}

impl Preamble {
    pub(super) const BYTES: usize = 24;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.salt.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..20]);
        bytes[20..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Preamble, BadPreamble> {
        if bytes.is_empty() || !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
            return Err(BadPreamble::Foreign);
        }
        let Some(bytes) = bytes.first_chunk::<{ Self::BYTES }>() else { return Err(BadPreamble::Damaged) };
        if u32_at(bytes, 20) != crc32fast::hash(&bytes[..20]) {
            return Err(BadPreamble::Damaged);
        }
        match u32_at(bytes, 8) {
            FORMAT => Ok(Preamble { salt: u64_at(bytes, 12) }),
            format => Err(BadPreamble::Newer { format }),
        }
    }
}

/// What a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A process has begun to write. From here on the file is not clean.
    Open,
    /// Records.
    Changes,
    /// The process has ended in order, and all is written.
    Clean,
}

/// What clocks said when a batch was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Unix time in milliseconds; may jump.
    pub unix_ms: u64,
    /// Milliseconds since the machine was started, suspended or not; never jumps.
    pub boot_ms: u64,
    /// Which start of the machine that was.
    pub boot: u64,
}

/// How long the server was away.
///
/// **Clocks that jump**: on a machine that was not started anew meanwhile, its own clock tells, which nobody
/// can set. Otherwise only unix time is left, and it may have been wrong then or be wrong now. If it went
/// back, no time has passed. If it went ahead, that counts for at most half of what a message is kept, so
/// that a clock that was put right does not let go of everything at once; what is kept so goes on to age.
pub(super) fn away_ms(then: Stamp, now: Stamp, age_ms: u32) -> u64 {
    if then.boot == now.boot && then.boot != 0 && now.boot_ms >= then.boot_ms {
        now.boot_ms - then.boot_ms
    } else {
        now.unix_ms.saturating_sub(then.unix_ms).min(u64::from(age_ms / 2))
    }
}

/// What stands before a batch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) what: What,
    /// Bytes of the records.
    pub(super) length: u32,
    pub(super) checksum: u32,
    /// Which batch of the file it is.
    pub(super) ordinal: u64,
    /// The file is safe on the disk up to here.
    pub(super) synced: u64,
    pub(super) head: Head,
    /// The log's time, in milliseconds.
    pub(super) log_ms: u64,
    pub(super) stamp: Stamp,
    /// What makes the names of clients differ, over restarts too.
    pub(super) clients: u32,
}

/// Marks a header, so that one is found again behind a broken batch.
const MARK: [u8; 4] = *b"\noyz";

impl Header {
    pub(super) const BYTES: usize = 100;

    pub(super) fn to_bytes(self, salt: u64) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&MARK);
        let what: u32 = match self.what {
            What::Open => 1,
            What::Changes => 2,
            What::Clean => 3,
        };
        bytes[8..12].copy_from_slice(&what.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.clients.to_le_bytes());
        let numbers = [
            self.ordinal,
            self.synced,
            self.head.epoch,
            self.head.seq,
            self.head.forgotten,
            self.log_ms,
            self.stamp.unix_ms,
            self.stamp.boot_ms,
            self.stamp.boot,
        ];
        for (place, number) in bytes[24..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let checksum = salted(salt, &bytes[8..]);
        bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8], salt: u64) -> Option<Header> {
        let bytes = bytes.first_chunk::<{ Self::BYTES }>()?;
        if bytes[..4] != MARK || u32_at(bytes, 4) != salted(salt, &bytes[8..]) {
            return None;
        }
        let what = match u32_at(bytes, 8) {
            1 => What::Open,
            2 => What::Changes,
            3 => What::Clean,
            _ => return None,
        };
        let number = |place: usize| u64_at(bytes, 24 + 8 * place);
        Some(Header {
            what,
            length: u32_at(bytes, 12),
            checksum: u32_at(bytes, 16),
            clients: u32_at(bytes, 20),
            ordinal: number(0),
            synced: number(1),
            head: Head { epoch: number(2), seq: number(3), forgotten: number(4) },
            log_ms: number(5),
            stamp: Stamp { unix_ms: number(6), boot_ms: number(7), boot: number(8) },
        })
    }

    pub(super) fn fits(&self, body: &[u8]) -> bool {
        self.checksum == crc32fast::hash(body)
    }
}

fn salted(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// What comes next in a file.
#[derive(Debug)]
pub(super) enum Next {
    /// A whole batch; its records are in the reader's buffer.
    Batch(Header),
    /// The end, where it should be.
    End,
    /// From here on there is nothing that was ever safe on the disk.
    Torn,
    /// Something that was safe is broken.
    Damaged,
}

/// Reads batches in order.
#[derive(Debug)]
pub(super) struct Batches<R> {
    input: R,
    salt: u64,
    /// Where the next batch begins.
    at: u64,
    length: u64,
    ordinal: u64,
    body: Vec<u8>,
}

impl<R: Read + Seek> Batches<R> {
    /// The input has `length` bytes, and stands behind its preamble.
    pub(super) fn new(input: R, salt: u64, length: u64) -> Batches<R> {
        Batches { input, salt, at: Preamble::BYTES as u64, length, ordinal: 0, body: Vec::new() }
    }

    /// The records of the batch that was read last.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where the next batch begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// What its headers are salted with.
    pub(super) fn salt(&self) -> u64 {
        self.salt
    }

    /// The file has grown.
    pub(super) fn grow(&mut self, length: u64) {
        self.length = length;
    }

    /// The next one's number.
    pub(super) fn ordinal(&self) -> u64 {
        self.ordinal
    }

    pub(super) fn next(&mut self) -> io::Result<Next> {
        let left = self.length - self.at;
        if left == 0 {
            return Ok(Next::End);
        }
        let mut bytes = [0; Header::BYTES];
        if left < bytes.len() as u64 {
            return Ok(Next::Torn);
        }
        self.input.read_exact(&mut bytes)?;
        let rest = left - bytes.len() as u64;
        match Header::parse(&bytes, self.salt) {
            Some(header) if u64::from(header.length) <= rest && header.ordinal == self.ordinal => {
                self.body.resize(header.length as usize, 0);
                self.input.read_exact(&mut self.body)?;
                if !header.fits(&self.body) {
                    return self.broken();
                }
                self.at += (bytes.len() + self.body.len()) as u64;
                self.ordinal += 1;
                Ok(Next::Batch(header))
            }
            _ => self.broken(),
        }
    }

    /// The batch that begins here is broken: is there a header behind it that calls it safe?
    fn broken(&mut self) -> io::Result<Next> {
        const WINDOW: usize = 1 << 20;
        let begin = self.at;
        self.input.seek(SeekFrom::Start(begin))?;
        let mut window: Vec<u8> = Vec::new();
        let mut left = self.length - begin;
        while left > 0 {
            let more = left.min(WINDOW as u64);
            left -= more;
            (&mut self.input).take(more).read_to_end(&mut window)?;
            let starts = window.windows(MARK.len()).enumerate().filter(|(_, four)| **four == MARK);
            for (start, _) in starts {
                if Header::parse(&window[start..], self.salt).is_some_and(|header| header.synced > begin) {
                    return Ok(Next::Damaged);
                }
            }
            // A header may lie across two windows.
            window.drain(..window.len().saturating_sub(Header::BYTES - 1));
        }
        Ok(Next::Torn)
    }
}
