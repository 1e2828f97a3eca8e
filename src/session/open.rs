//! An open WebSocket: messages come, and it is asked for a sign of life.
//!
//! Between messages of somebody who is just everybody it owns no memory; what it needs beside is in a box that comes
//! and goes.

use std::rc::Rc;

use bytes::Bytes;

use super::draining::{Closing, Draining};
use super::guest::Guest;
use super::heartbeat::Heartbeat;
use super::intent::Intent;
use super::unfinished::Unfinished;
use super::upgrade::Protocol;
use super::walker::Walker;
use super::websocket::{self, Heard};
use super::{Desk, Due, FRAME_COST_BYTES_MIN, State, begin_close, commands};
use crate::close::Reason;
use crate::hub::outbox::Pace;
use crate::moment::Moment;
use crate::wire::{self, Kind};

/// An open WebSocket.
#[derive(Debug)]
pub struct Open {
    /// `None` between messages of somebody who is just everybody.
    more: Option<Box<More>>,
    pub(super) heartbeat: Heartbeat,
    protocol: Protocol,
}

/// What most open WebSockets do without, most of the time.
#[derive(Debug, Default)]
struct More {
    /// `None` between messages.
    unfinished: Option<Box<Unfinished>>,
    /// `None` for everybody.
    guest: Option<Guest>,
}

impl More {
    fn is_empty(&self) -> bool {
        self.unfinished.is_none() && self.guest.is_none()
    }
}

impl Open {
    /// One that has just been upgraded.
    pub(super) fn new(protocol: Protocol, guest: Option<Guest>, desk: &Desk<'_>) -> Open {
        let more = guest.map(|guest| Box::new(More { unfinished: None, guest: Some(guest) }));
        Open { more, heartbeat: Heartbeat::heard(desk), protocol }
    }

    /// Returns true if it speaks no subprotocol.
    pub(super) fn is_raw(&self) -> bool {
        self.protocol == Protocol::Raw
    }

    /// Who it is, unless it is everybody.
    pub(super) fn guest(&self) -> Option<&Guest> {
        self.more.as_ref()?.guest.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn guest_mut(&mut self) -> Option<&mut Guest> {
        self.more.as_mut()?.guest.as_mut()
    }

    /// Where its bytes stand, for a close. What it was in the middle of, and who it is, is forgotten.
    pub(super) fn take_walker(&mut self) -> Walker {
        walker_of(self.more.take().and_then(|more| more.unfinished))
    }

    /// The deadline of the incomplete message.
    pub(super) fn message_deadline(&self) -> Option<Moment> {
        Some(self.unfinished()?.deadline())
    }

    /// Memory of the incomplete message.
    pub(super) fn held_bytes(&self) -> usize {
        self.unfinished().map_or(0, Unfinished::held_bytes)
    }

    fn unfinished(&self) -> Option<&Unfinished> {
        self.more.as_ref()?.unfinished.as_deref()
    }

    /// The next state, if the conversation ends.
    pub(super) fn receive(&mut self, input: &[u8], desk: &mut Desk<'_>) -> Option<State> {
        if let Some(round_trip_ms) = self.heartbeat.round_trip_ms(desk) {
            desk.metrics.ping_rtt.observe(f64::from(round_trip_ms) / 1_000.0);
        }
        self.heartbeat = Heartbeat::heard(desk);
        let mut replies = Vec::new();
        let (limits, now, protocol) = (desk.limits, desk.now, self.protocol);
        // What it does without is not allocated for a message that comes in one piece.
        let mut spare = More::default();
        let More { unfinished, guest } = self.more.as_deref_mut().unwrap_or(&mut spare);
        let mut end = None;
        let (heard, frames) =
            websocket::receive(unfinished, input, limits, now, &mut replies, |kind, payload| {
                if end.is_some() {
                    return;
                }
                end = match (protocol, kind) {
                    (Protocol::Raw, _) => commands::receive_raw(kind, unpinned(payload), guest, desk),
                    // tungstenite has checked that a text is UTF-8.
                    (Protocol::V1, Kind::Text) => {
                        commands::receive(std::str::from_utf8(&payload).unwrap_or_default(), guest, desk)
                    }
                    (Protocol::V1, _) => Some(Reason::Unsupported),
                }
            });
        desk.cost += (frames * FRAME_COST_BYTES_MIN).saturating_sub(input.len());
        let walker = match end {
            Some(_) => walker_of(unfinished.take()),
            None => Walker::new(),
        };
        if self.more.is_none() && !spare.is_empty() {
            self.more = Some(Box::new(spare));
        } else if self.more.as_ref().is_some_and(|more| more.is_empty()) {
            self.more = None;
        }
        let replies = Bytes::from(replies);
        match (heard, end) {
            (Heard::Open, Some(reason)) => Some(begin_close(reason, walker, desk)),
            (Heard::Open, None) => {
                // Each ping has its pong (RFC 6455 5.5.2), in one order with the other answers. A peer that does not
                // take them is not read again, so no more of them wait than one turn reads pings.
                if !replies.is_empty() {
                    desk.intents.push(Intent::Say(replies));
                }
                None
            }
            // It takes an echo of its own code for a receipt of all that it sent before.
            (Heard::PeerClosed, Some(reason)) => {
                desk.intents.push(Intent::Leave { farewell: wire::close(reason) });
                Some(Draining::begin(reason, Closing::Flushing, desk.limits, desk.now))
            }
            (Heard::PeerClosed, None) => {
                desk.intents.push(Intent::Leave { farewell: Some(replies) });
                Some(Draining::begin(Reason::PeerClosed, Closing::Flushing, desk.limits, desk.now))
            }
            (Heard::Broken(reason), _) => {
                if !replies.is_empty() {
                    desk.intents.push(Intent::Say(replies));
                }
                Some(begin_close(reason, Walker::new(), desk))
            }
        }
    }

    /// The deadline has come: ask for a sign of life, or for a last look.
    pub(super) fn ask(&mut self, desk: &mut Desk<'_>) -> Due {
        let (next, due) = match self.heartbeat {
            Heartbeat::Quiet { .. } => {
                desk.outbox.queue(Rc::new(wire::ping()));
                (Heartbeat::pinged(desk), Due::Flush)
            }
            // The ping waits behind frames that the peer is still taking. Whether it takes them fast enough is
            // not the heartbeat's question.
            Heartbeat::Pinged { .. } if is_taking(desk) => (Heartbeat::pinged(desk), Due::Nothing),
            Heartbeat::Pinged { .. } => (Heartbeat::Overdue, Due::Read),
            Heartbeat::Off | Heartbeat::Overdue => (self.heartbeat, Due::Nothing),
        };
        self.heartbeat = next;
        due
    }
}

fn walker_of(unfinished: Option<Box<Unfinished>>) -> Walker {
    unfinished.map_or_else(Walker::new, |message| message.into_walker())
}

/// Does something wait for the peer that it has not stopped taking?
fn is_taking(desk: &Desk<'_>) -> bool {
    let has_stalled = |moment: Moment| moment.has_come(desk.now);
    !desk.outbox.is_empty() && !desk.outbox.stalls_at(Pace::of(desk.limits)).is_some_and(has_stalled)
}

/// A small payload by itself. As a slice of tungstenite's read buffer it would keep the whole buffer until
/// it is delivered: 4 KiB for each of thousands of members that send 64 bytes in the same turn.
fn unpinned(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload }
}

/// Payloads below that are copied: a quarter of tungstenite's read buffer.
const COPY_BYTES_MAX: usize = 1024;
