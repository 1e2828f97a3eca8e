//! The buffer in which consecutive responses to one connection become one piece of its outbox.

use std::mem;

use bytes::Bytes;

use crate::ids::SlotId;

/// The buffer keeps this capacity between turns: the responses to 16 KiB of the shortest messages, which one read
/// takes.
const GATHER_BUFFER_BYTES: usize = 64 << 10;

/// The responses to one connection that are not in its outbox yet.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) to: Option<SlotId>,
    pub(super) frames: Vec<u8>,
}

impl Gathered {
    /// Returns true if nothing was gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.to.is_none()
    }

    /// Takes the connection and its responses, as one piece.
    pub(super) fn take(&mut self) -> Option<(SlotId, Bytes)> {
        let id = self.to.take()?;
        let frames = if self.frames.capacity() <= GATHER_BUFFER_BYTES {
            let frames = Bytes::copy_from_slice(&self.frames);
            self.frames.clear();
            frames
        } else {
            let mut frames = mem::take(&mut self.frames);
            frames.shrink_to_fit();
            frames.into()
        };
        Some((id, frames))
    }
}
