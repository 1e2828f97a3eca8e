//! Takes the place of the module `deflate` in a build without the cargo feature `deflate`: no message is compressed.

use std::num::NonZeroU32;

use bytes::Bytes;

use super::Frames;
use crate::config::DeflateSettings;

/// The number of a compressed message, which does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowEnd(NonZeroU32);

/// How messages to a connection are encoded: always as [`Encoding::Plain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Plain,
    /// Each compressed without reference to others.
    Alone,
    /// Compressed with reference to the message that ends the connection's window.
    Context(Option<WindowEnd>),
}

/// The text that a compressed message may refer to.
#[derive(Clone, Copy, Debug)]
pub enum Context<'a> {
    /// None, and to no other message of its batch either.
    Alone,
    /// None.
    Fresh,
    /// The message that ends the window.
    After(&'a [u8]),
}

/// A batch of which no message is compressed.
#[derive(Clone, Debug)]
pub struct Deflated {
    /// All of its messages, as frames.
    pub frames: Frames,
    /// The number of its compressed messages.
    pub messages: u32,
    /// The bytes of all of its messages as plain frames.
    pub plain_bytes: usize,
}

/// A compressor that compresses no message.
#[derive(Debug)]
pub struct Deflater {}

impl Deflater {
    /// A compressor; the settings have no effect.
    pub fn new(_: DeflateSettings) -> Deflater {
        Deflater {}
    }

    /// Returns the number of a compressed message. It is not called, since no message is compressed.
    pub fn next_window(&mut self) -> WindowEnd {
        WindowEnd(NonZeroU32::MAX)
    }

    /// Returns false: no numbers are used.
    pub fn is_exhausted(&self) -> bool {
        false
    }

    /// Does nothing.
    pub fn restart(&mut self) {}

    /// Does nothing.
    pub fn exhaust(&mut self) {}

    /// Returns `None`: no message is compressed.
    pub fn last_compressed(&self, _: &Bytes) -> Option<(usize, Bytes)> {
        None
    }

    /// Returns the messages as they are.
    pub fn compress<'f>(
        &mut self,
        pieces: impl Iterator<Item = &'f [u8]> + Clone,
        _: Context<'_>,
    ) -> Deflated {
        let plain: Vec<u8> = pieces.flatten().copied().collect();
        Deflated { plain_bytes: plain.len(), frames: Frames::new(plain.into()), messages: 0 }
    }
}
