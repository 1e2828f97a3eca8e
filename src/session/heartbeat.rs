//! Liveness check: pings on an idle WebSocket, and the deadline for the pong.
//!
//! Any received bytes count as a sign of life, so a client that sends needs no pings.

use super::SessionContext;
use crate::time::LoopTime;

/// The state of the liveness check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heartbeat {
    /// Pings are disabled (`--ping-interval-ms 0`).
    Off,
    /// The peer has sent something; the next ping is due at `ping_at`.
    Quiet { ping_at: LoopTime },
    /// A ping is queued; something has to be received by `pong_by`.
    Pinged { pong_by: LoopTime },
    /// The pong is overdue. It may be in the socket already if the server itself is late, so the slot is put on the
    /// ready list, and the connection is closed only if a read finds nothing.
    Overdue,
}

impl Heartbeat {
    /// A ping was queued.
    pub(super) fn pinged(ctx: &SessionContext<'_>) -> Heartbeat {
        Heartbeat::Pinged { pong_by: ctx.now.after(ctx.limits.pong_timeout_ms) }
    }

    /// Bytes were received. Each connection has a fixed ping time in every interval, derived from its slot, so clients
    /// that connected or sent at the same time are not pinged at the same time, and a client that only receives is
    /// pinged once per interval. A ping time less than a quarter of an interval away is postponed, as the peer was
    /// alive just now.
    pub(super) fn received(ctx: &SessionContext<'_>) -> Heartbeat {
        let interval = ctx.limits.ping_interval_ms;
        if interval == 0 {
            return Heartbeat::Off;
        }
        let near = interval / 4;
        let own = interval - ctx.now.after(ctx.ping_offset).millis_into(interval);
        let wait = if own > near { own } else { near + 2 * own };
        Heartbeat::Quiet { ping_at: ctx.now.after(wait) }
    }

    /// The deadline of the next step.
    pub(super) fn deadline(self) -> Option<LoopTime> {
        match self {
            Heartbeat::Off | Heartbeat::Overdue => None,
            Heartbeat::Quiet { ping_at } => Some(ping_at),
            Heartbeat::Pinged { pong_by } => Some(pong_by),
        }
    }

    /// Milliseconds between the ping and the bytes just received, if a ping was pending.
    pub(super) fn round_trip_ms(self, ctx: &SessionContext<'_>) -> Option<u32> {
        match self {
            Heartbeat::Pinged { pong_by } => {
                let left = pong_by.millis_since(ctx.now);
                Some(ctx.limits.pong_timeout_ms.saturating_sub(left))
            }
            Heartbeat::Off | Heartbeat::Quiet { .. } | Heartbeat::Overdue => None,
        }
    }
}
