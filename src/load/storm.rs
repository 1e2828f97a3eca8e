//! Everybody drops, and everybody comes back: what a server meets after a network fails, or after its
//! own restart.

use std::time::Duration;

use super::attendance::Role;
use super::clock::Time;
use super::crowd::Crowd;
use super::plan::Plan;

/// Connections begun in one turn of the loop: many, since all come at once, and few enough for answers
/// to be read between.
const BUDGET: usize = 64;

/// How long a client that was refused waits before it tries again.
const RETRY: Duration = Duration::from_millis(200);

/// A storm under way.
#[derive(Debug)]
pub struct Storm {
    total: usize,
    channels: u32,
    began: Time,
    until: Time,
    /// Of the first wave.
    begun: usize,
    retry_at: Time,
    figures: Figures,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Members that were dropped.
    pub dropped: usize,
    /// Members that came back.
    pub returned: usize,
    /// Seconds from the drop until 95 % were back.
    pub seconds_to_95: Option<f64>,
    /// Seconds from the drop until all were.
    pub seconds_to_100: Option<f64>,
}

impl Storm {
    /// Drops everybody.
    pub fn begin(plan: &Plan, crowd: &mut Crowd, within: Duration, now: Time) -> Storm {
        let total = crowd.open();
        crowd.drop_all();
        Storm {
            total,
            channels: plan.channels,
            began: now,
            until: now.after(within),
            begun: 0,
            retry_at: now,
            figures: Figures { dropped: total, ..Figures::default() },
        }
    }

    /// Brings back whoever is not on the way; true when all are back, or the time is up.
    pub fn steer(&mut self, crowd: &mut Crowd, now: Time) -> bool {
        let back = crowd.open();
        let seconds = now.seconds_since(self.began);
        self.figures.returned = back;
        if back * 100 >= self.total * 95 {
            self.figures.seconds_to_95.get_or_insert(seconds);
        }
        if back >= self.total {
            self.figures.seconds_to_100.get_or_insert(seconds);
            return true;
        }
        let missing = self.total.saturating_sub(back + crowd.pending());
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
            crowd.connect(Role::Regular, channel, None, now);
        }
        self.begun = (self.begun + count.min(BUDGET)).min(self.total);
        self.until <= now
    }

    /// Those that are not back by now are given up.
    pub fn give_up(&mut self, now: Time) {
        self.until = now;
    }

    /// How it went.
    pub fn figures(&self) -> Figures {
        self.figures
    }
}
