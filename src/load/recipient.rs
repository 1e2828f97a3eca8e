//! A client as the delivery tracker knows it: its role, and the messages it has received.

use super::received::ReceivedSequences;

/// The role of a client in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has to receive every message, from the first to the last.
    Regular,
    /// Has to receive every message until it stalls.
    Slow,
    /// Does not read; its messages are not waited for.
    Stalled,
    /// Connects and disconnects: order is checked, but not the loss of its first and last messages.
    ShortLived,
    /// Only publishes: messages to it are counted, but not waited for.
    Apart,
}

impl Role {
    /// Returns true if the client has to receive every message.
    pub(super) fn is_tracked(self) -> bool {
        matches!(self, Role::Regular | Role::Slow)
    }
}

/// The role, channel and received messages of a client.
#[derive(Debug)]
pub struct Recipient {
    /// The role.
    pub role: Role,
    /// The channel.
    pub channel: u32,
    /// One entry for each publisher of the channel, in the order of their numbers. Allocated at the first message.
    cursors: Vec<ReceivedSequences>,
}

impl Recipient {
    /// A client that has not received any message.
    pub fn new(role: Role, channel: u32) -> Recipient {
        Recipient { role, channel, cursors: Vec::new() }
    }

    /// The received messages of a publisher, by its index among the channel's publishers.
    pub(super) fn received_from(&mut self, place: usize) -> &mut ReceivedSequences {
        if place >= self.cursors.len() {
            let fresh =
                if self.role.is_tracked() { ReceivedSequences::at(0) } else { ReceivedSequences::joining() };
            self.cursors.resize(place + 1, fresh);
        }
        &mut self.cursors[place]
    }
}
