//! The shutdown: signals begin and force it, and it ends when all connections are closed and the history file is
//! complete.

use std::time::Duration;

use log::{info, warn};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::Server;
use super::engine::Engine;
use super::service_manager::ServiceManager;
use super::signal_mask;
use super::store::{FORCED_SHUTDOWN_WRITE_TIMEOUT, SHUTDOWN_WRITE_TIMEOUT};
use crate::net::acceptor::Acceptor;
use crate::net::listeners::Listeners;
use crate::plural::plural;
use crate::time::LoopTime;

/// Maximum number of clients that are accepted before the listening sockets are closed, so that a flood does not keep
/// the server from ending: four times the default of `--backlog`.
const LAST_ACCEPTS_MAX: usize = 4 * 4096;

/// Phases of the shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShutdownPhase {
    Serving,
    /// The first signal arrived, and `--drain-delay-ms` runs: new clients are still served.
    Announced {
        until: LoopTime,
    },
    /// Connections are being closed.
    Draining {
        until: LoopTime,
    },
    /// The second signal arrived.
    Forced,
}

/// The result of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerExit {
    /// After a drain.
    Drained,
    /// After a drain, and the next program is to be executed in this process.
    Replaced,
    /// At once, by a second signal.
    Forced,
    /// The history file could not be completed.
    HistoryIncomplete,
    /// Before the shared log was read for the first time, Redis rejected a command that it must permit.
    BackplaneRejected(String),
}

impl<E: Acceptor> Server<E> {
    /// Begins the shutdown at the first signal, and ends it at once at the second.
    pub(super) fn shut_down(&mut self, now: LoopTime) {
        if self.upgrade.cancel() {
            info!("the server ends and does not start again; a second signal ends at once");
            self.service_manager.iter_mut().for_each(ServiceManager::stopping);
            return;
        }
        match self.phase {
            ShutdownPhase::Serving => {
                let delay_ms = self.engine.shared.limits.drain_delay_ms;
                if delay_ms > 0 {
                    info!("draining in {delay_ms} ms; /readyz returns 503; a second signal ends at once");
                }
                self.service_manager.iter_mut().for_each(ServiceManager::stopping);
                self.engine.is_drain_announced = true;
                self.phase = ShutdownPhase::Announced { until: now.after(delay_ms) };
            }
            ShutdownPhase::Announced { .. } | ShutdownPhase::Draining { .. } => {
                warn!("second signal: closing {} at once", plural(self.engine.slots.len(), "connection"));
                self.phase = ShutdownPhase::Forced;
            }
            ShutdownPhase::Forced => {}
        }
    }

    pub(super) fn begin_drain(&mut self, now: LoopTime) {
        info!("draining {}; a second signal ends at once", plural(self.engine.slots.len(), "connection"));
        if self.upgrade.is_draining() {
            let listeners = self.listeners.take();
            let sockets = listeners.map(|listeners| listeners.into_inherited(self.poll.registry()));
            self.upgrade.keep(sockets.unwrap_or_default());
        } else {
            self.accept_last_clients(now);
            self.listeners = None;
        }
        self.phase = ShutdownPhase::Draining { until: now.after(self.engine.shared.limits.drain_ms) };
        self.engine.drain(now);
    }

    /// Accepts the clients that wait at the listening sockets, which the kernel would reset when these are closed. The
    /// drain sends them 503 with `Retry-After`.
    fn accept_last_clients(&mut self, now: LoopTime) {
        self.listeners.iter_mut().for_each(Listeners::mark_own);
        let turns = LAST_ACCEPTS_MAX.div_ceil(self.engine.shared.limits.accepts_per_turn);
        for _ in 0..turns {
            if !self.listeners.as_ref().is_some_and(Listeners::has_work) {
                break;
            }
            self.accept(now);
        }
    }

    /// Returns the result of the shutdown when all connections are closed, or the time for that is over.
    pub(super) fn end(&mut self) -> Option<ServerExit> {
        let now = self.clock.now();
        if let Some(why) = self.engine.shared_log.as_mut().and_then(|log| log.take_fatal()) {
            return Some(ServerExit::BackplaneRejected(why));
        }
        if let ShutdownPhase::Announced { until } = self.phase
            && until.is_due(now)
        {
            self.begin_drain(now);
        }
        let end = match self.phase {
            ShutdownPhase::Serving | ShutdownPhase::Announced { .. } => return None,
            ShutdownPhase::Draining { .. } if self.engine.is_drained() => ServerExit::Drained,
            ShutdownPhase::Draining { until } if until.is_due(now) => {
                warn!("drain timeout: closing {} at once", plural(self.engine.slots.len(), "connection"));
                ServerExit::Drained
            }
            ShutdownPhase::Draining { .. } => return None,
            ShutdownPhase::Forced => ServerExit::Forced,
        };
        self.engine.cut();
        self.engine.reap(now);
        self.leave_log(now);
        let timeout =
            if end == ServerExit::Forced { FORCED_SHUTDOWN_WRITE_TIMEOUT } else { SHUTDOWN_WRITE_TIMEOUT };
        let is_saved = self.save(timeout);
        let end = match end {
            // The next program begins a new epoch if the history is incomplete, which is logged.
            ServerExit::Drained if self.upgrade.is_draining() && !self.take_last_signals(now) => {
                ServerExit::Replaced
            }
            end if is_saved => end,
            _ => ServerExit::HistoryIncomplete,
        };
        info!("ended {}", self.engine.shared.metrics);
        Some(end)
    }

    /// Handles the signals that arrived after those of this turn, while the history file was completed for example.
    /// Returns true if one of them ends the server. The next program receives the signals that arrive from now on.
    fn take_last_signals(&mut self, now: LoopTime) -> bool {
        signal_mask::block();
        let has_signal = self.signals.pending().any(|signal| matches!(signal, SIGTERM | SIGINT));
        if has_signal {
            self.shut_down(now);
        }
        has_signal
    }

    /// Completes the history file after all connections are closed. Returns false if it cannot be completed.
    fn save(&mut self, timeout: Duration) -> bool {
        let clients = self.engine.next_client();
        let Server { engine: Engine { hub, shared, .. }, store, clock, .. } = self;
        store.take().is_none_or(|store| {
            store.finish(hub, &mut shared.metrics, clients, clock.process_time(), clock.snapshot(), timeout)
        })
    }
}
