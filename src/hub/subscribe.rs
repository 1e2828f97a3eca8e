//! Subscribing and unsubscribing: the position at which a subscription begins, its gap, and its end.

use super::batch::BatchStart;
use super::channel::Replay;
use super::creators::Creator;
use super::subscriptions::{Moved, Subscription, SubscriptionState};
use super::{ChannelsFull, Hub};
use crate::ids::{ChannelId, ChannelName, Gap, GapReason, MessageId, Since, SlotId};
use crate::time::LoopTime;
use crate::wire::Form;

/// The options of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The form of the messages.
    pub form: Form,
    /// The message after which the subscription begins.
    pub since: Since,
    /// True if the subscriber also receives its own messages.
    pub echo: bool,
}

/// A new subscription.
#[derive(Clone, Copy, Debug)]
pub struct Subscribed {
    /// The subscription.
    pub subscription: Subscription,
    /// The messages continue after this one; if there is a gap, its notice is sent first.
    pub cursor: MessageId,
    /// The channel's number of subscribers.
    pub subscribers: usize,
    /// The requested messages that are not available.
    pub gap: Option<Gap>,
}

impl Hub {
    /// The subscriber at the position of a subscription; for checks.
    pub fn subscriber_at(&self, subscription: Subscription) -> Option<SlotId> {
        self.channel(subscription.channel)?.subscriber_at(subscription.state, subscription.position)
    }

    /// The form of a subscriber's messages.
    pub fn form_of(&self, subscription: Subscription) -> Form {
        match subscription.state {
            SubscriptionState::Live(form) => form,
            SubscriptionState::CatchingUp => {
                self.channels[subscription.channel.0 as usize].catching_up[subscription.position as usize]
                    .form
            }
        }
    }

    /// Adds a subscriber. It does not receive the messages of the channel's open batch, unless it requests them.
    ///
    /// It receives the requested history by [`Hub::replay`]; without any, it is live at once.
    ///
    /// # Errors
    /// The name is new and `--channels-max` is reached.
    pub fn subscribe(
        &mut self,
        name: &ChannelName,
        subscriber: SlotId,
        options: SubscribeOptions,
        now: LoopTime,
    ) -> Result<Subscribed, ChannelsFull> {
        let id = self.open_as(name, Creator { connection: Some(subscriber), publisher: None })?;
        if self.channels[id.0 as usize].creator.connection == Some(subscriber) {
            // The channel counts as a subscription of its creator now, and no longer as created by publishing.
            self.creators.subtract(subscriber);
        }
        self.expire_channel(id, now);
        let (from, gap) = self.resume(id, options.since);
        let (now_at, head) = (self.id(from), self.head());
        let channel = &mut self.channels[id.0 as usize];
        let (subscription, cursor) = if from < channel.last() {
            let replay = Replay {
                subscriber,
                form: options.form,
                cursor: from,
                next_number: None,
                why: GapReason::Slow,
                ignores_evicted: options.form == Form::Raw && !matches!(options.since, Since::After(_)),
                waits_since: None,
            };
            channel.catching_up.push(replay);
            let position = (channel.catching_up.len() - 1) as u32;
            (
                Subscription {
                    channel: id,
                    position,
                    state: SubscriptionState::CatchingUp,
                    echo: options.echo,
                    window: None,
                },
                now_at,
            )
        } else {
            (
                Subscription::live(
                    id,
                    options.form,
                    channel.add_live(options.form, subscriber),
                    options.echo,
                ),
                head,
            )
        };
        let subscribers = channel.subscribers();
        // A client that is disconnected before the notice of the gap arrives must resume with the old cursor, and be
        // notified again.
        let cursor = gap.map_or(cursor, |gap| gap.after);
        self.subscriptions += 1;
        Ok(Subscribed { subscription, cursor, subscribers, gap })
    }

    /// The position in the log at which a subscription with `since` begins, and the gap before it.
    pub(super) fn resume(&self, id: ChannelId, since: Since) -> (u64, Option<Gap>) {
        let channel = &self.channels[id.0 as usize];
        let evicted_through = channel.history.evicted_through();
        match since {
            Since::Now => (self.log_index, None),
            // Evicted messages are a loss to a client that asks for the whole history, as to one that was disconnected.
            Since::Earliest => {
                let gap = |missed| Gap {
                    after: self.id(0),
                    resume: self.id(evicted_through),
                    missed,
                    why: GapReason::Evicted,
                };
                (evicted_through, channel.evicted().map(gap))
            }
            Since::Latest => (channel.before_last().unwrap_or(evicted_through), None),
            Since::After(id) => self.resume_after(id, evicted_through),
        }
    }

    /// The index at which a cursor continues in a channel with messages evicted up to `evicted_through`, and the gap
    /// before it.
    pub(super) fn resume_after(&self, after: MessageId, evicted_through: u64) -> (u64, Option<Gap>) {
        let (from, why) = match self.epochs.log_index(after, self.log_index) {
            Ok(log_index) if log_index >= evicted_through.max(self.cursor_floor) => return (log_index, None),
            // Messages from the floor on are complete.
            Ok(log_index) if log_index >= evicted_through => {
                (log_index.max(self.cursor_floor - 1), GapReason::Lost)
            }
            Ok(log_index) => (evicted_through, self.why_missing(log_index)),
            Err(GapReason::Lost) => (evicted_through.max(self.epochs.end_of(after.epoch)), GapReason::Lost),
            Err(why) => (evicted_through, why),
        };
        (from, Some(Gap { after, resume: self.id(from), missed: None, why }))
    }

    /// Removes a subscriber; a channel without subscribers and history is removed. The subscriber no longer receives
    /// the unsent messages of the channel's open batch: see [`Hub::unsent`].
    ///
    /// The last subscriber of the same list moves into the freed position, unless it was the one removed.
    pub fn unsubscribe(&mut self, subscription: Subscription) -> Option<Moved> {
        let creator = self.channels[subscription.channel.0 as usize].creator.connection;
        if let Some(connection) = creator
            && self.subscriber_at(subscription) == creator
        {
            self.creators.add(connection);
        }
        let moved = self.channels[subscription.channel.0 as usize].remove_subscriber(subscription);
        let channel = &self.channels[subscription.channel.0 as usize];
        if !channel.has_live_web_sockets() {
            self.take_context(subscription.channel);
        } else if channel.context.is_some() {
            self.shrink_context(subscription.channel);
        }
        self.subscriptions -= 1;
        self.remove_if_unused(subscription.channel);
        moved
    }

    /// Makes a live subscriber catch up, since a batch did not fit into its outbox. It receives that batch and the
    /// messages after it from the history, when its socket accepts bytes again. The batch is finished, and the channel
    /// has no other.
    pub fn start_catching_up(
        &mut self,
        subscriber: SlotId,
        subscription: Subscription,
        start: BatchStart,
    ) -> (Subscription, Option<Moved>) {
        let SubscriptionState::Live(form) = subscription.state else { return (subscription, None) };
        let channel = &mut self.channels[subscription.channel.0 as usize];
        let moved = channel.remove_subscriber(subscription);
        let replay = Replay {
            subscriber,
            form,
            cursor: start.log_index,
            next_number: Some(start.number),
            why: GapReason::Slow,
            ignores_evicted: false,
            waits_since: None,
        };
        channel.catching_up.push(replay);
        let position = (channel.catching_up.len() - 1) as u32;
        (Subscription { position, state: SubscriptionState::CatchingUp, ..subscription }, moved)
    }
}
