//! Several nodes that share a log: publishing, acknowledgements, closes, cursors and losses. Method: engines in memory,
//! each with a real link, and one log server in memory that answers when the test lets it.

use std::rc::Rc;

use oyez::backplane::entry::{EntryHeader, Item};
use oyez::close::Reason;
use oyez::config::Limits;
use oyez::ids::{RunId, SlotId};
use serde_json::Value;

use crate::support::cluster::{Cluster, TIMEOUT_MS};
use crate::support::frames;
use crate::support::log_server::{LogData, LogServer, Record};
use crate::support::rig::{Behavior, Pipe, Rig};

fn texts(notices: &[Value]) -> Vec<&str> {
    notices.iter().filter_map(|notice| notice["text"].as_str()).collect()
}

/// The last entry of a node: its notice of shutdown.
fn shutdown_entry(run: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    EntryHeader { run: RunId(run), number: 1, is_resent: false }.append(&mut bytes);
    Item::Shutdown.append(&mut bytes);
    bytes
}

fn of_type<'a>(notices: &'a [Value], kind: &str) -> Option<&'a Value> {
    notices.iter().find(|notice| notice["type"] == kind)
}

#[test]
fn message_reaches_subscribers_of_all_nodes_in_one_order_with_one_id() {
    let mut cluster = Cluster::of(3);
    let subscribers: Vec<SlotId> = (0..3).map(|at| cluster.v1(at, "/ws/a")).collect();
    let publishers: Vec<SlotId> = (0..3).map(|at| cluster.join(at, "/ws/a?echo=0")).collect();
    for round in 0..3 {
        for (at, &id) in publishers.iter().enumerate() {
            cluster.rig(at).send_text(id, &format!("{at}{round}"));
        }
        cluster.settle();
    }
    let received: Vec<Vec<Value>> =
        subscribers.iter().enumerate().map(|(at, &id)| cluster.notices(at, id)).collect();
    let ids = |notices: &[Value]| -> Vec<(Value, Value)> {
        let messages = notices.iter().filter(|notice| notice["text"].is_string());
        messages.map(|message| (message["id"].clone(), message["text"].clone())).collect()
    };
    assert_eq!(ids(&received[0]).len(), 9);
    assert!(received.iter().all(|one| ids(one) == ids(&received[0])), "{received:?}");
    // `echo=0` holds for a message that came back from the log.
    let texts: Vec<String> = cluster.rig(1).texts(publishers[1]);
    assert_eq!((texts.len(), texts.iter().any(|text| text.starts_with('1'))), (6, false), "{texts:?}");
    let metrics = &cluster.rig(0).engine.shared.metrics;
    assert_eq!((metrics.published_by_websocket, metrics.published_by_backplane), (3, 6));
}

#[test]
fn publish_is_acknowledged_when_it_is_read_back() {
    let mut cluster = Cluster::of(2);
    let id = cluster.v1(0, "/ws/a");
    cluster.settle();
    cluster.notices(0, id);
    cluster.nodes[0].is_cut = true;
    cluster.rig(0).send_text(id, r#"{"type":"publish","ch":"a","text":"x","ref":7}"#);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "y", "");
    cluster.settle();
    assert_eq!((cluster.notices(0, id).len(), cluster.rig(0).responses(http).len()), (0, 0));
    assert_eq!(cluster.rig(1).engine.hub.history_usage().messages, 2, "the other node has applied them");
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    let notices = cluster.notices(0, id);
    assert_eq!((texts(&notices), &of_type(&notices, "ack").unwrap()["ref"]), (vec!["x", "y"], &7.into()));
    let response = cluster.rig(0).responses(http).remove(0);
    assert_eq!(response.status, 200);
    assert!(response.body.contains("\"subscribers\":1"), "{}", response.body);
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let mut cluster = Cluster::of(1);
    let http = cluster.http(0);
    cluster.nodes[0].is_cut = true;
    cluster.publish_http(0, http, "a", "1", "");
    cluster.publish_http(0, http, "bad%20name", "2", "");
    cluster.rig(0).send(http, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    cluster.settle();
    assert!(cluster.rig(0).responses(http).is_empty(), "nothing overtakes the publish");
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    let statuses: Vec<u16> = cluster.rig(0).responses(http).iter().map(|response| response.status).collect();
    assert_eq!(statuses[0], 200, "{statuses:?}");
    assert!(statuses.len() > 1 && statuses[1] >= 400, "{statuses:?}");
}

#[test]
fn close_of_a_raw_websocket_is_answered_after_its_messages_are_in_the_log() {
    let mut cluster = Cluster::of(2);
    let id = cluster.join(0, "/ws/a");
    cluster.nodes[0].is_cut = true;
    cluster.rig(0).send_text(id, "last");
    cluster.rig(0).send(id, &frames::close(1000, ""));
    cluster.settle();
    cluster.advance_ms(4_000);
    assert_eq!(cluster.rig(0).frames(id).len(), 0, "the close frame waits, longer than --close-timeout-ms");
    assert!(cluster.rig(0).is_alive(id));
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    let frames = cluster.rig(0).frames(id);
    assert_eq!((&frames[0].payload[..], frames[1].close_code().0), (&b"last"[..], 1000), "{frames:?}");
    cluster.rig(0).send_eof(id);
    cluster.settle();
    assert!(!cluster.rig(0).is_alive(id));
}

#[test]
fn publishes_wait_for_the_log_and_are_rejected_after_their_timeout() {
    let mut cluster = Cluster::of(2);
    let (v1, raw, http) = (cluster.v1(0, "/ws/a"), cluster.join(0, "/ws/a"), cluster.http(0));
    cluster.settle();
    cluster.notices(0, v1);
    cluster.stop_log();
    cluster.rig(0).send_text(v1, r#"{"type":"publish","ch":"a","text":"x","ref":1}"#);
    cluster.rig(0).send_text(raw, "y");
    cluster.rig(0).send(raw, &frames::close(1000, ""));
    cluster.publish_http(0, http, "a", "z", "");
    cluster.advance_ms(TIMEOUT_MS - 1_000);
    assert_eq!((cluster.notices(0, v1).len(), cluster.rig(0).frames(raw).len()), (0, 0));
    cluster.advance_ms(2_000);
    let notices = cluster.notices(0, v1);
    let error = of_type(&notices, "error").expect("an error");
    assert_eq!((&error["code"], &error["ref"]), (&"backplane_down".into(), &1.into()));
    assert_eq!(cluster.rig(0).frames(raw)[0].close_code(), (4104, "backplane_down retry_ms=1000".into()));
    let response = cluster.rig(0).responses(http).remove(0);
    assert_eq!((response.status, response.field("Retry-After")), (503, Some("1")));
    assert!(response.body.contains("\"backplane_down\""), "{}", response.body);
    // Rejected messages are delivered to no one when the log is back.
    let subscriber = cluster.v1(1, "/ws/a");
    cluster.log.is_alive = true;
    cluster.advance_ms(4_000);
    assert_eq!(texts(&cluster.notices(1, subscriber)), [""; 0]);
    let again = cluster.http(0);
    cluster.publish_http(0, again, "a", "later", "");
    cluster.settle();
    assert_eq!(cluster.rig(0).responses(again)[0].status, 200);
    assert_eq!(texts(&cluster.notices(1, subscriber)), ["later"]);
}

#[test]
fn message_that_was_sent_and_not_read_back_is_unconfirmed() {
    let mut cluster = Cluster::of(2);
    let id = cluster.v1(0, "/ws/a");
    cluster.settle();
    cluster.notices(0, id);
    cluster.nodes[0].is_cut = true;
    cluster.rig(0).send_text(id, r#"{"type":"publish","ch":"a","text":"x","ref":1}"#);
    cluster.advance_ms(TIMEOUT_MS + 500);
    let notices = cluster.notices(0, id);
    assert_eq!(of_type(&notices, "error").expect("an error")["code"], "unconfirmed");
    assert_eq!(cluster.rig(0).engine.shared.metrics.backplane_unconfirmed, 1);
}

#[test]
fn publishes_over_the_limit_of_pending_bytes_are_rejected_at_once() {
    let mut cluster = Cluster::of(1);
    let id = cluster.v1(0, "/ws/a");
    cluster.settle();
    cluster.notices(0, id);
    cluster.stop_log();
    let text = "x".repeat(30_000);
    for reference in 0..4 {
        let publish = format!(r#"{{"type":"publish","ch":"a","text":"{text}","ref":{reference}}}"#);
        cluster.rig(0).send_text(id, &publish);
        cluster.turn(0);
    }
    let notices = cluster.notices(0, id);
    let rejected: Vec<&Value> = notices.iter().map(|notice| &notice["ref"]).collect();
    assert!(!rejected.is_empty() && rejected.len() < 4, "{rejected:?}");
    assert!(notices.iter().all(|notice| notice["code"] == "backplane_down"), "{notices:?}");
}

#[test]
fn idempotency_key_is_known_on_every_node() {
    let mut cluster = Cluster::of(3);
    let subscriber = cluster.v1(2, "/ws/a");
    let key = "Idempotency-Key: \"k\"\r\n";
    let mut bodies = Vec::new();
    for (at, body) in [(0, "x"), (1, "x"), (2, "other"), (1, "x")] {
        let http = cluster.http(at);
        cluster.publish_http(at, http, "a", body, key);
        cluster.settle();
        let response = cluster.rig(at).responses(http).remove(0);
        bodies.push((response.status, response.body.split(',').next().unwrap().to_owned()));
    }
    assert_eq!((bodies[0].0, &bodies[1], bodies[2].0), (200, &bodies[0], 422), "{bodies:?}");
    assert_eq!(bodies[3], bodies[0]);
    assert_eq!(texts(&cluster.notices(2, subscriber)), ["x"]);
    // The same key in flight on two nodes at once: the first in the log wins.
    let ids = [0, 1].map(|at| {
        let http = cluster.http(at);
        cluster.publish_http(at, http, "a", "y", "Idempotency-Key: \"race\"\r\n");
        (at, http)
    });
    cluster.settle();
    let answers = ids.map(|(at, http)| cluster.rig(at).responses(http).remove(0).body);
    let id = |body: &str| body.split(',').next().unwrap().to_owned();
    assert_eq!(id(&answers[0]), id(&answers[1]));
    assert_eq!(texts(&cluster.notices(2, subscriber)), ["y"]);
}

#[test]
fn client_resumes_on_another_node_without_a_gap() {
    let mut cluster = Cluster::of(2);
    let (id, publisher) = (cluster.v1(0, "/ws/a"), cluster.join(1, "/ws/a?echo=0"));
    cluster.rig(1).send_text(publisher, "1");
    cluster.settle();
    let notices = cluster.notices(0, id);
    let cursor =
        notices.iter().rfind(|notice| notice["text"] == "1").unwrap()["id"].as_str().unwrap().to_owned();
    cluster.rig(1).send_text(publisher, "2");
    cluster.settle();
    let other = cluster.v1(1, &format!("/ws/a?since={cursor}"));
    cluster.settle();
    let notices = cluster.notices(1, other);
    assert_eq!((texts(&notices), of_type(&notices, "gap")), (vec!["2"], None), "{notices:?}");
}

#[test]
fn cursor_ahead_of_a_node_waits_until_it_has_read_the_log() {
    let mut cluster = Cluster::of(2);
    let (id, publisher) = (cluster.v1(0, "/ws/a"), cluster.join(0, "/ws/a?echo=0"));
    cluster.nodes[1].is_cut = true;
    for text in ["1", "2"] {
        cluster.rig(0).send_text(publisher, text);
        cluster.settle();
    }
    let notices = cluster.notices(0, id);
    let cursor =
        notices.iter().find(|notice| notice["text"] == "1").unwrap()["id"].as_str().unwrap().to_owned();
    let resumed = cluster.v1(1, &format!("/ws/a?since={cursor}"));
    let raw = cluster.join(1, &format!("/ws/a?since={cursor}"));
    cluster.rig(1).send_text(raw, "3");
    cluster.settle();
    assert!(cluster.notices(1, resumed).is_empty(), "not even hello, which has the cursor");
    cluster.nodes[1].is_cut = false;
    cluster.settle();
    let notices = cluster.notices(1, resumed);
    assert_eq!((texts(&notices), of_type(&notices, "gap")), (vec!["2", "3"], None), "{notices:?}");
    assert_eq!(cluster.rig(1).texts(raw), ["2", "3"], "what it sent while it waited is published");
    // A cursor that is ahead of the log itself.
    let epoch = cursor.split_once('-').unwrap().0.to_owned();
    let ahead = cluster.v1(1, &format!("/ws/a?since={epoch}-999999"));
    cluster.settle();
    let notices = cluster.notices(1, ahead);
    assert_eq!(of_type(&notices, "gap").expect("a gap")["why"], "future");
}

#[test]
fn connection_whose_cursor_cannot_be_judged_is_closed_after_its_timeout() {
    let mut cluster = Cluster::of(1);
    let epoch = cluster.rig(0).engine.hub.head().epoch;
    let subscribed = cluster.v1(0, "/ws/b");
    cluster.settle();
    cluster.rig(0).frames(subscribed);
    cluster.stop_log();
    let v1 = cluster.v1(0, &format!("/ws/a?since={epoch}-999999"));
    let raw = cluster.join(0, &format!("/ws/a?since={epoch}-999999"));
    let subscribe = format!(r#"{{"type":"subscribe","ch":"c","since":"{epoch}-999999"}}"#);
    cluster.rig(0).send_text(subscribed, &subscribe);
    cluster.advance_ms(TIMEOUT_MS + 500);
    for id in [v1, raw, subscribed] {
        let frames = cluster.rig(0).frames(id);
        // No hello is sent, since its id would be less than the cursor.
        assert_eq!(frames[0].close_code(), (4104, "backplane_down retry_ms=1000".into()));
    }
}

#[test]
fn cursors_ahead_of_a_node_without_its_log_cost_one_entry() {
    let mut cluster = Cluster::of(1);
    let epoch = cluster.rig(0).engine.hub.head().epoch;
    cluster.stop_log();
    for number in 0..50 {
        cluster.join(0, &format!("/ws/a?since={epoch}-{}", 900_000 + number));
        cluster.turn(0);
    }
    let before = cluster.log.data.log.len();
    cluster.log.is_alive = true;
    cluster.advance_ms(2_500);
    let after = cluster.log.data.log.len();
    // A heartbeat every two seconds.
    assert!((before + 1..before + 5).contains(&after), "{before} {after}");
}

#[test]
fn node_that_cannot_read_the_log_appends_no_more_with_each_attempt() {
    let mut cluster = Cluster::of(2);
    cluster.log.data.log.push(Rc::new(Record {
        id: (cluster.log.epoch().unwrap(), 1_000),
        time_ms: cluster.redis_ms,
        field: "b",
        body: b"\x63no entry".to_vec(),
    }));
    cluster.log.data.state.insert("seq", "1000".to_owned());
    let mut growth = Vec::new();
    for _ in 0..3 {
        let before = cluster.log.data.log.len();
        cluster.advance_ms(20_000);
        growth.push(cluster.log.data.log.len() - before);
    }
    assert!(growth[0] > 0 && growth[2] <= growth[1] + 4, "{growth:?}");
}

#[test]
fn entry_that_arrives_slowly_is_progress() {
    let mut cluster = Cluster::of(2);
    let subscriber = cluster.join(1, "/ws/a?echo=0");
    let publisher = cluster.join(0, "/ws/a?echo=0");
    cluster.settle();
    let text = "x".repeat(40_000);
    cluster.nodes[1].bytes_per_turn = 200;
    cluster.rig(0).send_text(publisher, &text);
    // 200 bytes every 50 ms: ten seconds, twice the heartbeat timeout.
    cluster.advance_ms(15_000);
    assert_eq!(cluster.rig(1).texts(subscriber), [text]);
}

#[test]
fn message_that_an_earlier_link_may_have_appended_is_not_reported_as_unpublished() {
    let mut cluster = Cluster::of(2);
    let id = cluster.v1(0, "/ws/a");
    let other = cluster.v1(1, "/ws/a");
    cluster.settle();
    cluster.notices(0, id);
    cluster.notices(1, other);
    // The entry is appended, the reply is lost with the connection, and then Redis has no memory for the copy.
    cluster.nodes[0].is_cut = true;
    cluster.rig(0).send_text(id, r#"{"type":"publish","ch":"a","text":"x","ref":1}"#);
    cluster.turn(0);
    cluster.turn(0);
    cluster.turn(1);
    cluster.log.is_full = true;
    cluster.nodes[0].pipes = None;
    let now = cluster.rig(0).now;
    cluster.nodes[0].link().failed("reset".into(), now);
    cluster.nodes[0].is_cut = false;
    cluster.advance_ms(1_000);
    assert_eq!(texts(&cluster.notices(1, other)), ["x"], "it was published");
    let notices = cluster.notices(0, id);
    let codes: Vec<&Value> = notices.iter().map(|notice| &notice["code"]).collect();
    assert!(!codes.contains(&&Value::from("backplane_full")), "{notices:?}");
    assert!(
        of_type(&notices, "ack").is_some() || codes.contains(&&Value::from("unconfirmed")),
        "{notices:?}"
    );
    // A message that was never sent before is known to be unpublished.
    cluster.rig(0).send_text(id, r#"{"type":"publish","ch":"a","text":"y","ref":2}"#);
    cluster.advance_ms(500);
    assert_eq!(of_type(&cluster.notices(0, id), "error").expect("an error")["code"], "backplane_full");
}

#[test]
fn node_that_knows_more_keys_than_another_decides_as_that_one_does() {
    let mut cluster = Cluster::of(1);
    let publish = |cluster: &mut Cluster, at: usize, body: &str| {
        let http = cluster.http(at);
        cluster.publish_http(at, http, "a", body, "Idempotency-Key: \"k\"\r\n");
        cluster.settle();
        let response = cluster.rig(at).responses(http).remove(0);
        (response.status, response.body.split(',').next().unwrap().to_owned())
    };
    let first = publish(&mut cluster, 0, "1");
    // The second node starts after the key's entry was trimmed.
    cluster.log.data.log.clear();
    cluster.log.data.log.push(Rc::new(Record {
        id: (cluster.log.epoch().unwrap(), cluster.log.data.state["seq"].parse().unwrap()),
        time_ms: cluster.redis_ms,
        field: "b",
        body: shutdown_entry(99),
    }));
    cluster.add(2, &Limits::default());
    cluster.settle();
    let subscribers = [0, 1].map(|at| cluster.v1(at, "/ws/a"));
    cluster.settle();
    subscribers.iter().enumerate().for_each(|(at, &id)| drop(cluster.notices(at, id)));
    assert_eq!(publish(&mut cluster, 0, "1"), first, "the first node knows it");
    let second = publish(&mut cluster, 1, "2");
    assert_eq!(second.0, 200, "the second one does not");
    for (at, id) in subscribers.into_iter().enumerate() {
        assert_eq!(texts(&cluster.notices(at, id)), ["2"], "node {at}");
    }
    assert_eq!(publish(&mut cluster, 0, "2"), second, "now both know it");
    assert_eq!(publish(&mut cluster, 1, "3").0, 422);
}

#[test]
fn publisher_that_is_faster_than_the_log_is_not_read_until_its_messages_return() {
    let limits = Limits { outbox_bytes_max: 64 << 10, ..Limits::default() };
    let most = limits.outbox_bytes_max / 4;
    let mut cluster = Cluster::with_limits(1, &limits);
    let id = cluster.join(0, "/ws/a?echo=0");
    cluster.settle();
    cluster.nodes[0].is_cut = true;
    let text = "x".repeat(1_000);
    let is_paused = |cluster: &mut Cluster| {
        cluster.turn(0);
        cluster.rig(0).engine.slots.get(id).unwrap().is_publishing_paused()
    };
    let mut sent = 0;
    while !is_paused(&mut cluster) {
        assert!(sent <= most + 1_000, "{sent}");
        cluster.rig(0).send_text(id, &text);
        sent += text.len();
    }
    assert!(sent > most, "{sent}");
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    assert!(!is_paused(&mut cluster));
}

#[test]
fn requests_are_rejected_until_the_log_was_read_for_the_first_time() {
    let mut cluster = Cluster {
        log: LogServer::new(LogData::default(), 1),
        nodes: Vec::new(),
        redis_ms: 1,
        wait_replicas: 0,
    };
    cluster.log.is_alive = false;
    cluster.add(1, &Limits::default());
    let ask = |cluster: &mut Cluster, path: &str| {
        let http = cluster.http(0);
        cluster.rig(0).send(http, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        cluster.turn(0);
        cluster.rig(0).responses(http).remove(0).status
    };
    let paths = ["/v1/channels", "/ws/a", "/readyz", "/healthz", "/metrics"];
    assert_eq!(paths.map(|path| ask(&mut cluster, path)), [503, 503, 503, 200, 200]);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "x", "");
    cluster.turn(0);
    assert!(cluster.rig(0).responses(http)[0].body.contains("backplane_down"));
    cluster.log.is_alive = true;
    cluster.advance_ms(3_000);
    assert_eq!(["/v1/channels", "/readyz"].map(|path| ask(&mut cluster, path)), [200, 200]);
    cluster.stop_log();
    cluster.turn(0);
    assert_eq!(
        ["/v1/channels", "/readyz"].map(|path| ask(&mut cluster, path)),
        [200, 200],
        "later it is ready"
    );
}

#[test]
fn node_that_starts_has_the_history_of_the_log_with_its_ages() {
    let mut cluster = Cluster::of(1);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "old", "");
    cluster.settle();
    cluster.advance_ms(200_000);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "new", "");
    cluster.settle();
    cluster.add(2, &Limits::default());
    cluster.advance_ms(500);
    assert_eq!(cluster.rig(1).engine.hub.history_usage().messages, 2);
    cluster.advance_ms(110_000);
    assert_eq!(cluster.rig(1).engine.hub.history_usage().messages, 1, "by the time of the log");
}

#[test]
fn new_epoch_after_flushall_is_a_gap_on_all_nodes_and_no_id_is_used_twice() {
    let mut cluster = Cluster::of(2);
    let subscribers = [0, 1].map(|at| cluster.v1(at, "/ws/a"));
    let raw = cluster.join(1, "/ws/b");
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "before", "");
    cluster.settle();
    let before: Vec<Vec<Value>> = (0..2).map(|at| cluster.notices(at, subscribers[at])).collect();
    let cursor = before[0].iter().rfind(|notice| notice["text"] == "before").unwrap()["id"].clone();
    cluster.log.data = LogData::default();
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "after", "");
    cluster.advance_ms(4_000);
    for (at, &id) in subscribers.iter().enumerate() {
        let notices = cluster.notices(at, id);
        let gap = of_type(&notices, "gap").expect("a gap");
        assert_eq!((&gap["why"], &gap["after"]), (&"lost".into(), &cursor), "{notices:?}");
        assert_eq!(texts(&notices), ["after"]);
        let id = notices.iter().find(|notice| notice["text"] == "after").unwrap()["id"].clone();
        assert_ne!(id, cursor);
    }
    assert_eq!(cluster.rig(1).frames(raw)[0].close_code(), (4104, "lost".into()));
    let resumed = cluster.v1(1, &format!("/ws/a?since={}", cursor.as_str().unwrap()));
    cluster.settle();
    let notices = cluster.notices(1, resumed);
    // Nothing of the cursor's epoch is left.
    assert_eq!(
        (texts(&notices), &of_type(&notices, "gap").unwrap()["why"]),
        (vec!["after"], &"epoch".into())
    );
}

#[test]
fn hello_names_the_log_and_the_node() {
    let mut cluster = Cluster::of(2);
    let hello = [0, 1].map(|at| {
        let id = cluster.v1(at, "/ws/a");
        cluster.notices(at, id).remove(0)
    });
    assert_eq!(hello[0]["run"], hello[1]["run"]);
    assert_ne!(hello[0]["node"], hello[1]["node"]);
    assert_ne!(hello[0]["client"], hello[1]["client"]);
    let mut alone = Rig::<Pipe>::new(Limits::default());
    let id = alone.connect(Behavior::Cooperative);
    let head = frames::upgrade_v1("/ws/a");
    alone.send(id, head.as_bytes());
    alone.turn();
    alone.skip_head(id);
    assert!(!alone.texts(id)[0].contains("\"node\""));
}

#[test]
fn connection_that_has_closed_gets_no_acknowledgement_of_its_messages() {
    let mut cluster = Cluster::of(1);
    let subscriber = cluster.v1(0, "/ws/a");
    let id = cluster.join(0, "/ws/a");
    cluster.nodes[0].is_cut = true;
    cluster.rig(0).send_text(id, "x");
    cluster.settle();
    cluster.rig(0).reset(id);
    cluster.settle();
    assert!(!cluster.rig(0).is_alive(id));
    let next = cluster.join(0, "/ws/b");
    assert_eq!(next.key, id.key, "the slot is used again");
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    assert_eq!(cluster.rig(0).texts(next), [""; 0]);
    assert_eq!(texts(&cluster.notices(0, subscriber)), ["x"]);
    assert_eq!(cluster.rig(0).engine.shared.metrics.closed(Reason::Reset), 1);
}

#[test]
fn drain_answers_publishes_that_wait_for_the_log() {
    // The close has to wait for longer than the maximum time of a close that has begun.
    let mut cluster = Cluster::with_limits(1, &Limits { drain_ms: 3_000, ..Limits::default() });
    let (http, raw) = (cluster.http(0), cluster.join(0, "/ws/a"));
    cluster.nodes[0].is_cut = true;
    cluster.publish_http(0, http, "a", "x", "");
    cluster.rig(0).send_text(raw, "y");
    cluster.turn(0);
    let now = cluster.rig(0).now;
    cluster.rig(0).engine.drain(now);
    cluster.settle();
    cluster.advance_ms(6_000);
    assert!(cluster.rig(0).responses(http).is_empty());
    assert_eq!(cluster.rig(0).frames(raw).len(), 0, "the close would reject its message");
    assert!(cluster.rig(0).is_alive(raw));
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    assert_eq!(cluster.rig(0).responses(http)[0].status, 200);
    let frames = cluster.rig(0).frames(raw);
    let payloads: Vec<&[u8]> = frames[..2].iter().map(|frame| &frame.payload[..]).collect();
    assert_eq!((payloads, frames[2].close_code().0), (vec![&b"x"[..], b"y"], 4200), "{frames:?}");
    cluster.advance_ms(500);
    assert!(cluster.rig(0).is_alive(raw), "its deadline begins with the close frame");
}

#[test]
fn older_data_of_the_log_is_a_loss_on_all_nodes_and_no_id_is_used_twice() {
    let mut cluster = Cluster::of(2);
    let (subscriber, publisher) = (cluster.v1(1, "/ws/a"), cluster.join(0, "/ws/a?echo=0"));
    for text in ["1", "2", "3"] {
        cluster.rig(0).send_text(publisher, text);
        cluster.settle();
    }
    let notices = cluster.notices(1, subscriber);
    let mut ids: Vec<Value> =
        notices.iter().filter(|one| one["text"].is_string()).map(|one| one["id"].clone()).collect();
    // A failover to a replica that lags by two entries.
    cluster.stop_log();
    cluster.log = LogServer::new(cluster.log.version(2), 2);
    cluster.advance_ms(4_000);
    let notices = cluster.notices(1, subscriber);
    assert_eq!(of_type(&notices, "gap").expect("a gap")["why"], "lost", "{notices:?}");
    assert_eq!(cluster.rig(0).frames(publisher)[0].close_code(), (4104, "lost".into()));
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "4", "");
    cluster.settle();
    let notices = cluster.notices(1, subscriber);
    let last = notices.iter().find(|one| one["text"] == "4").expect("it arrives")["id"].clone();
    assert!(!ids.contains(&last));
    ids.push(last);
    let history = cluster.http(1);
    let lost = ids[2].as_str().unwrap();
    let request = format!("GET /v1/channels/a/history?since={lost} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    cluster.rig(1).send(history, request.as_bytes());
    cluster.settle();
    let page: Value = serde_json::from_str(&cluster.rig(1).responses(history)[0].body).unwrap();
    assert_eq!((&page["gap"]["why"], &page["messages"][0]["text"]), (&"lost".into(), &"4".into()), "{page}");
}

#[test]
fn request_that_arrives_before_the_log_has_responded_is_answered_in_order() {
    let mut cluster = Cluster::of(1);
    let http = cluster.http(0);
    cluster.nodes[0].is_cut = true;
    for text in ["1", "2", "3"] {
        cluster.publish_http(0, http, "a", text, "");
        cluster.settle();
    }
    assert!(cluster.rig(0).responses(http).is_empty());
    cluster.nodes[0].is_cut = false;
    cluster.settle();
    let responses = cluster.rig(0).responses(http);
    let ids: Vec<Value> =
        responses.iter().map(|one| serde_json::from_str::<Value>(&one.body).unwrap()["id"].clone()).collect();
    assert!(ids.len() == 3 && ids.is_sorted_by_key(|id| id.as_str().map(str::to_owned)), "{ids:?}");
}

#[test]
fn messages_that_only_another_node_has_read_are_a_gap_after_the_last_known_one() {
    let mut cluster = Cluster::of(2);
    let subscriber = cluster.v1(1, "/ws/a");
    let http = cluster.http(0);
    let publish = |cluster: &mut Cluster, text: &str| {
        cluster.publish_http(0, http, "a", text, "");
        (0..12).for_each(|_| cluster.turn(0));
        let response = cluster.rig(0).responses(http).remove(0);
        serde_json::from_str::<Value>(&response.body).unwrap()["id"].as_str().unwrap().to_owned()
    };
    let known = publish(&mut cluster, "known");
    cluster.settle();
    // The second node reads nothing, and the log loses what the first one has acknowledged.
    let acknowledged = [publish(&mut cluster, "lost"), publish(&mut cluster, "lost too")];
    cluster.stop_log();
    cluster.log = LogServer::new(cluster.log.version(2), 2);
    cluster.advance_ms(4_000);
    let later = publish(&mut cluster, "later");
    cluster.advance_ms(4_000);
    let notices = cluster.notices(1, subscriber);
    let gap = of_type(&notices, "gap").expect("a gap");
    let id = |text: &str| {
        let (epoch, seq) = text.split_once('-').unwrap();
        (epoch.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap())
    };
    let (after, resume) = (id(gap["after"].as_str().unwrap()), id(gap["resume"].as_str().unwrap()));
    assert!(id(&known) <= after, "{gap}");
    for lost in acknowledged {
        assert!(after < id(&lost) && id(&lost) <= resume, "{lost} is not covered by {gap}");
    }
    assert!(texts(&notices).contains(&"known") && texts(&notices).contains(&"later"), "{later} {notices:?}");
}

#[test]
fn publish_whose_connection_was_closed_with_an_error_gets_no_second_response() {
    let mut cluster = Cluster::of(1);
    let (acknowledged, unconfirmed) = (cluster.http(0), cluster.http(0));
    cluster.nodes[0].is_cut = true;
    for (http, is_confirmed) in [(acknowledged, true), (unconfirmed, false)] {
        cluster.publish_http(0, http, "a", "x", "");
        cluster.settle();
        let now = cluster.rig(0).now;
        cluster.rig(0).engine.close(http, Reason::Slow, now);
        cluster.nodes[0].is_cut = !is_confirmed;
        cluster.advance_ms(if is_confirmed { 100 } else { TIMEOUT_MS + 500 });
        let responses = cluster.rig(0).responses(http);
        assert_eq!(responses.len(), 1, "{}", responses[1].body);
        assert!(responses[0].status >= 400, "{}", responses[0].status);
        cluster.nodes[0].is_cut = true;
    }
    assert_eq!(cluster.rig(0).engine.shared.metrics.backplane_unconfirmed, 1);
}

#[test]
fn key_of_a_message_that_the_log_has_lost_is_published_again() {
    let mut cluster = Cluster::of(2);
    let subscriber = cluster.v1(1, "/ws/a");
    let publish = |cluster: &mut Cluster, at: usize| {
        let http = cluster.http(at);
        cluster.publish_http(at, http, "a", "x", "Idempotency-Key: \"k\"\r\n");
        cluster.settle();
        let response = cluster.rig(at).responses(http).remove(0);
        serde_json::from_str::<Value>(&response.body).unwrap()["id"].clone()
    };
    let first = publish(&mut cluster, 0);
    assert_eq!(publish(&mut cluster, 1), first);
    // The duplicate is an entry of the log too.
    cluster.stop_log();
    cluster.log = LogServer::new(cluster.log.version(2), 2);
    cluster.advance_ms(4_000);
    let again = publish(&mut cluster, 1);
    assert_ne!(again, first);
    assert_eq!(publish(&mut cluster, 0), again, "all nodes have forgotten the first one");
    assert_eq!(texts(&cluster.notices(1, subscriber)), ["x", "x"]);
}

/// Drops the entries of the log before the last one that contains a text.
fn trim(log: &mut LogServer, text: &str) {
    let has = |body: &[u8]| body.windows(text.len()).any(|window| window == text.as_bytes());
    let at = log.data.log.iter().rposition(|record| has(&record.body)).unwrap();
    log.data.log.drain(..at);
}

fn publish_and_settle(cluster: &mut Cluster, channel: &str, text: &str) -> String {
    let http = cluster.http(0);
    cluster.publish_http(0, http, channel, text, "");
    cluster.settle();
    let response = cluster.rig(0).responses(http).remove(0);
    serde_json::from_str::<Value>(&response.body).unwrap()["id"].as_str().unwrap().to_owned()
}

/// The reason of the gap that a client gets which resumes a channel at the second node.
fn gap_at_second(cluster: &mut Cluster, channel: &str, cursor: &str) -> Option<String> {
    let id = cluster.v1(1, &format!("/ws/{channel}?since={cursor}"));
    cluster.settle();
    let notices = cluster.notices(1, id);
    of_type(&notices, "gap").map(|gap| gap["why"].as_str().unwrap().to_owned())
}

#[test]
fn cursor_before_the_first_entry_that_a_node_has_read_is_a_gap() {
    let mut cluster = Cluster::of(1);
    let cursor = publish_and_settle(&mut cluster, "a", "first");
    publish_and_settle(&mut cluster, "a", "trimmed");
    let kept = publish_and_settle(&mut cluster, "a", "kept");
    trim(&mut cluster.log, "kept");
    cluster.add(2, &Limits::default());
    cluster.advance_ms(500);
    for channel in ["a", "unknown"] {
        assert_eq!(gap_at_second(&mut cluster, channel, &cursor).as_deref(), Some("evicted"), "{channel}");
        assert_eq!(gap_at_second(&mut cluster, channel, &kept), None, "{channel}");
    }
}

#[test]
fn cursor_before_trimmed_entries_is_a_gap_in_a_channel_that_is_not_known_here() {
    let mut cluster = Cluster::of(2);
    let cursor = publish_and_settle(&mut cluster, "a", "first");
    cluster.nodes[1].is_cut = true;
    publish_and_settle(&mut cluster, "a", "answers the read that waits");
    publish_and_settle(&mut cluster, "b", "trimmed");
    let kept = publish_and_settle(&mut cluster, "a", "kept");
    trim(&mut cluster.log, "kept");
    cluster.nodes[1].is_cut = false;
    cluster.settle();
    assert_eq!(gap_at_second(&mut cluster, "b", &cursor).as_deref(), Some("evicted"));
    assert_eq!(gap_at_second(&mut cluster, "b", &kept), None);
}

#[test]
fn cursor_before_a_message_for_which_a_node_had_no_room_is_a_gap() {
    let mut cluster = Cluster::of(1);
    cluster.add(2, &Limits { channels_max: 1, ..Limits::default() });
    cluster.advance_ms(500);
    let only = cluster.join(1, "/ws/only");
    let cursor = publish_and_settle(&mut cluster, "only", "known");
    publish_and_settle(&mut cluster, "b", "no room");
    assert_eq!(cluster.rig(1).texts(only), ["known"]);
    // The history of the channel expires, and the channel is removed.
    cluster.rig(1).reset(only);
    cluster.advance_ms(400_000);
    assert_eq!(gap_at_second(&mut cluster, "b", &cursor).as_deref(), Some("evicted"));
}

/// A client that has a cursor, attaches, receives the head of the log as its new cursor, and leaves before the loss is
/// known.
#[test]
fn cursor_at_which_a_loss_is_found_later_is_a_gap() {
    let mut cluster = Cluster::of(2);
    publish_and_settle(&mut cluster, "a", "known");
    for text in ["lost", "lost too"] {
        let http = cluster.http(0);
        cluster.publish_http(0, http, "a", text, "");
        (0..12).for_each(|_| cluster.turn(0));
        assert_eq!(cluster.rig(0).responses(http)[0].status, 200);
    }
    cluster.stop_log();
    cluster.log = LogServer::new(cluster.log.version(2), 2);
    let advance = |cluster: &mut Cluster, at: usize| {
        cluster.redis_ms += 50;
        let rig = cluster.rig(at);
        rig.now = rig.now.after(50);
        cluster.turn(at);
    };
    // Only the second node is connected again, and nothing that it has read is missing.
    (0..40).for_each(|_| advance(&mut cluster, 1));
    let client = cluster.v1(1, "/ws/a");
    (0..4).for_each(|_| cluster.turn(1));
    let notices = cluster.notices(1, client);
    let cursor = of_type(&notices, "subscribed").expect("subscribed")["id"].as_str().unwrap().to_owned();
    cluster.rig(1).reset(client);
    cluster.turn(1);
    // The next entry is one of the first node, and its number shows that entries are missing.
    (0..10).for_each(|_| advance(&mut cluster, 0));
    cluster.settle();
    assert_eq!(gap_at_second(&mut cluster, "a", &cursor).as_deref(), Some("lost"), "{cursor}");
}
