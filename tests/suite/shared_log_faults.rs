//! Faults of a log that several nodes share, as publishers, subscribers and operators see them. Method: as in
//! [`crate::shared_log`].

use std::rc::Rc;

use oyez::backplane::entry::{Entry, EntryHeader, Item, LogMessage};
use oyez::config::Limits;
use oyez::ids::{RunId, SlotId};
use oyez::wire::Kind;
use serde_json::Value;

use crate::support::cluster::{Cluster, TIMEOUT_MS};
use crate::support::log_server::Record;

fn get(cluster: &mut Cluster, at: usize, path: &str) -> SlotId {
    let http = cluster.http(at);
    cluster.rig(at).send(http, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    cluster.turn(at);
    http
}

/// Publishes at the first node, while the second one does not read the log. Returns the message's id.
fn publish_unread(cluster: &mut Cluster, text: &str) -> String {
    let http = cluster.http(0);
    cluster.nodes[1].is_reader_cut = true;
    cluster.publish_http(0, http, "a", text, "");
    (0..12).for_each(|_| cluster.turn(0));
    let body = cluster.rig(0).responses(http).remove(0).body;
    serde_json::from_str::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn history_after_a_cursor_that_is_ahead_of_the_node_waits_until_it_has_read_the_log() {
    let mut cluster = Cluster::of(2);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "1", "");
    cluster.settle();
    let ahead = publish_unread(&mut cluster, "2");
    let path = format!("/v1/channels/a/history?since={ahead}");
    let history = get(&mut cluster, 1, &path);
    cluster.advance_ms(500);
    assert!(cluster.rig(1).responses(history).is_empty());
    cluster.nodes[1].is_reader_cut = false;
    cluster.settle();
    let page: Value = serde_json::from_str(&cluster.rig(1).responses(history)[0].body).unwrap();
    assert!(page["gap"].is_null() && page["messages"] == Value::Array(Vec::new()), "{page}");
    // A node that cannot check the cursor returns no history.
    let ahead = publish_unread(&mut cluster, "3");
    let history = get(&mut cluster, 1, &format!("/v1/channels/a/history?since={ahead}"));
    cluster.advance_ms(TIMEOUT_MS + 500);
    let response = cluster.rig(1).responses(history).remove(0);
    assert_eq!(response.status, 503);
    assert!(
        response.body.contains("backplane_down") && !response.body.contains("not published"),
        "{}",
        response.body
    );
}

#[test]
fn error_names_what_was_rejected() {
    let mut cluster = Cluster::of(0);
    cluster.log.is_alive = false;
    cluster.add(1, &Limits::default());
    for path in ["/v1/channels", "/readyz", "/ws/a"] {
        let http = get(&mut cluster, 0, path);
        let body = cluster.rig(0).responses(http).remove(0).body;
        assert!(body.contains("\"the backplane is down\""), "{path}: {body}");
    }
    cluster.log.is_alive = true;
    cluster.advance_ms(3_000);
    let raw = cluster.join(0, "/ws/a");
    cluster.stop_log();
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "x", "");
    cluster.advance_ms(TIMEOUT_MS + 500);
    let body = cluster.rig(0).responses(http).remove(0).body;
    assert!(body.contains("not published: the backplane is down"), "{body}");
    cluster.log.is_alive = true;
    cluster.log.is_full = true;
    cluster.advance_ms(3_000);
    cluster.rig(0).send_text(raw, "x");
    cluster.settle();
    let frames = cluster.rig(0).frames(raw);
    assert_eq!(frames[0].close_code(), (4104, "backplane_full retry_ms=5000".into()));
}

/// Clients do not send an unanswered publish again under its key if the key is unknown.
#[test]
fn log_whose_entries_were_deleted_is_another_run() {
    let mut cluster = Cluster::of(2);
    let run = |cluster: &mut Cluster, at: usize| {
        let id = cluster.v1(at, "/ws/a");
        cluster.notices(at, id).remove(0)["run"].clone()
    };
    let before = run(&mut cluster, 0);
    cluster.log.data.log.clear();
    cluster.advance_ms(4_000);
    let after = [run(&mut cluster, 0), run(&mut cluster, 1)];
    assert_eq!(after[0], after[1]);
    assert_ne!(after[0], before);
}

/// The time of each declaration in the log, and the number of keys that it declares.
fn declared(cluster: &Cluster) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    for record in cluster.log.data.log.iter().filter(|record| record.field == "b") {
        for item in Entry::parse(&record.body).unwrap().items() {
            if let Item::Settings { idempotency_keys, .. } = item {
                found.push((record.time_ms, idempotency_keys));
            }
        }
    }
    found
}

/// A node that starts with other settings reads those of the log, and it alone logs a warning.
#[test]
fn settings_of_the_log_are_declared_again_before_they_are_trimmed() {
    let limits = Limits::default();
    let keys = limits.idempotency.keys_max as u32;
    let mut cluster = Cluster::with_limits(2, &limits);
    cluster.advance_ms(100_000);
    let mut other = limits.clone();
    other.idempotency.keys_max += 1;
    cluster.add(3, &other);
    cluster.advance_ms(100_000);
    let declared = declared(&cluster);
    assert!(declared.iter().all(|(_, declared)| *declared == keys), "{declared:?}");
    let times: Vec<u64> = declared.iter().map(|(time_ms, _)| *time_ms).chain([cluster.redis_ms]).collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 40_000), "{times:?}");
    // The settings are not declared at each heartbeat.
    assert!(declared.len() <= 16, "{declared:?}");
}

/// Only an operator writes such an id by hand. Messages after it have no distinct ids, and the node continues.
#[test]
fn messages_after_the_largest_id_do_not_overflow() {
    let mut cluster = Cluster::of(1);
    let subscriber = cluster.v1(0, "/ws/a");
    let epoch = cluster.log.epoch().unwrap();
    for (number, seq) in [(1, u64::MAX - 1), (2, u64::MAX)] {
        let mut body = Vec::new();
        EntryHeader { run: RunId(77), number, is_resent: false }.append(&mut body);
        let message =
            LogMessage { channel: "a", kind: Kind::Text, payload: b"x", client: None, user: None, key: None };
        Item::Message(message).append(&mut body);
        cluster.log.data.log.push(Rc::new(Record { id: (epoch, seq), time_ms: 1, field: "b", body }));
    }
    cluster.advance_ms(500);
    // The next link begins an epoch.
    let now = cluster.rig(0).now;
    cluster.nodes[0].pipes = None;
    cluster.nodes[0].link().failed("reset".into(), now);
    cluster.advance_ms(4_000);
    let http = cluster.http(0);
    cluster.publish_http(0, http, "a", "y", "");
    cluster.settle();
    assert_eq!(cluster.rig(0).responses(http)[0].status, 200);
    let notices = cluster.notices(0, subscriber);
    let received: Vec<&Value> =
        notices.iter().filter(|one| one["type"] == "message" || one.get("text").is_some()).collect();
    assert!(received.len() >= 2, "{notices:?}");
}
