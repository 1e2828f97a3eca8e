//! Sessions over a hostile transport: whatever a client sends, however its bytes are split and however few bytes it
//! accepts at a time, it and a subscriber of its channel receive the same; and the engine keeps its invariants, which
//! it checks after each turn.

use std::fmt;

use oyez::config::Limits;
use oyez::wire::Kind;

use super::Input;
use super::reference;
use crate::support::frames::{self, BINARY, CLOSE, Frame, PING, PONG, TEXT};
use crate::support::rig::{Behavior, Rig, Rng};

/// What a client and a subscriber have received.
#[derive(Clone, PartialEq, Eq)]
struct Transcript {
    /// The messages of the subscriber, in order.
    published: Vec<(u8, Vec<u8>)>,
    /// HTTP responses.
    responses: Vec<u8>,
    /// Messages of the client, in order; in any order with `oyez.v1`, where acknowledgements and messages mix.
    messages: Vec<(u8, Vec<u8>)>,
    pongs: Vec<Vec<u8>>,
    close: Option<Vec<u8>>,
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = |messages: &[(u8, Vec<u8>)]| -> Vec<String> {
            messages.iter().map(|(opcode, payload)| format!("{opcode} {}", payload.escape_ascii())).collect()
        };
        f.debug_struct("Transcript")
            .field("published", &texts(&self.published))
            .field("responses", &self.responses.escape_ascii().to_string())
            .field("messages", &texts(&self.messages))
            .field("pongs", &self.pongs)
            .field("close", &self.close.as_ref().map(|payload| payload.escape_ascii().to_string()))
            .finish()
    }
}

/// The protocol of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Raw,
    V1,
    Http,
}

/// A byte for the protocol, two for the transport, the rest is what the client sends after the handshake. For
/// `oyez.v1`, each line is a command, unless it begins with a zero byte: then it is a number of raw bytes.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let protocol = [Protocol::Raw, Protocol::V1, Protocol::Http][usize::from(input.u8()) % 3];
    let seed = u64::from(input.u8()) << 8 | u64::from(input.u8());
    let bytes = match protocol {
        Protocol::V1 => commands(input.0),
        Protocol::Raw | Protocol::Http => input.0.to_vec(),
    };
    let whole = run(protocol, &bytes, bytes.len().max(1), Behavior::Cooperative);
    if protocol == Protocol::Raw {
        let expected = reference::decode(&bytes, limits().message_bytes_max);
        let opcode = |kind: Kind| if kind == Kind::Text { TEXT } else { BINARY };
        let messages: Vec<(u8, Vec<u8>)> =
            expected.messages.into_iter().map(|(kind, payload)| (opcode(kind), payload)).collect();
        assert_eq!(whole.published, messages, "each message is published once, and nothing else");
        assert_eq!(whole.messages, messages, "the sender receives its messages");
        assert!(whole.close.is_some() || whole.pongs == expected.pings, "each ping has its pong");
        assert!(!expected.is_ended || whole.close.is_some(), "{whole:?}");
    }
    for (length, behavior) in [
        (1, Behavior::Cooperative),
        (1 + seed as usize % 40, Behavior::LimitedWrites(1 + seed as usize % 7)),
        (bytes.len().max(1), Behavior::Random(Rng::new(seed))),
        (1 + seed as usize % 9, Behavior::Random(Rng::new(!seed))),
    ] {
        let label = format!("{protocol:?} in pieces of {length}, {behavior:?}");
        assert_eq!(run(protocol, &bytes, length, behavior), whole, "{label}");
    }
}

fn commands(lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        match line {
            [0, bytes @ ..] => out.extend_from_slice(bytes),
            line => out.extend(frames::masked(TEXT, line)),
        }
    }
    out
}

fn limits() -> Limits {
    Limits { message_bytes_max: 1_000, body_bytes_max: 1_000, head_bytes_max: 2_000, ..Limits::default() }
}

fn run(protocol: Protocol, bytes: &[u8], length: usize, behavior: Behavior) -> Transcript {
    let mut rig = Rig::new(limits());
    let subscriber = rig.join("/ws/a");
    let client = rig.connect(Behavior::Cooperative);
    if protocol != Protocol::Http {
        let upgrade = match protocol {
            Protocol::V1 => frames::upgrade_v1("/ws/a"),
            _ => frames::upgrade("/ws/a"),
        };
        rig.send(client, upgrade.as_bytes());
        rig.run_until_idle();
        rig.skip_head(client);
    }
    rig.set_behavior(client, behavior);
    for piece in bytes.chunks(length) {
        // A connection that is reaped reads nothing.
        if rig.is_alive(client) {
            rig.send(client, piece);
        }
        rig.run_until_idle();
    }
    rig.run_until_idle();
    let published = messages(rig.frames(subscriber));
    let mut transcript =
        Transcript { published, responses: Vec::new(), messages: Vec::new(), pongs: Vec::new(), close: None };
    if protocol == Protocol::Http {
        transcript.responses = std::mem::take(&mut rig.pipe(client).outgoing);
        return transcript;
    }
    let received = rig.frames(client);
    assert!(rig.pipe(client).outgoing.is_empty(), "half a frame");
    let end = received.iter().position(|frame| frame.opcode == CLOSE);
    assert!(end.is_none_or(|end| end + 1 == received.len()), "frames after a close frame: {received:?}");
    transcript.close = end.map(|end| received[end].payload.clone());
    let of = |opcode: u8| received.iter().filter(move |frame| frame.opcode == opcode);
    assert_eq!(of(PING).count(), 0, "no time has passed");
    // Pings in the read that ends the session may stay without an answer.
    if end.is_none() {
        transcript.pongs = of(PONG).map(|frame| frame.payload.clone()).collect();
    }
    transcript.messages = messages(received);
    if protocol == Protocol::V1 {
        transcript.messages.sort();
    }
    transcript
}

fn messages(frames: Vec<Frame>) -> Vec<(u8, Vec<u8>)> {
    let is_message = |frame: &Frame| matches!(frame.opcode, TEXT | BINARY);
    frames.into_iter().filter(is_message).map(|frame| (frame.opcode, frame.payload)).collect()
}
