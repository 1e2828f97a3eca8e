//! The plan of a run: resolved values of the flags.

use std::time::Duration;

use super::target::BenchTarget;

/// A run, in resolved values.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The kind of load.
    pub workload: Workload,
    /// The server.
    pub target: BenchTarget,
    /// Number of clients.
    pub connections: usize,
    /// Number of channels; the clients are spread evenly over them.
    pub channels: u32,
    /// Time over which the clients connect; zero: as fast as the server accepts them.
    pub ramp: Duration,
    /// The traffic, in scenarios with a broadcast.
    pub traffic: Option<Traffic>,
    /// The server's process, if it runs on this machine.
    pub pid: Option<u32>,
}

/// The load after all clients have connected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Workload {
    /// Idle connections.
    Idle {
        /// Time to hold the connections.
        hold: Duration,
    },
    /// A broadcast.
    Fanout,
    /// A broadcast while other clients connect and disconnect.
    Churn {
        /// Short-lived clients that connect per second.
        arrivals_per_second: f64,
        /// Time that each short-lived client stays connected.
        stay: Duration,
    },
    /// All connections are dropped at once, and all clients reconnect.
    Storm {
        /// Maximum time for all clients to reconnect.
        within: Duration,
    },
    /// A broadcast; in its second half some clients stop reading.
    Slow {
        /// Number of clients that stop reading.
        stalled: usize,
    },
}

/// The messages that are published.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Number of publishers.
    pub publishers: usize,
    /// Publishers have separate connections, and are not measured clients.
    pub publishers_apart: bool,
    /// The size of a message, in bytes.
    pub payload_bytes: usize,
    /// Text messages; binary otherwise.
    pub is_text: bool,
    /// The rate of publishing.
    pub speed: Speed,
    /// Time to publish before the measurement.
    pub warmup: Duration,
    /// Time to measure.
    pub duration: Duration,
    /// Maximum time for a message to reach all clients before it is abandoned.
    pub patience: Duration,
}

/// The rate of publishing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Closed loop: the maximum number of messages in flight per publisher.
    Window(u32),
    /// Open loop: messages per second, of all publishers together.
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
    /// Maximum bytes that a healthy server may have queued for one client. In a closed loop all messages in flight,
    /// twice, since a window opens before the last client has read.
    pub fn burst_bytes(&self) -> usize {
        let messages = match self.speed {
            Speed::Window(window) => self.publishers.saturating_mul(window as usize),
            Speed::Rate(_) => 2,
        };
        // RFC 6455 5.2: the longest header of an unmasked frame.
        (self.payload_bytes + 10).saturating_mul(messages).saturating_mul(2)
    }
}

impl Plan {
    /// Number of sockets of the load generator, without short-lived clients.
    pub fn sockets(&self) -> usize {
        let apart = self.traffic.filter(|traffic| traffic.publishers_apart);
        self.connections + apart.map_or(0, |traffic| traffic.publishers)
    }

    /// Number of clients that will stall: the last ones.
    pub fn stalled(&self) -> usize {
        match self.workload {
            Workload::Slow { stalled } => stalled,
            _ => 0,
        }
    }
}
