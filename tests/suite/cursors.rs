//! Cursors of every kind on every transport: current, old, future, malformed and of another log. In memory and on
//! real servers; each resumed subscriber must get every message once, or a gap in its place.

use oyez::config::{HistoryLimits, Limits};
use oyez::ids::SlotId;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::frames::{self, upgrade_v1};
use crate::support::http::{get, publish};
use crate::support::process::{Server, wait_until};
use crate::support::rig::{Behavior, Rig};

/// The transport of a subscriber.
#[derive(Clone, Copy, Debug)]
enum Way {
    Raw,
    V1,
    Events,
}

impl Way {
    const ALL: [Way; 3] = [Way::Raw, Way::V1, Way::Events];

    fn request(self, channel: &str, since: &str) -> String {
        match self {
            Way::Raw => frames::upgrade(&format!("/ws/{channel}?since={since}")),
            Way::V1 => upgrade_v1(&format!("/ws/{channel}?since={since}")),
            Way::Events => get(&format!("/sse/{channel}?since={since}")),
        }
    }

    /// The texts of messages after the response head. None may be missing.
    fn texts(self, rig: &mut Rig, id: SlotId) -> Vec<String> {
        rig.skip_head(id);
        match self {
            Way::Raw => rig.texts(id),
            Way::V1 => {
                let values = rig.texts(id).into_iter();
                let values = values.map(|text| serde_json::from_str::<Value>(&text).unwrap());
                let texts = values.filter_map(|value| {
                    assert_ne!(value["type"], "gap", "{value}");
                    value["text"].as_str().map(str::to_owned)
                });
                texts.collect()
            }
            Way::Events => {
                let text = String::from_utf8(std::mem::take(&mut rig.pipe(id).outgoing)).unwrap();
                assert!(!text.contains("event: gap"), "{text}");
                text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
            }
        }
    }
}

/// A server whose channel `x` had six messages and keeps the last three; returns the ids of all.
fn server() -> (Server, Vec<String>) {
    let server = Server::start(&["--history-messages-max=3"]);
    let mut client = Client::new(server.connect());
    let ids = (1..=6).map(|number| {
        let answer = client.ask(publish("x", &number.to_string()));
        answer.json()["id"].as_str().unwrap().to_owned()
    });
    let ids = ids.collect();
    (server, ids)
}

/// The texts that a raw subscriber gets before the next published one, or its close.
fn raw(server: &Server, since: &str) -> Result<Vec<String>, (u16, String)> {
    let mut subscriber = server.join(&format!("/ws/x?since={since}"));
    let mut sender = server.join("/ws/x?echo=0");
    sender.send_text("end");
    let mut texts = Vec::new();
    loop {
        let frame = subscriber.frame();
        if frame.opcode == frames::CLOSE {
            return Err(frame.close_code());
        }
        let text = String::from_utf8(frame.payload).unwrap();
        if text == "end" {
            return Ok(texts);
        }
        texts.push(text);
    }
}

/// The messages that an `oyez.v1` subscriber receives up to `live`, as numbers; notices as words.
fn v1(server: &Server, since: &str) -> Vec<String> {
    let mut client = Client::new(server.connect());
    client.send(upgrade_v1("/ws").as_bytes());
    client.head();
    client.send_text(&json!({"type": "subscribe", "ch": "x", "since": since}).to_string());
    let mut received = Vec::new();
    loop {
        let value: Value = serde_json::from_str(&client.text()).unwrap();
        match value["type"].as_str() {
            Some("hello" | "subscribed") => {}
            Some("live") => return received,
            Some("gap") => received.push(format!("gap {}", value["why"].as_str().unwrap())),
            Some("error") => return vec![value["code"].as_str().unwrap().to_owned()],
            _ => received.push(value["text"].as_str().unwrap().to_owned()),
        }
    }
}

fn events(server: &Server, since: &str) -> String {
    let mut client = Client::new(server.connect());
    client
        .send(format!("GET /sse/x HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {since}\r\n\r\n").as_bytes());
    let head = client.head();
    if !head.starts_with("HTTP/1.1 200 ") {
        return head.split(' ').nth(1).unwrap().to_owned();
    }
    // New messages follow all replayed ones.
    Client::new(server.connect()).ask(publish("x", "end"));
    assert_eq!(client.event(), "retry: 3000\n\n");
    let mut text = String::new();
    while !text.contains("data: end") {
        text += &client.event();
    }
    text
}

fn page(server: &Server, since: &str) -> (u16, Value) {
    let answer = Client::new(server.connect()).ask(get(&format!("/v1/channels/x/history?since={since}")));
    (answer.status, answer.json())
}

#[test]
fn cursor_within_the_history_resumes_without_gap() {
    let (server, ids) = server();
    for (since, expected) in
        [(&ids[5][..], &[][..]), (&ids[4], &["6"][..]), (&ids[2], &["4", "5", "6"]), ("latest", &["6"])]
    {
        assert_eq!(v1(&server, since), expected, "{since}");
        let (status, answer) = page(&server, since);
        let texts: Vec<&str> =
            answer["messages"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap()).collect();
        assert_eq!((status, &texts[..], &answer["gap"]), (200, expected, &Value::Null), "{since}");
    }
    assert_eq!(v1(&server, "earliest"), ["gap evicted", "4", "5", "6"]);
    let (_, answer) = page(&server, "earliest");
    let epoch = ids[0].split_once('-').unwrap().0;
    let gap = json!({"type": "gap", "ch": "x", "after": format!("{epoch}-0"), "resume": ids[2], "missed": 3, "why": "evicted"});
    assert_eq!((&answer["messages"][0]["text"], &answer["gap"]), (&json!("4"), &gap));
    let (_, answer) = page(&server, "earliest&limit=1");
    let (_, next) = page(&server, answer["next"].as_str().unwrap());
    assert_eq!(next["gap"], Value::Null, "the first page reported it");
    // These clients publish, so they run last.
    assert_eq!(raw(&server, "earliest").unwrap(), ["4", "5", "6"]);
    assert_eq!(raw(&server, &ids[3]).unwrap(), ["5", "6"]);
    assert!(events(&server, "latest").contains("data: end"));
}

#[test]
fn earliest_of_removed_channel_begins_with_gap() {
    let server = Server::start(&["--history-age-seconds=1"]);
    Client::new(server.connect()).ask(publish("x", "1"));
    Client::new(server.connect()).ask(publish("other", "1"));
    let removed = |channel: &str| {
        let path = format!("/v1/channels/{channel}");
        Client::new(server.connect()).ask(get(&path)).json()["messages"] == 0
    };
    wait_until("both messages are too old", || removed("x") && removed("other"));
    let gap = |since: &str| page(&server, since).1["gap"].clone();
    let of_removed = gap("earliest");
    assert_eq!((&of_removed["why"], &of_removed["missed"]), (&json!("evicted"), &Value::Null));
    assert_eq!(v1(&server, "earliest"), ["gap evicted"]);
    let never = Client::new(server.connect()).ask(get("/v1/channels/never/history?since=earliest")).json();
    assert_eq!(never["gap"], Value::Null);
}

#[test]
fn latest_message_that_is_the_only_one_is_replayed_without_gap() {
    let server = Server::start(&["--history-messages-max=1"]);
    for text in ["1", "2"] {
        Client::new(server.connect()).ask(publish("x", text));
    }
    assert_eq!(v1(&server, "latest"), ["2"]);
    let (_, answer) = page(&server, "latest");
    assert_eq!((&answer["messages"][0]["text"], &answer["gap"]), (&json!("2"), &Value::Null));
    assert_eq!(raw(&server, "latest").unwrap(), ["2"]);
}

#[test]
fn old_future_or_foreign_cursor_gets_a_gap() {
    let (server, ids) = server();
    let (epoch, head) = ids[5].split_once('-').unwrap();
    let future = format!("{epoch}-{}", head.parse::<u64>().unwrap() + 1);
    let most = format!("{epoch}-{}", u64::MAX);
    for (since, why) in [
        (&ids[1][..], "evicted"),
        (&format!("{epoch}-0"), "evicted"),
        (&future, "future"),
        (&most, "future"),
        ("1-1", "epoch"),
        ("18446744073709551615-18446744073709551615", "epoch"),
    ] {
        assert_eq!(v1(&server, since), [&format!("gap {why}"), "4", "5", "6"], "{since}");
        let (_, answer) = page(&server, since);
        assert_eq!((&answer["gap"]["why"], &answer["gap"]["after"]), (&json!(why), &json!(since)));
        assert_eq!(answer["messages"].as_array().unwrap().len(), 3, "{since}");
        // The raw protocol has no notices.
        let mut subscriber = server.join(&format!("/ws/x?since={since}"));
        assert_eq!(subscriber.closed_and_ended(), (4010, format!("gap why={why}")), "{since}");
    }
    let text = events(&server, "1-1");
    let gap = text.find("event: gap").expect("a gap");
    assert!(gap < text.find("data: 4\n").unwrap(), "{text}");
    assert!(!text[..gap].contains("\n\n"), "the cursor does not move before the gap is sent: {text}");
}

#[test]
fn old_cursor_without_history_gets_a_gap() {
    let server = Server::start(&["--history-messages-max=0"]);
    // The channel exists as long as it has a subscriber.
    let _subscriber = server.join("/ws/x");
    let ids = ["1", "2"].map(|text| Client::new(server.connect()).ask(publish("x", text)).id());
    for (since, received, gap) in
        [(&ids[0], &["gap evicted"][..], &json!("evicted")), (&ids[1], &[], &Value::Null)]
    {
        assert_eq!(v1(&server, since), received, "{since}");
        assert_eq!(&page(&server, since).1["gap"]["why"], gap, "{since}");
    }
}

#[test]
fn malformed_cursor_is_rejected_with_the_expected_form() {
    let (server, _) = server();
    let long = "1".repeat(64 << 10);
    let escaped = "1-1%0d%0aX: y";
    for since in ["yesterday", "1", "1-", "-1", "1-1-1", "LATEST", "0x1-1", "1-18446744073709551616"] {
        assert_eq!(v1(&server, since), ["bad_cursor"], "{since}");
        assert_eq!(page(&server, since).0, 400, "{since}");
        assert_eq!(events(&server, since), "400", "{since}");
        let answer = server.ask(frames::upgrade(&format!("/ws/x?since={since}")));
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("latest, or earliest"), "{answer}");
    }
    assert_eq!(v1(&server, &long[..60_000]), ["bad_cursor"]);
    assert!(server.ask(frames::upgrade(&format!("/ws/x?since={long}"))).starts_with("HTTP/1.1 431 "));
    assert_eq!((events(&server, &long), page(&server, &long).0), ("431".into(), 431));
    assert_eq!(events(&server, &long[..4_000]), "400");
    assert_eq!(page(&server, &long[..4_000]).0, 400);
    assert_eq!(page(&server, escaped).0, 400);
}

/// Resumes a subscriber in memory from `since`; returns the numbers that it received when the engine is idle.
fn resumed(
    rig: &mut Rig,
    way: Way,
    since: &str,
    turns: usize,
    behavior: Behavior,
    publisher: SlotId,
) -> Vec<String> {
    let id = rig.connect(behavior);
    rig.send(id, way.request("x", since).as_bytes());
    // Messages published during the replay.
    for turn in 0..turns {
        let text = format!("late {turn} {}", "y".repeat(300));
        let request = json!({"type": "publish", "ch": "x", "text": text});
        rig.send_text(publisher, &request.to_string());
        rig.turn();
    }
    rig.run_until_idle();
    let texts = way.texts(rig, id);
    rig.reset(id);
    rig.turn();
    texts
}

#[test]
fn resume_at_every_point_during_publishing_loses_nothing() {
    let history = HistoryLimits { messages_max: 1_000, ..HistoryLimits::default() };
    let mut rig = Rig::new(Limits { history, ..Limits::default() });
    let publisher = rig.connect(Behavior::Cooperative);
    rig.send(publisher, upgrade_v1("/ws").as_bytes());
    rig.run_until_idle();
    rig.pipe(publisher).outgoing.clear();
    // All published messages, and the cursor after each.
    let mut texts: Vec<String> = Vec::new();
    let mut cursors: Vec<String> = Vec::new();
    let acknowledged = |rig: &mut Rig| -> Vec<String> {
        let answers = rig.texts(publisher).into_iter();
        let values = answers.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        values.filter_map(|value| value["id"].as_str().map(str::to_owned)).collect()
    };
    for round in 0..6 {
        let text = format!("{round} {}", "x".repeat(700));
        rig.send_text(publisher, &json!({"type": "publish", "ch": "x", "text": text}).to_string());
        rig.run_until_idle();
        texts.push(text);
        cursors.extend(acknowledged(&mut rig));
        let way = Way::ALL[round % Way::ALL.len()];
        for place in 0..cursors.len() {
            let late = (round + place) % 4;
            let behavior = if place % 2 == 0 { Behavior::Cooperative } else { Behavior::LimitedWrites(900) };
            let since = cursors[place].clone();
            let received = resumed(&mut rig, way, &since, late, behavior, publisher);
            texts.extend((0..late).map(|turn| format!("late {turn} {}", "y".repeat(300))));
            cursors.extend(acknowledged(&mut rig));
            assert_eq!(received, texts[place + 1..], "{way:?} since {place} of {}", texts.len());
        }
    }
    assert!(texts.len() == cursors.len() && texts.len() > 200, "{} of {}", cursors.len(), texts.len());
}

#[test]
fn replay_larger_than_an_outbox_continues_with_live_messages() {
    let history = HistoryLimits { messages_max: 1_000, bytes_max: 4 << 20, ..HistoryLimits::default() };
    for way in Way::ALL {
        let limits = Limits { outbox_bytes_max: 70_000, publish_pause_ms: 0, history, ..Limits::default() };
        let mut rig = Rig::new(limits);
        let sender = rig.join("/ws/x?echo=0");
        let mut texts = Vec::new();
        for number in 0..200 {
            texts.push(format!("{number} {}", "x".repeat(10_000)));
            rig.send_text(sender, &texts[number]);
            rig.run_until_idle();
        }
        let subscriber = rig.connect(Behavior::LimitedWrites(7_000));
        rig.send(subscriber, way.request("x", "earliest").as_bytes());
        for number in 0..400 {
            texts.push(format!("live {number}"));
            rig.send_text(sender, &texts[200 + number]);
            rig.turn();
        }
        rig.run_until_idle();
        assert!(rig.is_alive(subscriber), "{way:?}");
        assert!(way.texts(&mut rig, subscriber) == texts, "{way:?}: a hole, a double, or another order");
    }
}
