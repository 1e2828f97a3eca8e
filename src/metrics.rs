//! What happened, counted.
//!
//! Plain integers: one thread needs no atomics. The server logs them when it ends; they are also what
//! the tests ask.

use std::fmt;

use crate::close::Reason;

/// Counters of one server since its start.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Sockets taken from the listener.
    pub connections_accepted: u64,
    /// Slots reaped, by [`Reason::index`].
    pub connections_closed: [u64; Reason::COUNT],
    /// `accept` calls that failed for want of descriptors or memory.
    pub accept_errors: u64,
    /// Messages taken in for their channel.
    pub messages_published: u64,
    /// Messages put into a member's outbox; one for each member.
    pub messages_delivered: u64,
    /// Messages that a slow member did not get (`--on-slow skip`); one for each member.
    pub messages_skipped: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// The longest turn without its wait, in microseconds.
    pub turn_micros_max: u64,
}

impl Metrics {
    /// How many connections ended with this reason.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.connections_closed[reason.index()]
    }
}

/// One line of `name=value`, the closes by reason at its end.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted={} accept_errors={} published={} delivered={} skipped={} received_bytes={} sent_bytes={} \
             turn_micros_max={}",
            self.connections_accepted,
            self.accept_errors,
            self.messages_published,
            self.messages_delivered,
            self.messages_skipped,
            self.received_bytes,
            self.sent_bytes,
            self.turn_micros_max,
        )?;
        for (word, count) in Reason::WORDS.iter().zip(self.connections_closed) {
            if count > 0 {
                write!(f, " closed_{word}={count}")?;
            }
        }
        Ok(())
    }
}
