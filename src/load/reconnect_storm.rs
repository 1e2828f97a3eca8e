//! Reconnect storm: all connections are dropped, and all clients reconnect, as after a network failure or a restart of
//! the server.

use std::time::Duration;

use super::clients::Clients;
use super::clock::RunTime;
use super::plan::Plan;
use super::recipient::Role;

/// Maximum connections started in one turn of the loop: many, since all clients reconnect at once, and few enough for
/// responses to be read in between.
const BUDGET: usize = 64;

/// Delay before a client that failed to connect tries again.
const RETRY: Duration = Duration::from_millis(200);

/// A storm in progress.
#[derive(Debug)]
pub struct ReconnectStorm {
    total: usize,
    channels: u32,
    began: RunTime,
    until: RunTime,
    /// Connections started in the first wave.
    begun: usize,
    retry_at: RunTime,
    figures: StormFigures,
}

/// Figures of a storm.
#[derive(Clone, Copy, Debug, Default)]
pub struct StormFigures {
    /// Connections dropped.
    pub dropped: usize,
    /// Clients that reconnected.
    pub returned: usize,
    /// Seconds from the drop until 95 % had reconnected.
    pub seconds_to_95: Option<f64>,
    /// Seconds from the drop until all had reconnected.
    pub seconds_to_100: Option<f64>,
}

impl ReconnectStorm {
    /// Drops all connections.
    pub fn begin(plan: &Plan, clients: &mut Clients, within: Duration, now: RunTime) -> ReconnectStorm {
        let total = clients.open();
        clients.drop_all();
        ReconnectStorm {
            total,
            channels: plan.channels,
            began: now,
            until: now.after(within),
            begun: 0,
            retry_at: now,
            figures: StormFigures { dropped: total, ..StormFigures::default() },
        }
    }

    /// Reconnects clients that are not connecting. Returns true when all have reconnected, or at the deadline.
    pub fn advance(&mut self, clients: &mut Clients, now: RunTime) -> bool {
        let back = clients.open();
        let seconds = now.seconds_since(self.began);
        self.figures.returned = back;
        if back * 100 >= self.total * 95 {
            self.figures.seconds_to_95.get_or_insert(seconds);
        }
        if back >= self.total {
            self.figures.seconds_to_100.get_or_insert(seconds);
            return true;
        }
        let missing = self.total.saturating_sub(back + clients.pending());
        let first_wave = self.total - self.begun;
        let count = if first_wave > 0 {
            first_wave
        } else if missing > 0 && self.retry_at <= now {
            self.retry_at = now.after(RETRY);
            missing
        } else {
            0
        };
        for place in 0..count.min(BUDGET) {
            let channel = ((self.begun + place) % self.channels as usize) as u32;
            clients.connect(Role::Regular, channel, None, now);
        }
        self.begun = (self.begun + count.min(BUDGET)).min(self.total);
        self.until <= now
    }

    /// Ends the storm at `now`.
    pub fn give_up(&mut self, now: RunTime) {
        self.until = now;
    }

    /// The figures so far.
    pub fn figures(&self) -> StormFigures {
        self.figures
    }
}
