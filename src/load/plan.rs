//! What a run is to do.

use std::time::Duration;

use super::target::BenchTarget;

/// A run, in resolved values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens.
    pub workload: Workload,
    /// To whom.
    pub target: BenchTarget,
    /// Members.
    pub connections: usize,
    /// Channels that the clients are spread over.
    pub channels: u32,
    /// The time over which they come; at once, but for the server's pace, if it is zero.
    pub ramp: Duration,
    /// What is published, where anything is.
    pub traffic: Option<Traffic>,
    /// The server's process, if it runs on this machine.
    pub pid: Option<u32>,
}

/// What happens once all clients are there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
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
    /// A broadcast; in its second half some clients do not read.
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
    /// Are they connections of their own, beside the clients?
    pub publishers_apart: bool,
    /// The size of a message, in bytes.
    pub payload_bytes: usize,
    /// TextReport, or binary.
    pub is_text: bool,
    /// How fast.
    pub speed: Speed,
    /// How long before the measuring begins.
    pub warmup: Duration,
    /// How long is measured.
    pub duration: Duration,
    /// How long a message may take to reach all clients before it is given up.
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

impl Workload {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Workload::Idle { .. } => "idle",
            Workload::Fanout => "fanout",
            Workload::Churn { .. } => "churn",
            Workload::Storm { .. } => "storm",
            Workload::Slow { .. } => "slow",
        }
    }
}

impl Traffic {
    /// What may come to a client at once without the server being to blame: in a closed loop everything
    /// that is in flight, twice, since a window opens before the last client has read.
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
    /// ConnectionsReport of our own, but for guests.
    pub fn sockets(&self) -> usize {
        let apart = self.traffic.filter(|traffic| traffic.publishers_apart);
        self.connections + apart.map_or(0, |traffic| traffic.publishers)
    }

    /// How many clients are to stall; they are the last.
    pub fn stalled(&self) -> usize {
        match self.workload {
            Workload::Slow { stalled } => stalled,
            _ => 0,
        }
    }
}
