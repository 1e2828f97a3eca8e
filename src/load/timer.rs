//! A timer with a finer resolution than the poll's milliseconds.
//!
//! Messages of an open loop are due at arbitrary times. A poll that wakes up to a millisecond late would add that to
//! every latency.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::clock::RunTime;

/// Wakes the poll at a set time.
#[derive(Debug)]
pub(super) struct Timer {
    #[cfg(target_os = "linux")]
    timer: rustix::fd::OwnedFd,
    armed_for: Option<RunTime>,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// A timer that is not armed.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Timer> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Timer { timer, armed_for: None })
    }

    /// Wakes the poll at `time`, once. Arming the timer again also clears its event.
    ///
    /// # Errors
    /// None that are known.
    pub(super) fn arm(&mut self, time: RunTime, now: RunTime) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        if self.armed_for == Some(time) {
            return Ok(());
        }
        self.armed_for = Some(time);
        // Zero would disarm the timer.
        let nanos = time.nanos_since(now).max(1);
        let value =
            Timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        Ok(())
    }
}

/// Other systems use the poll's milliseconds; the report contains the resulting delay of messages.
#[cfg(not(target_os = "linux"))]
impl Timer {
    pub(super) fn new(_: &Registry, _: Token) -> io::Result<Timer> {
        Ok(Timer { armed_for: None })
    }

    pub(super) fn arm(&mut self, _: RunTime, _: RunTime) -> io::Result<()> {
        Ok(())
    }
}
