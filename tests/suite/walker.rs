//! The frame walker against tungstenite, for every split of random sessions.

use std::io::{self, Read, Write};

use oyez::session::walker::{Halt, Walker};
use proptest::prelude::*;
use tungstenite::Message;
use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};

use crate::support::frames::{self, BINARY, CONTINUATION, PING, PONG, TEXT};

/// One thing that a client sends, in one or more frames.
#[derive(Clone, Debug)]
enum Said {
    Whole { opcode: u8, length: usize },
    Fragments { opcode: u8, lengths: Vec<usize>, ping_between: bool },
    Control { opcode: u8, length: usize },
}

fn said() -> impl Strategy<Value = Said> {
    let opcode = prop_oneof![Just(TEXT), Just(BINARY)];
    let length = prop_oneof![0usize..8, 120usize..130, 65_530usize..65_540];
    let short = 0usize..20;
    prop_oneof![
        (opcode.clone(), length).prop_map(|(opcode, length)| Said::Whole { opcode, length }),
        (opcode, prop::collection::vec(short.clone(), 2..5), any::<bool>())
            .prop_map(|(opcode, lengths, ping_between)| Said::Fragments { opcode, lengths, ping_between }),
        (prop_oneof![Just(PING), Just(PONG)], short)
            .prop_map(|(opcode, length)| Said::Control { opcode, length }),
    ]
}

/// The bytes of a session, and the places where nothing is begun.
fn encode(session: &[Said]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut boundaries) = (Vec::new(), vec![0]);
    for said in session {
        match said {
            Said::Whole { opcode, length } | Said::Control { opcode, length } => {
                bytes.extend(frames::masked(*opcode, &vec![b'a'; *length]));
            }
            Said::Fragments { opcode, lengths, ping_between } => {
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

fn hear(context: &mut WebSocketContext, bytes: &[u8]) -> Vec<Message> {
    let mut port = Port(bytes);
    std::iter::from_fn(|| context.read(&mut port).ok()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_boundary_is_where_a_new_context_can_go_on(session in prop::collection::vec(said(), 0..6)) {
        let (bytes, boundaries) = encode(&session);
        let whole = hear(&mut context(), &bytes);
        let mut walker = Walker::new();
        // Every split, but for the inner bytes of large payloads.
        for cut in 0..=bytes.len() {
            let is_boundary = boundaries.contains(&cut);
            prop_assert_eq!(walker.at_boundary(), is_boundary, "cut at {}", cut);
            if is_boundary {
                let first = hear(&mut context(), &bytes[..cut]);
                let rest = hear(&mut context(), &bytes[cut..]);
                prop_assert_eq!([first, rest].concat(), whole.clone(), "cut at {}", cut);
            }
            if cut < bytes.len() {
                let step = walker.walk(&bytes[cut..=cut], 1 << 20);
                prop_assert_eq!(step, (1, Halt::EndOfInput));
            }
        }
        // The same in one go.
        let mut walker = Walker::new();
        prop_assert_eq!(walker.walk(&bytes, 1 << 20), (bytes.len(), Halt::EndOfInput));
        prop_assert!(walker.at_boundary());
    }

    /// What the walker passes, tungstenite takes; what it stops at, tungstenite would refuse as well, or
    /// RFC 6455 does.
    #[test]
    fn junk_is_stopped_and_never_passed_on(junk in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
        let mut at_once = Walker::new();
        let whole = at_once.walk(&junk, 1 << 16);
        let mut in_two = Walker::new();
        let cut = cut.min(junk.len());
        let (first, halt) = in_two.walk(&junk[..cut], 1 << 16);
        if halt == Halt::EndOfInput {
            let (second, halt) = in_two.walk(&junk[cut..], 1 << 16);
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
                // A close frame's payload is not the walker's business.
                Err(tungstenite::Error::Protocol(tungstenite::error::ProtocolError::InvalidCloseSequence)) => break,
                Err(error) => prop_assert!(false, "tungstenite refuses what the walker passed: {error}"),
            }
        }
    }
}
