//! Replays: the history of a channel, sent to a subscriber that resumes, a slice at a time.
//!
//! A replay is driven by the outbox running empty: the server makes the next slice ([`Hub::replay`]) when all bytes of
//! the last one are written. So a connection holds one slice, and the pace of the peer is the pace of its replay.
//!
//! Clients that were disconnected together reconnect together, with few different cursors, and their replays advance in
//! turn. So the last slices are cached and shared. A message whose encoding is larger than a slice cannot be cut: it
//! is one WebSocket frame, or one event. A megabyte of control characters is six in JSON, and its encoding is made
//! once, shared by all subscribers that replay it, and freed with the last outbox that holds it. **A limit on
//! everything**: these large encodings have a maximum in total, and a replay that needs another one waits.
//! Raw replays reference the frames of the history.
//!
//! **A large encoding has an end**: otherwise a few clients that read at the minimum pace could hold all of that
//! memory. It is shared for `--replay-take-ms` after it was made, so that later subscribers do not extend its life, and
//! overdue after twice that: each client has at least `--replay-take-ms` to read it. While replays wait, the
//! connections that hold an overdue encoding are closed. Sending a large message in fragments (RFC 6455 5.4) would need
//! no such memory, but no other message, and so no response and no message of another channel, could be sent between
//! them.

use std::rc::Rc;

use super::Hub;
use super::channel::{Channel, Replay};
use super::discontinuity::LatestLoss;
use super::epochs::Epochs;
use super::replay_cache::{CachedSlice, ReplayCache};
use super::subscriptions::{Moved, Subscription, SubscriptionState};
use crate::ids::{ClientId, Gap, MessageId};
use crate::time::LoopTime;
use crate::wire::{Form, Frames};

/// Bytes of one slice of a replay, and so what a replay holds of a connection's outbox. A message whose payload takes
/// more in the subscriber's form is a slice by itself.
const REPLAY_BYTES: usize = 64 << 10;

/// Messages that one slice of a replay passes over at most. A subscriber that does not receive its own messages may
/// have a history of nothing else, and that work must be bounded too.
const REPLAY_MESSAGES: usize = 1_000;

/// The cost of a response or of a slice of a replay, for the budget of the turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes encoded.
    pub encoded: usize,
    /// Messages or channels looked at.
    pub entries: usize,
}

/// The next slice of a replay.
#[must_use]
#[derive(Debug)]
pub enum ReplayStep {
    /// A slice; more follows. It is empty if all of its messages were the subscriber's own.
    Slice {
        /// The frames.
        frames: Frames,
        /// The number of messages in it.
        messages: usize,
        /// The cost of the slice.
        work: Work,
    },
    /// The next message is large, and its encoding does not fit into the limit with those that other clients have yet
    /// to read.
    Wait {
        /// Since when.
        since: LoopTime,
    },
    /// Messages that the subscriber had yet to receive were evicted; the replay continues after the gap.
    Gap(Gap),
    /// The replay is complete: the subscriber is live.
    CaughtUp {
        /// The subscription at its new position.
        subscription: Subscription,
        /// The subscriber that was moved to its old position.
        moved: Option<Moved>,
        /// The cursor of the subscriber.
        cursor: MessageId,
    },
}

impl Hub {
    /// Bytes of the large encodings that clients have yet to read.
    pub fn large_replay_bytes(&self) -> usize {
        self.replays.large_bytes()
    }

    /// Returns true if large encodings have been freed since a replay had to wait.
    pub fn has_freed_replay_bytes(&self) -> bool {
        self.replays.has_freed_large()
    }

    /// Returns true if a piece of an outbox is a large encoding that all clients should have read by now.
    pub fn is_overdue_encoding(&self, piece: &Frames, now: LoopTime) -> bool {
        piece.len() > REPLAY_BYTES && self.replays.is_overdue(piece, now)
    }

    /// Since when a replay has waited for memory, if it waits.
    pub fn waits_since(&self, subscription: Subscription) -> Option<LoopTime> {
        let channel = self
            .channel(subscription.channel)
            .filter(|_| subscription.state == SubscriptionState::CatchingUp)?;
        channel.catching_up.get(subscription.position as usize)?.waits_since
    }

    /// Returns true if no message follows the last slice of a subscriber that is catching up: it is live with the next
    /// step.
    pub fn has_replayed_all(&self, subscription: Subscription) -> bool {
        let Some(channel) = self
            .channel(subscription.channel)
            .filter(|_| subscription.state == SubscriptionState::CatchingUp)
        else {
            return false;
        };
        let replay = channel.catching_up.get(subscription.position as usize);
        replay.is_some_and(|replay| replay.cursor >= channel.last())
    }

    /// The next slice for a subscriber that is catching up. No batch of its channel is open.
    ///
    /// `client` is the subscriber itself, if it does not want its own messages.
    pub fn replay(
        &mut self,
        subscription: Subscription,
        client: Option<ClientId>,
        now: LoopTime,
    ) -> ReplayStep {
        let head = self.head();
        let Hub { channels, replays, epochs, latest_loss, .. } = self;
        let channel = &mut channels[subscription.channel.0 as usize];
        debug_assert!(!channel.has_batch());
        let mut replay = channel.catching_up[subscription.position as usize];
        let Replay { subscriber, form, .. } = replay;
        let evicted_through = channel.history.evicted_through();
        if replay.ignores_evicted && replay.next_number.is_none() {
            // Messages may have been evicted in the turn in which the client subscribed.
            replay.cursor = replay.cursor.max(evicted_through);
        }
        if replay.cursor < evicted_through {
            let loss = latest_loss.filter(|loss| loss.is_after(replay.cursor));
            let gap = gap(channel, epochs, &replay, loss);
            channel.advance_replay(subscription, evicted_through, 0);
            return ReplayStep::Gap(gap);
        }
        let index = channel.history.index_after(replay.cursor);
        if index == channel.history.len() {
            let moved = channel.remove_subscriber(subscription);
            let position = channel.add_live(form, subscriber);
            let subscription = Subscription::live(subscription.channel, form, position, subscription.echo);
            return ReplayStep::CaughtUp { subscription, moved, cursor: head };
        }
        let first = channel.history.get(index).map_or(replay.cursor, |message| message.log_index);
        if client.is_none()
            && let Some(CachedSlice { upto, messages, frames, .. }) = replays.slice(form, first)
        {
            channel.advance_replay(subscription, upto, index + messages);
            return ReplayStep::Slice { frames, messages, work: Work::default() };
        }
        let NextSlice { content, upto, end, messages } =
            next_slice(channel, epochs, replays, &replay, index, client, now);
        channel.advance_replay(subscription, upto, end);
        let entries = end - index;
        match content {
            SliceContent::LimitReached => {
                let since = replay.waits_since.unwrap_or(now);
                channel.catching_up[subscription.position as usize].waits_since = Some(since);
                ReplayStep::Wait { since }
            }
            SliceContent::Large { frames, encoded } => {
                ReplayStep::Slice { frames, messages, work: Work { encoded, entries } }
            }
            SliceContent::Encoded(out) => {
                let encoded = out.len();
                let frames: Frames = Rc::new(form.finish(out));
                if client.is_none() {
                    replays.cache(CachedSlice { form, first, upto, messages, frames: frames.clone() });
                }
                ReplayStep::Slice { frames, messages, work: Work { encoded, entries } }
            }
        }
    }

    /// Makes a subscriber live that has not caught up and never will. No batch of its channel is open.
    pub fn end_replay(&mut self, subscription: Subscription) -> (Subscription, Option<Moved>) {
        let channel = &mut self.channels[subscription.channel.0 as usize];
        let Replay { subscriber, form, .. } = channel.catching_up[subscription.position as usize];
        let moved = channel.remove_subscriber(subscription);
        let position = channel.add_live(form, subscriber);
        (Subscription { position, state: SubscriptionState::Live(form), ..subscription }, moved)
    }
}

/// The gap before the oldest stored message.
fn gap(channel: &Channel, epochs: &Epochs, replay: &Replay, loss: Option<LatestLoss>) -> Gap {
    // A message that this server never had has no number in the channel.
    let next_number = replay.next_number.filter(|_| loss.is_none());
    Gap {
        after: epochs.id(replay.cursor),
        resume: epochs.id(channel.history.evicted_through()),
        missed: next_number.map(|next| channel.first_number().saturating_sub(next)),
        why: loss.map_or(replay.why, |loss| loss.why()),
    }
}

/// A slice that is not in the cache.
struct NextSlice {
    content: SliceContent,
    /// The last message in the log that the slice covers.
    upto: u64,
    /// The index of the next message in the history.
    end: usize,
    messages: usize,
}

enum SliceContent {
    Encoded(Vec<u8>),
    /// One message that is larger than a slice, and the bytes that were encoded for it.
    Large {
        frames: Frames,
        encoded: usize,
    },
    /// The next message is larger than a slice, and its encoding exceeds the limit.
    LimitReached,
}

/// Encodes the messages from `index` on, up to the size of a slice, without those of `client`.
fn next_slice(
    channel: &Channel,
    epochs: &Epochs,
    replays: &mut ReplayCache,
    replay: &Replay,
    index: usize,
    client: Option<ClientId>,
    now: LoopTime,
) -> NextSlice {
    let form = replay.form;
    let mut out = form.begin(0);
    let (mut upto, mut end, mut messages) = (replay.cursor, index, 0);
    while let Some((log_index, message)) = channel.message(epochs, end)
        && end - index < REPLAY_MESSAGES
    {
        if client.is_none() || message.sender.client != client {
            if message.payload_exceeds(form, REPLAY_BYTES) {
                if messages > 0 {
                    break;
                }
                let large = match form {
                    Form::Raw => channel.history.frames(end).map(|frames| (frames, 0)),
                    _ => replays.large(&message, form, now),
                };
                return match large {
                    Some((frames, encoded)) => {
                        let content = SliceContent::Large { frames, encoded };
                        NextSlice { content, upto: log_index, end: end + 1, messages: 1 }
                    }
                    None => NextSlice { content: SliceContent::LimitReached, upto, end, messages },
                };
            }
            if messages > 0 && out.len() + message.payload.len() > REPLAY_BYTES {
                break;
            }
            message.append_as(form, &mut out);
            messages += 1;
        }
        (upto, end) = (log_index, end + 1);
    }
    NextSlice { content: SliceContent::Encoded(out), upto, end, messages }
}

#[cfg(test)]
mod tests {
    use super::super::replay_cache::CACHED_BYTES;
    use super::*;
    use crate::config::Limits;
    use crate::hub::SubscribeOptions;
    use crate::ids::{ChannelName, Since, SlotId};
    use crate::wire::Kind;

    fn name(index: usize) -> ChannelName {
        ChannelName::parse(format!("c{index}").as_bytes()).unwrap()
    }

    /// A hub with channels of three messages each, of which two make a slice.
    fn hub(channels: usize) -> Hub {
        let mut hub = Hub::new(&Limits::default(), 7);
        for index in 0..channels {
            let id = hub.open(&name(index)).unwrap();
            for _ in 0..3 {
                hub.publish(id, Kind::Binary, &[b'x'; 30_000], crate::ids::Sender::default(), None);
            }
            let _ = hub.finish_batch(id, LoopTime::from_millis(0));
        }
        while hub.next_open_batch().is_some() {}
        hub
    }

    fn slice(hub: &mut Hub, channel: usize, since: Since, subscriber: u32) -> (Frames, usize) {
        let subscriber = SlotId { key: subscriber, generation: 0 };
        let options = SubscribeOptions { form: Form::Raw, since, echo: true };
        let subscription = hub
            .subscribe(&name(channel), subscriber, options, LoopTime::from_millis(0))
            .unwrap()
            .subscription;
        match hub.replay(subscription, None, LoopTime::from_millis(0)) {
            ReplayStep::Slice { frames, work, .. } => (frames, work.encoded),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replays_of_several_channels_and_cursors_share_slices_while_they_advance_in_turn() {
        let mut hub = hub(8);
        let later = Since::After(MessageId { epoch: 7, seq: 1 });
        let mut subscribers = 0..;
        let mut round = |hub: &mut Hub| -> Vec<(Frames, usize)> {
            let pairs = (0..8).map(|channel| (channel, Since::Earliest)).chain([(0, later)]);
            pairs.map(|(channel, since)| slice(hub, channel, since, subscribers.next().unwrap())).collect()
        };
        let (first, second) = (round(&mut hub), round(&mut hub));
        for ((one, encoded), (other, again)) in first.iter().zip(&second) {
            assert!(Rc::ptr_eq(one, other) && *encoded == one.len() && *again == 0);
        }
        assert!(!Rc::ptr_eq(&first[0].0, &first[8].0), "another cursor");
    }

    #[test]
    fn slice_of_a_removed_channel_is_not_replayed_in_the_channel_that_takes_its_place() {
        let mut hub = hub(1);
        let (old, _) = slice(&mut hub, 0, Since::Earliest, 0);
        let id = hub.find("c0").unwrap();
        let subscription = Subscription {
            channel: id,
            position: 0,
            state: SubscriptionState::CatchingUp,
            echo: true,
            window: None,
        };
        assert_eq!(hub.unsubscribe(subscription), None);
        hub.expire(0..hub.keys_end(), LoopTime::from_millis(u64::from(Limits::default().history.age_ms)));
        assert_eq!(hub.channels(), 0);
        let new = hub.open(&name(1)).unwrap();
        assert_eq!(new, id);
        hub.publish(new, Kind::Binary, b"y", crate::ids::Sender::default(), None);
        let _ = hub.finish_batch(new, LoopTime::from_millis(400_000));
        let (frames, _) = slice(&mut hub, 1, Since::Earliest, 0);
        assert!(!Rc::ptr_eq(&frames, &old) && frames.ends_with(b"y"), "{} bytes", frames.len());
    }

    #[test]
    fn cached_slices_are_bounded() {
        let mut hub = hub(100);
        for channel in 0..100 {
            slice(&mut hub, channel, Since::Earliest, channel as u32);
            hub.replays.check();
        }
        assert!(hub.replays.cached_bytes() > CACHED_BYTES / 2);
    }
}
