//! Back pressure: publishers that outrun subscribers are paused for a bounded time.
//!
//! In memory, a subscriber that reads nothing fills its outbox message by message, and the bytes that the engine has
//! read of a publisher can be counted; tests advance the time. On real sockets a publisher that writes as fast as
//! possible meets a thousand subscribers that read, and every byte that they receive is compared.

use std::io::{Read, Write};

use mio::{Events, Interest, Poll, Token};
use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::SlotId;

use crate::support::client::Client;
use crate::support::frames::{self, TEXT, upgrade_v1};
use crate::support::http::{post, publish};
use crate::support::process::{Server, TEST_TIMEOUT, counter};
use crate::support::rig::{Behavior, Rig};

/// Publishers are paused above 20,000 bytes in an outbox, which are three of the messages.
fn limits() -> Limits {
    Limits {
        outbox_bytes_max: 80_000,
        slow_timeout_ms: 1_000_000,
        ping_interval_ms: 0,
        keep_alive_ms: 1_000_000,
        ..Limits::default()
    }
}

fn message(number: usize) -> String {
    format!("{number:>9000}")
}

/// The received messages, as numbers.
fn numbers(rig: &mut Rig, id: SlotId) -> Vec<usize> {
    rig.texts(id).iter().map(|text| text.trim().parse().unwrap()).collect()
}

fn join_v1(rig: &mut Rig, path: &str) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1(path).as_bytes());
    rig.run_until_idle();
    rig.pipe(id).outgoing.clear();
    id
}

fn publish_command(channel: &str, number: usize) -> Vec<u8> {
    let command =
        format!(r#"{{"type":"publish","ch":"{channel}","text":"{}","ref":{number}}}"#, message(number));
    frames::masked(TEXT, command.as_bytes())
}

/// A subscriber that reads nothing and pauses publishers on `main` after this many messages.
fn stalled_subscriber(rig: &mut Rig, publisher: SlotId, messages: usize) -> SlotId {
    let slow = rig.join("/ws?echo=0");
    rig.set_behavior(slow, Behavior::Stalled);
    for number in 0..messages {
        rig.send_text(publisher, &message(number));
        rig.run_until_idle();
    }
    slow
}

fn is_publishing_paused(rig: &Rig, id: SlotId) -> bool {
    rig.engine.slots.get(id).unwrap().is_publishing_paused()
}

#[test]
fn raw_publisher_to_a_slow_subscriber_is_paused_until_it_caught_up() {
    let mut rig = Rig::new(limits());
    let (publisher, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let slow = stalled_subscriber(&mut rig, publisher, 3);
    assert_eq!(numbers(&mut rig, reader), [0, 1, 2]);
    for number in 3..8 {
        rig.send_text(publisher, &message(number));
    }
    rig.run_until_idle();
    assert!(is_publishing_paused(&rig, publisher));
    assert!(rig.pipe(publisher).incoming.len() > 45_000, "it waits in the kernel");
    assert!(numbers(&mut rig, reader).is_empty());
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert!(!is_publishing_paused(&rig, publisher));
    assert_eq!(numbers(&mut rig, reader), [3, 4, 5, 6, 7]);
    assert_eq!(numbers(&mut rig, slow), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(rig.engine.shared.metrics.publish_pauses, 1);
}

#[test]
fn pause_over_its_limit_ends_and_the_slow_subscriber_is_closed() {
    let mut rig = Rig::new(limits());
    let (publisher, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let _slow = stalled_subscriber(&mut rig, publisher, 3);
    for number in 3..20 {
        rig.send_text(publisher, &message(number));
    }
    rig.advance_ms(900);
    assert_eq!(numbers(&mut rig, reader), [0, 1, 2]);
    rig.advance_ms(600);
    rig.run_until_idle();
    assert_eq!(numbers(&mut rig, reader), (3..20).collect::<Vec<_>>(), "once in a backlog");
    assert_eq!(rig.engine.shared.metrics.publish_pauses, 1);
    rig.advance_ms(3_000);
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Slow), 1);
}

#[test]
fn publisher_with_pause_disabled_is_read_at_once() {
    let mut rig = Rig::new(Limits { publish_pause_ms: 0, ..limits() });
    let (publisher, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let _slow = stalled_subscriber(&mut rig, publisher, 20);
    assert_eq!(numbers(&mut rig, reader).len(), 20);
    assert_eq!(rig.engine.shared.metrics.publish_pauses, 0);
}

#[test]
fn v1_publisher_to_a_slow_subscriber_is_acknowledged_and_paused() {
    let mut rig = Rig::new(limits());
    let (raw, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let slow = stalled_subscriber(&mut rig, raw, 3);
    let publisher = join_v1(&mut rig, "/ws");
    rig.send(publisher, &publish_command("main", 3));
    rig.run_until_idle();
    assert!(rig.texts(publisher)[0].contains("ack"), "a received message is published");
    assert_eq!(numbers(&mut rig, reader), [0, 1, 2, 3]);
    rig.send(publisher, &publish_command("main", 4));
    rig.run_until_idle();
    assert!(is_publishing_paused(&rig, publisher) && !rig.pipe(publisher).incoming.is_empty());
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert!(rig.texts(publisher)[0].contains("ack"));
    assert_eq!(numbers(&mut rig, slow), [0, 1, 2, 3, 4]);
}

#[test]
fn http_publisher_to_a_slow_subscriber_gets_delayed_responses_in_order() {
    let mut rig = Rig::new(limits());
    let (raw, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let slow = stalled_subscriber(&mut rig, raw, 3);
    let (kept, last) = (rig.connect(Behavior::Cooperative), rig.connect(Behavior::Cooperative));
    rig.send(kept, (publish("main", "3") + &publish("main", "4")).as_bytes());
    rig.run_until_idle();
    rig.send(last, post("/v1/publish/main", "Connection: close\r\n", "5").as_bytes());
    rig.run_until_idle();
    rig.send(kept, (publish("main", "6") + &publish("nobody", "x")).as_bytes());
    // Longer than a close handshake may take.
    rig.advance_ms(500);
    assert_eq!(numbers(&mut rig, reader), [0, 1, 2, 3, 4, 5]);
    assert!(rig.responses(kept).is_empty() && rig.responses(last).is_empty());
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.responses(kept).iter().map(|answer| answer.status).collect::<Vec<_>>(), [200; 4]);
    assert_eq!(rig.responses(last)[0].status, 200);
    assert_eq!(numbers(&mut rig, slow), [0, 1, 2, 3, 4, 5, 6]);
}

/// A long pause does not use up the close timeout of a connection.
#[test]
fn delayed_response_outlives_the_close_timeout() {
    let mut rig = Rig::new(Limits { publish_pause_ms: 10_000, close_timeout_ms: 500, ..limits() });
    let raw = rig.join("/ws?echo=0");
    let slow = stalled_subscriber(&mut rig, raw, 3);
    let last = rig.connect(Behavior::Cooperative);
    rig.send(last, post("/v1/publish/main", "Connection: close\r\n", "5").as_bytes());
    rig.advance_ms(5_000);
    assert!(rig.is_alive(last));
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(rig.responses(last)[0].status, 200);
}

#[test]
fn publisher_that_is_the_slow_subscriber_is_not_paused() {
    let mut rig = Rig::new(limits());
    let (publisher, reader) = (rig.join("/ws"), rig.join("/ws"));
    rig.set_behavior(publisher, Behavior::Stalled);
    for number in 0..6 {
        rig.send_text(publisher, &message(number));
        rig.run_until_idle();
    }
    assert!(is_publishing_paused(&rig, publisher));
    let before = numbers(&mut rig, reader).len();
    assert!(before < 6);
    rig.set_behavior(publisher, Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(numbers(&mut rig, publisher), [0, 1, 2, 3, 4, 5]);
    assert_eq!(before + numbers(&mut rig, reader).len(), 6);
}

#[test]
fn subscriber_that_leaves_or_fails_resumes_its_publishers() {
    for leaves in [true, false] {
        let mut rig = Rig::new(limits());
        let (publisher, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
        let slow = join_v1(&mut rig, "/ws/main");
        rig.set_behavior(slow, Behavior::Stalled);
        for number in 0..4 {
            rig.send_text(publisher, &message(number));
            rig.run_until_idle();
        }
        assert!(is_publishing_paused(&rig, publisher));
        if leaves {
            rig.send_text(slow, r#"{"type":"unsubscribe","ch":"main"}"#);
        } else {
            rig.reset(slow);
        }
        rig.run_until_idle();
        assert!(!is_publishing_paused(&rig, publisher));
        assert_eq!(numbers(&mut rig, reader), [0, 1, 2, 3]);
    }
}

#[test]
fn paused_publisher_that_resets_is_reaped() {
    let mut rig = Rig::new(limits());
    let (publisher, closing) = (rig.join("/ws?echo=0"), join_v1(&mut rig, "/ws"));
    let slow = stalled_subscriber(&mut rig, publisher, 4);
    rig.send(closing, &publish_command("main", 4));
    rig.run_until_idle();
    rig.send(closing, &frames::close(1000, ""));
    rig.reset(publisher);
    rig.run_until_idle();
    rig.set_behavior(slow, Behavior::Cooperative);
    rig.run_until_idle();
    assert!(!rig.is_alive(publisher));
    assert_eq!(rig.frames(closing).last().unwrap().close_code().0, 1000);
    assert_eq!(numbers(&mut rig, slow), [0, 1, 2, 4], "the one that was reset had not been read");
}

#[test]
fn drain_resumes_all_paused_publishers() {
    let mut rig = Rig::new(limits());
    let raw = rig.join("/ws?echo=0");
    stalled_subscriber(&mut rig, raw, 4);
    let http = rig.connect(Behavior::Cooperative);
    rig.send(http, publish("main", "4").as_bytes());
    rig.run_until_idle();
    assert!(rig.responses(http).is_empty());
    let now = rig.now;
    rig.engine.drain(now);
    rig.run_until_idle();
    assert_eq!(rig.responses(http)[0].status, 200);
    assert_eq!(rig.frames(raw).last().unwrap().close_code().0, 4200);
}

#[test]
fn subscriber_that_stays_slow_does_not_use_up_the_pause_for_later_ones() {
    let mut rig = Rig::new(limits());
    let publisher = rig.join("/ws?echo=0");
    let first = stalled_subscriber(&mut rig, publisher, 3);
    rig.advance_ms(1_500);
    assert!(!is_publishing_paused(&rig, publisher), "the time of the first is over");
    let second = stalled_subscriber(&mut rig, publisher, 3);
    rig.send_text(publisher, &message(3));
    rig.run_until_idle();
    assert!(is_publishing_paused(&rig, publisher));
    rig.set_behavior(second, Behavior::Cooperative);
    rig.run_until_idle();
    assert!(!is_publishing_paused(&rig, publisher) && rig.is_alive(first));
    assert_eq!(numbers(&mut rig, second), [0, 1, 2, 3]);
}

/// Subscribers that pause publishers in sequence, each after one more message.
#[test]
fn slow_subscribers_in_sequence_do_not_stop_a_channel() {
    let mut rig = Rig::new(limits());
    let (publisher, reader) = (rig.join("/ws?echo=0"), rig.join("/ws"));
    let small = "x".repeat(2_000);
    for _ in 0..8 {
        let slow = rig.join("/ws");
        rig.set_behavior(slow, Behavior::Stalled);
        rig.send_text(publisher, &small);
        rig.run_until_idle();
    }
    rig.frames(reader);
    let (mut sent, mut heard, mut waited_ms) = (0, 0, 0);
    while heard < 12 {
        if heard == sent {
            // From the third on, each queues one more of them than the quarter.
            rig.send_text(publisher, &small);
            sent += 1;
        }
        rig.advance_ms(50);
        waited_ms += 50;
        heard += rig.frames(reader).len();
        assert!(waited_ms < 20_000, "{heard} received");
    }
    assert!(waited_ms >= 1_000, "{waited_ms} ms");
    // A second for the first quarter, a tenth of one for each message after it, and the sweep's rounds.
    assert!(waited_ms < 4_500, "{waited_ms} ms for 12 messages");
}

/// Without a limit, the server would read so much of this publisher that every subscriber would lag by seconds.
#[test]
fn subscribers_of_two_channels_with_an_alternating_publisher_stay_bounded() {
    const SUBSCRIBERS: usize = 50;
    const MESSAGES: usize = 4_000;
    let limits = Limits { outbox_bytes_max: 400_000, publish_pause_ms: 1_000_000, ..limits() };
    let most = limits.outbox_bytes_max;
    let mut rig = Rig::new(limits);
    let publisher = join_v1(&mut rig, "/ws");
    let subscribers: Vec<SlotId> = (0..SUBSCRIBERS)
        .map(|_| {
            let id = join_v1(&mut rig, "/ws/a");
            rig.send_text(id, r#"{"type":"subscribe","ch":"b"}"#);
            rig.run_until_idle();
            rig.pipe(id).outgoing.clear();
            // It reads that much in each turn.
            rig.set_behavior(id, Behavior::LimitedWrites(10_000));
            id
        })
        .collect();
    for number in 0..MESSAGES {
        let channel = ["a", "b"][number % 2];
        let command =
            format!(r#"{{"type":"publish","ch":"{channel}","text":"{number:>200}","ref":{number}}}"#);
        rig.send_text(publisher, &command);
    }
    // It reads its acknowledgements late.
    rig.set_behavior(publisher, Behavior::Stalled);
    let mut turns = 0;
    loop {
        rig.turn();
        turns += 1;
        for id in [publisher].into_iter().chain(subscribers.iter().copied()) {
            let cost = rig.engine.slots.get(id).expect("no client is closed").outbox.cost();
            assert!(cost <= most, "{cost} bytes wait in turn {turns}");
        }
        if turns == 20 {
            assert!(!rig.pipe(publisher).incoming.is_empty(), "it is not read on");
            rig.set_behavior(publisher, Behavior::LimitedWrites(50_000));
        }
        let done = |rig: &mut Rig| rig.pipe(publisher).incoming.is_empty();
        if turns > 20
            && done(&mut rig)
            && subscribers.iter().all(|&id| rig.engine.slots.get(id).unwrap().outbox.is_empty())
        {
            break;
        }
        assert!(turns < 20_000);
    }
    rig.run_until_idle();
    assert_eq!(rig.frames(publisher).len(), MESSAGES, "each is acknowledged");
    for id in subscribers {
        let texts: Vec<usize> = rig
            .texts(id)
            .iter()
            .map(|text| {
                let value: serde_json::Value = serde_json::from_str(text).unwrap();
                value["text"].as_str().unwrap().trim().parse().unwrap()
            })
            .collect();
        assert_eq!(texts, (0..MESSAGES).collect::<Vec<_>>());
    }
    assert!(rig.engine.shared.metrics.publish_pauses > 0);
}

#[test]
fn publisher_at_full_speed_closes_none_of_a_thousand_reading_subscribers() {
    const SUBSCRIBERS: usize = 1_000;
    const MESSAGES: usize = 1_000;
    let server = Server::start(&[
        "--outbox-bytes-max=448KiB",
        "--body-bytes-max=64KiB",
        "--slow-timeout-ms=60000",
        "--publish-pause-ms=60000",
        "--history-messages-max=0",
    ]);
    let mut publisher = server.join("/ws?echo=0");
    let payload = |number: usize| format!("{number:>1000}").into_bytes();
    let mut expected = Vec::new();
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        expected.extend(frames::header(0x80 | TEXT, 0, 1_000));
        expected.extend(payload(number));
        sent.extend(frames::masked(TEXT, &payload(number)));
    }
    let mut poll = Poll::new().unwrap();
    let mut subscribers: Vec<(mio::net::TcpStream, usize)> = (0..SUBSCRIBERS)
        .map(|key| {
            let Client { stream, received, .. } = server.join("/ws");
            assert!(received.is_empty());
            // So that the kernel does not hold all of it.
            socket2::SockRef::from(&stream).set_recv_buffer_size(32 << 10).unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(key), Interest::READABLE).unwrap();
            (stream, 0)
        })
        .collect();
    let publishes = std::thread::spawn(move || {
        publisher.stream.write_all(&sent).unwrap();
        publisher
    });
    let mut events = Events::with_capacity(1_024);
    let mut buffer = vec![0; 64 << 10];
    let mut left = SUBSCRIBERS;
    while left > 0 {
        poll.poll(&mut events, Some(3 * TEST_TIMEOUT)).unwrap();
        assert!(!events.is_empty(), "{left} subscribers wait for more");
        for event in &events {
            let (stream, got) = &mut subscribers[event.token().0];
            loop {
                let count = match stream.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error} after {got} bytes"),
                };
                assert!(count > 0, "closed after {got} bytes");
                assert!(expected[*got..].starts_with(&buffer[..count]), "another byte after {got}");
                *got += count;
                if *got == expected.len() {
                    left -= 1;
                }
            }
        }
    }
    drop((publishes.join().unwrap(), subscribers));
    assert_eq!(counter(&server.stop(), "closed_slow"), 0);
}

#[test]
fn paused_publisher_that_is_closed_gets_its_close_frame_at_once() {
    let mut rig = Rig::new(limits());
    let publisher = rig.join("/ws?echo=0");
    stalled_subscriber(&mut rig, publisher, 4);
    assert!(is_publishing_paused(&rig, publisher));
    let now = rig.now;
    rig.engine.close(publisher, Reason::Forbidden, now);
    rig.run_until_idle();
    assert_eq!(rig.frames(publisher).last().unwrap().close_code().1, "forbidden");
}

#[test]
fn quiet_channel_of_a_subscriber_lagging_on_another_is_not_paused() {
    let mut rig = Rig::new(limits());
    let publisher = rig.join("/ws/busy?echo=0");
    let slow = join_v1(&mut rig, "/ws/busy");
    rig.send_text(slow, r#"{"type":"subscribe","ch":"quiet"}"#);
    rig.run_until_idle();
    let later = rig.join("/ws/later?echo=0");
    rig.set_behavior(slow, Behavior::Stalled);
    for number in 0..4 {
        rig.send_text(publisher, &message(number));
        rig.run_until_idle();
    }
    assert!(is_publishing_paused(&rig, publisher));
    // Its response is pending, and it is not read again: this is its last request.
    rig.send_text(slow, r#"{"type":"subscribe","ch":"later"}"#);
    rig.run_until_idle();
    let quiet = rig.connect(Behavior::Cooperative);
    rig.send(quiet, publish("quiet", "hello").as_bytes());
    rig.send_text(later, "hello");
    rig.run_until_idle();
    assert_eq!(rig.responses(quiet).len(), 1);
    assert!(!is_publishing_paused(&rig, quiet) && !is_publishing_paused(&rig, later));
    // One that is as busy is paused like the first.
    rig.send(quiet, publish("quiet", &message(0)).as_bytes());
    rig.run_until_idle();
    assert!(is_publishing_paused(&rig, quiet) && rig.responses(quiet).is_empty());
}
