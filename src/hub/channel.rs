//! One channel: its members and the turn's batch.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::Moved;
use super::outbox::Frames;
use crate::ids::SlotId;
use crate::wire::{self, Kind};

/// A channel that has members.
#[derive(Debug)]
pub struct Channel {
    name: Rc<str>,
    members: Vec<SlotId>,
    batch: Batch,
}

/// What was published since the last seal, framed, end to end.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<u8>,
    messages: u32,
    /// Which stretch of `frames` which member is not to hear.
    unheard: Vec<Unheard>,
}

/// A member's own message, which it asked not to hear (`?echo=0`).
#[derive(Clone, Debug)]
struct Unheard {
    position: u32,
    frame: Range<usize>,
}

/// A batch that is complete, shared by all who get it.
#[derive(Debug)]
pub struct Sealed {
    frames: Frames,
    messages: u32,
    /// In the order of positions, and for each position in the order of the frames.
    unheard: Vec<Unheard>,
}

/// What one member gets of a batch.
#[derive(Debug)]
pub struct Portion {
    /// The frames.
    pub frames: Pieces,
    /// How many messages they hold.
    pub messages: u32,
}

/// Stretches of a batch. All are slices of the same memory, whoever gets them.
#[derive(Debug)]
pub enum Pieces {
    /// All of it.
    Whole(Frames),
    /// What is left between the frames that the member is not to hear.
    Stretches(Vec<Frames>),
}

impl Pieces {
    /// The stretches in order.
    pub fn as_slice(&self) -> &[Frames] {
        match self {
            Pieces::Whole(frames) => std::slice::from_ref(frames),
            Pieces::Stretches(stretches) => stretches,
        }
    }
}

impl Channel {
    pub(super) fn new(name: Rc<str>) -> Channel {
        Channel { name, members: Vec::new(), batch: Batch::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn members(&self) -> &[SlotId] {
        &self.members
    }

    pub(super) fn join(&mut self, member: SlotId) -> u32 {
        debug_assert!(
            self.batch.messages == 0,
            "a new member must not hear what was published before it came"
        );
        self.members.push(member);
        (self.members.len() - 1) as u32
    }

    pub(super) fn leave(&mut self, position: u32) -> Option<Moved> {
        debug_assert!(self.batch.messages == 0, "leaving would give an unheard frame to another member");
        self.members.swap_remove(position as usize);
        self.members.get(position as usize).map(|&member| Moved { member, position })
    }

    /// Frames one message; true if it is the first of its batch.
    pub(super) fn publish(&mut self, kind: Kind, payload: &[u8], unheard_by: Option<u32>) -> bool {
        let Batch { frames, messages, unheard } = &mut self.batch;
        let start = frames.len();
        wire::append_message(frames, kind, payload);
        unheard.extend(unheard_by.map(|position| Unheard { position, frame: start..frames.len() }));
        *messages += 1;
        *messages == 1
    }

    pub(super) fn seal(&mut self) -> Option<(&[SlotId], Sealed)> {
        if self.batch.messages == 0 {
            return None;
        }
        let Batch { frames, messages, mut unheard } = std::mem::take(&mut self.batch);
        unheard.sort_by_key(|one| one.position);
        Some((&self.members, Sealed { frames: Rc::new(Bytes::from(frames)), messages, unheard }))
    }
}

impl Sealed {
    /// What the member at `position` gets: as a rule the whole batch; for a member that is not to hear a
    /// part of it, the stretches between, and `None` if nothing is left.
    pub fn portion(&self, position: u32) -> Option<Portion> {
        if self.unheard.is_empty() {
            return Some(self.whole());
        }
        let first = self.unheard.partition_point(|one| one.position < position);
        let own = self.unheard[first..].iter().take_while(|one| one.position == position);
        let messages = self.messages - own.clone().count() as u32;
        if messages == self.messages {
            return Some(self.whole());
        }
        let mut stretches = Vec::new();
        let mut from = 0;
        let mut add = |stretch: Range<usize>| {
            if !stretch.is_empty() {
                stretches.push(Rc::new(self.frames.slice(stretch)));
            }
        };
        for Unheard { frame, .. } in own {
            add(from..frame.start);
            from = frame.end;
        }
        add(from..self.frames.len());
        (messages > 0).then_some(Portion { frames: Pieces::Stretches(stretches), messages })
    }

    fn whole(&self) -> Portion {
        Portion { frames: Pieces::Whole(self.frames.clone()), messages: self.messages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel_of(members: u32) -> Channel {
        let mut channel = Channel::new("x".into());
        for key in 0..members {
            assert_eq!(channel.join(SlotId { key, generation: 0 }), key);
        }
        channel
    }

    fn text(portion: Option<Portion>) -> Option<(Vec<u8>, u32)> {
        portion.map(|portion| {
            let bytes: Vec<&[u8]> = portion.frames.as_slice().iter().map(|frames| &frames[..]).collect();
            (bytes.concat(), portion.messages)
        })
    }

    #[test]
    fn a_batch_is_one_piece_of_memory_for_all() {
        let mut channel = channel_of(2);
        assert!(channel.publish(Kind::Text, b"a", None));
        assert!(!channel.publish(Kind::Binary, b"b", None));
        let (_, sealed) = channel.seal().unwrap();
        let (one, two) = (sealed.portion(0).unwrap(), sealed.portion(1).unwrap());
        let (Pieces::Whole(one), Pieces::Whole(two)) = (one.frames, two.frames) else {
            panic!("both get all")
        };
        assert!(Rc::ptr_eq(&one, &two));
        assert_eq!(one[..], [0x81, 1, b'a', 0x82, 1, b'b']);
        assert!(channel.seal().is_none());
    }

    #[test]
    fn who_asks_not_to_hear_itself_does_not() {
        let mut channel = channel_of(3);
        channel.publish(Kind::Text, b"a", Some(2));
        channel.publish(Kind::Text, b"b", Some(0));
        channel.publish(Kind::Text, b"c", Some(2));
        channel.publish(Kind::Text, b"d", None);
        let (_, sealed) = channel.seal().unwrap();
        assert_eq!(text(sealed.portion(0)), Some((b"\x81\x01a\x81\x01c\x81\x01d".to_vec(), 3)));
        assert_eq!(sealed.portion(1).unwrap().messages, 4);
        assert_eq!(text(sealed.portion(2)), Some((b"\x81\x01b\x81\x01d".to_vec(), 2)));
        let batch = sealed.frames.as_ptr_range();
        for piece in sealed.portion(2).unwrap().frames.as_slice() {
            assert!(batch.contains(&piece.as_ptr()), "a stretch is a slice, not a copy");
        }
        channel.publish(Kind::Text, b"alone", Some(1));
        let (_, sealed) = channel.seal().unwrap();
        assert!(sealed.portion(1).is_none());
    }

    #[test]
    fn the_last_member_moves_into_the_free_place() {
        let mut channel = channel_of(3);
        assert_eq!(channel.leave(0), Some(Moved { member: SlotId { key: 2, generation: 0 }, position: 0 }));
        assert_eq!(channel.leave(1), None);
        assert_eq!(channel.members().len(), 1);
    }
}
