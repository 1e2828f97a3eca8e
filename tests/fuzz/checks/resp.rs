//! The RESP codec: no panic; the same tokens and the same error wherever the bytes are cut; memory that follows the
//! bytes that have arrived; what another decoder returns; and commands that both decode as they were encoded.

use oyez::backplane::resp::{Decoder, RespError, Token, command};
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

use super::Input;

/// A token with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Simple(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(usize),
}

/// The decoder's constants: free space of each read, and the size above which an empty buffer is freed.
const READ_BYTES: usize = 16 << 10;
const KEPT_BYTES_MAX: usize = 256 << 10;

/// Number of places at which the replies are cut.
const CUTS_MAX: usize = 64;

/// The other decoder is recursive.
const ORACLE_ARRAYS_MAX: usize = 100;

/// The first two bytes are lengths of pieces, the rest are replies.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let (short, long) = (1 + usize::from(input.u8()) % 16, 1 + usize::from(input.u8()) * 32);
    let replies = input.0;
    let whole = decode_pieces(replies, &[usize::MAX]);
    for lengths in [&[1][..], &[short], &[long, short]] {
        assert_eq!(decode_pieces(replies, lengths), whole, "in pieces of {lengths:?}");
    }
    for cut in (1..replies.len()).take(CUTS_MAX) {
        assert_eq!(decode_pieces(replies, &[cut, usize::MAX]), whole, "cut at {cut}");
    }
    let arrays = whole.0.iter().filter(|part| matches!(part, Part::Array(_))).count();
    if whole.1.is_ok() && arrays <= ORACLE_ARRAYS_MAX {
        let (mut rest, mut expected) = (replies, Vec::new());
        while let Ok(Some((frame, length))) = decode(rest) {
            flatten(&frame, &mut expected);
            rest = &rest[length..];
        }
        assert!(whole.0.starts_with(&expected), "{:?}, and another decoder {expected:?}", whole.0);
    }
    check_command(replies, short);
}

/// Replies that another encoder has written are decoded completely, in pieces of any lengths.
pub fn check_frames(frames: &[OwnedFrame], lengths: &[usize]) {
    let (mut replies, mut expected) = (Vec::new(), Vec::new());
    for frame in frames {
        let mut reply = vec![0; frame.encode_len(false)];
        let length = encode(&mut reply, frame, false).expect("a frame");
        replies.extend_from_slice(&reply[..length]);
        flatten(frame, &mut expected);
    }
    assert_eq!(decode_pieces(&replies, lengths), (expected, Ok(())));
}

/// A command of these bytes, in arguments of one length.
fn check_command(bytes: &[u8], length: usize) {
    let args: Vec<&[u8]> = bytes.chunks(length).take(1_000).collect();
    let mut out = Vec::new();
    command(&mut out, &args);
    let (parts, result) = decode_pieces(&out, &[usize::MAX]);
    assert_eq!(result, Ok(()));
    let bulks = args.iter().map(|arg| Part::Bulk(arg.to_vec()));
    assert_eq!(parts, [Part::Array(args.len())].into_iter().chain(bulks).collect::<Vec<_>>());
    let (frame, length) = decode(&out).expect("RESP").expect("a complete command");
    let mut expected = Vec::new();
    flatten(&frame, &mut expected);
    assert_eq!((parts, out.len()), (expected, length));
}

/// Decodes bytes that arrive in pieces of these lengths, repeated.
fn decode_pieces(mut bytes: &[u8], lengths: &[usize]) -> (Vec<Part>, Result<(), RespError>) {
    let (mut decoder, mut parts, mut peak) = (Decoder::default(), Vec::new(), 0);
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*length).clamp(1, bytes.len()));
        bytes = rest;
        let mut piece = piece;
        while !piece.is_empty() {
            let room = decoder.room();
            let space = room.len();
            let count = space.min(piece.len());
            room[..count].copy_from_slice(&piece[..count]);
            let bound = (2 * peak + READ_BYTES).max(KEPT_BYTES_MAX);
            assert!(space + decoder.buffered() <= bound, "{space} bytes of space for {peak} bytes");
            decoder.filled(count);
            piece = &piece[count..];
            peak = peak.max(decoder.buffered());
        }
        loop {
            match next(&mut decoder) {
                Ok(Some(part)) => parts.push(part),
                Ok(None) => break,
                Err(error) => return (parts, Err(error)),
            }
        }
    }
    (parts, Ok(()))
}

fn next(decoder: &mut Decoder) -> Result<Option<Part>, RespError> {
    let token = decoder.next()?;
    Ok(token.map(|token| match token {
        Token::Simple(span) => Part::Simple(decoder.bytes(span).to_vec()),
        Token::Error(span) => Part::Error(decoder.bytes(span).to_vec()),
        Token::Integer(number) => Part::Integer(number),
        Token::Bulk(span) => Part::Bulk(decoder.bytes(span).to_vec()),
        Token::Nil => Part::Nil,
        Token::Array(length) => Part::Array(length),
    }))
}

fn flatten(frame: &OwnedFrame, out: &mut Vec<Part>) {
    match frame {
        OwnedFrame::SimpleString(text) => out.push(Part::Simple(text.clone())),
        OwnedFrame::Error(text) => out.push(Part::Error(text.clone().into_bytes())),
        OwnedFrame::Integer(number) => out.push(Part::Integer(*number)),
        OwnedFrame::BulkString(text) => out.push(Part::Bulk(text.clone())),
        OwnedFrame::Null => out.push(Part::Nil),
        OwnedFrame::Array(frames) => {
            out.push(Part::Array(frames.len()));
            frames.iter().for_each(|frame| flatten(frame, out));
        }
    }
}
