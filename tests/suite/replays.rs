//! Replays of large messages and of many subscribers at once: each encoding is shared and bounded in total, and a
//! turn's work is bounded. Mostly in memory, turn by turn; the memory of a process is measured with the real server.

use std::time::Instant;

use oyez::close::Reason;
use oyez::config::{HistoryLimits, Limits};
use oyez::ids::SlotId;

use crate::support::client::Client;
use crate::support::frames::{self, upgrade_v1};
use crate::support::http::{get, post, publish};
use crate::support::process::{Server, TEST_TIMEOUT};
use crate::support::rig::{Behavior, Rig};

/// A text that takes six times its length in JSON.
fn expensive(bytes: usize) -> String {
    "\u{1}".repeat(bytes)
}

fn rig(replay_encoded_bytes_max: usize) -> Rig {
    Rig::new(limits(replay_encoded_bytes_max))
}

fn limits(replay_encoded_bytes_max: usize) -> Limits {
    Limits {
        ping_interval_ms: 0,
        slow_timeout_ms: 1_000_000,
        replay_encoded_bytes_max,
        // All in one turn: before a flush finds that a peer takes nothing.
        work_micros_per_turn: 1_000_000,
        ..Limits::default()
    }
}

fn publish_on(rig: &mut Rig, channel: &str, text: &str) {
    let publisher = rig.connect(Behavior::Cooperative);
    rig.send(publisher, publish(channel, text).as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(publisher)[0].status, 200);
}

fn connect(rig: &mut Rig, request: &str, behavior: Behavior) -> SlotId {
    let id = rig.connect(behavior);
    rig.send(id, request.as_bytes());
    id
}

/// Reads again, and returns the number of received bytes.
fn resume_reading(rig: &mut Rig, id: SlotId) -> usize {
    rig.set_behavior(id, Behavior::Cooperative);
    rig.engine.slots.mark_writable(id);
    rig.run_until_idle();
    rig.pipe(id).outgoing.len()
}

fn replays_waiting(rig: &Rig) -> usize {
    rig.engine.slots.iter().filter(|(_, slot)| slot.waits_for_memory()).count()
}

#[test]
fn large_message_replayed_by_many_is_encoded_once_per_format() {
    let mut rig = rig(16 << 20);
    publish_on(&mut rig, "a", &expensive(100_000));
    publish_on(&mut rig, "a", &"\n".repeat(100_000));
    let envelopes = upgrade_v1("/ws/a?since=earliest");
    let ids: Vec<SlotId> = [&envelopes, &get("/sse/a?since=earliest")]
        .into_iter()
        .flat_map(|request| [(); 20].map(|()| connect(&mut rig, request, Behavior::Stalled)))
        .collect();
    rig.run_until_idle();
    // Of both formats the first message: 600 KB in JSON, 100 KB as an event.
    let held = rig.engine.hub.large_replay_bytes();
    assert!((700_000..702_000).contains(&held), "{held}");
    for (place, &id) in ids.iter().enumerate() {
        let bytes = resume_reading(&mut rig, id);
        // 600 KB and 200 KB in JSON, 100 KB and 700 KB as events.
        assert!((800_000..802_000).contains(&bytes), "{place}: {bytes}");
    }
    assert_eq!(rig.engine.hub.large_replay_bytes(), 0, "freed with the last outbox");
}

#[test]
fn replay_over_the_encoding_limit_waits_until_another_is_read() {
    let mut rig = rig(1 << 20);
    for channel in ["a", "b"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let first = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Stalled);
    rig.run_until_idle();
    let others =
        [(); 2].map(|()| connect(&mut rig, &upgrade_v1("/ws/b?since=earliest"), Behavior::Cooperative));
    let same = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Cooperative);
    // Reaching idle means that the loop would sleep.
    rig.run_until_idle();
    assert_eq!(replays_waiting(&rig), 2);
    assert!(others.iter().all(|&id| rig.pipe(id).outgoing.len() < 1_000));
    assert!(rig.pipe(same).outgoing.len() > 600_000, "an encoding is shared, with or without the limit");
    assert!(rig.engine.hub.large_replay_bytes() < 1 << 20);
    assert!(resume_reading(&mut rig, first) > 600_000);
    assert_eq!(replays_waiting(&rig), 0);
    assert!(others.iter().all(|&id| rig.pipe(id).outgoing.len() > 600_000));
}

/// Two replays of a large message each, with room for the encoding of one: that of the first connection, which does
/// not read.
fn one_replay_waits(replay_take_ms: u32) -> (Rig, SlotId, SlotId) {
    let mut rig = Rig::new(Limits { replay_take_ms, ..limits(1 << 20) });
    for channel in ["a", "b"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let first = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Stalled);
    rig.run_until_idle();
    let other = connect(&mut rig, &upgrade_v1("/ws/b?since=earliest"), Behavior::Cooperative);
    rig.run_until_idle();
    (rig, first, other)
}

#[test]
fn replay_over_the_encoding_limit_continues_when_another_connection_ends() {
    let (mut rig, first, other) = one_replay_waits(10_000);
    assert_eq!(replays_waiting(&rig), 1);
    rig.reset(first);
    rig.run_until_idle();
    assert!(!rig.is_alive(first) && rig.pipe(other).outgoing.len() > 600_000);
}

#[test]
fn replay_waiting_over_its_timeout_is_closed_4100() {
    let (mut rig, first, other) = one_replay_waits(60_000);
    rig.advance_ms(29_500);
    rig.skip_head(other);
    assert!(rig.texts(other).iter().all(|text| text.contains("hello") || text.contains("subscribed")));
    rig.advance_ms(1_000);
    assert_eq!(rig.frames(other)[0].close_code(), (4100, "over_capacity".into()));
    assert!(rig.is_alive(first));
}

/// Reads so slowly that it is just at the minimum pace.
const TRICKLE: Behavior = Behavior::LimitedWrites(300);

#[test]
fn reader_at_the_minimum_pace_is_cut_while_another_replay_waits_for_its_memory() {
    let mut rig = rig(1 << 20);
    for channel in ["a", "b"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let first = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), TRICKLE);
    rig.advance_ms(25_000);
    assert!(rig.is_alive(first), "it may hold memory that no other replay needs");
    let other = connect(&mut rig, &get("/sse/b?since=earliest"), TRICKLE);
    let last = connect(&mut rig, &upgrade_v1("/ws/b?since=earliest"), Behavior::Cooperative);
    rig.advance_ms(1_000);
    assert!(!rig.is_alive(first));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
    // The event has 100 KB, so that both fit.
    assert!(rig.is_alive(other) && rig.pipe(last).outgoing.len() > 600_000);
    rig.advance_ms(25_000);
    assert!(rig.is_alive(other), "no replay waits");
}

#[test]
fn newcomers_do_not_prolong_the_life_of_a_large_encoding() {
    let mut rig = rig(1 << 20);
    for channel in ["a", "b"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let other = {
        connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), TRICKLE);
        rig.advance_ms(1_000);
        connect(&mut rig, &upgrade_v1("/ws/b?since=earliest"), Behavior::Cooperative)
    };
    let mut seconds = 1;
    while rig.pipe(other).outgoing.len() < 600_000 {
        assert!(rig.is_alive(other) && seconds < 30, "it waits for ever");
        connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), TRICKLE);
        rig.advance_ms(1_000);
        seconds += 1;
    }
    assert!(seconds > 19, "each reader has ten seconds, but after {seconds} memory was free");
}

#[test]
fn newcomer_has_its_whole_time_to_take_a_large_message() {
    let mut rig = rig(1_300_000);
    for channel in ["a", "b", "c"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let first = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), TRICKLE);
    rig.advance_ms(15_000);
    // 75 KB/s, which takes eight seconds.
    let newcomer = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::LimitedWrites(3_750));
    rig.turn();
    for channel in ["b", "c"] {
        connect(&mut rig, &upgrade_v1(&format!("/ws/{channel}?since=earliest")), TRICKLE);
    }
    rig.advance_ms(6_000);
    assert!(!rig.is_alive(first) && replays_waiting(&rig) == 1);
    rig.advance_ms(3_500);
    assert!(rig.pipe(newcomer).outgoing.len() > 600_000);
}

/// Three replays with room for one: that of the first connection, which does not read, and two that wait in this order,
/// on channels with two large messages each. After 15 s the first connection reads; the subscriber of "c" does not.
fn replays_take_turns(channels: [&str; 2], meanwhile: impl FnOnce(&mut Rig)) -> (Rig, [SlotId; 2]) {
    let mut rig = rig(1 << 20);
    for channel in ["a", "b", "b", "c", "c"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    let first = connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Stalled);
    rig.run_until_idle();
    let others = channels.map(|channel| {
        let id =
            connect(&mut rig, &upgrade_v1(&format!("/ws/{channel}?since=earliest")), Behavior::Cooperative);
        rig.run_until_idle();
        if channel == "c" {
            rig.set_behavior(id, Behavior::Stalled);
        }
        id
    });
    assert_eq!(replays_waiting(&rig), 2);
    rig.advance_ms(15_000);
    meanwhile(&mut rig);
    assert!(resume_reading(&mut rig, first) > 600_000);
    assert_eq!(replays_waiting(&rig), 1);
    (rig, others)
}

#[test]
fn replay_that_is_retried_in_vain_has_waited_since_the_beginning() {
    let (mut rig, [_, other]) = replays_take_turns(["c", "b"], |_| {});
    rig.advance_ms(14_500);
    rig.skip_head(other);
    assert!(rig.texts(other).iter().all(|text| text.contains("hello") || text.contains("subscribed")));
    rig.advance_ms(1_000);
    assert_eq!(rig.frames(other)[0].close_code(), (4100, "over_capacity".into()));
}

#[test]
fn replay_that_received_its_message_waits_for_the_next_one_from_then_on() {
    let (mut rig, [other, _]) = replays_take_turns(["b", "c"], |_| {});
    assert!((600_000..700_000).contains(&rig.pipe(other).outgoing.len()), "one of two");
    rig.advance_ms(18_000);
    assert_eq!(replays_waiting(&rig), 1);
    rig.advance_ms(3_000);
    assert!(rig.pipe(other).outgoing.len() > 1_200_000, "the other connection had its time");
}

#[test]
fn replay_whose_message_is_evicted_waits_for_the_next_one_from_then_on() {
    let (mut rig, [other, _]) = replays_take_turns(["b", "c"], |rig| {
        // Of 100 messages that are kept, the oldest goes.
        (0..99).for_each(|_| publish_on(rig, "b", "small"));
    });
    rig.skip_head(other);
    let texts = rig.texts(other);
    assert!(
        texts.iter().any(|text| text.contains(r#""type":"gap""#))
            && texts.iter().all(|text| text.len() < 1_000)
    );
    rig.advance_ms(18_000);
    assert_eq!(replays_waiting(&rig), 1);
    rig.advance_ms(3_000);
    assert!(rig.pipe(other).outgoing.len() > 600_000);
}

#[test]
fn waiting_replay_that_is_unsubscribed_admits_the_next() {
    let mut rig = rig(1 << 20);
    for channel in ["a", "b"] {
        publish_on(&mut rig, channel, &expensive(100_000));
    }
    publish_on(&mut rig, "c", "small");
    connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Stalled);
    rig.run_until_idle();
    let other = connect(&mut rig, &upgrade_v1("/ws/b?since=earliest"), Behavior::Cooperative);
    rig.send_text(other, r#"{"type":"subscribe","ch":"c","since":"earliest"}"#);
    rig.run_until_idle();
    assert_eq!(replays_waiting(&rig), 1);
    rig.pipe(other).outgoing.clear();
    rig.send_text(other, r#"{"type":"unsubscribe","ch":"b"}"#);
    rig.run_until_idle();
    assert_eq!(replays_waiting(&rig), 0);
    assert!(rig.texts(other).iter().any(|text| text.contains(r#""text":"small""#)));
}

#[test]
fn message_above_the_encoding_limit_is_replayed_alone() {
    let mut rig = rig(1_000);
    publish_on(&mut rig, "a", &expensive(100_000));
    let ids = [(); 3].map(|()| connect(&mut rig, &upgrade_v1("/ws/a?since=earliest"), Behavior::Cooperative));
    rig.run_until_idle();
    assert!(ids.iter().all(|&id| rig.pipe(id).outgoing.len() > 600_000));
}

#[test]
fn raw_subscriber_replays_large_messages_whole() {
    let mut rig = rig(1_000);
    let texts: Vec<String> = (0..4).map(|number| format!("{number}{}", expensive(70_000))).collect();
    let publisher = rig.connect(Behavior::Cooperative);
    // All in one batch, so that each is a part of its memory.
    let requests: String = texts.iter().map(|text| publish("a", text)).collect();
    rig.send(publisher, requests.as_bytes());
    rig.run_until_idle();
    let id = connect(&mut rig, &frames::upgrade("/ws/a?since=earliest"), Behavior::LimitedWrites(10_000));
    rig.run_until_idle();
    rig.skip_head(id);
    assert_eq!(rig.texts(id), texts);
}

#[test]
fn resumption_of_many_is_spread_over_turns_and_broadcasts_go_out_between() {
    const CLIENTS: usize = 300;
    let history = HistoryLimits { messages_max: 10, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, history, ..Limits::default() });
    let publisher = rig.join("/ws/a?echo=0");
    for _ in 0..10 {
        rig.send_text(publisher, &"x".repeat(5_000));
        rig.run_until_idle();
    }
    let live = rig.join("/ws/b");
    let sender = rig.join("/ws/b?echo=0");
    let request = frames::upgrade("/ws/a?since=earliest");
    let ids = [(); CLIENTS].map(|()| connect(&mut rig, &request, Behavior::Cooperative));
    let done = |rig: &mut Rig| ids.iter().filter(|&&id| rig.pipe(id).outgoing.len() > 50_000).count();
    let (mut turns, mut received, mut before) = (0, 0, 0);
    while before < CLIENTS {
        rig.send_text(sender, "news");
        rig.turn();
        turns += 1;
        received += rig.texts(live).len();
        let now = done(&mut rig);
        // A slice is estimated at 15.7 us, of which one turn makes those of a millisecond.
        assert!(now - before <= 70, "{now} after {before}");
        before = now;
        assert!(turns < 100, "it goes on");
    }
    assert!(turns >= 5, "{turns}");
    assert_eq!(received, turns, "each turn delivers the messages published in it");
}

#[test]
fn subscriber_with_a_long_history_of_its_own_messages_is_caught_up_in_parts() {
    let history = HistoryLimits { messages_max: 5_000, ..HistoryLimits::default() };
    let limits = Limits { ping_interval_ms: 0, history, work_micros_per_turn: 1, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let id = rig.join("/ws/a?echo=0");
    for _ in 0..4_500 {
        rig.send_text(id, "x");
    }
    rig.run_until_idle();
    let other = rig.join("/ws/a");
    rig.send_text(other, "y");
    rig.run_until_idle();
    assert_eq!(rig.texts(id), ["y"]);
    // The client is the connection: a new one would not know its messages as its own.
    let (hub, slots) = (&mut rig.engine.hub, &mut rig.engine.slots);
    let subscription = slots.get(id).unwrap().subscriptions.as_slice()[0];
    let moved = hub.unsubscribe(subscription);
    let options = oyez::hub::SubscribeOptions {
        form: oyez::wire::Form::Raw,
        since: oyez::ids::Since::Earliest,
        echo: false,
    };
    let name = oyez::ids::ChannelName::parse(b"a").unwrap();
    let joined = hub.subscribe(&name, id, options, rig.now).unwrap();
    let slot = slots.get_mut(id).unwrap();
    slot.subscriptions.remove(subscription.channel);
    slot.subscriptions.add(joined.subscription);
    if let Some(moved) = moved {
        slots.get_mut(moved.subscriber).unwrap().subscriptions.find_mut(moved.channel).unwrap().position =
            moved.position;
    }
    slots.mark_replaying(id, true);
    slots.mark_refill(id);
    let mut turns = 0;
    while rig.engine.slots.get(id).unwrap().is_replaying() {
        rig.turn();
        turns += 1;
    }
    assert!((5..=8).contains(&turns), "a thousand messages in each turn, but {turns}");
    assert_eq!(rig.texts(id), ["y"]);
}

/// The peak of the server's additional memory until all subscribers are live.
fn growth(server: &Server, requests: &[(String, usize)], subscribers: usize) -> u64 {
    let before = server.resident_bytes();
    let mut most = 0;
    let clients: Vec<Client> = requests
        .iter()
        .flat_map(|(request, count)| (0..*count).map(move |_| request))
        .map(|request| {
            let mut client = Client::new(server.connect());
            client.limit_receive_buffer();
            client.send(request.as_bytes());
            client
        })
        .collect();
    let mut observer = Client::new(server.connect());
    let start = Instant::now();
    let expected = format!("oyez_subscriptions {subscribers}\n");
    loop {
        most = most.max(server.resident_bytes());
        if observer.ask(get("/metrics")).body.contains(&expected) {
            break;
        }
        assert!(start.elapsed() < 4 * TEST_TIMEOUT, "not all have subscribed");
    }
    // The replays of the last ones too.
    (0..20).for_each(|_| drop(observer.ask(get("/metrics"))));
    most = most.max(server.resident_bytes());
    drop(clients);
    most.saturating_sub(before)
}

/// Two guards bound this memory, and each does so alone: replays share encodings
/// (`large_message_replayed_by_many_is_encoded_once_per_format`), and these have a maximum in total
/// (`replay_over_the_encoding_limit_waits_until_another_is_read`). Here, that nothing else in the program holds copies.
#[test]
fn replays_of_large_messages_that_are_not_read_take_little_memory() {
    let server = Server::start(&["--slow-timeout-ms=120000"]);
    let mut publisher = Client::new(server.connect());
    let body = expensive((1 << 20) - 100);
    for channel in ["expensive", "other"] {
        assert_eq!(publisher.ask(post(&format!("/v1/publish/{channel}"), "", &body)).status, 200);
    }
    let requests = [
        (upgrade_v1("/ws/expensive?since=earliest"), 100),
        (get("/sse/expensive?since=earliest"), 100),
        (upgrade_v1("/ws/other?since=earliest"), 50),
        (frames::upgrade("/ws/expensive?since=earliest"), 300),
    ];
    let growth = growth(&server, &requests, 550);
    // Two texts in JSON (6 MiB each) and an event (1 MiB); unshared it is 1.3 GiB.
    assert!(growth < 32 << 20, "{growth} bytes");
}

/// Four publishers who fill each turn, as far as one may.
struct Publishers {
    ids: [SlotId; 4],
    frame: Vec<u8>,
    count: usize,
}

impl Publishers {
    fn new(rig: &mut Rig, channel: &str, length: usize) -> Publishers {
        let ids = [(); 4].map(|()| rig.join(&format!("/ws/{channel}?echo=0")));
        Publishers { ids, frame: frames::masked(frames::TEXT, &vec![b'x'; length]), count: 0 }
    }

    fn turn(&mut self, rig: &mut Rig) {
        for id in self.ids {
            while rig.pipe(id).incoming.len() < 64 << 10 {
                rig.send(id, &self.frame);
                self.count += 1;
            }
        }
        rig.turn();
    }
}

#[test]
fn subscriber_resuming_on_a_channel_at_full_speed_catches_up() {
    let requests = [
        upgrade_v1("/ws/a?since=earliest"),
        frames::upgrade("/ws/a?since=earliest"),
        get("/sse/a?since=earliest"),
    ];
    for (length, request) in
        [50, 3_000].into_iter().flat_map(|length| requests.iter().map(move |one| (length, one)))
    {
        let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
        let mut publishers = Publishers::new(&mut rig, "a", length);
        (0..3).for_each(|_| publishers.turn(&mut rig));
        let id = connect(&mut rig, request, Behavior::Cooperative);
        let is_live = |rig: &Rig| {
            let slot = rig.engine.slots.get(id).unwrap();
            !slot.subscriptions.is_empty() && !slot.is_replaying()
        };
        for turn in 0.. {
            assert!(turn < 10, "it never catches up with messages of {length} bytes: {request}");
            publishers.turn(&mut rig);
            if is_live(&rig) {
                break;
            }
        }
        (0..20).for_each(|_| publishers.turn(&mut rig));
        assert!(is_live(&rig));
        assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 0);
    }
}

#[test]
fn raw_subscriber_overtaken_by_the_history_gets_responses_before_its_close() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let mut publishers = Publishers::new(&mut rig, "a", 50);
    publishers.turn(&mut rig);
    let v1 = connect(&mut rig, &upgrade_v1("/ws/a"), Behavior::Cooperative);
    publishers.turn(&mut rig);
    let text = String::from_utf8_lossy(&rig.pipe(v1).outgoing).into_owned();
    let cursor = text.rsplit("\"id\":\"").nth(10).unwrap().split('"').next().unwrap().to_owned();
    // Ten messages are there for it, and its turn has more than are kept.
    let id = connect(&mut rig, &frames::upgrade(&format!("/ws/a?since={cursor}")), Behavior::Cooperative);
    publishers.turn(&mut rig);
    let bytes = &mut rig.pipe(id).outgoing;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a response") + 4;
    assert!(bytes.starts_with(b"HTTP/1.1 101 "));
    bytes.drain(..end);
    assert_eq!(rig.frames(id)[0].close_code(), (4102, "slow".into()));
}

/// What a client of `oyez.v1` was sent on a channel, as the beginnings of its texts.
fn heard_on(rig: &mut Rig, id: SlotId, channel: &str) -> Vec<String> {
    let texts = rig.texts(id).into_iter().filter(|text| text.contains(&format!("\"ch\":\"{channel}\"")));
    let texts = texts.filter_map(|text| text.split("\"text\":\"").nth(1).map(|text| text[..3].to_owned()));
    texts.collect()
}

#[test]
fn subscriber_reading_a_large_message_is_not_slow_for_later_messages() {
    // One is larger than an outbox may be, the other leaves little of that.
    for (bytes, is_live) in [(100_000, true), (100_000, false), (45_000, false)] {
        let mut rig = rig(16 << 20);
        rig.engine.shared.limits.outbox_bytes_max = 300_000;
        if !is_live {
            publish_on(&mut rig, "a", &expensive(bytes));
        }
        let id = connect(&mut rig, &upgrade_v1("/ws/b"), Behavior::Cooperative);
        rig.run_until_idle();
        let head = &mut rig.pipe(id).outgoing;
        let end = head.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        head.drain(..end);
        let since = if is_live { "" } else { r#","since":"earliest""# };
        rig.send_text(id, &format!(r#"{{"type":"subscribe","ch":"a"{since}}}"#));
        rig.set_behavior(id, Behavior::LimitedWrites(1_000));
        rig.turn();
        let publishers = [(); 2].map(|()| rig.connect(Behavior::Cooperative));
        if is_live {
            rig.send(publishers[1], publish("a", &expensive(bytes)).as_bytes());
            (0..2).for_each(|_| rig.turn());
        }
        let expected: Vec<String> = (100..140).map(|number| number.to_string()).collect();
        for number in &expected {
            rig.send(publishers[0], publish("b", &number.repeat(2_000)).as_bytes());
            rig.turn();
        }
        rig.advance_ms(2_000);
        rig.run_until_idle();
        assert_eq!(heard_on(&mut rig, id, "b"), expected, "{bytes}, {is_live}");
        assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 0);
    }
}
