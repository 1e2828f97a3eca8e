//! A listening socket that the process inherited: from a service manager, or from the program that it has replaced.

use std::io;
use std::os::fd::OwnedFd;

use socket2::SockRef;

use crate::config::ListenAddress;

/// The name of an inherited Unix socket whose file this process has created, and therefore removes.
pub const OWN_NAME: &str = "oyez-own";

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
    /// True if this process created the socket's file; false if the service manager did.
    pub is_own: bool,
}

impl InheritedSocket {
    /// A listening socket and its name, which is [`OWN_NAME`] or was given by the service manager.
    ///
    /// # Errors
    /// The socket has neither an IP address nor a path.
    pub fn new(socket: OwnedFd, name: &str) -> io::Result<InheritedSocket> {
        let address = SockRef::from(&socket).local_addr()?;
        let address = match (address.as_socket(), address.as_pathname()) {
            (Some(address), _) => ListenAddress::Tcp(address),
            (None, Some(path)) => ListenAddress::Unix { path: path.to_owned(), mode: None },
            (None, None) => return Err(io::Error::other("it has neither an IP address nor a path")),
        };
        Ok(InheritedSocket { socket, address, is_own: name == OWN_NAME })
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
