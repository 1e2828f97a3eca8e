//! Where one connection sits: nowhere, in one channel, or in several.
//!
//! Nearly all connections that there are sit in one channel, and their slot has room for that seat itself;
//! only who sits in several owns a list (**asleep between messages**).

use crate::ids::{ChannelId, SlotId};
use crate::wire::Form;

/// Where a member sits: the way back from a slot into the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Its channel.
    pub channel: ChannelId,
    /// Its position in its place.
    pub position: u32,
    /// Among whom.
    pub place: SubscriptionState,
    /// Does it hear what it publishes itself?
    pub echo: bool,
}

/// The lists of a channel's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// Those who get each batch, in one form.
    Live(Form),
    /// Those who are still getting what was kept.
    CatchingUp,
}

/// The member that moved into a position that was left; its seat has to be told.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Who moved.
    pub subscriber: SlotId,
    /// In which channel.
    pub channel: ChannelId,
    /// Its new position.
    pub position: u32,
}

impl Subscription {
    /// That of a live subscriber.
    pub(super) fn live(channel: ChannelId, form: Form, position: u32, echo: bool) -> Subscription {
        Subscription { channel, position, place: SubscriptionState::Live(form), echo }
    }
}

/// The seats of one connection.
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

    /// The seat in a channel.
    pub fn find(&self, channel: ChannelId) -> Option<Subscription> {
        self.as_slice().iter().find(|subscription| subscription.channel == channel).copied()
    }

    /// The seat in a channel.
    pub fn find_mut(&mut self, channel: ChannelId) -> Option<&mut Subscription> {
        self.as_mut_slice().iter_mut().find(|subscription| subscription.channel == channel)
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Adds one, in a channel in which there was none.
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

    /// Takes out the one in a channel.
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
    fn one_seat_fits_into_the_slot() {
        assert_eq!(size_of::<Subscriptions>(), 16);
    }

    #[test]
    fn seats_come_and_go() {
        let subscription = |channel| Subscription {
            channel: ChannelId(channel),
            position: channel * 10,
            place: SubscriptionState::Live(Form::Envelope),
            echo: true,
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
