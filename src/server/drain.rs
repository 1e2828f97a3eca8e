//! The drain: after a signal every connection is closed, and their reconnects are spread.
//!
//! Clients that reconnect all at once keep a server that has just started busy with handshakes, and no client is served
//! meanwhile. So their reconnects are spread at `--reconnects-per-second`. A client of `oyez.v1` reads in its close
//! frame when to reconnect, and is closed at once. Other clients do not read the reason (pusher-js reconnects 2 ms
//! after a code of 4200 to 4299, EventSource after its `retry`), so their closes themselves are spread.

use std::collections::VecDeque;

use super::engine::Engine;
use crate::close::Reason;
use crate::config::Limits;
use crate::ids::SlotId;
use crate::net::transport::Transport;
use crate::session::Reconnects;
use crate::time::LoopTime;
use crate::wire::RETRY_MS_MIN;

/// The reconnects of few clients are spread over this time.
const SPREAD_MS_MIN: u32 = 300;

/// A drain that has begun.
#[derive(Debug)]
pub(super) struct Drain {
    /// When a client that is refused meanwhile is to reconnect.
    pub(super) retry_ms: u32,
    /// Connections that are yet to be closed, in the order of their times.
    waiting: VecDeque<(LoopTime, SlotId)>,
}

impl Drain {
    /// When the next connection is to be closed.
    pub(super) fn next(&self) -> Option<LoopTime> {
        self.waiting.front().map(|&(at, _)| at)
    }
}

/// The time over which this many reconnects are spread.
fn spread_ms(clients: usize, limits: &Limits) -> u32 {
    let needed_ms = clients as u64 * 1_000 / u64::from(limits.reconnects_per_second.max(1));
    needed_ms.clamp(u64::from(SPREAD_MS_MIN), u64::from(limits.drain_ms.max(SPREAD_MS_MIN))) as u32
}

impl<T: Transport> Engine<T> {
    /// Begins to close all connections with 4200.
    ///
    /// Connections that wait for another request are left alone, so that a health check reads that the server is
    /// shutting down.
    pub fn drain(&mut self, now: LoopTime) {
        let (clients, others): (Vec<_>, Vec<_>) = self
            .slots
            .iter()
            .filter(|(_, slot)| !slot.state.is_idle_request())
            .map(|(id, slot)| (id, slot.state.reconnects()))
            .partition(|(_, reconnects)| *reconnects != Reconnects::Never);
        let spread_ms = spread_ms(clients.len(), &self.shared.limits);
        let offset_ms = |place: usize| (u64::from(spread_ms) * place as u64 / clients.len() as u64) as u32;
        let mut waiting = VecDeque::new();
        let mut closing: Vec<_> = others.into_iter().map(|(id, _)| (id, RETRY_MS_MIN)).collect();
        for (place, &(id, reconnects)) in clients.iter().enumerate() {
            match reconnects {
                Reconnects::AfterRetryMs => closing.push((id, RETRY_MS_MIN + offset_ms(place))),
                Reconnects::Immediately | Reconnects::Never => {
                    waiting.push_back((now.after(offset_ms(place)), id))
                }
            }
        }
        self.end_pressure(now);
        self.draining = Some(Drain { retry_ms: RETRY_MS_MIN + spread_ms, waiting });
        for (id, retry_ms) in closing {
            self.close(id, Reason::Drain { retry_ms }, now);
        }
        self.continue_drain(now);
    }

    /// Closes the connections that are due.
    pub(super) fn continue_drain(&mut self, now: LoopTime) {
        while let Some(drain) = &mut self.draining
            && drain.next().is_some_and(|at| at.is_due(now))
            && let Some((_, id)) = drain.waiting.pop_front()
        {
            self.close(id, Reason::Drain { retry_ms: RETRY_MS_MIN }, now);
        }
    }

    /// Returns true if the only connections left wait for another request and have taken all answers.
    pub fn is_drained(&self) -> bool {
        self.slots.iter().all(|(_, slot)| slot.state.is_idle_request() && slot.outbox.is_empty())
    }

    /// When a client that connects now is to reconnect, while the server drains.
    pub(super) fn drain_retry_ms(&self) -> Option<u32> {
        self.draining.as_ref().map(|drain| drain.retry_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_grows_with_the_number_of_clients_within_bounds() {
        let limits = Limits { reconnects_per_second: 1_000, drain_ms: 30_000, ..Limits::default() };
        let spread = |clients| spread_ms(clients, &limits);
        assert_eq!(
            [0, 1, 300, 1_000, 10_000, 30_000, 1_000_000].map(spread),
            [300, 300, 300, 1_000, 10_000, 30_000, 30_000]
        );
    }
}
