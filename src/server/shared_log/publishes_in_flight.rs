//! The messages of WebSockets that were sent to a shared log and are not acknowledged, and the closes that wait for
//! their acknowledgements.

use std::collections::HashMap;

use bytes::Bytes;

use crate::ids::SlotId;

/// The messages in flight of all WebSockets. A connection without a message in flight has no entry.
#[derive(Debug, Default)]
pub(super) struct PublishesInFlight(HashMap<SlotId, ConnectionInFlight>);

/// The messages in flight of one WebSocket.
#[derive(Debug, Default)]
struct ConnectionInFlight {
    messages: u32,
    /// Bytes of their payloads, on the assumption that all have the same length.
    bytes: usize,
    /// The connection is not read: it has published faster than the log returns its messages.
    is_paused: bool,
    /// The close that waits for them. The completed close handshake confirms the messages of a raw WebSocket.
    close: Option<HeldClose>,
}

/// A close that waits for the acknowledgements of a connection.
#[derive(Debug)]
pub(super) struct HeldClose {
    /// The close frame; `None`: none is sent.
    pub(super) close_frame: Option<Bytes>,
}

/// What to do after a message of a WebSocket is acknowledged or has failed.
#[derive(Debug, Default)]
pub(super) struct AfterPublish {
    /// The close that has waited for it.
    pub(super) close: Option<HeldClose>,
    /// The connection is read again.
    pub(super) resumes: bool,
}

impl PublishesInFlight {
    /// Counts a message that was submitted. Returns true if its publisher now has more than `bytes_max` in flight, and
    /// is not to be read.
    pub(super) fn begin(&mut self, slot: SlotId, bytes: usize, bytes_max: usize) -> bool {
        let in_flight = self.0.entry(slot).or_default();
        in_flight.messages += 1;
        in_flight.bytes += bytes;
        in_flight.bytes > bytes_max && !std::mem::replace(&mut in_flight.is_paused, true)
    }

    /// Counts a message that was acknowledged or has failed.
    pub(super) fn end(&mut self, slot: SlotId, bytes_max: usize) -> AfterPublish {
        let Some(in_flight) = self.0.get_mut(&slot) else { return AfterPublish::default() };
        in_flight.bytes -= in_flight.bytes / in_flight.messages as usize;
        in_flight.messages -= 1;
        let resumes = in_flight.bytes <= bytes_max / 2 && std::mem::take(&mut in_flight.is_paused);
        let is_last = in_flight.messages == 0;
        let close = if is_last { self.0.remove(&slot).and_then(|last| last.close) } else { None };
        AfterPublish { close, resumes }
    }

    /// Keeps a close until the messages of its connection are acknowledged. Returns it if all of them are.
    pub(super) fn hold_close(&mut self, slot: SlotId, close: HeldClose) -> Option<HeldClose> {
        match self.0.get_mut(&slot) {
            Some(in_flight) => {
                // The first close frame is the last (RFC 6455 5.5.1).
                in_flight.close.get_or_insert(close);
                None
            }
            None => Some(close),
        }
    }

    /// Drops the close of a connection that has ended. The messages that it has submitted are published all the same.
    pub(super) fn forget(&mut self, slot: SlotId) {
        self.0.remove(&slot);
    }
}
