//! Counts channels by the connection and the publisher that created them, so that no single one can use up
//! `--channels-max`.
//!
//! A channel counts for the connection that created it while that connection does not subscribe to it (its
//! subscriptions count by themselves), and for the publisher that created it by publishing, until the channel ends. A
//! connection that created none costs nothing here.

use std::collections::HashMap;

use crate::access::quota::{QuotaKey, Quotas};
use crate::ids::SlotId;
use crate::tables::shrink::shrink_sparse;

/// The creator of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creator {
    /// The WebSocket on which it was created, by publishing or subscribing.
    pub connection: Option<SlotId>,
    /// The user or address that created the channel by publishing.
    pub publisher: Option<QuotaKey>,
}

/// The number of existing channels of each creator.
#[derive(Debug)]
pub(super) struct Creators {
    /// By connection, without those that it subscribes to.
    connections: HashMap<SlotId, u32>,
    pub(super) publishers: Quotas,
}

impl Creators {
    pub(super) fn new(channels_per_publisher_max: usize) -> Creators {
        Creators { connections: HashMap::new(), publishers: Quotas::new(channels_per_publisher_max) }
    }

    /// Channels that the connection created and does not subscribe to.
    pub(super) fn channels_of(&self, connection: SlotId) -> usize {
        self.connections.get(&connection).copied().unwrap_or(0) as usize
    }

    /// Records a channel that was created without a subscription. The caller has checked the publisher's share.
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

    /// Records that a channel is removed. It has no subscribers then.
    pub(super) fn ended(&mut self, creator: Creator) {
        let Creator { connection, publisher } = creator;
        if let Some(connection) = connection {
            self.subtract(connection);
        }
        if let Some(publisher) = publisher {
            self.publishers.release(publisher);
        }
    }

    /// Counts a channel that a connection created and does not, or no longer, subscribe to.
    pub(super) fn add(&mut self, connection: SlotId) {
        *self.connections.entry(connection).or_default() += 1;
    }

    /// Stops counting a channel to which its creator subscribes, or that is removed.
    pub(super) fn subtract(&mut self, connection: SlotId) {
        // A connection that has closed is no longer counted.
        let Some(count) = self.connections.get_mut(&connection) else { return };
        *count -= 1;
        if *count == 0 {
            self.forget(connection);
        }
    }

    /// Forgets a connection that has closed. Its channels stay until they are removed.
    pub(super) fn forget(&mut self, connection: SlotId) {
        if self.connections.remove(&connection).is_some() {
            shrink_sparse(&mut self.connections);
        }
    }
}
