//! HTTP deadlines: connections without a request, clients that do not read responses, and the drain. In memory, where
//! tests advance the time and limit the bytes that a peer reads; two tests use real sockets.

use std::time::{Duration, Instant};

use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::{Peer, SlotId};

use crate::support::client::Client;
use crate::support::http::{Response, get, publish, request};
use crate::support::process::{Server, counter, wait_until};
use crate::support::rig::{Behavior, Pipe, Rig};

#[test]
fn connection_without_request_is_closed_after_keep_alive() {
    let mut rig =
        Rig::new(Limits { keep_alive_ms: 20_000, handshake_timeout_ms: 2_000, ..Limits::default() });
    let id = rig.connect(Behavior::Cooperative);
    for _ in 0..3 {
        for asks in [get("/healthz"), publish("a", "x"), get("/nothing")] {
            rig.send(id, asks.as_bytes());
            rig.run_until_idle();
            assert_eq!(rig.responses(id).len(), 1);
            rig.advance_ms(19_900);
            assert!(rig.is_alive(id), "it may wait longer than a new connection");
        }
    }
    rig.advance_ms(500);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.responses(id), [], "without a request there is no response");
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Idle), 1);
}

#[test]
fn started_head_has_the_handshake_timeout() {
    let mut rig =
        Rig::new(Limits { keep_alive_ms: 20_000, handshake_timeout_ms: 2_000, ..Limits::default() });
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, (get("/healthz") + "GET ").as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(id).len(), 1);
    rig.advance_ms(1_500);
    rig.send(id, b"/healthz ");
    rig.advance_ms(400);
    assert_eq!(rig.responses(id), []);
    rig.advance_ms(500);
    let answers = rig.responses(id);
    assert_eq!((answers[0].status, answers[0].code().as_str()), (408, "handshake_timeout"));
    assert!(answers[0].is_last() && rig.pipe(id).outgoing_ended);
    // A new connection without any bytes is not a request.
    let silent = rig.connect(Behavior::Cooperative);
    rig.advance_ms(2_500);
    assert!(!rig.is_alive(silent) && rig.responses(silent).is_empty());
}

/// An answer that is larger than what a kernel takes.
fn rig_with_history() -> Rig {
    let mut rig = Rig::new(Limits { slow_timeout_ms: 3_000, keep_alive_ms: 10_000, ..Limits::default() });
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, publish("big", &"x".repeat(900_000)).as_bytes());
    rig.run_until_idle();
    rig
}

#[test]
fn client_that_reads_no_response_is_paused_and_closed() {
    let mut rig = rig_with_history();
    let id = rig.connect(Behavior::Stalled);
    rig.send(id, (get("/v1/channels/big/history") + &publish("a", "x")).repeat(100).as_bytes());
    rig.run_until_idle();
    let waits = rig.engine.slots.get(id).unwrap().outbox.bytes();
    assert!((16_000..18_000).contains(&waits), "one slice of one answer: {waits}");
    assert_eq!(rig.engine.shared.metrics.published_by_http, 1);
    rig.advance_ms(2_900);
    assert!(rig.is_alive(id));
    rig.advance_ms(500);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

#[test]
fn slow_reader_of_a_response_gets_it_and_the_next() {
    let mut rig = rig_with_history();
    let id = rig.connect(Behavior::LimitedWrites(10_000));
    let next = publish("a", "x");
    rig.send(id, (get("/v1/channels/big/history") + &next + &next[..20]).as_bytes());
    // In small reads that take longer than the head's timeout.
    rig.advance_ms(4_000);
    rig.set_behavior(id, Behavior::Stalled);
    rig.advance_ms(2_500);
    rig.set_behavior(id, Behavior::Cooperative);
    rig.advance_ms(1_000);
    rig.send(id, &next.as_bytes()[20..]);
    rig.run_until_idle();
    let answers = rig.responses(id);
    assert_eq!(answers.iter().map(|one| one.status).collect::<Vec<_>>(), [200, 200, 200]);
    assert_eq!(answers[0].json()["messages"].as_array().unwrap().len(), 1);
}

#[test]
fn keep_alive_starts_after_the_response_was_read() {
    let mut rig = rig_with_history();
    let id = rig.connect(Behavior::Stalled);
    rig.send(id, get("/v1/channels/big/history").as_bytes());
    for _ in 0..8 {
        rig.advance_ms(2_000);
        rig.set_behavior(id, Behavior::LimitedWrites(40_000));
        rig.turn();
        rig.turn();
        rig.set_behavior(id, Behavior::Stalled);
    }
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.responses(id).len(), 1, "16 s later");
    rig.advance_ms(9_000);
    rig.send(id, get("/healthz").as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(id).len(), 1, "the connection was kept");
}

#[test]
fn body_timeout_starts_after_earlier_responses_were_read() {
    let mut rig = Rig::new(Limits { slow_timeout_ms: 5_000, body_timeout_ms: 2_000, ..Limits::default() });
    let id = rig.connect(Behavior::Stalled);
    let whole = publish("a", "xy");
    let (begun, rest) = whole.split_at(whole.len() - 1);
    rig.send(id, format!("{whole}{begun}").as_bytes());
    rig.advance_ms(3_000);
    rig.set_behavior(id, Behavior::Cooperative);
    rig.advance_ms(1_500);
    rig.send(id, rest.as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(id).iter().map(|one| one.status).collect::<Vec<_>>(), [200, 200]);
}

/// Slow readers that have asked for 200 pages each cost nothing between two messages: the engine is at rest, and a
/// message takes one turn.
#[test]
fn message_among_slow_readers_of_large_responses_takes_one_turn() {
    let mut rig = rig_with_history();
    let (sender, subscriber) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let slow: Vec<SlotId> = (0..20)
        .map(|_| {
            let id = rig.connect(Behavior::Stalled);
            rig.send(id, get("/v1/channels/big/history").repeat(200).as_bytes());
            id
        })
        .collect();
    rig.run_until_idle();
    for round in 0..300 {
        rig.send_text(sender, &round.to_string());
        rig.turn();
        assert_eq!(rig.texts(subscriber), [round.to_string()]);
        assert!(!rig.engine.slots.has_work());
    }
    for id in slow {
        let bytes = rig.engine.slots.get(id).unwrap().outbox.cost();
        assert!(bytes < 20_000, "one slice of 200 responses: {bytes} bytes");
    }
}

/// Each holds one slice of one response. That the next request is not read before the response is written is tested in
/// memory, by `client_that_reads_no_response_is_paused_and_closed`.
#[test]
fn slow_readers_of_large_responses_use_little_memory() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    client.ask(publish("big", &"x".repeat(900_000)));
    let before = server.resident_bytes();
    let slow: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = Client::new(server.connect());
            client.limit_receive_buffer();
            client.send(get("/v1/channels/big/history").repeat(200).as_bytes());
            client
        })
        .collect();
    let (mut one, mut two) = (server.join("/ws?echo=0"), server.join("/ws"));
    for round in 0..300 {
        one.send_text(&round.to_string());
        assert_eq!(two.text(), round.to_string());
    }
    let grown = server.resident_bytes().saturating_sub(before);
    // 20 slices of 16 KiB. Whole pages of 900 KB would be 18 MB.
    assert!(grown < 8 << 20, "{grown} bytes");
    drop(slow);
}

#[test]
fn slow_reader_on_a_socket_is_closed_and_others_are_served() {
    let server = Server::start(&["--slow-timeout-ms=500"]);
    let mut client = Client::new(server.connect());
    client.ask(publish("big", &"x".repeat(900_000)));
    let mut slow = Client::new(server.connect());
    slow.send(get("/v1/channels/big/history").repeat(100).as_bytes());
    wait_until("the slow reader is closed", || {
        client.ask(get("/metrics")).body.contains("oyez_connections_closed_total{reason=\"slow\"} 1\n")
    });
    drop((slow, client));
    server.stop();
}

fn retry_after(answer: &Response) -> u32 {
    answer.field("Retry-After").unwrap_or_else(|| panic!("{answer:?}")).parse().unwrap()
}

#[test]
fn kept_connection_during_a_drain_gets_connection_close() {
    let server = Server::start(&["--drain-seconds=600", "--close-timeout-ms=600000"]);
    let mut kept = Client::new(server.connect());
    let mut idle = Client::new(server.connect());
    for client in [&mut kept, &mut idle] {
        assert_eq!(client.ask(get("/readyz")).body, "ready\n");
    }
    // The subscriber does not respond to the close frame, and the server waits for the response.
    let mut subscriber = server.join("/ws/a");
    server.signal("TERM");
    assert_eq!(subscriber.frame().close_code().0, 4200);
    for asks in [
        get("/readyz"),
        publish("a", "x"),
        get("/v1/channels"),
        get("/v1/channels/a"),
        get("/v1/channels/a/history"),
        publish("a", "x"),
    ] {
        let answer = kept.ask(&asks);
        assert_eq!((answer.status, answer.code().as_str()), (503, "drain"), "{asks}");
        assert!((1..=600).contains(&retry_after(&answer)));
    }
    assert_eq!(kept.ask(get("/healthz")).body, "ok\n");
    assert!(kept.ask(get("/metrics")).body.contains("oyez_messages_published_total{source=\"http\"} 0\n"));
    // New streams get a retry delay.
    let mut events = idle;
    events.send(get("/sse/a").as_bytes());
    assert!(events.head().starts_with("HTTP/1.1 200 "));
    for _ in 0..2 {
        let retry = events.event();
        assert!(retry.starts_with("retry: "), "{retry}");
    }
    assert_eq!(events.event_or_end(), None);
    assert!(events.stream_is_whole());
    drop(events);
    // The server does not wait for idle HTTP connections.
    drop(subscriber);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(kept.response_or_end(false), None);
}

/// Connections that have sent a part of a head, a head and a part of a body, and nothing.
fn unfinished_requests(rig: &mut Rig) -> [SlotId; 3] {
    let whole = publish("a", "four");
    let [head, body, silent] = [(); 3].map(|()| rig.connect(Behavior::Cooperative));
    rig.send(head, &whole.as_bytes()[..10]);
    rig.send(body, &whole.as_bytes()[..whole.len() - 1]);
    [head, body, silent]
}

#[test]
fn response_to_a_closing_connection_is_counted() {
    let limits = Limits { connections_per_address_max: 6, ..Limits::default() };
    let (timeout, body_timeout) = (limits.handshake_timeout_ms, limits.body_timeout_ms);
    let mut rig = Rig::new(limits);
    let [head, body, silent] = unfinished_requests(&mut rig);
    rig.advance_ms(timeout + 1_000);
    let count =
        |rig: &Rig, code: &str| rig.engine.shared.metrics.requests_rejected.get(code).copied().unwrap_or(0);
    assert_eq!(count(&rig, "handshake_timeout"), 1, "and not who has asked for nothing");
    rig.advance_ms(body_timeout);
    assert_eq!(count(&rig, "body_timeout"), 1);
    for id in [head, body, silent] {
        rig.send_eof(id);
    }
    rig.run_until_idle();
    let transport = Pipe::new(Behavior::Cooperative);
    let peer = Peer::from("192.0.2.1:1".parse::<std::net::SocketAddr>().unwrap());
    let rejected = rig.engine.reject(transport, peer, Reason::NoRoom, rig.now);
    rig.run_until_idle();
    assert_eq!(count(&rig, "over_capacity"), 0, "it has not asked yet");
    rig.send(rejected, get("/healthz").as_bytes());
    rig.run_until_idle();
    assert_eq!(count(&rig, "over_capacity"), 1);
    let mut kept = Vec::new();
    for _ in 0..7 {
        kept.push(rig.connect_from("192.0.2.2", Behavior::Cooperative));
    }
    rig.send(kept[6], get("/healthz").as_bytes());
    rig.run_until_idle();
    assert_eq!(count(&rig, "too_many_connections"), 1);
    rig.send(kept[0], get("/healthz").as_bytes());
    rig.run_until_idle();
    rig.engine.drain(rig.now);
    rig.run_until_idle();
    assert_eq!(count(&rig, "drain"), 5, "all who are not between two requests");
    for asks in [get("/readyz"), get("/v1/channels"), publish("a", "x")] {
        rig.send(kept[0], asks.as_bytes());
        rig.run_until_idle();
    }
    assert_eq!(count(&rig, "drain"), 8);
    assert_eq!(rig.engine.shared.metrics.requests_rejected.values().sum::<u64>(), 12);
}

#[test]
fn request_begun_before_a_drain_is_answered() {
    let mut rig = Rig::new(Limits::default());
    let [head, body, silent] = unfinished_requests(&mut rig);
    rig.run_until_idle();
    let now = rig.now;
    rig.engine.drain(now);
    rig.run_until_idle();
    for id in [head, body, silent] {
        let answers = rig.responses(id);
        assert_eq!((answers[0].status, answers[0].is_last()), (503, true));
        assert!(retry_after(&answers[0]) <= 30);
    }
    assert!(!rig.engine.is_drained(), "their end of file has yet to come");
    rig.send_eof(head);
    rig.send_eof(body);
    rig.send_eof(silent);
    rig.run_until_idle();
    assert!(rig.engine.is_drained());
}

#[test]
fn drain_waits_for_responses_being_read() {
    let mut rig = rig_with_history();
    let id = rig.connect(Behavior::Stalled);
    rig.send(id, get("/v1/channels/big/history").as_bytes());
    rig.run_until_idle();
    let now = rig.now;
    rig.engine.drain(now);
    rig.run_until_idle();
    assert!(!rig.engine.is_drained(), "an answer is on its way");
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 200);
    assert!(rig.engine.is_drained());
}

#[test]
fn kept_connection_counts_until_it_ends() {
    let server = Server::start(&["--connections-max=1"]);
    let mut kept = Client::new(server.connect());
    assert_eq!(kept.ask(get("/healthz")).status, 200);
    let rejected = Response::take_all(&mut server.ask(get("/healthz")).into_bytes());
    assert_eq!((rejected[0].status, rejected[0].code().as_str()), (503, "over_capacity"));
    assert_eq!((retry_after(&rejected[0]), rejected[0].is_last()), (1, true));
    drop((kept, server));
    let server = Server::start(&["--connections-max=1", "--keep-alive-ms=1000"]);
    let mut kept = Client::new(server.connect());
    let start = Instant::now();
    assert_eq!(kept.ask(get("/healthz")).status, 200);
    assert_eq!(kept.response_or_end(false), None);
    assert!(start.elapsed() > Duration::from_millis(500));
    let answer = Client::new(server.connect()).ask(request("GET", "/healthz", "Connection: close\r\n"));
    assert_eq!(answer.status, 200);
    assert_eq!(counter(&server.stop(), "closed_idle"), 1);
}
