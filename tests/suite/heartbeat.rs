//! Deadlines of slow request heads and silent peers. In memory, where tests advance the time in exact steps, pings
//! are counted per second, and no deadline may expire for time that the server itself lost; the main cases are
//! repeated on a real server.

use std::io::Write;
use std::time::{Duration, Instant};

use oyez::config::Limits;
use oyez::ids::SlotId;

use crate::support::client::Client;
use crate::support::frames::{self, CLOSE, PING, PONG, TEXT};
use crate::support::process::{Server, wait_until};
use crate::support::rig::{Behavior, Rig, Rng};

#[test]
fn dripping_head_over_its_deadline_gets_408() {
    let mut rig = Rig::new(Limits { handshake_timeout_ms: 5_000, ..Limits::default() });
    let id = rig.connect(Behavior::Cooperative);
    for byte in b"GET /".chunks(1) {
        rig.send(id, byte);
        rig.advance_ms(900);
        assert_eq!(rig.pipe(id).outgoing, b"");
    }
    rig.advance_ms(1_000);
    assert!(rig.pipe(id).outgoing.starts_with(b"HTTP/1.1 408 "));
    assert!(rig.pipe(id).outgoing_ended);
    rig.advance_ms(2_500);
    assert!(!rig.is_alive(id));
}

#[test]
fn silent_connection_gets_no_408() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.connect(Behavior::Cooperative);
    rig.advance_ms(5_300);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.pipe(id).outgoing, b"");
}

#[test]
fn silent_peer_is_pinged_then_closed() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 25_000, pong_timeout_ms: 10_000, ..Limits::default() });
    let (silent, alive) = (rig.join("/ws"), rig.join("/ws"));
    rig.advance_ms(6_200);
    for id in [silent, alive] {
        assert!(rig.frames(id).is_empty(), "no ping before a quarter of the interval");
    }
    let mut heard_of_silent = Vec::new();
    for second in 6..40 {
        pings(&mut rig, &[alive], 1);
        heard_of_silent.extend(rig.frames(silent).into_iter().map(|frame| (second, frame)));
    }
    let [(asked, ping), (closed, close)] = &heard_of_silent[..] else { panic!("{heard_of_silent:?}") };
    assert_eq!((ping.opcode, close.close_code()), (PING, (4103, "no_pong".into())));
    assert!((10..=11).contains(&(closed - asked)), "{heard_of_silent:?}");
    assert!(*asked <= 25, "{heard_of_silent:?}");
    assert!(!rig.is_alive(silent));
    assert!(rig.is_alive(alive));
}

#[test]
fn active_peer_is_not_pinged() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    for _ in 0..30 {
        rig.advance_ms(5_000);
        rig.send_text(id, "here");
    }
    rig.run_until_idle();
    assert_eq!(rig.texts(id).len(), 30);
}

/// Advances the time by this many seconds and answers all pings; returns which peer was pinged when, in milliseconds
/// from now.
fn pings(rig: &mut Rig, ids: &[SlotId], seconds: u32) -> Vec<(SlotId, u32)> {
    let start = rig.now;
    let mut pinged = Vec::new();
    for _ in 0..seconds * 20 {
        rig.advance_ms(50);
        for &id in ids {
            for frame in rig.frames(id).iter().filter(|frame| frame.opcode != TEXT) {
                assert_eq!(frame.opcode, PING, "{frame:?}");
                pinged.push((id, rig.now.millis_since(start)));
                rig.send(id, &frames::masked(PONG, b""));
            }
        }
    }
    pinged
}

/// How many there were in each second.
fn per_second(pings: &[(SlotId, u32)], seconds: usize) -> Vec<usize> {
    let mut counts = vec![0; seconds];
    pings.iter().for_each(|&(_, millis)| counts[(millis as usize - 1) / 1_000] += 1);
    counts
}

#[test]
fn pings_of_peers_active_at_once_are_spread() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 20_000, ..Limits::default() });
    let ids: Vec<_> = (0..100).map(|n| rig.join(&format!("/ws/{n}"))).collect();
    for what in ["come", "spoken"] {
        let counts = per_second(&pings(&mut rig, &ids, 20), 20);
        assert_eq!(counts[..5], [0; 5], "they have just {what}");
        assert!(counts[5..].iter().all(|&count| (3..=14).contains(&count)), "{what}: {counts:?}");
        // Then each once an interval, at a separate time, which its first ping may have been shifted to.
        let pings = pings(&mut rig, &ids, 80);
        let counts = per_second(&pings, 80);
        assert!(counts.iter().all(|&count| (2..=10).contains(&count)), "{counts:?}");
        for &id in &ids {
            let own: Vec<u32> = pings.iter().filter(|ping| ping.0 == id).map(|ping| ping.1).collect();
            let mut gaps = own[1..].windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.all(|gap| (19_700..=20_300).contains(&gap)), "{own:?}");
        }
        for &id in &ids {
            rig.send_text(id, "here");
        }
        rig.run_until_idle();
        // Pings that were under way are answered with that.
        ids.iter().for_each(|&id| drop(rig.frames(id)));
    }
}

#[test]
fn silent_peer_is_pinged_within_the_interval() {
    let mut rng = Rng::new(1);
    let mut rig = Rig::new(Limits { ping_interval_ms: 20_000, ..Limits::default() });
    let ids: Vec<_> = (0..50).map(|n| rig.join(&format!("/ws/{n}"))).collect();
    let mut received = vec![rig.now; ids.len()];
    for _ in 0..4_000 {
        rig.advance_ms(50);
        // The sweep's pings are written in the next turn.
        rig.turn();
        for (&id, received) in ids.iter().zip(&mut received) {
            let silence = rig.now.millis_since(*received);
            let is_pinged = rig.frames(id).iter().any(|frame| frame.opcode == PING);
            assert!(!is_pinged || silence > 5_000, "asked after {silence} ms");
            assert!(silence < 20_600, "{silence} ms of silence");
            if is_pinged {
                rig.send(id, &frames::masked(PONG, b""));
            } else if rng.below(200) == 0 {
                rig.send_text(id, "here");
            } else {
                continue;
            }
            *received = rig.now;
        }
    }
}

/// Broadcasts meanwhile are sent between them.
#[test]
fn deadlines_due_together_are_handled_over_several_turns() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 20_000, ..Limits::default() });
    let ids: Vec<_> = (0..100).map(|_| rig.join("/ws")).collect();
    // The sweep begins at the first of them again.
    rig.advance_ms(600);
    rig.now = rig.now.after(21_000);
    rig.turn();
    assert_eq!(rig.engine.next_expiry(rig.now), Some(rig.now), "the rest is due at once");
    let mut pinged = 0;
    for turn in 1..=20 {
        rig.turn();
        let writes: usize = ids.iter().map(|&id| rig.frames(id).len()).sum();
        assert!(writes <= 8, "{writes} in turn {turn}");
        pinged += writes;
    }
    assert_eq!(pinged, 100);
    assert_ne!(rig.engine.next_expiry(rig.now), Some(rig.now), "and then there is peace");
}

/// A flood may make every turn take 45 ms: then each handles as many deadlines as are due in that time. There are as
/// many pings a second here as 14,000 subscribers have with the default interval.
#[test]
fn deadlines_in_turns_of_45_ms_are_handled_in_time() {
    const INTERVAL_MS: u32 = 2_500;
    let limits = Limits { ping_interval_ms: INTERVAL_MS, handshake_timeout_ms: 5_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let subscribers: Vec<SlotId> = (0..1_400).map(|_| rig.connect(Behavior::Cooperative)).collect();
    for (n, &id) in subscribers.iter().enumerate() {
        rig.send(id, frames::upgrade(&format!("/ws/{n}")).as_bytes());
    }
    rig.run_until_idle();
    subscribers.iter().for_each(|&id| rig.pipe(id).outgoing.clear());
    let silent: Vec<SlotId> = (0..1_000).map(|_| rig.connect(Behavior::Cooperative)).collect();
    let start = rig.now;
    let mut received = vec![start; subscribers.len()];
    let (mut pings, mut latest_ping, mut latest_close) = (0, 0, 0);
    while rig.now.millis_since(start) < 8_000 {
        rig.now = rig.now.after(45);
        rig.turn();
        for (&id, received) in subscribers.iter().zip(&mut received) {
            let silence = rig.now.millis_since(*received);
            latest_ping = latest_ping.max(silence);
            if rig.frames(id).iter().any(|frame| frame.opcode == PING) {
                rig.send(id, &frames::masked(PONG, b""));
                *received = rig.now;
                pings += 1;
            }
        }
        if silent.iter().any(|&id| rig.is_alive(id)) {
            latest_close = rig.now.millis_since(start);
        }
    }
    assert!(pings > 3 * subscribers.len(), "{pings} pings");
    assert!(latest_ping <= INTERVAL_MS * 6 / 5, "a ping after {latest_ping} ms");
    assert!(latest_close <= 6_000, "closed after {latest_close} ms");
}

/// The loop itself may be late: stopped, or busy. Bytes that arrived meanwhile count.
#[test]
fn pong_in_the_socket_is_read_before_its_deadline_expires() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 1_000, pong_timeout_ms: 1_000, ..Limits::default() });
    let (answers, silent) = (rig.join("/ws"), rig.join("/ws"));
    rig.advance_ms(1_200);
    // The pong is in the socket, and its event has not been fetched.
    let pong = frames::masked(PONG, b"");
    rig.pipe(answers).incoming.extend(pong);
    rig.now = rig.now.after(60_000);
    for _ in 0..5 {
        rig.advance_ms(300);
    }
    assert!(rig.frames(answers).iter().all(|frame| frame.opcode == PING));
    assert!(rig.frames(silent).iter().any(|frame| frame.opcode == CLOSE));
}

#[test]
fn ping_queued_after_a_backlog_does_not_time_out() {
    let limits = Limits { ping_interval_ms: 1_000, pong_timeout_ms: 1_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (reads_steadily, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(reads_steadily).behavior = Behavior::Stalled;
    rig.send_text(sender, &"x".repeat(30_000));
    for _ in 0..60 {
        rig.set_behavior(reads_steadily, Behavior::LimitedWrites(700));
        rig.turn();
        rig.pipe(reads_steadily).behavior = Behavior::Stalled;
        rig.send_text(sender, "");
        rig.advance_ms(100);
        let got = rig.frames(reads_steadily);
        assert!(got.iter().all(|frame| frame.opcode != CLOSE), "{got:?}");
        if got.iter().any(|frame| frame.opcode == PING) {
            rig.send(reads_steadily, &frames::masked(PONG, b""));
        }
    }
    assert!(rig.is_alive(reads_steadily));
}

#[test]
fn stopped_server_closes_no_client_after_it_resumes() {
    let server = Server::start(&["--ping-interval-ms=200", "--pong-timeout-ms=400"]);
    // On a slow machine a client may be late now and then; a server that counts its stopped time against clients
    // closes each one, since it was stopped for longer than their timeout.
    wait_until("a client that answers while the server is stopped stays", || {
        let mut subscriber = server.join("/ws");
        if subscriber.raw_frame().opcode != PING {
            return false;
        }
        server.signal("STOP");
        subscriber.send(&frames::masked(PONG, b""));
        std::thread::sleep(Duration::from_millis(1_000));
        server.signal("CONT");
        (0..3).all(|_| {
            let is_ping = subscriber.raw_frame().opcode == PING;
            let _ = subscriber.stream.write_all(&frames::masked(PONG, b""));
            is_ping
        })
    });
}

#[test]
fn silent_peer_on_a_socket_is_pinged_then_closed() {
    let server = Server::start(&[
        "--ping-interval-ms=300",
        "--pong-timeout-ms=300",
        "--close-timeout-ms=600000",
        "--drain-seconds=600",
    ]);
    let start = Instant::now();
    let mut silent = server.join("/ws");
    assert_eq!(silent.raw_frame().opcode, PING);
    assert_eq!(silent.closed_with_no_answer(), (4103, "no_pong".into()));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    let server = Server::start(&["--handshake-timeout-ms=400"]);
    // On a slow machine the time may be over before the server has read anything, and then it sends nothing.
    wait_until("an incomplete head gets a 408", || {
        let start = Instant::now();
        let mut slow_head = Client::new(server.connect());
        let _ = slow_head.stream.write_all(b"GET /ws HTTP/1.1\r\nHost: ");
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut slow_head.stream, &mut answer);
        let is_answered = answer.starts_with(b"HTTP/1.1 408 ");
        assert!(!is_answered || start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        is_answered
    });
    let mut never_pinged = Server::start(&["--ping-interval-ms=0"]).join("/ws");
    assert_eq!(never_pinged.frame_or_end_within(), None);
}

#[test]
fn dripping_heads_by_the_thousand_delay_no_other_client() {
    // A client that is answered late has time to read the answer.
    let server =
        Server::start(&["--handshake-timeout-ms=4000", "--close-timeout-ms=600000", "--drain-seconds=600"]);
    let mut subscriber = server.join("/ws");
    let mut dripping: Vec<Client> = (0..2_000)
        .map(|_| {
            let mut client = Client::new(server.connect());
            client.send(b"G");
            client
        })
        .collect();
    for byte in b"ET".chunks(1) {
        for client in &mut dripping {
            client.send(byte);
        }
        // A server that waited for the rest of a head would wait forever.
        subscriber.send_text("x");
        assert_eq!(subscriber.text(), "x");
    }
    for client in &mut dripping {
        assert!(client.rest_as_text().starts_with("HTTP/1.1 408 "));
    }
}

impl Client {
    /// A close that is not followed by the end of file until we answer, which we do.
    fn closed_with_no_answer(&mut self) -> (u16, String) {
        let close = self.frame().close_code();
        self.send(&frames::close(close.0, ""));
        assert_eq!(self.frame_or_end(), None);
        close
    }

    /// The end, since the server was dropped; and no ping before it.
    fn frame_or_end_within(&mut self) -> Option<frames::Frame> {
        match std::io::Read::read(&mut self.stream, &mut [0; 16]) {
            Ok(0) | Err(_) => None,
            Ok(count) => panic!("{count} bytes"),
        }
    }
}

#[test]
fn pong_without_a_fetched_event_counts() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 1_000, pong_timeout_ms: 1_000, ..Limits::default() });
    let id = rig.join("/ws");
    rig.advance_ms(1_200);
    assert_eq!(rig.frames(id)[0].opcode, PING);
    rig.send_without_event(id, &frames::masked(PONG, b""));
    rig.now = rig.now.after(5_000);
    for _ in 0..3 {
        rig.advance_ms(300);
    }
    assert!(rig.frames(id).iter().all(|frame| frame.opcode == PING));
}

#[test]
fn pong_waiting_for_the_turn_budget_counts() {
    let limits = Limits {
        ping_interval_ms: 1_000,
        pong_timeout_ms: 1_000,
        read_bytes_per_connection: 512,
        read_bytes_per_turn: 512,
        ..Limits::default()
    };
    let mut rig = Rig::new(limits);
    let id = rig.join("/ws/answers");
    let floods: Vec<_> = (0..20).map(|n| rig.join(&format!("/ws/{n}"))).collect();
    rig.advance_ms(1_200);
    for &flood in &floods {
        rig.send(flood, &frames::masked(TEXT, &[b'x'; 100]).repeat(500));
    }
    rig.send(id, &frames::masked(PONG, b""));
    rig.now = rig.now.after(5_000);
    rig.advance_ms(1_500);
    assert!(rig.frames(id).iter().all(|frame| frame.opcode == PING));
}

#[test]
fn head_complete_in_time_is_served_after_its_deadline() {
    let limits = Limits { read_bytes_per_connection: 512, read_bytes_per_turn: 512, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let flood = rig.join("/ws/flood");
    rig.send(flood, &frames::masked(TEXT, &[b'x'; 100]).repeat(100));
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, frames::upgrade("/ws").as_bytes());
    rig.now = rig.now.after(5_100);
    rig.run_until_idle();
    assert!(rig.pipe(id).outgoing.starts_with(b"HTTP/1.1 101"));
}

#[test]
fn server_with_idle_subscribers_sleeps() {
    let server = Server::start(&[]);
    let _members: Vec<Client> = (0..5).map(|_| server.join("/ws")).collect();
    server.sleeps();
}
