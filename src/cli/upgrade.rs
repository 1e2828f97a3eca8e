//! Executes the next program in this process, with the listening sockets as a service manager passes them.
//!
//! The program may have been removed since its check, by a deployment that failed for example. Then this program is
//! executed again: its file is open as long as it runs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use log::error;
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::failure::Failure;
use crate::net::inherited_socket::{InheritedSocket, LISTEN_VARIABLES};

/// The descriptors below are those of standard input, output and error.
const FIRST_DESCRIPTOR: RawFd = 3;

/// The program that runs, also if its file was removed or replaced (proc(5)).
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Executes a command line in this process. Returns the error if that fails.
pub(super) fn execute(command: &[OsString], sockets: Vec<InheritedSocket>) -> Failure {
    let Err(error) = try_execute(command, sockets);
    Failure::Failed(format!("cannot execute the next program: {error}"))
}

fn try_execute(command: &[OsString], sockets: Vec<InheritedSocket>) -> io::Result<std::convert::Infallible> {
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::Unsupported.into()) };
    let (names, sockets): (Vec<&str>, Vec<InheritedSocket>) =
        sockets.into_iter().filter_map(|socket| Some((socket.name()?, socket))).unzip();
    let passed = consecutive(&sockets)?;
    for socket in &passed {
        fcntl_setfd(socket, FdFlags::empty())?;
    }
    let first = passed.first().map_or(FIRST_DESCRIPTOR, AsRawFd::as_raw_fd);
    // The process stays the same, and with it its id.
    let values =
        [passed.len().to_string(), std::process::id().to_string(), names.join(":"), first.to_string()];
    let execute = |path: &OsStr| {
        let mut command = Command::new(path);
        command.arg0(program).args(arguments).envs(LISTEN_VARIABLES.into_iter().zip(&values)).exec()
    };
    let error = execute(program);
    error!(
        "cannot execute {}: {error}; the program that has run until now is executed again",
        program.display()
    );
    Err(execute(OWN_PROGRAM.as_ref()))
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
