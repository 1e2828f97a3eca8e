//! Who created which channels: one connection or publisher must not take all that there can be.
//!
//! A channel counts for the connection that created it while that connection does not subscribe to it (its subscriptions
//! count by themselves), and for the publisher that created it by publishing, until the channel ends. Neither costs a
//! connection anything that created none.

use std::collections::HashMap;

use crate::access::share::{ShareKey, Shares};
use crate::ids::SlotId;

/// Who created a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creator {
    /// The WebSocket on which it was created, by publishing or subscribing.
    pub connection: Option<SlotId>,
    /// The person or address that created it by publishing.
    pub publisher: Option<ShareKey>,
}

/// How many channels that exist each of them created.
#[derive(Debug)]
pub(super) struct Creators {
    /// Those that the connection does not subscribe to.
    connections: HashMap<SlotId, u32>,
    pub(super) publishers: Shares,
}

impl Creators {
    pub(super) fn new(channels_per_publisher_max: usize) -> Creators {
        Creators { connections: HashMap::new(), publishers: Shares::new(channels_per_publisher_max) }
    }

    /// Channels that the connection created and does not subscribe to.
    pub(super) fn channels_of(&self, connection: SlotId) -> usize {
        self.connections.get(&connection).copied().unwrap_or(0) as usize
    }

    /// Somebody creates a channel, without subscribing to it. What a publisher's share allows is asked before.
    pub(super) fn created(&mut self, creator: Creator) -> Creator {
        let Creator { connection, publisher } = creator;
        if let Some(connection) = connection {
            self.add(connection);
        }
        Creator {
            publisher: publisher.filter(|&publisher| self.publishers.take(publisher).is_ok()),
            connection,
        }
    }

    /// A channel ends. It has no subscribers then.
    pub(super) fn ended(&mut self, creator: Creator) {
        let Creator { connection, publisher } = creator;
        if let Some(connection) = connection {
            self.subtract(connection);
        }
        if let Some(publisher) = publisher {
            self.publishers.give_back(publisher);
        }
    }

    /// A connection leaves a channel, or does not subscribe to one that it created.
    pub(super) fn add(&mut self, connection: SlotId) {
        *self.connections.entry(connection).or_default() += 1;
    }

    /// A connection subscribes to a channel that it created, or that channel ends.
    pub(super) fn subtract(&mut self, connection: SlotId) {
        // A connection that is gone counts no more.
        let Some(count) = self.connections.get_mut(&connection) else { return };
        *count -= 1;
        if *count == 0 {
            self.forget(connection);
        }
    }

    /// A connection is gone. Its channels stay until they end.
    pub(super) fn forget(&mut self, connection: SlotId) {
        if self.connections.remove(&connection).is_some()
            && self.connections.len() < self.connections.capacity() / 8
        {
            // A crowd must not be paid for ever after.
            self.connections.shrink_to(2 * self.connections.len());
        }
    }
}
