//! What became of connections: attempted, opened, refused and lost, each by phase and by cause.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::client::cause::Cause;

/// How far a connection had come when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// TCP.
    Connect,
    /// The request is out.
    Handshake,
    /// It was open.
    Open,
}

impl Phase {
    /// One word for reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Handshake => "handshake",
            Phase::Open => "open",
        }
    }
}

/// How often each thing happened.
pub type Causes = BTreeMap<(Phase, Cause), u64>;

/// The counts of one run, or of one part of it.
#[derive(Debug)]
pub struct ConnectionStats {
    /// ConnectionsReport begun.
    pub attempted: u64,
    /// Handshakes completed.
    pub opened: u64,
    /// Those that never opened.
    pub refused: Causes,
    /// Those that were open and were not meant to end.
    pub lost: Causes,
    /// Those that were open and had stalled.
    pub stalled: Causes,
    /// From the call of `connect` to the answer's last byte, TLS included, in nanoseconds.
    pub handshakes: Histogram<u64>,
}

impl ConnectionStats {
    /// Nothing yet.
    pub fn new() -> ConnectionStats {
        ConnectionStats {
            attempted: 0,
            opened: 0,
            refused: Causes::new(),
            lost: Causes::new(),
            stalled: Causes::new(),
            handshakes: histogram(),
        }
    }

    /// How many never opened.
    pub fn refused(&self) -> u64 {
        self.refused.values().sum()
    }
}

impl Default for ConnectionStats {
    fn default() -> ConnectionStats {
        ConnectionStats::new()
    }
}

/// A minute in nanoseconds: what takes longer is recorded as that.
const NANOS_MAX: u64 = 60_000_000_000;

/// A histogram of nanoseconds at three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, 3).expect("the bounds are in order")
}
