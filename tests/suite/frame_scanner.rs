//! The frame scanner against tungstenite, for every split of random sessions.

use std::io::{self, Read, Write};

use oyez::close::Reason;
use oyez::config::Limits;
use oyez::session::decoder::DecodeOutcome;
use oyez::session::decoding::Decoding;
use oyez::session::frame_scanner::{FrameScanner, ScanStop};
use oyez::session::websocket;
use oyez::time::LoopTime;
use oyez::wire::Kind;
use proptest::prelude::*;
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use crate::support::frames::{self, BINARY, CONTINUATION, PING, PONG, TEXT};

/// A message or control frame of a client, in one or more frames.
#[derive(Clone, Debug)]
enum ClientInput {
    Whole { opcode: u8, length: usize },
    Fragments { opcode: u8, lengths: Vec<usize>, ping_between: bool },
    Control { opcode: u8, length: usize },
}

fn client_input() -> impl Strategy<Value = ClientInput> {
    let opcode = prop_oneof![Just(TEXT), Just(BINARY)];
    let length = prop_oneof![0usize..8, 120usize..130, 65_530usize..65_540];
    let short = 0usize..20;
    prop_oneof![
        (opcode.clone(), length).prop_map(|(opcode, length)| ClientInput::Whole { opcode, length }),
        (opcode, prop::collection::vec(short.clone(), 2..5), any::<bool>()).prop_map(
            |(opcode, lengths, ping_between)| ClientInput::Fragments { opcode, lengths, ping_between }
        ),
        (prop_oneof![Just(PING), Just(PONG)], short)
            .prop_map(|(opcode, length)| ClientInput::Control { opcode, length }),
    ]
}

/// The bytes of a session, and the offsets at which no frame or message is unfinished.
fn encode(session: &[ClientInput]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut boundaries) = (Vec::new(), vec![0]);
    for input in session {
        match input {
            ClientInput::Whole { opcode, length } | ClientInput::Control { opcode, length } => {
                bytes.extend(frames::masked(*opcode, &vec![b'a'; *length]));
            }
            ClientInput::Fragments { opcode, lengths, ping_between } => {
                for (place, length) in lengths.iter().enumerate() {
                    let opcode = if place == 0 { *opcode } else { CONTINUATION };
                    let last = if place + 1 == lengths.len() { 0x80 } else { 0 };
                    bytes.extend(frames::fragment(last | opcode, &vec![b'b'; *length]));
                    if *ping_between && last == 0 {
                        bytes.extend(frames::masked(PING, b"between"));
                    }
                }
            }
        }
        boundaries.push(bytes.len());
    }
    (bytes, boundaries)
}

struct Port<'a>(&'a [u8]);

impl Read for Port<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Port<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn context() -> WebSocketContext {
    WebSocketContext::new(Role::Server, Some(WebSocketConfig::default().read_buffer_size(4096)))
}

fn accepted_messages(context: &mut WebSocketContext, bytes: &[u8]) -> Vec<Message> {
    let mut port = Port(bytes);
    std::iter::from_fn(|| context.read(&mut port).ok()).collect()
}

/// Messages, replies, and the end of the conversation.
type Outcome = (Vec<(Kind, Vec<u8>)>, Vec<u8>, DecodeOutcome);

/// The messages of a session that arrives in these pieces, and the replies.
fn receive(pieces: &[&[u8]]) -> Outcome {
    let limits = Limits { message_bytes_max: 1 << 17, ..Limits::default() };
    let (mut messages, mut replies, mut unfinished) = (Vec::new(), Vec::new(), None);
    for mut piece in pieces.iter().copied() {
        let mut decoding = Decoding::plain(&limits, LoopTime::from_millis(0));
        let outcome =
            websocket::receive(&mut unfinished, &mut piece, &mut decoding, &mut replies, |kind, payload| {
                messages.push((kind, payload.to_vec()))
            });
        if outcome != DecodeOutcome::Open {
            return (messages, replies, outcome);
        }
    }
    assert!(unfinished.is_none(), "the session ends on a boundary");
    (messages, replies, DecodeOutcome::Open)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Messages and pongs are tungstenite's, wherever the session is cut; texts that are cut within a character too.
    #[test]
    fn messages_are_the_same_at_every_split(
        session in prop::collection::vec(client_input(), 0..5),
        texts in prop::collection::vec("[a-zäß€𝄞]{0,12}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let (mut bytes, _) = encode(&session);
        for text in &texts {
            let (first, rest) = text.as_bytes().split_at(text.len() / 2);
            bytes.extend(frames::fragment(TEXT, first));
            bytes.extend(frames::fragment(0x80 | CONTINUATION, rest));
        }
        let expected: Vec<(Kind, Vec<u8>)> = accepted_messages(&mut context(), &bytes)
            .into_iter()
            .filter_map(|message| match message {
                Message::Text(text) => Some((Kind::Text, text.as_bytes().to_vec())),
                Message::Binary(payload) => Some((Kind::Binary, payload.to_vec())),
                _ => None,
            })
            .collect();
        let whole = receive(&[&bytes]);
        prop_assert!(whole.0 == expected && whole.2 == DecodeOutcome::Open);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for cut in at.into_iter().rev() {
            let (left, right) = rest.split_at(cut);
            pieces.push(right);
            rest = left;
        }
        pieces.push(rest);
        pieces.reverse();
        prop_assert_eq!(receive(&pieces), whole);
    }

    #[test]
    fn frame_boundary_allows_a_new_context(session in prop::collection::vec(client_input(), 0..6)) {
        let (bytes, boundaries) = encode(&session);
        let whole = accepted_messages(&mut context(), &bytes);
        let mut scanner = FrameScanner::new(false);
        // Every split, but for the inner bytes of large payloads.
        for cut in 0..=bytes.len() {
            let is_boundary = boundaries.contains(&cut);
            prop_assert_eq!(scanner.at_boundary(), is_boundary, "cut at {}", cut);
            if is_boundary {
                let first = accepted_messages(&mut context(), &bytes[..cut]);
                let rest = accepted_messages(&mut context(), &bytes[cut..]);
                prop_assert_eq!([first, rest].concat(), whole.clone(), "cut at {}", cut);
            }
            if cut < bytes.len() {
                let step = scanner.scan(&bytes[cut..=cut], 1 << 20);
                prop_assert_eq!(step, (1, ScanStop::EndOfInput));
            }
        }
        // The same input in one call.
        let mut scanner = FrameScanner::new(false);
        prop_assert_eq!(scanner.scan(&bytes, 1 << 20), (bytes.len(), ScanStop::EndOfInput));
        prop_assert!(scanner.at_boundary());
    }

    /// tungstenite accepts all input that the scanner passes. Input at which the scanner stops is rejected by
    /// tungstenite too, or forbidden by RFC 6455.
    #[test]
    fn invalid_input_is_stopped_and_not_passed_on(junk in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
        let mut at_once = FrameScanner::new(false);
        let whole = at_once.scan(&junk, 1 << 16);
        let mut in_two = FrameScanner::new(false);
        let cut = cut.min(junk.len());
        let (first, halt) = in_two.scan(&junk[..cut], 1 << 16);
        if halt == ScanStop::EndOfInput {
            let (second, halt) = in_two.scan(&junk[cut..], 1 << 16);
            // A header that began before the cut is good as far as it went, and bad as a whole.
            prop_assert_eq!(halt, whole.1);
            prop_assert!(first + second >= whole.0);
        } else {
            prop_assert_eq!((first, halt), whole);
        }
        let mut context = context();
        let mut port = Port(&junk[..whole.0]);
        loop {
            match context.read(&mut port) {
                Ok(_) => {}
                Err(tungstenite::Error::Io(_) | tungstenite::Error::ConnectionClosed | tungstenite::Error::Utf8(_)) => break,
                // The scanner does not check a close frame's payload.
                Err(tungstenite::Error::Protocol(tungstenite::error::ProtocolError::InvalidCloseSequence)) => break,
                Err(error) => prop_assert!(false, "tungstenite rejects what the scanner passed: {error}"),
            }
        }
    }
}

#[test]
fn unfinished_message_that_is_invalid_is_rejected_early() {
    let begun = |first_byte: u8, payload: &[u8]| frames::fragment(first_byte, payload);
    let rejected = |pieces: &[&[u8]]| match receive(pieces).2 {
        DecodeOutcome::Failed(reason) => reason.as_str(),
        outcome => panic!("{outcome:?}"),
    };
    let large = vec![b'x'; 1 << 16];
    // 128 KiB are the limit of all fragments together, and the third announces more.
    let header = frames::header(CONTINUATION, 0x80, 1);
    let (first, second) = (begun(BINARY, &large), begun(CONTINUATION, &large));
    assert_eq!(rejected(&[&first, &second, &header, &[0; 4]]), "too_big");
    assert_eq!(rejected(&[&begun(TEXT, b"a\xc3"), &begun(CONTINUATION, b"\xc3")]), "not_utf8");
    assert_eq!(rejected(&[&begun(TEXT, b"a\xc3"), &begun(0x80 | CONTINUATION, b"")]), "not_utf8");
    assert_eq!(rejected(&[&begun(TEXT, b"a"), &begun(TEXT, b"b")]), "protocol");
    // Before the frame is whole.
    let text = begun(0x80 | TEXT, b"a\xff and much more");
    assert_eq!(rejected(&[&text[..text.len() - 5]]), "not_utf8");
}

#[test]
fn control_frames_within_an_unfinished_message_are_answered_at_once() {
    let ping = frames::masked(PING, b"between");
    let (first, last) = (frames::fragment(TEXT, b"one "), frames::fragment(0x80 | CONTINUATION, b"two"));
    let (messages, replies, outcome) = receive(&[&first, &ping[..3], &ping[3..], &last]);
    assert_eq!((messages, outcome), (vec![(Kind::Text, b"one two".to_vec())], DecodeOutcome::Open));
    assert_eq!(replies, [&[0x8a, 7][..], b"between"].concat());
    let (messages, replies, outcome) = receive(&[&first, &frames::close(1000, "bye")]);
    assert_eq!((messages, outcome), (vec![], DecodeOutcome::PeerClosed));
    assert_eq!(replies, [&[0x88, 5, 0x03, 0xe8][..], b"bye"].concat());
    let reserved = receive(&[&first, &frames::close(1005, "")]).2;
    assert_eq!(reserved, DecodeOutcome::Failed(Reason::Protocol));
}
