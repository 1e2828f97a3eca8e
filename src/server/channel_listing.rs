//! Channels as JSON, for `GET /v1/channels` and `GET /v1/channels/{channel}`.

use std::io::Write;
use std::ops::Bound;

use super::shared_log::subscriber_counts::SubscriberCounts;
use crate::access::grant::Patterns;
use crate::hub::channel::Channel;
use crate::hub::replay::Work;
use crate::hub::{ChannelInfo, Hub};
use crate::ids::ChannelId;
use crate::session::http::query::Listing;

/// Maximum number of channels that one slice of a listing checks. A slice is full with fewer, unless the client may not
/// access many of them.
const CHANNELS_PER_SLICE: usize = 1_000;

/// The channels of this node, and of the nodes that share its log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Channels<'a> {
    pub(super) hub: &'a Hub,
    /// The subscribers on the other nodes, and the number of nodes.
    pub(super) shared: Option<(&'a SubscriberCounts, usize)>,
}

impl<'a> Channels<'a> {
    /// The names that begin with `prefix`, in their order, starting at a bound.
    fn names_from(
        self,
        prefix: &'a str,
        from: Bound<&str>,
    ) -> impl Iterator<Item = (&'a str, Option<ChannelId>)> + use<'a> {
        let mut own = self.hub.channels_from(prefix, from).peekable();
        let counts = self.shared.map(|(counts, _)| counts);
        let mut other = counts.and_then(|counts| counts.first_from(prefix, from));
        std::iter::from_fn(move || {
            let name = match (own.peek().map(|(name, _)| *name), other) {
                (Some(own), Some(other)) => own.min(other),
                (own, other) => own.or(other)?,
            };
            let id = own.next_if(|(own, _)| *own == name).map(|(_, id)| id);
            if other == Some(name) {
                other = counts.and_then(|counts| counts.first_from(prefix, Bound::Excluded(name)));
            }
            Some((name, id))
        })
    }

    fn append(self, out: &mut Vec<u8>, name: &str, id: Option<ChannelId>) {
        let channel = id.and_then(|id| self.hub.channel(id));
        let mut info = channel.map_or_else(|| self.hub.info(name), Channel::info);
        info.subscribers += self.shared.map_or(0, |(counts, _)| counts.elsewhere(name));
        append_channel(out, self.hub, name, info);
    }

    /// Appends `,"nodes":3`, if several nodes share the log.
    fn append_nodes(self, out: &mut Vec<u8>) {
        if let Some((_, nodes)) = self.shared {
            // Writes to a Vec do not fail.
            let _ = write!(out, ",\"nodes\":{nodes}");
        }
    }
}

/// Appends about `bytes_max` bytes of a listing of the channels that the client may access, in the order of their
/// names. Returns its cost, and true if the listing is complete.
///
/// Names between two patterns are skipped: the time depends on the number of listed channels, not of all channels.
pub(super) fn append_channels(
    channels: Channels<'_>,
    visible: &Patterns,
    prefix: &str,
    listing: &mut Listing,
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> (Work, bool) {
    let start = out.len();
    let mut entries = 0;
    if !listing.has_begun {
        out.extend_from_slice(b"{\"channels\":[");
        listing.has_begun = true;
    }
    let after = listing.cursor.take();
    let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let mut names = channels.names_from(prefix, from);
    let (mut cursor, mut last) = (after.as_deref(), None);
    let next = loop {
        if out.len() - start >= bytes_max || entries == CHANNELS_PER_SLICE {
            listing.cursor = cursor.map(Box::from);
            listing.last = last.map(Box::from).or(listing.last.take());
            return (Work { encoded: out.len() - start, entries }, false);
        }
        let Some((name, id)) = names.next() else { break None };
        (cursor, entries) = (Some(name), entries + 1);
        if !visible.include_name(name) {
            // A pattern that begins before this name has no name after it, or it would be among them.
            let beginnings = visible.iter().map(|pattern| pattern.trim_end_matches('*'));
            let Some(start) = beginnings.filter(|start| *start > name).min() else { break None };
            names = channels.names_from(prefix, Bound::Included(start));
            continue;
        }
        if listing.left == 0 {
            break last.or(listing.last.as_deref());
        }
        if last.is_some() || listing.last.is_some() {
            out.push(b',');
        }
        channels.append(out, name, id);
        listing.left -= 1;
        last = Some(name);
    };
    // Writes to a Vec do not fail.
    let _ = match next {
        Some(last) => write!(out, "],\"next\":\"{last}\""),
        None => write!(out, "],\"next\":null"),
    };
    channels.append_nodes(out);
    out.extend_from_slice(b"}\n");
    (Work { encoded: out.len() - start, entries }, true)
}

/// Returns the information on one channel. A channel that does not exist is reported as empty: the first subscriber or
/// publisher creates it.
pub(super) fn channel(channels: Channels<'_>, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    channels.append(&mut out, name, channels.hub.find(name));
    out.pop();
    channels.append_nodes(&mut out);
    out.extend_from_slice(b"}\n");
    out
}

fn append_channel(out: &mut Vec<u8>, hub: &Hub, name: &str, info: ChannelInfo) {
    let ChannelInfo { subscribers, head, evicted_through, messages, bytes } = info;
    let _ = write!(out, "{{\"channel\":\"{name}\",\"subscribers\":{subscribers},\"head\":");
    let _ = match head {
        Some(head) => write!(out, "\"{}\"", hub.id(head)),
        None => write!(out, "null"),
    };
    let evicted_through = hub.id(evicted_through);
    let _ = write!(out, ",\"floor\":\"{evicted_through}\",\"messages\":{messages},\"bytes\":{bytes}}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::ids::{ChannelName, Sender};
    use crate::time::LoopTime;
    use crate::wire::Kind;
    use proptest::prelude::*;

    fn hub(names: &[String]) -> Hub {
        let mut hub = Hub::new(&Limits::default(), 7);
        for name in names {
            publish(&mut hub, name);
        }
        hub
    }

    fn publish(hub: &mut Hub, name: &str) {
        let id = hub.open(&ChannelName::parse(name.as_bytes()).unwrap()).unwrap();
        hub.publish(id, Kind::Text, b"x", Sender::default(), None);
        while let Some(id) = hub.next_open_batch() {
            let _ = hub.finish_batch(id, LoopTime::from_millis(0));
        }
    }

    fn alone(hub: &Hub) -> Channels<'_> {
        Channels { hub, shared: None }
    }

    fn visible(rules: &str) -> Patterns {
        Patterns::parse(rules.split(',')).unwrap()
    }

    proptest! {
        #[test]
        fn slices_of_a_listing_are_the_whole_listing(
            names in prop::collection::vec("[abc]{1,3}", 0..60),
            prefix in "[abc]{0,1}",
            after in prop::option::of("[abc]{1,2}"),
            rules in prop::sample::select(vec!["*", "a*", "a*,c*", "b,ba,cc*", "aa,ab,bb,ca*"]),
            limit in 1usize..70,
            sizes in prop::collection::vec(1usize..400, 1..6),
        ) {
            let (hub, visible) = (hub(&names), visible(rules));
            let listing = || Listing::new(after.as_deref().map(Box::from), limit);
            let (mut whole, mut parts) = (Vec::new(), Vec::new());
            prop_assert!(append_channels(alone(&hub), &visible, &prefix, &mut listing(), &mut whole, usize::MAX).1);
            let mut listing = listing();
            for size in sizes.iter().cycle() {
                let before = parts.len();
                let is_over = append_channels(alone(&hub), &visible, &prefix, &mut listing, &mut parts, *size).1;
                prop_assert!(parts.len() - before <= size + 300);
                if is_over {
                    break;
                }
            }
            prop_assert_eq!(String::from_utf8(parts).unwrap(), String::from_utf8(whole.clone()).unwrap());
            // The listing is the one that was requested.
            let mut expected: Vec<&String> = names
                .iter()
                .filter(|name| name.starts_with(&prefix) && visible.include_name(name))
                .filter(|name| after.as_ref().is_none_or(|after| *name > after))
                .collect();
            expected.sort();
            expected.dedup();
            let value: serde_json::Value = serde_json::from_slice(&whole).unwrap();
            let listed: Vec<&str> =
                value["channels"].as_array().unwrap().iter().map(|one| one["channel"].as_str().unwrap()).collect();
            prop_assert_eq!(&listed[..], &expected[..limit.min(expected.len())]);
            let next = (expected.len() > limit).then(|| expected[limit - 1].as_str());
            prop_assert_eq!(value["next"].as_str(), next);
        }
    }

    #[test]
    fn channels_that_come_and_go_between_slices_leave_the_listing_well_formed() {
        let names: Vec<String> = (10..60).map(|number| format!("a{number}")).collect();
        let mut hub = hub(&names);
        let (mut listing, mut out, visible) = (Listing::new(None, 1_000), Vec::new(), visible("*"));
        assert!(!append_channels(alone(&hub), &visible, "", &mut listing, &mut out, 1_000).1);
        // All listed channels are removed, and new ones before the cursor come too late.
        hub.expire(0..hub.keys_end(), LoopTime::from_millis(u64::from(Limits::default().history.age_ms)));
        assert_eq!(hub.channels(), 0);
        publish(&mut hub, "a00");
        publish(&mut hub, "b");
        assert!(append_channels(alone(&hub), &visible, "", &mut listing, &mut out, 1_000).1);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let listed: Vec<&str> = value["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["channel"].as_str().unwrap())
            .collect();
        assert!(listed.starts_with(&["a10", "a11"]) && listed.ends_with(&["b"]), "{listed:?}");
    }

    #[test]
    fn slice_checks_a_bounded_number_of_inaccessible_channels() {
        let names: Vec<String> = (0..1_500).map(|number| format!("a{number:04}")).collect();
        let hub = hub(&names);
        // A pattern between any two channels, and one that is the name of a channel.
        let rules: Vec<String> = names.iter().map(|name| format!("{name}x")).collect();
        let visible = visible(&(rules.join(",") + ",a1499"));
        let (mut listing, mut out, mut slices) = (Listing::new(None, 10), Vec::new(), 0);
        loop {
            let (work, is_over) =
                append_channels(alone(&hub), &visible, "", &mut listing, &mut out, usize::MAX);
            assert!(work.entries <= CHANNELS_PER_SLICE);
            slices += 1;
            if is_over {
                break;
            }
        }
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((slices, &value["channels"][0]["channel"]), (2, &"a1499".into()));
    }
}
