//! Compression of outbound messages (permessage-deflate, RFC 7692 7.2.1): once for all subscribers of a channel.
//!
//! A compressor with context refers to the last 32 KiB that it has sent on its connection. It is usually a compressor
//! per connection, which takes memory and time for each. But the windows of all live subscribers of a channel *end with
//! the channel's last compressed messages*: all those since the newest subscriber was sent its first. So one compressor
//! serves the whole process: it is primed with exactly these messages, the channel's *context*, and its output is valid
//! for all of these subscribers. A small message that resembles earlier ones is then encoded almost as a difference to
//! them.
//!
//! **Which message ends a window** is known for each connection: a [`WindowEnd`] is the number of a compressed message
//! in one format. A connection takes the number of the last compressed message that was queued for it, and a channel
//! that of the last message that it compressed. A connection is *in step* with a channel if and only if both numbers
//! are the same. A connection that has missed a message, for whatever reason, has another number: it receives the next
//! batch *fresh*, that is without reference to earlier ones, and is in step after that. `hub::compression` determines
//! how far back the windows of all connections in step are the same.
//!
//! Whether a message is compressed depends on its channel (`--deflate-exclude`) and its frame (text, and at least
//! `--deflate-bytes-min` bytes), so it is the same for all subscribers of the channel. Each message stays a separate
//! frame; the frames of a batch lie end to end.

use std::num::NonZeroU32;
use std::rc::Rc;

use bytes::Bytes;

use super::Frames;
use super::deflate_level::{self, BatchSize};
use super::frame::{self, FrameSlice};
use super::zlib::{Deflate, DeflateFlush};
use crate::config::DeflateSettings;

/// The window of the decompressors, 32 KiB: connections that negotiated a smaller one receive plain messages.
const WINDOW_BITS: u8 = 15;
/// The size of a window.
pub const WINDOW_BYTES: usize = 1 << WINDOW_BITS;

/// RFC 7692 7.2.1: the end of a sync flush, which is not sent.
const REMOVED_TAIL_BYTES: usize = 4;

/// Maximum number of messages of a batch that are compressed alone; the others are sent uncompressed. A reset of the
/// compressor takes 1 to 5 us, and a turn may publish 4,000 messages of 64 bytes, which become little smaller.
const ALONE_MESSAGES_MAX: u32 = 256;

/// The number of a compressed message: the window of a connection that has received it last ends with it.
///
/// The numbers are those of one process, in all channels and formats. They are not used again: see
/// [`Deflater::is_exhausted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowEnd(NonZeroU32);

/// How messages to a connection are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Plain,
    /// Each message is compressed without reference to others: `server_no_context_takeover` was negotiated.
    Alone,
    /// Compressed with reference to the message that ends the connection's window, if there is one.
    Context(Option<WindowEnd>),
}

/// The text that a compressed message may refer to, in addition to the messages before it in its batch.
#[derive(Clone, Copy, Debug)]
pub enum Context<'a> {
    /// No text, not even that of other messages of its batch.
    Alone,
    /// No text of earlier batches.
    Fresh,
    /// The messages that end the window.
    After {
        /// The messages before the last one, end to end.
        earlier: &'a [u8],
        /// The last one.
        last: &'a [u8],
    },
}

/// A batch of which some messages are compressed.
#[derive(Clone, Debug)]
pub struct Deflated {
    /// All of its messages, as frames.
    pub frames: Frames,
    /// The number of its compressed messages.
    pub messages: u32,
    /// The bytes of all of its messages as plain frames.
    pub plain_bytes: usize,
}

/// The compressor.
pub struct Deflater {
    settings: DeflateSettings,
    last_window: u32,
    /// `None` until the first message.
    state: Option<Box<DeflaterState>>,
}

struct DeflaterState {
    deflate: Deflate,
    level: u8,
    /// The compressed message.
    out: Vec<u8>,
}

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater").field("last_window", &self.last_window).finish_non_exhaustive()
    }
}

impl Deflater {
    /// A compressor without memory, which is allocated with the first message.
    pub fn new(settings: DeflateSettings) -> Deflater {
        Deflater { settings, last_window: 0, state: None }
    }

    /// Returns the number of a compressed message.
    pub fn next_window(&mut self) -> WindowEnd {
        self.last_window = self.last_window.saturating_add(1);
        WindowEnd(NonZeroU32::new(self.last_window).unwrap_or(NonZeroU32::MAX))
    }

    /// Returns true if the numbers of compressed messages are nearly used up: all connections and channels must forget
    /// theirs, followed by [`Deflater::restart`]. With a thousand messages a second that happens every 49 days.
    pub fn is_exhausted(&self) -> bool {
        self.last_window > u32::MAX - WINDOWS_RESERVED
    }

    /// Counts from the beginning.
    pub fn restart(&mut self) {
        self.last_window = 0;
    }

    /// Pretends that nearly all numbers are used; for tests.
    pub fn exhaust(&mut self) {
        self.last_window = u32::MAX - WINDOWS_RESERVED;
    }

    /// Returns the texts of the messages in `frames` that are compressed, and their indexes.
    pub fn compressed_texts<'f>(&self, frames: &'f [u8]) -> impl Iterator<Item = (usize, &'f [u8])> {
        let compressed = frame::frames_of(frames).enumerate().filter(|(_, frame)| self.compresses(frame));
        compressed.map(|(index, frame)| (index, frame.payload))
    }

    /// Returns the last message in `frames` that is compressed: its index, and its end, as far as a window holds it.
    pub fn last_compressed(&self, frames: &Bytes) -> Option<(usize, Bytes)> {
        let (index, last) = self.compressed_texts(frames).last()?;
        let text = window_of(last);
        // A slice would keep all of the batch.
        let is_most = frames.len() <= 2 * text.len();
        Some((index, if is_most { frames.slice_ref(text) } else { Bytes::copy_from_slice(text) }))
    }

    /// Returns true for messages that are compressed, for all subscribers.
    fn compresses(&self, frame: &FrameSlice<'_>) -> bool {
        frame.is_text && frame.payload.len() >= self.settings.bytes_min
    }

    /// Compresses the messages of a batch, which are given as plain frames, for this number of subscribers.
    pub fn compress<'f>(
        &mut self,
        pieces: impl Iterator<Item = &'f [u8]> + Clone,
        context: Context<'_>,
        subscribers: usize,
    ) -> Deflated {
        let plain_bytes = pieces.clone().map(<[u8]>::len).sum();
        let frames = || pieces.clone().flat_map(frame::frames_of);
        let level = self.settings.level.unwrap_or_else(|| {
            let texts = frames().filter(|frame| self.compresses(frame)).map(|frame| frame.payload.len());
            let size = texts.fold(BatchSize::default(), |size, bytes| BatchSize {
                messages: size.messages + 1,
                bytes: size.bytes + bytes,
                largest_bytes: size.largest_bytes.max(bytes),
            });
            deflate_level::level(size, subscribers)
        });
        let mut state = self.state.take().unwrap_or_else(|| Box::new(DeflaterState::new(level)));
        let mut out = Vec::with_capacity(plain_bytes / 2);
        let mut messages = 0;
        let is_alone = matches!(context, Context::Alone);
        state.begin(level, context);
        for frame in frames() {
            if !self.compresses(&frame) || (is_alone && messages == ALONE_MESSAGES_MAX) {
                out.extend_from_slice(frame.whole);
                continue;
            }
            if is_alone && messages > 0 {
                state.begin(level, context);
            }
            messages += 1;
            frame::append_compressed_text(&mut out, state.compress(frame.payload));
        }
        self.state = Some(state);
        out.shrink_to_fit();
        Deflated { frames: Rc::new(Bytes::from(out)), messages, plain_bytes }
    }
}

/// Numbers that one fan-out may use: more than there are batches in a turn.
const WINDOWS_RESERVED: u32 = 1 << 24;

impl DeflaterState {
    fn new(level: u8) -> DeflaterState {
        let deflate = Deflate::new(level.into(), false, WINDOW_BITS);
        DeflaterState { deflate, level, out: Vec::new() }
    }

    /// Forgets all text but that of the context.
    fn begin(&mut self, level: u8, context: Context<'_>) {
        self.deflate.reset();
        if self.level != level {
            self.deflate.set_level(level.into()).expect("nothing is pending after a reset");
            self.level = level;
        }
        if let Context::After { earlier, last } = context {
            let last = window_of(last);
            let earlier = tail(earlier, WINDOW_BYTES - last.len());
            for text in [earlier, last] {
                self.deflate.set_dictionary(text).expect("nothing is pending after a reset");
            }
        }
    }

    /// Compresses one message. The last block is never marked as final, which some clients do not accept.
    fn compress(&mut self, mut message: &[u8]) -> &[u8] {
        let mut length = 0;
        self.out.resize(message.len() + message.len() / 8 + 64, 0);
        loop {
            let (consumed, produced) = (self.deflate.total_in(), self.deflate.total_out());
            // Compression fails only for a compressor in an invalid state.
            self.deflate
                .compress(message, &mut self.out[length..], DeflateFlush::SyncFlush)
                .expect("the compressor takes any text");
            message = &message[(self.deflate.total_in() - consumed) as usize..];
            length += (self.deflate.total_out() - produced) as usize;
            if length < self.out.len() {
                break;
            }
            self.out.resize(2 * self.out.len(), 0);
        }
        &self.out[..length - REMOVED_TAIL_BYTES]
    }
}

/// The end of a text that a window holds.
fn window_of(text: &[u8]) -> &[u8] {
    tail(text, WINDOW_BYTES)
}

fn tail(text: &[u8], bytes_max: usize) -> &[u8] {
    &text[text.len().saturating_sub(bytes_max)..]
}
