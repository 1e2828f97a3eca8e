//! The environment of a session: what a connection reads and changes while it handles an event.

use super::intent::Intent;
use crate::access::authenticator::Authenticator;
use crate::access::connection_limiter::ConnectionLimiter;
use crate::access::metrics_token::MetricsToken;
use crate::access::origin::OriginPattern;
use crate::config::{Asset, Limits};
use crate::ids::{Peer, SlotId};
use crate::metrics::Metrics;
use crate::net::outbox::Outbox;
use crate::time::LoopTime;
use crate::wire::inflate::Inflater;

/// Maximum bytes of an incomplete message or body that is accepted under memory pressure: the size of a request head.
pub const SMALL_BYTES: usize = 4 << 10;

/// The log that messages are published in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogMode {
    /// The server is its own log: a message is published when it is submitted.
    #[default]
    Own,
    /// Several nodes share a log, and this one has not read it up to its end since its start.
    Starting,
    /// Several nodes share a log: a message is published when it is read back.
    Ready,
}

/// Configuration of the HTTP endpoints.
#[derive(Debug, Default)]
pub struct HttpConfig {
    /// Files embedded in the program.
    pub assets: Vec<&'static Asset>,
    /// Origins whose pages may send requests, in addition to those of the server's own host.
    pub origins: Vec<OriginPattern>,
    /// The token that `/metrics` requires; `None`: none.
    pub metrics_token: Option<MetricsToken>,
}

/// The environment of a session while it handles an event.
#[derive(Debug)]
pub struct SessionContext<'a> {
    /// The limits.
    pub limits: &'a Limits,
    /// Configuration of the HTTP endpoints.
    pub http_config: &'a HttpConfig,
    /// Connections and handshakes per address.
    pub limiter: &'a mut ConnectionLimiter,
    /// The connection's id.
    pub id: SlotId,
    /// The peer's address.
    pub peer: &'a mut Peer,
    /// Verifies tokens and tickets.
    pub authenticator: &'a mut Authenticator,
    /// Decompresses the messages of all connections.
    pub inflater: &'a mut Inflater,
    /// The metrics.
    pub metrics: &'a mut Metrics,
    /// The time of this turn.
    pub now: LoopTime,
    /// Spreads the pings of connections that were accepted together; any number that differs between slots.
    pub ping_offset: u32,
    /// The log that messages are published in.
    pub log_mode: LogMode,
    /// True if requests are logged.
    pub logs_requests: bool,
    /// The process is close to its memory budget, and rejects large messages and bodies that are not complete.
    pub is_memory_short: bool,
    /// Bytes to be written.
    pub outbox: &'a mut Outbox,
    /// Operations requested from the server.
    pub intents: &'a mut Vec<Intent>,
    /// Cost of the received frames and requests, in addition to their bytes, in bytes of the turn's budget.
    pub cost: usize,
    /// Bytes of the received messages that were decompressed; `cost` includes them.
    pub inflated_bytes: usize,
    /// The unused part of the connection's share, in the same unit: at this cost, further pipelined requests wait for
    /// the responses to those before them.
    pub cost_max: usize,
    /// Frames of received bytes are decoded up to this cost; the rest waits for the connection's next share.
    pub frames_cost_max: usize,
}
