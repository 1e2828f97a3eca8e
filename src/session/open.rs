//! An open WebSocket: received frames become intents, and idle peers are pinged.
//!
//! Between messages, an anonymous connection owns no heap memory. Authentication and decoder state live in a box that
//! is allocated on demand.

use std::rc::Rc;

use bytes::Bytes;

use super::auth_state::AuthState;
use super::closing::{CloseStep, Closing};
use super::decoder::DecodeOutcome;
use super::decoding::Decoding;
use super::frame_scanner::FrameScanner;
use super::heartbeat::Heartbeat;
use super::http::extensions::Compression;
use super::http::upgrade::Protocol;
use super::intent::Intent;
use super::unfinished::Unfinished;
use super::websocket;
use super::{Due, SessionContext, State, commands};
use crate::close::Reason;
use crate::config::Limits;
use crate::net::outbox::SlowConsumerLimits;
use crate::time::LoopTime;
use crate::wire::{self, Kind};

/// Minimum cost of one WebSocket frame in a turn's budget. A frame of 64 bytes takes hardly longer than an empty one:
/// 43,690 empty frames (256 KiB) took 20 to 45 ms in one turn.
const FRAME_COST_BYTES_MIN: usize = 64;

/// An open WebSocket.
#[derive(Debug)]
pub struct Open {
    /// `None` between messages of an anonymous client.
    extra: Option<Box<Extra>>,
    pub(super) heartbeat: Heartbeat,
    protocol: Protocol,
    compression: Compression,
}

/// State that most open WebSockets do not need most of the time.
#[derive(Debug, Default)]
struct Extra {
    /// `None` between messages.
    unfinished: Option<Box<Unfinished>>,
    /// `None` for an anonymous client.
    auth: Option<AuthState>,
    /// Received bytes that are decoded in a later turn: those before them have used up the connection's share of this
    /// one, as compressed messages or as many small frames. At most one read.
    unread: Vec<u8>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.unfinished.is_none() && self.auth.is_none() && self.unread.is_empty()
    }
}

impl Open {
    /// A connection after its upgrade.
    pub(super) fn new(
        protocol: Protocol,
        compression: Compression,
        auth: Option<AuthState>,
        ctx: &SessionContext<'_>,
    ) -> Open {
        let extra = auth.map(|auth| Box::new(Extra { auth: Some(auth), ..Extra::default() }));
        Open { extra, heartbeat: Heartbeat::received(ctx), protocol, compression }
    }

    /// The negotiated use of permessage-deflate.
    pub(super) fn compression(&self) -> Compression {
        self.compression
    }

    /// Returns true if no subprotocol was negotiated.
    pub(super) fn is_raw(&self) -> bool {
        self.protocol == Protocol::Raw
    }

    /// `None` for an anonymous client.
    pub(super) fn auth(&self) -> Option<&AuthState> {
        self.extra.as_ref()?.auth.as_ref()
    }

    pub(super) fn auth_mut(&mut self) -> Option<&mut AuthState> {
        self.extra.as_mut()?.auth.as_mut()
    }

    /// Returns the position in the byte stream, to find the peer's close frame, and drops all other state.
    pub(super) fn take_scanner(&mut self) -> FrameScanner {
        let Extra { unfinished, unread, .. } = self.extra.take().map_or_else(Extra::default, |extra| *extra);
        self.scanner_after(unfinished, &unread)
    }

    /// The position after `unread`, to find the peer's close frame.
    fn scanner_after(&self, unfinished: Option<Box<Unfinished>>, unread: &[u8]) -> FrameScanner {
        let mut scanner = match unfinished {
            Some(message) => message.into_scanner(),
            None => FrameScanner::new(self.compression.allows_compressed()),
        };
        // If it has the close frame, the end of file follows.
        let _ = scanner.scan(unread, usize::MAX);
        scanner
    }

    /// Returns true if there are received bytes to be decoded, or a message to be decompressed.
    pub(super) fn has_undecoded(&self) -> bool {
        let is_inflating = self.unfinished().is_some_and(Unfinished::is_inflating);
        is_inflating || self.extra.as_ref().is_some_and(|extra| !extra.unread.is_empty())
    }

    /// Returns the number of missing bytes of the first frame in `input`, if `input` begins a message.
    pub(super) fn missing_frame_bytes(&self, input: &[u8], limits: &Limits) -> Option<u64> {
        if self.unfinished().is_some() || self.has_undecoded() {
            return None;
        }
        FrameScanner::missing_bytes(input, self.compression.allows_compressed(), limits.message_bytes_max)
    }

    /// Takes the received bytes that are left to be decoded.
    pub(super) fn take_unread(&mut self) -> Vec<u8> {
        self.extra.as_mut().map(|extra| std::mem::take(&mut extra.unread)).unwrap_or_default()
    }

    /// The deadline of the incomplete message.
    pub(super) fn message_deadline(&self) -> Option<LoopTime> {
        self.unfinished()?.deadline()
    }

    /// Memory of the incomplete message and of bytes that are not decoded yet.
    pub(super) fn held_bytes(&self) -> usize {
        let unread = self.extra.as_ref().map_or(0, |extra| extra.unread.capacity());
        unread + self.unfinished().map_or(0, Unfinished::held_bytes)
    }

    fn unfinished(&self) -> Option<&Unfinished> {
        self.extra.as_ref()?.unfinished.as_deref()
    }

    /// Handles received bytes. Returns the next state if the connection begins to close.
    pub(super) fn receive(&mut self, mut input: &[u8], ctx: &mut SessionContext<'_>) -> Option<State> {
        if let Some(round_trip_ms) = self.heartbeat.round_trip_ms(ctx) {
            ctx.metrics.ping_rtt.observe(f64::from(round_trip_ms) / 1_000.0);
        }
        self.heartbeat = Heartbeat::received(ctx);
        let mut replies = Vec::new();
        let protocol = self.protocol;
        let (received_bytes, mut inflater) = (input.len(), std::mem::take(ctx.inflater));
        let mut decoding = Decoding {
            inflater: self.compression.allows_compressed().then_some(&mut inflater),
            inflate_cost_max: ctx.cost_max.saturating_sub(ctx.cost),
            frames_max: (ctx.frames_cost_max / FRAME_COST_BYTES_MIN).max(1),
            ..Decoding::plain(ctx.limits, ctx.now)
        };
        // No box is allocated for a message that arrives complete.
        let mut spare = Extra::default();
        let Extra { unfinished, auth, unread } = self.extra.as_deref_mut().unwrap_or(&mut spare);
        let mut end = None;
        let outcome =
            websocket::receive(unfinished, &mut input, &mut decoding, &mut replies, |kind, payload| {
                if end.is_some() {
                    return;
                }
                end = match (protocol, kind) {
                    (Protocol::Raw, _) => commands::receive_raw(kind, unshared(payload), auth, ctx),
                    // The payload of a text was checked to be UTF-8.
                    (Protocol::V1, Kind::Text) => {
                        commands::receive(std::str::from_utf8(&payload).unwrap_or_default(), auth, ctx)
                    }
                    (Protocol::V1, _) => Some(Reason::Unsupported),
                }
            });
        let Decoding { frames, inflate_cost, inflated_bytes, .. } = decoding;
        *ctx.inflater = inflater;
        ctx.inflated_bytes += inflated_bytes;
        let decoded_bytes = received_bytes - input.len();
        ctx.cost += (frames * FRAME_COST_BYTES_MIN).saturating_sub(decoded_bytes) + inflate_cost;
        let unfinished = if end.is_some() { unfinished.take() } else { None };
        if end.is_none() && outcome == DecodeOutcome::Open {
            *unread = input.to_vec();
        }
        let scanner = self.scanner_after(unfinished, input);
        if self.extra.is_none() && !spare.is_empty() {
            self.extra = Some(Box::new(spare));
        } else if self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
        next_state(outcome, end, replies.into(), scanner, ctx)
    }

    /// Handles an expired heartbeat deadline: sends a ping, or has the socket read once more before the close.
    pub(super) fn check_liveness(&mut self, ctx: &mut SessionContext<'_>) -> Due {
        let (next, due) = match self.heartbeat {
            Heartbeat::Quiet { .. } => {
                ctx.outbox.queue(Rc::new(wire::ping()));
                (Heartbeat::pinged(ctx), Due::Flush)
            }
            // The ping is queued after frames that the peer is still reading; whether it reads them fast enough is
            // checked by the outbox.
            Heartbeat::Pinged { .. } if is_reading(ctx) => (Heartbeat::pinged(ctx), Due::Nothing),
            Heartbeat::Pinged { .. } => (Heartbeat::Overdue, Due::Read),
            Heartbeat::Off | Heartbeat::Overdue => (self.heartbeat, Due::Nothing),
        };
        self.heartbeat = next;
        due
    }
}

/// The state after received bytes, if the connection begins to close. `end`: the reason to reject a message. `scanner`:
/// the position in the peer's frames.
fn next_state(
    outcome: DecodeOutcome,
    end: Option<Reason>,
    replies: Bytes,
    scanner: FrameScanner,
    ctx: &mut SessionContext<'_>,
) -> Option<State> {
    match (outcome, end) {
        // The first violation is the reason, however the bytes were split into reads.
        (DecodeOutcome::Open | DecodeOutcome::Failed(_), Some(reason)) => {
            Some(Closing::begin_close_handshake(reason, scanner, ctx))
        }
        (DecodeOutcome::Open, None) => {
            // Each ping gets a pong (RFC 6455 5.5.2), in order with the other replies. A peer that does not read
            // them is not read either, so at most one turn's pongs are queued.
            if !replies.is_empty() {
                ctx.intents.push(Intent::Send(replies));
            }
            None
        }
        // An echo of its own code would confirm the message that was rejected.
        (DecodeOutcome::PeerClosed, Some(reason)) => {
            ctx.intents.push(Intent::BeginClose { close_frame: wire::close(reason) });
            Some(Closing::begin(reason, CloseStep::Flushing, ctx.limits, ctx.now))
        }
        (DecodeOutcome::PeerClosed, None) => {
            ctx.intents.push(Intent::BeginClose { close_frame: Some(replies) });
            Some(Closing::begin(Reason::PeerClosed, CloseStep::Flushing, ctx.limits, ctx.now))
        }
        (DecodeOutcome::Failed(reason), None) => {
            if !replies.is_empty() {
                ctx.intents.push(Intent::Send(replies));
            }
            Some(Closing::begin_close_handshake(reason, scanner, ctx))
        }
    }
}

/// Returns true if the outbox is not empty and the peer is reading from it.
fn is_reading(ctx: &SessionContext<'_>) -> bool {
    let has_stalled = |at: LoopTime| at.is_due(ctx.now);
    !ctx.outbox.is_empty()
        && !ctx.outbox.stalls_at(SlowConsumerLimits::of(ctx.limits)).is_some_and(has_stalled)
}

/// Copies a small payload. As a slice of tungstenite's read buffer it would keep the whole buffer allocated until the
/// message is delivered: 4 KiB for each of thousands of clients that send 64 bytes in the same turn.
fn unshared(payload: Bytes) -> Bytes {
    if payload.len() < COPY_BYTES_MAX { Bytes::copy_from_slice(&payload) } else { payload }
}

/// Payloads below this size are copied: a quarter of tungstenite's read buffer.
const COPY_BYTES_MAX: usize = 1024;
