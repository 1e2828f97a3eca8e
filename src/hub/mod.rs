//! Who hears what.
//!
//! The hub has never heard of sockets. It keeps the members of each channel and the batch of frames that
//! the current turn publishes there, and answers with frames and members; the server does the rest.
//!
//! **Encode once**: a message is framed when it is published, into its channel's batch. At the end of the
//! deliver phase the batch is sealed, and every member gets a reference to the same bytes.

pub mod channel;
pub mod outbox;

use std::collections::HashMap;
use std::rc::Rc;

use slab::Slab;

use crate::ids::{ChannelId, ChannelName, SlotId};
use crate::wire::Kind;
use channel::{Channel, Sealed};

/// All channels.
#[derive(Debug)]
pub struct Hub {
    channels: Slab<Channel>,
    names: HashMap<Rc<str>, ChannelId>,
    /// Channels in which something was published this turn.
    touched: Vec<ChannelId>,
    channels_max: usize,
}

/// Where a member sits: the way back from a slot into the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its channel.
    pub channel: ChannelId,
    /// Its place among the channel's members.
    pub position: u32,
    /// Does it hear what it publishes itself?
    pub echo: bool,
}

/// The member that moved into a place that was left; its seat has to be told.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Who moved.
    pub member: SlotId,
    /// Its new place.
    pub position: u32,
}

/// There are as many channels as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelsFull;

impl Hub {
    /// A hub without channels that will have at most `channels_max`.
    pub fn new(channels_max: usize) -> Hub {
        Hub { channels: Slab::new(), names: HashMap::new(), touched: Vec::new(), channels_max }
    }

    /// The channel of that name, if it has members.
    pub fn find(&self, name: &ChannelName) -> Option<ChannelId> {
        self.names.get(name.as_str()).copied()
    }

    /// How many channels have members.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// How many members all channels have together.
    pub fn seats(&self) -> usize {
        self.channels.iter().map(|(_, channel)| channel.members().len()).sum()
    }

    /// The members of a channel, in the order of their positions.
    pub fn members(&self, channel: ChannelId) -> &[SlotId] {
        self.channels.get(channel.0 as usize).map_or(&[], Channel::members)
    }

    /// Adds a member. It hears what is published from now on: a batch that the channel has begun must be
    /// sealed and handed out first.
    ///
    /// # Errors
    /// The name is new and there is no room for another channel.
    pub fn subscribe(
        &mut self,
        name: &ChannelName,
        member: SlotId,
        echo: bool,
    ) -> Result<Seat, ChannelsFull> {
        let channel = match self.find(name) {
            Some(channel) => channel,
            None => self.open(name)?,
        };
        let position = self.channels[channel.0 as usize].join(member);
        Ok(Seat { channel, position, echo })
    }

    fn open(&mut self, name: &ChannelName) -> Result<ChannelId, ChannelsFull> {
        if self.channels.len() >= self.channels_max {
            return Err(ChannelsFull);
        }
        let name: Rc<str> = name.as_str().into();
        let channel = ChannelId(self.channels.insert(Channel::new(name.clone())) as u32);
        self.names.insert(name, channel);
        Ok(channel)
    }

    /// Takes a member out; a channel without members ends. A batch that the channel has begun must be sealed
    /// and handed out first, since it may name members by their positions.
    ///
    /// The last member moves into the place that came free, if that is another.
    pub fn leave(&mut self, seat: Seat) -> Option<Moved> {
        let channel = &mut self.channels[seat.channel.0 as usize];
        let moved = channel.leave(seat.position);
        if channel.members().is_empty() {
            let channel = self.channels.remove(seat.channel.0 as usize);
            self.names.remove(channel.name());
        }
        moved
    }

    /// Frames a message into its channel's batch.
    pub fn publish(&mut self, seat: Seat, kind: Kind, payload: &[u8]) {
        let channel = &mut self.channels[seat.channel.0 as usize];
        if channel.publish(kind, payload, (!seat.echo).then_some(seat.position)) {
            self.touched.push(seat.channel);
        }
    }

    /// One channel in which something was published this turn and not yet handed out.
    pub fn next_touched(&mut self) -> Option<ChannelId> {
        self.touched.pop()
    }

    /// Ends the channel's batch: who gets it, and what it is. `None` if there is nothing in it.
    pub fn seal(&mut self, channel: ChannelId) -> Option<(&[SlotId], Sealed)> {
        self.channels.get_mut(channel.0 as usize)?.seal()
    }
}
