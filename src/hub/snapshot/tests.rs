//! Unit tests of the snapshot: random operations, written and restored at random times, against a model of the file.

use super::*;
use crate::config::HistoryLimits;
use crate::hub::change::Change;
use crate::hub::{ChannelInfo, SubscribeOptions, Subscription};
use crate::ids::ClientId;
use crate::ids::{Since, SlotId};
use crate::wire::{Form, Kind};
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: HistoryLimits =
    HistoryLimits { messages_max: 5, bytes_max: 800, age_ms: 1_000, total_bytes_max: 6_000 };

#[derive(Clone, Debug)]
enum Step {
    Publish {
        channel: usize,
        padding: usize,
        from: Option<u32>,
    },
    FinishBatch,
    Subscribe {
        channel: usize,
    },
    Unsubscribe,
    Advance {
        millis: u64,
    },
    /// Takes some of the changes.
    Write {
        most: usize,
        bytes: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0usize..5, prop_oneof![0usize..40, 200usize..900], any::<Option<u32>>())
            .prop_map(|(channel, padding, from)| Step::Publish { channel, padding, from }),
        6 => Just(Step::FinishBatch),
        1 => (0usize..5).prop_map(|channel| Step::Subscribe { channel }),
        1 => Just(Step::Unsubscribe),
        2 => (1u64..700).prop_map(|millis| Step::Advance { millis }),
        5 => (1usize..4, 1usize..900).prop_map(|(most, bytes)| Step::Write { most, bytes }),
    ]
}

/// Messages that were taken together, by the index of the last one.
type Rows = BTreeMap<u64, Vec<u8>>;

struct World {
    hub: Hub,
    millis: u64,
    subscribers: Vec<Subscription>,
    written: BTreeMap<Box<str>, (ChannelPosition, Rows)>,
}

impl World {
    fn new(limits: &Limits) -> World {
        let mut hub = Hub::new(limits, 7);
        hub.begin_tracking_changes();
        World { hub, millis: 10_000, subscribers: Vec::new(), written: BTreeMap::new() }
    }

    fn log_time(&self) -> LogTime {
        LogTime { now: LoopTime::from_millis(self.millis), millis: self.millis + 5_000_000 }
    }

    fn finish_batch(&mut self) {
        while let Some(id) = self.hub.next_open_batch() {
            let _ = self.hub.finish_batch(id, LoopTime::from_millis(self.millis));
            self.hub.remove_if_unused(id);
        }
    }

    fn write(&mut self, most: usize, bytes: usize) {
        let before = self.hub.changes();
        let log_time = self.log_time();
        let changes = self.hub.take_changes(log_time, most, bytes);
        assert!(changes.len() <= most && self.hub.changes() <= before);
        assert!(changes.iter().map(Change::bytes).sum::<usize>() < bytes + 1_000, "bounded");
        for change in changes {
            match change {
                Change::Removed { name } => {
                    self.written.remove(&name);
                }
                Change::Channel { name, position, messages } => {
                    let (newest, rows) = self.written.entry(name).or_default();
                    *newest = position;
                    if !messages.is_empty() {
                        rows.insert(position.last, messages);
                    }
                    rows.retain(|&last, _| last > position.evicted_through);
                }
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { channel, padding, from } => {
                let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
                let id = self.hub.open(&name).unwrap();
                let text = format!("{} {}", self.hub.log_head().log_index, "x".repeat(padding));
                let user =
                    (padding % 3 == 0).then(|| User::new(&format!("user{}", padding % 2), Some("[1]")));
                let sender = Sender { client: from.map(ClientId::from_bits), user };
                self.hub.publish(id, Kind::Text, text.as_bytes(), sender, None);
            }
            Step::FinishBatch => self.finish_batch(),
            Step::Subscribe { channel } => {
                self.finish_batch();
                let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
                let options = SubscribeOptions { form: Form::Event, since: Since::Now, echo: true };
                let subscriber = SlotId { key: self.subscribers.len() as u32, generation: 0 };
                let now = LoopTime::from_millis(self.millis);
                if self
                    .subscribers
                    .iter()
                    .all(|subscription| Some(subscription.channel) != self.hub.find(name.as_str()))
                {
                    let subscribed = self.hub.subscribe(&name, subscriber, options, now).unwrap();
                    self.subscribers.push(subscribed.subscription);
                }
            }
            Step::Unsubscribe => {
                self.finish_batch();
                if let Some(subscription) = self.subscribers.pop() {
                    assert_eq!(self.hub.unsubscribe(subscription), None);
                }
            }
            Step::Advance { millis } => {
                self.finish_batch();
                self.millis += millis;
                self.hub.expire(0..self.hub.keys_end(), LoopTime::from_millis(self.millis));
            }
            Step::Write { most, bytes } => {
                self.finish_batch();
                self.write(most, bytes);
            }
        }
    }

    /// A snapshot of all changes taken.
    fn snapshot(&self, limits: &Limits) -> Snapshot {
        let mut snapshot = Snapshot::new(&limits.history, self.log_time());
        for (name, (position, rows)) in &self.written {
            let messages: Vec<u8> = rows.values().flatten().copied().collect();
            snapshot.put(name, *position, &messages).unwrap();
        }
        snapshot
    }

    /// The hub that is restored from the snapshot.
    fn restore(&self, limits: &Limits) -> (Hub, Restored) {
        Hub::restore(limits, self.hub.log_head(), self.snapshot(limits))
    }
}

/// A channel: its name, its public state, how many messages it had, and the stored ones.
type ObservedChannel = (String, ChannelInfo, u64, String);

/// The whole observable state of a hub, including that of channels that do not exist.
fn observe(hub: &mut Hub, now: LoopTime) -> (LogHead, Vec<ObservedChannel>, [u64; 6]) {
    let names: Vec<String> =
        hub.channels_from("", std::ops::Bound::Unbounded).map(|(name, _)| name.to_owned()).collect();
    let channels = names.into_iter().map(|name| {
        let mut page = hub.page(&name, Since::Earliest, usize::MAX, now);
        let mut json = Vec::new();
        assert!(page.append(hub, &mut json, usize::MAX).1);
        let json = String::from_utf8(json).unwrap();
        let envelopes = json.strip_prefix("{\"messages\":[").unwrap().split("],\"next\":").next().unwrap();
        let number = hub.channel(hub.find(&name).unwrap()).unwrap().messages();
        (name.clone(), hub.info(&name), number, envelopes.to_owned())
    });
    let channels = channels.collect();
    let floors = ["c0", "c1", "c2", "c3", "c4", "never"].map(|name| hub.info(name).evicted_through);
    (hub.log_head(), channels, floors)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn restored_hub_equals_the_written_hub(
        steps in prop::collection::vec(step(), 1..150),
        names in 1usize..6,
    ) {
        let removed_channels_bytes_max = names * (crate::hub::removed::REMOVED_CHANNEL_BYTES + 2);
        let limits = Limits { history: LIMITS, removed_channels_bytes_max, ..Limits::default() };
        let mut world = World::new(&limits);
        for step in &steps {
            world.step(step);
        }
        world.finish_batch();
        while let Some(subscription) = world.subscribers.pop() {
            assert_eq!(world.hub.unsubscribe(subscription), None);
        }
        world.hub.check();
        while world.hub.changes() > 0 {
            world.write(3, 500);
        }
        let now = LoopTime::from_millis(world.millis);
        world.hub.expire(0..world.hub.keys_end(), now);
        let (mut restored, _) = world.restore(&limits);
        restored.check();
        prop_assert_eq!(observe(&mut restored, now), observe(&mut world.hub, now));
        // Both hubs must also expire messages at the same times.
        for millis in [200, 500, 999] {
            let now = now.after(millis);
            restored.expire(0..restored.keys_end(), now);
            world.hub.expire(0..world.hub.keys_end(), now);
            prop_assert_eq!(observe(&mut restored, now), observe(&mut world.hub, now));
        }
    }

    #[test]
    fn partly_written_hub_restores_consistent_channels(steps in prop::collection::vec(step(), 1..150)) {
        let limits = Limits { history: LIMITS, ..Limits::default() };
        let mut world = World::new(&limits);
        for step in &steps {
            world.step(step);
        }
        let (mut restored, _) = world.restore(&limits);
        restored.check();
        let now = LoopTime::from_millis(world.millis);
        for (_, info, number, envelopes) in observe(&mut restored, now).1 {
            let page: Vec<serde_json::Value> = serde_json::from_str(&format!("[{envelopes}]")).unwrap();
            for (message, n) in page.iter().rev().zip((1..=number).rev()) {
                let log_index: u64 = message["id"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap();
                prop_assert!(log_index > info.evicted_through && Some(log_index) <= info.head);
                prop_assert_eq!(message["n"].as_u64(), Some(n));
                let text = message["text"].as_str().unwrap();
                prop_assert!(text.starts_with(&format!("{} ", log_index - 1)), "{} {}", log_index, text);
            }
        }
    }
}

#[test]
fn restored_hub_respects_the_present_limits() {
    let wide = HistoryLimits { messages_max: 100, bytes_max: 1 << 20, age_ms: 60_000, ..LIMITS };
    let wide = Limits { history: HistoryLimits { total_bytes_max: 1 << 30, ..wide }, ..Limits::default() };
    let mut world = World::new(&wide);
    for number in 0..40 {
        world.step(&Step::Publish { channel: number % 4, padding: 100, from: None });
        world.step(&Step::Advance { millis: 50 });
    }
    while world.hub.changes() > 0 {
        world.write(3, 500);
    }
    let restore = |history: HistoryLimits, channels_max| {
        let limits = Limits { history, channels_max, ..wide.clone() };
        let (mut hub, restored) = world.restore(&limits);
        hub.check();
        assert_eq!(restored.messages + restored.dropped, 40);
        assert_eq!(hub.changes() > 0, restored.dropped > 0, "dropped messages are changes for the file");
        let now = LoopTime::from_millis(world.millis);
        observe(&mut hub, now)
    };
    let (head, channels, _) = restore(wide.history, 100);
    assert_eq!(channels.iter().map(|(_, info, ..)| info.messages).sum::<usize>(), 40);
    let (_, few, _) = restore(HistoryLimits { messages_max: 3, ..wide.history }, 100);
    for (name, info, number, envelopes) in few {
        let (_, before, all, whole) = channels.iter().find(|one| one.0 == name).unwrap();
        assert_eq!((info.messages, number, info.head), (3, *all, before.head));
        assert!(whole.ends_with(&envelopes) && info.evicted_through > before.evicted_through);
    }
    let (_, young, _) = restore(HistoryLimits { age_ms: 1_000, ..wide.history }, 100);
    assert_eq!(young.iter().map(|(_, info, ..)| info.messages).sum::<usize>(), 19);
    let (_, small, _) = restore(HistoryLimits { total_bytes_max: 2_500, ..wide.history }, 100);
    let counted = small.iter().map(|(_, info, ..)| info.bytes + super::super::CHANNEL_BYTES);
    assert!((2_000..=2_500).contains(&counted.sum::<usize>()));
    let (narrow, two, floors) = restore(wide.history, 2);
    assert_eq!(two.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["c2", "c3"]);
    assert_eq!(
        (narrow.log_index, floors),
        (head.log_index, [37, 38, two[0].1.evicted_through, two[1].1.evicted_through, 0, 0]),
        "the last messages of c0 and c1"
    );
    let (none, nothing, floors) = restore(HistoryLimits { messages_max: 0, ..wide.history }, 100);
    assert_eq!((nothing.len(), none.log_index, floors), (0, 40, [37, 38, 39, 40, 0, 0]));
}

#[test]
fn head_older_than_its_channels_assigns_no_number_twice() {
    let limits = Limits { history: LIMITS, ..Limits::default() };
    let mut world = World::new(&limits);
    world.step(&Step::Publish { channel: 0, padding: 0, from: None });
    let behind = world.hub.log_head();
    world.step(&Step::Publish { channel: 1, padding: 0, from: None });
    world.step(&Step::Write { most: 9, bytes: 9_999 });
    let (restored, _) = Hub::restore(&limits, behind, world.snapshot(&limits));
    assert_eq!(restored.log_head(), world.hub.log_head());
}

#[test]
fn list_of_changes_is_bounded_by_channels_and_remembered_names() {
    let history = HistoryLimits { messages_max: 0, ..LIMITS };
    // Room for 3 names.
    let removed_channels_bytes_max = 3 * (crate::hub::removed::REMOVED_CHANNEL_BYTES + 3);
    let mut world = World::new(&Limits { history, removed_channels_bytes_max, ..Limits::default() });
    for channel in 0..1_000 {
        world.step(&Step::Publish { channel: channel % 10, padding: 0, from: None });
        world.step(&Step::FinishBatch);
    }
    assert_eq!((world.hub.channels(), world.hub.changes()), (0, 1 + 3));
    world.write(9, 9_999);
    assert_eq!((world.written.len(), world.hub.changes()), (3, 0));
    for channel in 0..1_000 {
        world.step(&Step::Publish { channel: channel % 10, padding: 0, from: None });
        world.step(&Step::FinishBatch);
    }
    world.write(99, 9_999);
    assert_eq!(
        (world.written.len(), world.hub.changes()),
        (3, 0),
        "forgotten channels were removed from the file"
    );
    assert_eq!(
        world.hub.info("never").evicted_through,
        1_997,
        "the last message of those that were forgotten"
    );
}

#[test]
fn invalid_changes_are_rejected() {
    let mut good = Vec::new();
    let message = |log_index| ChangeMessage {
        log_index,
        at: 0,
        kind: Kind::Text,
        client: None,
        user: None,
        payload: b"x",
    };
    for log_index in [3, 4] {
        crate::hub::change::put_message(&mut good, &message(log_index));
    }
    let position = ChannelPosition { number: 2, last: 4, evicted_through: 2 };
    let log_time = LogTime { now: LoopTime::from_millis(0), millis: 0 };
    let put = |position, bytes: &[u8]| Snapshot::new(&LIMITS, log_time).put("a", position, bytes);
    assert_eq!(put(position, &good), Ok(()));
    assert_eq!(
        put(ChannelPosition { evicted_through: 3, number: 1, ..position }, &good),
        Ok(()),
        "one is evicted"
    );
    for bytes in 1..good.len() {
        assert_eq!(put(position, &good[..bytes]).is_ok(), bytes == good.len() / 2, "{bytes}");
    }
    assert_eq!(
        put(ChannelPosition { number: 1, ..position }, &good),
        Err(InvalidChange),
        "more than there were"
    );
    assert_eq!(
        put(ChannelPosition { last: 3, ..position }, &good),
        Err(InvalidChange),
        "later than the last"
    );
    let twice = good.repeat(2);
    assert_eq!(put(ChannelPosition { number: 9, ..position }, &twice), Err(InvalidChange), "out of order");
    good[16] = 3;
    assert_eq!(put(position, &good), Err(InvalidChange), "of no kind");
}
