//! Everybody drops, and everybody comes back: what a server meets after a network fails, or after its
//! own restart.

use std::time::Duration;

use super::clients::Clients;
use super::clock::RunTime;
use super::plan::Plan;
use super::recipient::Role;

/// ConnectionsReport begun in one turn of the loop: many, since all come at once, and few enough for answers
/// to be read between.
const BUDGET: usize = 64;

/// How long a client that was refused waits before it tries again.
const RETRY: Duration = Duration::from_millis(200);

/// A storm under way.
#[derive(Debug)]
pub struct ReconnectStorm {
    total: usize,
    channels: u32,
    began: RunTime,
    until: RunTime,
    /// Of the first wave.
    begun: usize,
    retry_at: RunTime,
    figures: StormFigures,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct StormFigures {
    /// Members that were dropped.
    pub dropped: usize,
    /// Members that came back.
    pub returned: usize,
    /// Seconds from the drop until 95 % were back.
    pub seconds_to_95: Option<f64>,
    /// Seconds from the drop until all were.
    pub seconds_to_100: Option<f64>,
}

impl ReconnectStorm {
    /// Drops everybody.
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

    /// Brings back whoever is not on the way; true when all are back, or the time is up.
    pub fn steer(&mut self, clients: &mut Clients, now: RunTime) -> bool {
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

    /// Those that are not back by now are given up.
    pub fn give_up(&mut self, now: RunTime) {
        self.until = now;
    }

    /// How it went.
    pub fn figures(&self) -> StormFigures {
        self.figures
    }
}
