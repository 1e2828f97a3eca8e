//! Is the peer still there?

use super::SessionContext;
use crate::time::LoopTime;

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heartbeat {
    /// Nobody wants to know.
    Off,
    /// It has spoken; ask again then.
    Quiet { ping_at: LoopTime },
    /// It was asked.
    Pinged { pong_by: LoopTime },
    /// The answer is late. It may be in the socket already, when it is we who are late: this slot has
    /// been put on the ready list, and is judged when it has been read.
    Overdue,
}

impl Heartbeat {
    /// It has just been asked.
    pub(super) fn pinged(ctx: &SessionContext<'_>) -> Heartbeat {
        Heartbeat::Pinged { pong_by: ctx.now.after(ctx.limits.pong_timeout_ms) }
    }

    /// The peer has just spoken. Every connection has one moment of its own in each interval, and is asked at the
    /// next: so who only listens is asked once an interval, and those that came, or spoke, all at once are not
    /// asked all at once. If that moment is near, it is asked in the middle of the interval: who has just spoken is
    /// there.
    pub(super) fn heard(ctx: &SessionContext<'_>) -> Heartbeat {
        let interval = ctx.limits.ping_interval_ms;
        if interval == 0 {
            return Heartbeat::Off;
        }
        let near = interval / 4;
        let own = interval - ctx.now.after(ctx.ping_offset).millis_into(interval);
        let wait = if own > near { own } else { near + 2 * own };
        Heartbeat::Quiet { ping_at: ctx.now.after(wait) }
    }

    /// When there is something to do.
    pub(super) fn deadline(self) -> Option<LoopTime> {
        match self {
            Heartbeat::Off | Heartbeat::Overdue => None,
            Heartbeat::Quiet { ping_at } => Some(ping_at),
            Heartbeat::Pinged { pong_by } => Some(pong_by),
        }
    }

    /// How long the peer took to be heard, in milliseconds, if it was asked.
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
