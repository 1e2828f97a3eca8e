//! SIGUSR2: replaces the program by the one that is now at its path, without refusing a connection.
//!
//! 1. The new program checks its flags and files in a child process (`--check`). If it fails, this server continues.
//! 2. The server drains, as at its end, but its listening sockets stay open: clients that connect meanwhile wait in
//!    their backlogs. It writes its history file to the end and closes it.
//! 3. The process executes the new program (execve(2)), with the listening sockets as a service manager passes them. It
//!    loads the history file and accepts the clients that wait.
//!
//! The process stays the same. So a service manager, a container or a terminal that started it notices a reload and not
//! an exit, the lock of the history file needs no handover, and at no time do two servers assign ids. The price is that
//! no client is served while connections are drained; with two processes it would be the same, since the second one
//! cannot publish before the first has closed the history.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command, Stdio};

use log::{error, info, warn};

use super::Server;
use super::shutdown::ShutdownPhase;
use crate::net::acceptor::Acceptor;
use crate::net::inherited_socket::{InheritedSocket, LISTEN_VARIABLES};
use crate::time::LoopTime;

/// Maximum time of the check. It reads a few small files and may look up names.
const CHECK_MS: u32 = 30_000;

/// A program that is to take the place of this one.
#[derive(Debug)]
pub(super) struct ProgramUpgrade {
    /// The command line of this process; empty if it cannot be executed again.
    command: Vec<OsString>,
    state: UpgradeState,
}

#[derive(Debug)]
enum UpgradeState {
    /// No upgrade has begun.
    Idle,
    /// The new program checks its configuration.
    Checking { check: CheckProcess, until: LoopTime },
    /// The server drains, and these are its listening sockets once it no longer accepts.
    Draining { sockets: Vec<InheritedSocket> },
}

/// The child process that checks the configuration; killed when dropped.
#[derive(Debug)]
struct CheckProcess(Child);

impl Drop for CheckProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ProgramUpgrade {
    /// No upgrade of the program with this command line.
    pub(super) fn new(command: Vec<OsString>) -> ProgramUpgrade {
        ProgramUpgrade { command, state: UpgradeState::Idle }
    }

    /// Returns true if the server drains in order to be replaced.
    pub(super) fn is_draining(&self) -> bool {
        matches!(self.state, UpgradeState::Draining { .. })
    }

    /// Keeps listening sockets for the next program.
    pub(super) fn keep(&mut self, kept: Vec<InheritedSocket>) {
        if let UpgradeState::Draining { sockets } = &mut self.state {
            *sockets = kept;
        }
    }

    /// Takes the listening sockets for the next program.
    pub(super) fn take_sockets(&mut self) -> Vec<InheritedSocket> {
        match std::mem::replace(&mut self.state, UpgradeState::Idle) {
            UpgradeState::Draining { sockets } => sockets,
            UpgradeState::Idle | UpgradeState::Checking { .. } => Vec::new(),
        }
    }

    /// Ends an upgrade that has begun. Returns true if the server was draining for it.
    pub(super) fn cancel(&mut self) -> bool {
        let was_draining = self.is_draining();
        self.state = UpgradeState::Idle;
        was_draining
    }

    /// When a check has taken too long.
    pub(super) fn deadline(&self) -> Option<LoopTime> {
        match self.state {
            UpgradeState::Checking { until, .. } => Some(until),
            UpgradeState::Idle | UpgradeState::Draining { .. } => None,
        }
    }

    /// Starts the new program, to check its configuration.
    fn check(&self) -> io::Result<CheckProcess> {
        let [program, arguments @ ..] = &self.command[..] else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let mut command = Command::new(program);
        command.args(arguments).arg("--check").stdin(Stdio::null()).stdout(Stdio::null());
        // They are for this process.
        for name in LISTEN_VARIABLES {
            command.env_remove(name);
        }
        command.spawn().map(CheckProcess)
    }

    /// Returns true if the new program has accepted its configuration, and ends the upgrade if it has not. Called in
    /// each turn; the end of the child process is a signal, and so an event.
    fn poll_check(&mut self, now: LoopTime) -> bool {
        let UpgradeState::Checking { check, until } = &mut self.state else { return false };
        let why = match check.0.try_wait() {
            Ok(None) if !until.is_due(now) => return false,
            Ok(None) => format!("its check has taken {} s", CHECK_MS / 1_000),
            Ok(Some(status)) if status.success() => return true,
            Ok(Some(status)) => format!("its check ended with {status}"),
            Err(error) => error.to_string(),
        };
        error!("SIGUSR2: the new program is not used, and this one continues: {why}");
        self.state = UpgradeState::Idle;
        false
    }
}

impl<E: Acceptor> Server<E> {
    /// Begins an upgrade, unless the server ends or an upgrade has begun.
    pub(super) fn begin_upgrade(&mut self, now: LoopTime) {
        if self.phase != ShutdownPhase::Serving || !matches!(self.upgrade.state, UpgradeState::Idle) {
            info!("SIGUSR2: ignored, since the server is ending or starting again");
            return;
        }
        match self.upgrade.check() {
            Ok(check) => {
                info!("SIGUSR2: checking the configuration with the new program");
                self.upgrade.state = UpgradeState::Checking { check, until: now.after(CHECK_MS) };
            }
            Err(error) => error!("SIGUSR2: cannot start the new program, and this one continues: {error}"),
        }
    }

    /// Begins the drain for an upgrade when the new program has accepted its configuration.
    pub(super) fn continue_upgrade(&mut self, now: LoopTime) {
        if !self.upgrade.poll_check(now) {
            return;
        }
        if self.store.is_none() && self.backplane.is_none() {
            warn!(
                "starting again without --history-file or --backplane: messages and ids are lost, and clients that resume are \
                 notified of a gap"
            );
        }
        self.service_manager.iter_mut().for_each(|manager| manager.reloading("starting again"));
        self.upgrade.state = UpgradeState::Draining { sockets: Vec::new() };
        self.engine.is_drain_announced = true;
        self.begin_drain(now);
    }
}
