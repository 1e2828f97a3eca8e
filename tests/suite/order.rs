//! Messages of several channels, to `oyez.v1` connections that subscribe and unsubscribe meanwhile.
//!
//! Many commands of several connections are read in one turn. A model applies them in the same order and says what each
//! connection receives: every message and every notice, in exactly that order, whatever is merged, sliced or sent
//! early.

use oyez::config::{Limits, OnSlow};
use oyez::ids::SlotId;
use serde_json::{Value, json};

use crate::support::frames::{self, TEXT, upgrade_v1};
use crate::support::rig::{Behavior, Rig, Rng};

const CHANNELS: [&str; 4] = ["a", "b", "c", "d"];

/// A connection, and what the model says of it.
struct Client {
    id: SlotId,
    /// Its channels, and whether it receives its own messages there.
    channels: Vec<(&'static str, bool)>,
    expected: Vec<String>,
}

fn connect(rig: &mut Rig) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1("/ws").as_bytes());
    rig.run_until_idle();
    rig.pipe(id).outgoing.clear();
    id
}

fn seq(value: &Value) -> u64 {
    value["id"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap()
}

/// What a connection has received but acknowledgements, as the model writes it. No cursor in a notice is ahead of a
/// message that was sent later.
fn received(rig: &mut Rig, id: SlotId) -> Vec<String> {
    let mut cursor = 0;
    let mut got = Vec::new();
    for text in rig.texts(id) {
        let value: Value = serde_json::from_str(&text).unwrap();
        let ch = value["ch"].as_str().unwrap_or_default();
        match value["type"].as_str() {
            Some("ack") => continue,
            Some("subscribed") => {
                cursor = seq(&value);
                got.push(format!("subscribed {ch}"));
            }
            Some(kind) => got.push(format!("{kind} {ch}")),
            None => {
                assert!(seq(&value) > cursor, "{value} after the cursor {cursor}");
                cursor = seq(&value);
                got.push(format!("{ch} {}", value["text"].as_str().unwrap()));
            }
        }
    }
    got
}

#[test]
fn commands_of_one_turn_are_delivered_in_order() {
    for seed in 0..15 {
        let mut rng = Rng::new(seed);
        let mut rig = Rig::new(Limits::default());
        let mut clients: Vec<Client> =
            (0..6).map(|_| Client { id: connect(&mut rig), channels: vec![], expected: vec![] }).collect();
        let mut published = 0;
        for _ in 0..12 {
            let first = rng.below(6) as usize;
            for turn in 0..6 {
                let who = (first + turn) % 6;
                let mut bytes = Vec::new();
                for _ in 0..rng.below(12) {
                    let ch = CHANNELS[rng.below(4) as usize];
                    let place = clients[who].channels.iter().position(|one| one.0 == ch);
                    let command = match (rng.below(6), place) {
                        (0 | 1, None) => {
                            let echo = rng.below(3) > 0;
                            clients[who].channels.push((ch, echo));
                            clients[who].expected.push(format!("subscribed {ch}"));
                            json!({"type": "subscribe", "ch": ch, "echo": echo})
                        }
                        (0, Some(place)) => {
                            clients[who].channels.remove(place);
                            clients[who].expected.push(format!("unsubscribed {ch}"));
                            json!({"type": "unsubscribe", "ch": ch})
                        }
                        _ => {
                            published += 1;
                            let padding = if rng.below(8) == 0 { 6_000 } else { 10 };
                            let text = format!("{published} {}", "x".repeat(padding));
                            for (place, client) in clients.iter_mut().enumerate() {
                                if client.channels.iter().any(|one| one.0 == ch && (one.1 || place != who)) {
                                    client.expected.push(format!("{ch} {text}"));
                                }
                            }
                            json!({"type": "publish", "ch": ch, "text": text})
                        }
                    };
                    bytes.extend(frames::masked(TEXT, command.to_string().as_bytes()));
                }
                rig.send(clients[who].id, &bytes);
                // In the same turn, but in this order.
                rig.engine.read(rig.now);
            }
            rig.turn();
            rig.run_until_idle();
        }
        for (place, client) in clients.iter().enumerate() {
            let got = received(&mut rig, client.id);
            assert!(
                got == client.expected,
                "seed {seed}, client {place}: {:?}",
                difference(&got, &client.expected)
            );
        }
    }
}

/// The first index at which two lists differ, and the items there.
fn difference<'a>(got: &'a [String], expected: &'a [String]) -> (usize, Option<&'a str>, Option<&'a str>) {
    let place = got.iter().zip(expected).take_while(|(one, two)| one == two).count();
    let at = |list: &'a [String]| list.get(place).map(|text| &text[..text.len().min(30)]);
    (place, at(got), at(expected))
}

#[test]
fn messages_alternating_between_channels_are_one_write() {
    let mut rig = Rig::new(Limits::default());
    let publisher = connect(&mut rig);
    let subscribers: Vec<SlotId> = (0..10).map(|_| connect(&mut rig)).collect();
    for &id in &subscribers {
        for ch in ["a", "b"] {
            rig.send_text(id, &json!({"type": "subscribe", "ch": ch}).to_string());
        }
    }
    rig.run_until_idle();
    subscribers.iter().for_each(|&id| rig.pipe(id).outgoing.clear());
    let mut bytes = Vec::new();
    for n in 0..64 {
        let ch = CHANNELS[n % 2];
        let publish = json!({"type": "publish", "ch": ch, "text": n.to_string()});
        bytes.extend(frames::masked(TEXT, publish.to_string().as_bytes()));
    }
    rig.send(publisher, &bytes);
    rig.engine.read(rig.now);
    rig.engine.deliver(rig.now);
    for &id in &subscribers {
        let slot = rig.engine.slots.get(id).unwrap();
        assert!(matches!(slot.outbox, oyez::net::outbox::Outbox::Fresh(_)), "one piece: {:?}", slot.outbox);
    }
    rig.run_until_idle();
    for &id in &subscribers {
        let expected: Vec<String> = (0..64).map(|n| format!("{} {n}", CHANNELS[n % 2])).collect();
        assert_eq!(received(&mut rig, id), expected);
    }
}

/// A subscription does not split a batch: all subscribers get the messages before and after it as one piece.
#[test]
fn subscription_between_messages_keeps_them_one_piece() {
    for since in [json!(null), json!("latest"), json!("earliest")] {
        let mut rig = Rig::new(Limits::default());
        let (one, subscriber) = (connect(&mut rig), connect(&mut rig));
        rig.send_text(subscriber, &json!({"type": "subscribe", "ch": "a"}).to_string());
        rig.run_until_idle();
        rig.pipe(subscriber).outgoing.clear();
        let late: Vec<SlotId> = (0..20).map(|_| connect(&mut rig)).collect();
        let publish = |n: usize| json!({"type": "publish", "ch": "a", "text": n.to_string()}).to_string();
        let subscribe = match &since {
            Value::Null => json!({"type": "subscribe", "ch": "a"}).to_string(),
            since => json!({"type": "subscribe", "ch": "a", "since": since}).to_string(),
        };
        let mut bytes = Vec::new();
        for n in 0..20 {
            bytes.extend(frames::masked(TEXT, publish(n).as_bytes()));
            bytes.extend(frames::masked(TEXT, subscribe.as_bytes()));
            bytes.extend(frames::masked(
                TEXT,
                json!({"type": "unsubscribe", "ch": "a"}).to_string().as_bytes(),
            ));
        }
        rig.send(one, &bytes);
        for &id in &late {
            rig.send_text(id, &subscribe);
        }
        rig.engine.read(rig.now);
        rig.engine.deliver(rig.now);
        let slot = rig.engine.slots.get(subscriber).unwrap();
        assert!(matches!(slot.outbox, oyez::net::outbox::Outbox::Fresh(_)), "one piece: {:?}", slot.outbox);
        rig.run_until_idle();
        let expected: Vec<String> = (0..20).map(|n| format!("a {n}")).collect();
        assert_eq!(received(&mut rig, subscriber), expected);
        for &id in &late {
            let got = received(&mut rig, id);
            let texts: Vec<&String> = got.iter().filter(|text| text.starts_with("a ")).collect();
            let kept = match since.as_str() {
                None => 0,
                Some("latest") => 1,
                Some(_) => 20,
            };
            assert_eq!(texts, expected[20 - kept..].iter().collect::<Vec<_>>(), "{since}");
        }
    }
}

/// A subscriber that could not take a batch goes on from the history: from where it subscribed within the batch, and
/// after the messages that it was sent ahead of the others.
#[test]
fn subscriber_that_lags_within_a_batch_gets_each_message_once() {
    let limits = Limits { on_slow: OnSlow::Skip, outbox_bytes_max: 70_000, ..Limits::default() };
    let mut rig = Rig::new(limits);
    let publisher = connect(&mut rig);
    let (late, early) = (connect(&mut rig), connect(&mut rig));
    rig.send_text(late, &json!({"type": "subscribe", "ch": "b"}).to_string());
    rig.send_text(early, &json!({"type": "subscribe", "ch": "b"}).to_string());
    rig.send_text(early, &json!({"type": "subscribe", "ch": "a"}).to_string());
    rig.run_until_idle();
    for id in [late, early] {
        rig.pipe(id).outgoing.clear();
        rig.pipe(id).behavior = Behavior::Stalled;
    }
    let publish = |rig: &mut Rig, ch: &str, n: usize, padding: usize| {
        let text = format!("{n} {}", "x".repeat(padding));
        rig.send_text(publisher, &json!({"type": "publish", "ch": ch, "text": text}).to_string());
        rig.engine.read(rig.now);
    };
    publish(&mut rig, "b", 1, 60_000);
    rig.run_until_idle();
    publish(&mut rig, "a", 2, 10);
    for (id, ch) in [(late, "a"), (early, "c")] {
        rig.send_text(id, &json!({"type": "subscribe", "ch": ch}).to_string());
        rig.engine.read(rig.now);
    }
    publish(&mut rig, "a", 3, 30_000);
    publish(&mut rig, "b", 4, 10);
    rig.turn();
    for id in [late, early] {
        rig.set_behavior(id, Behavior::Cooperative);
        rig.engine.slots.mark_writable(id);
    }
    rig.run_until_idle();
    let heard = |rig: &mut Rig, id: SlotId| -> Vec<String> {
        let texts = rig.texts(id).into_iter();
        let values = texts.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        values.filter_map(|value| Some(value["text"].as_str()?.split(' ').next()?.to_owned())).collect()
    };
    assert_eq!(heard(&mut rig, late), ["1", "4", "3"], "each channel's history in turn, and not 2");
    assert_eq!(heard(&mut rig, early), ["1", "2", "4", "3"], "and 2 only once");
}
