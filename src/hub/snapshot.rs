//! The hub as it was written down: what its changes have come to, and a hub made of that.

use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;

use super::Hub;
use super::change::{BadChange, ChannelPosition, Message, Messages};
use super::channel::{Channel, PersistState};
use super::history::{Entry, GATHERED, History, SMALL_BYTES};
use super::persist::{LogHead, LogTime};
use crate::config::{HistoryLimits, Limits};
use crate::ids::{ChannelName, Sender, User};
use crate::time::LoopTime;
use crate::wire;

/// What changes have come to, all in all.
///
/// Each message is copied once, from the bytes it was written as into the history that it stays in: loading takes the memory
/// of one history, and few allocations.
#[derive(Debug)]
pub struct Snapshot {
    limits: HistoryLimits,
    hour: LogTime,
    channels: HashMap<Box<str>, StoredChannel>,
    users: Users,
    batch: OpenBatch,
}

/// A channel.
#[derive(Debug)]
struct StoredChannel {
    number: u64,
    last: u64,
    evicted_through: u64,
    /// How many messages were written, of which today's limits may let fewer stay.
    count: usize,
    history: History,
}

/// What restoring has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Messages that are kept again.
    pub messages: usize,
    /// Messages that were written and are over today's limits, or too old.
    pub dropped: usize,
}

impl Snapshot {
    /// Nothing so far. Of what is put in, as much is kept as the limits allow at this time.
    pub fn new(limits: &HistoryLimits, hour: LogTime) -> Snapshot {
        let (users, batch) = (Users::default(), OpenBatch::default());
        Snapshot { limits: *limits, hour, channels: HashMap::new(), users, batch }
    }

    /// Takes in a channel by its newest figures, and by the messages of its changes in order.
    ///
    /// # Errors
    /// No [`Hub::take_changes`] has told that. Nothing else may be put in then.
    pub fn put(&mut self, name: &str, figures: ChannelPosition, messages: &[u8]) -> Result<(), BadChange> {
        let Snapshot { limits, hour, users, batch, .. } = self;
        let ChannelPosition { number, last, evicted_through } = figures;
        let (mut count, mut before) = (0, evicted_through);
        let mut history = History::new(evicted_through);
        let messages_max = Messages(messages).map_while(Result::ok).count();
        history.reserve(messages_max.min(limits.messages_max));
        for message in Messages(messages) {
            let message = message?;
            if message.seq <= evicted_through {
                continue;
            }
            if message.seq <= before || message.seq > last {
                return Err(BadChange);
            }
            (count, before) = (count + 1, message.seq);
            if !batch.takes(&message) {
                batch.flush(&mut history, limits);
            }
            // Older than it may be is old enough: a moment does not reach back further than weeks.
            let age = hour.millis.saturating_sub(message.at).min(u64::from(limits.age_ms)) as u32;
            batch.push(&message, message.user.map(|json| users.get(json)), hour.now.before(age));
        }
        // A channel keeps the last of its messages, so it has had as many.
        if count as u64 > number {
            return Err(BadChange);
        }
        batch.flush(&mut history, limits);
        history.expire(limits.age_ms, hour.now);
        history.shrink();
        self.channels.insert(name.into(), StoredChannel { number, last, evicted_through, count, history });
        Ok(())
    }
}

/// Messages of one user share it again.
#[derive(Debug, Default)]
struct Users(HashMap<Box<str>, User>);

impl Users {
    fn get(&mut self, json: &str) -> User {
        if let Some(user) = self.0.get(json) {
            return user.clone();
        }
        let user = User::from_json(json);
        self.0.insert(json.into(), user.clone());
        user
    }
}

/// Messages on their way into a history. Its memory is used for all channels.
#[derive(Debug, Default)]
struct OpenBatch {
    frames: Vec<u8>,
    entries: Vec<Entry>,
    times: Vec<LoopTime>,
    /// When the last message was published, by the log's time.
    at: u64,
}

impl OpenBatch {
    /// Returns true if the message goes into the same memory as those before it: they were published in one turn, or they
    /// are as few and small as [`History`] gathers.
    fn takes(&self, message: &Message<'_>) -> bool {
        let Message { at, payload, .. } = *message;
        let small_bytes = GATHERED * SMALL_BYTES;
        let is_small = payload.len() <= SMALL_BYTES && self.frames.len() + payload.len() <= small_bytes;
        at == self.at || is_small && self.entries.len() < GATHERED
    }

    fn push(&mut self, message: &Message<'_>, user: Option<User>, time: LoopTime) {
        let Message { seq, at, kind, client, payload, .. } = *message;
        wire::append_message(&mut self.frames, kind, payload);
        let sender = Sender { client, user };
        self.entries.push(Entry { end: self.frames.len() as u32, seq, kind, sender });
        self.times.push(time);
        self.at = at;
    }

    fn flush(&mut self, history: &mut History, limits: &HistoryLimits) {
        if !self.entries.is_empty() {
            let frames = Rc::new(Bytes::copy_from_slice(&self.frames));
            history.keep_published_at(&frames, &self.entries, limits, |index| self.times[index]);
        }
        self.frames.clear();
        self.entries.clear();
        self.times.clear();
    }
}

impl Hub {
    /// The hub that was written down, under the limits of today. It has a journal, in which stands what they
    /// have changed.
    pub fn restore(limits: &Limits, head: LogHead, past: Snapshot) -> (Hub, Restored) {
        let mut hub = Hub { seq: head.seq, ..Hub::new(limits, head.epoch) };
        hub.removed.raise(head.max_removed_seq);
        let mut channels: Vec<(Box<str>, StoredChannel)> = past.channels.into_iter().collect();
        // If the limits do not allow all, the last ones stay. A removed channel has no messages and takes no memory
        // here.
        channels.sort_unstable_by_key(|(_, written)| (written.count > 0, written.last));
        let spare = channels.len().saturating_sub(limits.channels_max);
        let mut written = Vec::with_capacity(channels.len());
        for (place, (name, channel)) in channels.into_iter().enumerate() {
            hub.seq = hub.seq.max(channel.last);
            written.push((Rc::<str>::from(name), channel.count));
            let (name, _) = &written[place];
            match ChannelName::parse(name.as_bytes()) {
                Ok(name) if place >= spare => hub.restore_channel(&name, channel),
                _ => hub.remember_removed(written[place].0.clone(), channel.last, true),
            }
        }
        hub.keep_to_total(None);
        let count = |written: &[(Rc<str>, usize)]| written.iter().map(|(_, count)| count).sum::<usize>();
        let restored = Restored { messages: hub.kept.messages, dropped: count(&written) - hub.kept.messages };
        hub.begin_tracking_changes();
        for (name, count) in written {
            hub.note_difference(name, count);
        }
        (hub, restored)
    }

    fn restore_channel(&mut self, name: &ChannelName, written: StoredChannel) {
        let Ok(id) = self.open(name) else { return };
        let before = super::HistoryUsage::default();
        let channel = &mut self.channels[id.0 as usize];
        let StoredChannel { number, last, evicted_through, count: _, history } = written;
        *channel = Channel::restored(channel.shared_name(), number, last, evicted_through);
        channel.mark = PersistState { written: last, is_written: true };
        channel.history = history;
        self.account(id, before);
        self.end_if_empty(id);
    }

    /// Puts a channel into the journal if it is not as it was written.
    fn note_difference(&mut self, name: Rc<str>, messages: usize) {
        let Hub { dirty_channels: Some(dirty_channels), names, channels, .. } = self else { return };
        match names.get(&name) {
            // The file has the same row already.
            None if messages == 0 && self.removed.get(&name).is_some() => {}
            None => dirty_channels.note_removed(name),
            Some(&id) if channels[id.0 as usize].history.len() != messages => dirty_channels.note(id),
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
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
        Seal,
        Join {
            channel: usize,
        },
        Leave,
        Pass {
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
            6 => Just(Step::Seal),
            1 => (0usize..5).prop_map(|channel| Step::Join { channel }),
            1 => Just(Step::Leave),
            2 => (1u64..700).prop_map(|millis| Step::Pass { millis }),
            5 => (1usize..4, 1usize..900).prop_map(|(most, bytes)| Step::Write { most, bytes }),
        ]
    }

    /// Messages that were told together, under the last of them.
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

        fn hour(&self) -> LogTime {
            LogTime { now: LoopTime::from_millis(self.millis), millis: self.millis + 5_000_000 }
        }

        fn finish_batch(&mut self) {
            while let Some(id) = self.hub.next_open_batch() {
                let _ = self.hub.finish_batch(id, LoopTime::from_millis(self.millis));
                self.hub.end_if_empty(id);
            }
        }

        fn write(&mut self, most: usize, bytes: usize) {
            let before = self.hub.changes();
            let hour = self.hour();
            let changes = self.hub.take_changes(hour, most, bytes);
            assert!(changes.len() <= most && self.hub.changes() <= before);
            assert!(changes.iter().map(Change::bytes).sum::<usize>() < bytes + 1_000, "bounded");
            for change in changes {
                match change {
                    Change::Ended { name } => {
                        self.written.remove(&name);
                    }
                    Change::Channel { name, figures, messages } => {
                        let (newest, rows) = self.written.entry(name).or_default();
                        *newest = figures;
                        if !messages.is_empty() {
                            rows.insert(figures.last, messages);
                        }
                        rows.retain(|&last, _| last > figures.evicted_through);
                    }
                }
            }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Publish { channel, padding, from } => {
                    let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
                    let id = self.hub.open(&name).unwrap();
                    let text = format!("{} {}", self.hub.changes_head().seq, "x".repeat(padding));
                    let user =
                        (padding % 3 == 0).then(|| User::new(&format!("user{}", padding % 2), Some("[1]")));
                    let sender = Sender { client: from.map(ClientId::from_bits), user };
                    self.hub.publish(id, Kind::Text, text.as_bytes(), sender, None);
                }
                Step::Seal => self.finish_batch(),
                Step::Join { channel } => {
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
                        let joined = self.hub.subscribe(&name, subscriber, options, now).unwrap();
                        self.subscribers.push(joined.subscription);
                    }
                }
                Step::Leave => {
                    self.finish_batch();
                    if let Some(subscription) = self.subscribers.pop() {
                        assert_eq!(self.hub.leave(subscription), None);
                    }
                }
                Step::Pass { millis } => {
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

        /// All that was taken.
        fn past(&self, limits: &Limits) -> Snapshot {
            let mut past = Snapshot::new(&limits.history, self.hour());
            for (name, (figures, rows)) in &self.written {
                let messages: Vec<u8> = rows.values().flatten().copied().collect();
                past.put(name, *figures, &messages).unwrap();
            }
            past
        }

        /// The hub that it makes.
        fn restore(&self, limits: &Limits) -> (Hub, Restored) {
            Hub::restore(limits, self.hub.changes_head(), self.past(limits))
        }
    }

    /// A channel: its name, its public state, how many messages it had, and those that it keeps.
    type Told = (String, ChannelInfo, u64, String);

    /// The whole observable state of a hub, also of channels that it does not have.
    fn told(hub: &mut Hub, now: LoopTime) -> (LogHead, Vec<Told>, [u64; 6]) {
        let names: Vec<String> =
            hub.channels_from("", std::ops::Bound::Unbounded).map(|(name, _)| name.to_owned()).collect();
        let channels = names.into_iter().map(|name| {
            let mut page = hub.page(&name, Since::Earliest, usize::MAX, now);
            let mut json = Vec::new();
            assert!(page.append(hub, &mut json, usize::MAX).1);
            let json = String::from_utf8(json).unwrap();
            let envelopes =
                json.strip_prefix("{\"messages\":[").unwrap().split("],\"next\":").next().unwrap();
            let number = hub.channel(hub.find(&name).unwrap()).unwrap().messages();
            (name.clone(), hub.info(&name), number, envelopes.to_owned())
        });
        let channels = channels.collect();
        let floors = ["c0", "c1", "c2", "c3", "c4", "never"].map(|name| hub.info(name).evicted_through);
        (hub.changes_head(), channels, floors)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn the_hub_that_was_written_down_is_the_hub(
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
                assert_eq!(world.hub.leave(subscription), None);
            }
            world.hub.check();
            while world.hub.changes() > 0 {
                world.write(3, 500);
            }
            let now = LoopTime::from_millis(world.millis);
            world.hub.expire(0..world.hub.keys_end(), now);
            let (mut restored, _) = world.restore(&limits);
            restored.check();
            prop_assert_eq!(told(&mut restored, now), told(&mut world.hub, now));
            // Ages too: what is old goes at the same time.
            for millis in [200, 500, 999] {
                let now = now.after(millis);
                restored.expire(0..restored.keys_end(), now);
                world.hub.expire(0..world.hub.keys_end(), now);
                prop_assert_eq!(told(&mut restored, now), told(&mut world.hub, now));
            }
        }

        #[test]
        fn in_the_middle_of_it_what_was_written_is_true(steps in prop::collection::vec(step(), 1..150)) {
            let limits = Limits { history: LIMITS, ..Limits::default() };
            let mut world = World::new(&limits);
            for step in &steps {
                world.step(step);
            }
            let (mut restored, _) = world.restore(&limits);
            restored.check();
            let now = LoopTime::from_millis(world.millis);
            for (_, standing, number, envelopes) in told(&mut restored, now).1 {
                let page: Vec<serde_json::Value> = serde_json::from_str(&format!("[{envelopes}]")).unwrap();
                for (message, n) in page.iter().rev().zip((1..=number).rev()) {
                    let seq: u64 = message["id"].as_str().unwrap().split_once('-').unwrap().1.parse().unwrap();
                    prop_assert!(seq > standing.evicted_through && Some(seq) <= standing.head);
                    prop_assert_eq!(message["n"].as_u64(), Some(n));
                    let text = message["text"].as_str().unwrap();
                    prop_assert!(text.starts_with(&format!("{} ", seq - 1)), "{} {}", seq, text);
                }
            }
        }
    }

    #[test]
    fn the_limits_of_today_hold() {
        let wide = HistoryLimits { messages_max: 100, bytes_max: 1 << 20, age_ms: 60_000, ..LIMITS };
        let wide =
            Limits { history: HistoryLimits { total_bytes_max: 1 << 30, ..wide }, ..Limits::default() };
        let mut world = World::new(&wide);
        for number in 0..40 {
            world.step(&Step::Publish { channel: number % 4, padding: 100, from: None });
            world.step(&Step::Pass { millis: 50 });
        }
        while world.hub.changes() > 0 {
            world.write(3, 500);
        }
        let restore = |history: HistoryLimits, channels_max| {
            let limits = Limits { history, channels_max, ..wide.clone() };
            let (mut hub, restored) = world.restore(&limits);
            hub.check();
            assert_eq!(restored.messages + restored.dropped, 40);
            assert_eq!(hub.changes() > 0, restored.dropped > 0, "what was dropped is news for the journal");
            let now = LoopTime::from_millis(world.millis);
            told(&mut hub, now)
        };
        let (head, channels, _) = restore(wide.history, 100);
        assert_eq!(channels.iter().map(|(_, standing, ..)| standing.messages).sum::<usize>(), 40);
        let (_, few, _) = restore(HistoryLimits { messages_max: 3, ..wide.history }, 100);
        for (name, standing, number, envelopes) in few {
            let (_, before, all, whole) = channels.iter().find(|one| one.0 == name).unwrap();
            assert_eq!((standing.messages, number, standing.head), (3, *all, before.head));
            assert!(whole.ends_with(&envelopes) && standing.evicted_through > before.evicted_through);
        }
        let (_, young, _) = restore(HistoryLimits { age_ms: 1_000, ..wide.history }, 100);
        assert_eq!(young.iter().map(|(_, standing, ..)| standing.messages).sum::<usize>(), 19);
        let (_, small, _) = restore(HistoryLimits { total_bytes_max: 2_500, ..wide.history }, 100);
        let counted = small.iter().map(|(_, standing, ..)| standing.bytes + super::super::CHANNEL_BYTES);
        assert!((2_000..=2_500).contains(&counted.sum::<usize>()));
        let (narrow, two, floors) = restore(wide.history, 2);
        assert_eq!(two.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["c2", "c3"]);
        assert_eq!(
            (narrow.seq, floors),
            (head.seq, [37, 38, two[0].1.evicted_through, two[1].1.evicted_through, 0, 0]),
            "the last messages of c0 and c1"
        );
        let (none, nothing, floors) = restore(HistoryLimits { messages_max: 0, ..wide.history }, 100);
        assert_eq!((nothing.len(), none.seq, floors), (0, 40, [37, 38, 39, 40, 0, 0]));
    }

    #[test]
    fn a_head_that_is_behind_its_channels_gives_no_number_twice() {
        let limits = Limits { history: LIMITS, ..Limits::default() };
        let mut world = World::new(&limits);
        world.step(&Step::Publish { channel: 0, padding: 0, from: None });
        let behind = world.hub.changes_head();
        world.step(&Step::Publish { channel: 1, padding: 0, from: None });
        world.step(&Step::Write { most: 9, bytes: 9_999 });
        let (restored, _) = Hub::restore(&limits, behind, world.past(&limits));
        assert_eq!(restored.changes_head(), world.hub.changes_head());
    }

    #[test]
    fn the_list_of_changes_is_no_longer_than_there_are_channels_and_remembered_names() {
        let history = HistoryLimits { messages_max: 0, ..LIMITS };
        // Room for 3 names.
        let removed_channels_bytes_max = 3 * (crate::hub::removed::REMOVED_CHANNEL_BYTES + 3);
        let mut world = World::new(&Limits { history, removed_channels_bytes_max, ..Limits::default() });
        for channel in 0..1_000 {
            world.step(&Step::Publish { channel: channel % 10, padding: 0, from: None });
            world.step(&Step::Seal);
        }
        assert_eq!((world.hub.channels(), world.hub.changes()), (0, 1 + 3));
        world.write(9, 9_999);
        assert_eq!((world.written.len(), world.hub.changes()), (3, 0));
        for channel in 0..1_000 {
            world.step(&Step::Publish { channel: channel % 10, padding: 0, from: None });
            world.step(&Step::Seal);
        }
        world.write(99, 9_999);
        assert_eq!((world.written.len(), world.hub.changes()), (3, 0), "what was forgotten left the file");
        assert_eq!(
            world.hub.info("never").evicted_through,
            1_997,
            "the last message of those that were forgotten"
        );
    }

    #[test]
    fn what_no_journal_has_told_is_refused() {
        let mut good = Vec::new();
        let message = |seq| Message { seq, at: 0, kind: Kind::Text, client: None, user: None, payload: b"x" };
        for seq in [3, 4] {
            crate::hub::change::put_message(&mut good, &message(seq));
        }
        let figures = ChannelPosition { number: 2, last: 4, evicted_through: 2 };
        let hour = LogTime { now: LoopTime::from_millis(0), millis: 0 };
        let put = |figures, bytes: &[u8]| Snapshot::new(&LIMITS, hour).put("a", figures, bytes);
        assert_eq!(put(figures, &good), Ok(()));
        assert_eq!(
            put(ChannelPosition { evicted_through: 3, number: 1, ..figures }, &good),
            Ok(()),
            "one is not kept any more"
        );
        for bytes in 1..good.len() {
            assert_eq!(put(figures, &good[..bytes]).is_ok(), bytes == good.len() / 2, "{bytes}");
        }
        assert_eq!(
            put(ChannelPosition { number: 1, ..figures }, &good),
            Err(BadChange),
            "more than there were"
        );
        assert_eq!(put(ChannelPosition { last: 3, ..figures }, &good), Err(BadChange), "later than the last");
        let twice = good.repeat(2);
        assert_eq!(put(ChannelPosition { number: 9, ..figures }, &twice), Err(BadChange), "out of order");
        good[16] = 3;
        assert_eq!(put(figures, &good), Err(BadChange), "of no kind");
    }
}
