//! The environment variables of a service manager such as systemd: listening sockets (sd_listen_fds(3)), and the
//! address for notifications (sd_notify(3), sd_watchdog_enabled(3)).

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use listenfd::ListenFd;
use socket2::SockRef;

use super::failure::Failure;
use crate::config::ServiceManagerConfig;
use crate::net::inherited_socket::InheritedSocket;

/// Takes the listening sockets that the process inherited.
///
/// Must be called once, before other descriptors are opened.
pub(super) fn take_sockets() -> Result<Vec<InheritedSocket>, Failure> {
    // `ListenFd` ignores the names of the sockets.
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut passed = ListenFd::from_env();
    let sockets = (0..passed.len()).map(|at| {
        let name = names.next().unwrap_or_default();
        take_socket(&mut passed, at).and_then(|socket| InheritedSocket::new(socket, name)).map_err(|error| {
            let place = if name.is_empty() { format!("socket {at}") } else { format!("socket {at} ({name})") };
            Failure::Failed(format!(
                "LISTEN_FDS: {place} of the service manager cannot be used: {error}; it must be a listening TCP or Unix stream socket (ListenStream=, Accept=no)"
            ))
        })
    });
    sockets.collect()
}

/// Takes a TCP socket or a Unix stream socket.
fn take_socket(passed: &mut ListenFd, at: usize) -> io::Result<OwnedFd> {
    let tcp = passed.take_tcp_listener(at).map(|socket| socket.map(OwnedFd::from));
    let socket = tcp.or_else(|_| passed.take_unix_listener(at).map(|socket| socket.map(OwnedFd::from)))?;
    let socket = socket.ok_or(io::ErrorKind::NotFound)?;
    if !SockRef::from(&socket).is_listener()? {
        return Err(io::Error::other("it does not listen"));
    }
    Ok(socket)
}

/// The address of the service manager for notifications, and the interval of its watchdog; `None` without a service
/// manager.
pub(super) fn config() -> Option<ServiceManagerConfig> {
    let socket = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
    Some(ServiceManagerConfig { socket, watchdog: watchdog() })
}

fn watchdog() -> Option<Duration> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // The variables may be meant for a parent process.
    let is_own = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|&micros| is_own && micros > 0).map(Duration::from_micros)
}
