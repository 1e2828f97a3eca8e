//! Frames of a client: the messages that a decoder written from RFC 6455 finds, and no other, wherever the bytes are
//! cut; and an end of the conversation if and only if that decoder finds one.

use oyez::config::Limits;
use oyez::session::decoder::DecodeOutcome;
use oyez::session::decoding::Decoding;
use oyez::session::frame_scanner::{FrameScanner, ScanStop};
use oyez::session::websocket;
use oyez::time::LoopTime;
use oyez::wire::Kind;

use super::Input;
use super::reference::{self, Decoded};

/// Small, so that inputs reach it.
const MESSAGE_BYTES_MAX: usize = 1_000;

/// The first two bytes are lengths of pieces, the rest are frames.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let (short, long) = (1 + usize::from(input.u8()) % 16, 1 + usize::from(input.u8()) * 4);
    let bytes = input.0;
    let expected = reference::decode(bytes, MESSAGE_BYTES_MAX);
    let whole = receive(bytes, &[usize::MAX]);
    assert_eq!(whole.0, expected.messages);
    if expected.is_ended {
        assert!(whole.2 != DecodeOutcome::Open, "the decoder of RFC 6455 ends: {expected:?}");
    }
    for lengths in [&[1][..], &[short], &[long, short]] {
        let (messages, replies, outcome) = receive(bytes, lengths);
        assert_eq!((&messages, &replies), (&whole.0, &whole.1), "in pieces of {lengths:?}");
        assert_eq!(
            is_open(&outcome),
            is_open(&whole.2),
            "in pieces of {lengths:?}: {outcome:?}, {:?}",
            whole.2
        );
    }
    check_scanner(bytes, &expected, short);
}

fn is_open(outcome: &DecodeOutcome) -> bool {
    *outcome == DecodeOutcome::Open
}

/// Messages, replies, and the end of the conversation.
type Outcome = (Vec<(Kind, Vec<u8>)>, Vec<u8>, DecodeOutcome);

/// The messages received from bytes that arrive in pieces of these lengths, repeated.
fn receive(mut bytes: &[u8], lengths: &[usize]) -> Outcome {
    let limits = Limits { message_bytes_max: MESSAGE_BYTES_MAX, ..Limits::default() };
    let (mut messages, mut replies, mut unfinished) = (Vec::new(), Vec::new(), None);
    for length in lengths.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (mut piece, rest) = bytes.split_at((*length).min(bytes.len()));
        bytes = rest;
        let mut decoding = Decoding::plain(&limits, LoopTime::from_millis(0));
        let outcome =
            websocket::receive(&mut unfinished, &mut piece, &mut decoding, &mut replies, |kind, payload| {
                messages.push((kind, payload.to_vec()));
            });
        if outcome != DecodeOutcome::Open {
            return (messages, replies, outcome);
        }
    }
    (messages, replies, DecodeOutcome::Open)
}

/// The scanner alone: the same end in pieces, and a message boundary where the decoder has one.
fn check_scanner(bytes: &[u8], expected: &Decoded, piece_bytes: usize) {
    for allows_compressed in [false, true] {
        let mut scanner = FrameScanner::new(allows_compressed);
        let (valid_bytes, stop) = scanner.scan(bytes, MESSAGE_BYTES_MAX);
        assert!(valid_bytes <= bytes.len() && (stop != ScanStop::EndOfInput || valid_bytes == bytes.len()));
        let mut in_pieces = FrameScanner::new(allows_compressed);
        let mut found = ScanStop::EndOfInput;
        for piece in bytes.chunks(piece_bytes) {
            found = in_pieces.scan(piece, MESSAGE_BYTES_MAX).1;
            if found != ScanStop::EndOfInput {
                break;
            }
        }
        assert_eq!(found, stop, "in pieces of {piece_bytes}");
        assert_eq!(in_pieces.close_code(), scanner.close_code());
        if stop == ScanStop::EndOfInput {
            assert_eq!(in_pieces.at_boundary(), scanner.at_boundary());
            if !allows_compressed && !expected.is_ended {
                assert_eq!(scanner.at_boundary(), expected.is_at_boundary);
            }
        }
    }
}
