//! Compressed messages from clients (permessage-deflate, RFC 7692). Payloads are compressed by a separate compressor
//! and sent to the decoder, or to an engine in memory, in pieces; the messages must be those that were compressed.

use std::io::Write;

use oyez::close::Reason;
use oyez::config::{DeflateMode, DeflateSettings, Limits, OnSlow};
use oyez::ids::SlotId;
use oyez::session::decoder::DecodeOutcome;
use oyez::session::decoding::Decoding;
use oyez::session::frame_scanner::{FrameScanner, ScanStop};
use oyez::session::unfinished::Unfinished;
use oyez::session::websocket;
use oyez::time::LoopTime;
use oyez::wire::Kind;
use oyez::wire::inflate::Inflater;
use proptest::prelude::*;

use crate::support::deflate::{BROWSER, FINAL, RSV1, compressed, deflate, upgrade};
use crate::support::frames::{self, BINARY, CONTINUATION, PING, TEXT};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig};

fn join(rig: &mut Rig, path: &str) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade(path, BROWSER).as_bytes());
    rig.turn();
    let head = String::from_utf8(std::mem::take(&mut rig.pipe(id).outgoing)).unwrap();
    assert!(
        head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover"),
        "{head}"
    );
    id
}

/// Messages, replies, and the end of the conversation.
type Outcome = (Vec<(Kind, Vec<u8>)>, Vec<u8>, DecodeOutcome);

/// Decodes a session that arrives in these pieces, with a cost after which decoding stops.
fn receive(pieces: &[&[u8]], inflate_cost_max: usize) -> Outcome {
    let limits = Limits { message_bytes_max: 1 << 17, ..Limits::default() };
    let (mut messages, mut replies, mut unfinished) = (Vec::new(), Vec::new(), None);
    let mut inflater = Inflater::default();
    for mut piece in pieces.iter().copied() {
        let is_inflating =
            |unfinished: &Option<Box<Unfinished>>| unfinished.as_ref().is_some_and(|one| one.is_inflating());
        while !piece.is_empty() || is_inflating(&unfinished) {
            let (before, was_inflating) = (piece.len(), is_inflating(&unfinished));
            let mut decoding = Decoding {
                inflater: Some(&mut inflater),
                inflate_cost_max,
                // Both limits leave input to the next call.
                frames_max: (inflate_cost_max / 64).max(1),
                ..Decoding::plain(&limits, LoopTime::from_millis(0))
            };
            let outcome = websocket::receive(
                &mut unfinished,
                &mut piece,
                &mut decoding,
                &mut replies,
                |kind, payload| {
                    messages.push((kind, payload.to_vec()));
                },
            );
            if outcome != DecodeOutcome::Open {
                return (messages, replies, outcome);
            }
            assert!(piece.len() < before || was_inflating, "each call makes progress");
        }
    }
    assert!(unfinished.is_none(), "no memory is held at a boundary");
    (messages, replies, DecodeOutcome::Open)
}

fn end_of(pieces: &[&[u8]]) -> &'static str {
    match receive(pieces, usize::MAX).2 {
        DecodeOutcome::Failed(reason) => reason.as_str(),
        received => panic!("{received:?}"),
    }
}

/// A message as its client sends it: its kind, its text, its level if it is compressed, the ends of its fragments, and
/// whether pings are sent between them.
type Sent = (bool, String, Option<i32>, Vec<prop::sample::Index>, bool);

fn sent() -> impl Strategy<Value = Sent> {
    // The last is decompressed in several slices.
    let long = (0..60_000usize).prop_map(|length| "grüße 𝄞 ".chars().cycle().take(length).collect());
    let text = prop_oneof![4 => "[a-zäß€𝄞 ]{0,40}", 4 => "(price|volume|[0-9]{1,3}){0,200}", 1 => long];
    let level = prop::option::weighted(0.7, prop_oneof![Just(0), Just(1), Just(6), Just(9)]);
    (any::<bool>(), text, level, prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<bool>())
}

/// The frames of a message, and how many pings are among them.
fn encode((is_text, text, level, cuts, pings): &Sent) -> (Vec<u8>, usize) {
    let payload = level.map_or_else(|| text.as_bytes().to_vec(), |level| deflate(text.as_bytes(), level));
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(payload.len() + 1)).collect();
    ends.push(payload.len());
    ends.sort_unstable();
    let (mut bytes, mut start, mut ping_count) = (Vec::new(), 0, 0);
    for (index, &end) in ends.iter().enumerate() {
        let opcode = match (index, is_text) {
            (0, true) => TEXT,
            (0, false) => BINARY,
            _ => CONTINUATION,
        };
        let rsv1 = if index == 0 && level.is_some() { RSV1 } else { 0 };
        let last = if index + 1 == ends.len() { FINAL } else { 0 };
        bytes.extend(frames::fragment(last | rsv1 | opcode, &payload[start..end]));
        if *pings {
            bytes.extend(frames::masked(PING, b"p"));
            ping_count += 1;
        }
        start = end;
    }
    (bytes, ping_count)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Compressed and plain messages, in fragments with pings between them, cut anywhere, with any budget.
    #[test]
    fn messages_are_those_that_were_compressed_at_every_split(
        session in prop::collection::vec(sent(), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        inflate_cost_max in prop_oneof![Just(usize::MAX), 0..2_000usize],
    ) {
        let (mut bytes, mut pings) = (Vec::new(), 0);
        for one in &session {
            let (encoded, ping_count) = encode(one);
            bytes.extend(encoded);
            pings += ping_count;
        }
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let pieces: Vec<&[u8]> = at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
        let (messages, replies, received) = receive(&pieces, inflate_cost_max);
        let expected: Vec<(Kind, Vec<u8>)> = session
            .iter()
            .map(|(is_text, text, ..)| (if *is_text { Kind::Text } else { Kind::Binary }, text.clone().into_bytes()))
            .collect();
        prop_assert_eq!((messages, received), (expected, DecodeOutcome::Open));
        prop_assert_eq!(replies, [0x8a, 1, b'p'].repeat(pings));
    }
}

#[test]
fn misplaced_rsv1_is_a_protocol_error() {
    let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    let first = frames::fragment(RSV1 | TEXT, &hello[..3]);
    assert_eq!(end_of(&[&frames::fragment(FINAL | RSV1 | PING, b"")]), "protocol");
    assert_eq!(end_of(&[&frames::fragment(FINAL | RSV1 | frames::CLOSE, b"")]), "protocol");
    assert_eq!(end_of(&[&first, &frames::fragment(FINAL | RSV1 | CONTINUATION, &hello[3..])]), "protocol");
    for reserved in [0x20, 0x10, RSV1 | 0x20, RSV1 | 0x10] {
        assert_eq!(end_of(&[&frames::fragment(FINAL | reserved | TEXT, hello)]), "protocol");
    }
    // Without the extension.
    let mut scanner = FrameScanner::new(false);
    assert_eq!(scanner.scan(&compressed(TEXT, b"x"), 1 << 16), (0, ScanStop::Protocol));
    let mut scanner = FrameScanner::new(true);
    assert_eq!(scanner.scan(&compressed(TEXT, b"x"), 1 << 16).1, ScanStop::EndOfInput);
    assert!(scanner.at_boundary());
}

#[test]
fn invalid_compressed_message_is_rejected() {
    assert_eq!(end_of(&[&frames::fragment(FINAL | RSV1 | TEXT, b"\xff\xff")]), "bad_deflate");
    assert_eq!(end_of(&[&compressed(TEXT, b"a\xff")]), "not_utf8");
    assert_eq!(end_of(&[&compressed(TEXT, b"a\xc3")]), "not_utf8");
    assert_eq!(receive(&[&compressed(BINARY, b"a\xff")], usize::MAX).0, [(Kind::Binary, b"a\xff".to_vec())]);
    assert_eq!(end_of(&[&compressed(BINARY, &vec![7; (1 << 17) + 1])]), "too_big");
    assert_eq!(receive(&[&compressed(BINARY, &vec![7; 1 << 17])], usize::MAX).0.len(), 1);
}

/// Bytes that cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut random = 7u64;
    let noise = std::iter::repeat_with(|| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 56) as u8
    });
    noise.take(length).collect()
}

#[test]
fn message_of_the_maximum_size_is_accepted_though_compression_makes_it_longer() {
    let noise = noise(1 << 17);
    for level in [0, 6] {
        let payload = deflate(&noise, level);
        assert!(payload.len() > noise.len());
        let (messages, ..) = receive(&[&frames::fragment(FINAL | RSV1 | BINARY, &payload)], usize::MAX);
        assert_eq!(messages, [(Kind::Binary, noise.clone())]);
    }
    // The compressed size has a limit too: it is held until the message is complete.
    let announced = frames::header(FINAL | RSV1 | BINARY, 0x80, (1 << 17) + (1 << 14) + 65);
    assert_eq!(end_of(&[&announced]), "too_big");
    let half = frames::fragment(RSV1 | BINARY, &vec![0; 1 << 17]);
    assert_eq!(end_of(&[&half, &frames::header(CONTINUATION, 0x80, (1 << 14) + 65), &[0; 4]]), "too_big");
}

#[test]
fn compressed_messages_are_published_and_violations_close_with_their_codes() {
    let server = Server::start(&["--message-bytes-max=1KiB"]);
    let mut subscriber = server.join("/ws");
    let offering = || {
        let mut client = crate::support::client::Client::new(server.connect());
        client.send(upgrade("/ws", BROWSER).as_bytes());
        let head = client.head();
        assert!(head.contains("permessage-deflate"), "{head}");
        client
    };
    let mut client = offering();
    client.send(&compressed(TEXT, "grüße".as_bytes()));
    assert_eq!(subscriber.text(), "grüße");
    assert_eq!(client.text(), "grüße");
    client.send(&frames::fragment(FINAL | RSV1 | TEXT, b"\xff\xff"));
    assert_eq!(client.closed_and_ended(), (1007, "bad_deflate".to_owned()));
    for (input, code) in [
        (compressed(TEXT, b"\xff"), 1007),
        (compressed(TEXT, &[b'x'; 1_025]), 1009),
        (frames::fragment(FINAL | RSV1 | PING, b""), 1002),
    ] {
        let mut client = offering();
        client.send(&input);
        assert_eq!(client.closed_and_ended().0, code);
    }
    let mut plain = server.join("/ws");
    plain.send(&compressed(TEXT, b"x"));
    assert_eq!(plain.closed_and_ended().0, 1002, "RSV1 without the extension");
    let off = Server::start(&["--deflate=off"]);
    let mut client = crate::support::client::Client::new(off.connect());
    client.send(upgrade("/ws", BROWSER).as_bytes());
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains("Extensions"), "{head}");
}

/// A message of `length` bytes that takes a few when it is compressed.
fn bomb(length: usize) -> Vec<u8> {
    frames::fragment(FINAL | RSV1 | BINARY, &deflate(&vec![b'0'; length], 9))
}

#[test]
fn burst_of_bombs_is_decompressed_within_the_budget_of_turns() {
    let limits = Limits { on_slow: OnSlow::Close, ..Limits::default() };
    let mut rig = Rig::new(limits.clone());
    let (publisher, subscriber) = (join(&mut rig, "/ws/bombs"), rig.join("/ws/bombs"));
    let one = bomb(64 << 10);
    let count = (16 << 10) / one.len();
    assert!(count >= 150, "a read has many of them: {count}");
    // A close frame follows them in the same read.
    let input = [one.repeat(count), frames::close(1000, "done")].concat();
    rig.send(publisher, &input);
    let mut turns = 0;
    let mut received = 0;
    while received < count {
        rig.turn();
        turns += 1;
        assert!(rig.is_alive(subscriber), "the subscriber is not slow");
        let frames = rig.frames(subscriber);
        let bytes: usize = frames.iter().map(|frame| frame.payload.len()).sum();
        let most = limits.read_bytes_per_turn + limits.message_bytes_max;
        assert!(bytes <= most, "{bytes} in one turn");
        assert!(!frames.is_empty() || turns == 1, "each turn makes progress");
        received += frames.len();
        let held = rig.engine.slots.get(publisher).map_or(0, |slot| slot.state.held_bytes());
        // One undecoded read, and the message that the budget has interrupted, with its decompressor.
        let most = limits.read_bytes_per_connection + limits.message_bytes_max + (48 << 10);
        assert!(held <= most, "no more is read meanwhile: {held}");
    }
    assert!(turns >= count / 6, "{turns}");
    assert_eq!(rig.engine.shared.metrics.inflated_bytes, (count * (64 << 10)) as u64);
    rig.run_until_idle();
    let last = rig.frames(publisher).pop().unwrap();
    assert_eq!(last.close_code(), (1000, "done".to_owned()));
}

/// Cost of the most expensive byte of a message in the budget of a turn: eight for each compressed one, and one for the
/// text.
const NOISE_COST: usize = 9;

#[test]
fn single_message_is_decompressed_within_the_budget_of_turns() {
    // The deadline of a message applies to its bytes, all of which arrive at once.
    let limits = Limits {
        message_bytes_max: 1 << 20,
        message_timeout_ms: 10,
        ping_interval_ms: 0,
        ..Limits::default()
    };
    let mut rig = Rig::new(limits.clone());
    let publisher = join(&mut rig, "/ws/large");
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let message = noise(120_000);
    // The second message arrives in the same read, and keeps its place.
    rig.send(publisher, &[compressed(BINARY, &message), compressed(TEXT, b"after it")].concat());
    let (mut turns, mut inflated) = (0, 0);
    while rig.engine.shared.metrics.published_by_websocket < 2 + turns {
        rig.send_text(two, &turns.to_string());
        rig.now = rig.now.after(2_000);
        rig.turn();
        assert_eq!(rig.texts(one), [turns.to_string()], "others are served in every turn");
        turns += 1;
        let before = std::mem::replace(&mut inflated, rig.engine.shared.metrics.inflated_bytes as usize);
        // A step may be begun with little of the budget left.
        let most = limits.read_bytes_per_turn + 2 * (8 << 10) + NOISE_COST * "after it".len();
        assert!((inflated - before) * NOISE_COST <= most, "{} bytes in one turn", inflated - before);
        let slot = rig.engine.slots.get(publisher).unwrap();
        assert!(inflated == 0 || slot.state.held_bytes() > 0 || inflated >= message.len());
    }
    assert!(turns as usize >= message.len() * NOISE_COST / limits.read_bytes_per_turn, "{turns} turns");
    assert_eq!(rig.engine.slots.get(publisher).unwrap().state.held_bytes(), 0);
    let frames = rig.frames(publisher);
    assert_eq!(frames.len(), 2);
    assert!(frames[0].payload == message && frames[1].payload == b"after it");
}

/// Clients that publish large messages from few bytes delay those of other clients by no more than a quarter of a turn.
#[test]
fn turn_decompresses_a_quarter_of_its_budget_while_many_clients_send_compressed_messages() {
    let limits = Limits::default();
    let mut rig = Rig::new(limits.clone());
    let publishers: Vec<SlotId> =
        (0..20).map(|index| join(&mut rig, &format!("/ws/large-{index}"))).collect();
    let message = compressed(BINARY, &vec![b'x'; limits.message_bytes_max]);
    publishers.iter().for_each(|&id| rig.send(id, &message.repeat(4)));
    let (total, mut inflated) = (publishers.len() * 4 * limits.message_bytes_max, 0);
    while inflated < total {
        rig.turn();
        let before = std::mem::replace(&mut inflated, rig.engine.shared.metrics.inflated_bytes as usize);
        // The last visit of each queue may exceed the rest of the budget by its slice.
        let most = limits.read_bytes_per_turn / 4 + 2 * (40 << 10);
        assert!(inflated > before && inflated - before <= most, "{} bytes in one turn", inflated - before);
    }
    assert_eq!(inflated, total);
}

#[test]
fn clients_with_large_compressed_messages_share_the_budget_of_a_turn() {
    let limits = Limits::default();
    let mut rig = Rig::new(limits.clone());
    let publishers: Vec<SlotId> =
        (0..20).map(|index| join(&mut rig, &format!("/ws/large-{index}"))).collect();
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let message = noise(60_000);
    publishers.iter().for_each(|&id| rig.send(id, &compressed(BINARY, &message)));
    let mut inflated = 0;
    for turn in 0.. {
        rig.send_text(two, &turn.to_string());
        rig.turn();
        assert_eq!(rig.texts(one), [turn.to_string()], "others are served in every turn");
        let before = std::mem::replace(&mut inflated, rig.engine.shared.metrics.inflated_bytes as usize);
        // The last visit of each queue may exceed the rest of the budget by its slice.
        let most = limits.read_bytes_per_turn + 2 * (64 << 10);
        assert!((inflated - before) * NOISE_COST <= most, "{} bytes in one turn", inflated - before);
        if inflated == publishers.len() * message.len() {
            break;
        }
        assert!(turn < 200, "{inflated}");
    }
    rig.run_until_idle();
    for id in publishers {
        assert!(rig.frames(id).pop().unwrap().payload == message);
        assert_eq!(rig.engine.slots.get(id).unwrap().state.held_bytes(), 0);
    }
}

#[test]
fn other_clients_are_served_in_every_turn_of_a_burst_of_bombs() {
    let mut rig = Rig::new(Limits::default());
    let bombers: Vec<SlotId> = (0..50).map(|index| join(&mut rig, &format!("/ws/bombs-{index}"))).collect();
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let input = bomb(64 << 10).repeat(100);
    bombers.iter().for_each(|&id| rig.send(id, &input));
    while rig.engine.slots.ready_len(oyez::server::slots::ReadyQueue::New) > 0 {
        rig.turn();
    }
    for round in 0..20 {
        rig.send_text(two, &round.to_string());
        rig.turn();
        assert_eq!(rig.texts(one), [round.to_string()]);
    }
}

#[test]
fn undecoded_input_survives_a_pause_and_is_dropped_with_a_close() {
    let mut rig = Rig::new(Limits::default());
    let publisher = join(&mut rig, "/ws/bombs");
    rig.send(publisher, &bomb(64 << 10).repeat(20));
    rig.send_eof(publisher);
    rig.turn();
    assert!(rig.engine.slots.get(publisher).is_some_and(|slot| slot.state.has_undecoded()));
    // The end of file follows all messages.
    rig.run_until_idle();
    assert!(!rig.is_alive(publisher));
    assert_eq!(rig.engine.shared.metrics.published_by_websocket, 20);
    let closed = join(&mut rig, "/ws/bombs");
    rig.send(closed, &[bomb(64 << 10).repeat(20), frames::close(1000, "")].concat());
    rig.turn();
    rig.engine.close(closed, Reason::Drain { retry_ms: 1 }, rig.now);
    rig.run_until_idle();
    let published = rig.engine.shared.metrics.published_by_websocket;
    assert!((21..40).contains(&published), "those that were left are dropped: {published}");
    assert_eq!(rig.frames(closed).pop().unwrap().close_code().0, 4200);
}

/// A plain connection publishes all messages of a read at once, so none of them meets a drain.
#[test]
fn compressed_messages_read_before_a_drain_are_published_and_later_ones_are_not() {
    for v1 in [false, true] {
        let mut rig = Rig::new(Limits::default());
        let path = "/ws/bombs?echo=0";
        let publisher = rig.connect(Behavior::Cooperative);
        let protocol = if v1 { "\r\nSec-WebSocket-Protocol: oyez.v1\r\n\r\n" } else { "\r\n\r\n" };
        rig.send(publisher, upgrade(path, BROWSER).replace("\r\n\r\n", protocol).as_bytes());
        rig.turn();
        let subscriber = rig.join("/ws/bombs");
        rig.pipe(publisher).outgoing.clear();
        let command = format!(r#"{{"type":"publish","ch":"bombs","text":"{}"}}"#, "0".repeat(60_000));
        let one = if v1 { compressed(TEXT, command.as_bytes()) } else { bomb(60_000) };
        rig.send(publisher, &one.repeat(20));
        rig.turn();
        let published = |rig: &Rig| rig.engine.shared.metrics.published_by_websocket;
        assert!(published(&rig) > 0 && published(&rig) < 20, "the drain begins between them");
        rig.engine.drain(rig.now);
        // This message is not read before the drain.
        rig.send(publisher, &one);
        rig.run_until_idle();
        assert_eq!(published(&rig), 20);
        rig.advance_ms(1_000);
        let frames = rig.frames(subscriber);
        assert_eq!(frames.iter().filter(|frame| frame.payload.len() >= 60_000).count(), 20);
        assert_eq!(frames.last().unwrap().close_code().0, 4200);
        let (code, reason) = rig.frames(publisher).last().unwrap().close_code();
        assert!(code == 4200 && reason.starts_with("drain retry_ms="), "{reason}");
    }
}

#[test]
fn bytes_per_second_counts_decompressed_bytes() {
    let mut rig = Rig::new(Limits { bytes_per_second: 10_000, ..Limits::default() });
    let publisher = join(&mut rig, "/ws");
    rig.send(publisher, &bomb(9_000));
    rig.run_until_idle();
    assert_eq!(rig.frames(publisher).len(), 1);
    rig.send(publisher, &bomb(9_000));
    rig.run_until_idle();
    assert_eq!(rig.frames(publisher).pop().unwrap().close_code().0, 4101);
}

#[test]
fn incomplete_compressed_message_counts_as_held_memory_and_has_a_deadline() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let id = join(&mut rig, "/ws");
    let mut random = Vec::new();
    (0..4_000u32).for_each(|n| random.write_all(&n.wrapping_mul(0x9e37_79b1).to_le_bytes()).unwrap());
    let frame = compressed(BINARY, &random);
    rig.send(id, &frame[..frame.len() - 1]);
    rig.turn();
    let held = |rig: &Rig| rig.engine.slots.get(id).unwrap().state.held_bytes();
    assert!(held(&rig) >= frame.len() - 14, "{}", held(&rig));
    rig.send(id, &frame[frame.len() - 1..]);
    rig.turn();
    assert_eq!(held(&rig), 0);
    assert_eq!(rig.frames(id)[0].payload, random);
    rig.send(id, &frame[..100]);
    rig.advance_ms(31_000);
    assert_eq!(rig.frames(id).pop().unwrap().close_code().0, 4105);
}

#[test]
fn deflate_mode_off_negotiates_nothing() {
    let mut rig = Rig::new(Limits {
        deflate: DeflateSettings { mode: DeflateMode::Off, ..Default::default() },
        ..Limits::default()
    });
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade("/ws", BROWSER).as_bytes());
    rig.turn();
    let head = String::from_utf8(std::mem::take(&mut rig.pipe(id).outgoing)).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains("Extensions"), "{head}");
    rig.send(id, &compressed(TEXT, b"x"));
    rig.run_until_idle();
    assert_eq!(rig.frames(id).pop().unwrap().close_code().0, 1002);
}
