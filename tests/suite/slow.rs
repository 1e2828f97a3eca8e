//! Slow consumers: subscribers that do not read, or read too slowly, are closed with 4102 or skip messages, and all
//! others are served. In memory, where tests choose the bytes that a peer reads and advance the time; on real sockets
//! for the kernel's buffers.

use oyez::access::authenticator::Authenticator;
use oyez::close::Reason;
use oyez::config::{HistoryLimits, Limits, OnSlow};
use oyez::ids::SlotId;
use serde_json::json;

#[cfg(feature = "jwt")]
use crate::support::auth_server::{bearer, claims, sign, verifier};
use crate::support::client::Client;
use crate::support::frames::{self, CLOSE, TEXT, upgrade_v1, upgrade_with};
use crate::support::http::{get, publish};
use crate::support::process::{Server, counter};
use crate::support::rig::{Behavior, Rig};

fn limits() -> Limits {
    Limits { outbox_bytes_max: 70_000, slow_timeout_ms: 5_000, publish_pause_ms: 0, ..Limits::default() }
}

#[test]
fn outbox_over_the_limit_is_closed_with_4102() {
    let mut rig = Rig::new(limits());
    let (slow, sender, subscriber) = (rig.join("/ws"), rig.join("/ws?echo=0"), rig.join("/ws"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    for round in 0..8 {
        rig.send_text(sender, &format!("{round}{}", "x".repeat(10_000)));
        rig.run_until_idle();
    }
    assert_eq!(rig.frames(subscriber).len(), 8, "the others are served");
    // The started frame is finished, the rest is dropped, and the close frame is sent.
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    let got = rig.frames(slow);
    assert_eq!(got.last().unwrap().close_code(), (4102, "slow".into()));
    assert_eq!(got.len(), 1, "nothing had been begun");
}

#[test]
fn started_frame_is_finished_before_the_close_frame() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Random(crate::support::rig::Rng::new(3));
    rig.send_text(sender, &"y".repeat(30_000));
    while rig.pipe(slow).outgoing.is_empty() {
        rig.turn();
    }
    rig.pipe(slow).behavior = Behavior::Stalled;
    for _ in 0..8 {
        rig.send_text(sender, &"x".repeat(10_000));
        rig.run_until_idle();
    }
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    let got = rig.frames(slow);
    assert_eq!((got.len(), got[0].payload.len()), (2, 30_000));
    assert_eq!(got[1].close_code(), (4102, "slow".into()));
}

#[test]
fn subscriber_without_progress_is_closed_with_4102() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    rig.send_text(sender, "x");
    rig.run_until_idle();
    rig.advance_ms(4_900);
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.texts(slow), ["x"], "in time");
    rig.pipe(slow).behavior = Behavior::Stalled;
    rig.send_text(sender, "y");
    rig.advance_ms(5_400);
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.frames(slow).last().unwrap().close_code(), (4102, "slow".into()));
}

#[test]
fn slow_peer_that_never_reads_is_reaped() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    rig.send_text(sender, "x");
    rig.advance_ms(5_500);
    assert!(rig.is_alive(slow));
    rig.advance_ms(2_300);
    assert!(!rig.is_alive(slow));
}

#[test]
fn skipping_subscriber_stays_and_its_missed_messages_are_counted() {
    let mut rig = Rig::new(Limits { on_slow: OnSlow::Skip, ping_interval_ms: 0, ..limits() });
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    let numbered = |number: usize| format!("{number:02}{}", "x".repeat(9_998));
    for number in 0..10 {
        rig.send_text(sender, &numbered(number));
        rig.run_until_idle();
    }
    assert_eq!(rig.engine.shared.metrics.messages_skipped, 4, "6 of 10,004 bytes are all that fit");
    // Time without progress has the same end.
    rig.advance_ms(5_400);
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    let got = rig.texts(slow);
    assert_eq!(got.len(), 6);
    assert_eq!((&got[5][..2], rig.is_alive(slow)), ("05", true));
    rig.send_text(sender, "caught up");
    rig.run_until_idle();
    assert_eq!(rig.texts(slow), ["caught up"]);
}

#[test]
fn slot_has_one_write_per_turn() {
    let mut rig = Rig::new(Limits::default());
    let (subscriber, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    let before = rig.pipe(subscriber).writes;
    for number in 0..100 {
        rig.send_text(sender, &number.to_string());
    }
    rig.turn();
    assert_eq!(rig.texts(subscriber).len(), 100);
    assert_eq!(rig.pipe(subscriber).writes - before, 1);
    // A socket that is full is not asked again until it says so.
    rig.pipe(subscriber).behavior = Behavior::Stalled;
    rig.send_text(sender, "first");
    rig.turn();
    let before = rig.pipe(subscriber).writes;
    for number in 0..100 {
        rig.send_text(sender, &number.to_string());
        rig.turn();
    }
    assert_eq!(rig.pipe(subscriber).writes - before, 0);
}

/// They publish more than is stored before it is fanned out.
#[test]
fn slot_has_one_write_when_many_publish_in_one_turn() {
    let mut rig = Rig::new(Limits::default());
    let subscribers: Vec<_> = (0..50).map(|_| rig.join("/ws")).collect();
    let before: Vec<_> = subscribers.iter().map(|&id| rig.pipe(id).writes).collect();
    let mut said = Vec::new();
    for (place, &id) in subscribers.iter().enumerate() {
        for number in 0..20 {
            said.push(format!("{place}: {number}"));
            rig.send_text(id, &said[said.len() - 1]);
        }
    }
    rig.turn();
    for (&id, before) in subscribers.iter().zip(before) {
        assert_eq!(rig.texts(id), said);
        assert_eq!(rig.pipe(id).writes - before, 1);
    }
}

/// A subscriber that does not read, and for which the kernel holds little.
fn join_slow(server: &Server) -> Client {
    let slow = server.join("/ws");
    slow.limit_receive_buffer();
    slow
}

/// Messages of 60 KB that are more than the kernel's buffers and an outbox of 512 KiB hold: buffers of twice the
/// 128 KiB that were asked for, and over TLS those of a relay.
const OVERRUN: usize = 80;

/// Publishes until the buffers of a subscriber that does not read are full, and well beyond; one that reads gets
/// everything.
fn overrun(server: &Server) -> (Client, Client) {
    let (mut sender, mut subscriber) = (server.join("/ws?echo=0"), server.join("/ws"));
    let payload = "x".repeat(60_000);
    for round in 0..OVERRUN {
        sender.send_text(&format!("{round} {payload}"));
        assert!(subscriber.text().starts_with(&format!("{round} ")));
    }
    (sender, subscriber)
}

#[test]
fn stalled_subscriber_on_a_socket_does_not_stop_others() {
    let server = Server::start(&[
        "--outbox-bytes-max=512KiB",
        "--body-bytes-max=64KiB",
        // It reads its messages late, after the others are served.
        "--close-timeout-ms=600000",
        "--drain-seconds=600",
    ]);
    let mut slow = join_slow(&server);
    let (sender, subscriber) = overrun(&server);
    let (mut number, mut close) = (0, None);
    while let Some(frame) = slow.frame_or_end() {
        if frame.opcode == CLOSE {
            close = Some(frame.close_code());
            slow.send(&frames::close(4102, ""));
            continue;
        }
        assert!(frame.payload.starts_with(format!("{number} ").as_bytes()), "in order and without a hole");
        number += 1;
    }
    assert_eq!(close, Some((4102, "slow".into())), "after {number} messages");
    assert!(number < OVERRUN);
    drop((slow, sender, subscriber));
    assert_eq!(counter(&server.stop(), "closed_slow"), 1);
}

#[test]
fn stalled_subscribers_by_the_hundred_share_pending_frames() {
    let server =
        Server::start(&["--outbox-bytes-max=512KiB", "--body-bytes-max=64KiB", "--close-timeout-ms=500"]);
    let stalled: Vec<_> = (0..300).map(|_| join_slow(&server)).collect();
    let (mut sender, mut subscriber) = (server.join("/ws?echo=0"), server.join("/ws"));
    let payload = "x".repeat(60_000);
    let mut peak = 0;
    for round in 0..OVERRUN {
        sender.send_text(&format!("{round} {payload}"));
        assert!(subscriber.text().starts_with(&format!("{round} ")));
        peak = peak.max(server.resident_bytes());
    }
    // Separate copies would take 150 MiB; a frame that is queued 300 times is one frame.
    assert!(peak < 32 << 20, "{peak} bytes");
    drop((stalled, sender, subscriber));
    assert_eq!(counter(&server.stop(), "closed_slow"), 300);
}

#[test]
fn skipping_subscriber_on_a_socket_gets_the_rest() {
    let server = Server::start(&["--outbox-bytes-max=512KiB", "--body-bytes-max=64KiB", "--on-slow=skip"]);
    let mut slow = join_slow(&server);
    let (mut sender, subscriber) = overrun(&server);
    let mut read = 0;
    loop {
        // Skipped like all others, until the queued bytes have been read.
        sender.send_text("caught up");
        if slow.text() == "caught up" {
            break;
        }
        read += 1;
    }
    assert!((1..OVERRUN).contains(&read), "{read}");
    drop((sender, subscriber, slow));
    assert!(counter(&server.stop(), "skipped") > 0);
}

#[test]
fn skipping_subscriber_has_one_gap() {
    let mut rig = Rig::new(Limits { on_slow: OnSlow::Skip, ping_interval_ms: 0, ..limits() });
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    for number in 0..10 {
        rig.send_text(sender, &format!("{number} large {}", "x".repeat(30_000)));
        rig.run_until_idle();
        rig.send_text(sender, &format!("{number} small"));
        rig.run_until_idle();
    }
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    let got: Vec<String> = rig.texts(slow).iter().map(|text| text[..7].to_owned()).collect();
    assert_eq!(got, ["0 large", "0 small", "1 large", "1 small"]);
    assert_eq!(rig.engine.shared.metrics.messages_skipped, 16);
}

#[test]
fn raw_subscriber_overtaken_during_replay_is_closed_4102() {
    let history = HistoryLimits { messages_max: 20, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, history, ..Limits::default() });
    let sender = rig.join("/ws?echo=0");
    let publish = |rig: &mut Rig, count: usize| {
        for _ in 0..count {
            rig.send_text(sender, &"x".repeat(10_000));
        }
        rig.run_until_idle();
    };
    publish(&mut rig, 20);
    let slow = rig.connect(Behavior::Stalled);
    rig.send(slow, frames::upgrade("/ws?since=earliest").as_bytes());
    rig.turn();
    publish(&mut rig, 10);
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.engine.slots.mark_writable(slow);
    rig.run_until_idle();
    rig.skip_head(slow);
    let got = rig.frames(slow);
    assert_eq!(got.last().unwrap().close_code(), (4102, "slow".into()), "of {}", got.len());
    assert_eq!(got.len(), 7, "six fit into a slice");
}

#[test]
fn subscriber_too_slow_for_the_batches_of_a_turn_leaves_all_channels() {
    let history = HistoryLimits { messages_max: 0, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { history, ..limits() });
    let stalled = rig.connect(Behavior::Cooperative);
    rig.send(stalled, upgrade_v1("/ws/a").as_bytes());
    rig.run_until_idle();
    rig.send_text(stalled, r#"{"type":"subscribe","ch":"b"}"#);
    rig.run_until_idle();
    rig.pipe(stalled).behavior = Behavior::Stalled;
    let sender = rig.connect(Behavior::Cooperative);
    rig.send(sender, publish("a", &"x".repeat(60_000)).as_bytes());
    rig.run_until_idle();
    let both = publish("a", &"x".repeat(20_000)) + &publish("b", "y");
    rig.send(sender, both.as_bytes());
    rig.run_until_idle();
    let answers = rig.responses(sender);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200; 3]);
    assert_eq!(rig.engine.hub.channels(), 0, "it was the only subscriber of both");
    rig.advance_ms(10_000);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

#[cfg(feature = "jwt")]
#[test]
fn subscriber_too_slow_before_its_rights_end_leaves() {
    let mut rig = Rig::new(Limits { outbox_bytes_max: 50_000, ..limits() });
    rig.engine.shared.authenticator = Authenticator { verifier: Some(verifier()), ..Authenticator::open(10) };
    let token = |rig: &Rig, channels: &[&str]| sign(&claims("alice", channels, channels, rig.unix_now()));
    let lines = format!("Sec-WebSocket-Protocol: oyez.v1\r\n{}", bearer(&token(&rig, &["c", "d"])));
    let (sender, stalled) = (rig.connect(Behavior::Cooperative), rig.connect(Behavior::Cooperative));
    for (id, path) in [(sender, "/ws/d"), (stalled, "/ws/c")] {
        rig.send(id, upgrade_with(path, &lines).as_bytes());
        rig.run_until_idle();
    }
    for _ in 0..10 {
        rig.send_text(sender, &json!({"type": "publish", "ch": "d", "text": "x".repeat(10_000)}).to_string());
        rig.run_until_idle();
    }
    rig.pipe(stalled).behavior = Behavior::Stalled;
    rig.send_text(stalled, r#"{"type":"subscribe","ch":"d","since":"earliest"}"#);
    rig.run_until_idle();
    let auth = json!({"type": "auth", "token": token(&rig, &["e"])});
    rig.send_text(stalled, &json!({"type": "publish", "ch": "c", "text": "x".repeat(60_000)}).to_string());
    rig.send_text(stalled, &auth.to_string());
    rig.run_until_idle();
    rig.advance_ms(10_000);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

#[test]
fn small_frames_count_with_their_overhead() {
    let mut rig = Rig::new(limits());
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    for _ in 0..1_100 {
        rig.send_text(sender, "");
        rig.turn();
    }
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.frames(slow).last().unwrap().close_code(), (4102, "slow".into()));
}

#[test]
fn bytes_left_by_a_flush_are_pending_work() {
    let mut rig = Rig::new(Limits::default());
    let (id, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(id).behavior = Behavior::Stalled;
    for n in 0..100 {
        rig.send_text(sender, &format!("{n:>5000}"));
        rig.turn();
    }
    rig.set_behavior(id, Behavior::Cooperative);
    rig.turn();
    let first = rig.texts(id).len();
    assert!((52..100).contains(&first), "256 KiB are 52 of these: {first}");
    assert!(rig.engine.slots.has_work(), "the rest waits, and no event will come");
    rig.run_until_idle();
    assert_eq!(first + rig.texts(id).len(), 100);
}

#[test]
fn subscriber_that_reads_while_the_server_is_stopped_is_not_slow() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.pipe(slow).behavior = Behavior::Stalled;
    rig.send_text(sender, "x");
    rig.run_until_idle();
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.now = rig.now.after(6_000);
    rig.send_text(sender, "y");
    rig.run_until_idle();
    assert_eq!(rig.frames(slow).iter().map(|f| f.opcode).collect::<Vec<_>>(), [TEXT, TEXT]);
}

#[test]
fn close_frame_among_pipelined_commands_is_last() {
    let limits = Limits { outbox_bytes_max: 20_000, ping_interval_ms: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1("/ws/a").as_bytes());
    rig.run_until_idle();
    rig.send_text(id, r#"{"type":"subscribe","ch":"b"}"#);
    rig.run_until_idle();
    rig.pipe(id).outgoing.clear();
    rig.set_behavior(id, Behavior::Stalled);
    // Its outbox overflows in the turn in which all of this is read.
    let say = |text: &str| frames::masked(TEXT, text.as_bytes());
    let publish = |channel: &str| {
        say(&json!({"type": "publish", "ch": channel, "text": "x".repeat(15_000)}).to_string())
    };
    let messages = [publish("a"), publish("b"), publish("a")].concat();
    let subscribe = say(r#"{"type":"subscribe","ch":"c"}"#);
    rig.send(id, &[messages, subscribe, say(r#"{"type":"ping"}"#).repeat(10)].concat());
    while !rig.pipe(id).incoming.is_empty() {
        rig.turn();
    }
    assert_eq!(rig.engine.hub.subscriptions(), 0);
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let got = rig.frames(id);
    assert_eq!(got.last().unwrap().close_code(), (4102, "slow".into()), "of {}", got.len());
}

/// A trickle: it reads a little in each second, never pausing as long as the timeout.
fn sip_for_20_seconds(rig: &mut Rig, id: SlotId, bytes_per_second: usize) {
    rig.set_behavior(id, Behavior::Stalled);
    for _ in 0..20 {
        rig.advance_ms(1_000);
        if !rig.is_alive(id) {
            return;
        }
        let before = rig.pipe(id).outgoing.len();
        rig.set_behavior(id, Behavior::LimitedWrites(bytes_per_second));
        rig.turn();
        rig.set_behavior(id, Behavior::Stalled);
        assert!(rig.pipe(id).outgoing.len() <= before + bytes_per_second);
    }
}

#[test]
fn subscriber_below_the_minimum_rate_is_closed_4102() {
    let limits = Limits { ping_interval_ms: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (slow, steady, sender) = (rig.join("/ws"), rig.join("/ws"), rig.join("/ws?echo=0"));
    for id in [slow, steady] {
        rig.set_behavior(id, Behavior::Stalled);
    }
    (0..20).for_each(|_| rig.send_text(sender, &"x".repeat(60_000)));
    rig.run_until_idle();
    sip_for_20_seconds(&mut rig, steady, 4 << 10);
    assert!(rig.is_alive(steady), "at the pace it may take for ever");
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1, "the other took nothing");
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, close_timeout_ms: 500, ..Limits::default() });
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.set_behavior(slow, Behavior::Stalled);
    (0..20).for_each(|_| rig.send_text(sender, &"x".repeat(60_000)));
    rig.run_until_idle();
    sip_for_20_seconds(&mut rig, slow, 1 << 10);
    assert!(!rig.is_alive(slow), "a quarter of the pace");
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

#[test]
fn event_stream_and_http_client_below_the_minimum_rate_are_closed() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, close_timeout_ms: 500, ..Limits::default() });
    let (stream, sender) = (rig.connect(Behavior::Cooperative), rig.join("/ws?echo=0"));
    rig.send(stream, get("/sse/main").as_bytes());
    rig.run_until_idle();
    rig.set_behavior(stream, Behavior::Stalled);
    (0..20).for_each(|_| rig.send_text(sender, &"x".repeat(60_000)));
    rig.run_until_idle();
    sip_for_20_seconds(&mut rig, stream, 1 << 10);
    assert!(!rig.is_alive(stream));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
    let asks = rig.connect(Behavior::Cooperative);
    rig.set_behavior(asks, Behavior::Stalled);
    rig.send(asks, get("/v1/channels/main/history").as_bytes());
    rig.run_until_idle();
    sip_for_20_seconds(&mut rig, asks, 1 << 10);
    assert!(!rig.is_alive(asks));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 2);
}

#[test]
fn trickle_without_minimum_rate_is_progress() {
    let limits = Limits { ping_interval_ms: 0, slow_bytes_per_second: 0, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (slow, sender) = (rig.join("/ws"), rig.join("/ws?echo=0"));
    rig.set_behavior(slow, Behavior::Stalled);
    (0..20).for_each(|_| rig.send_text(sender, &"x".repeat(60_000)));
    rig.run_until_idle();
    sip_for_20_seconds(&mut rig, slow, 1);
    assert!(rig.is_alive(slow));
}

/// A turn may queue more than an outbox holds: a subscriber that reads is written to before its limit is checked.
#[test]
fn subscriber_of_two_channels_with_a_large_turn_is_not_slow() {
    let mut rig = Rig::new(Limits { outbox_bytes_max: 50_000, ..limits() });
    let reader = rig.connect(Behavior::Cooperative);
    rig.send(reader, upgrade_v1("/ws/a").as_bytes());
    rig.run_until_idle();
    rig.send_text(reader, r#"{"type":"subscribe","ch":"b"}"#);
    rig.run_until_idle();
    rig.pipe(reader).outgoing.clear();
    let sender = rig.connect(Behavior::Cooperative);
    let requests = ["a", "b", "a", "b"].map(|channel| publish(channel, &"x".repeat(40_000)));
    rig.send(sender, requests.concat().as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.texts(reader).len(), 4);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 0);
}

/// Pauses of publishers off and on.
const PUBLISH_PAUSES_MS: [u32; 2] = [0, 500];

/// Publishes ten messages of 10 KB, more than a stalled subscriber's outbox takes, however long publishers are paused.
fn publish_ten(rig: &mut Rig, sender: SlotId) {
    for number in 0..10 {
        rig.send_text(sender, &format!("{number}{}", "x".repeat(9_999)));
        rig.run_until_idle();
        rig.advance_ms(1_000);
    }
}

#[test]
fn skipping_raw_client_that_gets_responses_stays() {
    for publish_pause_ms in PUBLISH_PAUSES_MS {
        let limits = Limits { on_slow: OnSlow::Skip, ping_interval_ms: 0, publish_pause_ms, ..limits() };
        let mut rig = Rig::new(limits);
        let (slow, sender, other) = (rig.join("/ws"), rig.join("/ws?echo=0"), rig.join("/ws"));
        rig.pipe(slow).behavior = Behavior::Stalled;
        publish_ten(&mut rig, sender);
        assert!(rig.engine.shared.metrics.messages_skipped > 0, "its outbox is shut");
        rig.send(slow, &frames::masked(frames::PING, b"still there?"));
        rig.run_until_idle();
        rig.send_text(slow, "said meanwhile");
        rig.advance_ms(6_000);
        rig.set_behavior(slow, Behavior::Cooperative);
        rig.run_until_idle();
        let received = rig.frames(slow);
        assert!(received.iter().all(|frame| matches!(frame.opcode, TEXT | frames::PONG)), "{received:?}");
        assert_eq!(received.iter().filter(|frame| frame.opcode == frames::PONG).count(), 1);
        assert_eq!(received.last().unwrap().payload, b"said meanwhile", "read after the pong was taken");
        assert_eq!(rig.texts(other).last().unwrap(), "said meanwhile");
        rig.send_text(slow, "said afterwards");
        rig.run_until_idle();
        assert_eq!(rig.texts(other), ["said afterwards"]);
        assert_eq!(rig.texts(slow), ["said afterwards"], "it catches up no longer");
        assert!(rig.is_alive(slow) && rig.engine.shared.metrics.closed(Reason::Slow) == 0);
    }
}

#[test]
fn v1_client_answered_while_catching_up_after_skip_misses_nothing() {
    for publish_pause_ms in PUBLISH_PAUSES_MS {
        let limits = Limits { on_slow: OnSlow::Skip, ping_interval_ms: 0, publish_pause_ms, ..limits() };
        let mut rig = Rig::new(limits);
        let sender = rig.join("/ws/a?echo=0");
        let slow = rig.connect(Behavior::Cooperative);
        rig.send(slow, upgrade_v1("/ws/a").as_bytes());
        rig.run_until_idle();
        rig.pipe(slow).outgoing.clear();
        rig.pipe(slow).behavior = Behavior::Stalled;
        publish_ten(&mut rig, sender);
        // It reads its queue in small steps, and sends a request after each of them.
        let requests = [
            json!({"type": "ping"}),
            json!({"type": "publish", "ch": "b", "text": "x"}),
            json!({"type": "subscribe", "ch": "c"}),
            json!({"type": "unsubscribe", "ch": "none"}),
            json!({"type": "no such type"}),
            json!({"type": "publish", "ch": "a", "text": "last"}),
        ];
        for request in &requests {
            rig.send_text(slow, &request.to_string());
            rig.send(slow, &frames::masked(frames::PING, b""));
            rig.set_behavior(slow, Behavior::LimitedWrites(3_000));
            rig.turn();
            rig.turn();
            rig.pipe(slow).behavior = Behavior::Stalled;
            rig.run_until_idle();
            rig.advance_ms(1_000);
        }
        rig.set_behavior(slow, Behavior::Cooperative);
        rig.run_until_idle();
        let received = rig.frames(slow);
        assert!(received.iter().all(|frame| matches!(frame.opcode, TEXT | frames::PONG)), "{received:?}");
        assert_eq!(received.iter().filter(|frame| frame.opcode == frames::PONG).count(), requests.len());
        let texts = received.iter().filter(|frame| frame.opcode == TEXT);
        let texts: Vec<serde_json::Value> =
            texts.map(|frame| serde_json::from_slice(&frame.payload).unwrap()).collect();
        let count = |kind: &str| texts.iter().filter(|text| text["type"] == kind).count();
        let answers = [count("pong"), count("ack"), count("subscribed"), count("error"), count("gap")];
        assert_eq!(answers, [1, 2, 1, 2, 0], "{texts:?}");
        let messages = texts.iter().filter(|text| text["text"].is_string());
        let beginnings: Vec<&str> = messages.map(|text| &text["text"].as_str().unwrap()[..1]).collect();
        assert_eq!(beginnings.concat(), "0123456789l", "each once and in order");
        assert!(rig.is_alive(slow) && rig.engine.shared.metrics.closed(Reason::Slow) == 0);
    }
}

#[test]
fn skipping_event_stream_that_is_due_a_comment_stays() {
    for publish_pause_ms in PUBLISH_PAUSES_MS {
        let limits = Limits { on_slow: OnSlow::Skip, ping_interval_ms: 2_000, publish_pause_ms, ..limits() };
        let mut rig = Rig::new(limits);
        let slow = rig.connect(Behavior::Cooperative);
        rig.send(slow, get("/sse/a").as_bytes());
        rig.run_until_idle();
        rig.pipe(slow).outgoing.clear();
        rig.pipe(slow).behavior = Behavior::Stalled;
        let publisher = rig.connect(Behavior::Cooperative);
        for number in 0..10 {
            rig.send(publisher, publish("a", &format!("{number}{}", "x".repeat(9_999))).as_bytes());
            rig.run_until_idle();
            rig.advance_ms(1_000);
        }
        rig.set_behavior(slow, Behavior::Cooperative);
        rig.run_until_idle();
        let stream = String::from_utf8(std::mem::take(&mut rig.pipe(slow).outgoing)).unwrap();
        let messages: String = (0..10)
            .filter(|number| stream.contains(&format!("{number}xxxx")))
            .map(|number| number.to_string())
            .collect();
        assert_eq!(messages, "0123456789");
        assert!(stream.matches("\n:").count() >= 3, "comments were queued while it was shut");
        assert!(rig.is_alive(slow) && rig.engine.shared.metrics.closed(Reason::Slow) == 0);
    }
}
