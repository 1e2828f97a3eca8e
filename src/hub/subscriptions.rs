//! The subscriptions of one connection: none, one, or several.
//!
//! Nearly all connections subscribe to one channel, and the slot has room for that subscription itself; only a
//! connection with several owns a list (**asleep between messages**).

use crate::ids::{ChannelId, SlotId};
use crate::wire::Form;
use crate::wire::deflate::WindowEnd;

/// A subscriber's position in a channel: the way from a slot to its entry in the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The channel.
    pub channel: ChannelId,
    /// The position in the list of subscribers with the same state.
    pub position: u32,
    /// The list that has the subscriber.
    pub state: SubscriptionState,
    /// True if the subscriber receives its own messages.
    pub echo: bool,
    /// The message that ends the window of the connection, if that is known. All subscriptions of the connection that
    /// know it have the same. The field is here and not with the connection's state, since it takes no additional
    /// memory here.
    pub window: Option<WindowEnd>,
}

/// The lists of a channel's subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// The subscriber is sent each batch, in this form.
    Live(Form),
    /// The subscriber is sent the history.
    CatchingUp,
}

/// The subscriber that moved into a freed position; its subscription must be updated.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The subscriber.
    pub subscriber: SlotId,
    /// The channel.
    pub channel: ChannelId,
    /// Its new position.
    pub position: u32,
}

impl Subscription {
    /// The subscription of a live subscriber.
    pub(super) fn live(channel: ChannelId, form: Form, position: u32, echo: bool) -> Subscription {
        Subscription { channel, position, state: SubscriptionState::Live(form), echo, window: None }
    }
}

/// The subscriptions of one connection.
#[derive(Debug, Default)]
pub enum Subscriptions {
    /// None: it is not a WebSocket, or has not subscribed.
    #[default]
    None,
    /// One.
    One(Subscription),
    /// Several; at least two.
    // The box is thin where a Vec has three words.
    #[allow(clippy::box_collection)]
    Several(Box<Vec<Subscription>>),
}

impl Subscriptions {
    /// All of them.
    pub fn as_slice(&self) -> &[Subscription] {
        match self {
            Subscriptions::None => &[],
            Subscriptions::One(subscription) => std::slice::from_ref(subscription),
            Subscriptions::Several(subscriptions) => subscriptions,
        }
    }

    /// All of them.
    pub fn as_mut_slice(&mut self) -> &mut [Subscription] {
        match self {
            Subscriptions::None => &mut [],
            Subscriptions::One(subscription) => std::slice::from_mut(subscription),
            Subscriptions::Several(subscriptions) => subscriptions,
        }
    }

    /// The subscription to a channel.
    pub fn find(&self, channel: ChannelId) -> Option<Subscription> {
        self.as_slice().iter().find(|subscription| subscription.channel == channel).copied()
    }

    /// The subscription to a channel.
    pub fn find_mut(&mut self, channel: ChannelId) -> Option<&mut Subscription> {
        self.as_mut_slice().iter_mut().find(|subscription| subscription.channel == channel)
    }

    /// The message that ends the window of the connection, as far as the subscription to this channel knows.
    pub fn window(&self, channel: ChannelId) -> Option<WindowEnd> {
        match self {
            Subscriptions::None => None,
            Subscriptions::One(subscription) => subscription.window,
            Subscriptions::Several(_) => self.find(channel)?.window,
        }
    }

    /// Records the message that ends the window of the connection.
    pub fn set_window(&mut self, window: Option<WindowEnd>) {
        self.as_mut_slice().iter_mut().for_each(|subscription| subscription.window = window);
    }

    /// Returns true if there are no subscriptions.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Adds a subscription to another channel.
    pub fn add(&mut self, subscription: Subscription) {
        *self = match std::mem::take(self) {
            Subscriptions::None => Subscriptions::One(subscription),
            Subscriptions::One(first) => Subscriptions::Several(Box::new(vec![first, subscription])),
            Subscriptions::Several(mut subscriptions) => {
                subscriptions.push(subscription);
                Subscriptions::Several(subscriptions)
            }
        };
    }

    /// Removes the subscription to a channel.
    pub fn remove(&mut self, channel: ChannelId) -> Option<Subscription> {
        let subscription = self.find(channel)?;
        *self = match std::mem::take(self) {
            Subscriptions::None | Subscriptions::One(_) => Subscriptions::None,
            Subscriptions::Several(mut subscriptions) => {
                subscriptions.retain(|subscription| subscription.channel != channel);
                match subscriptions[..] {
                    [last] => Subscriptions::One(last),
                    _ => Subscriptions::Several(subscriptions),
                }
            }
        };
        Some(subscription)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_subscription_fits_into_the_slot() {
        assert_eq!(size_of::<Subscriptions>(), 16);
    }

    #[test]
    fn added_subscriptions_are_found_until_removed() {
        let subscription = |channel| Subscription {
            channel: ChannelId(channel),
            position: channel * 10,
            state: SubscriptionState::Live(Form::Envelope),
            echo: true,
            window: None,
        };
        let mut subscriptions = Subscriptions::default();
        for channel in 0..4 {
            subscriptions.add(subscription(channel));
            assert_eq!(subscriptions.as_slice().len(), channel as usize + 1);
        }
        assert_eq!(subscriptions.find(ChannelId(2)), Some(subscription(2)));
        assert_eq!(subscriptions.remove(ChannelId(7)), None);
        for channel in [1, 3, 0] {
            assert_eq!(subscriptions.remove(ChannelId(channel)), Some(subscription(channel)));
        }
        assert!(matches!(subscriptions, Subscriptions::One(last) if last == subscription(2)));
        assert_eq!(subscriptions.remove(ChannelId(2)), Some(subscription(2)));
        assert!(subscriptions.is_empty());
    }
}
