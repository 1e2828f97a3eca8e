//! What a run is to do.

use std::time::Duration;

use super::target::Target;

/// A run, in resolved values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens.
    pub scenario: Scenario,
    /// To whom.
    pub target: Target,
    /// Members.
    pub connections: usize,
    /// Channels that the members are spread over.
    pub channels: u32,
    /// The time over which they come; at once, but for the server's pace, if it is zero.
    pub ramp: Duration,
    /// What is published, where anything is.
    pub traffic: Option<Traffic>,
    /// The server's process, if it runs on this machine.
    pub pid: Option<u32>,
}

/// What happens once all members are there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scenario {
    /// Nothing, for so long.
    Idle {
        /// How long.
        hold: Duration,
    },
    /// A broadcast.
    Fanout,
    /// A broadcast while others come and go.
    Churn {
        /// How many come in a second.
        arrivals_per_second: f64,
        /// How long each stays.
        stay: Duration,
    },
    /// Everybody drops, and everybody comes back.
    Storm {
        /// When those that are not back are given up.
        within: Duration,
    },
    /// A broadcast; in its second half some members do not read.
    Slow {
        /// How many.
        stalled: usize,
    },
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Members that publish.
    pub publishers: usize,
    /// Are they connections of their own, beside the members?
    pub publishers_apart: bool,
    /// The size of a message, in bytes.
    pub payload_bytes: usize,
    /// Text, or binary.
    pub is_text: bool,
    /// How fast.
    pub speed: Speed,
    /// How long before the measuring begins.
    pub warmup: Duration,
    /// How long is measured.
    pub duration: Duration,
    /// How long a message may take to reach all members before it is given up.
    pub patience: Duration,
}

/// How fast is published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// A closed loop: messages of each publisher that have not reached everybody.
    Window(u32),
    /// An open loop: messages a second, of all publishers together.
    Rate(f64),
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Scenario::Idle { .. } => "idle",
            Scenario::Fanout => "fanout",
            Scenario::Churn { .. } => "churn",
            Scenario::Storm { .. } => "storm",
            Scenario::Slow { .. } => "slow",
        }
    }
}

impl Traffic {
    /// What may come to a member at once without the server being to blame: in a closed loop everything
    /// that is in flight, twice, since a window opens before the last member has read.
    pub fn burst_bytes(&self) -> usize {
        let messages = match self.speed {
            Speed::Window(window) => self.publishers.saturating_mul(window as usize),
            Speed::Rate(_) => 2,
        };
        // RFC 6455 5.2: no header of a server's is longer.
        (self.payload_bytes + 10).saturating_mul(messages).saturating_mul(2)
    }
}

impl Plan {
    /// Connections of our own, but for guests.
    pub fn sockets(&self) -> usize {
        let apart = self.traffic.filter(|traffic| traffic.publishers_apart);
        self.connections + apart.map_or(0, |traffic| traffic.publishers)
    }

    /// How many members are to stall; they are the last.
    pub fn stalled(&self) -> usize {
        match self.scenario {
            Scenario::Slow { stalled } => stalled,
            _ => 0,
        }
    }
}
