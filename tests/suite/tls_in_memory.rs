//! TLS over transports in memory: ciphertext split, blocked and corrupted at every byte, and handshakes, key updates
//! and floods counted turn by turn.

use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use oyez::access::limit::Limit;
use oyez::close::Reason;
use oyez::config::Limits;
use oyez::fault::TlsFault;
use oyez::ids::SlotId;
use oyez::net::tls::{TlsBuffers, TlsStream};
use oyez::net::transport::Transport;
use oyez::session::State;
use oyez::session::http::response::HttpError;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, HandshakeKind, ServerConfig,
    SupportedProtocolVersion,
};

use crate::support::frames::{self, BINARY, CLOSE, CONTINUATION, Frame, PING, TEXT};
use crate::support::rig::{Behavior, Pipe, Piped, Rig, Rng};
use crate::support::tls::Identity;

impl Piped for Box<TlsStream<Pipe>> {
    fn pipe(&mut self) -> &mut Pipe {
        self.socket_mut()
    }
}

/// An engine within TLS, and what its clients need.
struct Tls {
    rig: Rig<Box<TlsStream<Pipe>>>,
    bench: Rc<TlsBuffers>,
    client: Arc<ClientConfig>,
}

/// The value of `Date` of all turns.
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

impl Tls {
    fn new(version: &'static SupportedProtocolVersion, limits: Limits, handshakes_per_turn: usize) -> Tls {
        Tls::with(version, limits, handshakes_per_turn, |_| {})
    }

    fn with(
        version: &'static SupportedProtocolVersion,
        limits: Limits,
        handshakes_per_turn: usize,
        change: impl FnOnce(&mut ServerConfig),
    ) -> Tls {
        let identity = Identity::new();
        let mut config = identity.server();
        config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
        change(&mut config);
        let config = Arc::new(config);
        let bench = Rc::new(TlsBuffers::new(handshakes_per_turn, HttpError::tls_expected));
        let shared = bench.clone();
        let enter = move |pipe| Box::new(TlsStream::accept(pipe, config.clone(), shared.clone()).unwrap());
        let client = Arc::new(identity.client(&[version]));
        Tls { rig: Rig::over(limits, enter), bench, client }
    }

    fn connect(&mut self, behavior: Behavior) -> Peer {
        self.connect_from("127.0.0.1", behavior)
    }

    fn connect_from(&mut self, address: &str, behavior: Behavior) -> Peer {
        let id = self.rig.connect_from(address, behavior);
        let mut session =
            ClientConnection::new(self.client.clone(), "localhost".try_into().unwrap()).unwrap();
        session.set_buffer_limit(None);
        Peer { id, session, plaintext: Vec::new(), has_closed: false }
    }

    fn turn(&mut self) {
        self.bench.begin_turn(Rc::from(DATE));
        self.rig.turn();
    }

    /// Runs turns until neither side has anything to send.
    fn run_until_idle(&mut self, peer: &mut Peer) {
        for _ in 0..10_000 {
            let outgoing = peer.take_outgoing();
            if !outgoing.is_empty() {
                self.rig.send(peer.id, &outgoing);
            }
            self.bench.begin_turn(Rc::from(DATE));
            self.rig.run_until_idle();
            peer.receive(&mut self.rig);
            if !peer.session.wants_write() {
                return;
            }
        }
        panic!("no rest");
    }

    /// A client that has joined a channel.
    fn join(&mut self, path: &str) -> Peer {
        let mut peer = self.connect(Behavior::Cooperative);
        peer.write(frames::upgrade(path).as_bytes());
        self.run_until_idle(&mut peer);
        let head = peer.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        peer
    }
}

/// A client.
struct Peer {
    id: SlotId,
    session: ClientConnection,
    plaintext: Vec<u8>,
    has_closed: bool,
}

impl Peer {
    fn write(&mut self, bytes: &[u8]) {
        self.session.writer().write_all(bytes).unwrap();
    }

    /// Takes the ciphertext that the peer has to send.
    fn take_outgoing(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut out).unwrap();
        }
        out
    }

    /// Reads the ciphertext that it was sent.
    fn receive(&mut self, rig: &mut Rig<Box<TlsStream<Pipe>>>) {
        let sent = std::mem::take(&mut rig.pipe(self.id).outgoing);
        let mut rest = &sent[..];
        while !rest.is_empty() && !self.has_closed {
            self.session.read_tls(&mut rest).unwrap();
            self.has_closed |= self.session.process_new_packets().unwrap().peer_has_closed();
            let _ = self.session.reader().read_to_end(&mut self.plaintext);
        }
        assert!(rest.is_empty(), "something follows the close_notify");
    }

    fn head(&mut self) -> String {
        let end = self.plaintext.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        String::from_utf8(self.plaintext.drain(..end).collect()).unwrap()
    }

    fn frames(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| frames::take(&mut self.plaintext)).collect()
    }
}

/// A session with everything in it, in as many records as it has parts.
fn session() -> Vec<Vec<u8>> {
    vec![
        frames::upgrade("/ws/cut").into_bytes(),
        frames::masked(TEXT, "hällo".as_bytes()),
        frames::fragment(BINARY, &[1, 2, 3]),
        frames::masked(PING, b"ping"),
        frames::masked(CONTINUATION, &[4; 200]),
        frames::close(3_999, "bye"),
    ]
}

/// Runs a whole session, the client's bytes split by `cut`; returns the bytes that the client received.
fn run(tls: &mut Tls, behavior: Behavior, cut: impl Fn(&[u8]) -> Vec<Vec<u8>>) -> Vec<u8> {
    let mut peer = tls.connect(behavior);
    let mut parts = session().into_iter();
    loop {
        let outgoing = peer.take_outgoing();
        if outgoing.is_empty() {
            match parts.next() {
                Some(part) if !peer.session.is_handshaking() => peer.write(&part),
                _ => break,
            }
            continue;
        }
        for piece in cut(&outgoing) {
            tls.rig.send(peer.id, &piece);
            tls.turn();
        }
        tls.bench.begin_turn(Rc::from(DATE));
        tls.rig.run_until_idle();
        peer.receive(&mut tls.rig);
    }
    assert!(peer.has_closed, "a close_notify comes before the end of file");
    assert!(tls.rig.pipe(peer.id).outgoing_ended);
    tls.rig.send_eof(peer.id);
    tls.rig.run_until_idle();
    assert!(!tls.rig.is_alive(peer.id));
    let mut plaintext = peer.plaintext;
    let end = plaintext.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(plaintext.drain(..end).as_slice().starts_with(b"HTTP/1.1 101 "));
    plaintext
}

#[test]
fn session_split_in_two_at_every_byte_has_the_same_transcript() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let whole = run(&mut tls, Behavior::Cooperative, |bytes| vec![bytes.to_vec()]);
        let mut copy = whole.clone();
        let frames: Vec<Frame> = std::iter::from_fn(|| frames::take(&mut copy)).collect();
        assert_eq!(frames.len(), 4, "text, pong, binary, close: {frames:?}");
        assert_eq!(frames.last().unwrap().opcode, CLOSE);
        // Each flight is cut at the same byte; the longest has some 500.
        for at in 1..600 {
            let cut = |bytes: &[u8]| match bytes.split_at_checked(at) {
                Some((first, second)) => vec![first.to_vec(), second.to_vec()],
                None => vec![bytes.to_vec()],
            };
            assert_eq!(run(&mut tls, Behavior::Cooperative, cut), whole, "{version:?} cut at {at}");
        }
    }
}

#[test]
fn session_over_a_random_transport_has_the_same_transcript() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 1);
        let whole = run(&mut tls, Behavior::Cooperative, |bytes| vec![bytes.to_vec()]);
        let bytes = |bytes: &[u8]| bytes.chunks(1).map(<[u8]>::to_vec).collect();
        assert_eq!(run(&mut tls, Behavior::Cooperative, bytes), whole);
        for seed in 0..30 {
            let behavior = || Behavior::Random(Rng::new(seed));
            assert_eq!(run(&mut tls, behavior(), |bytes| vec![bytes.to_vec()]), whole, "seed {seed}");
            assert_eq!(run(&mut tls, behavior(), bytes), whole, "seed {seed}, byte by byte");
            assert_eq!(
                run(&mut tls, Behavior::LimitedWrites(1 + seed as usize), bytes),
                whole,
                "limited writes {seed}"
            );
        }
    }
}

#[test]
fn record_larger_than_the_read_buffer_needs_no_second_event() {
    // One record of 16 KiB, and 512 bytes of space for it: the rest is in no socket.
    let limits = Limits { read_bytes_per_connection: 512, reads_per_connection: 1, ..Limits::default() };
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, limits.clone(), 8);
        let mut short = tls.join("/ws");
        short.write(&frames::masked(TEXT, &[b'x'; 2_000]));
        tls.run_until_idle(&mut short);
        assert_eq!(short.frames()[0].payload.len(), 2_000);
        let mut peer = tls.join("/ws");
        let payload = vec![b'x'; 40_000];
        peer.write(&frames::masked(TEXT, &payload));
        // Its close_notify arrives with it; no event reports that either.
        peer.session.send_close_notify();
        let mut other = tls.join("/ws");
        let outgoing = peer.take_outgoing();
        tls.rig.send(peer.id, &outgoing);
        tls.rig.run_until_idle();
        assert!(!tls.rig.is_alive(peer.id), "the close_notify is an end of file");
        assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::EndOfFile), 1);
        tls.run_until_idle(&mut other);
        assert_eq!(other.frames()[0].payload, payload);
    }
}

#[test]
fn truncation_is_handled_as_eof() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let mut other = tls.join("/ws");
    let mut peer = tls.join("/ws");
    peer.write(&frames::masked(TEXT, b"whole"));
    let whole = peer.take_outgoing();
    peer.write(&frames::masked(TEXT, b"half"));
    let half = peer.take_outgoing();
    tls.rig.send(peer.id, &[&whole, &half[..half.len() / 2]].concat());
    tls.rig.send_eof(peer.id);
    tls.rig.run_until_idle();
    assert!(!tls.rig.is_alive(peer.id));
    assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::EndOfFile), 1);
    tls.run_until_idle(&mut other);
    let texts: Vec<Vec<u8>> = other.frames().into_iter().map(|frame| frame.payload).collect();
    assert_eq!(texts, [b"whole"]);
}

#[test]
fn eof_after_an_empty_record_is_seen() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let mut peer = tls.connect(Behavior::Cooperative);
        let hello = peer.take_outgoing();
        tls.rig.send(peer.id, &hello);
        tls.rig.run_until_idle();
        peer.receive(&mut tls.rig);
        let finished = peer.take_outgoing();
        tls.rig.send(peer.id, &finished);
        tls.rig.send_eof(peer.id);
        // Both were there before they were looked at, so this is the only event.
        tls.rig.engine.read(tls.rig.now);
        let state = tls.rig.engine.slots.get(peer.id).map(|slot| &slot.state);
        assert!(
            matches!(state, Some(State::Dead(ended)) if ended.reason == Reason::EndOfFile),
            "{version:?}: {state:?}"
        );
        tls.rig.run_until_idle();
        assert!(!tls.rig.is_alive(peer.id));
        assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::EndOfFile), 1);
    }
}

#[test]
fn broken_record_gets_an_alert_after_earlier_messages_were_published() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let mut other = tls.join("/ws");
        let mut peer = tls.join("/ws");
        peer.write(&frames::masked(TEXT, b"good"));
        let mut outgoing = peer.take_outgoing();
        peer.write(&frames::masked(TEXT, b"bad"));
        outgoing.extend(peer.take_outgoing());
        *outgoing.last_mut().unwrap() ^= 1;
        tls.rig.send(peer.id, &outgoing);
        tls.rig.run_until_idle();
        assert!(tls.rig.pipe(peer.id).outgoing_ended);
        let sent = std::mem::take(&mut tls.rig.pipe(peer.id).outgoing);
        let mut rest = &sent[..];
        let error = loop {
            peer.session.read_tls(&mut rest).unwrap();
            match peer.session.process_new_packets() {
                Ok(_) => assert!(!rest.is_empty(), "an alert comes"),
                Err(error) => break error,
            }
        };
        assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
        tls.rig.send_eof(peer.id);
        tls.rig.run_until_idle();
        let reason = Reason::TlsFailed { fault: TlsFault::BadRecord };
        assert_eq!(tls.rig.engine.shared.metrics.closed(reason), 1);
        tls.run_until_idle(&mut other);
        assert_eq!(other.frames().len(), 1);
    }
}

#[test]
fn client_hello_with_any_wrong_byte_is_handled() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 1_000);
    let hello = tls.connect(Behavior::Cooperative).take_outgoing();
    for at in 0..hello.len() {
        for bit in [0x01, 0x80] {
            let mut bad = hello.clone();
            bad[at] ^= bit;
            let peer = tls.connect(Behavior::Cooperative);
            tls.rig.send(peer.id, &bad);
            tls.rig.send_eof(peer.id);
            tls.turn();
            tls.bench.begin_turn(Rc::from(DATE));
            tls.rig.run_until_idle();
            assert!(!tls.rig.is_alive(peer.id), "byte {at}");
        }
    }
    assert!(tls.rig.engine.shared.metrics.requests_rejected.is_empty(), "no HTTP was rejected");
}

#[test]
fn endless_client_hello_is_rejected() {
    // A handshake message of 60 KiB, in records of 1 KiB.
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let peer = tls.connect(Behavior::Cooperative);
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(60_004, 0);
    for piece in message.chunks(1_024) {
        let length = (piece.len() as u16).to_be_bytes();
        tls.rig.send(peer.id, &[&[22, 3, 1, length[0], length[1]], piece].concat());
        tls.turn();
        if tls.rig.pipe(peer.id).outgoing_ended {
            break;
        }
    }
    let left = tls.rig.pipe(peer.id).outgoing.clone();
    assert!(tls.rig.pipe(peer.id).outgoing_ended, "20 KiB are enough");
    assert_eq!((left[0], left[5]), (21, 2), "a fatal alert: {left:?}");
}

#[test]
fn client_hellos_per_turn_are_bounded() {
    answer_ten_hellos(|_| "127.0.0.1".to_owned());
    answer_ten_hellos(|number| format!("192.0.2.{number}"));
}

fn answer_ten_hellos(address: impl Fn(usize) -> String) {
    let mut tls = Tls::new(&TLS13, Limits::default(), 3);
    let mut subscriber = tls.join("/ws");
    let mut peers: Vec<Peer> =
        (0..10).map(|number| tls.connect_from(&address(number), Behavior::Cooperative)).collect();
    for peer in &mut peers {
        let hello = peer.take_outgoing();
        tls.rig.send(peer.id, &hello);
    }
    let mut answered = Vec::new();
    while answered.last() != Some(&10) {
        assert!(answered.len() < 10, "{answered:?}");
        subscriber.write(&frames::masked(TEXT, b"meanwhile"));
        let outgoing = subscriber.take_outgoing();
        tls.rig.send(subscriber.id, &outgoing);
        tls.turn();
        let has_answer = |peer: &&Peer| !tls.rig.pipe(peer.id).outgoing.is_empty();
        answered.push(peers.iter().filter(has_answer).count());
        subscriber.receive(&mut tls.rig);
        assert_eq!(subscriber.frames().len(), 1, "messages are delivered in between");
    }
    assert_eq!(answered, [3, 6, 9, 10]);
}

#[test]
fn one_address_with_thousands_of_hellos_does_not_hold_up_the_hello_of_another() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let mut number = 0;
    let hello = tls.connect(Behavior::Cooperative).take_outgoing();
    let mut flood = |tls: &mut Tls, addresses: u32, count: usize| {
        for _ in 0..count {
            number += 1;
            let address = format!("2001:db8:0:{:x}::{number:x}", number % addresses);
            let id = tls.rig.connect_from(&address, Behavior::Cooperative);
            tls.rig.send(id, &hello);
        }
    };
    // Seven addresses, and the client is the eighth. They flood on in each turn, with clients that are read first.
    for (addresses, turns_max) in [(1, 2), (7, 2)] {
        flood(&mut tls, addresses, 200);
        tls.turn();
        let peer = {
            flood(&mut tls, addresses, 20);
            let mut peer = tls.connect_from("192.0.2.1", Behavior::Cooperative);
            let hello = peer.take_outgoing();
            tls.rig.send(peer.id, &hello);
            peer
        };
        let mut turns = 0;
        while tls.rig.pipe(peer.id).outgoing.is_empty() {
            tls.turn();
            turns += 1;
            assert!(turns <= turns_max, "it waits, with {addresses} flooding addresses");
            flood(&mut tls, addresses, 20);
        }
        tls.rig.send_eof(peer.id);
        tls.turn();
    }
    // An address that is alone has the whole budget.
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let mut greet = |_| {
        let mut peer = tls.connect(Behavior::Cooperative);
        let hello = peer.take_outgoing();
        tls.rig.send(peer.id, &hello);
        peer.id
    };
    let ids: Vec<SlotId> = (0..24).map(&mut greet).collect();
    (0..3).for_each(|_| tls.turn());
    assert!(ids.iter().all(|&id| !tls.rig.pipe(id).outgoing.is_empty()));
}

#[test]
fn handshake_waiting_for_the_budget_does_not_time_out() {
    let limits = Limits { handshake_timeout_ms: 1_000, ..Limits::default() };
    let mut tls = Tls::new(&TLS13, limits, 1);
    let (mut first, mut second) = (tls.connect(Behavior::Cooperative), tls.connect(Behavior::Cooperative));
    for peer in [&mut first, &mut second] {
        let hello = peer.take_outgoing();
        tls.rig.send(peer.id, &hello);
    }
    // A very long turn, as if caused by others.
    tls.rig.now = tls.rig.now.after(2_000);
    tls.bench.begin_turn(Rc::from(DATE));
    tls.rig.advance_ms(300);
    assert!(tls.rig.is_alive(second.id), "it has spoken, and it is we who are late");
    assert!(!tls.rig.is_alive(first.id), "it was read and the deadline is over");
}

#[test]
fn handshake_deadline_covers_tls_and_head() {
    let limits = Limits { handshake_timeout_ms: 1_000, ..Limits::default() };
    let mut tls = Tls::new(&TLS13, limits, 8);
    let mut hello_only = tls.connect(Behavior::Cooperative);
    let hello = hello_only.take_outgoing();
    tls.rig.send(hello_only.id, &hello[..hello.len() / 2]);
    let mut no_request = tls.connect(Behavior::Cooperative);
    let silent = tls.connect(Behavior::Cooperative);
    tls.rig.advance_ms(600);
    tls.run_until_idle(&mut no_request);
    assert!(!no_request.session.is_handshaking());
    tls.rig.advance_ms(300);
    assert!([hello_only.id, no_request.id, silent.id].iter().all(|&id| tls.rig.is_alive(id)));
    tls.rig.advance_ms(400);
    assert!([hello_only.id, no_request.id, silent.id].iter().all(|&id| !tls.rig.is_alive(id)));
    assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::HandshakeTimeout), 3);
}

#[test]
fn key_update_is_followed_and_answered() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let mut peer = tls.join("/ws");
    for round in 0..20 {
        peer.session.refresh_traffic_keys().unwrap();
        let text = format!("round {round}");
        peer.write(&frames::masked(TEXT, text.as_bytes()));
        tls.run_until_idle(&mut peer);
        assert_eq!(peer.frames()[0].payload, text.as_bytes());
    }
}

#[test]
fn session_with_ticket_is_resumed() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let first = tls.join("/ws");
        assert_eq!(first.session.handshake_kind(), Some(HandshakeKind::Full));
        let second = tls.join("/ws");
        assert_eq!(second.session.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

#[test]
fn slow_reader_loses_no_bytes() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let mut slow = tls.join("/ws");
        let mut fast = tls.join("/ws");
        tls.rig.pipe(slow.id).behavior = Behavior::Stalled;
        for number in 0..50 {
            fast.write(&frames::masked(TEXT, format!("{number} {}", "x".repeat(3_000)).as_bytes()));
            tls.run_until_idle(&mut fast);
        }
        tls.rig.set_behavior(slow.id, Behavior::Random(Rng::new(7)));
        // The event that the stalled pipe owes.
        tls.rig.engine.slots.mark_writable(slow.id);
        tls.run_until_idle(&mut slow);
        let numbers: Vec<String> = slow
            .frames()
            .into_iter()
            .map(|frame| String::from_utf8(frame.payload).unwrap().split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(numbers, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}

/// The whole response fits into one record: the outbox is empty, and TLS holds the record.
#[test]
fn peer_that_does_not_take_the_last_record_is_closed_slow() {
    for version in [&TLS12, &TLS13] {
        let limits = Limits { slow_timeout_ms: 2_000, keep_alive_ms: 60_000, ..Limits::default() };
        let mut tls = Tls::new(version, limits, 8);
        let [mut takes_nothing, mut takes_a_little] =
            [tls.connect(Behavior::Cooperative), tls.connect(Behavior::Cooperative)];
        for peer in [&mut takes_nothing, &mut takes_a_little] {
            tls.run_until_idle(peer);
            tls.rig.pipe(peer.id).behavior = Behavior::Stalled;
            peer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let request = peer.take_outgoing();
            tls.rig.send(peer.id, &request);
            tls.turn();
        }
        tls.rig.advance_ms(1_500);
        assert!(tls.rig.is_alive(takes_nothing.id));
        tls.rig.set_behavior(takes_a_little.id, Behavior::LimitedWrites(1));
        tls.rig.engine.slots.mark_writable(takes_a_little.id);
        tls.turn();
        tls.rig.set_behavior(takes_a_little.id, Behavior::Stalled);
        tls.rig.advance_ms(1_000);
        assert!(!tls.rig.is_alive(takes_nothing.id));
        assert!(tls.rig.is_alive(takes_a_little.id), "its time begins again");
        assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::Slow), 1);
        tls.rig.advance_ms(2_000);
        assert!(!tls.rig.is_alive(takes_a_little.id));
    }
}

#[test]
fn replay_and_pipelined_requests_wait_for_encrypted_bytes() {
    for seed in 0..20 {
        let mut tls = Tls::new(&TLS13, Limits::default(), 8);
        let mut publisher = tls.join("/ws/kept");
        for number in 0..50 {
            publisher.write(&frames::masked(TEXT, format!("{number} {}", "x".repeat(2_000)).as_bytes()));
        }
        tls.run_until_idle(&mut publisher);
        let behavior =
            if seed % 2 == 0 { Behavior::LimitedWrites(100) } else { Behavior::Random(Rng::new(seed)) };
        let mut returns = tls.connect(behavior.clone());
        returns.write(frames::upgrade("/ws/kept?since=earliest").as_bytes());
        tls.run_until_idle(&mut returns);
        returns.head();
        let frames = returns.frames();
        assert_eq!(frames.len(), 50, "seed {seed}");
        assert!(frames[49].payload.starts_with(b"49 "), "seed {seed}");

        let mut asks = tls.connect(behavior);
        asks.write(&b"GET /v1/channels/kept/history HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(4));
        tls.run_until_idle(&mut asks);
        let text = String::from_utf8(asks.plaintext).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 4, "seed {seed}");
    }
}

#[test]
fn half_closed_client_gets_the_whole_response() {
    for version in [&TLS12, &TLS13] {
        let mut tls = Tls::new(version, Limits::default(), 8);
        let mut publisher = tls.join("/ws/kept");
        publisher.write(&frames::masked(TEXT, &[b'x'; 10_000]));
        tls.run_until_idle(&mut publisher);
        for field in ["", "Connection: close\r\n"] {
            let mut asks = tls.connect(Behavior::LimitedWrites(100));
            tls.run_until_idle(&mut asks);
            let request = format!("GET /v1/channels/kept/history HTTP/1.1\r\nHost: localhost\r\n{field}\r\n");
            asks.write(request.as_bytes());
            let outgoing = asks.take_outgoing();
            tls.rig.send(asks.id, &outgoing);
            tls.turn();
            asks.session.send_close_notify();
            let outgoing = asks.take_outgoing();
            tls.rig.send(asks.id, &outgoing);
            tls.rig.send_eof(asks.id);
            tls.rig.run_until_idle();
            asks.receive(&mut tls.rig);
            assert!(asks.head().starts_with("HTTP/1.1 200 "), "{version:?}");
            assert!(asks.plaintext.len() > 10_000 && asks.plaintext.ends_with(b"}\n"), "{version:?} {field}");
        }
    }
}

#[test]
fn bytes_queued_before_the_keys_are_sent_after_the_handshake() {
    // Without tickets the server sends nothing when the handshake is complete, and no event arrives.
    let mut tls = Tls::with(&TLS13, Limits::default(), 8, |config| config.send_tls13_tickets = 0);
    let mut late = tls.connect(Behavior::Cooperative);
    let hello = late.take_outgoing();
    tls.rig.send(late.id, &hello);
    tls.turn();
    tls.rig.engine.drain(tls.rig.now);
    tls.turn();
    late.receive(&mut tls.rig);
    tls.run_until_idle(&mut late);
    assert!(late.head().starts_with("HTTP/1.1 503 "));
    assert!(late.has_closed);
}

/// They are four records, of which the first is incomplete after the first read.
#[test]
fn lone_publisher_with_64_messages_in_flight_is_delivered_in_one_turn_within_tls() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let (mut sender, mut subscriber) = (tls.join("/ws?echo=0"), tls.join("/ws"));
    for _ in 0..3 {
        sender.write(&frames::masked(TEXT, &[b'x'; 900]).repeat(64));
        let ciphertext = sender.take_outgoing();
        tls.rig.send(sender.id, &ciphertext);
        tls.turn();
        subscriber.receive(&mut tls.rig);
        assert_eq!(subscriber.frames().len(), 64);
    }
}

/// A KeyUpdate has 27 bytes and no plaintext; rustls accepts as many as come, if there is data after every 32.
#[test]
fn key_update_flood_is_charged_to_the_turn_budget() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 8);
    let mut floods: Vec<Peer> = (0..4).map(|_| tls.join("/ws")).collect();
    let message = frames::masked(TEXT, &[b'x'; 80]);
    for peer in &mut floods {
        let mut outgoing = Vec::new();
        for byte in message.chunks(1) {
            for _ in 0..20 {
                peer.session.refresh_traffic_keys().unwrap();
                outgoing.extend(peer.take_outgoing());
            }
            peer.write(byte);
            outgoing.extend(peer.take_outgoing());
        }
        assert!(outgoing.len() > 40_000, "{}", outgoing.len());
        tls.rig.send(peer.id, &outgoing);
    }
    let unread =
        |tls: &mut Tls| floods.iter().map(|peer| tls.rig.pipe(peer.id).incoming.len()).sum::<usize>();
    let before = unread(&mut tls);
    tls.turn();
    let read = before - unread(&mut tls);
    assert_eq!(read, 16 << 10, "one read takes 600 records, which cost more than a turn has");
    let mut turns = 1;
    while unread(&mut tls) > 0 {
        tls.turn();
        turns += 1;
    }
    assert!(turns >= 6, "{turns}");
    for peer in &mut floods {
        tls.run_until_idle(peer);
        assert!(peer.frames().iter().all(|frame| frame.payload.len() == 80));
        assert!(tls.rig.is_alive(peer.id));
    }
}

/// Encrypts records that rustls does not send: with padding, and without plaintext.
struct RecordSender {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl RecordSender {
    /// Takes the keys of a client after its handshake, which then receives no more.
    fn new(session: ClientConnection) -> RecordSender {
        let (sequence, secrets) = session.dangerous_extract_secrets().unwrap().tx;
        let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            panic!("not the default cipher suite")
        };
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
        RecordSender { key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    /// A record of application data with this number of bytes of padding (RFC 8446 5.2 to 5.4).
    fn record(&mut self, plaintext: &[u8], padding: usize) -> Vec<u8> {
        const APPLICATION_DATA: u8 = 23;
        let mut inner = [plaintext, &[APPLICATION_DATA], &vec![0; padding]].concat();
        let length = (inner.len() + AES_256_GCM.tag_len()) as u16;
        let header = [APPLICATION_DATA, 3, 3, (length >> 8) as u8, length as u8];
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(byte, other)| *byte ^= other);
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).unwrap();
        [&header[..], &inner].concat()
    }
}

/// rustls accepts 32 empty records in a row, each with up to 16 KiB of padding.
#[test]
fn records_without_plaintext_are_read_sixteen_kib_at_a_time() {
    let mut tls = Tls::new(&TLS13, Limits { reads_per_connection: 1, ..Limits::default() }, 8);
    Arc::get_mut(&mut tls.client).unwrap().enable_secret_extraction = true;
    let mut subscriber = tls.join("/ws/x");
    let Peer { id, session, .. } = tls.join("/ws/x");
    let mut sender = RecordSender::new(session);
    let mut unread = 0;
    for _ in 0..32 {
        let record = sender.record(b"", (16 << 10) - 1);
        unread += record.len();
        tls.rig.send(id, &record);
    }
    assert!(unread > 512 << 10);
    let message = sender.record(&frames::masked(TEXT, b"after the padding"), 0);
    unread += message.len();
    tls.rig.send(id, &message);
    while unread > 0 {
        tls.turn();
        let left = tls.rig.pipe(id).incoming.len();
        assert_eq!(unread - left, unread.min(16 << 10), "one read of a turn");
        unread = left;
    }
    tls.run_until_idle(&mut subscriber);
    assert_eq!(subscriber.frames()[0].payload, b"after the padding");
}

#[test]
fn dripping_record_ends_the_connection_at_its_deadline() {
    let limits = Limits { message_timeout_ms: 5_000, ping_interval_ms: 0, ..Limits::default() };
    let mut tls = Tls::new(&TLS13, limits, 1_000);
    let (mut late, mut in_time) = (tls.join("/ws/late"), tls.join("/ws/in-time"));
    let record = |peer: &mut Peer| {
        peer.write(&frames::masked(TEXT, &[b'x'; 100]));
        peer.take_outgoing()
    };
    let (dripped, whole) = (record(&mut late), record(&mut in_time));
    tls.rig.send(late.id, &dripped[..50]);
    tls.rig.send(in_time.id, &whole[..50]);
    for at in 50..98 {
        tls.rig.send(late.id, &dripped[at..=at]);
        tls.rig.advance_ms(100);
    }
    assert!(tls.rig.engine.slots.get(late.id).unwrap().state.is_web_socket(), "not before its time");
    // Another one begins where the first ends, and has a time of its own.
    let next = record(&mut in_time);
    tls.rig.send(in_time.id, &[&whole[50..], &next[..20]].concat());
    tls.rig.advance_ms(1_000);
    assert!(!tls.rig.engine.slots.get(late.id).is_some_and(|slot| slot.state.is_web_socket()));
    assert!(tls.rig.engine.slots.get(in_time.id).unwrap().state.is_web_socket());
    tls.rig.send(in_time.id, &next[20..]);
    tls.rig.advance_ms(60_000);
    tls.run_until_idle(&mut in_time);
    assert_eq!(in_time.frames().len(), 2);
    let reason = Reason::TlsFailed { fault: TlsFault::RecordTimeout };
    assert_eq!(tls.rig.engine.shared.metrics.closed(reason), 1);
}

#[test]
fn unfinished_client_hello_uses_only_its_received_bytes() {
    let mut tls = Tls::new(&TLS13, Limits::default(), 1_000);
    let mut peer = tls.connect(Behavior::Cooperative);
    let hello = peer.take_outgoing();
    tls.rig.send(peer.id, &hello[..150]);
    tls.turn();
    let freeable = tls.rig.engine.slots.get(peer.id).unwrap().freeable_bytes();
    assert!((150..=200).contains(&freeable), "{freeable}");
}

/// The beginning of a record of 16 KiB with a ClientHello that is as long.
fn half_hello(length: usize) -> Vec<u8> {
    let mut hello = vec![0; length];
    hello[..9].copy_from_slice(&[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb]);
    hello
}

#[test]
fn half_open_handshakes_count_as_connections_of_their_address() {
    let limits = Limits { connections_per_address_max: 3, handshake_timeout_ms: 1_000, ..Limits::default() };
    let mut tls = Tls::new(&TLS13, limits, 1_000);
    let flood = |tls: &mut Tls| -> Vec<SlotId> {
        let ids = (0..100).map(|_| {
            let id = tls.rig.connect_from("192.0.2.1", Behavior::Cooperative);
            tls.rig.send(id, &half_hello(8_000));
            id
        });
        let ids: Vec<SlotId> = ids.collect();
        tls.turn();
        ids.into_iter().filter(|&id| tls.rig.is_alive(id)).collect()
    };
    // And 16 that receive the error response if they finish their handshake within the same time.
    let held = flood(&mut tls);
    assert_eq!(held.len(), 3 + 16);
    let rejected =
        |tls: &Tls| tls.rig.engine.shared.metrics.rate_limited[Limit::ConnectionsPerAddress as usize];
    assert_eq!(rejected(&tls), 97);
    let other = tls.connect_from("192.0.2.2", Behavior::Cooperative);
    tls.rig.send(other.id, &half_hello(8_000));
    tls.turn();
    assert!(tls.rig.is_alive(other.id) && rejected(&tls) == 97);
    tls.rig.advance_ms(4_000);
    assert!(held.into_iter().all(|id| !tls.rig.is_alive(id)), "nothing that arrives prolongs it");
    assert_eq!(flood(&mut tls).len(), 3 + 16);
}

#[test]
fn half_open_handshakes_are_closed_under_memory_pressure() {
    let mut tls = Tls::new(&TLS13, Limits { memory_bytes_max: 100 << 20, ..Limits::default() }, 1_000);
    let mut subscriber = tls.join("/ws");
    let mut connect = |length: usize| {
        let id = tls.rig.connect(Behavior::Cooperative);
        tls.rig.send(id, &half_hello(length));
        id
    };
    let large: Vec<SlotId> = (0..20).map(|_| connect(8_000)).collect();
    let small = connect(200);
    tls.turn();
    assert!(large.iter().all(|&id| tls.rig.is_alive(id)));
    tls.rig.used_bytes = 85 << 20;
    tls.turn();
    assert!(large.iter().all(|&id| !tls.rig.is_alive(id)));
    assert_eq!(tls.rig.engine.shared.metrics.closed(Reason::Slow), 20);
    assert!(tls.rig.is_alive(small) && tls.rig.is_alive(subscriber.id));
    subscriber.write(&frames::masked(TEXT, b"still here"));
    tls.run_until_idle(&mut subscriber);
    assert_eq!(subscriber.frames()[0].payload, b"still here");
}

/// Connections that are read in small steps (more are ready than a turn has large reads for) leave plaintext for which
/// the reader has no room.
#[test]
fn connection_read_in_steps_holds_little_plaintext_and_loses_none() {
    let limits = Limits { read_bytes_per_turn: 64 << 10, ..Limits::default() };
    let mut tls = Tls::new(&TLS13, limits, 100);
    let mut peers: Vec<Peer> = (0..20).map(|place| tls.join(&format!("/ws/own.{place}"))).collect();
    for peer in &mut peers {
        for number in 0..200 {
            peer.write(&frames::masked(TEXT, format!("{number:0100}").as_bytes()));
            let record = peer.take_outgoing();
            tls.rig.send(peer.id, &record);
        }
    }
    let mut held_max = 0;
    while tls.rig.engine.slots.has_work() {
        tls.turn();
        let held =
            peers.iter().map(|peer| tls.rig.engine.slots.get(peer.id).unwrap().transport.buffered_bytes());
        held_max = held_max.max(held.max().unwrap());
    }
    assert!((1..=4 << 10).contains(&held_max), "{held_max} bytes held for one connection");
    for peer in &mut peers {
        tls.run_until_idle(peer);
        let texts: Vec<Vec<u8>> = peer.frames().into_iter().map(|frame| frame.payload).collect();
        let all: Vec<Vec<u8>> = (0..200).map(|number| format!("{number:0100}").into_bytes()).collect();
        assert_eq!(texts, all);
    }
}
