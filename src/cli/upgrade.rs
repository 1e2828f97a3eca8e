//! Executes the next program in this process, with the listening sockets as a service manager passes them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::failure::Failure;
use crate::net::inherited_socket::{InheritedSocket, LISTEN_VARIABLES, OWN_NAME};

/// The descriptors below are those of standard input, output and error.
const FIRST_DESCRIPTOR: RawFd = 3;

/// Executes a command line in this process. Returns the error if that fails.
pub(super) fn execute(command: &[OsString], sockets: Vec<InheritedSocket>) -> Failure {
    let Err(error) = try_execute(command, sockets);
    Failure::Failed(format!("cannot execute the next program: {error}"))
}

fn try_execute(command: &[OsString], sockets: Vec<InheritedSocket>) -> io::Result<std::convert::Infallible> {
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::Unsupported.into()) };
    let names: Vec<&str> =
        sockets.iter().map(|socket| if socket.is_own { OWN_NAME } else { "oyez" }).collect();
    let sockets = consecutive(&sockets)?;
    for socket in &sockets {
        fcntl_setfd(socket, FdFlags::empty())?;
    }
    let first = sockets.first().map_or(FIRST_DESCRIPTOR, AsRawFd::as_raw_fd);
    // The process stays the same, and with it its id.
    let values =
        [sockets.len().to_string(), std::process::id().to_string(), names.join(":"), first.to_string()];
    let mut command = Command::new(program);
    command.args(arguments).envs(LISTEN_VARIABLES.into_iter().zip(values));
    Err(command.exec())
}

/// Duplicates the sockets to consecutive descriptors, which all are closed by execve(2) as yet.
fn consecutive(sockets: &[InheritedSocket]) -> io::Result<Vec<OwnedFd>> {
    let mut first = FIRST_DESCRIPTOR;
    loop {
        let mut duplicates: Vec<OwnedFd> = Vec::new();
        for socket in sockets {
            let wanted = first + duplicates.len() as RawFd;
            duplicates.push(fcntl_dupfd_cloexec(&socket.socket, wanted)?);
            let last = duplicates[duplicates.len() - 1].as_raw_fd();
            if last != wanted {
                // Another descriptor is in the way.
                first = last;
                break;
            }
        }
        if duplicates.len() == sockets.len()
            && duplicates.iter().zip(first..).all(|(fd, at)| fd.as_raw_fd() == at)
        {
            return Ok(duplicates);
        }
    }
}
