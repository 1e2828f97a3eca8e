//! Compressed messages to random clients: each decodes the published messages of its channels, in order and without
//! repetition. In memory, over the engine; joins, leaves, skips and bursts are random.

use std::collections::BTreeMap;

use oyez::config::{DeflateMode, DeflateSettings, HistoryLimits, Limits, OnSlow};
use oyez::ids::SlotId;
use proptest::prelude::*;

use crate::support::deflate::{BROWSER, Decoder, GORILLA, SMALL_WINDOW, upgrade};
use crate::support::deflate_subscriber::{Subscriber, distinct, patterns, take_head, tick, with_v1};
use crate::support::frames::{self, BINARY, TEXT};
use crate::support::http::post;
use crate::support::rig::{Behavior, Rig};

/// A step of a random client.
#[derive(Clone, Debug)]
enum Step {
    Join { channel: usize, v1: bool, echo: bool, offer: usize, earliest: bool, in_turn: bool },
    Subscribe { client: prop::sample::Index, channel: usize },
    Unsubscribe { client: prop::sample::Index, channel: usize },
    Publish { client: prop::sample::Index, channel: usize, kind: usize },
    PublishByHttp { channel: usize, kind: usize },
    Leave { client: prop::sample::Index, closes: bool },
    Stall { client: prop::sample::Index, is_stalled: bool },
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    let client = any::<prop::sample::Index>;
    let kind = || prop_oneof![3 => 0..9usize, 2 => Just(8)];
    prop_oneof![
        3 => (0..2usize, any::<bool>(), any::<bool>(), 0..4usize, any::<bool>(), any::<bool>()).prop_map(
            |(channel, v1, echo, offer, earliest, in_turn)| Step::Join { channel, v1, echo, offer, earliest, in_turn }
        ),
        2 => (client(), 0..2usize).prop_map(|(client, channel)| Step::Subscribe { client, channel }),
        1 => (client(), 0..2usize).prop_map(|(client, channel)| Step::Unsubscribe { client, channel }),
        8 => (client(), 0..2usize, kind())
            .prop_map(|(client, channel, kind)| Step::Publish { client, channel, kind }),
        3 => (0..2usize, kind()).prop_map(|(channel, kind)| Step::PublishByHttp { channel, kind }),
        1 => (client(), any::<bool>()).prop_map(|(client, closes)| Step::Leave { client, closes }),
        1 => (client(), any::<bool>()).prop_map(|(client, is_stalled)| Step::Stall { client, is_stalled }),
        4 => Just(Step::Turn),
    ]
}

/// The payload of a message; its number makes it unique.
fn message(kind: usize, number: u64) -> String {
    match kind {
        0 => format!("short {number}"),
        1..=3 => tick(number),
        4 => (0..10)
            .map(|row| format!("row {row}: {}; ", if row == number % 10 { number + 10 } else { row }))
            .collect(),
        5 => (0..200)
            .map(|row| format!("{row}-{}, ", number.wrapping_mul(0x9e37_79b9).rotate_left(row)))
            .collect(),
        6 => format!("{number} {}", "a long text, and the same again, and again; ".repeat(1_000)),
        // Each text resembles an earlier one, with other messages between them.
        8 => distinct(number % 5, number),
        _ => format!("binary {number} {}", "b".repeat(100)),
    }
}

struct Client {
    subscriber: Subscriber,
    /// `None` for `oyez.v1`: its channel.
    raw: Option<usize>,
    /// It may miss messages.
    was_stalled: bool,
    /// The messages of each channel.
    received: BTreeMap<usize, Vec<String>>,
    /// The number in its channel of the last message of `oyez.v1`.
    last: BTreeMap<usize, u64>,
    has_head: bool,
}

struct World {
    rig: Rig,
    clients: Vec<Client>,
    /// A plain subscriber of each channel, which has been there from the begin.
    references: [SlotId; 2],
    published: [Vec<String>; 2],
    number: u64,
    /// The second channel is excluded from compression.
    is_second_excluded: bool,
}

const NAMES: [&str; 2] = ["a", "b"];

impl World {
    fn new(limits: Limits, is_second_excluded: bool) -> World {
        let mut rig = Rig::new(limits);
        if is_second_excluded {
            rig.engine.hub.exclude_from_compression(patterns(NAMES[1]));
        }
        let references = NAMES.map(|name| rig.join(&format!("/ws/{name}")));
        World {
            rig,
            clients: Vec::new(),
            references,
            published: Default::default(),
            number: 0,
            is_second_excluded,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Join { channel, v1, echo, offer, earliest, in_turn } => {
                let offer = [BROWSER, BROWSER, GORILLA, SMALL_WINDOW][offer];
                let id = self.rig.connect(Behavior::Cooperative);
                let (echo_query, since) = (u8::from(echo), if earliest { "&since=earliest" } else { "" });
                let request = upgrade(&format!("/ws/{}?echo={echo_query}{since}", NAMES[channel]), offer);
                self.rig.send(id, if v1 { with_v1(&request) } else { request }.as_bytes());
                self.clients.push(Client {
                    subscriber: Subscriber { id, decoder: Decoder::of_response("") },
                    raw: (!v1).then_some(channel),
                    was_stalled: false,
                    received: BTreeMap::new(),
                    last: BTreeMap::new(),
                    has_head: false,
                });
                if in_turn {
                    self.turn();
                }
            }
            Step::Subscribe { client, channel } => {
                self.command(client, &format!(r#"{{"type":"subscribe","ch":"{}"}}"#, NAMES[channel]));
            }
            Step::Unsubscribe { client, channel } => {
                if let Some(client) =
                    self.command(client, &format!(r#"{{"type":"unsubscribe","ch":"{}"}}"#, NAMES[channel]))
                {
                    self.clients[client].last.remove(&channel);
                }
            }
            Step::Publish { client, channel, kind } => {
                self.number += 1;
                let text = message(kind, self.number);
                let Some(client) = self.pick(client) else { return };
                let id = self.clients[client].subscriber.id;
                match self.clients[client].raw {
                    Some(_) => {
                        let opcode = if kind == 7 { BINARY } else { TEXT };
                        self.rig.send(id, &frames::masked(opcode, text.as_bytes()));
                    }
                    None => {
                        let text = serde_json::to_string(&text).unwrap();
                        self.rig.send_text(
                            id,
                            &format!(r#"{{"type":"publish","ch":"{}","text":{text}}}"#, NAMES[channel]),
                        );
                    }
                }
            }
            Step::PublishByHttp { channel, kind } => {
                self.number += 1;
                let id = self.rig.connect(Behavior::Cooperative);
                let path = format!("/v1/publish/{}", NAMES[channel]);
                self.rig.send(id, post(&path, "", &message(kind, self.number)).as_bytes());
                self.rig.send_eof(id);
            }
            Step::Leave { client, closes } => {
                let Some(client) = self.pick(client) else { return };
                let id = self.clients[client].subscriber.id;
                self.clients[client].was_stalled = true;
                if closes {
                    self.rig.send(id, &frames::close(1000, ""));
                } else {
                    self.rig.send_eof(id);
                }
            }
            Step::Stall { client, is_stalled } => {
                let Some(client) = self.pick(client) else { return };
                let id = self.clients[client].subscriber.id;
                self.clients[client].was_stalled = true;
                self.rig.set_behavior(id, if is_stalled { Behavior::Stalled } else { Behavior::Cooperative });
            }
            Step::Turn => self.turn(),
        }
    }

    /// A client that is connected.
    fn pick(&self, index: prop::sample::Index) -> Option<usize> {
        let alive: Vec<usize> = (0..self.clients.len())
            .filter(|&client| self.rig.is_alive(self.clients[client].subscriber.id))
            .collect();
        (!alive.is_empty()).then(|| alive[index.index(alive.len())])
    }

    /// Sends a command of `oyez.v1`.
    fn command(&mut self, index: prop::sample::Index, text: &str) -> Option<usize> {
        let client = self.pick(index).filter(|&client| self.clients[client].raw.is_none())?;
        let id = self.clients[client].subscriber.id;
        self.rig.send_text(id, text);
        self.turn();
        Some(client)
    }

    fn turn(&mut self) {
        self.rig.turn();
        self.read();
    }

    /// Reads the bytes that all clients have received.
    fn read(&mut self) {
        for (channel, &id) in self.references.iter().enumerate() {
            let texts =
                self.rig.frames(id).into_iter().map(|frame| String::from_utf8(frame.payload).unwrap());
            self.published[channel].extend(texts);
        }
        for client in &mut self.clients {
            if !client.has_head {
                let Some(decoder) = take_head(&mut self.rig, client.subscriber.id) else { continue };
                client.subscriber.decoder = decoder;
                client.has_head = true;
            }
            for frame in client.subscriber.take(&mut self.rig) {
                if frame.opcode != TEXT && frame.opcode != BINARY {
                    continue;
                }
                let text = String::from_utf8(frame.payload).unwrap();
                let is_of_second = client.raw == Some(1) || text.contains(r#""ch":"b""#);
                assert!(!(self.is_second_excluded && frame.is_compressed && is_of_second), "{text}");
                match client.raw {
                    Some(channel) => client.received.entry(channel).or_default().push(text),
                    None => client.receive_v1(&text, &self.published),
                }
            }
        }
    }

    fn finish(mut self) {
        for client in 0..self.clients.len() {
            let id = self.clients[client].subscriber.id;
            if self.rig.is_alive(id) {
                self.rig.set_behavior(id, Behavior::Cooperative);
                self.rig.engine.slots.mark_writable(id);
            }
        }
        for _ in 0..200 {
            self.turn();
        }
        self.rig.run_until_idle();
        self.read();
        for client in &self.clients {
            let Some(channel) = client.raw else { continue };
            let received = client.received.get(&channel).map_or(&[][..], Vec::as_slice);
            // In order, and without repetition.
            let mut rest = self.published[channel].iter();
            for text in received {
                assert!(rest.any(|one| one == text), "{text:?} is not among the messages that follow");
            }
            if !client.was_stalled && self.rig.is_alive(client.subscriber.id) && !received.is_empty() {
                assert_eq!(
                    received.last(),
                    received.iter().max_by_key(|text| position(&self.published[channel], text))
                );
            }
        }
    }
}

fn position(published: &[String], text: &str) -> Option<usize> {
    published.iter().position(|one| one == text)
}

impl Client {
    /// Each message has its number within its channel, which follows the one before it unless a gap was announced.
    fn receive_v1(&mut self, text: &str, published: &[Vec<String>; 2]) {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let Some(channel) = value["ch"].as_str().and_then(|name| NAMES.iter().position(|one| *one == name))
        else {
            return;
        };
        if value.get("gap").is_some() {
            self.last.remove(&channel);
        }
        let (Some(number), Some(text)) = (value["n"].as_u64(), value["text"].as_str()) else { return };
        let expected = &published[channel][number as usize - 1];
        assert_eq!(text, expected, "message {number} of {}", NAMES[channel]);
        if let Some(last) = self.last.insert(channel, number) {
            assert!(number > last, "{number} after {last}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_subscriber_decodes_what_was_published(
        steps in prop::collection::vec(step(), 1..120),
        mode in prop_oneof![4 => Just(DeflateMode::Context), 1 => Just(DeflateMode::Fresh)],
        skips in any::<bool>(),
        messages_max in prop_oneof![Just(0usize), Just(3), Just(100)],
        context_bytes_max in prop_oneof![3 => Just(64usize << 20), 1 => Just(300)],
        context_bytes_per_subscriber in prop_oneof![1 => Just(64usize), 3 => Just(64 << 10), 1 => Just(1_000)],
        is_second_excluded in any::<bool>(),
    ) {
        let limits = Limits {
            deflate: DeflateSettings {
                mode,
                context_bytes_max,
                context_bytes_per_subscriber,
                ..DeflateSettings::default()
            },
            on_slow: if skips { OnSlow::Skip } else { OnSlow::Close },
            outbox_bytes_max: 100_000,
            read_bytes_per_turn: 16 << 10,
            ping_interval_ms: 0,
            publish_pause_ms: 0,
            history: HistoryLimits { messages_max, ..HistoryLimits::default() },
            ..Limits::default()
        };
        let mut world = World::new(limits, is_second_excluded);
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }
}
