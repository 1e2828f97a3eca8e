//! Draining at SIGTERM and SIGINT. Real servers with clients of every transport; tests compare what they receive
//! before the end, and in memory how closes and reconnect delays are spread.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oyez::config::Limits;

use crate::support::StopOnDrop;
use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{Response, get, publish};
use crate::support::process::{Server, counter, wait_until};
use crate::support::rig::{Behavior, Rig};

fn retry_ms(reason: &str) -> u64 {
    reason.strip_prefix("drain retry_ms=").unwrap_or_else(|| panic!("{reason}")).parse().unwrap()
}

#[test]
fn v1_clients_get_evenly_spread_reconnect_delays() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[
            "--drain-seconds=600",
            "--close-timeout-ms=600000",
            "--reconnects-per-second=10",
        ]);
        let address = server.address;
        let mut clients: Vec<Client> = (0..20).map(|_| join_v1(&server)).collect();
        server.signal(signal);
        let mut retries: Vec<u64> = clients
            .iter_mut()
            .map(|client| {
                let (code, reason) = client.frame().close_code();
                assert_eq!(code, 4200);
                client.send(&frames::close(4200, ""));
                assert_eq!(client.frame_or_end(), None);
                retry_ms(&reason)
            })
            .collect();
        retries.sort_unstable();
        assert_eq!(retries, (0..20).map(|place| 500 + place * 100).collect::<Vec<u64>>());
        drop(clients);
        // It does not wait for the end of those ten minutes.
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(counter(&log, "closed_drain"), 20, "{log}");
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

/// A client of `oyez.v1` after its hello.
fn join_v1(server: &Server) -> Client {
    let mut client = Client::new(server.connect());
    client.send(frames::upgrade_v1("/ws").as_bytes());
    client.head();
    assert!(client.text().contains("hello"));
    client
}

/// Clients that do not read the reason are closed over the same time instead: 20 at 10 a second in two seconds.
#[test]
fn raw_clients_and_event_streams_are_closed_spread_over_time() {
    let limits =
        Limits { reconnects_per_second: 10, drain_ms: 10_000, ping_interval_ms: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let mut ids: Vec<_> = (0..19).map(|_| rig.join("/ws")).collect();
    let stream = rig.connect(Behavior::Cooperative);
    rig.send(stream, get("/sse/a").as_bytes());
    ids.push(stream);
    rig.run_until_idle();
    rig.engine.drain(rig.now);
    let mut closed = Vec::new();
    for _ in 0..=2_000 {
        rig.run_until_idle();
        closed.push(
            ids.iter()
                .filter(|&&id| rig.engine.slots.get(id).is_none_or(|slot| !slot.state.is_open()))
                .count(),
        );
        rig.advance_ms(1);
    }
    assert_eq!(closed[0], 1, "the first at once");
    for second_tenths in 0..20 {
        assert_eq!(
            closed[second_tenths * 100 + 99],
            second_tenths + 1,
            "after {second_tenths} tenths of a second"
        );
    }
    assert_eq!(rig.frames(ids[5])[0].close_code(), (4200, "drain retry_ms=500".into()));
    let events = String::from_utf8(rig.pipe(stream).outgoing.clone()).unwrap();
    assert!(events.contains("retry: 500\n"), "{events}");
}

#[test]
fn raw_message_published_during_a_drain_closes_its_sender_with_the_reason() {
    let limits = Limits { reconnects_per_second: 1, ping_interval_ms: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (first, second) = (rig.join("/ws"), rig.join("/ws"));
    rig.engine.drain(rig.now);
    rig.run_until_idle();
    rig.frames(first);
    rig.send_text(second, "too late");
    rig.run_until_idle();
    let (code, reason) = rig.frames(second)[0].close_code();
    assert_eq!((code, retry_ms(&reason)), (4200, 2_500));
}

/// A load balancer notices by `/readyz`, and sends clients until it does.
#[test]
fn clients_are_served_during_the_drain_delay_while_readyz_returns_503() {
    let server = Server::start(&["--drain-delay-ms=600000", "--drain-seconds=5"]);
    let mut early = server.join("/ws");
    let status = |path: &str| Client::new(server.connect()).ask(get(path)).status;
    assert_eq!(status("/readyz"), 200);
    server.signal("TERM");
    wait_until("/readyz returns 503", || status("/readyz") == 503);
    assert_eq!(status("/healthz"), 200);
    let mut late = server.join("/ws");
    late.send_text("still served");
    assert_eq!((early.text(), late.text()), ("still served".into(), "still served".into()));
    server.signal("TERM");
    assert_eq!(server.wait().0.code(), Some(1), "a second signal ends at once");
}

#[test]
fn drain_begins_after_its_delay() {
    let server = Server::start(&["--drain-delay-ms=200", "--drain-seconds=600", "--close-timeout-ms=600000"]);
    let mut client = server.join("/ws");
    server.signal("TERM");
    assert_eq!(client.frame().close_code().0, 4200);
    client.send(&frames::close(4200, ""));
    assert_eq!(client.frame_or_end(), None);
    drop(client);
    assert_eq!(server.wait().0.code(), Some(0));
}

/// The kernel resets clients that wait at a listening socket when that is closed. One accept per turn lets them wait.
#[test]
fn clients_that_wait_to_be_accepted_when_the_drain_begins_get_a_response() {
    // Some may be accepted before the server sees the signal.
    wait_until("the last client is accepted by the drain", || {
        let server = Server::start(&["--accepts-per-turn=1", "--drain-seconds=600"]);
        server.signal("STOP");
        let mut clients: Vec<Client> = (0..8).map(|_| Client::new(server.connect())).collect();
        clients.iter_mut().for_each(|client| client.send(publish("a", "x").as_bytes()));
        server.signal("TERM");
        server.signal("CONT");
        let responses: Vec<Response> = clients.iter_mut().map(Client::response).collect();
        for response in &responses {
            let is_rejected = (response.status, response.field("Retry-After")) == (503, Some("1"));
            assert!(response.status == 200 || is_rejected, "{response:?}");
        }
        drop(clients);
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        responses[7].status == 503
    });
}

#[test]
fn unresponsive_client_does_not_hold_up_the_drain() {
    // On a slow machine the signal may come before the server has read the incomplete head, and then the connection
    // is an idle one, which ends without a response.
    wait_until("an incomplete head gets a 503", || {
        let server = Server::start(&["--drain-seconds=600", "--close-timeout-ms=500"]);
        let _silent = server.join("/ws");
        let mut asking = Client::new(server.connect());
        // Its first request is served, so the server has it before the signal comes.
        assert_eq!(asking.ask(get("/healthz")).status, 200);
        asking.send(b"GET /ws HTTP/1.1\r\n");
        asking.receives_nothing();
        let start = Instant::now();
        server.signal("TERM");
        let mut response = Vec::new();
        let _ = asking.stream.read_to_end(&mut response);
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        let took = start.elapsed();
        assert!(took > Duration::from_millis(400), "{took:?}");
        response.starts_with(b"HTTP/1.1 503 ")
    });
}

#[test]
fn second_signal_ends_the_server_at_once() {
    let server = Server::start(&["--drain-seconds=600", "--close-timeout-ms=600000"]);
    let mut silent = server.join("/ws");
    server.signal("TERM");
    assert_eq!(silent.frame().close_code().0, 4200);
    server.signal("TERM");
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert_eq!(counter(&log, "closed_cut"), 1, "{log}");
}

#[test]
fn message_published_before_a_drain_arrives_before_the_close() {
    // The publisher waits for subscribers that are read late, however long that takes.
    let flags = ["--drain-seconds=600", "--close-timeout-ms=600000", "--publish-pause-ms=600000"];
    let server = Server::start(&flags);
    let stop = AtomicBool::new(false);
    let mut subscribers: Vec<Client> = (0..10).map(|_| server.join("/ws")).collect();
    let mut sender = server.join("/ws?echo=0");
    std::thread::scope(|scope| {
        let stop = &stop;
        let _stop = StopOnDrop(stop);
        scope.spawn(move || {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let frame = frames::masked(frames::TEXT, format!("{sent}").as_bytes());
                if sender.stream.write_all(&frame).is_err() {
                    break;
                }
                sent += 1;
                if sent % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for expected in 0..200 {
            assert_eq!(subscribers[0].text(), expected.to_string());
        }
        server.signal("TERM");
        let mut read = vec![0; subscribers.len()];
        read[0] = 200;
        let counts: Vec<usize> = subscribers
            .iter_mut()
            .zip(read)
            .map(|(subscriber, read)| {
                for expected in read.. {
                    let frame = subscriber.frame();
                    if frame.opcode == frames::CLOSE {
                        assert_eq!(frame.close_code().0, 4200);
                        subscriber.send(&frames::close(4200, ""));
                        assert_eq!(subscriber.frame_or_end(), None);
                        return expected;
                    }
                    assert_eq!(frame.payload, expected.to_string().into_bytes());
                }
                0
            })
            .collect();
        assert!(
            counts.iter().all(|&count| count == counts[0]),
            "all were notified in the same turn: {counts:?}"
        );
    });
    drop(subscribers);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn drain_waits_for_the_peers_close() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    let now = rig.now;
    rig.engine.drain(now);
    rig.run_until_idle();
    assert_eq!(rig.frames(id)[0].close_code().0, 4200);
    assert!(!rig.pipe(id).outgoing_ended);
}
