//! The state that all sessions share, and the one method that lends it to a session as its [`SessionContext`].
//!
//! It is separate from the slots, so that a slot and the shared state can be borrowed at the same time.

use super::connection_log::ConnectionLog;
use super::memory::MemoryBudget;
use super::slot::Slot;
use crate::access::authenticator::Authenticator;
use crate::access::connection_limiter::ConnectionLimiter;
use crate::config::Limits;
use crate::ids::SlotId;
use crate::metrics::{MemoryStep, Metrics};
use crate::net::transport::Transport;
use crate::session::intent::Intent;
use crate::session::{HttpConfig, LogMode, SessionContext, State};
use crate::time::LoopTime;
use crate::wire::deflate::Deflater;
use crate::wire::inflate::Inflater;

/// Limits, configuration and counters that every session uses.
#[derive(Debug)]
pub struct Shared {
    /// Limits of connections, messages and time.
    pub limits: Limits,
    /// Assets and allowed origins.
    pub http_config: HttpConfig,
    /// Connections and handshakes per address.
    pub limiter: ConnectionLimiter,
    /// Verifies tokens and tickets.
    pub authenticator: Authenticator,
    /// Decompresses the messages of all connections.
    pub inflater: Inflater,
    /// Compresses messages for all channels.
    pub deflater: Deflater,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// The memory budget, the bytes in use, and the steps in force.
    pub memory: MemoryBudget,
    /// The log that messages are published in.
    pub log_mode: LogMode,
    /// The records of connections for their close lines.
    pub(super) connection_log: ConnectionLog,
    /// Intents of the session that is called; empty between sessions.
    pub(super) session_intents: Vec<Intent>,
}

impl Shared {
    /// Shared state without proxies and origins, in which anonymous clients have all rights.
    pub(super) fn new(limits: Limits) -> Shared {
        Shared {
            http_config: HttpConfig::default(),
            limiter: ConnectionLimiter::new(&limits),
            authenticator: Authenticator::open(limits.tickets_max),
            inflater: Inflater::default(),
            deflater: Deflater::new(limits.deflate),
            metrics: Metrics::default(),
            memory: MemoryBudget::new(limits.memory_bytes_max),
            log_mode: LogMode::Own,
            connection_log: ConnectionLog::new(),
            session_intents: Vec::new(),
            limits,
        }
    }

    /// Splits a slot into its transport, its session, and the context for a call of that session.
    pub(super) fn session_context<'a, T: Transport>(
        &'a mut self,
        id: SlotId,
        slot: &'a mut Slot<T>,
        now: LoopTime,
    ) -> (&'a mut T, &'a mut State, SessionContext<'a>) {
        let ping_offset = slot.ping_offset();
        let Slot { transport, state, outbox, peer, .. } = slot;
        let ctx = SessionContext {
            limits: &self.limits,
            http_config: &self.http_config,
            limiter: &mut self.limiter,
            authenticator: &mut self.authenticator,
            id,
            peer,
            inflater: &mut self.inflater,
            metrics: &mut self.metrics,
            now,
            ping_offset,
            log_mode: self.log_mode,
            logs_requests: self.connection_log.is_enabled(),
            is_memory_short: self.memory.is_in_force(MemoryStep::RejectLarge),
            outbox,
            intents: &mut self.session_intents,
            cost: 0,
            inflated_bytes: 0,
            cost_max: usize::MAX,
            frames_cost_max: usize::MAX,
        };
        (transport, state, ctx)
    }
}
