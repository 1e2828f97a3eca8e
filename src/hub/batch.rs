//! The messages of a channel in one turn: collected as frames, finished once, and shared by all subscribers.
//!
//! **Encode once**: a finished batch has one encoding for each form that has subscribers, and a subscriber is usually
//! sent the whole batch. Subscribers that skip messages are sent ranges of the same memory.

use std::ops::Range;
use std::rc::Rc;

use bytes::Bytes;

use super::compression::{BatchCompression, ChannelContext, CompressedBatch};
use super::epochs::EpochStart;
use super::history::BatchEntry;
use crate::ids::{Sender, SlotId};
use crate::wire::deflate::{Deflater, Encoding, WindowEnd};
use crate::wire::{self, Form, Frames, Kind, Message};

/// The messages that were published since the last batch was finished, as frames one after the other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    frames: Vec<u8>,
    entries: Vec<BatchEntry>,
    exclusions: Vec<Exclusion>,
}

impl Batch {
    /// Frames a message; returns true if it is the first.
    pub(super) fn push(&mut self, log_index: u64, kind: Kind, payload: &[u8], sender: Sender) -> bool {
        wire::append_message(&mut self.frames, kind, payload);
        self.entries.push(BatchEntry { end: self.frames.len() as u32, log_index, kind, sender });
        self.entries.len() == 1
    }

    /// The number of messages in the batch.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if the batch has no message.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a message with its index in the log. `next_number` is the number of the channel's next message.
    pub(super) fn message<'a>(
        &'a self,
        index: usize,
        channel: &'a str,
        epoch: EpochStart,
        next_number: u64,
    ) -> (u64, Message<'a>) {
        let number = next_number - (self.entries.len() - index) as u64;
        let of = MessagesOf { channel, epoch, number: number - index as u64 };
        (self.entries[index].log_index, of.message(&self.frames, &self.entries, index))
    }

    /// The index in the log of the message that is this far from the end.
    pub(super) fn log_index_from_end(&self, from_end: usize) -> Option<u64> {
        let index = self.entries.len().checked_sub(from_end)?;
        self.entries.get(index).map(|entry| entry.log_index)
    }

    /// The messages that a live subscriber has yet to be sent.
    pub(super) fn unsent(&self, subscriber: SlotId) -> impl Iterator<Item = usize> {
        let own = self.exclusions.iter().filter(move |one| one.subscriber == subscriber);
        let mut skipped: Vec<(u32, u32)> = own.map(|one| (one.first, one.end)).collect();
        skipped.sort_unstable();
        let mut at = 0;
        (0..self.entries.len()).filter(move |&message| {
            while skipped.get(at).is_some_and(|&(_, end)| end as usize <= message) {
                at += 1;
            }
            skipped.get(at).is_none_or(|&(first, _)| message < first as usize)
        })
    }

    /// Records messages that a subscriber is not sent.
    pub(super) fn exclude(&mut self, form: Form, subscriber: SlotId, messages: Range<usize>) {
        let (first, end) = (messages.start as u32, messages.end as u32);
        match self.exclusions.last_mut() {
            Some(last) if last.subscriber == subscriber && last.first <= first && first <= last.end => {
                last.end = last.end.max(end);
            }
            _ if first < end => self.exclusions.push(Exclusion { form, subscriber, first, end }),
            _ => {}
        }
    }

    /// Completes the batch. Its frames lose their spare capacity if `is_stored`, which would be stored with them.
    pub(super) fn finish(
        self,
        name: Rc<str>,
        epoch: EpochStart,
        number: u64,
        compression: BatchCompression,
        is_stored: bool,
    ) -> FinishedBatch {
        let Batch { mut frames, entries, mut exclusions } = self;
        if is_stored {
            frames.shrink_to_fit();
        }
        exclusions.sort_by_key(|one| (one.key(), one.first));
        let raw = Rc::new(Bytes::from(frames));
        FinishedBatch {
            forms: Default::default(),
            name,
            epoch,
            number,
            raw,
            entries,
            exclusions,
            compression,
        }
    }
}

/// The properties that the messages of one batch share.
struct MessagesOf<'a> {
    channel: &'a str,
    epoch: EpochStart,
    /// The number of the first message in the channel.
    number: u64,
}

impl<'a> MessagesOf<'a> {
    fn message(&self, frames: &'a [u8], entries: &'a [BatchEntry], index: usize) -> Message<'a> {
        let BatchEntry { end, log_index, kind, ref sender } = entries[index];
        let start = index.checked_sub(1).map_or(0, |before| entries[before].end);
        Message {
            channel: self.channel,
            id: self.epoch.id(log_index),
            number: self.number + index as u64,
            sender,
            kind,
            payload: wire::payload_of(&frames[start as usize..end as usize]),
        }
    }
}

/// Messages of a batch that a subscriber is not sent: its own (`?echo=0`), those from before it subscribed, and those
/// that it was sent before the others.
///
/// The subscriber is identified by its slot: when the batch is finished, it may have another position, or none.
#[derive(Clone, Copy, Debug)]
struct Exclusion {
    form: Form,
    subscriber: SlotId,
    first: u32,
    end: u32,
}

impl Exclusion {
    fn key(&self) -> (u32, u32) {
        (self.subscriber.key, self.subscriber.generation)
    }
}

/// A batch that is complete.
#[derive(Debug)]
pub struct FinishedBatch {
    forms: [Option<Encoded>; Form::COUNT],
    name: Rc<str>,
    /// The epoch of the messages.
    epoch: EpochStart,
    /// The number of the first message in the channel.
    number: u64,
    /// The messages as raw frames.
    raw: Frames,
    entries: Vec<BatchEntry>,
    /// Sorted by subscriber, and for each subscriber in the order of the messages.
    exclusions: Vec<Exclusion>,
    pub(super) compression: BatchCompression,
}

/// The position at which a subscriber's part of a batch begins.
#[derive(Clone, Copy, Debug)]
pub struct BatchStart {
    /// The number in the log before the first message.
    pub(super) log_index: u64,
    /// The number of the first message in the channel.
    pub(super) number: u64,
}

/// A batch in one form, shared by all its subscribers.
#[derive(Debug)]
struct Encoded {
    frames: Frames,
    /// The ends of its messages; empty if all subscribers are sent the whole batch.
    ends: Vec<u32>,
    /// At least one subscriber is not sent the whole batch.
    is_cut: bool,
}

/// The messages of a batch for one subscriber.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The frames.
    pub frames: Slices,
    /// The number of messages in them.
    pub messages: u32,
}

/// The frames of a delivery.
#[derive(Clone, Debug)]
pub enum Slices {
    /// One piece.
    Whole(Frames),
    /// Several pieces, in order.
    Ranges(Rc<[Frames]>),
    /// One piece of compressed frames.
    Compressed(Rc<CompressedBatch>),
}

impl Slices {
    /// The pieces in order.
    pub fn as_slice(&self) -> &[Frames] {
        match self {
            Slices::Whole(frames) => std::slice::from_ref(frames),
            Slices::Ranges(ranges) => ranges,
            Slices::Compressed(batch) => std::slice::from_ref(&batch.deflated.frames),
        }
    }

    /// Pieces from a list; `None` if the list is empty.
    pub(super) fn from_list(mut list: Vec<Frames>) -> Option<Slices> {
        match list.len() {
            0 => None,
            1 => list.pop().map(Slices::Whole),
            _ => Some(Slices::Ranges(list.into())),
        }
    }
}

impl FinishedBatch {
    /// Encodes the messages in one form that has subscribers. If `merges`, the batch may be merged with others.
    pub(super) fn encode(&mut self, form: Form, merges: bool) {
        self.forms[form.index()] = Some(self.encoded(form, merges));
    }

    /// The messages as raw frames, and their positions in the frames.
    pub(super) fn stored(&self) -> (&Frames, &[BatchEntry]) {
        (&self.raw, &self.entries)
    }

    fn encoded(&self, form: Form, merges: bool) -> Encoded {
        let is_cut = self.exclusions.iter().any(|one| one.form == form);
        let wants_ends = is_cut || (merges && form == Form::Envelope);
        if form == Form::Raw {
            let ends = if wants_ends { self.entries.iter().map(|entry| entry.end).collect() } else { vec![] };
            return Encoded { frames: self.raw.clone(), ends, is_cut };
        }
        let mut out = form.begin(self.raw.len() + 128 * self.entries.len());
        let mut ends = Vec::new();
        for message in 0..self.entries.len() {
            self.message(message).append_as(form, &mut out);
            if wants_ends {
                ends.push(out.len() as u32);
            }
        }
        Encoded { frames: Rc::new(form.finish(out)), ends, is_cut }
    }

    fn message(&self, index: usize) -> Message<'_> {
        let of = MessagesOf { channel: &self.name, epoch: self.epoch, number: self.number };
        of.message(&self.raw, &self.entries, index)
    }

    /// The messages for a subscriber: usually the whole batch, without those that the subscriber skips. `None` if no
    /// message is left.
    pub fn delivery(&self, form: Form, subscriber: SlotId) -> Option<Delivery> {
        let encoded = self.forms[form.index()].as_ref()?;
        if !encoded.is_cut || self.gets_all(subscriber) {
            let messages = self.entries.len() as u32;
            return Some(Delivery { frames: Slices::Whole(encoded.frames.clone()), messages });
        }
        let received = self.received_ranges(subscriber);
        let messages = received.iter().map(|range| range.len() as u32).sum();
        let frames = match form {
            Form::Raw | Form::Envelope => {
                let ranges = received.into_iter().map(|range| encoded.slice(range)).collect();
                Slices::from_list(ranges)?
            }
            // A chunk of the transfer coding cannot be cut.
            Form::Event | Form::EventUntilClose | Form::EnvelopeEvent | Form::EnvelopeEventUntilClose => {
                let mut messages = received.into_iter().flatten().peekable();
                messages.peek()?;
                let piece = form.piece(|out| messages.for_each(|one| self.message(one).append_as(form, out)));
                Slices::Whole(Rc::new(piece))
            }
        };
        Some(Delivery { frames, messages })
    }

    /// The messages for a subscriber, in the encoding of its connection. A subscriber that is not sent the whole batch
    /// receives uncompressed frames, since its window would end with another message than those of other subscribers.
    pub fn encoded_delivery(
        &mut self,
        form: Form,
        subscriber: SlotId,
        encoding: Encoding,
        subscribers: usize,
        deflater: &mut Deflater,
    ) -> Option<Delivery> {
        let delivery = self.delivery(form, subscriber)?;
        let Slices::Whole(plain) = &delivery.frames else { return Some(delivery) };
        if encoding == Encoding::Plain || delivery.messages as usize != self.entries.len() {
            return Some(delivery);
        }
        match self.compression.encode(form, plain, encoding, subscribers, deflater) {
            Some(batch) => Some(Delivery { frames: Slices::Compressed(batch), ..delivery }),
            None => Some(delivery),
        }
    }

    /// Returns the number in the log of the last message that is compressed in the form of `oyez.v1`, and the window
    /// that ends with it.
    pub(super) fn last_compressed_envelope(&mut self, deflater: &mut Deflater) -> Option<(u64, WindowEnd)> {
        let plain = &self.forms[Form::Envelope.index()].as_ref()?.frames;
        let (index, window) = self.compression.last(Form::Envelope, plain, deflater)?;
        Some((self.entries[index].log_index, window))
    }

    /// Limits the context after the batch to the messages after `log_index`: the windows of some `oyez.v1` subscribers
    /// end with these, and with no earlier ones.
    pub(super) fn start_context_after(&mut self, log_index: u64) {
        let start = self.entries.partition_point(|entry| entry.log_index <= log_index);
        self.compression.start_context_at(Form::Envelope, start);
    }

    /// Returns the context of the channel after the batch.
    pub(super) fn into_context(
        self,
        bytes_per_subscriber: usize,
        deflater: &Deflater,
    ) -> Option<Box<ChannelContext>> {
        let FinishedBatch { forms, compression, .. } = self;
        let plain = |form: Form| forms[form.index()].as_ref().map(|encoded| &encoded.frames);
        compression.into_context(plain, bytes_per_subscriber, deflater)
    }

    /// Returns true if this is a batch of the channel that owns the name.
    pub(super) fn is_of(&self, name: &str) -> bool {
        std::ptr::eq(&*self.name, name)
    }

    /// The messages that a subscriber is sent, as ranges.
    pub(super) fn received_ranges(&self, subscriber: SlotId) -> Vec<Range<usize>> {
        let mut received = Vec::new();
        let mut from = 0;
        for one in self.exclusions_of(subscriber) {
            if from < one.first {
                received.push(from as usize..one.first as usize);
            }
            from = from.max(one.end);
        }
        if (from as usize) < self.entries.len() {
            received.push(from as usize..self.entries.len());
        }
        received
    }

    fn exclusions_of(&self, subscriber: SlotId) -> impl Iterator<Item = &Exclusion> {
        let key = (subscriber.key, subscriber.generation);
        let first = self.exclusions.partition_point(|one| one.key() < key);
        self.exclusions[first..].iter().take_while(move |one| one.key() == key)
    }

    /// Returns true if the subscriber is sent the whole batch.
    pub(super) fn gets_all(&self, subscriber: SlotId) -> bool {
        self.exclusions_of(subscriber).next().is_none()
    }

    /// The position before the first message for a subscriber whose outbox had no room.
    pub fn start_for(&self, subscriber: SlotId) -> BatchStart {
        let first = self.received_ranges(subscriber).first().map_or(self.entries.len(), |range| range.start);
        let log_index = match first.checked_sub(1) {
            Some(before) => self.entries[before].log_index,
            None => self.entries[0].log_index - 1,
        };
        BatchStart { log_index, number: self.number + first as u64 }
    }

    /// Returns the number of messages.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn log_index(&self, message: usize) -> u64 {
        self.entries[message].log_index
    }

    /// A range of messages in the form of `oyez.v1`, of a batch that was finished to be merged.
    pub(super) fn envelopes(&self, messages: Range<usize>) -> Option<Frames> {
        let encoded = self.forms[Form::Envelope.index()].as_ref()?;
        Some(encoded.slice(messages))
    }
}

impl Encoded {
    fn slice(&self, messages: Range<usize>) -> Frames {
        if messages.len() == self.ends.len() {
            return self.frames.clone();
        }
        let start = messages.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = self.ends[messages.end - 1];
        Rc::new(self.frames.slice(start as usize..end as usize))
    }
}
