//! RESP2, the protocol of Redis and Valkey: encoding of commands, and a pull decoder of replies.
//!
//! The decoder returns one token at a time and not one reply, so the entries of a long `XREAD` reply are applied while
//! the rest of it is still on its way. No byte is scanned twice, however small the pieces in which a reply arrives, and
//! a bulk string is a range of the decoder's buffer: nothing is copied. The crates for RESP (redis-protocol, resp-rs,
//! stream_resp) return whole replies, and most of them parse an incomplete one again from its start.
//!
//! RESP2 and not RESP3: five types of tokens, no `HELLO`, no push messages.

use std::fmt;

/// Maximum length of a bulk string in bytes. An entry of the log is at most 32 KiB plus one message.
pub const BULK_BYTES_MAX: usize = 64 << 20;

/// Maximum length of a line in bytes: a simple string, an error or a number. Redis truncates its own errors well below.
pub const LINE_BYTES_MAX: usize = 4096;

/// Maximum length of an array. The longest one in use is that of `XREAD COUNT 64`.
pub const ARRAY_ITEMS_MAX: usize = 1024;

/// Bytes of free space that each read gets at least. 16 KiB is the size of a TLS record.
const READ_BYTES: usize = 16 << 10;

/// A buffer that grew beyond this is freed when it is empty: one large entry must not occupy memory for ever.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Appends a command as an array of bulk strings.
pub fn command(out: &mut Vec<u8>, args: &[&[u8]]) {
    append_length(out, b'*', args.len());
    for arg in args {
        append_length(out, b'$', arg.len());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
}

fn append_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), length);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// A range of the decoder's buffer, valid until the next call of [`Decoder::room`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: usize,
    end: usize,
}

/// A part of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// `+OK`
    Simple(Span),
    /// `-ERR ...`, without the `-`.
    Error(Span),
    /// `:1000`
    Integer(i64),
    /// `$3`, followed by three bytes.
    Bulk(Span),
    /// `$-1` or `*-1`: no value.
    Nil,
    /// The head of an array: the number of the values that follow.
    Array(usize),
}

/// A reply that is not RESP2, or exceeds a limit. The connection is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespError {
    /// The first byte of a token is not one of `+-:$*`.
    UnknownType(u8),
    /// A length or an integer is not a decimal number, or does not fit.
    BadNumber,
    /// A line is longer than [`LINE_BYTES_MAX`].
    LineTooLong,
    /// A bulk string is longer than [`BULK_BYTES_MAX`].
    BulkTooLong,
    /// An array is longer than [`ARRAY_ITEMS_MAX`].
    ArrayTooLong,
    /// A bulk string is not followed by CR LF.
    MissingLineEnd,
}

impl fmt::Display for RespError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RespError::UnknownType(byte) => write!(f, "unknown type of reply: byte {byte:#04x}"),
            RespError::BadNumber => write!(f, "invalid number in a reply"),
            RespError::LineTooLong => write!(f, "a line of a reply is longer than {LINE_BYTES_MAX} bytes"),
            RespError::BulkTooLong => write!(f, "a string of a reply is longer than {BULK_BYTES_MAX} bytes"),
            RespError::ArrayTooLong => write!(f, "an array of a reply has more than {ARRAY_ITEMS_MAX} items"),
            RespError::MissingLineEnd => write!(f, "a string of a reply does not end with CR LF"),
        }
    }
}

/// A pull decoder of replies.
#[derive(Debug, Default)]
pub struct Decoder {
    /// All of it is initialized, so that a socket can read into it.
    buffer: Vec<u8>,
    /// The first byte that no token has consumed.
    start: usize,
    /// The end of the received bytes.
    end: usize,
    /// Bytes from `start` that contain no line end.
    scanned: usize,
    /// The length of the bulk string that begins at `start`.
    bulk: Option<usize>,
}

impl Decoder {
    /// Space for the next bytes of the connection; never empty. Invalidates all spans.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > KEPT_BYTES_MAX {
                self.buffer = Vec::new();
            }
        } else if self.buffer.len() - self.end < READ_BYTES && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() - self.end < READ_BYTES {
            // Doubles, up to the end of an announced bulk string: memory follows the received bytes, and not the
            // length that the peer claims.
            let rest = self.bulk.map_or(0, |length| (length + 2).saturating_sub(self.end));
            let more = READ_BYTES.max(rest.min(self.end));
            self.buffer.resize(self.end + more, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first `count` bytes of [`Decoder::room`] were received.
    pub fn filled(&mut self, count: usize) {
        self.end = self.buffer.len().min(self.end + count);
    }

    /// Discards everything that was received and not decoded. Spans stay valid.
    pub fn clear(&mut self) {
        (self.start, self.scanned, self.bulk) = (self.end, 0, None);
    }

    /// Bytes that were received and not decoded.
    pub fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// The bytes of a span.
    pub fn bytes(&self, span: Span) -> &[u8] {
        &self.buffer[span.start..span.end]
    }

    /// Decodes the next token; `None` if it is incomplete.
    ///
    /// # Errors
    /// The bytes are not RESP2, or exceed a limit. Every further call returns an error or nothing of use.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot return errors and continue later")]
    pub fn next(&mut self) -> Result<Option<Token>, RespError> {
        if let Some(length) = self.bulk {
            return self.bulk_string(length);
        }
        let Some(line) = self.line()? else { return Ok(None) };
        let (kind, line) = (self.buffer[line.start], Span { start: line.start + 1, end: line.end });
        let token = match kind {
            b'+' => Token::Simple(line),
            b'-' => Token::Error(line),
            b':' => Token::Integer(number(self.bytes(line)).ok_or(RespError::BadNumber)?),
            b'$' => match length(self.bytes(line), BULK_BYTES_MAX, RespError::BulkTooLong)? {
                None => Token::Nil,
                Some(length) => {
                    self.bulk = Some(length);
                    return self.bulk_string(length);
                }
            },
            b'*' => match length(self.bytes(line), ARRAY_ITEMS_MAX, RespError::ArrayTooLong)? {
                None => Token::Nil,
                Some(length) => Token::Array(length),
            },
            other => return Err(RespError::UnknownType(other)),
        };
        Ok(Some(token))
    }

    /// Consumes a line: its type, and the text up to CR LF.
    fn line(&mut self) -> Result<Option<Span>, RespError> {
        let received = &self.buffer[self.start..self.end];
        if let Some(&kind) = received.first()
            && !b"+-:$*".contains(&kind)
        {
            return Err(RespError::UnknownType(kind));
        }
        // A CR without LF, or the reverse, is part of the text.
        let is_end = |at: &usize| *at > 0 && received[at - 1] == b'\r';
        let mut line_ends = memchr::memchr_iter(b'\n', &received[self.scanned..]).map(|at| self.scanned + at);
        let found = line_ends.find(is_end).map(|at| at - 1);
        match found {
            Some(length) if length <= LINE_BYTES_MAX => {
                let line = Span { start: self.start, end: self.start + length };
                self.start += length + 2;
                self.scanned = 0;
                Ok(Some(line))
            }
            None if received.len() <= LINE_BYTES_MAX + 1 => {
                self.scanned = received.len();
                Ok(None)
            }
            _ => Err(RespError::LineTooLong),
        }
    }

    fn bulk_string(&mut self, length: usize) -> Result<Option<Token>, RespError> {
        let Some(line_end) = self.buffer[self.start..self.end].get(length..length + 2) else {
            return Ok(None);
        };
        if line_end != b"\r\n" {
            return Err(RespError::MissingLineEnd);
        }
        let span = Span { start: self.start, end: self.start + length };
        self.start = span.end + 2;
        self.bulk = None;
        Ok(Some(Token::Bulk(span)))
    }
}

/// A length; `None` for -1, which means no value.
fn length(text: &[u8], max: usize, too_long: RespError) -> Result<Option<usize>, RespError> {
    match number(text) {
        Some(-1) => Ok(None),
        Some(length) => match usize::try_from(length) {
            Ok(length) if length <= max => Ok(Some(length)),
            Ok(_) => Err(too_long),
            Err(_) => Err(RespError::BadNumber),
        },
        None => Err(RespError::BadNumber),
    }
}

/// A decimal number with an optional minus sign.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(decoder: &mut Decoder, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = decoder.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            decoder.filled(count);
            bytes = &bytes[count..];
        }
    }

    fn result(bytes: &[u8]) -> Result<(), RespError> {
        let mut decoder = Decoder::default();
        receive(&mut decoder, bytes);
        while decoder.next()?.is_some() {}
        Ok(())
    }

    #[test]
    fn reply_beyond_a_limit_is_an_error() {
        let check = |bytes: &[u8], error| assert_eq!(result(bytes), Err(error));
        check(b"$67108865\r\n", RespError::BulkTooLong);
        check(b"*1025\r\n", RespError::ArrayTooLong);
        check(&[b"+".as_slice(), &[b'a'; LINE_BYTES_MAX + 1]].concat(), RespError::LineTooLong);
        check(b"$2\r\nabc\r\n", RespError::MissingLineEnd);
        for bad in [&b"$-2\r\n"[..], b":1x\r\n", b":\r\n", b"*+1\r\n", b":9223372036854775808\r\n"] {
            check(bad, RespError::BadNumber);
        }
        check(b"HTTP/1.1 400 Bad Request\r\n", RespError::UnknownType(b'H'));
        assert_eq!(result(&[b"+".as_slice(), &[b'a'; LINE_BYTES_MAX - 1], b"\r\n"].concat()), Ok(()));
    }

    /// A peer that announces 64 MiB and sends 100 bytes occupies little memory; a long string is released after it.
    #[test]
    fn memory_follows_the_received_bytes() {
        let mut decoder = Decoder::default();
        receive(&mut decoder, b"$67108864\r\n");
        assert_eq!(decoder.next(), Ok(None));
        receive(&mut decoder, &[0; 100]);
        decoder.room();
        assert!(decoder.buffer.len() <= 4 * READ_BYTES, "{} bytes", decoder.buffer.len());
        let mut decoder = Decoder::default();
        receive(&mut decoder, format!("${}\r\n", 3 << 20).as_bytes());
        assert_eq!(decoder.next(), Ok(None));
        receive(&mut decoder, &vec![0; 3 << 20]);
        assert!(decoder.buffer.len() < 7 << 20, "{} bytes", decoder.buffer.len());
        receive(&mut decoder, b"\r\n");
        assert!(matches!(decoder.next(), Ok(Some(Token::Bulk(_)))));
        decoder.room();
        assert!(decoder.buffer.len() <= READ_BYTES, "{} bytes", decoder.buffer.len());
    }
}
