//! Reads depend on writes: a client with pending responses is not read until it has received them.
//!
//! In memory, with pipes that accept no or few bytes: the bytes that the engine has read can be counted, and tests
//! advance the time. One test runs the attack that the rule prevents against the real server.

use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::SlotId;
use oyez::net::outbox::PIECE_BYTES;

use crate::support::client::Client;
use crate::support::frames::{self, CLOSE, PING, PONG, TEXT, upgrade_v1};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig};

fn join(rig: &mut Rig, path: &str) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1(path).as_bytes());
    rig.run_until_idle();
    rig.pipe(id).outgoing.clear();
    id
}

fn publish_command(channel: &str, text: &str) -> Vec<u8> {
    let command = format!(r#"{{"type":"publish","ch":"{channel}","text":"{text}","ref":1}}"#);
    frames::masked(TEXT, command.as_bytes())
}

/// A client that was answered and did not read the response.
fn paused(rig: &mut Rig) -> SlotId {
    let id = join(rig, "/ws");
    rig.set_behavior(id, Behavior::Stalled);
    rig.send(id, &publish_command("a", "first"));
    rig.run_until_idle();
    assert!(rig.pipe(id).incoming.is_empty(), "it was read before it was answered");
    id
}

#[test]
fn client_with_pending_responses_is_read_again_after_it_read_them() {
    let mut rig = Rig::new(Limits::default());
    let listener = rig.join("/ws/a?echo=0");
    let id = paused(&mut rig);
    let commands = (0..100).map(|n| publish_command("a", &n.to_string())).collect::<Vec<_>>().concat();
    rig.send(id, &commands);
    rig.run_until_idle();
    assert_eq!(rig.pipe(id).incoming.len(), commands.len(), "all of it waits in the kernel");
    assert_eq!(rig.texts(listener), ["first"]);
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.texts(listener), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    let acks = rig.texts(id);
    assert_eq!(acks.len(), 101);
    assert!(acks.iter().all(|ack| ack.starts_with(r#"{"type":"ack","ref":1,"#)), "{acks:?}");
}

#[test]
fn client_with_pending_pongs_is_not_read() {
    let mut rig = Rig::new(Limits::default());
    let id = rig.join("/ws");
    rig.set_behavior(id, Behavior::Stalled);
    for round in 0..50u8 {
        rig.send(id, &frames::masked(PING, &[round]));
        rig.turn();
    }
    let waiting = rig.engine.slots.get(id).unwrap().outbox.bytes();
    assert_eq!(waiting, 3, "one pong");
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let pongs: Vec<_> = rig.frames(id).into_iter().map(|frame| (frame.opcode, frame.payload[0])).collect();
    assert_eq!(pongs, (0..50).map(|round| (PONG, round)).collect::<Vec<_>>(), "each ping has its pong");
}

#[test]
fn subscriber_with_pending_messages_is_read() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let (slow, listener) = (rig.join("/ws"), rig.join("/ws"));
    rig.set_behavior(slow, Behavior::Stalled);
    for n in 0..50 {
        rig.send_text(slow, &n.to_string());
        rig.run_until_idle();
    }
    assert_eq!(rig.texts(listener).len(), 50, "a case for the outbox limit");
}

#[test]
fn responses_of_a_turn_are_one_piece_in_command_order() {
    let mut rig = Rig::new(Limits::default());
    let id = join(&mut rig, "/ws");
    rig.set_behavior(id, Behavior::Stalled);
    let ping = frames::masked(TEXT, br#"{"type":"ping"}"#);
    rig.send(id, &[publish_command("a", "x"), ping.repeat(100), publish_command("a", "y")].concat());
    rig.turn();
    let outbox = &rig.engine.slots.get(id).unwrap().outbox;
    assert_eq!(outbox.cost() - outbox.bytes(), PIECE_BYTES);
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let kinds: Vec<bool> = rig.texts(id).iter().map(|text| text.contains("ack")).collect();
    assert_eq!(kinds, [vec![true], vec![false; 100], vec![true]].concat());
}

#[test]
fn responses_and_messages_keep_their_order() {
    let mut rig = Rig::new(Limits::default());
    let id = join(&mut rig, "/ws/a");
    let subscribe = frames::masked(TEXT, br#"{"type":"subscribe","ch":"b"}"#);
    let unsubscribe = frames::masked(TEXT, br#"{"type":"unsubscribe","ch":"b"}"#);
    let sent = [
        publish_command("a", "1"),
        subscribe,
        publish_command("b", "2"),
        frames::masked(PING, b"p"),
        unsubscribe,
        publish_command("b", "unheard"),
        publish_command("a", "3"),
    ];
    rig.send(id, &sent.concat());
    rig.run_until_idle();
    let got: Vec<String> = rig
        .frames(id)
        .into_iter()
        .map(|frame| match frame.opcode {
            PONG => "pong".to_owned(),
            _ => {
                let value: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
                value["text"].as_str().or(value["type"].as_str()).unwrap().to_owned()
            }
        })
        .collect();
    let expected = ["ack", "subscribed", "ack", "1", "2", "unsubscribed", "ack", "ack", "pong", "3"];
    // A message is fanned out before the next event in the channel's order, at the latest.
    let places = |what: &str| got.iter().position(|one| one == what).unwrap();
    assert_eq!(got.len(), expected.len(), "{got:?}");
    assert!(places("1") < places("2") && places("2") < places("unsubscribed"), "{got:?}");
    assert!(places("subscribed") < places("2") && places("unsubscribed") < places("3"), "{got:?}");
}

/// RFC 6455 5.5.2 asks for a pong as soon as is practical, and 5.4 allows control frames between any others: a pong
/// waits for responses, not for messages.
#[test]
fn pong_follows_responses_to_earlier_commands_and_precedes_messages_of_its_turn() {
    let mut rig = Rig::new(Limits::default());
    let id = join(&mut rig, "/ws/a");
    let (one, two) = (frames::masked(PING, b"one"), frames::masked(PING, b"two"));
    rig.send(id, &[publish_command("a", "x"), one.clone(), publish_command("a", "y"), two.clone()].concat());
    rig.turn();
    let kind = |payload: &[u8]| {
        let text = String::from_utf8_lossy(payload);
        let found = ["\"ack\"", "one", "two", "\"x\"", "\"y\""].into_iter().find(|part| text.contains(part));
        found.unwrap().trim_matches('"').to_owned()
    };
    let got: Vec<String> = rig.frames(id).iter().map(|frame| kind(&frame.payload)).collect();
    assert_eq!(got, ["ack", "ack", "one", "two", "x", "y"]);
    let raw = rig.join("/ws/raw");
    rig.send(raw, &[frames::masked(TEXT, b"x"), one, frames::masked(TEXT, b"y"), two].concat());
    rig.turn();
    let got: Vec<Vec<u8>> = rig.frames(raw).into_iter().map(|frame| frame.payload).collect();
    assert_eq!(got, [&b"one"[..], b"two", b"x", b"y"]);
}

#[test]
fn paused_client_that_sends_data_and_eof_is_served_in_full() {
    let mut rig = Rig::new(Limits::default());
    let listener = rig.join("/ws/a?echo=0");
    let id = paused(&mut rig);
    rig.send(id, &publish_command("a", "last"));
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(rig.is_alive(id));
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.texts(listener), ["first", "last"]);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::EndOfFile), 1);
}

#[test]
fn paused_client_that_resets_is_reaped() {
    let mut rig = Rig::new(Limits::default());
    let id = paused(&mut rig);
    rig.send(id, &publish_command("a", "lost"));
    rig.reset(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Reset), 1);
}

#[test]
fn paused_client_that_closes_gets_its_responses_first() {
    let mut rig = Rig::new(Limits::default());
    let id = paused(&mut rig);
    rig.send(id, &[publish_command("a", "last"), frames::close(1000, "")].concat());
    rig.run_until_idle();
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    let got: Vec<u8> = rig.frames(id).iter().map(|frame| frame.opcode).collect();
    assert_eq!(got, [TEXT, TEXT, CLOSE]);
}

#[test]
fn paused_client_that_reads_nothing_is_slow_and_not_silent() {
    let limits = Limits { ping_interval_ms: 2_000, pong_timeout_ms: 2_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = paused(&mut rig);
    rig.advance_ms(10_000);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

/// The pong follows data that the server does not read, so its deadline is not checked, even if the socket accepted
/// bytes again only in the last write before the check.
#[test]
fn paused_client_that_reads_slowly_is_not_silent() {
    let limits = Limits { ping_interval_ms: 1_000, pong_timeout_ms: 50, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = join(&mut rig, "/ws");
    rig.set_behavior(id, Behavior::Stalled);
    // 53 KiB of answers to the commands that one turn reads.
    rig.send(id, &frames::masked(TEXT, br#"{"type":"ping"}"#).repeat(4_096));
    rig.run_until_idle();
    rig.send(id, &frames::masked(PONG, b""));
    rig.run_until_idle();
    while !rig.engine.slots.has_work() {
        rig.advance_ms(50);
    }
    let mut seconds = 0;
    while rig.engine.slots.get(id).is_some_and(|slot| slot.outbox.bytes() > 6 << 10) {
        rig.set_behavior(id, Behavior::LimitedWrites(6 << 10));
        rig.turn();
        rig.set_behavior(id, Behavior::Stalled);
        rig.advance_ms(1_000);
        seconds += 1;
    }
    assert!(seconds >= 5, "{seconds}");
    rig.set_behavior(id, Behavior::Cooperative);
    rig.run_until_idle();
    assert!(rig.frames(id).iter().all(|frame| frame.opcode != CLOSE), "closed after {seconds} s");
}

/// Empty frames are not commands: each of 6 bytes is answered with an error of more than 100.
#[test]
fn client_with_large_responses_that_reads_all_is_bounded() {
    let mut rig = Rig::new(Limits::default());
    let id = join(&mut rig, "/ws");
    let empty = frames::masked(TEXT, b"").repeat(20_000);
    let mut most = 0;
    for _ in 0..20 {
        rig.send(id, &empty);
        rig.set_behavior(id, Behavior::LimitedWrites(10_000));
        rig.turn();
        most = most.max(rig.engine.slots.get(id).unwrap().outbox.cost());
        rig.pipe(id).outgoing.clear();
    }
    // A turn reads 64 KiB of one slot at most, which are 10,922 of them.
    let answer = rig.engine.slots.get(id).unwrap().outbox.cost();
    assert!(most < 3 << 20, "{most} bytes, now {answer}");
    let server = Server::start(&[]);
    let before = server.resident_bytes();
    let mut client = Client::new(server.connect());
    client.send(upgrade_v1("/ws").as_bytes());
    client.head();
    let mut writer = Client::new(client.stream.try_clone().unwrap());
    let flood = std::thread::spawn(move || {
        let empty = frames::masked(TEXT, b"").repeat(10_000);
        (0..20).for_each(|_| writer.send(&empty));
    });
    let mut errors = 0;
    while errors < 200_000 {
        errors += u32::from(client.frame().payload.starts_with(br#"{"type":"error""#));
    }
    flood.join().unwrap();
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes");
    let mut silent = Client::new(server.connect());
    silent.send(upgrade_v1("/ws").as_bytes());
    silent.head();
    silent.limit_receive_buffer();
    silent.stream.set_nonblocking(true).unwrap();
    let empty = frames::masked(TEXT, b"").repeat(10_000);
    // Sends until the socket has blocked for long. The amount that the kernel buffers depends on the machine, and is
    // less than 240 MB.
    let (mut sent, mut blocked) = (0, 0);
    while blocked < 50 && sent < 240_000_000 {
        // A frame has six bytes.
        match std::io::Write::write(&mut silent.stream, &empty[sent % 6..]) {
            Ok(count) => (sent, blocked) = (sent + count, 0),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => blocked += 1,
            Err(error) => panic!("{error}"),
        }
        client.send_text(r#"{"type":"ping"}"#);
        client.text();
    }
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(blocked == 50 && grown < 16 << 20, "{grown} bytes after {sent} bytes of one that reads nothing");
}
