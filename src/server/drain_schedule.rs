//! The schedule of a drain: the time at which each connection closes, and the time over which reconnects are spread.

use std::collections::{HashMap, VecDeque};

use crate::config::Limits;
use crate::ids::SlotId;
use crate::time::LoopTime;

/// The reconnects of few clients are spread over this time.
const SPREAD_MS_MIN: u32 = 300;

/// A drain that has begun.
#[derive(Debug)]
pub(super) struct DrainSchedule {
    /// When a client that is rejected during the drain is to reconnect.
    pub(super) retry_ms: u32,
    /// Connections that are yet to be closed, in the order of their times.
    waiting: VecDeque<(LoopTime, SlotId)>,
    /// Connections with compressed input from before the drain that is not decoded yet. Once their close is due, each
    /// has the delay of its reconnect.
    undecoded: HashMap<SlotId, Option<u32>>,
}

impl DrainSchedule {
    /// A schedule of closes in the order of their times, and the connections whose input is not decoded yet.
    pub(super) fn new(
        retry_ms: u32,
        waiting: Vec<(LoopTime, SlotId)>,
        undecoded: impl Iterator<Item = SlotId>,
    ) -> DrainSchedule {
        DrainSchedule {
            retry_ms,
            waiting: waiting.into(),
            undecoded: undecoded.map(|id| (id, None)).collect(),
        }
    }

    /// Returns true if input of a connection from before the drain is not decoded yet.
    pub(super) fn is_decoding(&self, id: SlotId) -> bool {
        self.undecoded.contains_key(&id)
    }

    /// Postpones a close until the connection's input is decoded. Returns false if no input is left to be decoded.
    pub(super) fn postpone(&mut self, id: SlotId, retry_ms: u32) -> bool {
        self.undecoded.get_mut(&id).is_some_and(|postponed| {
            *postponed = Some(retry_ms);
            true
        })
    }

    /// Removes the connections whose input is decoded. Returns those whose close was postponed, and the delays of their
    /// reconnects.
    pub(super) fn take_decoded(&mut self, has_undecoded: impl Fn(SlotId) -> bool) -> Vec<(SlotId, u32)> {
        let decoded = self.undecoded.extract_if(|&id, _| !has_undecoded(id));
        decoded.filter_map(|(id, retry_ms)| Some((id, retry_ms?))).collect()
    }

    /// When the next connection is to be closed.
    pub(super) fn next(&self) -> Option<LoopTime> {
        self.waiting.front().map(|&(at, _)| at)
    }

    /// Takes the next connection that is due, if there is one.
    pub(super) fn pop_due(&mut self, now: LoopTime) -> Option<SlotId> {
        self.next().filter(|at| at.is_due(now))?;
        self.waiting.pop_front().map(|(_, id)| id)
    }
}

/// The time over which this many reconnects are spread.
pub(super) fn spread_ms(clients: usize, limits: &Limits) -> u32 {
    let needed_ms = clients as u64 * 1_000 / u64::from(limits.reconnects_per_second.max(1));
    needed_ms.clamp(u64::from(SPREAD_MS_MIN), u64::from(limits.drain_ms.max(SPREAD_MS_MIN))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_more_clients_is_longer_within_bounds() {
        let limits = Limits { reconnects_per_second: 1_000, drain_ms: 30_000, ..Limits::default() };
        let spread = |clients| spread_ms(clients, &limits);
        assert_eq!(
            [0, 1, 300, 1_000, 10_000, 30_000, 1_000_000].map(spread),
            [300, 300, 300, 1_000, 10_000, 30_000, 30_000]
        );
    }
}
