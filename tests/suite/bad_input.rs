//! Invalid input and its exact response. Each malformed request and frame is sent to a real server, byte for byte,
//! and the whole response is compared.

use std::time::Duration;

use oyez::close::Reason;
use oyez::config::Limits;

use crate::support::client::Client;
use crate::support::frames::{self, BINARY, CONTINUATION, PING, TEXT};
use crate::support::http::get;
use crate::support::process::{Server, counter, oyez, wait_until};
use crate::support::rig::Rig;

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";

/// The status of the response, which must be complete JSON followed by an orderly end of the connection.
fn status(server: &Server, request: &[u8]) -> u16 {
    let answer = server.ask(request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    assert!(head.contains("Connection: close"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    assert!(body.starts_with("{\"error\":{\"code\":\"") && body.ends_with("\"}}\n"), "{body}");
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn invalid_request_gets_its_exact_error() {
    let server = Server::start(&[]);
    let good = frames::upgrade("/ws");
    let check = |request: String, expected: u16| {
        assert_eq!(status(&server, request.as_bytes()), expected, "{request:?}");
    };
    let with = |line: &str| good.replace("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"));
    check(good.replace("Host: localhost\r\n", ""), 400);
    check(with("Host: localhost"), 400);
    check(with(KEY), 400);
    check(with("Transfer-Encoding: chunked\r\nContent-Length: 4"), 400);
    check(with("Content-Length: 4"), 400);
    check(good.replace("\r\n", "\n"), 400);
    check(good.replace("Host: localhost\r\n", "Host: localhost\n"), 400);
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 400);
    check("\x16\x03\x01\x02\x00\x01\r\n\r\n".into(), 400);
    check(frames::upgrade("/ws/../x"), 404);
    check(frames::upgrade("/ws/..%2Fx"), 400);
    check(frames::upgrade("/ws/%00"), 400);
    check(frames::upgrade("/ws/%c0%af"), 400);
    check(frames::upgrade("/ws/a%0d%0ab"), 400);
    check(frames::upgrade("/ws/a\u{2028}b"), 400);
    check(frames::upgrade(&format!("/ws/{}", "a".repeat(256))), 400);
    check(frames::upgrade("/nothing"), 404);
    check(good.replace("GET", "POST"), 405);
    check(good.replace("Upgrade: websocket\r\n", ""), 426);
    check(good.replace("Version: 13", "Version: 12"), 426);
    check(with(&"x: y\r\n".repeat(125)), 431);
    check(frames::upgrade(&format!("/ws?{}", "a".repeat(17_000))), 431);
    check(frames::upgrade(&format!("/{}", "a".repeat(64 << 10))), 431);
    check(with(&format!("User-Agent: {}", "a".repeat(64 << 10))), 431);
    check(with("User-Agent: a\rb"), 400);
    check(with("User-Agent: \x1b[31m"), 400);
    assert_eq!(server.join(&format!("/ws/{}", "a".repeat(255))).received, b"");
}

#[test]
fn bytes_after_invalid_request_are_not_parsed() {
    let server = Server::start(&[]);
    for first in [
        "POST /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n",
    ] {
        let answer = server.ask(format!("{first}{}", frames::upgrade("/ws/smuggled")));
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    }
    assert_eq!(counter(&server.stop(), "published"), 0);
}

#[test]
fn endless_request_head_is_rejected_at_the_limit() {
    let server = Server::start(&["--head-bytes-max=1KiB"]);
    assert_eq!(status(&server, &[b'A'; 1_024]), 431);
    let mut client = Client::new(server.connect());
    client.send(&[b'A'; 1_023]);
    client.receives_nothing();
    client.send(b"A");
    assert!(client.head().starts_with("HTTP/1.1 431 "));
}

#[test]
fn upgrade_with_another_version_gets_the_supported_version() {
    let server = Server::start(&[]);
    let answer = server.ask("GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{answer}");
    assert!(answer.contains("\r\nUpgrade: websocket\r\n"), "{answer}");
    let answer = server.ask("PUT /ws HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.contains("\r\nAllow: GET, OPTIONS\r\n"), "{answer}");
}

#[test]
fn client_input_is_neither_echoed_in_errors_nor_logged() {
    let mut command = oyez(&["serve", "--listen", "127.0.0.1:0"]);
    command.env("RUST_LOG", "trace");
    let server = Server::start_command(command);
    let canary = "canary\x1b[31m";
    let answers = [
        server.ask(frames::upgrade(&format!("/{canary}"))),
        server.ask(frames::upgrade(&format!("/ws/{canary}"))),
        server.ask(frames::upgrade("/ws").replace("Host: localhost", &format!("Host: {canary}"))),
        server.ask(format!("GET /ws HTTP/1.1\r\nHost: localhost\r\nUser-Agent: {canary}\r\n\r\n")),
    ];
    let mut subscriber = server.join("/ws");
    subscriber.send_text(canary);
    subscriber.text();
    subscriber.send(&frames::close(1000, canary));
    assert_eq!(subscriber.closed_with(), (1000, canary.into()));
    drop(subscriber);
    let log = server.stop();
    for text in answers.iter().chain([&log]) {
        assert!(!text.contains("canary") && !text.contains('\x1b'), "{text}");
    }
}

/// Sends frames as a new subscriber and expects a close with this code, after the messages that a second subscriber
/// receives.
fn closed(server: &Server, bytes: &[u8], code: u16, delivered: usize) {
    let (mut bad, mut good) = (server.join("/ws?echo=0"), server.join("/ws"));
    bad.send(bytes);
    for _ in 0..delivered {
        assert_eq!(good.text(), "before");
    }
    assert_eq!(bad.closed_with().0, code, "{bytes:x?}");
    good.send_text("after");
    assert_eq!(good.text(), "after");
    good.send(&frames::close(1000, ""));
    good.closed_with();
}

#[test]
fn invalid_frame_is_closed_with_its_code() {
    let server = Server::start(&["--message-bytes-max=64KiB"]);
    let before = frames::masked(TEXT, b"before");
    let check = |bytes: &[u8], code| {
        closed(&server, bytes, code, 0);
        // Messages before it in the same segment are published.
        closed(&server, &[&before, bytes].concat(), code, 1);
    };
    let length_of = |first_byte, length| frames::header(first_byte, 0x80, length);
    // Headers alone: the answer does not wait for a payload.
    check(&length_of(0x82, 16 << 20), 1009);
    check(&length_of(0x82, 65_537), 1009);
    check(&length_of(0x82, 1 << 62), 1009);
    check(&length_of(0x82, 1 << 63), 1002);
    check(&[0x82, 0x80 | 126, 0, 125], 1002);
    check(&[0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 1002);
    check(&[0x81, 0x05], 1002);
    for reserved_bits in [0x40, 0x20, 0x10] {
        check(&[0x81 | reserved_bits], 1002);
    }
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        check(&[0x80 | opcode], 1002);
    }
    check(&[PING], 1002);
    check(&length_of(0x80 | PING, 126), 1002);
    check(&frames::masked(CONTINUATION, b"x"), 1002);
    check(&[frames::fragment(TEXT, b"x"), frames::masked(TEXT, b"y")].concat(), 1002);
    check(&frames::masked(TEXT, b"\xff"), 1007);
    check(&frames::masked(TEXT, b"\xed\xa0\x80"), 1007);
    check(&frames::fragment(TEXT, b"\xff"), 1007);
    check(&frames::masked(frames::CLOSE, &[3]), 1002);
    check(&frames::masked(frames::CLOSE, b"\x03\xe8\xff"), 1007);
    let halves = [frames::fragment(BINARY, &[0; 40_000]), frames::masked(CONTINUATION, &[0; 40_000])];
    check(&halves.concat(), 1009);
}

#[test]
fn close_with_invalid_code_is_answered_with_1002() {
    let server = Server::start(&[]);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        let mut subscriber = server.join("/ws");
        subscriber.send(&frames::close(code, ""));
        assert_eq!(subscriber.closed_with(), (1002, "protocol".into()), "{code}");
    }
    // A connection is counted when its slot is free, after its client has seen the close frame.
    let mut client = Client::new(server.connect());
    let mut page = String::new();
    wait_until("each close is counted", || {
        page = client.ask(get("/metrics")).body;
        page.contains("oyez_connections_closed_total{reason=\"protocol\"} 10\n")
    });
    assert!(page.contains("oyez_connections_closed_total{reason=\"peer_closed\"} 0\n"), "{page}");
}

#[test]
fn close_with_valid_code_is_echoed() {
    let mut rig = Rig::new(Limits::default());
    let codes: Vec<u16> = (1000..=1003).chain(1007..=1014).chain([3000, 3999, 4000, 4999]).collect();
    for &code in &codes {
        let frame = frames::close(code, "why");
        for cut in 0..frame.len() {
            let id = rig.join("/ws");
            rig.send(id, &frame[..cut]);
            rig.run_until_idle();
            rig.send(id, &frame[cut..]);
            rig.run_until_idle();
            assert_eq!(
                frames::take(&mut rig.pipe(id).outgoing).unwrap().close_code().0,
                code,
                "cut at {cut}"
            );
            rig.send_eof(id);
            rig.run_until_idle();
        }
    }
    let closed = codes.len() * frames::close(1000, "why").len();
    assert_eq!(rig.engine.shared.metrics.closed(Reason::PeerClosed), closed as u64);
}

#[test]
fn endless_empty_fragments_delay_only_their_sender() {
    let server = Server::start(&[]);
    let (mut endless, mut one, mut two) =
        (server.join("/ws/endless"), server.join("/ws"), server.join("/ws"));
    endless.send(&frames::fragment(TEXT, b""));
    let empty = frames::fragment(CONTINUATION, b"").repeat(10_000);
    let flood = std::thread::spawn(move || {
        for _ in 0..200 {
            endless.send(&empty);
        }
        endless
    });
    let before = server.resident_bytes();
    for round in 0..50 {
        one.send_text(&round.to_string());
        assert_eq!(two.text(), round.to_string());
    }
    let mut endless = flood.join().unwrap();
    // One byte each, they add up to the limit.
    endless.send(&frames::fragment(CONTINUATION, b"x").repeat(65_530));
    endless.send(&frames::masked(CONTINUATION, b"done"));
    assert_eq!(endless.text(), "x".repeat(65_530) + "done");
    endless.send(&frames::fragment(TEXT, b""));
    endless.send(&frames::fragment(CONTINUATION, b"x").repeat(65_537));
    assert_eq!(endless.closed_with().0, 1009);
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes for nothing");
}

#[test]
fn peer_that_pings_and_never_reads_is_bounded() {
    let server =
        Server::start(&["--outbox-bytes-max=512KiB", "--body-bytes-max=64KiB", "--slow-timeout-ms=1500"]);
    let mut flood = server.join("/ws/flood");
    flood.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let before = server.resident_bytes();
    let pings = frames::masked(PING, &[b'x'; 125]).repeat(500);
    let sent =
        (0..1_000).take_while(|_| std::io::Write::write_all(&mut flood.stream, &pings).is_ok()).count();
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes after {sent} floods");
    drop(flood);
    let log = server.stop();
    assert_eq!(counter(&log, "accepted"), 1, "{log}");
}

const UPGRADES: u64 = 20_000;

#[test]
fn others_are_served_during_upgrades_that_reset() {
    let server = Server::start(&[]);
    for _ in 0..UPGRADES {
        let mut client = Client::new(server.connect());
        client.send(frames::upgrade("/ws").as_bytes());
        client.reset();
    }
    let mut subscriber = server.join("/ws");
    subscriber.send_text("well");
    assert_eq!(subscriber.text(), "well");
    drop(subscriber);
    let log = server.stop();
    // One whose reset came before the accept may never have been seen.
    let accepted = counter(&log, "accepted");
    let ended: u64 =
        ["reset", "end_of_file", "drain"].iter().map(|why| counter(&log, &format!("closed_{why}"))).sum();
    assert!(accepted <= UPGRADES + 1 && ended == accepted, "{log}");
}
