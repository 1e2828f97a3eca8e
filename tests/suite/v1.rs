//! `oyez.v1`: requests, responses, notices and replays. Exact transcripts on real servers, and in memory turn by
//! turn, where slow peers, evictions and interleavings are exact.

use oyez::config::{HistoryLimits, Limits, OnSlow};
use oyez::ids::SlotId;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::frames::{self, BINARY, TEXT};
use crate::support::http::{get, post, publish};
use crate::support::process::Server;
use crate::support::rig::{Behavior, Rig};
use crate::support::v1::V1Client;

/// Without the ids, which differ from run to run.
fn plain(mut value: Value) -> Value {
    for name in ["id", "from"] {
        if let Some(text) = value.get_mut(name) {
            *text = json!("-");
        }
    }
    value
}

#[test]
fn hello_has_the_idempotency_key_lifetime() {
    for (flags, age_ms) in [
        (["--idempotency-keys-max=0", "--idempotency-age-seconds=60"], 0),
        (["--idempotency-keys-max=9", "--idempotency-age-seconds=60"], 60_000),
    ] {
        assert_eq!(V1Client::connect(&Server::start(&flags), "/ws").1["key_age_ms"], age_ms, "{flags:?}");
    }
}

#[test]
fn session_has_its_exact_transcript() {
    let server = Server::start(&["--ping-interval-ms=25000"]);
    let (mut one, hello) = V1Client::connect(&server, "/ws");
    assert_eq!(hello["ping_ms"], 25_000);
    assert_eq!(hello["message_bytes_max"], 65_536);
    assert_eq!((&hello["key_age_ms"], hello.get("expires_ms")), (&json!(300_000), None));
    let (mut two, other) = V1Client::connect(&server, "/ws/a");
    assert_ne!(hello["client"], other["client"]);
    assert_eq!(plain(two.receive()), json!({"type": "subscribed", "ch": "a", "id": "-", "subscribers": 1}));
    one.send(json!({"type": "subscribe", "ch": "a", "future_field": [1, {"x": 2}]}));
    assert_eq!(plain(one.receive()), json!({"type": "subscribed", "ch": "a", "id": "-", "subscribers": 2}));
    one.send(json!({"type": "publish", "ch": "a", "data": {"x": [1, 2.5, null]}, "ref": 7}));
    let ack = one.receive();
    assert_eq!(plain(ack.clone()), json!({"type": "ack", "ref": 7, "id": "-"}));
    let message =
        json!({"ch": "a", "id": ack["id"], "n": 1, "from": hello["client"], "data": {"x": [1, 2.5, null]}});
    assert_eq!(one.receive(), message, "the sender is a subscriber like others");
    assert_eq!(two.receive(), message);
    two.send(json!({"type": "publish", "ch": "a", "text": "häh\n\"\u{2028}", "ref": "r"}));
    assert_eq!(two.receive()["ref"], "r");
    assert_eq!(
        plain(one.receive()),
        json!({"ch": "a", "id": "-", "n": 2, "from": "-", "text": "häh\n\"\u{2028}"})
    );
    two.receive();
    one.send(json!({"type": "publish", "ch": "a", "base64": "AP8="}));
    assert_eq!(plain(one.receive()), json!({"type": "ack", "id": "-"}));
    assert_eq!(one.receive()["base64"], "AP8=");
    one.send(json!({"type": "unsubscribe", "ch": "a"}));
    assert_eq!(one.receive(), json!({"type": "unsubscribed", "ch": "a"}));
    one.send(json!({"type": "publish", "ch": "a", "data": [null]}));
    assert_eq!(one.receive()["type"], "ack", "one need not be a subscriber to publish");
    one.send(json!({"type": "ping"}));
    assert_eq!(one.receive(), json!({"type": "pong"}));
    assert_eq!(two.receive()["base64"], "AP8=");
    assert_eq!(two.receive()["data"], json!([null]));
}

#[test]
fn publish_of_null_is_an_error_and_reaches_no_subscriber() {
    let server = Server::start(&[]);
    let (mut client, _) = V1Client::connect(&server, "/ws/a");
    client.receive();
    for fields in [json!({"data": null}), json!({"data": null, "text": null, "base64": null}), json!({})] {
        let mut command = json!({"type": "publish", "ch": "a", "ref": 7});
        command.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        client.send(command);
        let error = client.receive();
        assert_eq!(
            (&error["type"], &error["ref"], &error["code"]),
            (&json!("error"), &json!(7), &json!("bad_payload"))
        );
    }
    // In addition to another payload, null counts as absent.
    client.send(json!({"type": "publish", "ch": "a", "ref": null, "data": null, "text": "x"}));
    assert_eq!(client.receive()["type"], "ack");
    let message = client.receive();
    assert_eq!((&message["text"], &message["n"]), (&json!("x"), &json!(1)), "no earlier message");
}

#[test]
fn raw_and_v1_clients_share_a_channel() {
    let server = Server::start(&[]);
    let mut raw = server.join("/ws/a");
    let (mut subscriber, _) = V1Client::connect(&server, "/ws/a");
    assert_eq!(subscriber.receive()["subscribers"], 2);
    raw.send_text("from raw");
    assert_eq!(raw.text(), "from raw");
    assert_eq!(subscriber.receive()["text"], "from raw");
    raw.send(&frames::masked(BINARY, &[0, 255]));
    assert_eq!(raw.frame().payload, [0, 255]);
    assert_eq!(subscriber.receive()["base64"], "AP8=");
    subscriber.send(json!({"type": "publish", "ch": "a", "data": [1, 2]}));
    let frame = raw.frame();
    assert_eq!((frame.opcode, &frame.payload[..]), (TEXT, &b"[1,2]"[..]));
    subscriber.send(json!({"type": "publish", "ch": "a", "base64": "AP8="}));
    assert_eq!(raw.frame().opcode, BINARY);
}

#[test]
fn invalid_request_gets_an_error_and_the_connection_stays() {
    let server = Server::start(&["--channels-per-client-max=2", "--channels-max=3"]);
    let (mut subscriber, _) = V1Client::connect(&server, "/ws/a");
    assert_eq!(subscriber.receive()["type"], "subscribed");
    let mut check = |request: Value, code: &str| {
        let mut request = request;
        request["ref"] = json!(code);
        subscriber.send(request.clone());
        let answer = subscriber.receive();
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!(code)),
            "{request}: {answer}"
        );
        assert_eq!(answer["ref"], code, "{answer}");
        if let Some(channel) = request.get("ch").filter(|_| code != "bad_channel" && code != "drain") {
            assert!(answer.get("ch").is_none_or(|ch| ch == channel), "{answer}");
        }
    };
    check(json!({"type": "nonsense"}), "unknown_type");
    check(json!({}), "unknown_type");
    check(json!({"type": "subscribe", "ch": "a b"}), "bad_channel");
    check(json!({"type": "subscribe", "ch": "a"}), "already_subscribed");
    check(json!({"type": "subscribe", "ch": "b", "since": "x".repeat(64_000)}), "bad_cursor");
    check(json!({"type": "unsubscribe", "ch": "b"}), "not_subscribed");
    check(json!({"type": "publish", "ch": "a"}), "bad_payload");
    check(json!({"type": "auth", "token": "x"}), "no_auth");
    subscriber.send(json!({"type": "subscribe", "ch": "b"}));
    assert_eq!(subscriber.receive()["type"], "subscribed");
    let mut check = |request: Value, code: &str| {
        subscriber.send(request);
        assert_eq!(subscriber.receive()["code"], code);
    };
    check(json!({"type": "subscribe", "ch": "c"}), "too_many_channels");
    check(json!({"type": "publish", "ch": "d", "data": 1, "ref": {}}), "bad_ref");
    check(json!({"type": "publish", "ch": "d", "data": 1}), "too_many_channels");
    let (mut other, _) = V1Client::connect(&server, "/ws");
    other.send(json!({"type": "publish", "ch": "d", "data": 1}));
    assert_eq!(other.receive()["type"], "ack", "the third channel, kept for its history");
    other.send(json!({"type": "publish", "ch": "e", "data": 1}));
    assert_eq!(other.receive()["code"], "over_capacity");
    subscriber.0.send_text("{\"type\":");
    assert_eq!(subscriber.receive()["code"], "bad_json");
    subscriber.0.send(&frames::masked(BINARY, b"{}"));
    assert_eq!(subscriber.0.closed_with(), (1003, "unsupported".into()));
}

#[test]
fn repeated_idempotency_key_is_published_once() {
    let server = Server::start(&["--idempotency-keys-max=2"]);
    let mut raw = server.join("/ws/a");
    let (mut one, _) = V1Client::connect(&server, "/ws");
    let publish =
        |key: &str, text: &str| json!({"type": "publish", "ch": "a", "text": text, "key": key, "ref": 1});
    one.send(publish("k", "once"));
    let first = one.receive();
    // As after a lost connection: another connection, the same key.
    let (mut again, _) = V1Client::connect(&server, "/ws");
    again.send(publish("k", "once"));
    assert_eq!(again.receive(), first);
    let post = "POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k\r\nContent-Length: 4\r\nConnection: close\r\n\r\nonce";
    let answer = server.ask(post);
    assert!(answer.contains(&format!("{{\"id\":{},\"subscribers\":1}}", first["id"])), "{answer}");
    assert!(
        server
            .ask(post.replace("Idempotency-Key: k", &format!("Idempotency-Key: {}", "k".repeat(129))))
            .contains(" 400 ")
    );
    assert_eq!(raw.text(), "once");
    for key in ["l", "m"] {
        one.send(publish(key, key));
        one.receive();
        assert_eq!(raw.text(), key);
    }
    one.send(publish("k", "the key is forgotten"));
    assert_ne!(one.receive()["id"], first["id"]);
    assert_eq!(raw.text(), "the key is forgotten");
}

#[test]
fn different_body_under_the_same_key_is_rejected() {
    let server = Server::start(&[]);
    let mut raw = server.join("/ws/a");
    let (mut one, _) = V1Client::connect(&server, "/ws");
    let publish = |text: &str| json!({"type": "publish", "ch": "a", "text": text, "key": "k", "ref": 1});
    one.send(publish("one"));
    let first = one.receive();
    for (field, value) in [("text", "two"), ("data", "one")] {
        let mut other = json!({"type": "publish", "ch": "a", "key": "k", "ref": 2});
        other[field] = json!(value);
        one.send(other);
        let error = one.receive();
        assert_eq!((&error["code"], &error["ref"]), (&json!("key_reused"), &json!(2)), "{error}");
    }
    let mut client = Client::new(server.connect());
    let lines = "Idempotency-Key: k\r\n";
    let answer = client.ask(post("/v1/publish/a", lines, "two"));
    assert_eq!((answer.status, answer.code().as_str()), (422, "key_reused"));
    assert_eq!(
        client.ask(post("/v1/publish/a", lines, "one")).json()["id"],
        first["id"],
        "the connection is kept"
    );
    assert_eq!(client.ask(post("/v1/publish/b", lines, "two")).status, 200, "each channel has its own");
    assert_eq!(raw.text(), "one");
    one.send(json!({"type": "publish", "ch": "a", "text": "end"}));
    assert_eq!(raw.text(), "end", "nothing else was published");
}

/// All messages that a subscriber in memory has received, as JSON.
fn received(rig: &mut Rig, id: SlotId) -> Vec<Value> {
    rig.texts(id).iter().map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn join(rig: &mut Rig, path: &str, behavior: Behavior) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, frames::upgrade_v1(path).as_bytes());
    rig.turn();
    rig.skip_head(id);
    rig.pipe(id).behavior = behavior;
    id
}

fn send_command(rig: &mut Rig, id: SlotId, request: &Value) {
    rig.send_text(id, &request.to_string());
}

/// The text of each message, and the type of each notice.
fn words(values: &[Value]) -> Vec<String> {
    let word = |value: &Value| value.get("text").or(value.get("type")).unwrap().as_str().unwrap().to_owned();
    values.iter().map(word).collect()
}

#[test]
fn session_split_at_every_byte_has_the_same_transcript() {
    let session = [
        frames::upgrade_v1("/ws/a?since=earliest").into_bytes(),
        frames::masked(TEXT, br#"{"type":"publish","ch":"a","text":"one","ref":1}"#),
        frames::masked(TEXT, br#"{"type":"subscribe","ch":"b"}"#),
        frames::masked(TEXT, br#"{"type":"publish","ch":"b","text":"two","ref":2}"#),
        frames::masked(TEXT, br#"{"type":"ping"}"#),
        frames::masked(TEXT, br#"not json"#),
        frames::masked(TEXT, br#"{"type":"unsubscribe","ch":"a"}"#),
        frames::close(1000, "bye"),
    ]
    .concat();
    let run = |pieces: &[&[u8]]| {
        let mut rig = Rig::new(Limits::default());
        let id = rig.connect(Behavior::Cooperative);
        for piece in pieces {
            rig.send(id, piece);
            rig.turn();
        }
        rig.run_until_idle();
        let mut bytes = std::mem::take(&mut rig.pipe(id).outgoing);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        bytes.drain(..end);
        let frames: Vec<frames::Frame> = std::iter::from_fn(|| frames::take(&mut bytes)).collect();
        assert_eq!(frames.last().unwrap().close_code(), (1000, "bye".into()));
        let text = |frame: &frames::Frame| String::from_utf8(frame.payload.clone()).unwrap();
        // A message may precede or follow notices, depending on the turns.
        let (notices, messages): (Vec<String>, Vec<String>) =
            frames[..frames.len() - 1].iter().map(text).partition(|text| text.contains("\"type\""));
        (notices, messages)
    };
    let whole = run(&[&session]);
    assert_eq!((whole.0.len(), whole.1.len()), (9, 2), "{whole:?}");
    for cut in 1..session.len() {
        assert_eq!(run(&[&session[..cut], &session[cut..]]), whole, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = session.chunks(1).collect();
    assert_eq!(run(&bytes), whole);
}

#[test]
fn hello_has_the_cursor_of_the_subscription() {
    let mut rig = Rig::new(Limits::default());
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    for text in ["1", "2", "3"] {
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": "a", "text": text}));
    }
    rig.run_until_idle();
    for (path, cursor) in [
        ("/ws", "1000-3"),
        ("/ws/a", "1000-3"),
        ("/ws/a?since=1000-2", "1000-2"),
        ("/ws/a?since=latest", "1000-2"),
        ("/ws/a?since=earliest", "1000-0"),
        // A client that loses its connection before the gap notice resumes with its old cursor.
        ("/ws/a?since=1-1", "1-1"),
    ] {
        let subscriber = join(&mut rig, path, Behavior::Cooperative);
        rig.run_until_idle();
        let hello = received(&mut rig, subscriber).swap_remove(0);
        assert_eq!((&hello["type"], &hello["id"]), (&json!("hello"), &json!(cursor)), "{path}");
    }
}

#[test]
fn live_subscriber_has_the_log_head_as_cursor() {
    let mut rig = Rig::new(Limits::default());
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    for ch in ["a", "a", "b"] {
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": ch, "text": ch}));
    }
    rig.run_until_idle();
    for (since, cursors) in [
        ("1000-1", &["1000-1", "1000-2", "1000-3"][..]),
        ("1000-2", &["1000-3", "1000-3"]),
        ("1000-3", &["1000-3", "1000-3"]),
    ] {
        let subscriber = join(&mut rig, "/ws", Behavior::Cooperative);
        rig.run_until_idle();
        received(&mut rig, subscriber);
        send_command(&mut rig, subscriber, &json!({"type": "subscribe", "ch": "a", "since": since}));
        rig.run_until_idle();
        let values = received(&mut rig, subscriber);
        let got: Vec<&str> = values.iter().map(|value| value["id"].as_str().unwrap()).collect();
        assert_eq!(got, cursors, "{since}");
    }
}

#[test]
fn message_larger_than_a_replay_slice_is_replayed() {
    let mut rig = Rig::new(Limits::default());
    let publisher = rig.connect(Behavior::Cooperative);
    for bytes in [1, 100_000, 100_000, 1] {
        rig.send(publisher, publish("a", &"x".repeat(bytes)).as_bytes());
        rig.run_until_idle();
    }
    let subscriber = join(&mut rig, "/ws/a?since=earliest", Behavior::Cooperative);
    rig.run_until_idle();
    let numbers: Vec<u64> =
        received(&mut rig, subscriber).iter().filter_map(|value| value["n"].as_u64()).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}

#[test]
fn subscriber_of_several_channels_gets_log_order() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = join(&mut rig, "/ws/a", Behavior::Cooperative);
    for channel in ["b", "c"] {
        send_command(&mut rig, subscriber, &json!({"type": "subscribe", "ch": channel}));
    }
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    rig.run_until_idle();
    received(&mut rig, subscriber);
    for (number, channel) in "abcabbacacbbca".chars().enumerate() {
        send_command(
            &mut rig,
            publisher,
            &json!({"type": "publish", "ch": channel.to_string(), "text": number.to_string()}),
        );
    }
    rig.run_until_idle();
    let numbers: Vec<String> = (0..14).map(|number| number.to_string()).collect();
    assert_eq!(words(&received(&mut rig, subscriber)), numbers, "all in one turn, and in order");
}

#[test]
fn subscriber_that_joins_between_messages_does_not_change_the_order() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = join(&mut rig, "/ws/a", Behavior::Cooperative);
    send_command(&mut rig, subscriber, &json!({"type": "subscribe", "ch": "b"}));
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    let raw = rig.join("/ws/raw");
    rig.run_until_idle();
    received(&mut rig, subscriber);
    for (channel, text) in [("a", "0"), ("raw", "x")] {
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": channel, "text": text}));
    }
    send_command(&mut rig, publisher, &json!({"type": "subscribe", "ch": "raw"}));
    send_command(&mut rig, publisher, &json!({"type": "publish", "ch": "b", "text": "1"}));
    rig.run_until_idle();
    assert_eq!(words(&received(&mut rig, subscriber)), ["0", "1"]);
    assert_eq!(rig.texts(raw), ["x"]);
}

#[test]
fn subscriber_without_echo_gets_messages_of_others() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = join(&mut rig, "/ws/a?echo=0", Behavior::Cooperative);
    let other = join(&mut rig, "/ws/a", Behavior::Cooperative);
    for text in ["one", "two"] {
        send_command(&mut rig, subscriber, &json!({"type": "publish", "ch": "a", "text": text}));
        send_command(
            &mut rig,
            other,
            &json!({"type": "publish", "ch": "a", "text": format!("other {text}")}),
        );
    }
    rig.run_until_idle();
    assert_eq!(
        words(&received(&mut rig, subscriber)),
        ["hello", "subscribed", "ack", "ack", "other one", "other two"]
    );
    assert_eq!(words(&received(&mut rig, other)).iter().filter(|word| word.ends_with("one")).count(), 2);
}

#[test]
fn subscriber_without_echo_gets_no_replay_of_its_own() {
    let mut rig = Rig::new(Limits::default());
    let subscriber = join(&mut rig, "/ws", Behavior::Cooperative);
    let other = join(&mut rig, "/ws", Behavior::Cooperative);
    let own = |ch: &str, text: &str| json!({"type": "publish", "ch": ch, "text": text});
    for ch in ["a", "b"] {
        send_command(&mut rig, subscriber, &own(ch, "mine"));
        send_command(&mut rig, subscriber, &own(ch, "mine too"));
    }
    rig.run_until_idle();
    send_command(&mut rig, other, &own("a", "another's"));
    rig.run_until_idle();
    let replayed = |rig: &mut Rig, id: SlotId, ch: &str, echo: bool| {
        received(rig, id);
        for request in [
            json!({"type": "subscribe", "ch": ch, "since": "earliest", "echo": echo}),
            json!({"type": "unsubscribe", "ch": ch}),
        ] {
            send_command(rig, id, &request);
            rig.run_until_idle();
        }
        words(&received(rig, id))
    };
    let all = ["subscribed", "mine", "mine too", "another's", "live", "unsubscribed"];
    let others = ["subscribed", "another's", "live", "unsubscribed"];
    // One cursor three times: no client gets a slice that was made for another.
    for (id, echo, expected) in [
        (subscriber, false, &others[..]),
        (other, true, &all),
        (subscriber, false, &others),
        (subscriber, true, &all),
    ] {
        assert_eq!(replayed(&mut rig, id, "a", echo), expected, "{id:?} {echo}");
    }
    assert_eq!(replayed(&mut rig, subscriber, "b", false), ["subscribed", "live", "unsubscribed"]);
}

fn skipping(messages_max: usize) -> Limits {
    Limits {
        on_slow: OnSlow::Skip,
        outbox_bytes_max: 4_000,
        publish_pause_ms: 0,
        slow_timeout_ms: 1_000_000,
        ping_interval_ms: 0,
        history: HistoryLimits { messages_max, ..HistoryLimits::default() },
        ..Limits::default()
    }
}

#[test]
fn duplicate_publish_creates_no_channel() {
    let mut rig = Rig::new(skipping(0));
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    rig.run_until_idle();
    received(&mut rig, publisher);
    for _ in 0..2 {
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": "a", "text": "x", "key": "k"}));
        rig.run_until_idle();
        assert_eq!(received(&mut rig, publisher)[0]["id"], "1000-1");
        assert_eq!(rig.engine.hub.channels(), 0);
    }
}

#[test]
fn message_over_its_age_is_not_replayed_before_the_sweep() {
    let history = HistoryLimits { age_ms: 1_000, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { history, ..Limits::default() });
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    for ch in ["a", "b"] {
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": ch, "text": "x"}));
    }
    rig.run_until_idle();
    let asks = rig.connect(Behavior::Cooperative);
    rig.send(asks, get("/v1/channels/b/history?since=1000-0").as_bytes());
    rig.now = rig.now.after(1_000);
    let subscriber = join(&mut rig, "/ws/a?since=1000-0", Behavior::Cooperative);
    rig.run_until_idle();
    assert_eq!(words(&received(&mut rig, subscriber)), ["hello", "subscribed", "gap", "live"]);
    let page = rig.responses(asks)[0].json();
    assert_eq!((&page["messages"], &page["gap"]["why"]), (&json!([]), &json!("evicted")));
}

/// Publishes this many texts, one in each turn, to a subscriber that stalls after the first.
fn overrun(limits: Limits, count: usize) -> Vec<Value> {
    let mut rig = Rig::new(limits);
    let slow = join(&mut rig, "/ws/a", Behavior::Cooperative);
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    rig.run_until_idle();
    received(&mut rig, slow);
    rig.pipe(slow).behavior = Behavior::Stalled;
    for number in 0..count {
        let text = format!("{number} {}", "x".repeat(500));
        send_command(&mut rig, publisher, &json!({"type": "publish", "ch": "a", "text": text}));
        rig.turn();
    }
    rig.set_behavior(slow, Behavior::LimitedWrites(1_500));
    rig.engine.slots.mark_writable(slow);
    rig.run_until_idle();
    send_command(&mut rig, publisher, &json!({"type": "publish", "ch": "a", "text": "after"}));
    rig.run_until_idle();
    assert!(rig.is_alive(slow));
    received(&mut rig, slow)
}

#[test]
fn skipping_v1_subscriber_gets_missed_messages_from_the_history() {
    let values = overrun(skipping(100), 60);
    let numbers: Vec<u64> = values.iter().filter_map(|value| value["n"].as_u64()).collect();
    assert_eq!(numbers, (1..=61).collect::<Vec<u64>>(), "all of it, in order, once");
    assert!(values.iter().all(|value| value["type"] != "gap"));
}

#[test]
fn evicted_messages_are_announced_as_a_gap_in_place() {
    let values = overrun(skipping(20), 60);
    let gap = values.iter().position(|value| value["type"] == "gap").expect("a gap");
    let before = values[gap - 1]["n"].as_u64().unwrap();
    let after = values[gap + 1]["n"].as_u64().unwrap();
    assert_eq!(values[gap]["why"], "slow");
    assert_eq!(values[gap]["missed"], after - before - 1, "{:?}", values[gap]);
    assert_eq!(after, 41, "the history has the last 20");
    let numbers: Vec<u64> = values.iter().filter_map(|value| value["n"].as_u64()).collect();
    let expected: Vec<u64> = (1..=before).chain(41..=61).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn subscriber_overtaken_after_a_slice_gets_the_missed_count() {
    let mut rig = Rig::new(skipping(20));
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    let publish = |rig: &mut Rig, count: usize| {
        for _ in 0..count {
            let text = "x".repeat(10_000);
            send_command(rig, publisher, &json!({"type": "publish", "ch": "a", "text": text}));
        }
        rig.run_until_idle();
    };
    publish(&mut rig, 20);
    let subscribers = [(); 2].map(|()| join(&mut rig, "/ws", Behavior::Cooperative));
    rig.run_until_idle();
    for subscriber in subscribers {
        received(&mut rig, subscriber);
        send_command(&mut rig, subscriber, &json!({"type": "subscribe", "ch": "a", "since": "earliest"}));
        rig.pipe(subscriber).behavior = Behavior::Stalled;
    }
    // Both have been given a slice, one of them the other's; then both are at the gap; then they read on.
    for _ in 0..2 {
        rig.turn();
        subscribers.into_iter().for_each(|subscriber| rig.pipe(subscriber).behavior = Behavior::Stalled);
        rig.turn();
        publish(&mut rig, 10);
        for subscriber in subscribers {
            rig.set_behavior(subscriber, Behavior::Cooperative);
            rig.engine.slots.mark_writable(subscriber);
        }
    }
    rig.run_until_idle();
    for subscriber in subscribers {
        let values = received(&mut rig, subscriber);
        let numbers: Vec<u64> = values.iter().filter_map(|value| value["n"].as_u64()).collect();
        assert_eq!(numbers, (1..=6).chain(21..=40).collect::<Vec<u64>>());
        let missed: Vec<&Value> = values.iter().filter_map(|value| value.get("missed")).collect();
        assert_eq!(missed, [&json!(4), &json!(10)]);
    }
    assert_eq!(rig.engine.shared.metrics.messages_skipped, 2 * 14);
}

#[test]
fn client_that_floods_and_never_reads_is_bounded() {
    let limits = Limits { outbox_bytes_max: 4_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let flood = join(&mut rig, "/ws/a", Behavior::Stalled);
    for _ in 0..50 {
        rig.send(flood, &frames::masked(TEXT, br#"{"type":"ping"}"#).repeat(100));
        rig.turn();
        let waiting = rig.engine.slots.get(flood).map_or(0, |slot| slot.outbox.bytes());
        assert!(waiting < 16_000, "{waiting} bytes wait");
    }
    rig.advance_ms(8_000);
    assert!(!rig.is_alive(flood), "5 s without progress, and 2 for the close handshake");
}

#[test]
fn idempotency_key_is_known_for_five_minutes() {
    let mut rig = Rig::new(Limits { ping_interval_ms: 0, ..Limits::default() });
    let publisher = join(&mut rig, "/ws", Behavior::Cooperative);
    received(&mut rig, publisher);
    let by_v1 = |rig: &mut Rig| {
        send_command(rig, publisher, &json!({"type": "publish", "ch": "a", "text": "x", "key": "k"}));
        rig.run_until_idle();
        received(rig, publisher)[0]["id"].as_str().unwrap().to_owned()
    };
    let by_http = |rig: &mut Rig| {
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, post("/v1/publish/b", "Idempotency-Key: k\r\n", "x").as_bytes());
        rig.run_until_idle();
        rig.responses(id)[0].json()["id"].as_str().unwrap().to_owned()
    };
    let first = (by_v1(&mut rig), by_http(&mut rig));
    rig.advance_ms(299_900);
    assert_eq!((by_v1(&mut rig), by_http(&mut rig)), first);
    rig.advance_ms(200);
    let again = (by_v1(&mut rig), by_http(&mut rig));
    assert!(again.0 != first.0 && again.1 != first.1, "{again:?}");
}

/// A phone that leaves the Wi-Fi: its keys are not found there, so it must not repeat its messages.
#[test]
fn run_of_hello_changes_with_the_network_of_an_anonymous_client() {
    let mut rig = Rig::new(Limits::default());
    let mut run = |address: &str| {
        let id = rig.connect_from(address, Behavior::Cooperative);
        rig.send(id, frames::upgrade_v1("/ws").as_bytes());
        rig.run_until_idle();
        let out = std::mem::take(&mut rig.pipe(id).outgoing);
        let head = out.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let hello: serde_json::Value = serde_json::from_slice(&out[head + 4..]).unwrap();
        hello["run"].as_str().unwrap().to_owned()
    };
    let first = run("192.0.2.1");
    assert_eq!(first, run("192.0.2.1"));
    assert_ne!(first, run("192.0.2.2"));
    assert_eq!(run("2001:db8::1"), run("2001:db8::2"), "one /64 is one client");
}
