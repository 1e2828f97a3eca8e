//! One connection: its socket, its session, its outbox, its subscriptions, and its memberships of lists.

use crate::config::Limits;
use crate::hub::subscriptions::Subscriptions;
use crate::hub::{Subscription, SubscriptionState};
use crate::ids::{ChannelId, Peer};
use crate::net::outbox::{FlushOutcome, Outbox, SlowConsumerLimits};
use crate::net::transport::Transport;
use crate::session::State;
use crate::session::http::extensions::Compression;
use crate::time::LoopTime;
use crate::wire::deflate::Encoding;

/// One connection.
///
/// Its size is the cost of an idle connection, in addition to its subscription in the hub and its socket in the kernel;
/// a test below bounds it. The fields that a delivery touches (state, outbox) are not separate from the rest: the whole
/// slot is little over one cache line.
#[derive(Debug)]
pub struct Slot<T> {
    /// The socket.
    pub transport: T,
    /// The session.
    pub state: State,
    /// Frames that are not written yet.
    pub outbox: Outbox,
    /// Its positions in the hub.
    pub subscriptions: Subscriptions,
    /// The address of the peer.
    pub peer: Peer,
    pub(super) generation: u32,
    pub(super) flags: SlotFlags,
}

/// Queue memberships, facts of the socket, and facts of the connection, in the order of their bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotFlags(u16);

impl SlotFlags {
    // Queue memberships.

    /// In one of the ready queues.
    pub(super) const READY: u16 = 1 << 0;
    /// Its last read cost more than that of a sparse connection: its next event puts it into the second ready queue.
    pub(super) const BUSY: u16 = 1 << 1;
    /// On the refill list, for the next slice of a replay or of a response.
    pub(super) const REFILL: u16 = 1 << 2;
    /// In the queue of replays that wait for the memory that their next message takes.
    pub(super) const WAITS_FOR_MEMORY: u16 = 1 << 3;
    /// On the list of connections to reap.
    pub(super) const TO_REAP: u16 = 1 << 4;

    // Facts of the socket.

    /// An event reported that the peer has shut down its sending side. The event may arrive with the last bytes, and no
    /// other event follows: a short read does not mean that all bytes are read.
    pub(super) const READ_CLOSED: u16 = 1 << 5;
    /// A write failed and the queued frames are dropped. The bytes that arrived before are read, then the connection is
    /// closed.
    pub(super) const WRITE_FAILED: u16 = 1 << 6;
    /// Not read until its outbox is empty.
    pub(super) const READ_PAUSED: u16 = 1 << 7;
    /// Responses to it are in its outbox.
    pub(super) const RESPONSE_QUEUED: u16 = 1 << 8;
    /// Its close frame is queued: no frame may follow it (RFC 6455 5.5.1). It is queued when the intent to close is
    /// applied, later than the state of the session changes, so that messages published earlier in the same turn
    /// precede it.
    pub(super) const CLOSE_QUEUED: u16 = 1 << 9;

    // Facts of the connection.

    /// Catching up from the history of a channel, one slice each time its outbox is empty.
    pub(super) const REPLAYING: u16 = 1 << 10;
    /// Pauses the publishers of its channels: see [`super::pressure`].
    pub(super) const THROTTLING: u16 = 1 << 11;
    /// A paused publisher: it has published on a channel under pressure.
    pub(super) const PUBLISHING_PAUSED: u16 = 1 << 12;
    /// Its close frame waits for the acknowledgements of its messages, which a shared log confirms.
    pub(super) const CLOSE_HELD: u16 = 1 << 13;
    /// Its subscription waits for entries of a shared log. It is not read meanwhile.
    pub(super) const WAITS_FOR_LOG: u16 = 1 << 14;

    pub(super) fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Sets a flag. Returns true if it was not set before.
    pub(super) fn set(&mut self, flag: u16) -> bool {
        let is_new = !self.has(flag);
        self.0 |= flag;
        is_new
    }

    pub(super) fn clear(&mut self, flag: u16) {
        self.0 &= !flag;
    }
}

impl<T: Transport> Slot<T> {
    /// Returns true if an event reported that the peer has shut down its sending side.
    pub fn is_read_closed(&self) -> bool {
        self.flags.has(SlotFlags::READ_CLOSED)
    }

    /// Returns true if a write has failed.
    pub fn has_write_failed(&self) -> bool {
        self.flags.has(SlotFlags::WRITE_FAILED)
    }

    /// Returns true if it is not read until its outbox is empty.
    pub fn is_read_paused(&self) -> bool {
        self.flags.has(SlotFlags::READ_PAUSED)
    }

    /// Returns true if responses are queued, which the peer has to receive before it is read again.
    pub fn has_unsent_responses(&self) -> bool {
        self.flags.has(SlotFlags::RESPONSE_QUEUED) && !self.is_flushed()
    }

    /// Returns true if it pauses the publishers of its channels.
    pub fn is_throttling(&self) -> bool {
        self.flags.has(SlotFlags::THROTTLING)
    }

    /// Records whether it throttles its channels. Returns true if that is a change.
    pub(super) fn set_throttling(&mut self, is_throttling: bool) -> bool {
        let was_throttling = self.is_throttling();
        if is_throttling {
            self.flags.set(SlotFlags::THROTTLING);
        } else {
            self.flags.clear(SlotFlags::THROTTLING);
        }
        was_throttling != is_throttling
    }

    /// Returns true if it is a paused publisher.
    pub fn is_publishing_paused(&self) -> bool {
        self.flags.has(SlotFlags::PUBLISHING_PAUSED)
    }

    /// Returns true if the responses in its outbox are not to be sent yet: it is a paused publisher by HTTP.
    pub fn is_withheld(&self) -> bool {
        self.is_publishing_paused()
            && !matches!(self.state, State::Open(_) | State::Streaming(_) | State::Dead(_))
    }

    /// Records that a response is in the outbox.
    pub(super) fn mark_response_queued(&mut self) {
        self.flags.set(SlotFlags::RESPONSE_QUEUED);
    }

    /// Returns true if it is catching up from the history of a channel.
    pub fn is_replaying(&self) -> bool {
        self.flags.has(SlotFlags::REPLAYING)
    }

    /// Returns true if its replay waits for memory.
    pub fn waits_for_memory(&self) -> bool {
        self.flags.has(SlotFlags::WAITS_FOR_MEMORY)
    }

    /// Returns true if its close frame waits for the acknowledgements of its messages.
    pub fn is_close_held(&self) -> bool {
        self.flags.has(SlotFlags::CLOSE_HELD)
    }

    /// Returns true if its subscription waits for entries of a shared log.
    pub fn waits_for_log(&self) -> bool {
        self.flags.has(SlotFlags::WAITS_FOR_LOG)
    }

    /// Returns a subscription that is catching up, if there is one.
    pub fn next_replay(&self) -> Option<Subscription> {
        self.subscriptions
            .as_slice()
            .iter()
            .find(|subscription| subscription.state == SubscriptionState::CatchingUp)
            .copied()
    }

    /// Returns true if its close frame is queued, or the connection is closing without one.
    pub fn is_close_queued(&self) -> bool {
        self.flags.has(SlotFlags::CLOSE_QUEUED)
    }

    /// Returns true if frames can be queued for it: none may follow its close frame (RFC 6455 5.5.1).
    pub fn can_send(&self) -> bool {
        !self.is_close_queued() && !matches!(self.state, State::Dead(_))
    }

    /// Returns true if it is in a ready queue.
    pub fn is_ready(&self) -> bool {
        self.flags.has(SlotFlags::READY)
    }

    /// Returns true if published messages are sent to it. They are until its close frame is queued (RFC 6455 5.5.1
    /// forbids data after it) or its socket has failed.
    pub fn takes_broadcast(&self) -> bool {
        !self.subscriptions.is_empty() && !self.has_write_failed() && !matches!(self.state, State::Dead(_))
    }

    /// How the messages of a channel are encoded for it.
    pub fn encoding(&self, channel: ChannelId) -> Encoding {
        match self.state.compression() {
            Compression::None | Compression::Inbound => Encoding::Plain,
            Compression::Alone => Encoding::Alone,
            Compression::Context => Encoding::Context(self.subscriptions.window(channel)),
        }
    }

    /// Returns true if a flush has work to do.
    pub(super) fn wants_flush(&self) -> bool {
        let has_news = match self.outbox {
            Outbox::Empty => self.state.ends_with_flush() && self.is_flushed() && !self.is_close_held(),
            _ => !self.outbox.is_blocked(),
        };
        !self.is_withheld() && (has_news || self.transport.wants_write())
    }

    /// Memory that would be freed with it: its share of its outbox, and its incomplete message or request.
    pub fn freeable_bytes(&self) -> usize {
        self.outbox.freeable_bytes() + self.state.held_bytes() + self.transport.buffered_bytes()
    }

    /// Returns true if the socket has taken all bytes.
    pub fn is_flushed(&self) -> bool {
        is_flushed(&self.outbox, &self.transport)
    }

    /// Writes the bytes that the transport holds back, followed by the outbox.
    pub fn flush(&mut self, slow_limits: SlowConsumerLimits, now: LoopTime) -> (usize, FlushOutcome) {
        // Before the TLS handshake is complete the transport accepts no bytes of the outbox.
        if let Err(error) = self.transport.write_pending() {
            return (0, FlushOutcome::Failed(error));
        }
        match self.outbox.flush(&mut self.transport, slow_limits, now) {
            (written, FlushOutcome::Drained) if self.transport.has_pending_write() => {
                (written, FlushOutcome::Blocked)
            }
            (written, FlushOutcome::Drained) => {
                self.flags.clear(SlotFlags::RESPONSE_QUEUED);
                (written, FlushOutcome::Drained)
            }
            flushed => flushed,
        }
    }

    /// Records that the socket accepts bytes again, or that a write is to be tried.
    pub fn unblock(&mut self) {
        self.outbox.unblock();
        self.transport.unblock();
    }

    /// Returns true if the socket has accepted no bytes, or too few, for too long.
    pub(super) fn has_stalled(&mut self, limits: &Limits, now: LoopTime) -> bool {
        if self.outbox.is_empty() {
            return self.transport.is_write_late(now, limits.slow_timeout_ms);
        }
        self.outbox.stalls_at(SlowConsumerLimits::of(limits)).is_some_and(|time| time.is_due(now))
    }

    /// Spreads the pings: a multiplicative hash, so that neighbours in the slab are far apart in time.
    pub fn ping_offset(&self) -> u32 {
        self.generation.wrapping_mul(0x9e37_79b1) >> 8
    }
}

/// Returns true if the socket has taken all bytes of an outbox and its transport.
pub(super) fn is_flushed(outbox: &Outbox, transport: &impl Transport) -> bool {
    outbox.is_empty() && !transport.has_pending_write()
}

#[cfg(test)]
mod tests {
    use super::Slot;

    #[test]
    fn slot_has_at_most_80_bytes() {
        // Release builds; in debug builds mio's socket also knows its poll.
        assert!(size_of::<Slot<i32>>() <= 80, "{}", size_of::<Slot<i32>>());
        // TLS state is in a separate box.
        assert!(size_of::<Slot<Box<()>>>() <= 88, "{}", size_of::<Slot<Box<()>>>());
    }
}
