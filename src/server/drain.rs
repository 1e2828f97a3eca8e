//! The drain: after a signal every connection is closed, and their reconnects are spread.
//!
//! Clients that reconnect all at once keep a server that has just started busy with handshakes, and no client is served
//! meanwhile. So their reconnects are spread at `--reconnects-per-second`. A client of `oyez.v1` reads in its close
//! frame when to reconnect, and is closed at once. Other clients do not read the reason (pusher-js reconnects 2 ms
//! after a code of 4200 to 4299, EventSource after its `retry`), so their closes themselves are spread.
//!
//! Messages that were read before the drain are published. Compressed ones may not be decoded yet, since that is spread
//! over turns: such a connection is not read further, and closes when it has been decoded.

use super::drain_schedule::{DrainSchedule, spread_ms};
use super::engine::Engine;
use crate::close::Reason;
use crate::ids::SlotId;
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
        let undecoded = self.slots.iter().filter(|(_, slot)| slot.state.has_undecoded()).map(|(id, _)| id);
        self.draining = Some(DrainSchedule::new(RETRY_MS_MIN + spread_ms, waiting, undecoded));
        for (id, retry_ms) in closing {
            self.close_drained(id, retry_ms, now);
        }
        self.continue_drain(now);
    }

    /// Closes the connections that are due.
    pub(super) fn continue_drain(&mut self, now: LoopTime) {
        let Engine { draining, slots, .. } = self;
        let Some(drain) = draining else { return };
        let has_undecoded = |id| slots.get(id).is_some_and(|slot| slot.state.has_undecoded());
        for (id, retry_ms) in drain.take_decoded(has_undecoded) {
            self.close(id, Reason::Drain { retry_ms }, now);
        }
        while let Some(id) = self.draining.as_mut().and_then(|drain| drain.pop_due(now)) {
            self.close_drained(id, RETRY_MS_MIN, now);
        }
    }

    /// Closes a connection, or lets its input from before the drain be decoded first.
    fn close_drained(&mut self, id: SlotId, retry_ms: u32, now: LoopTime) {
        if !self.draining.as_mut().is_some_and(|drain| drain.postpone(id, retry_ms)) {
            self.close(id, Reason::Drain { retry_ms }, now);
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

    /// The delay for a client whose command is rejected since the server drains. `None` if the command was read before
    /// the drain.
    pub(super) fn drain_retry_ms_of(&self, id: SlotId) -> Option<u32> {
        self.drain_retry_ms().filter(|_| !self.is_decoding_for_drain(id))
    }

    /// Returns true if a connection is not read further, since it closes when its input is decoded.
    pub(super) fn is_decoding_for_drain(&self, id: SlotId) -> bool {
        self.draining.as_ref().is_some_and(|drain| drain.is_decoding(id))
    }
}
