//! Who a member is, to those who count.

use super::order::Cursor;

/// What a member is there for.
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
    pub(super) fn answers(self) -> bool {
        matches!(self, Role::Regular | Role::Slow)
    }
}

/// A member, as the ledger knows it.
#[derive(Debug)]
pub struct Attendance {
    /// What it is there for.
    pub role: Role,
    /// The channel that it is on.
    pub channel: u32,
    /// One for each publisher of the channel, in the order of their numbers. Made at the first message.
    cursors: Vec<Cursor>,
}

impl Attendance {
    /// A member that has got nothing yet.
    pub fn new(role: Role, channel: u32) -> Attendance {
        Attendance { role, channel, cursors: Vec::new() }
    }

    /// What it got of the channel's publisher at a place.
    pub(super) fn cursor(&mut self, place: usize) -> &mut Cursor {
        if place >= self.cursors.len() {
            let fresh = if self.role.answers() { Cursor::at(0) } else { Cursor::joining() };
            self.cursors.resize(place + 1, fresh);
        }
        &mut self.cursors[place]
    }
}
