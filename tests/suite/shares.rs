//! Shares: one connection, user or address cannot exhaust a common resource. Driven turn by turn; an exhausted share
//! is refilled when its resources are released.

use std::net::SocketAddr;

use oyez::access::limit::Limit;
use oyez::config::{HistoryLimits, Limits};
use oyez::ids::SlotId;
use serde_json::{Value, json};

use crate::support::frames::{self, upgrade_v1};
use crate::support::http::post;
use crate::support::rig::{Behavior, Rig};

const AGE_MS: u32 = 1_000;

fn limits() -> Limits {
    let history = HistoryLimits { age_ms: AGE_MS, ..HistoryLimits::default() };
    Limits { history, ping_interval_ms: 0, ..Limits::default() }
}

/// A client of `oyez.v1` that has been greeted.
fn open(rig: &mut Rig) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1("/ws").as_bytes());
    rig.run_until_idle();
    rig.skip_head(id);
    assert_eq!(rig.texts(id).len(), 1, "hello");
    id
}

/// The type of the response, or the code of an error.
fn ask(rig: &mut Rig, id: SlotId, request: &Value) -> String {
    rig.send_text(id, &request.to_string());
    rig.run_until_idle();
    let texts = rig.texts(id);
    let answer: Value = serde_json::from_str(&texts[0]).unwrap();
    let word = if answer["type"] == "error" { &answer["code"] } else { &answer["type"] };
    word.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn publish(rig: &mut Rig, id: SlotId, channel: &str) -> String {
    ask(rig, id, &json!({"type": "publish", "ch": channel, "text": "x"}))
}

fn subscribe(rig: &mut Rig, id: SlotId, channel: &str) -> String {
    ask(rig, id, &json!({"type": "subscribe", "ch": channel}))
}

fn post_from(rig: &mut Rig, address: &str, channel: &str) -> (u16, String) {
    let id = rig.connect_from(address, Behavior::Cooperative);
    rig.send(id, post(&format!("/v1/publish/{channel}"), "", "x").as_bytes());
    rig.run_until_idle();
    let answer = rig.responses(id).remove(0);
    rig.send_eof(id);
    rig.run_until_idle();
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

#[test]
fn created_channels_count_until_they_end() {
    let mut rig = Rig::new(Limits { channels_per_client_max: 3, ..limits() });
    let id = open(&mut rig);
    for channel in ["a", "b", "c"] {
        assert_eq!(publish(&mut rig, id, channel), "ack");
    }
    assert_eq!(publish(&mut rig, id, "d"), "too_many_channels");
    assert_eq!(subscribe(&mut rig, id, "d"), "too_many_channels");
    assert_eq!(publish(&mut rig, id, "a"), "ack", "one that exists");
    assert_eq!(subscribe(&mut rig, id, "a"), "subscribed", "its own counts once");
    assert_eq!(ask(&mut rig, id, &json!({"type": "unsubscribe", "ch": "a"})), "unsubscribed");
    assert_eq!(publish(&mut rig, id, "d"), "too_many_channels", "the channel is still there");
    let other = open(&mut rig);
    assert_eq!(publish(&mut rig, other, "d"), "ack", "another connection has its own share");
    assert_eq!(rig.engine.shared.metrics.rate_limited[Limit::ChannelsPerClient as usize], 3);
    rig.advance_ms(2 * AGE_MS);
    assert_eq!(rig.engine.hub.channels(), 0);
    for channel in ["e", "f", "g"] {
        assert_eq!(subscribe(&mut rig, id, channel), "subscribed");
    }
    assert_eq!(publish(&mut rig, id, "h"), "too_many_channels", "subscriptions count too");
    assert_eq!(ask(&mut rig, id, &json!({"type": "unsubscribe", "ch": "g"})), "unsubscribed");
    assert_eq!(publish(&mut rig, id, "h"), "ack");
    assert_eq!(rig.engine.hub.channels_created_by(id), 1);
    rig.send_eof(id);
    rig.run_until_idle();
    assert_eq!(rig.engine.hub.channels_created_by(id), 0, "a connection that is gone leaves nothing");
}

#[test]
fn publisher_at_its_channel_share_leaves_room_for_others() {
    let mut rig = Rig::new(Limits { channels_per_publisher_max: 2, ..limits() });
    let over = (429, "too_many_channels".to_owned());
    let fine = (200, String::new());
    assert_eq!(post_from(&mut rig, "192.0.2.1", "a"), fine);
    assert_eq!(post_from(&mut rig, "192.0.2.1", "b"), fine);
    assert_eq!(post_from(&mut rig, "192.0.2.1", "c"), over, "from another connection too");
    assert_eq!(post_from(&mut rig, "192.0.2.1", "a"), fine, "one that exists");
    assert_eq!(post_from(&mut rig, "192.0.2.2", "c"), fine, "another address");
    assert_eq!(post_from(&mut rig, "2001:db8::1", "d"), fine);
    assert_eq!(post_from(&mut rig, "2001:db8::2", "e"), fine);
    assert_eq!(post_from(&mut rig, "2001:db8::3", "f"), over, "one customer's network");
    assert_eq!(rig.engine.shared.metrics.rate_limited[Limit::ChannelsPerPublisher as usize], 2);
    rig.advance_ms(2 * AGE_MS);
    assert_eq!(rig.engine.hub.channels(), 0);
    assert!(rig.engine.hub.publishers().is_empty());
    assert_eq!(post_from(&mut rig, "192.0.2.1", "c"), fine);
}

#[test]
fn publisher_that_reconnects_has_no_new_share() {
    let limits = Limits { channels_per_client_max: 2, channels_per_publisher_max: 3, ..limits() };
    let mut rig = Rig::new(limits);
    let first = open(&mut rig);
    assert_eq!((publish(&mut rig, first, "a"), publish(&mut rig, first, "b")), ("ack".into(), "ack".into()));
    rig.send_eof(first);
    rig.run_until_idle();
    let second = open(&mut rig);
    assert_eq!(publish(&mut rig, second, "c"), "ack");
    assert_eq!(publish(&mut rig, second, "d"), "too_many_channels");
}

/// A log that takes lines and writes none: lines of a level that is off are not counted.
struct NoLog;

impl log::Log for NoLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {}

    fn flush(&self) {}
}

#[test]
fn close_log_lines_of_a_flood_are_suppressed_and_counted() {
    log::set_logger(&NoLog).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut rig = Rig::new(Limits { log_lines_per_second: 100, ..limits() });
    let flood = |rig: &mut Rig| {
        let ids: Vec<SlotId> = (0..150).map(|_| rig.connect(Behavior::Cooperative)).collect();
        for id in ids {
            rig.reset(id);
        }
        rig.run_until_idle();
        rig.engine.shared.metrics.log_lines_suppressed
    };
    assert_eq!((flood(&mut rig), flood(&mut rig)), (50, 200), "all within one second");
    assert!(rig.engine.next_expiry(rig.now).is_some(), "the loop wakes to sum up");
    rig.advance_ms(1_100);
    assert_eq!(rig.engine.next_expiry(rig.now), None);
    assert_eq!(flood(&mut rig), 250);
}

#[test]
fn log_lines_about_accept_memory_and_origins_are_limited() {
    let mut rig = Rig::new(Limits { log_lines_per_second: 100, memory_bytes_max: 1 << 20, ..limits() });
    let suppressed = |rig: &Rig| rig.engine.shared.metrics.log_lines_suppressed;
    let (error, peer) = (std::io::Error::from_raw_os_error(24), SocketAddr::from(([192, 0, 2, 1], 1)).into());
    for _ in 0..150 {
        rig.engine.accept_exhausted(&error, false, rig.now);
    }
    assert_eq!(suppressed(&rig), 0, "only the first of a row is logged");
    for _ in 0..150 {
        rig.engine.accept_exhausted(&error, true, rig.now);
    }
    assert_eq!((suppressed(&rig), rig.engine.shared.metrics.accept_errors["EMFILE"]), (50, 300));
    for _ in 0..150 {
        rig.engine.not_served(peer, &error, rig.now);
    }
    assert_eq!(suppressed(&rig), 100);
    for _ in 0..75 {
        // One step begins and ends.
        rig.engine.relieve(800 << 10, rig.now);
        rig.engine.relieve(0, rig.now);
    }
    assert_eq!((suppressed(&rig), rig.engine.shared.metrics.memory_pressure[0]), (150, 75));
    for _ in 0..20 {
        let id = rig.connect(Behavior::Cooperative);
        let foreign = "\r\nOrigin: https://foreign.example\r\n\r\n";
        rig.send(id, frames::upgrade("/ws").replace("\r\n\r\n", foreign).as_bytes());
        rig.run_until_idle();
    }
    assert_eq!(suppressed(&rig), 165, "5 of the 20 at once");
}
