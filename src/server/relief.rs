//! Relief of memory pressure: carries out the steps of [`super::memory`], in order.
//!
//! Large requests are rejected first, by the sessions themselves. Then the connections that hold most memory are
//! closed, largest first; then history is evicted; last, new connections are rejected. Each step works on the memory
//! use that the previous one has left, so that history is retained while there are large connections to close.
//!
//! **Healthy subscribers never pay**: a connection is charged only the memory that its close would free (a piece of an
//! outbox that others wait for too, or that a history keeps, in equal parts), and a connection that holds less than
//! [`FREEABLE_BYTES_MIN`] is not closed, whatever the pressure.

use std::cmp::Reverse;

use log::{info, warn};

use super::engine::Engine;
use super::log_limit::LogLine;
use super::memory::StepChange;
use super::slot::Slot;
use crate::close::Reason;
use crate::ids::SlotId;
use crate::metrics::MemoryStep;
use crate::net::transport::Transport;
use crate::time::LoopTime;

/// Connections that hold less are never closed for memory. A subscriber that reads holds a piece or two for the time of
/// a write, an idle one nothing, and a request's head is up to twice that.
pub const FREEABLE_BYTES_MIN: usize = 4 << 10;

/// Milliseconds from a search for large connections that found too few to the next one. A search takes some 10 ns a
/// slot, and large outboxes do not appear within a millisecond.
const FRUITLESS_PAUSE_MS: u32 = 50;

/// Messages of histories evicted in one turn, at about 100 ns each.
const EVICTIONS_PER_TURN: usize = 10_000;

impl<T: Transport> Engine<T> {
    /// Takes a new count of the bytes that the process holds, and the steps that follow from it.
    pub fn relieve(&mut self, used_bytes: u64, now: LoopTime) {
        for (step, change) in self.shared.memory.observe(used_bytes) {
            let (word, bytes_max) = (step.as_str(), self.shared.memory.bytes_max());
            if change == StepChange::Began {
                self.shared.metrics.memory_pressure[step as usize] += 1;
            }
            // Clients that allocate and free can make a step begin and end in each millisecond.
            if !self.admits_line(LogLine::MemoryPressure, now) {
                continue;
            }
            match change {
                StepChange::Began => {
                    warn!("memory pressure: {word} began used={used_bytes} memory_max={bytes_max}");
                }
                StepChange::Ended => {
                    info!("memory pressure: {word} ended used={used_bytes} memory_max={bytes_max}");
                }
            }
        }
        let mut used_bytes = used_bytes;
        let excess = self.shared.memory.excess_bytes(MemoryStep::CloseLargest, used_bytes);
        if excess > 0 && self.next_search_at.is_none_or(|at| at.is_due(now)) {
            let freed = self.close_largest(excess, now);
            self.next_search_at = (freed < excess).then(|| now.after(FRUITLESS_PAUSE_MS));
            used_bytes = used_bytes.saturating_sub(freed);
        }
        let excess = self.shared.memory.excess_bytes(MemoryStep::EvictHistory, used_bytes);
        if excess > 0 {
            let bytes = usize::try_from(excess).unwrap_or(usize::MAX);
            self.shared.metrics.memory_evicted += self.hub.evict(bytes, EVICTIONS_PER_TURN) as u64;
        }
    }

    /// Closes the connections that hold most, largest first, to free a number of bytes. Returns the number that will be
    /// freed.
    fn close_largest(&mut self, excess: u64, now: LoopTime) -> u64 {
        let sizes = self.slots.iter().map(|(id, slot)| (slot.freeable_bytes(), id));
        let mut largest: Vec<(usize, SlotId)> =
            sizes.filter(|(bytes, _)| *bytes >= FREEABLE_BYTES_MIN).collect();
        largest.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
        let mut freed = 0;
        for (bytes, id) in largest {
            if freed >= excess {
                break;
            }
            self.close_large(id, now);
            self.shared.metrics.memory_connections_closed += 1;
            freed += bytes as u64;
        }
        freed
    }

    fn close_large(&mut self, id: SlotId, now: LoopTime) {
        let Some(slot) = self.slots.get(id) else { return };
        if can_receive_close(slot) {
            self.close(id, Reason::Slow, now)
        } else {
            self.slots.schedule_close(id, Reason::Slow)
        }
    }
}

/// Returns true if a close frame or an error response would reach the peer, and reduce the memory that is held.
///
/// A close keeps the piece that is partly written, or the peer could not find the beginning of the close frame; so it
/// is only worth trying once. An HTTP client that does not take its response will not take another, and TLS keeps its
/// buffers until the end.
fn can_receive_close<T: Transport>(slot: &Slot<T>) -> bool {
    slot.state.is_open()
        && (slot.takes_broadcast() || slot.outbox.is_empty() || slot.state.is_web_socket())
        && slot.transport.buffered_bytes() < FREEABLE_BYTES_MIN
}
