//! Notifications to the service manager, in the protocol of systemd (sd_notify(3)): one datagram each.
//!
//! - `READY=1` once the history is loaded and the server listens. With a backplane the log may still be unread: a
//!   server that cannot reach it answers 503, reconnects by itself, and reports that at `/readyz`. A unit that waited
//!   for it would fail to start whenever Redis starts later.
//! - `RELOADING=1` and `READY=1` around a reload, `STOPPING=1` when the shutdown begins.
//! - `STATUS=` with the number of connections, subscribers and channels, when it has changed.
//! - `WATCHDOG=1` by a deadline of the loop, twice in the interval that the manager expects: a loop that hangs sends
//!   none.
//!
//! The loop does not wait for the manager: a status or a sign of life that it cannot take is dropped, and the next one
//! replaces it. No library is used, since those for this protocol send in blocking mode.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::warn;
use rustix::time::{ClockId, clock_gettime};

use crate::config::ServiceManagerConfig;
use crate::plural::plural;
use crate::time::LoopTime;

/// Minimum time between two messages of the status. An operator who watches `systemctl status` does not read faster.
const STATUS_MS: u32 = 5_000;

/// Maximum time that a change of the state waits for a busy manager. These are rare, and the manager waits for them.
const STATE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum interval of the watchdog: a day, far below the 24 days that a [`LoopTime`] spans.
const WATCHDOG_MS_MAX: u128 = 24 * 60 * 60 * 1_000;

/// The counts in the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ServiceStatus {
    pub(super) connections: usize,
    pub(super) subscribers: usize,
    pub(super) channels: usize,
}

/// The service manager that started this process.
#[derive(Debug)]
pub(super) struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Half of the manager's interval.
    watchdog_ms: Option<u32>,
    next_watchdog: LoopTime,
    next_status: LoopTime,
    /// The status that was sent last.
    sent: Option<ServiceStatus>,
}

impl ServiceManager {
    /// The manager of this configuration; `None` without one, or after a warning if its address is invalid.
    pub(super) fn new(config: Option<&ServiceManagerConfig>, now: LoopTime) -> Option<ServiceManager> {
        let config = config?;
        let open = || -> io::Result<_> {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.set_write_timeout(Some(STATE_TIMEOUT))?;
            Ok((socket, address(&config.socket)?))
        };
        let (socket, address) = open()
            .inspect_err(|error| warn!("NOTIFY_SOCKET {}: {error}; it is ignored", config.socket.display()))
            .ok()?;
        let watchdog_ms =
            config.watchdog.map(|interval| (interval.as_millis() / 2).clamp(1, WATCHDOG_MS_MAX) as u32);
        Some(ServiceManager {
            socket,
            address,
            watchdog_ms,
            next_watchdog: now,
            next_status: now,
            sent: None,
        })
    }

    /// Announces that the server serves.
    pub(super) fn ready(&mut self) {
        self.send_state("READY=1");
        self.sent = None;
    }

    /// Announces that the server reloads its files, or starts again in the same process.
    pub(super) fn reloading(&mut self, status: &str) {
        let time = clock_gettime(ClockId::Monotonic);
        let micros = time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000;
        self.send_state(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS={status}"));
    }

    /// Announces that the shutdown has begun.
    pub(super) fn stopping(&mut self) {
        self.send_state("STOPPING=1\nSTATUS=draining");
    }

    /// Sends a sign of life and the status when they are due.
    pub(super) fn expire(&mut self, status: ServiceStatus, now: LoopTime) {
        if let Some(interval_ms) = self.watchdog_ms
            && self.next_watchdog.is_due(now)
        {
            self.next_watchdog = now.after(interval_ms);
            let _ = self.send("WATCHDOG=1");
        }
        if self.sent != Some(status) && self.next_status.is_due(now) {
            let ServiceStatus { connections, subscribers, channels } = status;
            let [connections, subscribers, channels] = [
                plural(connections, "connection"),
                plural(subscribers, "subscriber"),
                plural(channels, "channel"),
            ];
            self.next_status = now.after(STATUS_MS);
            if self.send(&format!("STATUS={connections}, {subscribers}, {channels}")).is_ok() {
                self.sent = Some(status);
            }
        }
    }

    /// When [`ServiceManager::expire`] is to be called.
    pub(super) fn next_deadline(&self, status: ServiceStatus) -> Option<LoopTime> {
        let watchdog = self.watchdog_ms.map(|_| self.next_watchdog);
        let status = (self.sent != Some(status)).then_some(self.next_status);
        [watchdog, status].into_iter().flatten().reduce(LoopTime::min)
    }

    /// Sends a change of the state, which the manager must not miss.
    fn send_state(&self, state: &str) {
        let sent = self.socket.set_nonblocking(false).and_then(|()| self.send(state));
        let _ = self.socket.set_nonblocking(true);
        if let Err(error) = sent {
            warn!(
                "the service manager was not notified of {}: {error}",
                state.lines().next().unwrap_or(state)
            );
        }
    }

    fn send(&self, message: &str) -> io::Result<()> {
        // Not connected: the manager may replace its socket.
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(|_| ())
    }
}

/// A path, or `@` and a name in the abstract namespace.
fn address(text: &OsStr) -> io::Result<SocketAddr> {
    match text.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(text),
        _ => Err(io::Error::other("it is neither a path nor an abstract socket")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(millis: u64) -> LoopTime {
        LoopTime::from_millis(millis)
    }

    /// A manager on an abstract socket, and the messages that it has received.
    fn manager(name: &str, watchdog: Option<Duration>) -> (ServiceManager, impl Fn() -> Vec<String>) {
        let name = format!("oyez-{}-{name}", std::process::id());
        let received = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        received.set_nonblocking(true).unwrap();
        let config = ServiceManagerConfig { socket: format!("@{name}").into(), watchdog };
        let messages = move || {
            let mut buffer = [0; 1_000];
            let mut next = || received.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec());
            std::iter::from_fn(&mut next).map(|bytes| String::from_utf8(bytes).unwrap()).collect()
        };
        (ServiceManager::new(Some(&config), now(0)).unwrap(), messages)
    }

    #[test]
    fn watchdog_is_sent_twice_in_its_interval() {
        let (mut manager, messages) = manager("watchdog", Some(Duration::from_micros(30_000_999)));
        let status = ServiceStatus::default();
        manager.sent = Some(status);
        assert_eq!(manager.next_deadline(status), Some(now(0)));
        let mut sent = Vec::new();
        for millis in [0, 1, 14_999, 15_000, 29_999, 30_000] {
            manager.expire(status, now(millis));
            sent.extend(messages().iter().map(|message| (millis, message.clone())));
        }
        let message = "WATCHDOG=1".to_owned();
        assert_eq!(sent, [(0, message.clone()), (15_000, message.clone()), (30_000, message)]);
        assert_eq!(manager.next_deadline(status), Some(now(45_000)));
    }

    #[test]
    fn status_is_sent_when_it_has_changed_and_not_too_often() {
        let (mut manager, messages) = manager("status", None);
        let status = |connections| ServiceStatus { connections, subscribers: 7, channels: 2 };
        manager.expire(status(1), now(0));
        assert_eq!(messages(), ["STATUS=1 connection, 7 subscribers, 2 channels"]);
        assert_eq!(manager.next_deadline(status(1)), None, "an idle server is not woken");
        assert_eq!(manager.next_deadline(status(2)), Some(now(5_000)));
        manager.expire(status(2), now(4_999));
        assert_eq!(messages(), [""; 0]);
        manager.expire(status(3), now(5_000));
        assert_eq!(messages(), ["STATUS=3 connections, 7 subscribers, 2 channels"]);
        manager.expire(status(3), now(50_000));
        assert_eq!(messages(), [""; 0]);
    }

    #[test]
    fn manager_that_does_not_read_stops_no_loop() {
        let (mut manager, messages) = manager("full", None);
        let status = |connections| ServiceStatus { connections, ..ServiceStatus::default() };
        let mut millis = 0;
        for connections in 0..2_000 {
            millis += 5_000;
            manager.expire(status(connections), now(millis));
        }
        assert!(messages().len() < 2_000, "its queue is bounded");
        millis += 5_000;
        manager.expire(status(9), now(millis));
        assert_eq!(messages(), ["STATUS=9 connections, 0 subscribers, 0 channels"]);
    }
}
