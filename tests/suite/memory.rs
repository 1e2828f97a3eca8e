//! The memory budget. The steps against pressure are tested in memory with a count that the test chooses, in their
//! order and with their bounds; the floods on the real program with a small budget and its own count.

use std::io::Write;

use oyez::close::Reason;
use oyez::config::{HistoryLimits, Limits};
use oyez::ids::SlotId;
use oyez::metrics::MemoryStep;
use serde_json::Value;

use crate::support::client::Client;
use crate::support::frames::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use crate::support::http::{get, post, publish};
use crate::support::process::{Server, wait_until};
use crate::support::rig::{Behavior, Rig};

const MIB: u64 = 1 << 20;

/// The budget of all rigs here; a percent of it is a MiB.
const BUDGET: u64 = 100 * MIB;

fn rig() -> Rig {
    Rig::new(Limits { memory_bytes_max: BUDGET, ..Limits::default() })
}

/// A message of this many bytes, of which the last is missing.
fn half_message(length: usize) -> Vec<u8> {
    let mut frame = frames::masked(BINARY, &vec![b'x'; length]);
    frame.pop();
    frame
}

fn half_body(channel: &str, length: usize) -> String {
    let mut request = post(&format!("/v1/publish/{channel}"), "", &"x".repeat(length));
    request.pop();
    request
}

/// A subscriber of a separate channel that has stopped reading, with this many messages of 50 KB waiting.
fn stalled_subscriber(rig: &mut Rig, channel: &str, messages: usize) -> SlotId {
    let (id, publisher) = (rig.join(&format!("/ws/{channel}")), rig.join(&format!("/ws/{channel}?echo=0")));
    rig.pipe(id).behavior = Behavior::Stalled;
    for _ in 0..messages {
        rig.send(publisher, &frames::masked(BINARY, &[7; 50_000]));
        rig.run_until_idle();
    }
    rig.send_eof(publisher);
    rig.run_until_idle();
    id
}

/// Without history, so that waiting messages are held by a subscriber alone.
fn rig_without_history() -> Rig {
    let history = HistoryLimits { messages_max: 0, ..HistoryLimits::default() };
    Rig::new(Limits { memory_bytes_max: BUDGET, publish_pause_ms: 0, history, ..Limits::default() })
}

fn is_slow(rig: &mut Rig, id: SlotId) -> bool {
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    rig.frames(id).last().is_some_and(|frame| frame.opcode == CLOSE && frame.close_code().0 == 4102)
}

#[test]
fn large_unfinished_message_under_pressure_is_closed_1013() {
    let mut rig = rig();
    let (small, whole, early) = (rig.join("/ws/a"), rig.join("/ws/a"), rig.join("/ws/a"));
    let large = rig.join("/ws/a");
    rig.send(early, &half_message(30_000));
    rig.turn();
    rig.used_bytes = 75 * MIB;
    rig.send(small, &half_message(3_000));
    rig.send(large, &half_message(30_000));
    rig.send(whole, &frames::masked(BINARY, &[7; 30_000]));
    rig.run_until_idle();
    let got = rig.frames(large);
    assert_eq!(got.last().unwrap().close_code(), (1013, "low_memory".into()));
    // Messages that are small, complete, or were begun before, are published.
    rig.send(small, b"x");
    rig.send(early, b"x");
    rig.run_until_idle();
    for id in [small, whole, early] {
        let lengths: Vec<usize> = rig.frames(id).iter().map(|frame| frame.payload.len()).collect();
        assert_eq!(lengths.iter().filter(|&&length| length == 30_000).count(), 2, "{lengths:?}");
        assert_eq!(lengths.iter().filter(|&&length| length == 3_000).count(), 1, "{lengths:?}");
    }
    rig.used_bytes = 70 * MIB;
    let later = rig.join("/ws/a");
    rig.send(later, &half_message(30_000));
    rig.run_until_idle();
    rig.send(later, b"x");
    rig.run_until_idle();
    assert_eq!(rig.frames(later).len(), 1, "the pressure is over");
}

#[test]
fn large_unfinished_body_under_pressure_gets_503() {
    let mut rig = rig();
    rig.used_bytes = 75 * MIB;
    let (large, small, whole) = (
        rig.connect(Behavior::Cooperative),
        rig.connect(Behavior::Cooperative),
        rig.connect(Behavior::Cooperative),
    );
    rig.send(large, half_body("a", 10_000).as_bytes());
    rig.send(small, half_body("a", 1_000).as_bytes());
    rig.send(whole, publish("a", &"x".repeat(10_000)).as_bytes());
    rig.run_until_idle();
    let rejected = rig.responses(large).remove(0);
    assert_eq!((rejected.status, rejected.code()), (503, "low_memory".into()));
    assert!(rejected.field("Retry-After").is_some() && rejected.is_last());
    assert_eq!(rig.engine.shared.metrics.requests_rejected["low_memory"], 1);
    rig.send(small, b"x");
    rig.run_until_idle();
    assert_eq!(rig.responses(small)[0].status, 200);
    assert_eq!(rig.responses(whole)[0].status, 200);
}

#[test]
fn listing_and_page_under_pressure_get_503() {
    let mut rig = rig();
    let id = rig.connect(Behavior::Cooperative);
    let mut ask = |used: u64, path: &str| {
        rig.used_bytes = used;
        rig.send(id, get(path).as_bytes());
        rig.run_until_idle();
        rig.responses(id).remove(0)
    };
    for path in ["/v1/channels", "/v1/channels/a/history"] {
        let rejected = ask(75 * MIB, path);
        assert_eq!((rejected.status, rejected.code()), (503, "low_memory".into()));
        assert!(rejected.field("Retry-After").is_some());
        assert_eq!(ask(70 * MIB, path).status, 200);
    }
    assert_eq!(ask(99 * MIB, "/metrics").status, 200, "an operator sees it all the same");
}

#[test]
fn large_connections_are_closed_from_85_percent_and_idle_subscribers_stay() {
    let mut rig = rig_without_history();
    let sizes = [10, 30, 20, 25];
    let stalled: Vec<SlotId> = sizes
        .iter()
        .enumerate()
        .map(|(n, &size)| stalled_subscriber(&mut rig, &n.to_string(), size))
        .collect();
    let idle: Vec<SlotId> = (0..5).map(|n| rig.join(&format!("/ws/{n}"))).collect();
    rig.used_bytes = 84 * MIB;
    rig.turn();
    assert_eq!(rig.engine.shared.metrics.memory_connections_closed, 0, "not before 85 percent");
    rig.used_bytes = 85 * MIB;
    rig.turn();
    // 5 MiB are more than the 4.25 MB that all of them use together.
    assert_eq!(rig.engine.shared.metrics.memory_connections_closed, 4);
    for id in stalled {
        assert!(is_slow(&mut rig, id));
    }
    assert!(
        idle.iter().all(|&id| rig.is_alive(id) && rig.engine.slots.get(id).unwrap().state.is_web_socket())
    );
}

#[test]
fn largest_connections_are_closed_first_and_no_more_than_needed() {
    let mut rig = Rig::new(Limits {
        memory_bytes_max: 20 * MIB,
        publish_pause_ms: 0,
        history: HistoryLimits { messages_max: 0, ..HistoryLimits::default() },
        ..Limits::default()
    });
    let sizes = [6, 30, 10, 25];
    let stalled: Vec<SlotId> = sizes
        .iter()
        .enumerate()
        .map(|(n, &size)| stalled_subscriber(&mut rig, &n.to_string(), size))
        .collect();
    // The excess is a MiB, which the largest alone has.
    rig.used_bytes = 17 * MIB;
    rig.turn();
    rig.used_bytes = 15 * MIB;
    let closed: Vec<bool> = stalled.into_iter().map(|id| is_slow(&mut rig, id)).collect();
    assert_eq!(closed, [false, true, false, false]);
}

#[test]
fn search_that_frees_too_little_pauses() {
    let mut rig = rig_without_history();
    rig.used_bytes = 85 * MIB;
    rig.turn();
    stalled_subscriber(&mut rig, "a", 10);
    assert_eq!(
        rig.engine.shared.metrics.memory_connections_closed, 0,
        "each search walks over all connections"
    );
    rig.advance_ms(50);
    assert_eq!(rig.engine.shared.metrics.memory_connections_closed, 1);
}

#[test]
fn one_turn_evicts_a_bounded_number_of_messages() {
    const MESSAGES: usize = 15_000;
    let history = HistoryLimits { messages_max: MESSAGES, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { memory_bytes_max: BUDGET, history, ..Limits::default() });
    let publisher = rig.join("/ws/a?echo=0");
    rig.send(publisher, &frames::masked(TEXT, b"x").repeat(MESSAGES));
    rig.run_until_idle();
    assert_eq!(rig.engine.hub.history_usage().messages, MESSAGES);
    rig.used_bytes = 94 * MIB;
    let mut left = || {
        rig.turn();
        rig.engine.hub.history_usage().messages
    };
    assert_eq!((left(), left()), (5_000, 0));
}

#[test]
fn small_connections_are_never_closed() {
    let mut rig = rig();
    let subscribers: Vec<SlotId> = (0..20).map(|_| rig.join("/ws/a")).collect();
    for &id in &subscribers {
        rig.pipe(id).behavior = Behavior::Stalled;
    }
    let publisher = rig.connect(Behavior::Cooperative);
    // One piece that all of them share, and one started response head.
    rig.send(publisher, publish("a", &"x".repeat(50_000)).as_bytes());
    rig.run_until_idle();
    let half_head = rig.connect(Behavior::Cooperative);
    rig.send(half_head, &b"GET / HTTP/1.1\r\nX: "[..]);
    rig.used_bytes = 99 * MIB;
    rig.turn();
    rig.turn();
    assert_eq!(rig.engine.shared.metrics.memory_connections_closed, 0);
    for id in subscribers {
        rig.set_behavior(id, Behavior::Cooperative);
        rig.run_until_idle();
        assert_eq!(rig.texts(id)[0].len(), 50_000);
    }
}

#[test]
fn history_is_evicted_after_connections_and_oldest_of_the_largest_first() {
    let mut rig = rig();
    let publisher = rig.connect(Behavior::Cooperative);
    for number in 0..20 {
        rig.send(publisher, publish("large", &format!("{number:02}{}", "x".repeat(50_000))).as_bytes());
        rig.run_until_idle();
        rig.send(publisher, publish("small", "kept").as_bytes());
        rig.run_until_idle();
    }
    let bytes = |rig: &Rig| rig.engine.hub.info("large").bytes as u64;
    let (before, half) = (bytes(&rig), bytes(&rig) / 2);
    rig.used_bytes = 89 * MIB;
    rig.turn();
    assert_eq!(bytes(&rig), before, "not before 90 percent");
    let mut waiting = Rig::new(Limits { memory_bytes_max: 20 * half, ..Limits::default() });
    std::mem::swap(&mut rig.engine.shared.memory, &mut waiting.engine.shared.memory);
    // Of 90 percent, 5 have to be freed, and that is half of the large one.
    rig.used_bytes = 18 * half;
    rig.turn();
    let left = bytes(&rig);
    assert!(left >= half - 60_000 && left <= half, "{before} {left}");
    assert_eq!(rig.engine.hub.info("small").messages, 20);
    assert_eq!(rig.engine.shared.metrics.memory_evicted, 10);
    // The newest messages are kept.
    let floor = rig.engine.hub.info("large").evicted_through;
    assert!(floor > rig.engine.hub.head().seq / 3);
}

#[test]
fn history_is_kept_while_connections_can_be_closed() {
    let mut rig = Rig::new(Limits { memory_bytes_max: 10 * MIB, ..Limits::default() });
    let publisher = rig.connect(Behavior::Cooperative);
    rig.send(publisher, publish("kept", &"x".repeat(50_000)).as_bytes());
    rig.run_until_idle();
    for n in 0..4 {
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, half_body(&n.to_string(), 500_000).as_bytes());
    }
    rig.run_until_idle();
    rig.used_bytes = 91 * MIB / 10;
    rig.turn();
    assert_eq!(rig.engine.shared.metrics.memory_connections_closed, 3, "3 of half a MB are over 80 percent");
    assert_eq!((rig.engine.shared.metrics.memory_evicted, rig.engine.hub.history_usage().messages), (0, 1));
}

#[test]
fn unfinished_bodies_get_503_and_unfinished_messages_4102() {
    let mut rig = rig();
    let (body, message) = (rig.connect(Behavior::Cooperative), rig.join("/ws/a"));
    rig.send(body, half_body("a", 500_000).as_bytes());
    rig.send(message, &half_message(60_000));
    rig.run_until_idle();
    rig.used_bytes = 90 * MIB;
    rig.turn();
    rig.run_until_idle();
    let answer = rig.responses(body).remove(0);
    assert_eq!((answer.status, answer.code()), (503, "low_memory".into()));
    assert_eq!(rig.frames(message)[0].close_code(), (4102, "slow".into()));
}

#[test]
fn pressure_step_is_counted_once_per_episode() {
    let mut rig = rig();
    for _ in 0..3 {
        for used in [96, 97, 91, 96, 50] {
            rig.used_bytes = used * MIB;
            rig.turn();
            rig.turn();
        }
    }
    assert_eq!(rig.engine.shared.metrics.memory_pressure, [3; MemoryStep::COUNT]);
}

#[test]
fn unfinished_idle_message_uses_only_its_received_bytes() {
    let mut rig = Rig::new(Limits::default());
    let (whole, pieces, fragments, empty) =
        (rig.join("/ws"), rig.join("/ws"), rig.join("/ws"), rig.join("/ws"));
    rig.send(whole, &half_message(61_440));
    for piece in half_message(61_440).chunks(1_000) {
        rig.send(pieces, piece);
        rig.turn();
    }
    rig.send(fragments, &frames::fragment(BINARY, &[7; 20_000]));
    for _ in 0..40 {
        rig.send(fragments, &frames::fragment(CONTINUATION, &[7; 1_000]));
        rig.turn();
    }
    rig.send(empty, &frames::fragment(BINARY, b""));
    rig.send(empty, &frames::fragment(CONTINUATION, b"").repeat(10_000));
    rig.run_until_idle();
    let held = |rig: &Rig, id: SlotId| rig.engine.slots.get(id).unwrap().freeable_bytes();
    for id in [whole, pieces, fragments] {
        assert!((59_000..=75_000).contains(&held(&rig, id)), "{} for 60 KB", held(&rig, id));
    }
    assert_eq!(held(&rig, empty), 0);
    let body = rig.connect(Behavior::Cooperative);
    rig.send(body, &half_body("a", 1_000_000).as_bytes()[..300_000]);
    rig.run_until_idle();
    assert!(held(&rig, body) <= 375_000, "{} for 300 KB", held(&rig, body));
    let announced = rig.connect(Behavior::Cooperative);
    rig.send(announced, half_body("a", 1_000_000).split_once('x').unwrap().0.as_bytes());
    rig.run_until_idle();
    assert!(held(&rig, announced) < 100, "an announcement costs nothing");
}

#[test]
fn dripping_message_is_closed_4105_at_its_deadline() {
    let mut rig = Rig::new(Limits { message_timeout_ms: 5_000, ping_interval_ms: 0, ..Limits::default() });
    let (still, dripping, begun, in_time) =
        (rig.join("/ws/a"), rig.join("/ws/a"), rig.join("/ws/a"), rig.join("/ws/b"));
    rig.send(still, &half_message(100));
    rig.send(begun, &frames::fragment(TEXT, b"first"));
    rig.send(in_time, &half_message(100));
    let message = half_message(1_000);
    for piece in message.chunks(10).take(49) {
        rig.send(dripping, piece);
        rig.send(begun, &frames::masked(PING, b"alive"));
        rig.advance_ms(100);
    }
    for id in [still, dripping, begun] {
        assert!(rig.frames(id).iter().all(|frame| frame.opcode == PONG), "not before its time");
    }
    rig.send(in_time, b"x");
    rig.advance_ms(1_000);
    for id in [still, dripping, begun] {
        assert_eq!(rig.frames(id)[0].close_code(), (4105, "message_timeout".into()));
    }
    assert_eq!(rig.frames(in_time).len(), 1);
    rig.advance_ms(60_000);
    assert!(rig.is_alive(in_time), "between messages nothing is late");
    assert_eq!(rig.engine.shared.metrics.closed(Reason::MessageTimeout), 3);
}

/// A server with a small budget, and 20 subscribers that read.
struct Healthy {
    server: Server,
    subscribers: Vec<Client>,
    sent: usize,
    resident_before: u64,
}

impl Healthy {
    fn start(flags: &[&str]) -> Healthy {
        let server = Server::start(flags);
        let subscribers = (0..20).map(|_| server.join("/ws/healthy")).collect();
        let resident_before = server.resident_bytes();
        Healthy { server, subscribers, sent: 0, resident_before }
    }

    /// A message, which all of them get, after those before it.
    fn publish(&mut self) {
        self.sent += 1;
        let mut publisher = Client::new(self.server.connect());
        assert_eq!(publisher.ask(publish("healthy", &self.sent.to_string())).status, 200);
        for subscriber in &mut self.subscribers {
            assert_eq!(subscriber.text(), self.sent.to_string());
        }
    }

    fn metric(&self, name: &str) -> u64 {
        let text = Client::new(self.server.connect()).ask(get("/metrics")).body;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// The flood is over, and its memory goes back to the system; other allocators than jemalloc may keep it.
    fn recovers(&mut self) {
        if cfg!(feature = "jemalloc") {
            let bound = self.resident_before * 3 / 2 + 10_000_000;
            wait_until("the memory is released", || self.server.resident_bytes() <= bound);
        }
        self.publish();
    }
}

/// Sends without a promise that it is taken: the server may have closed.
fn try_send(client: &mut Client, bytes: &[u8]) {
    let _ = client.stream.write_all(bytes);
}

#[test]
fn flood_of_unfinished_messages_is_rejected_and_spares_subscribers() {
    let mut healthy = Healthy::start(&["--memory-max=16MiB"]);
    let half = half_message(60_000);
    let mut flood = Vec::new();
    for round in 0..300 {
        let mut client = healthy.server.join("/ws/flood");
        try_send(&mut client, &half);
        flood.push(client);
        if round % 50 == 0 {
            healthy.publish();
        }
    }
    // 18 MB were sent, and three quarters of 16 MiB are the most that is taken in.
    wait_until("a large message is rejected", || {
        healthy.metric("oyez_memory_pressure_total{step=\"reject_large\"}") >= 1
    });
    assert!(healthy.metric("oyez_memory_used_bytes") < 14 * MIB);
    let rejected = flood.last_mut().unwrap().closed_after_data_with();
    assert_eq!(rejected, (1013, "low_memory".into()));
    drop(flood);
    healthy.recovers();
    let log = healthy.server.stop();
    assert_eq!(log.matches("reject_large began").count(), log.matches("reject_large ended").count(), "{log}");
    assert!(log.contains("memory_max=16777216 (--memory-max)"), "{log}");
}

#[test]
fn flood_of_unfinished_bodies_is_rejected_and_spares_subscribers() {
    let mut healthy = Healthy::start(&["--memory-max=16MiB"]);
    let half = half_body("flood", 1_000_000);
    let mut flood = Vec::new();
    for _ in 0..30 {
        let mut client = Client::new(healthy.server.connect());
        try_send(&mut client, half.as_bytes());
        flood.push(client);
        healthy.publish();
    }
    wait_until("a large message is rejected", || {
        healthy.metric("oyez_memory_pressure_total{step=\"reject_large\"}") >= 1
    });
    let mut late = Client::new(healthy.server.connect());
    try_send(&mut late, half.split_once('x').unwrap().0.as_bytes());
    let answer = late.response();
    assert_eq!((answer.status, answer.code()), (503, "low_memory".into()));
    assert_eq!(answer.field("Retry-After"), Some("5"));
    assert!(healthy.metric("oyez_memory_used_bytes") < 16 * MIB);
    drop(flood);
    healthy.recovers();
}

/// Messages that are small enough never to be rejected, without histories and pauses: the outboxes of 12 stalled
/// subscribers may hold 24 MiB together, and only closing them keeps the server within its budget of 16.
#[test]
fn stalled_subscribers_are_closed_at_the_budget_and_spare_subscribers() {
    let flags = ["--history-messages-max=0", "--publish-pause-ms=0", "--slow-timeout-ms=600000"];
    let mut healthy = Healthy::start(&[&["--memory-max=16MiB"], &flags[..]].concat());
    let mut flood = Vec::new();
    let messages = frames::masked(BINARY, &[b'x'; 3_500]).repeat(480);
    for n in 0..12 {
        let stalled = healthy.server.join(&format!("/ws/flood-{n}"));
        stalled.limit_receive_buffer();
        let mut publisher = healthy.server.join(&format!("/ws/flood-{n}?echo=0"));
        publisher.send(&messages);
        publisher.send(&frames::masked(PING, b"all"));
        assert_eq!(publisher.frame().opcode, PONG);
        flood.push(stalled);
        healthy.publish();
    }
    assert!(healthy.metric("oyez_memory_connections_closed_total") >= 1);
    assert_eq!(healthy.metric("oyez_memory_pressure_total{step=\"reject_connections\"}"), 0);
    assert!(healthy.metric("oyez_memory_used_bytes") < 16 * MIB);
    drop(flood);
    healthy.recovers();
}

#[test]
fn connections_are_rejected_when_nothing_else_can_be_freed() {
    let mut healthy = Healthy::start(&["--memory-max=8MiB"]);
    let name = "n".repeat(200);
    let mut subscribers = Vec::new();
    let mut answer = None;
    // Each of 128 subscriptions takes some 700 bytes, and no connection holds enough to be closed.
    for client in 0..200 {
        let mut one = Client::new(healthy.server.connect());
        one.send(frames::upgrade_v1("/ws").as_bytes());
        let head = one.head();
        if !head.starts_with("HTTP/1.1 101") {
            answer = Some(head);
            break;
        }
        let commands: Vec<u8> = (0..128)
            .flat_map(|n| {
                let command = format!("{{\"type\":\"subscribe\",\"ch\":\"{name}.{client}.{n}\"}}");
                frames::masked(TEXT, command.as_bytes())
            })
            .collect();
        one.send(&commands);
        // All of it is done when the last is answered.
        loop {
            let said: Value = serde_json::from_str(&one.text()).unwrap();
            if said["ch"].as_str().is_some_and(|ch| ch.ends_with(".127")) {
                assert_eq!(said["type"], "subscribed");
                break;
            }
        }
        subscribers.push(one);
    }
    let answer = answer.expect("a rejection");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    // Existing connections stay and are served.
    healthy.subscribers[0].send_text("still here");
    for one in &mut healthy.subscribers {
        assert_eq!(one.text(), "still here");
    }
    for one in &mut subscribers {
        one.send(&frames::masked(PING, b"?"));
        assert_eq!(one.frame().opcode, PONG);
    }
    drop(subscribers);
    wait_until("a connection is accepted", || {
        Client::new(healthy.server.connect()).ask(get("/healthz")).status == 200
    });
    assert!(healthy.metric("oyez_memory_pressure_total{step=\"reject_connections\"}") >= 1);
    healthy.recovers();
}

#[cfg(feature = "jemalloc")]
#[test]
fn pages_are_returned_to_the_system_before_the_first_client() {
    let server = Server::start(&[]);
    let tasks = format!("/proc/{}/task", server.pid());
    wait_until("the allocator's thread runs", || {
        let mut tasks = std::fs::read_dir(&tasks).unwrap();
        tasks.any(|task| {
            let name = std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap();
            name.starts_with("jemalloc")
        })
    });
}
