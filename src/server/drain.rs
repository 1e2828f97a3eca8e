//! The drain: after a signal every connection is closed, and their reconnects are spread.
//!
//! Clients that reconnect all at once keep a server that has just started busy with handshakes, and no client is served
//! meanwhile. So their reconnects are spread at `--reconnects-per-second`. A client of `oyez.v1` reads in its close
//! frame when to reconnect, and is closed at once. Other clients do not read the reason (pusher-js reconnects 2 ms
//! after a code of 4200 to 4299, EventSource after its `retry`), so their closes themselves are spread.

use super::drain_schedule::{DrainSchedule, spread_ms};
use super::engine::Engine;
use crate::close::Reason;
use crate::net::transport::Transport;
use crate::session::Reconnects;
use crate::time::LoopTime;
use crate::wire::RETRY_MS_MIN;

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
        let mut waiting = Vec::new();
        let mut closing: Vec<_> = others.into_iter().map(|(id, _)| (id, RETRY_MS_MIN)).collect();
        for (place, &(id, reconnects)) in clients.iter().enumerate() {
            match reconnects {
                Reconnects::AfterRetryMs => closing.push((id, RETRY_MS_MIN + offset_ms(place))),
                Reconnects::Immediately | Reconnects::Never => {
                    waiting.push((now.after(offset_ms(place)), id))
                }
            }
        }
        self.end_pressure(now);
        self.draining = Some(DrainSchedule::new(RETRY_MS_MIN + spread_ms, waiting));
        for (id, retry_ms) in closing {
            self.close(id, Reason::Drain { retry_ms }, now);
        }
        self.continue_drain(now);
    }

    /// Closes the connections that are due.
    pub(super) fn continue_drain(&mut self, now: LoopTime) {
        while let Some(id) = self.draining.as_mut().and_then(|drain| drain.pop_due(now)) {
            self.close(id, Reason::Drain { retry_ms: RETRY_MS_MIN }, now);
        }
    }

    /// Returns true if the only connections left wait for another request and have taken all responses.
    pub fn is_drained(&self) -> bool {
        self.slots.iter().all(|(_, slot)| slot.state.is_idle_request() && slot.outbox.is_empty())
    }

    /// When a client that connects now is to reconnect, while the server drains.
    pub(super) fn drain_retry_ms(&self) -> Option<u32> {
        self.draining.as_ref().map(|drain| drain.retry_ms)
    }
}
