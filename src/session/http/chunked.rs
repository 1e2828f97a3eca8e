//! A request body in chunked transfer coding (RFC 9112 7.1), decoded as it arrives.
//!
//! Many clients send all bodies in this coding, since they do not know the length when they begin. The grammar is
//! applied strictly, since a proxy in front that parses a chunk's size differently would see another request begin
//! (request smuggling): sizes of hexadecimal digits alone, lines that end in CR LF, nothing between a chunk's data and
//! its line end. Chunk extensions and trailers are read past and bounded.

use crate::config::Limits;
use crate::session::buffer;

/// The parser's position in the coding.
#[derive(Debug)]
pub(in crate::session) struct ChunkDecoder {
    position: ChunkPosition,
    /// Bytes that the current chunk has yet to deliver.
    left: usize,
    /// Bytes of all chunk extensions and trailers.
    extra_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkPosition {
    /// In a size, after this many digits.
    Size {
        digits: u8,
    },
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    /// After a chunk's data.
    DataEnd,
    /// After the CR that follows a chunk's data.
    DataLineEnd,
    /// In the trailer section; `is_empty`: no byte of the current line has arrived.
    Trailer {
        is_empty: bool,
    },
    /// After the CR of a trailer line.
    TrailerEnd {
        is_empty: bool,
    },
}

/// Why a body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum BadChunk {
    /// The chunk breaks the grammar.
    Malformed,
    /// A chunk ends beyond the longest body.
    TooBig,
    /// Extensions and trailers are longer than a request head may be.
    TooMuchExtra,
}

/// Maximum digits of a chunk size, leading zeros included: those of 2^64.
const DIGITS_MAX: u8 = 16;

impl ChunkDecoder {
    pub(in crate::session) fn new() -> ChunkDecoder {
        ChunkDecoder { position: ChunkPosition::Size { digits: 0 }, left: 0, extra_bytes: 0 }
    }

    /// Appends the data in `input` to `body`. Returns how many bytes of `input` belong to the body, once it is whole.
    ///
    /// # Errors
    /// Nothing that follows can be read.
    pub(in crate::session) fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        limits: &Limits,
    ) -> Result<Option<usize>, BadChunk> {
        let mut at = 0;
        while at < input.len() {
            if self.position == ChunkPosition::Data {
                let data = &input[at..at + self.left.min(input.len() - at)];
                buffer::append(body, data, limits.body_bytes_max);
                at += data.len();
                self.left -= data.len();
                if self.left == 0 {
                    self.position = ChunkPosition::DataEnd;
                }
                continue;
            }
            let byte = input[at];
            at += 1;
            self.position = match (self.position, byte) {
                (ChunkPosition::Size { digits }, _) if byte.is_ascii_hexdigit() => {
                    if digits == DIGITS_MAX {
                        return Err(BadChunk::Malformed);
                    }
                    self.add_digit(byte, body.len(), limits)?;
                    ChunkPosition::Size { digits: digits + 1 }
                }
                (ChunkPosition::Size { digits: 1.. }, b';') => {
                    self.extra(ChunkPosition::Extension, limits)?
                }
                (ChunkPosition::Size { digits: 1.. } | ChunkPosition::Extension, b'\r') => {
                    ChunkPosition::SizeEnd
                }
                (ChunkPosition::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                    self.extra(ChunkPosition::Extension, limits)?
                }
                (ChunkPosition::SizeEnd, b'\n') if self.left == 0 => {
                    ChunkPosition::Trailer { is_empty: true }
                }
                (ChunkPosition::SizeEnd, b'\n') => ChunkPosition::Data,
                (ChunkPosition::DataEnd, b'\r') => ChunkPosition::DataLineEnd,
                (ChunkPosition::DataLineEnd, b'\n') => ChunkPosition::Size { digits: 0 },
                (ChunkPosition::Trailer { is_empty }, b'\r') => ChunkPosition::TrailerEnd { is_empty },
                // A trailer's line begins with its name; obsolete line folding is rejected (RFC 9112 5.2).
                (ChunkPosition::Trailer { is_empty: true }, b'\t' | b' ') => return Err(BadChunk::Malformed),
                (ChunkPosition::Trailer { .. }, b'\t' | b' '..=b'~' | 0x80..) => {
                    self.extra(ChunkPosition::Trailer { is_empty: false }, limits)?
                }
                (ChunkPosition::TrailerEnd { is_empty: true }, b'\n') => return Ok(Some(at)),
                (ChunkPosition::TrailerEnd { is_empty: false }, b'\n') => {
                    ChunkPosition::Trailer { is_empty: true }
                }
                _ => return Err(BadChunk::Malformed),
            };
        }
        Ok(None)
    }

    fn add_digit(&mut self, digit: u8, received: usize, limits: &Limits) -> Result<(), BadChunk> {
        let value = (digit as char).to_digit(16).unwrap_or(0) as usize;
        let size = self.left.checked_mul(16).map(|size| size + value);
        // As early as possible: the data of a chunk that is too long are not waited for.
        let room = limits.body_bytes_max.saturating_sub(received);
        self.left = size.filter(|&size| size <= room).ok_or(BadChunk::TooBig)?;
        Ok(())
    }

    fn extra(&mut self, position: ChunkPosition, limits: &Limits) -> Result<ChunkPosition, BadChunk> {
        self.extra_bytes += 1;
        if self.extra_bytes > limits.head_bytes_max { Err(BadChunk::TooMuchExtra) } else { Ok(position) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of a body that arrives in two pieces, and the number of bytes of the second piece that belong to it.
    fn decode(first: &[u8], second: &[u8]) -> Result<Option<(Vec<u8>, usize)>, BadChunk> {
        let limits = Limits { body_bytes_max: 300, head_bytes_max: 50, ..Limits::default() };
        let (mut decoder, mut body) = (ChunkDecoder::new(), Vec::new());
        for (piece, before) in [(first, 0), (second, first.len())] {
            if let Some(consumed) = decoder.decode(piece, &mut body, &limits)? {
                return Ok(Some((body, before + consumed)));
            }
        }
        Ok(None)
    }

    #[test]
    fn bodies_are_the_same_at_every_cut() {
        let long = format!("12c\r\n{}\r\n0\r\n\r\n", "x".repeat(300));
        for (text, data) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("1\r\na\r\n00A\r\n0123456789\r\n0000\r\n\r\n", "a0123456789"),
            ("2;name=value;x=\"y z\"\r\n\r\n\r\n0;last\r\n\r\n", "\r\n"),
            ("1\r\na\r\n0\r\nDigest: x\r\nMore: \t\u{e4}\r\n\r\n", "a"),
            (&long, &"x".repeat(300)),
        ] {
            for cut in 0..=text.len() {
                let whole = format!("{text}GET / HTTP/1.1\r\n");
                let found = decode(&whole.as_bytes()[..cut], &whole.as_bytes()[cut..]).unwrap();
                assert_eq!(found, Some((data.as_bytes().to_vec(), text.len())), "{text:?} cut at {cut}");
                if cut < text.len() {
                    assert_eq!(decode(&text.as_bytes()[..cut], b""), Ok(None), "{text:?} up to {cut}");
                }
            }
        }
    }

    #[test]
    fn coding_that_a_proxy_may_parse_differently_is_rejected() {
        for text in [
            "\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n",
            "+5\r\nhello\r\n",
            "-5\r\n",
            " 5\r\nhello\r\n",
            "5 \r\nhello\r\n",
            "5 ;x\r\nhello\r\n",
            "5,5\r\n",
            ";x\r\n",
            "5\r\r\n",
            "00000000000000005\r\nhello\r\n",
            "5;x\ny\r\n",
            "5;\0\r\n",
            "0\r\n\n",
            "0\r\nA: b\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nA: \0\r\n\r\n",
            "0\r\n\rX",
        ] {
            for cut in 0..text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                assert_eq!(decode(first, second), Err(BadChunk::Malformed), "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn sizes_and_extras_are_bounded() {
        assert_eq!(decode(b"12d", b""), Err(BadChunk::TooBig), "before its data arrives");
        assert_eq!(decode(b"ffffffffffffffff", b""), Err(BadChunk::TooBig));
        let two = format!("12c\r\n{}\r\n1\r\n", "x".repeat(300));
        assert_eq!(decode(two.as_bytes(), b""), Err(BadChunk::TooBig));
        let (extension, trailer) = (format!("1;{}", "x".repeat(50)), format!("0\r\n{}", "x\r\n".repeat(51)));
        assert_eq!(decode(extension.as_bytes(), b""), Err(BadChunk::TooMuchExtra));
        assert_eq!(decode(trailer.as_bytes(), b""), Err(BadChunk::TooMuchExtra));
        let each = "1;xxxx\r\na\r\n".repeat(11);
        assert_eq!(decode(each.as_bytes(), b""), Err(BadChunk::TooMuchExtra), "of all chunks together");
    }
}
