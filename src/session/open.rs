//! An open WebSocket: messages come, and it is asked for a sign of life.
//!
//! Between messages of somebody who is just everybody it owns no memory; what it needs beside is in a box that comes
//! and goes.

use std::rc::Rc;

use bytes::Bytes;

use super::auth_state::AuthState;
use super::closing::{CloseStep, Closing};
use super::frame_scanner::FrameScanner;
use super::heartbeat::Heartbeat;
use super::http::upgrade::Protocol;
use super::intent::Intent;
use super::unfinished::Unfinished;
use super::websocket::{self, Received};
use super::{Due, FRAME_COST_BYTES_MIN, SessionContext, State, begin_close, commands};
use crate::close::Reason;
use crate::net::outbox::SlowConsumerLimits;
use crate::time::LoopTime;
use crate::wire::{self, Kind};

/// An open WebSocket.
#[derive(Debug)]
pub struct Open {
    /// `None` between messages of somebody who is just everybody.
    more: Option<Box<Extra>>,
    pub(super) heartbeat: Heartbeat,
    protocol: Protocol,
}

/// What most open WebSockets do without, most of the time.
#[derive(Debug, Default)]
struct Extra {
    /// `None` between messages.
    unfinished: Option<Box<Unfinished>>,
    /// `None` for everybody.
    auth: Option<AuthState>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.unfinished.is_none() && self.auth.is_none()
    }
}

impl Open {
    /// One that has just been upgraded.
    pub(super) fn new(protocol: Protocol, auth: Option<AuthState>, ctx: &SessionContext<'_>) -> Open {
        let more = auth.map(|auth| Box::new(Extra { unfinished: None, auth: Some(auth) }));
        Open { more, heartbeat: Heartbeat::heard(ctx), protocol }
    }

    /// Returns true if it speaks no subprotocol.
    pub(super) fn is_raw(&self) -> bool {
        self.protocol == Protocol::Raw
    }

    /// Who it is, unless it is everybody.
    pub(super) fn auth(&self) -> Option<&AuthState> {
        self.more.as_ref()?.auth.as_ref()
    }

    /// The same, to be changed.
    pub(super) fn auth_mut(&mut self) -> Option<&mut AuthState> {
        self.more.as_mut()?.auth.as_mut()
    }

    /// Where its bytes stand, for a close. What it was in the middle of, and who it is, is forgotten.
    pub(super) fn take_scanner(&mut self) -> FrameScanner {
        scanner_of(self.more.take().and_then(|more| more.unfinished))
    }

    /// The deadline of the incomplete message.
    pub(super) fn message_deadline(&self) -> Option<LoopTime> {
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
    pub(super) fn receive(&mut self, input: &[u8], ctx: &mut SessionContext<'_>) -> Option<State> {
        if let Some(round_trip_ms) = self.heartbeat.round_trip_ms(ctx) {
            ctx.metrics.ping_rtt.observe(f64::from(round_trip_ms) / 1_000.0);
        }
        self.heartbeat = Heartbeat::heard(ctx);
        let mut replies = Vec::new();
        let (limits, now, protocol) = (ctx.limits, ctx.now, self.protocol);
        // What it does without is not allocated for a message that comes in one piece.
        let mut spare = Extra::default();
        let Extra { unfinished, auth } = self.more.as_deref_mut().unwrap_or(&mut spare);
        let mut end = None;
        let (heard, frames) =
            websocket::receive(unfinished, input, limits, now, &mut replies, |kind, payload| {
                if end.is_some() {
                    return;
                }
                end = match (protocol, kind) {
                    (Protocol::Raw, _) => commands::receive_raw(kind, unpinned(payload), auth, ctx),
                    // tungstenite has checked that a text is UTF-8.
                    (Protocol::V1, Kind::Text) => {
                        commands::receive(std::str::from_utf8(&payload).unwrap_or_default(), auth, ctx)
                    }
                    (Protocol::V1, _) => Some(Reason::Unsupported),
                }
            });
        ctx.cost += (frames * FRAME_COST_BYTES_MIN).saturating_sub(input.len());
        let scanner = match end {
            Some(_) => scanner_of(unfinished.take()),
            None => FrameScanner::new(),
        };
        if self.more.is_none() && !spare.is_empty() {
            self.more = Some(Box::new(spare));
        } else if self.more.as_ref().is_some_and(|more| more.is_empty()) {
            self.more = None;
        }
        let replies = Bytes::from(replies);
        match (heard, end) {
            (Received::Open, Some(reason)) => Some(begin_close(reason, scanner, ctx)),
            (Received::Open, None) => {
                // Each ping has its pong (RFC 6455 5.5.2), in one order with the other answers. A peer that does not
                // take them is not read again, so no more of them wait than one turn reads pings.
                if !replies.is_empty() {
                    ctx.intents.push(Intent::Send(replies));
                }
                None
            }
            // It takes an echo of its own code for a receipt of all that it sent before.
            (Received::PeerClosed, Some(reason)) => {
                ctx.intents.push(Intent::BeginClose { farewell: wire::close(reason) });
                Some(Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now))
            }
            (Received::PeerClosed, None) => {
                ctx.intents.push(Intent::BeginClose { farewell: Some(replies) });
                Some(Closing::begin(Reason::PeerClosed, CloseStep::Flushing, ctx.limits, ctx.now))
            }
            (Received::Broken(reason), _) => {
                if !replies.is_empty() {
                    ctx.intents.push(Intent::Send(replies));
                }
                Some(begin_close(reason, FrameScanner::new(), ctx))
            }
        }
    }

    /// The deadline has come: ask for a sign of life, or for a last look.
    pub(super) fn ask(&mut self, ctx: &mut SessionContext<'_>) -> Due {
        let (next, due) = match self.heartbeat {
            Heartbeat::Quiet { .. } => {
                ctx.outbox.queue(Rc::new(wire::ping()));
                (Heartbeat::pinged(ctx), Due::Flush)
            }
            // The ping waits behind frames that the peer is still taking. Whether it takes them fast enough is
            // not the heartbeat's question.
            Heartbeat::Pinged { .. } if is_taking(ctx) => (Heartbeat::pinged(ctx), Due::Nothing),
            Heartbeat::Pinged { .. } => (Heartbeat::Overdue, Due::Read),
            Heartbeat::Off | Heartbeat::Overdue => (self.heartbeat, Due::Nothing),
        };
        self.heartbeat = next;
        due
    }
}

fn scanner_of(unfinished: Option<Box<Unfinished>>) -> FrameScanner {
    unfinished.map_or_else(FrameScanner::new, |message| message.into_scanner())
}

/// Does something wait for the peer that it has not stopped taking?
fn is_taking(ctx: &SessionContext<'_>) -> bool {
    let has_stalled = |moment: LoopTime| moment.is_due(ctx.now);
    !ctx.outbox.is_empty()
        && !ctx.outbox.stalls_at(SlowConsumerLimits::of(ctx.limits)).is_some_and(has_stalled)
}

/// A small payload by itself. As a slice of tungstenite's read buffer it would keep the whole buffer until
/// it is delivered: 4 KiB for each of thousands of members that send 64 bytes in the same turn.
fn unpinned(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload }
}

/// Payloads below that are copied: a quarter of tungstenite's read buffer.
const COPY_BYTES_MAX: usize = 1024;
