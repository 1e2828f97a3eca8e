//! The numbers of each channel's subscribers on the nodes that share a log.
//!
//! Each node sends the numbers that have changed about once in two seconds, and adds up those of the others: so a sum
//! over all nodes is up to two seconds old, and older while a node has not read the log. A node that starts, or has
//! missed entries, requests all numbers; they are sent in parts, each of which has all channels of a range, so that it
//! replaces the known numbers of that range.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::backplane::entry::ChannelCounts;
use crate::ids::RunId;
use crate::time::LoopTime;

/// Minimum time between two items with numbers of subscribers, in ms. The loop does not wake for them: heartbeats wake
/// it within two seconds.
const COUNTS_MS: u32 = 1_000;

/// Maximum bytes of the numbers in one item, which are enough for 1,000 to 2,000 channels.
const BYTES_MAX: usize = 32 << 10;

/// Maximum number of channels that are visited for one part of all numbers, which takes 1 ms.
const CHANNELS_PER_PART: usize = 4_000;

/// Maximum number of channels whose changed numbers wait to be sent. Above it all numbers are sent.
const CHANGED_MAX: usize = 65_536;

/// Numbers to send.
#[derive(Debug, Default)]
pub(super) struct CountsPart {
    /// True if the other nodes are to send all of their numbers.
    pub(super) is_request: bool,
    /// The range of channel names, if all numbers of that range are sent.
    pub(super) range: Option<(Box<str>, Box<str>)>,
    /// The encoded numbers.
    pub(super) rows: Vec<u8>,
}

/// The numbers of the other nodes, and those of this node that are not sent yet.
#[derive(Debug)]
pub(in crate::server) struct SubscriberCounts {
    /// By run and channel.
    others: BTreeMap<RunId, BTreeMap<Box<str>, u32>>,
    /// How many numbers of others are stored.
    stored: usize,
    stored_max: usize,
    /// Channels whose number of subscribers on this node has changed.
    changed: BTreeSet<Box<str>>,
    /// All numbers are to be sent, from after this name on.
    next_after: Option<Box<str>>,
    /// The other nodes are to send all of their numbers.
    is_requested: bool,
    /// When the next numbers may be sent.
    next_at: LoopTime,
}

impl SubscriberCounts {
    /// An empty table, which stores at most `stored_max` numbers of other nodes.
    pub(in crate::server) fn new(stored_max: usize, now: LoopTime) -> SubscriberCounts {
        SubscriberCounts {
            others: BTreeMap::new(),
            stored: 0,
            stored_max,
            changed: BTreeSet::new(),
            next_after: None,
            is_requested: false,
            next_at: now,
        }
    }

    /// The number of a channel's subscribers on the other nodes.
    pub(in crate::server) fn elsewhere(&self, channel: &str) -> usize {
        self.others.values().filter_map(|counts| counts.get(channel)).map(|count| *count as usize).sum()
    }

    /// The first channel with subscribers on another node, from a bound on, whose name begins with `prefix`.
    pub(in crate::server) fn first_from(&self, prefix: &str, from: Bound<&str>) -> Option<&str> {
        let from = match from {
            Bound::Excluded(name) if name >= prefix => Bound::Excluded(name),
            Bound::Included(name) if name >= prefix => Bound::Included(name),
            _ => Bound::Included(prefix),
        };
        let firsts = self.others.values().filter_map(|counts| {
            counts.range::<str, _>((from, Bound::Unbounded)).next().map(|(name, _)| &**name)
        });
        firsts.min().filter(|name| name.starts_with(prefix))
    }

    // The numbers of this node.

    /// Records that the number of a channel's subscribers on this node has changed.
    pub(in crate::server) fn change(&mut self, channel: &str) {
        if self.changed.len() >= CHANGED_MAX {
            self.changed = BTreeSet::new();
            self.send_all();
        }
        // A later part of all numbers includes this channel.
        let is_sent_later = self.next_after.as_deref().is_some_and(|after| channel > after);
        if !is_sent_later && !self.changed.contains(channel) {
            self.changed.insert(channel.into());
        }
    }

    /// Schedules all numbers of this node to be sent again.
    pub(super) fn send_all(&mut self) {
        self.next_after = Some("".into());
    }

    /// Schedules a request for all numbers of the other nodes.
    pub(super) fn request_all(&mut self) {
        self.is_requested = true;
    }

    /// Returns true if numbers may be sent now, and not again for [`COUNTS_MS`].
    pub(super) fn begin_part(&mut self, now: LoopTime) -> bool {
        let may_send = self.next_at.is_due(now);
        if may_send {
            self.next_at = now.after(COUNTS_MS);
        }
        may_send
    }

    /// The next numbers to send. `channels` lists channels after a name, with their subscribers on this node.
    pub(super) fn next_part<'a, C: Iterator<Item = (&'a str, usize)>>(
        &mut self,
        count: impl Fn(&str) -> usize,
        channels: impl FnOnce(&str) -> C,
    ) -> Option<CountsPart> {
        let mut part =
            CountsPart { is_request: std::mem::take(&mut self.is_requested), ..CountsPart::default() };
        let push = |rows: &mut Vec<u8>, channel: &str, count: usize| {
            ChannelCounts::push(rows, channel, u32::try_from(count).unwrap_or(u32::MAX));
        };
        if !self.changed.is_empty() {
            while part.rows.len() < BYTES_MAX
                && let Some(channel) = self.changed.pop_first()
            {
                push(&mut part.rows, &channel, count(&channel));
            }
            return Some(part);
        }
        if let Some(after) = self.next_after.take() {
            let (mut last, mut seen) = ("", 0);
            for (channel, subscribers) in channels(&after) {
                if part.rows.len() >= BYTES_MAX || seen == CHANNELS_PER_PART {
                    self.next_after = Some(last.into());
                    break;
                }
                (last, seen) = (channel, seen + 1);
                if subscribers > 0 {
                    push(&mut part.rows, channel, subscribers);
                }
            }
            let upto = self.next_after.clone().unwrap_or_default();
            part.range = Some((after, upto));
            return Some(part);
        }
        part.is_request.then_some(part)
    }

    // The numbers of the other nodes.

    /// Applies numbers of another node.
    pub(super) fn apply(&mut self, run: RunId, range: Option<(&str, &str)>, counts: ChannelCounts<'_>) {
        let numbers = self.others.entry(run).or_default();
        self.stored -= numbers.len();
        if let Some((after, upto)) = range {
            let mut following = numbers.split_off(after);
            if let Some(count) = following.remove(after) {
                numbers.insert(after.into(), count);
            }
            if !upto.is_empty() {
                let mut last = following.split_off(upto);
                last.remove(upto);
                numbers.append(&mut last);
            }
        }
        for (channel, count) in counts.iter() {
            if count == 0 {
                numbers.remove(channel);
            } else if let Some(known) = numbers.get_mut(channel) {
                *known = count;
            } else if self.stored + numbers.len() < self.stored_max {
                numbers.insert(channel.into(), count);
            }
        }
        self.stored += numbers.len();
        if numbers.is_empty() {
            self.others.remove(&run);
        }
    }

    /// Removes the numbers of a node that has ended.
    pub(super) fn remove(&mut self, run: RunId) {
        self.stored -= self.others.remove(&run).map_or(0, |counts| counts.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(stored_max: usize) -> SubscriberCounts {
        SubscriberCounts::new(stored_max, LoopTime::from_millis(0))
    }

    fn send(
        from: &mut SubscriberCounts,
        own: &BTreeMap<String, usize>,
        to: &mut SubscriberCounts,
        run: RunId,
    ) -> bool {
        let channels = |after: &str| {
            let names = own.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
            names.map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>().into_iter()
        };
        let part = from.next_part(|channel| own.get(channel).copied().unwrap_or(0), channels);
        let Some(CountsPart { range, rows, .. }) = part else { return false };
        let range = range.as_ref().map(|(after, upto)| (&**after, &**upto));
        to.apply(run, range, ChannelCounts::encoded(&rows));
        true
    }

    proptest! {
        /// Whatever was lost before, both nodes have the same numbers once all of them and the later changes were sent.
        #[test]
        fn numbers_are_complete_after_changes_losses_and_requests(
            steps in prop::collection::vec((0u8..6, "[ab]{1,2}[xyz]?", 0usize..4), 1..80),
        ) {
            let (mut sender, mut receiver) = (counts(0), counts(1_000));
            let mut own: BTreeMap<String, usize> = BTreeMap::new();
            let mut lost = counts(1_000);
            let mut is_complete = true;
            for (step, name, count) in steps {
                match step {
                    0..=2 => {
                        own.insert(name.clone(), count);
                        sender.change(&name);
                    }
                    3 => { send(&mut sender, &own, &mut receiver, RunId(7)); }
                    4 => is_complete &= !send(&mut sender, &own, &mut lost, RunId(7)),
                    _ => {
                        sender.send_all();
                        is_complete = true;
                    }
                }
            }
            if !is_complete {
                sender.send_all();
            }
            while send(&mut sender, &own, &mut receiver, RunId(7)) {}
            for (name, count) in &own {
                prop_assert_eq!(receiver.elsewhere(name), *count, "{}", name);
            }
            let mut listed = Vec::new();
            let mut from = Bound::Unbounded;
            while let Some(name) = receiver.first_from("a", from) {
                listed.push(name);
                from = Bound::Excluded(name);
            }
            let expected = own.iter().filter(|(name, count)| name.starts_with('a') && **count > 0);
            prop_assert_eq!(listed, expected.map(|(name, _)| name.as_str()).collect::<Vec<_>>());
            prop_assert_eq!(receiver.stored, own.values().filter(|count| **count > 0).count());
            receiver.remove(RunId(7));
            prop_assert_eq!(receiver.stored, 0);
        }
    }

    #[test]
    fn counts_of_many_channels_are_sent_in_bounded_parts() {
        let own: BTreeMap<String, usize> =
            (0..CHANGED_MAX + 5_000).map(|number| (format!("channel-{number:06}"), 1)).collect();
        let (mut sender, mut receiver) = (counts(0), counts(60_000));
        own.keys().for_each(|name| sender.change(name));
        assert!(sender.changed.len() <= CHANGED_MAX);
        assert!(sender.next_after.is_some(), "all are sent, since too many have changed");
        let mut parts = 0;
        while send(&mut sender, &own, &mut receiver, RunId(7)) {
            parts += 1;
        }
        assert!(parts > own.len() / CHANNELS_PER_PART);
        assert_eq!(receiver.stored, 60_000);
        assert_eq!(receiver.elsewhere("channel-000000"), 1);
    }
}
