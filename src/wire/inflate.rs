//! Decompression of permessage-deflate messages (RFC 7692 7.2.2).
//!
//! One decompressor serves the whole process: the server agrees to `client_no_context_takeover`, so no message refers
//! to an earlier one, and no connection has state of its own. It is allocated with the first compressed message.

use zlib_rs::{Inflate, InflateFlush, Status};

/// The window of the compressed data: 32 KiB, the largest (RFC 7692 7.1.2), so that a client may use any.
const WINDOW_BITS: u8 = 15;
const WINDOW_BYTES: usize = 1 << WINDOW_BITS;

/// RFC 7692 7.2.2: the bytes that the sender removed from the end of a message.
const REMOVED_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// An empty final block. The decompressor reaches its end if and only if the data before it end with a complete block.
const EMPTY_FINAL_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];

/// Bytes decompressed in one step, which are then appended to the message.
const STEP_BYTES: usize = 8 << 10;

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

/// The decompressor.
#[derive(Default)]
pub struct Inflater {
    /// `None` until the first message.
    state: Option<Box<InflaterState>>,
}

struct InflaterState {
    inflate: Inflate,
    step: [u8; STEP_BYTES],
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").field("is_allocated", &self.state.is_some()).finish()
    }
}

impl Inflater {
    /// Decompresses the payload of a message, all of its fragments together, up to a size of `bytes_max`.
    ///
    /// # Errors
    /// The data are invalid, or the message is larger.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateError> {
        let state = self.state.get_or_insert_with(|| {
            Box::new(InflaterState { inflate: Inflate::new(false, WINDOW_BITS), step: [0; STEP_BYTES] })
        });
        state.inflate.reset(false);
        let mut message = Vec::new();
        // The data of an empty message are one byte (7.2.3.6); some clients send none.
        if payload.is_empty() {
            return Ok(message);
        }
        let mut final_blocks = 0;
        let mut rest = payload;
        // 7.2.3.4: final blocks may end the data, or be followed by others, which may refer to the text before them.
        while state.append(&mut rest, &mut message, bytes_max)? {
            if rest.is_empty() {
                return Ok(message);
            }
            final_blocks += 1;
            if final_blocks > FINAL_BLOCKS_MAX {
                return Err(InflateError::Invalid);
            }
            state.inflate.reset(false);
            let window = &message[message.len().saturating_sub(WINDOW_BYTES)..];
            state.inflate.set_dictionary(window).map_err(|_| InflateError::Invalid)?;
        }
        if state.append(&mut &REMOVED_TAIL[..], &mut message, bytes_max)? {
            return Err(InflateError::Invalid);
        }
        let mut end = &EMPTY_FINAL_BLOCK[..];
        if !state.append(&mut end, &mut message, bytes_max)? || !end.is_empty() {
            return Err(InflateError::Invalid);
        }
        Ok(message)
    }
}

impl InflaterState {
    /// Decompresses input up to its end or that of a final block. Returns true at the end of a final block.
    fn append(
        &mut self,
        input: &mut &[u8],
        message: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Result<bool, InflateError> {
        loop {
            let (consumed_before, produced_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, &mut self.step, InflateFlush::SyncFlush)
                .map_err(|_| InflateError::Invalid)?;
            let consumed = (self.inflate.total_in() - consumed_before) as usize;
            let produced = (self.inflate.total_out() - produced_before) as usize;
            *input = &input[consumed..];
            if message.len() + produced > bytes_max {
                return Err(InflateError::TooBig);
            }
            message.extend_from_slice(&self.step[..produced]);
            match status {
                Status::StreamEnd => return Ok(true),
                // A full step may have more to follow.
                _ if input.is_empty() && produced < STEP_BYTES => return Ok(false),
                _ if consumed == 0 && produced == 0 => return Err(InflateError::Invalid),
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zlib_rs::{Deflate, DeflateFlush};

    fn inflate(payload: &[u8]) -> Result<String, InflateError> {
        let message = Inflater::default().inflate(payload, 1 << 16)?;
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
            assert_eq!(inflater.inflate(&payload, length).unwrap().len(), length);
            if length > 0 {
                assert_eq!(inflater.inflate(&payload, length - 1), Err(InflateError::TooBig));
            }
        }
        let bomb = deflate(&vec![0; 20_000_000], 9);
        assert!(bomb.len() < 64 << 10);
        assert_eq!(inflater.inflate(&bomb, 64 << 10), Err(InflateError::TooBig));
        assert_eq!(inflater.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5).unwrap(), b"Hello");
    }

    #[test]
    fn window_of_one_message_is_not_available_to_the_next() {
        let mut inflater = Inflater::default();
        inflater.inflate(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5).unwrap();
        assert_eq!(inflater.inflate(b"\xf2\x00\x11\x00\x00", 5), Err(InflateError::Invalid));
    }
}
