//! Decompression of permessage-deflate messages (RFC 7692 7.2.2), in steps of bounded work.
//!
//! The server agrees to `client_no_context_takeover`, so no message refers to an earlier one, and a connection has a
//! decompressor only while one of its messages is decompressed. One is kept for the next message of any connection; it
//! is allocated with the first compressed message. A message that takes more than one turn holds its own until it is
//! complete.

use super::zlib::{Inflate, InflateFlush, Status};

/// The window of the compressed data: 32 KiB, the largest (RFC 7692 7.1.2), so that a client may use any.
const WINDOW_BITS: u8 = 15;
const WINDOW_BYTES: usize = 1 << WINDOW_BITS;

/// RFC 7692 7.2.2: the bytes that the sender removed from the end of a message.
const REMOVED_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// An empty final block. The decompressor reaches its end if and only if the data before it end with a complete block.
const EMPTY_FINAL_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];

/// Maximum bytes that one step decompresses, which are then appended to the message.
const STEP_BYTES: usize = 8 << 10;

/// Maximum compressed bytes that one step consumes. Blocks without any text cost the most for each byte, so that a step
/// takes no more than 50 us either way.
const STEP_INPUT_BYTES: usize = 1 << 10;

/// Memory of a decompressor in addition to its step: the window of 32 KiB, and zlib-rs' state with the code tables.
const DECOMPRESSOR_BYTES: usize = 38 << 10;

/// Maximum final blocks in a message, which RFC 7692 7.2.1 allows at any place. The shortest is two bytes long, and
/// after each of them the window is written again, which takes 0.2 us. A sender without a flush has one in each
/// message (7.2.3.4), and most have none.
const FINAL_BLOCKS_MAX: usize = 64;

/// Why a message could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// The data are not valid DEFLATE blocks (RFC 1951), or end within one.
    Invalid,
    /// The message is larger than the maximum.
    TooBig,
}

/// The decompressor that is kept between messages.
#[derive(Default)]
pub struct Inflater {
    /// `None` before the first message, and while a message is decompressed.
    spare: Option<Box<Decompressor>>,
}

struct Decompressor {
    inflate: Inflate,
    step: [u8; STEP_BYTES],
}

/// A message that is being decompressed.
pub struct Inflation {
    decompressor: Box<Decompressor>,
    payload: Vec<u8>,
    /// The part of the input that is being decompressed.
    stage: InflationStage,
    /// Bytes of that part that are consumed.
    consumed: usize,
    final_blocks: usize,
}

/// The parts of the input, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InflationStage {
    Payload,
    RemovedTail,
    FinalBlock,
}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateProgress {
    /// The message is complete.
    pub is_complete: bool,
    /// Compressed bytes that were consumed.
    pub consumed: usize,
    /// Bytes that were appended to the message.
    pub produced: usize,
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("has_spare", &self.spare.is_some()).finish()
    }
}

impl std::fmt::Debug for Inflation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflation").field("stage", &self.stage).field("consumed", &self.consumed).finish()
    }
}

impl Inflater {
    /// Begins to decompress the payload of a message, all of its fragments together.
    pub fn begin(&mut self, payload: Vec<u8>) -> Inflation {
        let mut decompressor = self.spare.take().unwrap_or_else(|| {
            Box::new(Decompressor { inflate: Inflate::new(false, WINDOW_BITS), step: [0; STEP_BYTES] })
        });
        decompressor.inflate.reset(false);
        Inflation { decompressor, payload, stage: InflationStage::Payload, consumed: 0, final_blocks: 0 }
    }

    /// Keeps the decompressor of a message that is complete or invalid.
    pub fn end(&mut self, inflation: Inflation) {
        self.spare.get_or_insert(inflation.decompressor);
    }
}

impl Inflation {
    /// Bytes of memory that the message holds.
    pub fn held_bytes(&self) -> usize {
        self.payload.capacity() + DECOMPRESSOR_BYTES + size_of::<Decompressor>()
    }

    /// Decompresses one step of the payload, and appends it to the message, up to a size of `bytes_max`.
    ///
    /// # Errors
    /// The data are invalid, or the message is larger.
    pub fn step(&mut self, message: &mut Vec<u8>, bytes_max: usize) -> Result<InflateProgress, InflateError> {
        let Inflation { decompressor, payload, .. } = self;
        // The data of an empty message are one byte (7.2.3.6); some clients send none.
        if payload.is_empty() {
            return Ok(InflateProgress { is_complete: true, consumed: 0, produced: 0 });
        }
        let source = match self.stage {
            InflationStage::Payload => payload.as_slice(),
            InflationStage::RemovedTail => &REMOVED_TAIL,
            InflationStage::FinalBlock => &EMPTY_FINAL_BLOCK,
        };
        let input = &source[self.consumed..source.len().min(self.consumed + STEP_INPUT_BYTES)];
        let Decompressor { inflate, step } = &mut **decompressor;
        let (consumed_before, produced_before) = (inflate.total_in(), inflate.total_out());
        let status =
            inflate.decompress(input, step, InflateFlush::SyncFlush).map_err(|_| InflateError::Invalid)?;
        let consumed = (inflate.total_in() - consumed_before) as usize;
        let produced = (inflate.total_out() - produced_before) as usize;
        if message.len() + produced > bytes_max {
            return Err(InflateError::TooBig);
        }
        message.extend_from_slice(&step[..produced]);
        self.consumed += consumed;
        let is_at_end = self.consumed == source.len();
        let is_complete = match status {
            Status::StreamEnd => self.end_final_block(is_at_end, message)?,
            // A full step may have more to follow.
            _ if is_at_end && produced < STEP_BYTES => {
                self.begin_next_stage()?;
                false
            }
            _ if consumed == 0 && produced == 0 => return Err(InflateError::Invalid),
            Status::Ok | Status::BufError => false,
        };
        Ok(InflateProgress { is_complete, consumed, produced })
    }

    /// Handles the end of a final block. Returns true if the message is complete.
    fn end_final_block(&mut self, is_at_end: bool, message: &[u8]) -> Result<bool, InflateError> {
        match self.stage {
            // 7.2.3.4: a final block may end the data, or be followed by blocks that may refer to the text before them.
            InflationStage::Payload if !is_at_end => {
                self.final_blocks += 1;
                if self.final_blocks > FINAL_BLOCKS_MAX {
                    return Err(InflateError::Invalid);
                }
                let inflate = &mut self.decompressor.inflate;
                inflate.reset(false);
                let window = &message[message.len().saturating_sub(WINDOW_BYTES)..];
                inflate.set_dictionary(window).map_err(|_| InflateError::Invalid)?;
                Ok(false)
            }
            InflationStage::Payload | InflationStage::FinalBlock if is_at_end => Ok(true),
            _ => Err(InflateError::Invalid),
        }
    }

    /// Continues with the next part of the input after one that ended without a final block.
    fn begin_next_stage(&mut self) -> Result<(), InflateError> {
        self.stage = match self.stage {
            InflationStage::Payload => InflationStage::RemovedTail,
            InflationStage::RemovedTail => InflationStage::FinalBlock,
            InflationStage::FinalBlock => return Err(InflateError::Invalid),
        };
        self.consumed = 0;
        Ok(())
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;
    use zlib_rs::{Deflate, DeflateFlush};

    fn inflate_with(
        inflater: &mut Inflater,
        payload: &[u8],
        bytes_max: usize,
    ) -> Result<Vec<u8>, InflateError> {
        let (mut inflation, mut message) = (inflater.begin(payload.to_vec()), Vec::new());
        let result = loop {
            match inflation.step(&mut message, bytes_max) {
                Ok(InflateProgress { is_complete, consumed, produced }) => {
                    assert!(consumed <= STEP_INPUT_BYTES && produced <= STEP_BYTES);
                    if is_complete {
                        break Ok(message);
                    }
                }
                Err(error) => break Err(error),
            }
        };
        inflater.end(inflation);
        result
    }

    fn inflate(payload: &[u8]) -> Result<String, InflateError> {
        let message = inflate_with(&mut Inflater::default(), payload, 1 << 16)?;
        Ok(String::from_utf8(message).unwrap())
    }

    /// Compresses as a client does, without the last four bytes.
    fn deflate(message: &[u8], level: i32) -> Vec<u8> {
        let mut out = vec![0; message.len() + message.len() / 8 + 64];
        let mut deflate = Deflate::new(level, false, WINDOW_BITS);
        deflate.compress(message, &mut out, DeflateFlush::SyncFlush).unwrap();
        out.truncate(deflate.total_out() as usize);
        assert!(out.ends_with(&REMOVED_TAIL));
        out.truncate(out.len() - 4);
        out
    }

    #[test]
    fn examples_of_the_rfc_are_decompressed() {
        // RFC 7692 7.2.3.1: one compressed block.
        assert_eq!(inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00").unwrap(), "Hello");
        // 7.2.3.3: a block without compression.
        assert_eq!(inflate(b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00").unwrap(), "Hello");
        // 7.2.3.4: a final block, and the byte that follows it.
        assert_eq!(inflate(b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00").unwrap(), "Hello");
        // 7.2.3.5: two blocks.
        assert_eq!(inflate(b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00").unwrap(), "Hello");
        // 7.2.3.6: an empty message.
        assert_eq!(inflate(b"\x00").unwrap(), "");
        // 7.2.3.2 needs the window of the message before it, which was not agreed.
        assert_eq!(inflate(b"\xf2\x00\x11\x00\x00"), Err(InflateError::Invalid));
    }

    #[test]
    fn final_blocks_are_followed_by_others_that_refer_to_the_text_before() {
        let mut payload = b"\xf3\x48\xcd\xc9\xc9\x07\x00".to_vec();
        assert_eq!(inflate(&payload).unwrap(), "Hello", "without the byte that follows");
        // Of 7.2.3.2: `Hello` by reference to the window.
        payload.extend_from_slice(b"\xf2\x00\x11\x00\x00");
        assert_eq!(inflate(&payload).unwrap(), "HelloHello");
        let empty = |count| [b"\x03\x00".repeat(count), b"\x00".to_vec()].concat();
        assert_eq!(inflate(&empty(FINAL_BLOCKS_MAX)).unwrap(), "");
        assert_eq!(inflate(&empty(FINAL_BLOCKS_MAX + 1)), Err(InflateError::Invalid));
    }

    #[test]
    fn invalid_and_truncated_data_are_rejected() {
        let text = "the quick brown fox jumps over the lazy dog, the quick brown fox sleeps. ".repeat(40);
        assert_eq!(inflate(&deflate(text.as_bytes(), 0)).unwrap(), text);
        // Not of level 0: the removed tail could be the last bytes of a block without compression.
        for level in [1, 6, 9] {
            let payload = deflate(text.as_bytes(), level);
            assert_eq!(inflate(&payload).unwrap(), text);
            for end in 2..payload.len() {
                assert_eq!(
                    inflate(&payload[..end]),
                    Err(InflateError::Invalid),
                    "{end} bytes of level {level}"
                );
            }
        }
        assert_eq!(inflate(b"\xff\xff\xff"), Err(InflateError::Invalid));
        assert_eq!(inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00\xff"), Err(InflateError::Invalid));
    }

    #[test]
    fn output_stops_at_the_maximum_and_the_next_message_is_decompressed() {
        let mut inflater = Inflater::default();
        for length in [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES, 200_000] {
            let payload = deflate(&vec![b'a'; length], 9);
            assert_eq!(inflate_with(&mut inflater, &payload, length).unwrap().len(), length);
            if length > 0 {
                assert_eq!(inflate_with(&mut inflater, &payload, length - 1), Err(InflateError::TooBig));
            }
        }
        let bomb = deflate(&vec![0; 20_000_000], 9);
        assert!(bomb.len() < 64 << 10);
        assert_eq!(inflate_with(&mut inflater, &bomb, 64 << 10), Err(InflateError::TooBig));
        assert_eq!(inflate_with(&mut inflater, b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5).unwrap(), b"Hello");
    }

    #[test]
    fn window_of_one_message_is_not_available_to_the_next() {
        let mut inflater = Inflater::default();
        inflate_with(&mut inflater, b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5).unwrap();
        assert_eq!(inflate_with(&mut inflater, b"\xf2\x00\x11\x00\x00", 5), Err(InflateError::Invalid));
    }

    #[test]
    fn interleaved_messages_do_not_share_a_window() {
        let mut inflater = Inflater::default();
        let texts: Vec<String> = ["one ", "another "].iter().map(|text| text.repeat(20_000)).collect();
        let mut under_way: Vec<(Inflation, Vec<u8>, bool)> = texts
            .iter()
            .map(|text| (inflater.begin(deflate(text.as_bytes(), 6)), Vec::new(), false))
            .collect();
        while under_way.iter().any(|(.., is_complete)| !is_complete) {
            for (inflation, message, is_complete) in under_way.iter_mut().filter(|(.., done)| !done) {
                *is_complete = inflation.step(message, 1 << 20).unwrap().is_complete;
            }
        }
        for ((_, message, _), text) in under_way.iter().zip(&texts) {
            assert!(message == text.as_bytes());
        }
    }
}
