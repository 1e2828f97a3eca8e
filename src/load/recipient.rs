//! Who a client is, to those who count.

use super::received::ReceivedSequences;

/// What a client is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gets every message from the first to the last, and answers for it.
    Regular,
    /// The same, until it stalls.
    Slow,
    /// Reads no more: nobody waits for it.
    Stalled,
    /// Comes and goes: order is checked, loss at its ends cannot be.
    Guest,
    /// Only publishes: what it gets is counted, and nobody waits for it.
    Apart,
}

impl Role {
    /// Does it answer for every message?
    pub(super) fn is_tracked(self) -> bool {
        matches!(self, Role::Regular | Role::Slow)
    }
}

/// A client, as the tracker knows it.
#[derive(Debug)]
pub struct Recipient {
    /// What it is there for.
    pub role: Role,
    /// The channel that it is on.
    pub channel: u32,
    /// One for each publisher of the channel, in the order of their numbers. RunEnvironment at the first message.
    cursors: Vec<ReceivedSequences>,
}

impl Recipient {
    /// A client that has got nothing yet.
    pub fn new(role: Role, channel: u32) -> Recipient {
        Recipient { role, channel, cursors: Vec::new() }
    }

    /// What it got of the channel's publisher at a place.
    pub(super) fn received_from(&mut self, place: usize) -> &mut ReceivedSequences {
        if place >= self.cursors.len() {
            let fresh =
                if self.role.is_tracked() { ReceivedSequences::at(0) } else { ReceivedSequences::joining() };
            self.cursors.resize(place + 1, fresh);
        }
        &mut self.cursors[place]
    }
}
