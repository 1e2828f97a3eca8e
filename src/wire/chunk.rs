//! Chunked transfer coding (RFC 9112 7.1): the framing of a response whose length is not known when it begins.
//!
//! A batch is encoded once for all of its subscribers, so its chunk is part of that encoding: [`begin`] reserves
//! room for the size line, and [`finish`] writes it in front of the data without moving them.

use bytes::Bytes;

/// The chunk of size zero, without trailers: the body is complete. A body without it was cut.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The longest size line: eight hexadecimal digits, CR and LF. A chunk of 4 GiB is not built.
const SIZE_LINE_BYTES: usize = 10;

/// A buffer to which the data of one chunk are appended.
pub fn begin(capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(SIZE_LINE_BYTES + capacity + 2);
    out.resize(SIZE_LINE_BYTES, 0);
    out
}

/// The chunk whose data were appended to a buffer of [`begin`]; empty without data, since a chunk of size zero
/// would end the body.
pub fn finish(mut out: Vec<u8>) -> Bytes {
    let length = out.len() - SIZE_LINE_BYTES;
    if length == 0 {
        return Bytes::new();
    }
    let line = format!("{length:x}\r\n");
    let start = SIZE_LINE_BYTES - line.len();
    out[start..SIZE_LINE_BYTES].copy_from_slice(line.as_bytes());
    out.extend_from_slice(b"\r\n");
    Bytes::from(out).slice(start..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_has_size_line_data_and_line_end() {
        for (length, line) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (70_000, "11170\r\n")] {
            let mut out = begin(3);
            out.resize(out.len() + length, b'x');
            let expected = [line.as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
            assert_eq!(finish(out), expected);
        }
    }

    #[test]
    fn chunk_without_data_does_not_end_the_body() {
        assert_eq!(finish(begin(0)), Bytes::new());
    }
}
