//! **No unannounced loss**, against a model of each channel's messages and each client's position.
//!
//! `oyez.v1` clients resume with their cursors over random transports, while others publish, histories overflow and
//! expire, and the server starts a new log. Each client must receive its channels' messages by number without a hole
//! and without a duplicate, unless a gap announces the loss in that place; in the end all must have reached the end
//! of the channel. **No false gap**: messages reported as evicted were published, and a channel that never had a
//! message has no gaps, whichever other channels end meanwhile.

use std::collections::{HashMap, VecDeque};

use oyez::config::{HistoryLimits, Limits, OnSlow};
use oyez::ids::SlotId;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::frames::{self, upgrade_v1};
use crate::support::rig::{Behavior, Rig, Rng};

const CHANNELS: [&str; 2] = ["a", "b"];

/// A channel on which nothing is ever published.
const QUIET: &str = "quiet";

const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum ReplayStep {
    Publish { channel: usize, padding: usize },
    Connect { client: usize, seed: u64, mean: bool },
    Cut { client: usize },
    Stick { client: usize },
    Turn,
    Pass { millis: u32 },
    Restart,
}

fn step() -> impl Strategy<Value = ReplayStep> {
    let client = 0usize..CLIENTS;
    prop_oneof![
        12 => (0usize..2, prop_oneof![0usize..40, 300usize..700])
            .prop_map(|(channel, padding)| ReplayStep::Publish { channel, padding }),
        4 => (client.clone(), any::<u64>(), any::<bool>())
            .prop_map(|(client, seed, mean)| ReplayStep::Connect { client, seed, mean }),
        2 => client.clone().prop_map(|client| ReplayStep::Cut { client }),
        1 => client.prop_map(|client| ReplayStep::Stick { client }),
        6 => Just(ReplayStep::Turn),
        1 => (1u32..1_500).prop_map(|millis| ReplayStep::Pass { millis }),
        1 => Just(ReplayStep::Restart),
    ]
}

/// A client's position in one channel.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// The cursor with which it would resume.
    cursor: Option<String>,
    /// The number of the last message, while the next message must have the next number.
    number: Option<u64>,
    /// A gap was announced, with the number of missed messages if known.
    gap: Option<Option<u64>>,
    is_subscribed: bool,
}

#[derive(Default)]
struct Client {
    id: Option<SlotId>,
    bytes: Vec<u8>,
    has_head: bool,
    /// It was slow on purpose, so a close is expected.
    was_stalled: bool,
    progress: HashMap<&'static str, Progress>,
}

/// Messages published since the log began.
#[derive(Default)]
struct Log {
    /// How many messages each channel has had.
    counts: HashMap<&'static str, u64>,
    /// By id: the number within its channel, and the text.
    messages: HashMap<String, (u64, String)>,
    /// By channel: the numbers of its messages in the log.
    seqs: HashMap<&'static str, Vec<u64>>,
}

fn seq_of(id: &Value) -> u64 {
    id.as_str().unwrap().split_once('-').unwrap().1.parse().unwrap()
}

struct World {
    rig: Rig,
    epoch: u64,
    publisher: SlotId,
    clients: Vec<Client>,
    /// Messages published and not acknowledged.
    pending: VecDeque<(&'static str, String)>,
    log: Log,
    published: usize,
    on_slow: OnSlow,
}

fn limits(on_slow: OnSlow) -> Limits {
    Limits {
        on_slow,
        outbox_bytes_max: 3_000,
        publish_pause_ms: 0,
        slow_timeout_ms: 1_000_000,
        close_timeout_ms: 500,
        drain_ms: 1_000,
        ping_interval_ms: 0,
        read_bytes_per_connection: 512,
        read_bytes_per_turn: 2_048,
        history: HistoryLimits { messages_max: 8, bytes_max: 3_000, age_ms: 2_000, total_bytes_max: 5_500 },
        ..Limits::default()
    }
}

impl World {
    fn new(on_slow: OnSlow) -> World {
        let mut rig = Rig::with_epoch(limits(on_slow), 1);
        let publisher = open(&mut rig);
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        World {
            rig,
            epoch: 1,
            publisher,
            clients,
            pending: VecDeque::new(),
            log: Log::default(),
            published: 0,
            on_slow,
        }
    }

    fn step(&mut self, step: &ReplayStep) {
        match *step {
            ReplayStep::Publish { channel, padding } => {
                self.published += 1;
                self.publish(CHANNELS[channel], format!("{} {}", self.published, "x".repeat(padding)));
            }
            ReplayStep::Connect { client, seed, mean } => {
                let behavior = if mean { Behavior::Random(Rng::new(seed)) } else { Behavior::Cooperative };
                self.clients[client].connect(&mut self.rig, behavior);
            }
            ReplayStep::Cut { client } => self.clients[client].cut(&mut self.rig),
            ReplayStep::Stick { client } => {
                if let Some(id) = self.clients[client].id.filter(|&id| self.rig.is_alive(id)) {
                    self.clients[client].was_stalled = true;
                    self.rig.set_behavior(id, Behavior::Stalled);
                }
            }
            ReplayStep::Turn => self.rig.turn(),
            ReplayStep::Pass { millis } => self.rig.advance_ms(millis),
            ReplayStep::Restart => {
                // Messages in flight to the server are published; messages in flight to clients are lost.
                self.rig.run_until_idle();
                self.look();
                self.epoch += 1;
                self.rig = Rig::with_epoch(limits(self.on_slow), self.epoch);
                self.publisher = open(&mut self.rig);
                self.log = Log::default();
                for client in &mut self.clients {
                    client.disconnected();
                }
            }
        }
        self.look();
    }

    fn publish(&mut self, channel: &'static str, text: String) {
        let request = json!({"type": "publish", "ch": channel, "text": text}).to_string();
        self.pending.push_back((channel, text));
        self.rig.send_text(self.publisher, &request);
    }

    fn look(&mut self) {
        for text in self.rig.texts(self.publisher) {
            let value: Value = serde_json::from_str(&text).unwrap();
            if value["type"] == "ack" {
                let (channel, text) = self.pending.pop_front().unwrap();
                let count = self.log.counts.entry(channel).or_default();
                *count += 1;
                self.log.seqs.entry(channel).or_default().push(seq_of(&value["id"]));
                self.log.messages.insert(value["id"].as_str().unwrap().to_owned(), (*count, text));
            }
        }
        for client in &mut self.clients {
            client.look(&mut self.rig, &self.log);
        }
    }

    fn check_deliveries(&mut self) {
        for client in &mut self.clients {
            if let Some(id) = client.id.filter(|&id| self.rig.is_alive(id)) {
                self.rig.set_behavior(id, Behavior::Cooperative);
                self.rig.engine.slots.mark_writable(id);
            }
        }
        self.rig.run_until_idle();
        // The time after which an unanswered close ends.
        self.rig.advance_ms(1_000);
        self.look();
        // Closed clients reconnect, and must then reach the same position as the others.
        for client in &mut self.clients {
            client.connect(&mut self.rig, Behavior::Cooperative);
        }
        self.rig.run_until_idle();
        self.look();
        for channel in CHANNELS {
            self.publish(channel, "last".into());
        }
        self.rig.run_until_idle();
        self.look();
        for (place, client) in self.clients.iter().enumerate() {
            for channel in CHANNELS {
                let head = self.log.counts[channel];
                assert_eq!(client.progress[channel].number, Some(head), "client {place} on {channel}");
            }
        }
    }
}

/// A cooperative subscriber of no channel.
fn open(rig: &mut Rig) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_v1("/ws").as_bytes());
    rig.run_until_idle();
    rig.skip_head(id);
    id
}

impl Client {
    fn connect(&mut self, rig: &mut Rig, behavior: Behavior) {
        if self.id.is_some_and(|id| rig.is_alive(id) && !self.was_stalled) {
            return;
        }
        self.cut(rig);
        let id = rig.connect(behavior);
        rig.send(id, upgrade_v1("/ws").as_bytes());
        for channel in CHANNELS {
            let mut request = json!({"type": "subscribe", "ch": channel});
            if let Some(cursor) = self.progress.get(channel).and_then(|progress| progress.cursor.clone()) {
                request["since"] = json!(cursor);
            }
            rig.send_text(id, &request.to_string());
        }
        // One cursor resumes any channel.
        if let Some(cursor) = self.progress.values().find_map(|progress| progress.cursor.clone()) {
            rig.send_text(id, &json!({"type": "subscribe", "ch": QUIET, "since": cursor}).to_string());
        }
        self.id = Some(id);
    }

    fn cut(&mut self, rig: &mut Rig) {
        if let Some(id) = self.id.filter(|&id| rig.is_alive(id)) {
            rig.reset(id);
        }
        self.disconnected();
    }

    fn disconnected(&mut self) {
        self.id = None;
        self.bytes.clear();
        self.has_head = false;
        self.was_stalled = false;
        self.progress.values_mut().for_each(|progress| progress.is_subscribed = false);
    }

    fn look(&mut self, rig: &mut Rig, log: &Log) {
        let Some(id) = self.id else { return };
        self.bytes.append(&mut rig.pipe(id).outgoing);
        if !self.has_head {
            let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return };
            self.bytes.drain(..end + 4);
            self.has_head = true;
        }
        while let Some(frame) = frames::take(&mut self.bytes) {
            if frame.opcode == frames::CLOSE {
                let (code, reason) = frame.close_code();
                assert!(code == 4102, "{code} {reason}");
                continue;
            }
            let value: Value = serde_json::from_slice(&frame.payload).unwrap();
            self.receive(&value, log);
        }
    }

    fn receive(&mut self, value: &Value, log: &Log) {
        if value["ch"] == QUIET {
            let is_gap = value["type"] == "gap";
            assert!(!is_gap || value["why"] == "epoch", "nothing was published there: {value}");
            return;
        }
        let Some(channel) = CHANNELS.into_iter().find(|channel| value["ch"] == *channel) else {
            assert_eq!(value["type"], "hello", "{value}");
            return;
        };
        let progress = self.progress.entry(channel).or_default();
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        match value["type"].as_str() {
            Some("subscribed") => {
                progress.is_subscribed = true;
                if progress.cursor.is_none() {
                    progress.number = None;
                }
                progress.cursor = text("id");
            }
            Some("gap") => {
                if value["why"] == "evicted" {
                    let missing = seq_of(&value["after"]) + 1..=seq_of(&value["resume"]);
                    let mut seqs = log.seqs.get(channel).into_iter().flatten();
                    assert!(seqs.any(|seq| missing.contains(seq)), "nothing is missing: {value}");
                }
                let missed = value["missed"].as_u64();
                progress.gap = Some(match progress.gap {
                    None => missed,
                    Some(before) => before.zip(missed).map(|(before, missed)| before + missed),
                });
                progress.cursor = text("resume");
            }
            Some("live") => progress.cursor = text("id"),
            Some(other) => panic!("{other}: {value}"),
            None => {
                assert!(progress.is_subscribed, "{value}");
                let (number, text_sent) =
                    log.messages.get(value["id"].as_str().unwrap()).expect("a message of this log").clone();
                assert!(value["text"] == text_sent, "message {number} of {channel}");
                match (progress.number, progress.gap.take()) {
                    (Some(last), None) => assert_eq!(number, last + 1, "a hole or a double: {value}"),
                    (Some(last), Some(Some(missed))) => assert_eq!(number, last + 1 + missed, "{value}"),
                    (Some(_), Some(None)) | (None, _) => {}
                }
                progress.number = Some(number);
                progress.cursor = text("id");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn resumed_clients_get_every_message_once_or_a_gap(
        steps in prop::collection::vec(step(), 1..150),
        skip in any::<bool>(),
    ) {
        let mut world = World::new(if skip { OnSlow::Skip } else { OnSlow::Close });
        for step in &steps {
            world.step(step);
        }
        world.check_deliveries();
    }
}
