//! A listening socket that the process inherited: from a service manager, or from the program that it has replaced.

use std::io;
use std::os::fd::OwnedFd;

use log::warn;
use socket2::SockRef;

use super::socket_file::{SocketFile, SocketFileState};
use crate::config::ListenAddress;

/// The name of an inherited socket that this process has created. It removes the file of such a Unix socket.
pub const OWN_NAME: &str = "oyez-own";

/// The name of the service manager's sockets when they are passed to the next program.
const OTHER_NAME: &str = "oyez";

/// The environment variables that pass sockets: their number, the process that they are for, their names, and the first
/// descriptor if that is not 3.
pub const LISTEN_VARIABLES: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD"];

/// A listening socket that the process was started with.
#[derive(Debug)]
pub struct InheritedSocket {
    /// The socket.
    pub socket: OwnedFd,
    /// Its address.
    pub address: ListenAddress,
    /// The file of a Unix socket, which this process has created and removes; `None` if the service manager created it.
    pub file: Option<SocketFile>,
    /// This process created the socket. The service manager keeps open those that it created.
    pub is_own: bool,
}

impl InheritedSocket {
    /// A listening socket and its name, which is [`OWN_NAME`] or was given by the service manager.
    ///
    /// # Errors
    /// The socket has neither an IP address nor a path.
    pub fn new(socket: OwnedFd, name: &str) -> io::Result<InheritedSocket> {
        let address = SockRef::from(&socket).local_addr()?;
        let path = address.as_pathname();
        // A file that was removed a moment ago is not created again: no client can connect, and the server runs on.
        let file = path.filter(|_| name == OWN_NAME).and_then(|path| SocketFile::of(path).ok());
        let address = match (address.as_socket(), path) {
            (Some(address), _) => ListenAddress::Tcp(address),
            (None, Some(path)) => ListenAddress::Unix { path: path.to_owned(), mode: None },
            (None, None) => return Err(io::Error::other("it has neither an IP address nor a path")),
        };
        Ok(InheritedSocket { socket, address, file, is_own: name == OWN_NAME })
    }

    /// The name under which the socket is passed to the next program; `None` if it is not passed: its file was removed,
    /// so no client can connect, and the next program creates another socket at its path.
    pub fn name(&self) -> Option<&'static str> {
        match self.file.as_ref().map(SocketFile::state) {
            None => Some(if self.is_own { OWN_NAME } else { OTHER_NAME }),
            Some(SocketFileState::Present) => Some(OWN_NAME),
            Some(SocketFileState::Missing) => {
                warn!("{}: the file of the socket was removed; it is created again", self.address);
                None
            }
            Some(SocketFileState::Replaced) => {
                warn!(
                    "{}: another file has taken the place of the socket's; it is not removed",
                    self.address
                );
                Some(OTHER_NAME)
            }
        }
    }

    /// Returns true if the socket listens on this address; port 0 matches any port.
    pub fn serves(&self, address: &ListenAddress) -> bool {
        match (&self.address, address) {
            (ListenAddress::Tcp(own), ListenAddress::Tcp(address)) => {
                own.ip() == address.ip() && (own.port() == address.port() || address.port() == 0)
            }
            (ListenAddress::Unix { path: own, .. }, ListenAddress::Unix { path, .. }) => own == path,
            _ => false,
        }
    }
}
