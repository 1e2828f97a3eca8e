//! Replies of Redis: the stream entries of an `XREAD`, the values of short replies, and what an error requires.

use super::resp::{Decoder, RespError, Span, Token};
use crate::ids::MessageId;
use crate::metrics::backplane::ErrorKind;

/// Maximum number of values in a short reply: `open` returns seven.
const VALUES_MAX: usize = 16;

/// A reply that is RESP2 but not what the command returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadReply {
    Resp(RespError),
    Unexpected,
    /// The fields of this stream entry are not those of the log's entries: another program has written it.
    Foreign(MessageId),
}

impl From<RespError> for BadReply {
    fn from(error: RespError) -> BadReply {
        BadReply::Resp(error)
    }
}

/// A part of the reply to `XREAD`. Spans are valid until the decoder's next `room`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadPart {
    /// An entry.
    Entry { id: MessageId, time_ms: u64, bytes: Span },
    /// The marker that begins an epoch: reason and last id that survived.
    Marker { id: MessageId, time_ms: u64, text: Span },
    /// The reply is complete.
    End,
    /// An error reply.
    Error(Span),
}

/// The next token that an `XREAD` reply must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReadState {
    #[default]
    Reply,
    Stream,
    StreamName,
    Entries,
    Entry,
    Id,
    Fields(MessageId),
    TimeName(MessageId),
    Time(MessageId),
    BodyName(MessageId, u64),
    Body {
        id: MessageId,
        time_ms: u64,
        is_marker: bool,
    },
}

/// Decodes replies to `XREAD` of one stream, one entry at a time.
#[derive(Debug, Default)]
pub(super) struct ReadReply {
    state: ReadState,
    /// Entries of the reply that are not decoded yet.
    left: usize,
}

impl ReadReply {
    /// Decodes up to the end of the next part; `None` if it is incomplete.
    pub(super) fn next(&mut self, decoder: &mut Decoder) -> Result<Option<ReadPart>, BadReply> {
        while let Some(token) = decoder.next()? {
            if let Some(part) = self.accept(token, decoder)? {
                return Ok(Some(part));
            }
            if self.take_end() {
                return Ok(Some(ReadPart::End));
            }
        }
        Ok(None)
    }

    /// Counts a decoded entry; the next token begins another one, if one is left.
    fn finish_entry(&mut self) {
        self.left -= 1;
        self.state = ReadState::Entry;
    }

    /// Returns true once if the last entry of the reply was returned: no token marks the end of a reply.
    pub(super) fn take_end(&mut self) -> bool {
        let is_end = self.state == ReadState::Entry && self.left == 0;
        if is_end {
            self.state = ReadState::Reply;
        }
        is_end
    }

    fn accept(&mut self, token: Token, decoder: &Decoder) -> Result<Option<ReadPart>, BadReply> {
        self.state = match (self.state, token) {
            (ReadState::Reply, Token::Nil) => return Ok(Some(ReadPart::End)),
            (ReadState::Reply, Token::Error(text)) => return Ok(Some(ReadPart::Error(text))),
            (ReadState::Reply, Token::Array(1)) => ReadState::Stream,
            (ReadState::Stream, Token::Array(2)) => ReadState::StreamName,
            (ReadState::StreamName, Token::Bulk(_)) => ReadState::Entries,
            (ReadState::Entries, Token::Array(count)) => {
                self.left = count;
                ReadState::Entry
            }
            (ReadState::Entry, Token::Array(2)) => ReadState::Id,
            (ReadState::Id, Token::Bulk(id)) => {
                ReadState::Fields(MessageId::parse(decoder.bytes(id)).ok_or(BadReply::Unexpected)?)
            }
            (ReadState::Fields(id), Token::Array(4)) => ReadState::TimeName(id),
            (ReadState::TimeName(id), Token::Bulk(name)) if decoder.bytes(name) == b"t" => {
                ReadState::Time(id)
            }
            (ReadState::Time(id), Token::Bulk(time)) => {
                ReadState::BodyName(id, number(decoder.bytes(time)).ok_or(BadReply::Foreign(id))?)
            }
            (ReadState::BodyName(id, time_ms), Token::Bulk(name)) => match decoder.bytes(name) {
                b"b" => ReadState::Body { id, time_ms, is_marker: false },
                b"m" => ReadState::Body { id, time_ms, is_marker: true },
                _ => return Err(BadReply::Foreign(id)),
            },
            (ReadState::Body { id, time_ms, is_marker }, Token::Bulk(body)) => {
                self.finish_entry();
                return Ok(Some(if is_marker {
                    ReadPart::Marker { id, time_ms, text: body }
                } else {
                    ReadPart::Entry { id, time_ms, bytes: body }
                }));
            }
            (ReadState::Fields(id) | ReadState::TimeName(id) | ReadState::Time(id), _) => {
                return Err(BadReply::Foreign(id));
            }
            _ => return Err(BadReply::Unexpected),
        };
        Ok(None)
    }
}

/// A reply that is short and complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ShortReply {
    /// A value, or the values of an array. Integers are in decimal, and no value is empty.
    Values(Vec<Vec<u8>>),
    Error(String),
}

/// Decodes short replies: single values, and arrays of them.
#[derive(Debug, Default)]
pub(super) struct ShortReplies {
    values: Vec<Vec<u8>>,
    /// Values of the array that are not decoded yet; `None` outside an array.
    left: Option<usize>,
}

impl ShortReplies {
    /// Decodes the next reply; `None` if it is incomplete.
    pub(super) fn next(&mut self, decoder: &mut Decoder) -> Result<Option<ShortReply>, BadReply> {
        while let Some(token) = decoder.next()? {
            match (token, self.left) {
                (Token::Error(text), None) => {
                    let text = String::from_utf8_lossy(decoder.bytes(text)).into_owned();
                    return Ok(Some(ShortReply::Error(text)));
                }
                (Token::Array(count), None) if count <= VALUES_MAX => self.left = Some(count),
                (Token::Array(_) | Token::Error(_), _) => return Err(BadReply::Unexpected),
                (Token::Simple(span) | Token::Bulk(span), _) => {
                    self.values.push(decoder.bytes(span).to_vec());
                }
                (Token::Integer(value), _) => self.values.push(value.to_string().into_bytes()),
                (Token::Nil, _) => self.values.push(Vec::new()),
            }
            if self.left.unwrap_or(1) == self.values.len() {
                self.left = None;
                return Ok(Some(ShortReply::Values(std::mem::take(&mut self.values))));
            }
        }
        Ok(None)
    }
}

/// A decimal number.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The values that `open` returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OpenReply {
    pub(super) epoch: u64,
    pub(super) seq: u64,
    /// `same`, or why an epoch was begun.
    pub(super) reason: String,
    /// Identifies the log.
    pub(super) birth: u32,
    /// A block of client ids; 0 if none was requested.
    pub(super) block: u64,
    /// Redis' time in ms.
    pub(super) time_ms: u64,
}

impl OpenReply {
    pub(super) fn parse(values: &[Vec<u8>]) -> Option<OpenReply> {
        let [epoch, seq, reason, _replid, birth, block, time_ms] = values else { return None };
        Some(OpenReply {
            epoch: number(epoch)?,
            seq: number(seq)?,
            reason: String::from_utf8(reason.clone()).ok()?,
            birth: u32::from_str_radix(std::str::from_utf8(birth).ok()?, 16).ok()?,
            block: number(block)?,
            time_ms: number(time_ms)?,
        })
    }
}

/// The text of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MarkerText<'a> {
    /// Why the epoch was begun.
    pub(super) reason: &'a str,
    /// The last id that survived.
    pub(super) survived: MessageId,
}

impl MarkerText<'_> {
    pub(super) fn parse(text: &[u8]) -> Option<MarkerText<'_>> {
        let (reason, survived) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        Some(MarkerText { reason, survived: MessageId::parse(survived.as_bytes())? })
    }
}

/// What an error reply requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ErrorAction {
    /// Another node began an epoch, or the scripts are not loaded: close the link and connect again at once.
    ReconnectAtOnce,
    /// Another server has the keys: connect to that address.
    Redirect(String),
    /// The server cannot serve now: connect again after the pause.
    ReconnectLater,
    /// Redis is out of memory; nothing was written.
    OutOfMemory,
    /// The entry before of the same run is not in the log; nothing was written.
    OutOfOrder,
    /// The log is newer than this program.
    NewerVersion,
    /// An operator must act: permissions, password, or keys of another program.
    Reject,
}

impl ErrorAction {
    /// The kind of error for the metrics.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            ErrorAction::ReconnectAtOnce | ErrorAction::OutOfOrder => ErrorKind::Epoch,
            ErrorAction::Redirect(_) => ErrorKind::Moved,
            ErrorAction::ReconnectLater => ErrorKind::Unavailable,
            ErrorAction::OutOfMemory => ErrorKind::OutOfMemory,
            ErrorAction::NewerVersion => ErrorKind::NewerVersion,
            ErrorAction::Reject => ErrorKind::Rejected,
        }
    }

    /// Classifies an error by its first word.
    pub(super) fn of(text: &str) -> ErrorAction {
        let mut words = text.split(' ');
        match words.next().unwrap_or("") {
            "OYEZEPOCH" | "NOSCRIPT" => ErrorAction::ReconnectAtOnce,
            "MOVED" => match words.nth(1) {
                // An empty host means the host of this connection.
                Some(address) if !address.starts_with(':') => ErrorAction::Redirect(address.to_owned()),
                _ => ErrorAction::ReconnectLater,
            },
            "OYEZROLE" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "BUSY"
            | "NOREPLICAS" | "READONLY" | "MISCONF" | "UNBLOCKED" => ErrorAction::ReconnectLater,
            "OOM" => ErrorAction::OutOfMemory,
            "OYEZORDER" => ErrorAction::OutOfOrder,
            "OYEZVERSION" => ErrorAction::NewerVersion,
            // The server closes the connection: `maxclients`.
            "ERR" if text.starts_with("ERR max number of clients") => ErrorAction::ReconnectLater,
            // Another program has added an entry: `open` begins an epoch after it.
            "ERR" if text.contains("XADD is equal or smaller") => ErrorAction::ReconnectAtOnce,
            _ => ErrorAction::Reject,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(decoder: &mut Decoder, bytes: &[u8]) {
        decoder.room()[..bytes.len()].copy_from_slice(bytes);
        decoder.filled(bytes.len());
    }

    const REPLY: &[u8] = b"*1\r\n*2\r\n$3\r\nlog\r\n*2\r\n*2\r\n$3\r\n5-0\r\n*4\r\n$1\r\nt\r\n$2\r\n70\r\n$1\r\nm\r\n$7\r\nnew 0-0\r\n\
        *2\r\n$3\r\n5-3\r\n*4\r\n$1\r\nt\r\n$2\r\n71\r\n$1\r\nb\r\n$3\r\nabc\r\n*-1\r\n-UNBLOCKED x\r\n";

    /// The parts of a reply that arrives in two pieces, as text.
    fn parts(reply: &[u8], cut: usize) -> Result<Vec<String>, BadReply> {
        let (mut decoder, mut replies, mut found) = (Decoder::default(), ReadReply::default(), Vec::new());
        for piece in [&reply[..cut], &reply[cut..]] {
            receive(&mut decoder, piece);
            while let Some(part) = replies.next(&mut decoder)? {
                let text = |span| String::from_utf8_lossy(decoder.bytes(span)).into_owned();
                found.push(match part {
                    ReadPart::Entry { id, time_ms, bytes } => format!("{id} {time_ms} {}", text(bytes)),
                    ReadPart::Marker { id, time_ms, text: body } => format!("{id} {time_ms} {}", text(body)),
                    ReadPart::End => "end".to_owned(),
                    ReadPart::Error(body) => text(body),
                });
                if replies.take_end() {
                    found.push("end".to_owned());
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn read_reply_cut_at_every_byte_is_the_same() {
        let expected = ["5-0 70 new 0-0", "5-3 71 abc", "end", "end", "UNBLOCKED x"];
        for cut in 0..=REPLY.len() {
            assert_eq!(parts(REPLY, cut).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn reply_of_another_shape_is_an_error() {
        for bad in [&b"+OK\r\n"[..], b"*2\r\n", b"*1\r\n*2\r\n$1\r\nk\r\n*1\r\n*2\r\n$1\r\n5\r\n"] {
            assert_eq!(parts(bad, 0), Err(BadReply::Unexpected));
        }
        let other = String::from_utf8_lossy(REPLY).replace("$1\r\nt\r\n", "$1\r\nx\r\n");
        assert_eq!(parts(other.as_bytes(), 0), Err(BadReply::Foreign(MessageId { epoch: 5, seq: 0 })));
        let other = String::from_utf8_lossy(REPLY).replace("$1\r\nb\r\n", "$1\r\nx\r\n");
        assert_eq!(parts(other.as_bytes(), 0), Err(BadReply::Foreign(MessageId { epoch: 5, seq: 3 })));
        let other = String::from_utf8_lossy(REPLY).replace("*4\r\n", "*2\r\n");
        assert_eq!(parts(other.as_bytes(), 0), Err(BadReply::Foreign(MessageId { epoch: 5, seq: 0 })));
    }

    #[test]
    fn short_replies_are_values_or_errors() {
        let (mut decoder, mut replies, mut found) = (Decoder::default(), ShortReplies::default(), Vec::new());
        for byte in b"+OK\r\n*2\r\n:7\r\n$-1\r\n*0\r\n$2\r\nab\r\n-ERR no\r\n" {
            receive(&mut decoder, &[*byte]);
            found.extend(replies.next(&mut decoder).unwrap());
        }
        let values =
            |values: &[&str]| ShortReply::Values(values.iter().map(|v| v.as_bytes().to_vec()).collect());
        let error = ShortReply::Error("ERR no".to_owned());
        assert_eq!(found, [values(&["OK"]), values(&["7", ""]), values(&[]), values(&["ab"]), error]);
    }

    #[test]
    fn every_known_error_has_an_action() {
        let check = |text, action| assert_eq!(ErrorAction::of(text), action, "{text}");
        check("OYEZEPOCH 12", ErrorAction::ReconnectAtOnce);
        let text =
            "ERR The ID specified in XADD is equal or smaller than the target stream top item script: 9";
        check(text, ErrorAction::ReconnectAtOnce);
        check("NOSCRIPT No matching script.", ErrorAction::ReconnectAtOnce);
        check("MOVED 3999 127.0.0.1:6381", ErrorAction::Redirect("127.0.0.1:6381".to_owned()));
        check("MOVED 3999 :6381", ErrorAction::ReconnectLater);
        for text in [
            "OYEZROLE slave",
            "ASK 1 a:1",
            "TRYAGAIN",
            "CLUSTERDOWN x",
            "LOADING x",
            "MASTERDOWN x",
            "BUSY x",
            "NOREPLICAS x",
            "READONLY x",
            "MISCONF x",
            "UNBLOCKED x",
            "ERR max number of clients reached",
        ] {
            check(text, ErrorAction::ReconnectLater);
        }
        check("OOM command not allowed", ErrorAction::OutOfMemory);
        check("OYEZORDER 7", ErrorAction::OutOfOrder);
        check("OYEZVERSION 2", ErrorAction::NewerVersion);
        for text in ["NOAUTH x", "WRONGPASS x", "NOPERM x", "OYEZREPLID x", "ERR x", "WRONGTYPE x", ""] {
            check(text, ErrorAction::Reject);
        }
    }
}
