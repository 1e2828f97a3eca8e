//! Discontinuities: points in this node's copy of a shared log before which the copy is incomplete.
//!
//! All channels may miss messages, so the history before that point is freed in every channel, and every subscriber is
//! notified. A channel is one step ([`Hub::record_discontinuity`]): a client that subscribes before it is among the
//! subscribers that the step returns, and one that subscribes after it resumes with a gap, if its cursor is older.

use super::removed::Removed;
use super::{Form, Hub};
use crate::ids::{ChannelId, Gap, GapReason, MessageId, SlotId};

/// A point in the log before which this node's copy is incomplete.
#[derive(Clone, Copy, Debug)]
pub struct Discontinuity {
    /// The gap of live subscribers.
    pub gap: Gap,
    /// The index of the point.
    upto: u64,
}

/// A discontinuity of which the subscribers are being notified, channel by channel.
#[derive(Debug)]
pub struct DiscontinuityWalk {
    /// The discontinuity.
    pub discontinuity: Discontinuity,
    /// The key of the next channel.
    pub next_key: usize,
}

/// The latest discontinuity: the reason of gaps that begin before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LatestLoss {
    upto: u64,
    why: GapReason,
}

impl LatestLoss {
    /// Returns true if a gap that begins at this cursor has its reason.
    pub(super) fn is_after(self, cursor: u64) -> bool {
        cursor < self.upto
    }

    pub(super) fn why(self) -> GapReason {
        self.why
    }
}

impl Hub {
    /// Begins a discontinuity at the head of the log, where no batch is open. `after` is the last message before it
    /// that this server has; `missed` the number of messages that it does not have, if that is known.
    ///
    /// [`Hub::record_discontinuity`] has to be called for each channel before the next message is published.
    pub fn begin_discontinuity(
        &mut self,
        after: MessageId,
        missed: Option<u64>,
        why: GapReason,
    ) -> Discontinuity {
        let upto = self.log_index;
        self.latest_loss = Some(LatestLoss { upto, why });
        while let Some((name, Removed { is_written, .. })) = self.removed.forget_until(upto) {
            if let Some(dirty_channels) = &mut self.dirty_channels {
                dirty_channels.mark_forgotten(name, is_written);
            }
        }
        self.removed.raise(upto);
        Discontinuity { gap: Gap { after, resume: self.head(), missed, why }, upto }
    }

    /// Frees the history of one channel up to a discontinuity. Returns the live subscribers, which are to be notified;
    /// those that are catching up find the gap in their next step. Returns nothing if the channel is newer.
    pub fn record_discontinuity(
        &mut self,
        id: ChannelId,
        discontinuity: &Discontinuity,
    ) -> Vec<(SlotId, Form)> {
        let upto = discontinuity.upto;
        let Some(channel) = self.channel(id).filter(|channel| channel.history.evicted_through() < upto)
        else {
            return Vec::new();
        };
        debug_assert!(!channel.has_batch());
        let live = Form::ALL.iter().flat_map(|&form| channel.live(form).iter().map(move |&id| (id, form)));
        let live = live.collect();
        self.change_history(id, |channel| channel.history.evict_through(upto));
        self.remove_if_unused(id);
        live
    }

    /// The reason why messages after a cursor are missing that were in the log.
    pub(super) fn why_missing(&self, cursor: u64) -> GapReason {
        let loss = self.latest_loss.filter(|loss| loss.is_after(cursor));
        loss.map_or(GapReason::Evicted, LatestLoss::why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::hub::replay::ReplayStep;
    use crate::hub::{SubscribeOptions, Subscribed};
    use crate::ids::{ChannelName, Sender, Since};
    use crate::time::LoopTime;
    use crate::wire::Kind;

    const NOW: fn() -> LoopTime = || LoopTime::from_millis(0);

    fn name(name: &str) -> ChannelName {
        ChannelName::parse(name.as_bytes()).unwrap()
    }

    fn publish(hub: &mut Hub, channel: &str) -> MessageId {
        let id = hub.open(&name(channel)).unwrap();
        let published = hub.publish(id, Kind::Text, b"x", Sender::default(), None);
        let _ = hub.next_open_batch();
        let _ = hub.finish_batch(id, NOW());
        published.id
    }

    fn subscribe(hub: &mut Hub, channel: &str, key: u32, since: Since) -> Subscribed {
        let options = SubscribeOptions { form: Form::Envelope, since, echo: true };
        hub.subscribe(&name(channel), SlotId { key, generation: 0 }, options, NOW()).unwrap()
    }

    fn gap(hub: &mut Hub, channel: &str, key: u32, after: MessageId) -> Option<(GapReason, MessageId)> {
        subscribe(hub, channel, key, Since::After(after)).gap.map(|gap| (gap.why, gap.resume))
    }

    /// Five messages were trimmed before this node read them: the next one is number 9.
    #[test]
    fn hole_in_the_log_is_a_gap_for_each_cursor_before_or_within_it() {
        let mut hub = Hub::new(&Limits::default(), 7);
        let before: Vec<MessageId> = ["a", "b", "a"].map(|channel| publish(&mut hub, channel)).into();
        let live = subscribe(&mut hub, "a", 1, Since::Now);
        let catching_up = subscribe(&mut hub, "a", 2, Since::Earliest);
        let after = hub.head();
        hub.advance_to(8);
        let discontinuity = hub.begin_discontinuity(after, Some(5), GapReason::Evicted);
        for (channel, subscribers) in
            [("a", vec![(SlotId { key: 1, generation: 0 }, Form::Envelope)]), ("b", vec![])]
        {
            let id = hub.find(channel).unwrap();
            assert_eq!(hub.record_discontinuity(id, &discontinuity), subscribers);
            assert_eq!(hub.record_discontinuity(id, &discontinuity), [], "once");
        }
        let Gap { after, resume, missed, why } = discontinuity.gap;
        assert_eq!((after, resume.seq, missed, why), (before[2], 8, Some(5), GapReason::Evicted));
        assert!(hub.find("b").is_none() && live.gap.is_none());
        match hub.replay(catching_up.subscription, None, NOW()) {
            ReplayStep::Gap(gap) => assert_eq!((gap.why, gap.resume.seq), (GapReason::Evicted, 8)),
            other => panic!("{other:?}"),
        }
        assert_eq!(publish(&mut hub, "b").seq, 9);
        for channel in ["a", "b", "never"] {
            for seq in [3, 5, 7] {
                let cursor = MessageId { epoch: 7, seq };
                let expected = (GapReason::Evicted, MessageId { epoch: 7, seq: 8 });
                assert_eq!(
                    gap(&mut hub, channel, 10 + seq as u32, cursor),
                    Some(expected),
                    "{channel} {seq}"
                );
            }
            assert_eq!(gap(&mut hub, channel, 20, MessageId { epoch: 7, seq: 8 }), None);
        }
        hub.check();
    }

    /// A client subscribes at the head, leaves, and reconnects after a loss was found at that head.
    #[test]
    fn cursor_at_the_head_at_which_a_loss_was_found_is_incomplete() {
        let mut hub = Hub::new(&Limits::default(), 7);
        let head = publish(&mut hub, "a");
        hub.raise_cursor_floor();
        assert_eq!(gap(&mut hub, "a", 1, head), None);
        hub.raise_cursor_floor_above_head();
        hub.raise_cursor_floor();
        assert_eq!(gap(&mut hub, "a", 2, head), Some((GapReason::Lost, head)));
        let next = publish(&mut hub, "a");
        let subscribed = subscribe(&mut hub, "a", 3, Since::After(head));
        assert_eq!(subscribed.gap.map(|gap| gap.resume), Some(head));
        match hub.replay(subscribed.subscription, None, NOW()) {
            ReplayStep::Slice { messages, .. } => assert_eq!(messages, 1, "the next message is complete"),
            other => panic!("{other:?}"),
        }
        assert_eq!(gap(&mut hub, "a", 4, next), None);
    }

    #[test]
    fn loss_at_a_new_epoch_is_the_reason_for_older_cursors_and_removed_channels() {
        let mut hub = Hub::new(&Limits::default(), 7);
        let ids: Vec<MessageId> = ["a", "b", "a"].map(|channel| publish(&mut hub, channel)).into();
        let replaying = subscribe(&mut hub, "a", 1, Since::After(ids[0]));
        hub.expire(0..0, NOW());
        let after = hub.head();
        assert_eq!(hub.begin_epoch(9, ids[1]), Some(2));
        let discontinuity = hub.begin_discontinuity(after, Some(0), GapReason::Lost);
        for key in 0..hub.keys_end() {
            let _ = hub.record_discontinuity(ChannelId(key as u32), &discontinuity);
        }
        let marker = MessageId { epoch: 9, seq: 0 };
        assert_eq!((discontinuity.gap.after, discontinuity.gap.resume), (ids[2], marker));
        match hub.replay(replaying.subscription, None, NOW()) {
            ReplayStep::Gap(gap) => {
                assert_eq!((gap.why, gap.after, gap.resume), (GapReason::Lost, ids[0], marker));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(publish(&mut hub, "a"), MessageId { epoch: 9, seq: 1 });
        // Ids that survived, and one that the log then lost.
        for (key, cursor) in ids.iter().enumerate() {
            assert_eq!(
                gap(&mut hub, "a", 10 + key as u32, *cursor),
                Some((GapReason::Lost, marker)),
                "{cursor}"
            );
        }
        assert_eq!(gap(&mut hub, "a", 20, marker), None);
        let page = |hub: &mut Hub, since| {
            let (mut page, mut out) = (hub.page("a", since, 10, NOW()), Vec::new());
            assert!(page.append(hub, &mut out, usize::MAX).1);
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        let page = page(&mut hub, Since::After(ids[2]));
        assert_eq!((&page["gap"]["why"], &page["gap"]["after"]), (&"lost".into(), &"7-3".into()));
        assert_eq!((&page["messages"][0]["id"], &page["floor"]), (&"9-1".into(), &"9-0".into()));
    }

    /// The histories of the channels are freed one after the other, over several turns in which clients subscribe.
    #[test]
    fn message_of_an_epoch_that_was_lost_keeps_its_id_until_it_is_freed() {
        let mut hub = Hub::new(&Limits::default(), 7);
        let ids: Vec<MessageId> = ["a", "a"].map(|channel| publish(&mut hub, channel)).into();
        let after = hub.head();
        assert_eq!(hub.begin_epoch(9, MessageId { epoch: 0, seq: 0 }), None);
        let discontinuity = hub.begin_discontinuity(after, Some(0), GapReason::Lost);
        let subscribed = subscribe(&mut hub, "a", 1, Since::Earliest);
        match hub.replay(subscribed.subscription, None, NOW()) {
            ReplayStep::Slice { frames, messages, .. } => {
                let text = String::from_utf8_lossy(&frames).into_owned();
                assert!(messages == 2 && ids.iter().all(|id| text.contains(&id.to_string())), "{text}");
            }
            other => panic!("{other:?}"),
        }
        let _ = hub.record_discontinuity(hub.find("a").unwrap(), &discontinuity);
        assert_eq!(subscribed.cursor, MessageId { epoch: 9, seq: 0 });
        hub.check();
    }

    #[test]
    fn cursors_of_an_epoch_that_survived_whole_are_complete_in_the_next() {
        let mut hub = Hub::new(&Limits::default(), 7);
        let ids: Vec<MessageId> = ["a", "a", "a"].map(|channel| publish(&mut hub, channel)).into();
        assert_eq!(hub.begin_epoch(9, ids[2]), Some(3));
        let next = publish(&mut hub, "a");
        assert_eq!(next, MessageId { epoch: 9, seq: 1 });
        for (key, (cursor, count)) in
            [(ids[0], 3), (ids[2], 1), (MessageId { epoch: 9, seq: 0 }, 1)].into_iter().enumerate()
        {
            let subscribed = subscribe(&mut hub, "a", key as u32, Since::After(cursor));
            assert_eq!(subscribed.gap, None);
            match hub.replay(subscribed.subscription, None, NOW()) {
                ReplayStep::Slice { messages, frames, .. } => {
                    assert_eq!(messages, count);
                    assert!(String::from_utf8_lossy(&frames).contains("\"id\":\"9-1\""));
                }
                other => panic!("{other:?}"),
            }
        }
        let lost = MessageId { epoch: 7, seq: 4 };
        assert_eq!(gap(&mut hub, "a", 9, lost), Some((GapReason::Lost, MessageId { epoch: 9, seq: 0 })));
    }
}
