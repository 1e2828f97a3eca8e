//! Compressed messages to subscribers (permessage-deflate): every subscriber has a separate decompressor and window,
//! and must decode the published messages. In memory, over the engine.

use std::process::Command;

use oyez::config::{DeflateMode, DeflateSettings, Limits, OnSlow};

use crate::support::client::Client as Connection;
use crate::support::deflate::{BROWSER, Decoded, Decoder, GORILLA, SMALL_WINDOW, upgrade};
use crate::support::deflate_subscriber::{Subscriber, distinct, patterns, tick};
use crate::support::folder::Folder;
use crate::support::frames::{self, BINARY, TEXT};
use crate::support::http::{get, post};
use crate::support::process::{Server, oyez};
use crate::support::rig::{Behavior, Rig};

fn settings(mode: DeflateMode) -> Limits {
    Limits { deflate: DeflateSettings { mode, ..DeflateSettings::default() }, ..Limits::default() }
}

/// The sizes of the compressed frames.
fn sizes(frames: &[Decoded]) -> Vec<usize> {
    frames.iter().filter(|frame| frame.is_compressed).map(|frame| frame.sent_bytes).collect()
}

fn publish(rig: &mut Rig, channel: &str, text: &str) {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, post(&format!("/v1/publish/{channel}"), "", text).as_bytes());
    rig.turn();
    assert_eq!(rig.responses(id)[0].status, 200);
    rig.send_eof(id);
    rig.turn();
}

#[test]
fn message_is_compressed_in_the_context_of_the_previous_one() {
    let mut rig = Rig::new(Limits::default());
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    publish(&mut rig, "a", &tick(1));
    let got = subscriber.take(&mut rig);
    assert_eq!(
        got.iter().map(|frame| frame.payload.clone()).collect::<Vec<_>>(),
        [tick(0), tick(1)].map(String::into_bytes)
    );
    let sizes = sizes(&got);
    assert!(sizes[1] * 2 < sizes[0], "{sizes:?}");
    let metrics = &rig.engine.shared.metrics;
    assert_eq!((metrics.deflated_in_context, metrics.deflated_without_context), (1, 1));
    assert_eq!(metrics.deflate_sent_bytes as usize, sizes.iter().sum::<usize>() + 4);
    assert_eq!(metrics.deflate_plain_bytes as usize, tick(0).len() + tick(1).len() + 4);
}

#[test]
fn subscriber_that_joins_later_is_in_step_after_one_message() {
    let mut rig = Rig::new(Limits::default());
    let mut first = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    let mut second = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(1));
    publish(&mut rig, "a", &tick(2));
    let (one, two) = (sizes(&first.take(&mut rig)), sizes(&second.take(&mut rig)));
    assert!(one[1] < two[0], "the second has no context yet: {one:?} {two:?}");
    assert_eq!(one[2], two[1], "and then the same bytes");
}

#[test]
fn messages_of_a_batch_refer_to_those_before_them() {
    let mut rig = Rig::new(Limits::default());
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let publisher = rig.join("/ws/a");
    (0..10).for_each(|number| rig.send_text(publisher, &tick(number)));
    let writes = rig.pipe(subscriber.id).writes;
    rig.turn();
    assert_eq!(rig.pipe(subscriber.id).writes, writes + 1, "one write");
    let got = subscriber.take(&mut rig);
    assert_eq!(got.len(), 10);
    let sizes = sizes(&got);
    assert!(sizes[1..].iter().all(|&size| size * 2 < sizes[0]), "{sizes:?}");
}

/// Every subscriber has room for a whole window of previous messages.
fn with_long_context() -> Limits {
    let deflate = DeflateSettings { context_bytes_per_subscriber: 64 << 10, ..DeflateSettings::default() };
    Limits { deflate, ..Limits::default() }
}

#[test]
fn message_may_refer_to_any_since_the_newest_subscriber_joined() {
    let mut rig = Rig::new(with_long_context());
    let mut first = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    for number in 0..8 {
        publish(&mut rig, "a", &distinct(number % 4, number));
    }
    let before = sizes(&first.take(&mut rig));
    assert!(before[..4].iter().all(|&size| size > 200), "each is new: {before:?}");
    assert!(before[4..].iter().all(|&size| size < 40), "each as the one of four messages before: {before:?}");
    let mut second = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    for number in 8..16 {
        publish(&mut rig, "a", &distinct(number % 4, number));
    }
    let (one, two) = (first.take(&mut rig), second.take(&mut rig));
    assert_eq!(one[1..], two[1..], "the same bytes from the second on");
    let (one, two) = (sizes(&one), sizes(&two));
    assert!(one[0] < 40 && two[0] > 200, "fresh: {one:?} {two:?}");
    assert!(two[1..4].iter().all(|&size| size > 200), "it did not receive what these resemble: {two:?}");
    assert!(two[4..].iter().all(|&size| size < 40), "{two:?}");
}

#[test]
fn context_is_bounded_by_its_subscribers() {
    let mut rig = Rig::new(Limits::default());
    let join = |rig: &mut Rig, count| -> Vec<Subscriber> {
        (0..count).map(|_| Subscriber::join(rig, "/ws/a", BROWSER)).collect()
    };
    let mut subscribers = join(&mut rig, 15);
    let publish_all = |rig: &mut Rig| {
        (0..100).for_each(|number| publish(rig, "a", &distinct(number, number)));
        rig.engine.hub.context_bytes()
    };
    let last = distinct(99, 99).len();
    assert_eq!(publish_all(&mut rig), last, "of few subscribers it is the last message");
    subscribers.extend(join(&mut rig, 85));
    let of_hundred = publish_all(&mut rig);
    assert!((6_000..=100 * 64 + last).contains(&of_hundred), "{of_hundred}");
    subscribers.extend(join(&mut rig, 900));
    let of_thousand = publish_all(&mut rig);
    assert!((32_000..=(32 << 10) + last).contains(&of_thousand), "a whole window: {of_thousand}");
    for subscriber in subscribers.drain(100..) {
        rig.send_eof(subscriber.id);
    }
    rig.run_until_idle();
    assert!(rig.engine.hub.context_bytes() <= 2 * 100 * 64 + last, "{}", rig.engine.hub.context_bytes());
    publish(&mut rig, "a", &distinct(98, 0));
    for subscriber in [0, 99] {
        let last = subscribers[subscriber].take(&mut rig).pop().unwrap();
        assert_eq!(last.payload, distinct(98, 0).into_bytes());
        assert!(last.sent_bytes < 40, "what is left of it is the end of the windows: {}", last.sent_bytes);
    }
}

#[test]
fn context_of_earlier_messages_is_dropped_first_over_the_limit() {
    let deflate = DeflateSettings { context_bytes_max: 3_000, ..with_long_context().deflate };
    let mut rig = Rig::new(Limits { deflate, ..Limits::default() });
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    for number in 0..40 {
        publish(&mut rig, "a", &distinct(7, number));
        assert!(rig.engine.hub.context_bytes() <= 3_000);
    }
    let sizes = sizes(&subscriber.take(&mut rig));
    assert!(sizes[1..].iter().all(|&size| size < 40), "there is always the last one: {sizes:?}");
}

#[test]
fn merged_batch_ends_with_the_messages_after_the_last_one_of_another_channel() {
    let mut rig = Rig::new(with_long_context());
    let mut both = Subscriber::v1(&mut rig, BROWSER, &["a", "b"]);
    let mut one = Subscriber::v1(&mut rig, BROWSER, &["a"]);
    let publisher = Subscriber::v1(&mut rig, BROWSER, &[]);
    let publish_together = |rig: &mut Rig, messages: &[(&str, u64)]| {
        for (channel, key) in messages {
            let text = distinct(*key, *key);
            rig.send_text(publisher.id, &format!(r#"{{"type":"publish","ch":"{channel}","text":"{text}"}}"#));
        }
        rig.turn();
    };
    publish_together(&mut rig, &[("a", 0)]);
    publish_together(&mut rig, &[("a", 1), ("b", 2), ("a", 3), ("a", 4)]);
    both.take(&mut rig);
    one.take(&mut rig);
    for (key, is_known) in [(4, true), (3, true), (1, false), (0, false)] {
        publish_together(&mut rig, &[("a", key)]);
        let got = (both.take(&mut rig), one.take(&mut rig));
        assert_eq!(got.0, got.1, "in step");
        assert_eq!(got.0[0].sent_bytes < 100, is_known, "{key}: {got:?}");
    }
    // A batch that is merged with a batch in which no message is compressed.
    publish_together(&mut rig, &[("a", 5)]);
    rig.send_text(publisher.id, r#"{"type":"publish","ch":"b","text":"x"}"#);
    publish_together(&mut rig, &[("a", 6)]);
    publish_together(&mut rig, &[("a", 5)]);
    assert_eq!(both.take(&mut rig).last(), one.take(&mut rig).last());
}

#[test]
fn batch_without_compressed_messages_changes_no_context() {
    let mut rig = Rig::new(Limits::default());
    let mut first = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    let mut second = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", "short");
    publish(&mut rig, "a", &tick(1));
    publish(&mut rig, "a", "short");
    publish(&mut rig, "a", &tick(2));
    let expected = |numbers: &[&str]| numbers.iter().map(|text| text.to_string()).collect::<Vec<_>>();
    let (t0, t1, t2) = (tick(0), tick(1), tick(2));
    let got = first.take(&mut rig);
    let size = sizes(&got);
    assert!(size[1] * 2 < size[0] && size[2] * 2 < size[0], "it stays in step: {size:?}");
    let texts = |got: Vec<Decoded>| {
        got.into_iter().map(|frame| String::from_utf8(frame.payload).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(texts(got), expected(&[&t0, "short", &t1, "short", &t2]));
    assert_eq!(texts(second.take(&mut rig)), expected(&["short", &t1, "short", &t2]));
}

#[test]
fn only_texts_of_the_minimum_size_are_compressed() {
    let mut rig = Rig::new(Limits::default());
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let publisher = rig.join("/ws/a");
    rig.send_text(publisher, &"x".repeat(63));
    rig.send_text(publisher, &"x".repeat(64));
    rig.send(publisher, &frames::masked(BINARY, &[b'x'; 1_000]));
    rig.turn();
    let compressed: Vec<bool> = subscriber.take(&mut rig).iter().map(|frame| frame.is_compressed).collect();
    assert_eq!(compressed, [false, true, false]);
}

#[test]
fn connection_without_context_receives_each_message_alone() {
    for (mode, offer) in [(DeflateMode::Fresh, BROWSER), (DeflateMode::Context, GORILLA)] {
        let mut rig = Rig::new(settings(mode));
        let mut subscriber = Subscriber::join(&mut rig, "/ws/a", offer);
        // As if it had agreed to lose its window: none of the messages needs it.
        subscriber.decoder =
            Decoder::of_response("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover");
        let publisher = rig.join("/ws/a");
        for _ in 0..3 {
            (0..3).for_each(|number| rig.send_text(publisher, &tick(number)));
            rig.turn();
        }
        let got = subscriber.take(&mut rig);
        assert!(got.len() == 9 && got.iter().all(|frame| frame.is_compressed));
        let expected: Vec<String> = (0..9).map(|number| tick(number % 3)).collect();
        let texts: Vec<String> =
            got.into_iter().map(|frame| String::from_utf8(frame.payload).unwrap()).collect();
        assert_eq!(texts, expected);
    }
}

#[test]
fn alone_compressed_messages_of_a_batch_are_bounded() {
    let limits = Limits { ping_interval_ms: 0, ..settings(DeflateMode::Fresh) };
    let mut rig = Rig::new(limits);
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let publisher = rig.join("/ws/a");
    (0..300).for_each(|number| rig.send_text(publisher, &tick(number)));
    rig.turn();
    rig.run_until_idle();
    let got = subscriber.take(&mut rig);
    assert_eq!(got.len(), 300);
    assert!(got.iter().filter(|frame| frame.is_compressed).count() < 300);
}

#[test]
fn small_window_and_no_offer_receive_plain_messages() {
    let mut rig = Rig::new(Limits::default());
    let mut small = Subscriber::join(&mut rig, "/ws/a", SMALL_WINDOW);
    let plain = rig.join("/ws/a");
    publish(&mut rig, "a", &tick(0));
    assert!(!small.take(&mut rig)[0].is_compressed);
    assert_eq!(rig.texts(plain), [tick(0)]);
    assert_eq!(rig.engine.shared.metrics.deflate_sent_bytes, 0);
}

#[test]
fn subscriber_that_misses_its_own_message_is_fresh_for_the_next() {
    let mut rig = Rig::new(Limits::default());
    let mut quiet = Subscriber::join(&mut rig, "/ws/a?echo=0", BROWSER);
    let mut other = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    rig.send_text(quiet.id, &tick(1));
    rig.turn();
    publish(&mut rig, "a", &tick(2));
    publish(&mut rig, "a", &tick(3));
    let got = quiet.take(&mut rig);
    let (quiet_sizes, other_sizes) = (sizes(&got), sizes(&other.take(&mut rig)));
    assert_eq!(quiet_sizes.len(), 3);
    assert!(quiet_sizes[1] > other_sizes[2], "{quiet_sizes:?} {other_sizes:?}");
    assert_eq!(quiet_sizes[2], other_sizes[3]);
}

#[test]
fn part_of_a_batch_is_sent_plain() {
    let mut rig = Rig::new(Limits::default());
    let mut quiet = Subscriber::join(&mut rig, "/ws/a?echo=0", BROWSER);
    let publisher = rig.join("/ws/a");
    publish(&mut rig, "a", &tick(0));
    quiet.take(&mut rig);
    rig.send_text(publisher, &tick(1));
    rig.send_text(quiet.id, &tick(2));
    rig.turn();
    rig.send_text(publisher, &tick(3));
    rig.turn();
    let got = quiet.take(&mut rig);
    assert_eq!(got.iter().map(|frame| frame.is_compressed).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn subscriber_of_several_channels_is_in_step_with_the_channel_of_its_last_message() {
    let mut rig = Rig::new(Limits::default());
    let mut both = Subscriber::v1(&mut rig, BROWSER, &["a", "b"]);
    let mut one = Subscriber::v1(&mut rig, BROWSER, &["a"]);
    for (channel, number) in [("a", 0), ("a", 1), ("b", 2), ("a", 3), ("a", 4)] {
        publish(&mut rig, channel, &tick(number));
    }
    let (both, one) = (sizes(&both.take(&mut rig)), sizes(&one.take(&mut rig)));
    assert_eq!(both[..2], one[..2], "as long as one channel has messages");
    assert!(both[3] > 2 * one[2], "fresh after another channel: {both:?} {one:?}");
    assert_eq!(both[4], one[3]);
}

#[test]
fn merged_batches_end_in_step_with_the_channel_of_the_last_message() {
    let mut rig = Rig::new(Limits::default());
    let mut both = Subscriber::v1(&mut rig, BROWSER, &["a", "b"]);
    let mut alone = Subscriber::v1(&mut rig, GORILLA, &["a", "b"]);
    let mut one = Subscriber::v1(&mut rig, BROWSER, &["a"]);
    let publisher = Subscriber::v1(&mut rig, BROWSER, &[]);
    for (channel, number) in [("a", 0), ("b", 1), ("a", 2)] {
        rig.send_text(
            publisher.id,
            &format!(r#"{{"type":"publish","ch":"{channel}","data":{}}}"#, tick(number)),
        );
    }
    rig.turn();
    let got = both.texts(&mut rig);
    assert_eq!(got.len(), 3);
    assert!((0..3).all(|index| got[index as usize].contains(&tick(index))), "{got:?}");
    assert_eq!(alone.texts(&mut rig), got);
    one.take(&mut rig);
    publish(&mut rig, "a", &tick(3));
    assert_eq!(both.take(&mut rig), one.take(&mut rig), "in step");
    alone.take(&mut rig);
}

#[test]
fn excluded_channel_is_plain_and_leaves_no_context() {
    let mut rig = Rig::new(Limits::default());
    rig.engine.hub.exclude_from_compression(patterns("account.*,photos"));
    let channels = ["account.7", "photos", "a"];
    let mut raw = channels.map(|channel| Subscriber::join(&mut rig, &format!("/ws/{channel}"), BROWSER));
    let mut enveloped = channels.map(|channel| Subscriber::v1(&mut rig, BROWSER, &[channel]));
    for number in 0..2 {
        channels.iter().for_each(|channel| publish(&mut rig, channel, &tick(number)));
    }
    for subscribers in [&mut raw, &mut enveloped] {
        let got = subscribers.each_mut().map(|subscriber| subscriber.take(&mut rig));
        assert_eq!(
            got.each_ref().map(|frames| (frames.len(), sizes(frames).len())),
            [(2, 0), (2, 0), (2, 2)]
        );
    }
    let envelope = format!(r#"{{"ch":"a","data":{}}}"#, tick(1)).len();
    assert!(rig.engine.hub.context_bytes() < tick(1).len() + 2 * envelope, "of one channel");
}

#[test]
fn merged_batches_with_an_excluded_channel_are_plain() {
    let mut rig = Rig::new(Limits::default());
    rig.engine.hub.exclude_from_compression(patterns("secret"));
    let mut both = Subscriber::v1(&mut rig, BROWSER, &["a", "b", "secret"]);
    let mut one = Subscriber::v1(&mut rig, BROWSER, &["a"]);
    let publisher = Subscriber::v1(&mut rig, BROWSER, &[]);
    let publish_together = |rig: &mut Rig, channels: &[&str]| {
        for (number, channel) in channels.iter().enumerate() {
            let data = tick(number as u64);
            rig.send_text(publisher.id, &format!(r#"{{"type":"publish","ch":"{channel}","data":{data}}}"#));
        }
        rig.turn();
    };
    publish_together(&mut rig, &["a", "b"]);
    assert_eq!(sizes(&both.take(&mut rig)).len(), 2);
    publish_together(&mut rig, &["a", "secret", "a"]);
    let got = both.take(&mut rig);
    assert_eq!(
        (got.len(), sizes(&got).len()),
        (3, 0),
        "the lengths of the others would depend on the excluded one"
    );
    publish_together(&mut rig, &["a"]);
    let got = both.texts(&mut rig);
    assert!(got.len() == 1 && got[0].contains(&tick(0)), "{got:?}");
    assert_eq!(sizes(&one.take(&mut rig)).len(), 4);
}

#[test]
fn excluded_channels_are_set_by_flag_and_variable() {
    let folder = Folder::new();
    let history = format!("--history-file={}", folder.path("history"));
    let start = |set: &dyn Fn(&mut Command)| {
        let mut command = oyez(&["serve", "--listen=127.0.0.1:0", &history]);
        set(&mut command);
        Server::start_command(command)
    };
    // The second server continues the history of the first one.
    let by_flag = |command: &mut Command| {
        command.args(["--deflate-exclude", "account.*, photos", "--deflate-exclude", "videos"]);
    };
    let by_variable = |command: &mut Command| {
        command.env("OYEZ_DEFLATE_EXCLUDE", "account.*,photos,videos");
    };
    for set in [&by_flag as &dyn Fn(&mut Command), &by_variable] {
        let server = start(set);
        for channel in ["account.7", "photos", "videos"] {
            let mut client = Connection::new(server.connect());
            client.send(upgrade(&format!("/ws/{channel}"), BROWSER).as_bytes());
            assert!(client.head().contains("permessage-deflate"));
            client.send_text(&tick(0));
            assert_eq!(client.text(), tick(0), "a compressed frame would be rejected");
        }
        let page = Connection::new(server.connect()).ask(get("/metrics")).body;
        assert!(page.contains("oyez_deflated_messages_total{context=\"none\"} 0\n"));
        server.stop();
    }
    let output = oyez(&["serve", "--deflate-exclude", "a,*.b"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("*.b") && text.contains("at the end") && text.contains("--deflate-exclude"),
        "{text}"
    );
}

#[test]
fn context_is_dropped_with_the_last_subscriber_and_over_its_limit() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    assert_eq!(rig.engine.hub.context_bytes(), tick(0).len());
    rig.send_eof(subscriber.id);
    rig.run_until_idle();
    assert_eq!(rig.engine.hub.context_bytes(), 0);
    let deflate = DeflateSettings { context_bytes_max: tick(0).len() + 50, ..DeflateSettings::default() };
    let mut rig = Rig::new(Limits { deflate, ..Limits::default() });
    let mut a = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let mut b = Subscriber::join(&mut rig, "/ws/b", BROWSER);
    for number in 0..3 {
        publish(&mut rig, "a", &tick(number));
        publish(&mut rig, "b", &tick(number));
    }
    let (a, b) = (sizes(&a.take(&mut rig)), sizes(&b.take(&mut rig)));
    assert!(a[1] * 2 < a[0] && a[2] * 2 < a[0], "{a:?}");
    assert_eq!(b[0], a[0]);
    assert!(b[1] * 2 > b[0] && b[2] * 2 > b[0], "each without context: {b:?}");
}

#[test]
fn numbers_of_messages_begin_again_without_a_wrong_context() {
    let mut rig = Rig::new(Limits::default());
    let mut subscriber = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let mut quiet = Subscriber::join(&mut rig, "/ws/a?echo=0", BROWSER);
    // The window of a client that misses its own messages ends with message number 1.
    publish(&mut rig, "a", &tick(0));
    rig.engine.shared.deflater.exhaust();
    rig.send_text(quiet.id, &tick(1));
    rig.turn();
    assert!(rig.engine.shared.deflater.is_exhausted());
    // After the restart, this message has number 1 too.
    rig.send_text(quiet.id, &tick(2));
    rig.turn();
    assert!(!rig.engine.shared.deflater.is_exhausted());
    publish(&mut rig, "a", &tick(3));
    publish(&mut rig, "a", &tick(4));
    assert_eq!(quiet.texts(&mut rig), [tick(0), tick(3), tick(4)]);
    let got = subscriber.take(&mut rig);
    let size = sizes(&got);
    let texts: Vec<Vec<u8>> = got.into_iter().map(|frame| frame.payload).collect();
    assert_eq!(texts, (0..5).map(|number| tick(number).into_bytes()).collect::<Vec<_>>());
    assert!(size[1] < size[2] && size[4] < size[2], "one of them is fresh: {size:?}");
}

#[test]
fn replay_is_plain_and_the_next_message_fresh() {
    let mut rig = Rig::new(Limits::default());
    let mut first = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    publish(&mut rig, "a", &tick(1));
    let mut late = Subscriber::join(&mut rig, "/ws/a?since=earliest", BROWSER);
    rig.run_until_idle();
    publish(&mut rig, "a", &tick(2));
    publish(&mut rig, "a", &tick(3));
    let got = late.take(&mut rig);
    assert_eq!(got.iter().map(|frame| frame.is_compressed).collect::<Vec<_>>(), [false, false, true, true]);
    assert_eq!(first.take(&mut rig).pop(), got.last().cloned());
}

#[test]
fn raw_subscriber_that_skipped_a_batch_is_fresh_for_the_next() {
    let mut rig = Rig::new(Limits {
        on_slow: OnSlow::Skip,
        outbox_bytes_max: 60_000,
        read_bytes_per_turn: 16 << 10,
        message_bytes_max: 16 << 10,
        body_bytes_max: 16 << 10,
        publish_pause_ms: 0,
        ping_interval_ms: 0,
        ..Limits::default()
    });
    let mut slow = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    let mut other = Subscriber::join(&mut rig, "/ws/a", BROWSER);
    publish(&mut rig, "a", &tick(0));
    rig.set_behavior(slow.id, Behavior::Stalled);
    // Binary messages fill the outbox, and then no text fits.
    let publisher = rig.join("/ws/a");
    for _ in 0..6 {
        rig.send(publisher, &frames::masked(BINARY, &[0; 15_000]));
        rig.turn();
    }
    (0..100).for_each(|_| publish(&mut rig, "a", &tick(1)));
    assert!(rig.engine.shared.metrics.messages_skipped > 10);
    rig.set_behavior(slow.id, Behavior::Cooperative);
    rig.engine.slots.mark_writable(slow.id);
    rig.run_until_idle();
    publish(&mut rig, "a", &tick(2));
    publish(&mut rig, "a", &tick(3));
    let texts = |got: Vec<Decoded>| -> Vec<String> {
        let texts = got.into_iter().filter(|frame| frame.opcode == TEXT);
        texts.map(|frame| String::from_utf8(frame.payload).unwrap()).collect()
    };
    let got = texts(slow.take(&mut rig));
    assert_eq!((&got[0], &got[got.len() - 2..]), (&tick(0), &[tick(2), tick(3)][..]));
    assert!(got.len() < 103);
    assert_eq!(texts(other.take(&mut rig)).len(), 103);
}
