//! Broadcasting: every message reaches every subscriber of its channel once and in order. Real servers and raw
//! WebSockets; whole transcripts are compared.

use oyez::config::Limits;

use crate::support::frames::{self, BINARY, PING, PONG, TEXT};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig};

#[test]
fn message_reaches_every_subscriber_once_and_in_order() {
    let server = Server::start(&[]);
    let mut subscribers: Vec<_> = (0..50).map(|_| server.join("/ws")).collect();
    for round in 0..20 {
        subscribers[round * 7 % 50].send_text(&format!("message {round}"));
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.text(), format!("message {round}"));
        }
    }
    // A duplicate would arrive before this message.
    subscribers[0].send_text("last");
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text(), "last");
    }
}

#[test]
fn message_type_is_preserved() {
    let server = Server::start(&[]);
    let (mut one, mut two) = (server.join("/ws"), server.join("/ws"));
    one.send(&frames::masked(BINARY, &[0, 0xff, 0x80]));
    one.send(&frames::masked(TEXT, "grüß 🌍".as_bytes()));
    one.send(&frames::masked(TEXT, b""));
    for subscriber in [&mut one, &mut two] {
        let got = [subscriber.frame(), subscriber.frame(), subscriber.frame()]
            .map(|frame| (frame.opcode, frame.payload));
        assert_eq!(
            got,
            [(BINARY, vec![0, 0xff, 0x80]), (TEXT, "grüß 🌍".as_bytes().to_vec()), (TEXT, vec![])]
        );
    }
}

#[test]
fn message_reaches_only_its_channel_and_main_has_two_paths() {
    let server = Server::start(&[]);
    let mut main = server.join("/ws");
    let mut same = server.join("/ws/main");
    let mut other = server.join("/ws/room:7");
    let mut escaped = server.join("/ws/room%3A7");
    main.send_text("to main");
    other.send_text("to the room");
    assert_eq!((main.text(), same.text()), ("to main".into(), "to main".into()));
    assert_eq!((other.text(), escaped.text()), ("to the room".into(), "to the room".into()));
    for subscriber in [&mut main, &mut same, &mut other, &mut escaped] {
        subscriber.receives_nothing();
    }
}

#[test]
fn publisher_with_echo_disabled_does_not_receive_its_messages() {
    let server = Server::start(&[]);
    let mut quiet = server.join("/ws?echo=0");
    let mut plain = server.join("/ws?echo=1");
    quiet.send_text("one");
    assert_eq!(plain.text(), "one");
    plain.send_text("two");
    assert_eq!(plain.text(), "two");
    assert_eq!(quiet.text(), "two");
    quiet.receives_nothing();
}

#[test]
fn frame_in_the_segment_of_the_request_is_published() {
    let server = Server::start(&[]);
    let mut subscriber = server.join("/ws");
    let mut eager = crate::support::client::Client::new(server.connect());
    let mut all = frames::upgrade("/ws").into_bytes();
    all.extend(frames::masked(TEXT, b"eager"));
    all.extend(frames::masked(PING, b"p"));
    eager.send(&all);
    assert!(eager.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(subscriber.text(), "eager");
    let mut got = [eager.frame(), eager.frame()];
    got.sort_by_key(|frame| frame.opcode);
    assert_eq!((got[0].opcode, &got[0].payload[..]), (TEXT, &b"eager"[..]));
    assert_eq!((got[1].opcode, &got[1].payload[..]), (PONG, &b"p"[..]));
}

#[test]
fn fragmented_message_with_pings_between_is_joined() {
    let server = Server::start(&[]);
    let (mut sender, mut subscriber) = (server.join("/ws"), server.join("/ws"));
    sender.send(&frames::fragment(TEXT, "zwei H".as_bytes()));
    sender.send(&frames::masked(PING, b"between"));
    // The fragment boundary splits a character.
    sender.send(&frames::fragment(frames::CONTINUATION, &"ä".as_bytes()[..1]));
    sender.send(&frames::fragment(frames::CONTINUATION, b""));
    sender.send(&frames::masked(
        frames::CONTINUATION,
        &["ä".as_bytes()[1..].to_vec(), b"lften".to_vec()].concat(),
    ));
    let pong = sender.frame();
    assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"between"[..]));
    assert_eq!((sender.text(), subscriber.text()), ("zwei Hälften".into(), "zwei Hälften".into()));
}

#[test]
fn large_message_arrives_whole() {
    let server = Server::start(&["--message-bytes-max=16MiB", "--outbox-bytes-max=64MiB"]);
    let (mut sender, mut subscriber) = (server.join("/ws?echo=0"), server.join("/ws"));
    for length in [64 << 10, 16 << 20] {
        let payload: Vec<u8> =
            (0..length as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        sender.send(&frames::masked(BINARY, &payload));
        let frame = subscriber.frame();
        assert_eq!((frame.opcode, frame.payload.len()), (BINARY, length));
        assert!(digest(&frame.payload) == digest(&payload), "{length} bytes arrived changed");
        // The same in fragments of 60,000 bytes.
        let mut pieces = payload.chunks(60_000).peekable();
        let mut opcode = BINARY;
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { 0x80 } else { 0 };
            sender.send(&frames::fragment(last | opcode, piece));
            opcode = frames::CONTINUATION;
        }
        assert!(
            digest(&subscriber.frame().payload) == digest(&payload),
            "{length} bytes in fragments arrived changed"
        );
    }
}

/// FNV-1a over all bytes and the length.
fn digest(bytes: &[u8]) -> (usize, u64) {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (bytes.len(), hash)
}

#[test]
fn new_subscriber_gets_no_earlier_messages() {
    let mut rig = Rig::new(Limits::default());
    let sender = rig.join("/ws");
    let newcomer = rig.connect(Behavior::Cooperative);
    rig.send_text(sender, "before");
    rig.send(newcomer, &[frames::upgrade("/ws").as_bytes(), &frames::masked(TEXT, b"after")].concat());
    rig.turn();
    rig.skip_head(newcomer);
    assert_eq!(rig.texts(newcomer), ["after"]);
    assert_eq!(rig.texts(sender), ["before", "after"]);
}
