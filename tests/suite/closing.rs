//! Disconnects in all their forms.

use std::time::{Duration, Instant};

use oyez::close::Reason;
use oyez::config::Limits;

use crate::support::client::Client;
use crate::support::frames::{self, CLOSE, TEXT};
use crate::support::process::{Server, counter};
use crate::support::rig::{Mood, Rig};

#[test]
fn the_peers_close_is_answered_with_its_code() {
    let server = Server::start(&[]);
    for (code, reason) in [(1000, ""), (1001, "away"), (3000, "x"), (4999, "private")] {
        let mut member = server.join("/ws");
        member.send(&frames::close(code, reason));
        assert_eq!(member.closed_with(), (code, reason.to_owned()));
    }
    // RFC 6455 5.5.1: a close without a code is answered with one without a code.
    let mut member = server.join("/ws");
    member.send(&frames::masked(CLOSE, b""));
    assert_eq!(member.frame().payload, b"");
    assert_eq!(member.frame_or_end(), None);
    drop(member);
    let log = server.stop();
    assert_eq!(counter(&log, "closed_peer_closed"), 5, "{log}");
}

#[test]
fn messages_before_a_close_an_end_of_file_or_a_disconnect_are_published() {
    let server = Server::start(&[]);
    let mut member = server.join("/ws");
    let mut closes = server.join("/ws");
    closes.send(&[frames::masked(TEXT, b"closes"), frames::close(1000, "")].concat());
    assert_eq!(member.text(), "closes");
    let mut finishes = server.join("/ws");
    finishes.send_text("finishes");
    finishes.finish();
    assert_eq!(member.text(), "finishes");
    let mut all_at_once = Client::new(server.connect());
    all_at_once.send(&[frames::upgrade("/ws").as_bytes(), &frames::masked(TEXT, b"all at once")].concat());
    all_at_once.finish();
    assert_eq!(member.text(), "all at once");
    let mut vanishes = server.join("/ws");
    vanishes.send_text("vanishes");
    drop(vanishes);
    assert_eq!(member.text(), "vanishes");
}

#[test]
fn data_after_a_close_frame_is_ignored() {
    let server = Server::start(&[]);
    let (mut member, mut closes) = (server.join("/ws"), server.join("/ws"));
    closes.send(&[frames::close(1000, ""), frames::masked(TEXT, b"too late")].concat());
    assert_eq!(closes.closed_with().0, 1000);
    member.hears_nothing();
}

#[test]
fn each_end_has_its_reason() {
    let server = Server::start(&[]);
    let mut finishes = server.join("/ws");
    finishes.finish();
    assert_eq!(finishes.frame_or_end(), None);
    let resets = server.join("/ws");
    resets.reset();
    let mut last = server.join("/ws");
    last.send_text("x");
    last.text();
    let mut half_a_head = Client::new(server.connect());
    half_a_head.send(b"GET /ws HT");
    half_a_head.finish();
    assert_eq!(half_a_head.rest_as_text(), "");
    drop(last);
    std::thread::sleep(Duration::from_millis(50));
    let log = server.stop();
    assert_eq!(counter(&log, "closed_reset"), 1, "{log}");
    assert_eq!(counter(&log, "closed_end_of_file"), 3, "{log}");
    assert_eq!(log.lines().filter(|line| line.contains(" close peer=127.0.0.1:")).count(), 4, "{log}");
}

#[test]
fn a_peer_that_never_answers_a_close_is_let_go() {
    let server = Server::start(&["--close-timeout-ms=300"]);
    let mut broken = server.join("/ws");
    broken.send(&[0xff]);
    assert_eq!(broken.closed_with().0, 1002);
    // It keeps its side open. The server waits for its end of file, but not for ever.
    let start = Instant::now();
    while server_connections(&server) > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "the server holds on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() > Duration::from_millis(100), "the peer had no time to read");
}

/// Sockets of the server's process.
fn server_connections(server: &Server) -> usize {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
    // The listener, and the two ends of the signal pipe.
    sockets - 3
}

#[test]
fn a_close_from_our_side_waits_for_the_answer() {
    let limits = Limits { close_timeout_ms: 2_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (answers, silent) = (rig.join("/ws"), rig.join("/ws"));
    let now = rig.now;
    rig.engine.close(answers, Reason::OverCapacity, now);
    rig.engine.close(silent, Reason::OverCapacity, now);
    rig.settle();
    for id in [answers, silent] {
        assert_eq!(rig.frames(id)[0].close_code(), (4100, "over_capacity".to_owned()));
        assert!(!rig.pipe(id).outgoing_ended);
    }
    rig.send(answers, &frames::close(4100, ""));
    rig.settle();
    assert!(rig.pipe(answers).outgoing_ended && rig.is_alive(answers));
    rig.finish(answers);
    rig.settle();
    assert!(!rig.is_alive(answers) && rig.is_alive(silent));
    rig.pass(1_900);
    assert!(rig.is_alive(silent));
    rig.pass(400);
    assert!(!rig.is_alive(silent));
}

#[test]
fn a_close_in_the_middle_of_a_frame_finds_the_peers_answer_behind_it() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    let frame = frames::masked(TEXT, &[b'x'; 1_000]);
    rig.send(id, &frame[..500]);
    rig.settle();
    let now = rig.now;
    rig.engine.close(id, Reason::OverCapacity, now);
    rig.send(id, &[&frame[500..], &frames::close(1000, "")].concat());
    rig.settle();
    assert!(rig.pipe(id).outgoing_ended, "the peer's close was found behind the frame");
}

#[test]
fn a_closing_connection_gets_no_data_behind_its_close_frame() {
    let mut rig = Rig::new(Limits::default());
    let (closing, sender) = (rig.join("/ws"), rig.join("/ws"));
    rig.send(closing, &frames::close(1000, ""));
    rig.send_text(sender, "in the same turn");
    rig.settle();
    let got = rig.frames(closing);
    assert_eq!((got.len(), got[0].opcode), (1, CLOSE), "RFC 6455 5.5.1: {got:?}");
}

#[test]
fn a_close_waits_as_long_as_the_peer_takes_bytes() {
    let limits =
        Limits { close_timeout_ms: 1_000, drain_ms: 10_000, outbox_bytes_max: 1 << 20, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (reads_slowly, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(reads_slowly).mood = Mood::Stuck;
    for _ in 0..5 {
        rig.send_text(sender, &"x".repeat(10_000));
        rig.turn();
    }
    rig.send(reads_slowly, &frames::close(1000, ""));
    rig.turn();
    // Every 800 ms it takes what the dice give it, for longer than one timeout in all.
    for seed in 0..200 {
        rig.unstick(reads_slowly, Mood::Mean(crate::support::rig::Dice::new(seed)));
        rig.turn();
        rig.turn();
        rig.pipe(reads_slowly).mood = Mood::Stuck;
        rig.pass(800);
        if !rig.is_alive(reads_slowly) || rig.pipe(reads_slowly).outgoing_ended {
            break;
        }
    }
    let got = rig.frames(reads_slowly);
    assert_eq!(got.len(), 6, "five messages and the close");
    assert_eq!(got[5].close_code().0, 1000);
}

#[test]
fn a_close_does_not_wait_for_ever_for_a_peer_that_takes_a_byte_at_a_time() {
    let limits = Limits { close_timeout_ms: 1_000, drain_ms: 5_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (drips, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(drips).mood = Mood::Stuck;
    rig.send_text(sender, &"x".repeat(60_000));
    rig.turn();
    rig.send(drips, &frames::close(1000, ""));
    rig.turn();
    let start = rig.now;
    while rig.is_alive(drips) {
        rig.pipe(drips).mood = Mood::Drip;
        rig.turn();
        rig.pipe(drips).mood = Mood::Stuck;
        rig.pass(500);
    }
    let took = rig.now.millis_since(start);
    assert!((5_000..6_500).contains(&took), "{took} ms");
}
