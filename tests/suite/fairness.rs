//! Fairness: a client that publishes as fast as it can does not delay the others. In memory, where the bytes read in
//! each turn can be counted; one test floods a real server.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use oyez::config::Limits;
use oyez::ids::SlotId;
use oyez::server::slots::ReadyQueue;

use crate::support::StopOnDrop;
use crate::support::deflate::{BROWSER, upgrade};
use crate::support::frames::{self, TEXT};
use crate::support::http::get;
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig};

#[test]
fn flood_is_read_in_slices_with_others_between() {
    let limits = Limits { read_bytes_per_connection: 1_024, read_bytes_per_turn: 4_096, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let (flood, other) = (rig.join("/ws/flood"), rig.join("/ws/other"));
    let frame = frames::masked(TEXT, &[b'x'; 122]);
    rig.send(flood, &frame.repeat(1_000));
    rig.turn();
    assert_eq!(rig.texts(flood).len(), 32, "alone it has the turn's 4,096 bytes, 32 frames of 128");
    rig.send_text(other, "me too");
    rig.turn();
    assert_eq!(rig.texts(other), ["me too"]);
    let beside = rig.texts(flood).len();
    assert!((8..=32).contains(&beside), "with another client it has the rest: {beside}");
    rig.run_until_idle();
    assert_eq!(rig.texts(flood).len(), 1_000 - 32 - beside, "and nothing of the flood is lost");
}

#[test]
fn turn_budget_is_shared_in_rotation() {
    let limits = Limits { read_bytes_per_connection: 1_024, read_bytes_per_turn: 2_048, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let floods: Vec<_> = (0..6).map(|place| rig.join(&format!("/ws/{place}"))).collect();
    let frame = frames::masked(TEXT, &[b'x'; 122]);
    for &flood in &floods {
        rig.send(flood, &frame.repeat(80));
    }
    // As new ones they come before those that have had their first share.
    while rig.engine.slots.ready_len(ReadyQueue::New) > 0 {
        rig.turn();
    }
    let first: Vec<usize> = floods.iter().map(|&flood| rig.texts(flood).len()).collect();
    for _ in 0..3 {
        rig.turn();
    }
    for &flood in &floods {
        assert_eq!(rig.texts(flood).len(), 8, "two of six in a turn, so each once in three");
    }
    rig.run_until_idle();
    for (&flood, first) in floods.iter().zip(first) {
        assert_eq!(rig.texts(flood).len(), 72 - first);
    }
}

#[test]
fn reads_per_turn_are_bounded() {
    let limits = Limits { reads_per_connection: 2, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = rig.join("/ws");
    // An event that says "no more will come" lets the engine read on after a short read.
    rig.engine.slots.mark_read_closed(id);
    let frame = frames::masked(TEXT, b"x");
    rig.send(id, &frame.repeat(40_000));
    rig.turn();
    let got = rig.texts(id).len();
    assert!((1..40_000).contains(&got), "{got}");
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
}

/// A turn that reads at most eight times 1,024 bytes, or what costs as much.
fn narrow() -> Limits {
    Limits { read_bytes_per_connection: 1_024, read_bytes_per_turn: 8_192, ..Limits::default() }
}

/// This many connections, each on a separate channel.
fn join_many(rig: &mut Rig, count: usize) -> Vec<SlotId> {
    let ids: Vec<SlotId> = (0..count).map(|_| rig.connect(Behavior::Cooperative)).collect();
    for (place, &id) in ids.iter().enumerate() {
        rig.send(id, frames::upgrade(&format!("/ws/own.{place}")).as_bytes());
    }
    rig.run_until_idle();
    ids.iter().for_each(|&id| rig.pipe(id).outgoing.clear());
    ids
}

#[test]
fn quiet_pair_among_a_thousand_floods_is_served_in_the_next_turn() {
    let mut rig = Rig::new(narrow());
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let floods = join_many(&mut rig, 1_000);
    let frame = frames::masked(TEXT, &[b'x'; 250]);
    let flood = frame.repeat(100);
    floods.iter().for_each(|&id| rig.send(id, &flood));
    // All floods are new at first; each is requeued when it has had its first share.
    while rig.engine.slots.ready_len(ReadyQueue::New) > 0 {
        rig.turn();
    }
    let lefts: Vec<usize> = floods.iter().map(|&id| rig.pipe(id).incoming.len()).collect();
    for round in 0..20 {
        let before = rig.engine.shared.metrics.received_bytes;
        rig.send_text(two, &round.to_string());
        rig.turn();
        assert_eq!(rig.texts(one), [round.to_string()], "read and delivered in the next turn");
        let read = rig.engine.shared.metrics.received_bytes - before;
        assert!(read >= 4 * 1_024, "and the floods are read on: {read}");
    }
    for (&id, before) in floods.iter().zip(lefts) {
        let read = before - rig.pipe(id).incoming.len();
        assert!(read <= 1_024, "none is read twice before each was read once: {read}");
    }
}

/// Requests that publish an empty message, pipelined.
fn pipelined_requests(count: usize) -> Vec<u8> {
    b"POST /v1/publish/tiny HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".repeat(count)
}

/// Turns until a message is delivered that a client sends in the same moment in which a thousand connections begin to
/// send more than a turn's budget each, after all of them; and how many bytes of the floods were read.
fn turns_during_new_floods(upgrade: impl Fn(usize) -> String, flood: &[u8]) -> (usize, usize) {
    let mut rig = Rig::new(Limits::default());
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let floods: Vec<SlotId> = (0..1_000).map(|_| rig.connect(Behavior::Cooperative)).collect();
    for (place, &id) in floods.iter().enumerate() {
        rig.send(id, upgrade(place).as_bytes());
    }
    rig.run_until_idle();
    floods.iter().for_each(|&id| rig.send(id, flood));
    rig.send_text(two, "among them");
    for turn in 1..=100 {
        rig.turn();
        if rig.texts(one) == ["among them"] {
            let read: usize = floods.iter().map(|&id| flood.len() - rig.pipe(id).incoming.len()).sum();
            return (turn, read);
        }
    }
    panic!("a message waits for more than 100 turns");
}

#[test]
fn message_among_a_thousand_floods_that_begin_at_once_waits_for_few_turns() {
    let raw = |place: usize| frames::upgrade(&format!("/ws/own.{place}?echo=0"));
    let v1 = |_: usize| frames::upgrade_v1("/ws");
    let nothing = |_: usize| String::new();
    let empty = frames::masked(TEXT, b"").repeat(1_000);
    let small = frames::masked(TEXT, &[b'x'; 32]).repeat(200);
    let large = frames::masked(TEXT, &[b'x'; 1_000]).repeat(20);
    // The rest of a frame is read at once, up to 4 KiB, and the bytes after it up to one step.
    let larger = frames::masked(TEXT, &[b'x'; 4_000]).repeat(5);
    let mixed =
        [frames::masked(TEXT, &[b'x'; 300]), frames::masked(TEXT, b"").repeat(200)].concat().repeat(3);
    let publish = frames::masked(TEXT, br#"{"type":"publish","ch":"own","text":"x"}"#).repeat(200);
    // A visit costs at most the share of 1,024 bytes, or that of the first step and of 28 frames: 2,650 with empty
    // ones. A turn has three quarters of 262,144 for the new ones: 14 turns.
    for ((turns, read), (turns_max, read_max)) in [
        (turns_during_new_floods(v1, &empty), (16, 2_000 << 10)),
        (turns_during_new_floods(v1, &publish), (16, 2_000 << 10)),
        (turns_during_new_floods(raw, &empty), (16, 2_000 << 10)),
        (turns_during_new_floods(raw, &small), (16, 2_000 << 10)),
        (turns_during_new_floods(raw, &large), (16, 2_000 << 10)),
        (turns_during_new_floods(raw, &mixed), (16, 2_000 << 10)),
        (turns_during_new_floods(raw, &larger), (24, 6_500 << 10)),
        (turns_during_new_floods(nothing, &pipelined_requests(100)), (16, 2_000 << 10)),
    ] {
        assert!(turns <= turns_max, "{turns} turns");
        assert!(read <= read_max, "{read} bytes of the floods come first");
    }
}

#[test]
fn clients_that_begin_to_send_little_at_once_are_served_as_fast_as_the_budget_allows() {
    let mut rig = Rig::new(Limits::default());
    let clients = join_many(&mut rig, 1_000);
    for (bytes, turns) in [(60, 1), (500, 3), (900, 4)] {
        let message = frames::masked(TEXT, &vec![b'x'; bytes]);
        clients.iter().for_each(|&id| rig.send(id, &message));
        (0..turns).for_each(|_| rig.turn());
        let waiting = clients.iter().filter(|&&id| rig.texts(id).is_empty()).count();
        assert_eq!(waiting, 0, "a thousand messages of {bytes} bytes in {turns} turns");
        assert_eq!(rig.engine.slots.ready_len(ReadyQueue::Requeued), 0);
    }
}

#[test]
fn message_of_4_kib_among_many_clients_is_read_in_one_visit() {
    for (offer, bytes, is_one_visit) in
        [("x", 512, true), ("x", 4_000, true), (BROWSER, 4_000, true), ("x", 8_000, false)]
    {
        let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
        let clients: Vec<SlotId> = (0..500)
            .map(|place| {
                let id = rig.connect(Behavior::Cooperative);
                rig.send(id, upgrade(&format!("/ws/own.{place}"), offer).as_bytes());
                id
            })
            .collect();
        rig.run_until_idle();
        let requeued = rig.engine.shared.metrics.reads_requeued;
        let message = vec![b'x'; bytes];
        clients.iter().for_each(|&id| rig.send(id, &frames::masked(TEXT, &message)));
        rig.run_until_idle();
        let requeued = rig.engine.shared.metrics.reads_requeued - requeued;
        // In each turn the budget ends within a message.
        assert_eq!(requeued < 20, is_one_visit, "{offer:?} {bytes}: {requeued} visits more");
        assert_eq!(rig.engine.shared.metrics.messages_delivered, 500);
    }
}

#[test]
fn large_message_among_many_clients_is_read_in_steps_and_complete() {
    let mut rig = Rig::new(Limits::default());
    let clients = join_many(&mut rig, 100);
    for (place, &id) in clients.iter().enumerate() {
        rig.send(id, &frames::masked(TEXT, &vec![b'x'; 300 * place]));
        rig.send_text(id, &place.to_string());
    }
    rig.run_until_idle();
    for (place, &id) in clients.iter().enumerate() {
        assert_eq!(rig.texts(id), ["x".repeat(300 * place), place.to_string()]);
    }
}

#[test]
fn pipelined_requests_among_many_clients_are_answered_one_share_in_each_turn() {
    let mut rig = Rig::new(Limits::default());
    let clients: Vec<SlotId> = (0..200).map(|_| rig.connect(Behavior::Cooperative)).collect();
    clients.iter().for_each(|&id| rig.send(id, &pipelined_requests(50)));
    rig.turn();
    let most = clients.iter().map(|&id| rig.responses(id).len()).max();
    assert_eq!(most, Some(1), "each takes 1,024 of a share of 1,280");
    rig.run_until_idle();
    clients.iter().for_each(|&id| rig.send_eof(id));
    rig.run_until_idle();
    for &id in &clients {
        assert!((49..=50).contains(&rig.responses(id).len()));
        assert!(!rig.is_alive(id));
    }
}

#[test]
fn lone_client_that_pipelines_requests_has_no_more_than_the_turns_budget() {
    let mut rig = Rig::new(narrow());
    let client = rig.connect(Behavior::Cooperative);
    rig.send(client, &pipelined_requests(100));
    let mut answered = 0;
    while answered < 100 {
        rig.turn();
        let responses = rig.responses(client).len();
        // Another client's message can arrive between two turns.
        assert!(
            (1..=8).contains(&responses),
            "{responses} requests of 1,024 bytes or more in a turn of 8,192"
        );
        answered += responses;
    }
}

#[test]
fn flood_that_leaves_nothing_unread_is_not_taken_for_a_quiet_client() {
    let mut rig = Rig::new(Limits {
        read_bytes_per_connection: 16_384,
        read_bytes_per_turn: 32_768,
        ..Limits::default()
    });
    let (one, two) = (rig.join("/ws/calm"), rig.join("/ws/calm?echo=0"));
    let floods = join_many(&mut rig, 100);
    let flood = frames::masked(TEXT, &[b'x'; 250]).repeat(20);
    floods.iter().for_each(|&id| rig.send(id, &flood));
    rig.run_until_idle();
    for round in 0..20 {
        // Each has sent again what fits into one read, before the quiet client has sent anything.
        floods.iter().for_each(|&id| rig.send(id, &flood));
        rig.send_text(two, &round.to_string());
        rig.turn();
        assert_eq!(rig.texts(one), [round.to_string()]);
        assert!(rig.engine.slots.ready_len(ReadyQueue::Requeued) > 50, "the floods wait");
    }
}

#[test]
fn requeued_flood_among_quiet_clients_keeps_its_share() {
    let mut rig = Rig::new(narrow());
    let flood = rig.join("/ws/flood?echo=0");
    let quiet = join_many(&mut rig, 100);
    rig.send(flood, &frames::masked(TEXT, &[b'x'; 250]).repeat(400));
    rig.turn();
    let message = frames::masked(TEXT, &[b'y'; 500]);
    for _ in 0..40 {
        let before = rig.pipe(flood).incoming.len();
        for &id in &quiet {
            if rig.pipe(id).incoming.is_empty() {
                rig.send(id, &message);
            }
        }
        rig.turn();
        assert!(rig.engine.slots.ready_len(ReadyQueue::New) > 50, "the quiet ones have more than a turn");
        let read = before - rig.pipe(flood).incoming.len();
        assert!(read >= 1_024, "a quarter of the turn is one read of the flood: {read}");
    }
}

#[test]
fn empty_frames_and_requests_count_in_the_turn_budget() {
    let mut rig = Rig::new(Limits::default());
    let floods = join_many(&mut rig, 10);
    let empty = frames::masked(TEXT, b"");
    floods.iter().for_each(|&id| rig.send(id, &empty.repeat(8_000)));
    rig.turn();
    let received: usize = floods.iter().map(|&id| rig.texts(id).len()).sum();
    let read = Limits::default().read_bytes_per_connection / empty.len();
    let most = Limits::default().read_bytes_per_turn / 64 + read;
    assert!(received <= most, "{received} of at most {most} frames in one turn");

    let mut rig = Rig::new(narrow());
    let clients: Vec<SlotId> = (0..100).map(|_| rig.connect(Behavior::Cooperative)).collect();
    clients.iter().for_each(|&id| rig.send(id, get("/healthz").as_bytes()));
    rig.turn();
    let answered: usize = clients.iter().map(|&id| rig.responses(id).len()).sum();
    assert!((1..=8).contains(&answered), "{answered} requests in one turn");
    rig.run_until_idle();
    let answered: usize = clients.iter().map(|&id| rig.responses(id).len()).sum();
    assert!(answered >= 92, "{answered}");
}

#[test]
fn lone_publisher_with_64_messages_in_flight_is_delivered_in_one_turn() {
    let mut rig = Rig::new(Limits::default());
    let (sender, subscriber) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    for _ in 0..3 {
        rig.send(sender, &frames::masked(TEXT, &[b'x'; 512]).repeat(64));
        let writes = rig.pipe(subscriber).writes;
        rig.turn();
        assert_eq!(rig.texts(subscriber).len(), 64);
        assert_eq!(rig.pipe(subscriber).writes - writes, 1);
    }
}

#[test]
fn accepts_per_turn_are_bounded_and_complete() {
    let server = Server::start(&["--accepts-per-turn=1"]);
    let streams: Vec<_> = (0..100).map(|_| server.connect()).collect();
    for stream in streams {
        let mut client = crate::support::client::Client::new(stream);
        client.join("/ws");
    }
}

#[test]
fn subscribers_of_another_channel_are_served_during_a_flood() {
    let server = Server::start(&[]);
    let mut flood = server.join("/ws/flood?echo=0");
    let (mut one, mut two) = (server.join("/ws/calm"), server.join("/ws/calm"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done = &done;
        let _stop = StopOnDrop(done);
        scope.spawn(move || {
            let frames = frames::masked(TEXT, &[b'x'; 60]).repeat(1_000);
            while !done.load(Ordering::Relaxed) {
                flood.stream.write_all(&frames).unwrap();
            }
        });
        // A server that reads on for as long as a socket has bytes would never come to these. How long each of
        // them takes depends on the machine; what a turn reads is counted in the tests above.
        for round in 0..200 {
            one.send_text(&round.to_string());
            assert_eq!(two.text(), round.to_string());
        }
    });
}
