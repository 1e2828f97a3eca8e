//! Disconnects in every form: close frames, end of file, resets and failed writes, from either side and within
//! unfinished frames. In memory, turn by turn, with exact transcripts; one test counts descriptors of the real
//! server.

use std::time::{Duration, Instant};

use oyez::close::Reason;
use oyez::config::Limits;

use crate::support::client::Client;
use crate::support::frames::{self, CLOSE, TEXT};
use crate::support::http::get;
use crate::support::process::{Server, counter, wait_until};
use crate::support::rig::{Behavior, Rig};

#[test]
fn close_from_peer_is_echoed_with_its_code() {
    let server = Server::start(&[]);
    for (code, reason) in [(1000, ""), (1001, "away"), (3000, "x"), (4999, "private")] {
        let mut subscriber = server.join("/ws");
        subscriber.send(&frames::close(code, reason));
        assert_eq!(subscriber.closed_with(), (code, reason.to_owned()));
    }
    // RFC 6455 5.5.1: a close without a code is answered with one without a code.
    let mut subscriber = server.join("/ws");
    subscriber.send(&frames::masked(CLOSE, b""));
    assert_eq!(subscriber.frame().payload, b"");
    assert_eq!(subscriber.frame_or_end(), None);
    drop(subscriber);
    let log = server.stop();
    assert_eq!(counter(&log, "closed_peer_closed"), 5, "{log}");
}

#[test]
fn messages_before_close_eof_or_reset_are_published() {
    let server = Server::start(&[]);
    let mut subscriber = server.join("/ws");
    let mut closes = server.join("/ws");
    closes.send(&[frames::masked(TEXT, b"closes"), frames::close(1000, "")].concat());
    assert_eq!(subscriber.text(), "closes");
    let mut finishes = server.join("/ws");
    finishes.send_text("finishes");
    finishes.send_eof();
    assert_eq!(subscriber.text(), "finishes");
    let mut all_at_once = Client::new(server.connect());
    all_at_once.send(&[frames::upgrade("/ws").as_bytes(), &frames::masked(TEXT, b"all at once")].concat());
    all_at_once.send_eof();
    assert_eq!(subscriber.text(), "all at once");
    let mut vanishes = server.join("/ws");
    vanishes.send_text("vanishes");
    drop(vanishes);
    assert_eq!(subscriber.text(), "vanishes");
}

#[test]
fn data_after_close_frame_is_ignored() {
    let server = Server::start(&[]);
    let (mut subscriber, mut closes) = (server.join("/ws"), server.join("/ws"));
    closes.send(&[frames::close(1000, ""), frames::masked(TEXT, b"too late")].concat());
    assert_eq!(closes.closed_with().0, 1000);
    subscriber.receives_nothing();
}

#[test]
fn connection_end_is_counted_by_its_reason() {
    let server = Server::start(&[]);
    let mut finishes = server.join("/ws");
    finishes.send_eof();
    assert_eq!(finishes.frame_or_end(), None);
    let resets = server.join("/ws");
    resets.reset();
    let last = server.join("/ws");
    let mut half_a_head = Client::new(server.connect());
    half_a_head.send(b"GET /ws HT");
    half_a_head.send_eof();
    assert_eq!(half_a_head.rest_as_text(), "");
    drop(last);
    let mut asks = Client::new(server.connect());
    wait_until("each end is counted", || {
        let metrics = asks.ask(get("/metrics")).body;
        let is_counted = |reason: &str, count: u32| {
            metrics.contains(&format!("oyez_connections_closed_total{{reason=\"{reason}\"}} {count}\n"))
        };
        is_counted("reset", 1) && is_counted("end_of_file", 3)
    });
    let log = server.stop();
    assert_eq!(counter(&log, "closed_reset"), 1, "{log}");
    let is_close = |line: &&str| {
        line.contains(" close peer=127.0.0.1:")
            && (line.contains("reason=reset") || line.contains("reason=end_of_file"))
    };
    assert_eq!(log.lines().filter(is_close).count(), 4, "{log}");
}

#[test]
fn peer_that_never_answers_a_close_is_reaped_at_the_timeout() {
    let server = Server::start(&["--close-timeout-ms=300"]);
    let mut broken = server.join("/ws");
    let start = Instant::now();
    broken.send(&[0xff]);
    assert_eq!(broken.closed_with().0, 1002);
    // It keeps its side open. The server waits for its end of file up to the timeout.
    wait_until("the server closes its socket", || server_connections(&server) == 0);
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
fn close_from_server_waits_for_the_peers_close() {
    let limits = Limits { close_timeout_ms: 2_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (answers, silent) = (rig.join("/ws"), rig.join("/ws"));
    let now = rig.now;
    rig.engine.close(answers, Reason::OverCapacity, now);
    rig.engine.close(silent, Reason::OverCapacity, now);
    rig.run_until_idle();
    for id in [answers, silent] {
        assert_eq!(rig.frames(id)[0].close_code(), (4100, "over_capacity".to_owned()));
        assert!(!rig.pipe(id).outgoing_ended);
    }
    rig.send(answers, &frames::close(4100, ""));
    rig.run_until_idle();
    assert!(rig.pipe(answers).outgoing_ended && rig.is_alive(answers));
    rig.send_eof(answers);
    rig.run_until_idle();
    assert!(!rig.is_alive(answers) && rig.is_alive(silent));
    rig.advance_ms(1_900);
    assert!(rig.is_alive(silent));
    rig.advance_ms(400);
    assert!(!rig.is_alive(silent));
}

#[test]
fn close_within_an_unfinished_frame_finds_the_peers_close_after_it() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    let frame = frames::masked(TEXT, &[b'x'; 1_000]);
    rig.send(id, &frame[..500]);
    rig.run_until_idle();
    let now = rig.now;
    rig.engine.close(id, Reason::OverCapacity, now);
    rig.send(id, &[&frame[500..], &frames::close(1000, "")].concat());
    rig.run_until_idle();
    assert!(rig.pipe(id).outgoing_ended, "the peer's close was found after the frame");
}

#[test]
fn closing_connection_gets_no_data_after_its_close_frame() {
    let mut rig = Rig::new(Limits::default());
    let (closing, sender) = (rig.join("/ws"), rig.join("/ws"));
    rig.send(closing, &frames::close(1000, ""));
    rig.send_text(sender, "in the same turn");
    rig.run_until_idle();
    let got = rig.frames(closing);
    assert_eq!((got.len(), got[0].opcode), (1, CLOSE), "RFC 6455 5.5.1: {got:?}");
}

#[test]
fn peer_that_closes_after_a_rejected_frame_gets_one_close_frame() {
    let mut rig = Rig::new(Limits { channels_max: 1, ..Limits::default() });
    let _subscriber = rig.join("/ws/a");
    let rejected = rig.connect(Behavior::Cooperative);
    rig.send(rejected, &[frames::upgrade("/ws/b").as_bytes(), &frames::close(1000, "")].concat());
    rig.run_until_idle();
    rig.skip_head(rejected);
    let got = rig.frames(rejected);
    assert_eq!((got.len(), got[0].close_code().0), (1, 4100), "RFC 6455 5.5.1: {got:?}");
}

#[test]
fn failed_write_without_readable_data_ends_the_connection() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let (subscriber, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(subscriber).behavior = Behavior::WriteError;
    rig.send_text(sender, "lost");
    rig.run_until_idle();
    rig.advance_ms(1_000);
    assert!(!rig.is_alive(subscriber), "it lost a message without a notice");
}

#[test]
fn messages_received_before_a_failed_write_are_published() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let (goes, other) = (rig.join("/ws"), rig.join("/ws"));
    rig.pipe(goes).behavior = Behavior::WriteError;
    rig.send_without_event(goes, &frames::masked(TEXT, b"last words"));
    rig.pipe(goes).incoming_ends = true;
    rig.send_text(other, "x");
    rig.run_until_idle();
    assert_eq!(rig.texts(other), ["x", "last words"]);
    assert!(!rig.is_alive(goes));
}

#[test]
fn close_waits_while_bytes_are_accepted_up_to_a_maximum() {
    let limits =
        Limits { close_timeout_ms: 1_000, drain_ms: 5_000, ping_interval_ms: 0, ..Limits::default() };
    for (patience, arrives) in [(4, true), (12, false)] {
        let mut rig = Rig::new(limits.clone());
        let (limited, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
        rig.pipe(limited).behavior = Behavior::Stalled;
        rig.send_text(sender, &"x".repeat(1_000));
        rig.turn();
        rig.send(limited, &frames::close(1000, ""));
        rig.turn();
        for _ in 0..patience {
            rig.advance_ms(800);
            rig.set_behavior(limited, Behavior::LimitedWrites(if arrives { 300 } else { 50 }));
            rig.turn();
            rig.pipe(limited).behavior = Behavior::Stalled;
        }
        let closed = rig.frames(limited).last().is_some_and(|frame| frame.opcode == CLOSE);
        assert_eq!(closed, arrives);
        assert!(arrives || !rig.is_alive(limited), "drain_ms is the maximum wait");
    }
}

#[test]
fn eof_before_a_close_loses_no_queued_bytes() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let (id, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(id).behavior = Behavior::Stalled;
    rig.send_text(sender, "x");
    rig.run_until_idle();
    let now = rig.now;
    rig.engine.close(id, Reason::OverCapacity, now);
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(rig.is_alive(id));
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let got = rig.frames(id);
    assert_eq!(got.iter().map(|frame| frame.opcode).collect::<Vec<_>>(), [TEXT, CLOSE]);
    assert!(!rig.is_alive(id));
}

#[test]
fn eof_instead_of_the_peers_close_ends_the_connection_at_once() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    let now = rig.now;
    rig.engine.close(id, Reason::OverCapacity, now);
    rig.run_until_idle();
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
}

#[test]
fn close_bytes_within_a_frame_are_not_taken_for_the_peers_close() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    // The second half of the frame looks like the header of a frame that would swallow the close.
    let frame = [&[0x82, 0x80 | 8, 0, 0, 0, 0][..], &[0; 4], &[0x82, 0xfe, 0x20, 0]].concat();
    rig.send(id, &frame[..10]);
    rig.run_until_idle();
    let now = rig.now;
    rig.engine.close(id, Reason::OverCapacity, now);
    rig.send(id, &[&frame[10..], &frames::close(1000, "")].concat());
    rig.run_until_idle();
    assert!(rig.pipe(id).outgoing_ended);
}
