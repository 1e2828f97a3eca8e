//! One channel: its members, the turn's batch, and what is kept.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::history::{Entry, History};
use super::outbox::Frames;
use super::replay::Replay;
use super::{Moved, Place, Seat, Standing};
use crate::config::HistoryLimits;
use crate::ids::{ChannelId, MessageId, Sender, SlotId};
use crate::moment::Moment;
use crate::wire::{self, Form, Kind, Message};

/// A channel that has members or history.
#[derive(Debug)]
pub struct Channel {
    name: Rc<str>,
    /// Who gets each batch as it is sealed, by form.
    live: [Vec<SlotId>; Form::COUNT],
    /// Who is still getting what was kept.
    pub(super) replaying: Vec<Replay>,
    batch: Batch,
    pub(super) history: History,
    /// The number of its last message; they are counted from 1.
    messages: u64,
    /// Its last message in the log.
    last: u64,
    /// A channel of this name had messages, and was removed with its history; how many is not known.
    pub(super) had_others: bool,
    /// Where it stands among all channels by size.
    pub(super) rank: super::largest::Rank,
    /// Who created it.
    pub(super) creator: super::creators::Creator,
    /// Where it stands in what is written down.
    pub(super) mark: super::journal::Mark,
}

/// What was published since the last seal, framed, end to end.
#[derive(Debug, Default)]
struct Batch {
    frames: Vec<u8>,
    entries: Vec<Entry>,
    /// Which message which member is not to hear.
    unheard: Vec<Unheard>,
}

/// A member's own message, which it asked not to hear (`?echo=0`).
#[derive(Clone, Copy, Debug)]
struct Unheard {
    form: Form,
    position: u32,
    /// Which message of the batch.
    message: u32,
}

/// A batch that is complete.
#[derive(Debug)]
pub struct Sealed {
    forms: [Option<Encoded>; Form::COUNT],
    messages: u32,
    /// By form and position, and for each in the order of the messages.
    unheard: Vec<Unheard>,
    /// The message before its first, for who could not take it.
    pub before: Before,
}

/// Where a batch begins.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// Just before its first message in the log.
    pub(super) seq: u64,
    /// The number of its first message in the channel.
    pub(super) number: u64,
}

/// A batch in one form, shared by all who get it.
#[derive(Debug)]
struct Encoded {
    frames: Frames,
    /// The ends of its messages; empty where nobody has to do without one.
    ends: Vec<u32>,
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
    pub(super) fn new(name: Rc<str>, floor: u64) -> Channel {
        Channel {
            name,
            live: Default::default(),
            replaying: Vec::new(),
            batch: Batch::default(),
            history: History::new(floor),
            messages: 0,
            last: floor,
            had_others: false,
            rank: super::largest::Rank::default(),
            creator: super::creators::Creator::default(),
            mark: super::journal::Mark::default(),
        }
    }

    /// One that was written down, without its history, which begins at `floor`.
    pub(super) fn restored(name: Rc<str>, messages: u64, last: u64, floor: u64) -> Channel {
        Channel { messages, last, ..Channel::new(name, floor) }
    }

    pub(super) fn shared_name(&self) -> Rc<str> {
        self.name.clone()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who gets what is published as it comes, in one form.
    pub fn live(&self, form: Form) -> &[SlotId] {
        &self.live[form.index()]
    }

    /// How many members it has.
    pub fn members(&self) -> usize {
        self.live.iter().map(Vec::len).sum::<usize>() + self.replaying.len()
    }

    /// The number in the log of its last message, or of its floor if it has none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many messages it has had.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// How many of its messages are evicted, if there are any; `Some(None)` if that is not known.
    pub(super) fn evicted(&self) -> Option<Option<u64>> {
        let evicted = self.first_number() - 1;
        (self.had_others || evicted > 0).then_some(Some(evicted).filter(|_| !self.had_others))
    }

    /// What the API shows of it.
    pub fn standing(&self) -> Standing {
        Standing {
            members: self.members(),
            head: (self.messages > 0).then_some(self.last),
            floor: self.history.floor(),
            messages: self.history.len(),
            bytes: self.history.bytes(),
        }
    }

    /// The number of the first message that is kept, or would be.
    pub(super) fn first_number(&self) -> u64 {
        self.messages + 1 - self.history.len() as u64
    }

    /// Is there no reason for it to exist?
    pub(super) fn has_ended(&self) -> bool {
        self.members() == 0 && self.history.len() == 0 && self.batch.entries.is_empty()
    }

    pub(super) fn has_batch(&self) -> bool {
        !self.batch.entries.is_empty()
    }

    pub(super) fn join(&mut self, form: Form, member: SlotId) -> u32 {
        debug_assert!(!self.has_batch(), "a new member must not hear what was published before it came");
        let members = &mut self.live[form.index()];
        members.push(member);
        (members.len() - 1) as u32
    }

    pub(super) fn leave(&mut self, seat: Seat) -> Option<Moved> {
        debug_assert!(!self.has_batch(), "leaving would give an unheard frame to another member");
        let position = seat.position as usize;
        let moved = match seat.place {
            Place::Live(form) => {
                let members = &mut self.live[form.index()];
                members.swap_remove(position);
                members.get(position).copied()
            }
            Place::Replaying => {
                self.replaying.swap_remove(position);
                self.replaying.get(position).map(|replay| replay.member)
            }
        };
        moved.map(|member| Moved { member, channel: seat.channel, position: seat.position })
    }

    /// Who sits there.
    pub(super) fn member_at(&self, place: Place, position: u32) -> Option<SlotId> {
        match place {
            Place::Live(form) => self.live[form.index()].get(position as usize).copied(),
            Place::Replaying => self.replaying.get(position as usize).map(|replay| replay.member),
        }
    }

    /// Frames one message; true if it is the first of its batch.
    pub(super) fn publish(
        &mut self,
        seq: u64,
        kind: Kind,
        payload: &[u8],
        sender: Sender,
        unheard_by: Option<Seat>,
    ) -> bool {
        let Batch { frames, entries, unheard } = &mut self.batch;
        wire::append_message(frames, kind, payload);
        if let Some(Seat { place: Place::Live(form), position, .. }) = unheard_by {
            unheard.push(Unheard { form, position, message: entries.len() as u32 });
        }
        entries.push(Entry { end: frames.len() as u32, seq, kind, sender });
        self.messages += 1;
        self.last = seq;
        entries.len() == 1
    }

    /// Ends the batch, and keeps of it what the limits allow.
    pub(super) fn seal(&mut self, epoch: u64, limits: &HistoryLimits, now: Moment) -> Option<Sealed> {
        if !self.has_batch() {
            return None;
        }
        let Batch { mut frames, entries, mut unheard } = std::mem::take(&mut self.batch);
        let keeps = limits.messages_max > 0;
        if keeps {
            // What a growing batch has to spare would be kept with it.
            frames.shrink_to_fit();
        }
        let raw: Frames = Rc::new(Bytes::from(frames));
        let number = self.messages + 1 - entries.len() as u64;
        unheard.sort_by_key(|one| (one.form.index(), one.position));
        let forms = Form::ALL.map(|form| {
            if self.live[form.index()].is_empty() {
                return None;
            }
            let wants_ends = unheard.iter().any(|one| one.form == form);
            Some(if form == Form::Raw {
                let ends = if wants_ends { entries.iter().map(|entry| entry.end).collect() } else { vec![] };
                Encoded { frames: raw.clone(), ends }
            } else {
                encode(&self.name, epoch, number, form, &raw, &entries, wants_ends)
            })
        });
        if keeps {
            self.history.keep(&raw, &entries, limits, now);
        } else {
            self.history = History::new(self.last);
        }
        let before = Before { seq: entries[0].seq - 1, number };
        Some(Sealed { forms, messages: entries.len() as u32, unheard, before })
    }

    /// A kept message, with all that is told of it.
    pub(super) fn message(&self, epoch: u64, index: usize) -> Option<Message<'_>> {
        let kept = self.history.get(index)?;
        Some(Message {
            channel: &self.name,
            id: MessageId { epoch, seq: kept.seq },
            number: self.first_number() + index as u64,
            sender: &kept.sender,
            kind: kept.kind,
            payload: kept.payload(),
        })
    }
}

fn encode(
    channel: &str,
    epoch: u64,
    first_number: u64,
    form: Form,
    raw: &Bytes,
    entries: &[Entry],
    wants_ends: bool,
) -> Encoded {
    debug_assert!(
        !wants_ends || !form.is_chunked(),
        "an event stream publishes nothing that it could leave out"
    );
    let mut out = form.begin(raw.len() + 128 * entries.len());
    let mut ends = Vec::new();
    let mut start = 0;
    for (entry, number) in entries.iter().zip(first_number..) {
        let Entry { end, seq, kind, ref sender } = *entry;
        let payload = wire::payload_of(&raw[start..end as usize]);
        let id = MessageId { epoch, seq };
        Message { channel, id, number, sender, kind, payload }.append_as(form, &mut out);
        start = end as usize;
        if wants_ends {
            ends.push(out.len() as u32);
        }
    }
    Encoded { frames: Rc::new(form.finish(out)), ends }
}

impl Sealed {
    /// What the member at `position` gets: as a rule the whole batch; for a member that is not to hear a
    /// part of it, the stretches between, and `None` if nothing is left.
    pub fn portion(&self, form: Form, position: u32) -> Option<Portion> {
        let encoded = self.forms[form.index()].as_ref()?;
        if encoded.ends.is_empty() {
            return Some(self.whole(encoded));
        }
        let key = (form.index(), position);
        let first = self.unheard.partition_point(|one| (one.form.index(), one.position) < key);
        let own = self.unheard[first..].iter().take_while(|one| (one.form.index(), one.position) == key);
        let messages = self.messages - own.clone().count() as u32;
        if messages == self.messages {
            return Some(self.whole(encoded));
        }
        let mut stretches = Vec::new();
        let mut from = 0;
        let mut add = |stretch: Range<usize>| {
            if !stretch.is_empty() {
                stretches.push(Rc::new(encoded.frames.slice(stretch)));
            }
        };
        for Unheard { message, .. } in own {
            let message = *message as usize;
            let start = message.checked_sub(1).map_or(0, |before| encoded.ends[before]);
            add(from..start as usize);
            from = encoded.ends[message] as usize;
        }
        add(from..encoded.frames.len());
        (messages > 0).then_some(Portion { frames: Pieces::Stretches(stretches), messages })
    }

    fn whole(&self, encoded: &Encoded) -> Portion {
        Portion { frames: Pieces::Whole(encoded.frames.clone()), messages: self.messages }
    }
}

/// A seat of a live member.
pub(super) fn seat(channel: ChannelId, form: Form, position: u32, echo: bool) -> Seat {
    Seat { channel, position, place: Place::Live(form), echo }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HistoryLimits =
        HistoryLimits { messages_max: 0, bytes_max: 1, age_ms: 1, total_bytes_max: 1 };

    fn channel_of(members: u32) -> Channel {
        let mut channel = Channel::new("x".into(), 0);
        for key in 0..members {
            assert_eq!(channel.join(Form::Raw, SlotId { key, generation: 0 }), key);
        }
        channel
    }

    fn publish(channel: &mut Channel, payload: &[u8], unheard_by: Option<u32>) -> bool {
        let seat = unheard_by.map(|position| seat(ChannelId(0), Form::Raw, position, false));
        channel.publish(channel.last + 1, Kind::Text, payload, Sender::default(), seat)
    }

    fn seal(channel: &mut Channel) -> Option<Sealed> {
        channel.seal(7, &LIMITS, Moment::from_millis(0))
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
        assert!(publish(&mut channel, b"a", None));
        assert!(!publish(&mut channel, b"b", None));
        let sealed = seal(&mut channel).unwrap();
        let (one, two) = (sealed.portion(Form::Raw, 0).unwrap(), sealed.portion(Form::Raw, 1).unwrap());
        let (Pieces::Whole(one), Pieces::Whole(two)) = (one.frames, two.frames) else {
            panic!("both get all")
        };
        assert!(Rc::ptr_eq(&one, &two));
        assert_eq!(one[..], [0x81, 1, b'a', 0x81, 1, b'b']);
        assert!(seal(&mut channel).is_none());
    }

    #[test]
    fn a_form_is_made_when_somebody_wants_it() {
        let mut channel = channel_of(1);
        publish(&mut channel, b"a", None);
        let sealed = seal(&mut channel).unwrap();
        assert!(sealed.portion(Form::Envelope, 0).is_none() && sealed.portion(Form::Event, 0).is_none());
        channel.join(Form::Envelope, SlotId { key: 9, generation: 0 });
        channel.join(Form::Event, SlotId { key: 8, generation: 0 });
        publish(&mut channel, b"b", None);
        publish(&mut channel, b"c", None);
        let sealed = seal(&mut channel).unwrap();
        let (events, messages) = text(sealed.portion(Form::Event, 0)).unwrap();
        assert_eq!(
            String::from_utf8(events).unwrap(),
            "22\r\nid: 7-2\ndata: b\n\nid: 7-3\ndata: c\n\n\r\n",
            "one chunk for the batch"
        );
        assert_eq!(messages, 2);
        let (frames, _) = text(sealed.portion(Form::Envelope, 0)).unwrap();
        let expected = [&b"\x81\x29"[..], br#"{"ch":"x","id":"7-2","n":2,"text":"b"}"#].concat();
        assert_eq!(frames[2..2 + expected.len() - 2], expected[2..]);
    }

    #[test]
    fn who_asks_not_to_hear_itself_does_not() {
        let mut channel = channel_of(3);
        publish(&mut channel, b"a", Some(2));
        publish(&mut channel, b"b", Some(0));
        publish(&mut channel, b"c", Some(2));
        publish(&mut channel, b"d", None);
        let sealed = seal(&mut channel).unwrap();
        let portion = |position| text(sealed.portion(Form::Raw, position));
        assert_eq!(portion(0), Some((b"\x81\x01a\x81\x01c\x81\x01d".to_vec(), 3)));
        assert_eq!(portion(1).unwrap().1, 4);
        assert_eq!(portion(2), Some((b"\x81\x01b\x81\x01d".to_vec(), 2)));
        let Pieces::Whole(batch) = sealed.portion(Form::Raw, 1).unwrap().frames else { panic!("all of it") };
        let batch = batch.as_ptr_range();
        for piece in sealed.portion(Form::Raw, 2).unwrap().frames.as_slice() {
            assert!(batch.contains(&piece.as_ptr()), "a stretch is a slice, not a copy");
        }
        publish(&mut channel, b"alone", Some(1));
        assert!(seal(&mut channel).unwrap().portion(Form::Raw, 1).is_none());
    }

    #[test]
    fn the_last_member_moves_into_the_free_place() {
        let mut channel = channel_of(3);
        let at = |position| seat(ChannelId(4), Form::Raw, position, true);
        let moved = Moved { member: SlotId { key: 2, generation: 0 }, channel: ChannelId(4), position: 0 };
        assert_eq!(channel.leave(at(0)), Some(moved));
        assert_eq!(channel.leave(at(1)), None);
        assert_eq!(channel.members(), 1);
    }
}
