//! The phases of the loop that concern a log that several nodes share: receive, the end of a turn, and deadlines.

use std::hash::{BuildHasher, RandomState};

use mio::Poll;

use super::SharedLog;
use super::receive::LogProgress;
use crate::backplane::link::LinkConfig;
use crate::config::BackplaneConfig;
use crate::ids::RunId;
use crate::net::acceptor::Acceptor;
use crate::server::Server;
use crate::server::backplane::Sockets;
use crate::server::engine::Engine;
use crate::server::start_error::StartError;
use crate::session::LogMode;
use crate::time::LoopTime;

/// Makes the log of a backplane the log of the engine.
pub(in crate::server) fn join_log<T>(
    engine: &mut Engine<T>,
    poll: &Poll,
    config: &BackplaneConfig,
    now: LoopTime,
) -> Result<Sockets, StartError> {
    let sockets = Sockets::new(config, poll.registry()).map_err(StartError::Backplane)?;
    let channels_max = engine.shared.limits.channels_max;
    let link = link_config(config, engine.run);
    engine.shared_log = Some(SharedLog::new(config.feature, link, channels_max, now));
    engine.shared.log_mode = LogMode::Starting;
    Ok(sockets)
}

/// The settings of the link to a backplane.
fn link_config(config: &BackplaneConfig, run: RunId) -> LinkConfig {
    LinkConfig {
        name: config.name.clone(),
        run,
        seed: RandomState::new().hash_one(run),
        user: config.user.clone(),
        password: config.password.clone(),
        database: config.database,
        age_ms: config.age_ms,
        bytes_max: config.bytes_max,
        pending_bytes_max: config.pending_bytes_max,
        publish_timeout_ms: config.publish_timeout_ms,
        heartbeat_timeout_ms: config.heartbeat_timeout_ms,
        wait_replicas: config.wait_replicas,
        wait_timeout_ms: config.wait_timeout_ms,
    }
}

impl<E: Acceptor> Server<E> {
    /// Receives the entries of the shared log, and applies them up to a budget.
    pub(in crate::server) fn receive(&mut self, now: LoopTime) {
        let Server { backplane: Some(sockets), engine, .. } = self else { return };
        let mut budget = engine.shared.limits.read_bytes_per_turn;
        loop {
            // Events that were left over are applied before anything else is received.
            self.has_log_events = engine.apply_log(&mut budget, now) == LogProgress::HasMore;
            let Some(link) = engine.shared_log.as_mut().and_then(|log| log.link_mut()) else { return };
            if self.has_log_events || !sockets.receive(link, now) {
                return;
            }
        }
    }

    /// Writes the outboxes, and this turn's entry of the shared log.
    pub(in crate::server) fn flush(&mut self, now: LoopTime) {
        self.engine.flush(now);
        let Server { backplane: Some(sockets), engine, .. } = self else { return };
        engine.finish_log_turn(now);
        if let Some(link) = engine.shared_log.as_mut().and_then(|log| log.link_mut()) {
            self.has_log_events |= sockets.flush(link, now);
        }
    }

    /// When [`Server::expire_link`] is to be called.
    pub(in crate::server) fn backplane_deadline(&self) -> Option<LoopTime> {
        let link = self.engine.shared_log.as_ref().and_then(|log| log.link())?;
        self.backplane.as_ref()?.next_deadline(link)
    }

    /// Expires the deadlines of the link and of its sockets.
    pub(in crate::server) fn expire_link(&mut self, now: LoopTime) {
        let Server { backplane: Some(sockets), engine, .. } = self else { return };
        if let Some(link) = engine.shared_log.as_mut().and_then(|log| log.link_mut()) {
            self.has_log_events |= sockets.expire(link, now);
        }
    }

    /// Sends the last entry of this node to the shared log, so the other nodes no longer wait for it.
    pub(in crate::server) fn leave_log(&mut self, now: LoopTime) {
        let Server { backplane: Some(sockets), engine, .. } = self else { return };
        if let Some(link) = engine.shared_log.as_mut().and_then(|log| log.link_mut()) {
            link.shut_down(now);
            link.finish_turn();
            sockets.flush(link, now);
        }
    }
}
