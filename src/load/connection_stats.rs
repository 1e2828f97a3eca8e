//! Statistics of connections: attempted, opened, failed and lost, by phase and cause.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::client::cause::Cause;

/// The phase of a connection in which it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// TCP connect, and the TLS handshake.
    Connect,
    /// The WebSocket handshake.
    Handshake,
    /// After the handshake.
    Open,
}

impl Phase {
    /// Name of the phase in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Connect => "connect",
            Phase::Handshake => "handshake",
            Phase::Open => "open",
        }
    }
}

/// Counts by phase and cause.
pub type Causes = BTreeMap<(Phase, Cause), u64>;

/// Statistics of a run, or of a part of it.
#[derive(Debug)]
pub struct ConnectionStats {
    /// Connections attempted.
    pub attempted: u64,
    /// Handshakes completed.
    pub opened: u64,
    /// Connections that negotiated permessage-deflate.
    pub deflate_negotiated: u64,
    /// Connections that never opened.
    pub failed: Causes,
    /// Open connections that ended unexpectedly.
    pub lost: Causes,
    /// Stalled connections that ended.
    pub stalled: Causes,
    /// Time from `connect` to the last byte of the response, TLS included, in nanoseconds.
    pub handshakes: Histogram<u64>,
}

impl ConnectionStats {
    /// Statistics without connections.
    pub fn new() -> ConnectionStats {
        ConnectionStats {
            attempted: 0,
            opened: 0,
            deflate_negotiated: 0,
            failed: Causes::new(),
            lost: Causes::new(),
            stalled: Causes::new(),
            handshakes: histogram(),
        }
    }

    /// Number of connections that never opened.
    pub fn failed(&self) -> u64 {
        self.failed.values().sum()
    }
}

impl Default for ConnectionStats {
    fn default() -> ConnectionStats {
        ConnectionStats::new()
    }
}

/// A minute in nanoseconds; longer values are recorded as a minute.
const NANOS_MAX: u64 = 60_000_000_000;

/// A histogram of nanoseconds with three significant digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, NANOS_MAX, 3).expect("the bounds are in order")
}
