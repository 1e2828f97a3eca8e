//! A page of a channel's history as JSON, encoded in slices.
//!
//! A page has the history at the time of the request, up to the channel's last message then. Between two slices the
//! history changes: later messages are not part of the page, and when messages that have yet to be encoded are evicted,
//! or the channel is removed, the page ends there with `next`, and the page after it begins with the gap. The JSON is
//! well-formed in any case: a message that has been begun is completed, from the memory that the history kept it in,
//! which the page holds until then.

use std::io::Write;

use super::Hub;
use super::replay::Work;
use crate::ids::{Gap, GapReason, MessageId, Since};
use crate::time::LoopTime;
use crate::wire::Frames;
use crate::wire::notice::gap_json;
use crate::wire::{self, Kind};

/// A page ends with the message that exceeds this size. A megabyte of control characters is six in JSON:
/// a hundred clients that requested it and did not read held 580 MiB, and blocked the loop for a second.
const PAGE_BYTES: usize = 128 << 10;

/// A page, and how far it is encoded.
#[derive(Debug)]
pub struct Page {
    channel: Box<str>,
    stage: PageStage,
    /// The last encoded message; before the first, the cursor from which the page begins.
    cursor: u64,
    /// The channel's last message when the page was asked for.
    upto: u64,
    /// The number of messages that it may still have.
    left: usize,
    /// Bytes of its messages so far.
    bytes: usize,
    /// A message that did not fit into a slice.
    message: Option<Begun>,
    gap: Option<Gap>,
    head: MessageId,
    evicted_through: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageStage {
    Begin,
    /// Before its first message.
    First,
    /// After a message.
    Later,
}

/// A message of which a part is encoded.
#[derive(Debug)]
struct Begun {
    frame: Frames,
    kind: Kind,
    /// The encoded bytes of the payload.
    encoded: usize,
}

impl Hub {
    /// A page of a channel's history, from a cursor on and with at most `limit` messages, of which nothing is encoded.
    pub fn page(&mut self, name: &str, since: Since, limit: usize, now: LoopTime) -> Page {
        let head = self.head();
        let id = self.find(name);
        let (cursor, upto, gap) = match id {
            Some(id) => {
                self.expire_channel(id, now);
                let (from, gap) = self.resume(id, if since == Since::Now { Since::Earliest } else { since });
                (from, self.channels[id.0 as usize].last(), gap)
            }
            None => {
                let evicted_through = self.info(name).evicted_through;
                let (cursor, gap) = match since {
                    Since::After(after) => self.resume_after(after, evicted_through),
                    Since::Now | Since::Earliest if self.removed.get(name).is_some() => {
                        let (after, resume) = (self.id(0), self.id(evicted_through));
                        let gap = Gap { after, resume, missed: None, why: GapReason::Evicted };
                        (evicted_through, Some(gap))
                    }
                    _ => (evicted_through, None),
                };
                (cursor, cursor, gap)
            }
        };
        if let Some(id) = id {
            // All of its messages may have been too old.
            self.remove_if_unused(id);
        }
        let evicted_through = self.info(name).evicted_through;
        let (channel, stage) = (name.into(), PageStage::Begin);
        Page {
            channel,
            stage,
            cursor,
            upto,
            left: limit,
            bytes: 0,
            message: None,
            gap,
            head,
            evicted_through,
        }
    }
}

impl Page {
    /// Appends about `bytes_max` bytes of the page. Returns what that took, and true if it was the rest.
    pub fn append(&mut self, hub: &Hub, out: &mut Vec<u8>, bytes_max: usize) -> (Work, bool) {
        let start = out.len();
        let full = start.saturating_add(bytes_max);
        let mut entries = 0;
        if self.stage == PageStage::Begin {
            out.extend_from_slice(b"{\"messages\":[");
            self.stage = PageStage::First;
        }
        let is_over = loop {
            if out.len() >= full {
                break false;
            }
            if let Some(begun) = &mut self.message {
                let before = out.len();
                let Begun { frame, kind, encoded } = begun;
                let payload = wire::payload_of(frame);
                *encoded = wire::append_payload(out, *kind, payload, *encoded, full - before);
                if *encoded == payload.len() {
                    wire::append_end(out, *kind);
                    self.message = None;
                }
                self.bytes += out.len() - before;
                continue;
            }
            entries += 1;
            if !self.begin_message(hub, out, full) {
                break true;
            }
        };
        (Work { encoded: out.len() - start, entries }, is_over)
    }

    /// Appends the next message, or as much of it as fits. False if that was the last: then the page is complete.
    fn begin_message(&mut self, hub: &Hub, out: &mut Vec<u8>, full: usize) -> bool {
        let here = hub.id(self.cursor);
        let channel = hub.find(&self.channel).and_then(|id| hub.channel(id));
        let Some(channel) = channel.filter(|channel| channel.history.evicted_through() <= self.cursor) else {
            // The messages that follow are no longer kept.
            self.end(hub, out, (self.cursor < self.upto).then_some(here));
            return false;
        };
        let index = channel.history.index_after(self.cursor);
        let message = channel.message(&hub.epochs, index).filter(|(log_index, _)| *log_index <= self.upto);
        let Some((log_index, message)) = message else {
            self.end(hub, out, None);
            return false;
        };
        if self.left == 0 || self.bytes >= PAGE_BYTES {
            self.end(hub, out, Some(here));
            return false;
        }
        let before = out.len();
        if self.stage == PageStage::Later {
            out.push(b',');
        }
        wire::append_head(out, &message);
        let room = full.saturating_sub(out.len());
        let encoded = wire::append_payload(out, message.kind, message.payload, 0, room);
        if encoded == message.payload.len() {
            wire::append_end(out, message.kind);
        } else {
            let kind = message.kind;
            self.message = channel.history.frames(index).map(|frame| Begun { frame, kind, encoded });
        }
        self.bytes += out.len() - before;
        self.cursor = log_index;
        self.left -= 1;
        self.stage = PageStage::Later;
        true
    }

    fn end(&self, hub: &Hub, out: &mut Vec<u8>, next: Option<MessageId>) {
        let next = next.map_or("null".to_owned(), |next| format!("\"{next}\""));
        let gap = self.gap.as_ref().map_or("null".to_owned(), |gap| gap_json(&self.channel, gap));
        let evicted_through = hub.id(self.evicted_through);
        let head = self.head;
        // Writing to a Vec does not fail.
        let _ = writeln!(
            out,
            "],\"next\":{next},\"gap\":{gap},\"head\":\"{head}\",\"floor\":\"{evicted_through}\"}}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HistoryLimits, Limits};
    use crate::ids::{ChannelName, Sender, SlotId};
    use crate::wire::Form;
    use proptest::prelude::*;
    use serde_json::Value;

    const LIMITS: HistoryLimits =
        HistoryLimits { messages_max: 5, bytes_max: 1 << 20, age_ms: 1_000, total_bytes_max: 1 << 30 };

    fn at(millis: u64) -> LoopTime {
        LoopTime::from_millis(millis)
    }

    fn hub() -> Hub {
        Hub::new(&Limits { history: LIMITS, ..Limits::default() }, 7)
    }

    fn publish(hub: &mut Hub, kind: Kind, payload: &[u8]) {
        let id = hub.open(&ChannelName::parse(b"a").unwrap()).unwrap();
        hub.publish(id, kind, payload, Sender::default(), None);
        while let Some(id) = hub.next_open_batch() {
            let _ = hub.finish_batch(id, at(0));
        }
    }

    /// All of a page, in slices of this many bytes; `between` is called after the first.
    fn read(hub: &mut Hub, since: Since, bytes: usize, between: impl FnOnce(&mut Hub)) -> Value {
        let mut page = hub.page("a", since, 100, at(0));
        let (mut out, mut between) = (Vec::new(), Some(between));
        loop {
            let (work, is_over) = page.append(hub, &mut out, bytes);
            assert!(work.encoded > 0 || is_over);
            if is_over {
                return serde_json::from_slice(&out).unwrap();
            }
            if let Some(between) = between.take() {
                between(hub);
            }
        }
    }

    fn texts(page: &Value) -> Vec<&str> {
        page["messages"].as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn slices_of_a_page_are_the_whole_page(
            payloads in prop::collection::vec((any::<String>(), 0usize..3, 1usize..40), 0..8),
            since in prop_oneof![Just(Since::Earliest), Just(Since::Latest), (0u64..9).prop_map(|seq| {
                Since::After(MessageId { epoch: 7, seq })
            })],
            limit in 1usize..7,
            sizes in prop::collection::vec(1usize..500, 1..6),
        ) {
            let mut hub = hub();
            for (text, kind, times) in &payloads {
                let text = text.repeat(*times);
                match kind {
                    0 => publish(&mut hub, Kind::Text, text.as_bytes()),
                    1 => publish(&mut hub, Kind::Binary, text.as_bytes()),
                    _ => publish(&mut hub, Kind::Data, Value::from(text).to_string().as_bytes()),
                }
            }
            let (mut whole, mut parts) = (Vec::new(), Vec::new());
            prop_assert!(hub.page("a", since, limit, at(0)).append(&hub, &mut whole, usize::MAX).1);
            let mut page = hub.page("a", since, limit, at(0));
            for size in sizes.iter().cycle() {
                let before = parts.len();
                let is_over = page.append(&hub, &mut parts, *size).1;
                // The head of a message, the fewest bytes that are escaped at a time, and the end of the page.
                prop_assert!(parts.len() - before <= size + 900);
                if is_over {
                    break;
                }
            }
            prop_assert_eq!(String::from_utf8(parts).unwrap(), String::from_utf8(whole).unwrap());
        }
    }

    #[test]
    fn messages_published_between_slices_are_not_in_the_page() {
        let mut hub = hub();
        (0..3).for_each(|_| publish(&mut hub, Kind::Text, &[b'x'; 100]));
        let page = read(&mut hub, Since::Earliest, 200, |hub| publish(hub, Kind::Text, b"later"));
        assert_eq!(
            (texts(&page).len(), &page["next"], &page["head"]),
            (3, &Value::Null, &Value::from("7-3"))
        );
        let rest = read(&mut hub, Since::After(MessageId { epoch: 7, seq: 3 }), 200, |_| {});
        assert_eq!(texts(&rest), ["later"]);
    }

    #[test]
    fn page_ends_early_with_next_when_what_follows_is_evicted_between_slices() {
        let mut hub = hub();
        (0..5).for_each(|number| publish(&mut hub, Kind::Text, number.to_string().repeat(100).as_bytes()));
        let evict = |hub: &mut Hub| (0..4).for_each(|_| publish(hub, Kind::Text, b"later"));
        let page = read(&mut hub, Since::Earliest, 200, evict);
        assert_eq!(texts(&page), ["0".repeat(100), "1".repeat(100)], "one and what was begun of another");
        assert_eq!(page["next"], "7-2");
        let rest = read(&mut hub, Since::After(MessageId { epoch: 7, seq: 2 }), 200, |_| {});
        assert_eq!((&rest["gap"]["why"], texts(&rest).len()), (&Value::from("evicted"), 5));
    }

    #[test]
    fn page_of_a_channel_that_is_removed_between_slices_completes_the_message_and_ends() {
        for comes_back in [false, true] {
            let mut hub = hub();
            let text = "\u{1}".repeat(1_000);
            (0..3).for_each(|_| publish(&mut hub, Kind::Text, text.as_bytes()));
            let remove = |hub: &mut Hub| {
                hub.expire(0..hub.keys_end(), at(1_000));
                assert_eq!(hub.channels(), 0);
                if comes_back {
                    publish(hub, Kind::Text, b"of the next channel of that name");
                }
            };
            let page = read(&mut hub, Since::Earliest, 100, remove);
            assert_eq!((texts(&page), &page["next"]), (vec![&text[..]], &Value::from("7-1")));
        }
    }

    #[test]
    fn page_that_is_not_begun_when_its_messages_are_evicted_names_where_it_began() {
        let mut hub = hub();
        publish(&mut hub, Kind::Text, b"x");
        let page = read(&mut hub, Since::Earliest, 1, |hub| {
            (0..5).for_each(|_| publish(hub, Kind::Text, b"later"));
        });
        assert_eq!((texts(&page).len(), &page["next"]), (0, &Value::from("7-0")));
    }

    #[test]
    fn channel_with_a_subscriber_and_no_history_has_an_empty_page() {
        let mut hub = hub();
        let options = crate::hub::SubscribeOptions { form: Form::Raw, since: Since::Now, echo: true };
        let name = ChannelName::parse(b"a").unwrap();
        hub.subscribe(&name, SlotId { key: 0, generation: 0 }, options, at(0)).unwrap();
        let page = read(&mut hub, Since::Earliest, 1, |_| {});
        assert_eq!((texts(&page).len(), &page["next"], &page["gap"]), (0, &Value::Null, &Value::Null));
    }
}
