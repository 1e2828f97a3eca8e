//! Listings, history pages and metrics: responses in slices, one slice per connection, with a bounded amount of work
//! in each turn. In memory, where turns are counted and peers read as few bytes as needed; the memory of a process is
//! measured with the real server.

use std::io::Read;

use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::SlotId;
use serde_json::Value;

use crate::support::client::Client;
use crate::support::http::{Response, get, post, publish, request};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig, Rng};

const PAGE: &str = "/v1/channels/big/history";

/// A channel `big`, whose page takes some 600 KB.
fn rig(limits: Limits) -> Rig {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..limits });
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, publish("big", &"\u{1}\"ä".repeat(60_000)).as_bytes());
    rig.run_until_idle();
    rig
}

/// Channels with a message each.
fn publish_on_channels(rig: &mut Rig, count: usize) {
    let id = rig.connect(Behavior::Cooperative);
    for first in (0..count).step_by(50) {
        let requests: Vec<String> = (first..count.min(first + 50))
            .map(|number| publish(&format!("channel-{number:05}"), "x"))
            .collect();
        rig.send(id, requests.concat().as_bytes());
        rig.run_until_idle();
    }
}

fn ask(rig: &mut Rig, request: &str, behavior: Behavior) -> SlotId {
    let id = rig.connect(behavior);
    rig.send(id, request.as_bytes());
    id
}

fn resume_reading(rig: &mut Rig, id: SlotId) {
    rig.set_behavior(id, Behavior::Cooperative);
    rig.engine.slots.mark_writable(id);
}

fn texts(page: &Response) -> Vec<String> {
    let page = page.json();
    page["messages"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn large_page_with_limited_reads_is_unchanged() {
    let mut rig = rig(Limits::default());
    let whole = ask(&mut rig, &get(PAGE), Behavior::Cooperative);
    rig.run_until_idle();
    let whole = rig.responses(whole).remove(0);
    assert_eq!(texts(&whole), ["\u{1}\"ä".repeat(60_000)]);
    assert_eq!((whole.status, whole.field("Transfer-Encoding")), (200, Some("chunked")));
    let behaviors = [
        Behavior::LimitedWrites(5_000),
        Behavior::LimitedWrites(100_000),
        Behavior::Random(Rng::new(1)),
        Behavior::Random(Rng::new(2)),
    ];
    for behavior in behaviors {
        let id = ask(&mut rig, &get(PAGE), behavior);
        rig.run_until_idle();
        assert_eq!(rig.responses(id), std::slice::from_ref(&whole));
    }
}

#[test]
fn small_responses_have_a_length() {
    let mut rig = rig(Limits::default());
    for path in ["/v1/channels", "/v1/channels/big", "/v1/channels/none/history", "/metrics", "/readyz"] {
        let id = ask(&mut rig, &get(path), Behavior::Cooperative);
        rig.run_until_idle();
        let answer = rig.responses(id).remove(0);
        assert_eq!(answer.field("Content-Length").unwrap().parse(), Ok(answer.body.len()), "{path}");
        let id = ask(&mut rig, &request("HEAD", path, ""), Behavior::Cooperative);
        rig.run_until_idle();
        let head = Response::take(&mut rig.pipe(id).outgoing, true).unwrap();
        assert!(head.field("Content-Length").is_some() && rig.pipe(id).outgoing.is_empty(), "{path}");
    }
}

#[test]
fn head_of_a_large_page_has_no_body_and_the_connection_goes_on() {
    let mut rig = rig(Limits::default());
    let id = ask(&mut rig, &(request("HEAD", PAGE, "") + &get("/healthz")), Behavior::Cooperative);
    rig.run_until_idle();
    let head = Response::take(&mut rig.pipe(id).outgoing, true).unwrap();
    assert_eq!((head.status, head.field("Transfer-Encoding")), (200, Some("chunked")));
    assert_eq!(rig.responses(id)[0].body, "ok\n");
}

#[test]
fn pipelined_request_after_a_large_page_is_answered_after_it() {
    let mut rig = rig(Limits::default());
    let requests = publish("a", "x") + &get(PAGE) + &publish("a", "y") + &get("/v1/channels/a/history");
    for behavior in [Behavior::Cooperative, Behavior::LimitedWrites(7_000), Behavior::Random(Rng::new(3))] {
        let id = ask(&mut rig, &requests, behavior);
        rig.run_until_idle();
        let answers = rig.responses(id);
        assert_eq!(answers.iter().map(|one| one.status).collect::<Vec<_>>(), [200; 4]);
        assert_eq!((texts(&answers[1]).len(), texts(&answers[3]).last().unwrap().as_str()), (1, "y"));
    }
}

#[test]
fn http_1_0_page_ends_with_the_connection() {
    let mut rig = rig(Limits::default());
    for (line, small_is_last) in [("", true), ("Connection: keep-alive\r\n", false)] {
        let ask_old = |rig: &mut Rig, path: &str| {
            ask(rig, &format!("GET {path} HTTP/1.0\r\n{line}\r\n"), Behavior::LimitedWrites(9_000))
        };
        let small = ask_old(&mut rig, "/v1/channels");
        let large = ask_old(&mut rig, PAGE);
        rig.run_until_idle();
        assert_eq!(
            (rig.responses(small)[0].is_last(), rig.pipe(small).outgoing_ended),
            (small_is_last, small_is_last)
        );
        let text = String::from_utf8(rig.pipe(large).outgoing.clone()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nConnection: close") && !head.contains("Transfer-Encoding"), "{head}");
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["messages"].as_array().unwrap().len(), 1);
        assert!(rig.pipe(large).outgoing_ended);
        rig.send_eof(large);
        rig.run_until_idle();
        assert!(!rig.is_alive(large));
    }
}

#[test]
fn client_that_half_closes_receives_the_whole_page_and_the_end() {
    let mut rig = rig(Limits::default());
    for behavior in [Behavior::Cooperative, Behavior::LimitedWrites(20_000), Behavior::Random(Rng::new(4))] {
        let id = ask(&mut rig, &get(PAGE), behavior);
        rig.send_eof(id);
        rig.run_until_idle();
        assert_eq!(rig.responses(id)[0].status, 200);
        assert!(!rig.is_alive(id));
    }
}

#[test]
fn client_that_resets_within_a_page_is_reaped() {
    let mut rig = rig(Limits::default());
    let id = ask(&mut rig, &get(PAGE), Behavior::Stalled);
    rig.run_until_idle();
    rig.reset(id);
    rig.engine.slots.mark_writable(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
}

#[test]
fn client_that_stops_reading_within_a_page_is_closed_without_the_last_chunk() {
    let mut rig = rig(Limits::default());
    let id = ask(&mut rig, &get(PAGE), Behavior::LimitedWrites(1_000));
    (0..40).for_each(|_| rig.turn());
    rig.set_behavior(id, Behavior::Stalled);
    rig.advance_ms(6_000);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
    assert_eq!(Response::take(&mut rig.pipe(id).outgoing, false), None);
}

#[test]
fn drain_within_a_page_lets_it_be_completed() {
    let mut rig = rig(Limits::default());
    let begun = ask(&mut rig, &get(PAGE), Behavior::Stalled);
    rig.run_until_idle();
    rig.engine.drain(rig.now);
    rig.run_until_idle();
    assert!(!rig.engine.is_drained());
    resume_reading(&mut rig, begun);
    rig.run_until_idle();
    let answers = rig.responses(begun);
    assert_eq!((answers.len(), answers[0].status, texts(&answers[0]).len()), (1, 200, 1));
    assert!(rig.engine.is_drained());
    let late = ask(&mut rig, &get(PAGE), Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(
        (rig.responses(late)[0].status, rig.engine.shared.metrics.requests_rejected["drain"]),
        (503, 1)
    );
}

#[test]
fn queued_query_during_a_drain_is_rejected() {
    let mut rig = rig(Limits { work_micros_per_turn: 1, ..Limits::default() });
    let ids = [(); 3].map(|()| ask(&mut rig, &get(PAGE), Behavior::Cooperative));
    rig.turn();
    rig.engine.drain(rig.now);
    rig.run_until_idle();
    let statuses = ids.map(|id| rig.responses(id)[0].status);
    assert_eq!(statuses, [200, 503, 503], "the first had begun");
}

#[test]
fn message_published_before_a_query_is_in_its_response() {
    let mut rig = rig(Limits { work_micros_per_turn: 1, ..Limits::default() });
    let others: Vec<SlotId> = (0..20).map(|_| ask(&mut rig, &get(PAGE), Behavior::Cooperative)).collect();
    let id = ask(&mut rig, &(publish("a", "x") + &get("/v1/channels/a/history")), Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(texts(&rig.responses(id)[1]), ["x"]);
    assert!(others.iter().all(|&id| rig.responses(id)[0].status == 200));
}

#[test]
fn each_connection_holds_one_slice_of_its_page() {
    let mut rig = rig(Limits { slow_timeout_ms: 1_000_000, ..Limits::default() });
    let ids: Vec<SlotId> = (0..100).map(|_| ask(&mut rig, &get(PAGE), Behavior::Stalled)).collect();
    rig.run_until_idle();
    let pending: usize = rig.engine.slots.iter().map(|(_, slot)| slot.outbox.bytes()).sum();
    assert!(pending < 100 * 17_500, "{pending}");
    for id in ids {
        resume_reading(&mut rig, id);
        rig.run_until_idle();
        assert_eq!(texts(&rig.responses(id)[0]).len(), 1);
    }
}

#[test]
fn flood_of_listings_is_spread_over_turns_and_broadcasts_go_out_between() {
    let mut rig = rig(Limits::default());
    publish_on_channels(&mut rig, 1_200);
    let (live, sender) = (rig.join("/ws/b"), rig.join("/ws/b?echo=0"));
    let ids: Vec<SlotId> =
        (0..50).map(|_| ask(&mut rig, &get("/v1/channels"), Behavior::Cooperative)).collect();
    let (mut turns, mut heard) = (0, 0);
    let mut before = 0;
    while rig.engine.slots.has_work() {
        rig.send_text(sender, "news");
        rig.turn();
        turns += 1;
        heard += rig.texts(live).len();
        let sent: usize = ids.iter().map(|&id| rig.pipe(id).outgoing.len()).sum();
        // A slice of 16 KiB is estimated at 28 us, and the budget may end within one.
        assert!(sent - before <= 40 * 17_500, "{} bytes in turn {turns}", sent - before);
        before = sent;
        if ids.iter().all(|&id| rig.pipe(id).outgoing.ends_with(b"0\r\n\r\n")) {
            break;
        }
        assert!(turns < 1_000, "it goes on");
    }
    assert!(turns > 8, "{turns}");
    assert_eq!(heard, turns, "each turn delivers the messages published in it");
    for id in ids {
        let listing = rig.responses(id)[0].json();
        assert_eq!(listing["channels"].as_array().unwrap().len(), 1_000);
        assert_eq!(listing["next"], "channel-00997", "after `b` and `big`");
    }
}

#[test]
fn queries_take_turns_and_a_short_one_does_not_wait_for_long_ones() {
    let mut rig = rig(Limits { work_micros_per_turn: 100, ..Limits::default() });
    let long: Vec<SlotId> = (0..10).map(|_| ask(&mut rig, &get(PAGE), Behavior::Cooperative)).collect();
    rig.turn();
    let short = ask(&mut rig, &get("/v1/channels/big"), Behavior::Cooperative);
    let mut turns = 0;
    while rig.pipe(short).outgoing.is_empty() {
        rig.turn();
        turns += 1;
        assert!(turns < 20, "each of the others gets one slice before");
    }
    assert!(long.iter().all(|&id| !rig.pipe(id).outgoing.ends_with(b"0\r\n\r\n")));
}

#[test]
fn one_address_with_hundreds_of_pages_does_not_hold_up_the_page_of_another() {
    let mut rig = rig(Limits { work_micros_per_turn: 200, ..Limits::default() });
    let ask_from = |rig: &mut Rig, address: &str| {
        let id = rig.connect_from(address, Behavior::Cooperative);
        rig.send(id, get(PAGE).as_bytes());
        id
    };
    let turns_until_done = |rig: &mut Rig, id: SlotId| {
        let turns = (1..2_000).find(|_| {
            rig.turn();
            rig.pipe(id).outgoing.ends_with(b"0\r\n\r\n")
        });
        turns.expect("the page ends")
    };
    let alone = ask_from(&mut rig, "192.0.2.1");
    let alone = turns_until_done(&mut rig, alone);
    let flood: Vec<SlotId> =
        (0..500).map(|number| ask_from(&mut rig, &format!("2001:db8::{number}"))).collect();
    (0..5).for_each(|_| rig.turn());
    let beside = ask_from(&mut rig, "192.0.2.1");
    let beside = turns_until_done(&mut rig, beside);
    assert!(alone > 20 && beside <= alone + 2, "{alone} turns alone, {beside} beside a flood");
    assert!(flood.iter().all(|&id| !rig.pipe(id).outgoing.ends_with(b"0\r\n\r\n")), "the flood goes on");
}

#[test]
fn metrics_requested_in_one_turn_are_rendered_once() {
    let mut rig = rig(Limits::default());
    let ids: Vec<SlotId> = (0..20).map(|_| ask(&mut rig, &get("/metrics"), Behavior::Cooperative)).collect();
    rig.turn();
    let bodies: Vec<String> = ids.iter().map(|&id| rig.responses(id).remove(0).body).collect();
    // Responses that are queued meanwhile would show in oyez_pending_bytes.
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    rig.send(ids[0], publish("a", "x").as_bytes());
    rig.send(ids[1], get("/metrics").as_bytes());
    rig.turn();
    let fresh = rig.responses(ids[1]).remove(0).body;
    assert!(fresh.contains("oyez_messages_published_total{source=\"http\"} 2\n"), "{fresh}");
}

#[test]
fn pages_of_a_large_message_that_are_not_read_take_little_memory() {
    let server = Server::start(&["--slow-timeout-ms=120000"]);
    let mut publisher = Client::new(server.connect());
    let body = "\u{1}".repeat((1 << 20) - 100);
    assert_eq!(publisher.ask(post("/v1/publish/big", "", &body)).status, 200);
    let before = server.resident_bytes();
    let clients: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = Client::new(server.connect());
            client.limit_receive_buffer();
            client.send(get(PAGE).as_bytes());
            client
        })
        .collect();
    // Each has begun: the first byte of its response has arrived.
    for client in &clients {
        client.stream.peek(&mut [0]).unwrap();
    }
    let growth = server.resident_bytes().saturating_sub(before);
    // 200 slices of 16 KiB are 3 MiB; 200 pages 1.2 GiB.
    assert!(growth < 32 << 20, "{growth} bytes");
    for mut client in clients.into_iter().step_by(100) {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut bytes = std::mem::take(&mut client.received);
        let mut buffer = vec![0; 1 << 20];
        while !bytes.ends_with(b"}\n\r\n0\r\n\r\n") {
            let count = client.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "{} bytes", bytes.len());
            bytes.extend_from_slice(&buffer[..count]);
        }
        assert!(bytes.len() > 6 * body.len());
    }
}
