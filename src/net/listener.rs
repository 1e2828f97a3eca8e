//! One listening socket, TCP or Unix: bind, listen, accept.
//!
//! The stream of a Unix socket is a [`TcpStream`] to the rest of the server: both are descriptors that are read and
//! written with the same system calls, so a slot has one type of transport and no branch at each read.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream, UnixListener};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::inherited_socket::InheritedSocket;
use super::socket_file::{self, SocketFile};
use crate::config::{ListenAddress, TcpConfig};
use crate::ids::Peer;

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix {
        /// The socket.
        socket: UnixListener,
        /// Its path.
        path: PathBuf,
        /// Its file, which is removed with the socket; `None`: a service manager created it.
        file: Option<SocketFile>,
    },
}

/// An address that was free at the start, and that the server listens on once its history is loaded.
#[derive(Debug)]
pub enum ReservedAddress {
    /// A bound TCP socket. Another process that has bound the address too may still listen first.
    Tcp(TcpListener),
    /// The path of a Unix socket. Its file is not created yet: a socket without a listener would count as stale.
    Unix {
        /// The path.
        path: PathBuf,
        /// The permissions.
        mode: Option<u32>,
    },
    /// An inherited socket. It listens already, and connections wait until they are accepted.
    Inherited {
        /// The socket.
        listener: Listener,
        /// See [`InheritedSocket::is_own`].
        is_own: bool,
    },
}

impl ReservedAddress {
    /// Checks that an address is free, and binds a TCP address. `is_v6_only`: not for IPv4 clients.
    ///
    /// # Errors
    /// The address is in use or not available, or a socket option is rejected.
    pub fn reserve(
        address: &ListenAddress,
        is_v6_only: bool,
        tcp: &TcpConfig,
    ) -> io::Result<ReservedAddress> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address, is_v6_only, tcp).map(ReservedAddress::Tcp),
            ListenAddress::Unix { path, mode } => {
                socket_file::is_stale(path)?;
                Ok(ReservedAddress::Unix { path: path.clone(), mode: *mode })
            }
        }
    }

    /// Listens on the address.
    ///
    /// # Errors
    /// Another socket listens on the address by now, or the file of a Unix socket cannot be created.
    pub fn listen(self, tcp: &TcpConfig) -> io::Result<Listener> {
        let backlog = tcp.backlog.try_into().unwrap_or(i32::MAX);
        match self {
            ReservedAddress::Tcp(socket) => {
                SockRef::from(&socket).listen(backlog)?;
                Ok(Listener::Tcp(socket))
            }
            ReservedAddress::Unix { path, mode } => {
                let (socket, file) = SocketFile::listen(&path, mode, backlog)?;
                Ok(Listener::Unix { socket: UnixListener::from_std(socket), path, file: Some(file) })
            }
            ReservedAddress::Inherited { listener, .. } => Ok(listener),
        }
    }

    /// Takes a socket that the process inherited.
    ///
    /// # Errors
    /// A socket option is rejected.
    pub fn inherit(inherited: InheritedSocket, tcp: &TcpConfig) -> io::Result<ReservedAddress> {
        let InheritedSocket { socket, address, file, is_own } = inherited;
        let listener = match address {
            ListenAddress::Tcp(_) => {
                set_tcp_options(&SockRef::from(&socket), tcp)?;
                Listener::Tcp(TcpListener::from(socket))
            }
            ListenAddress::Unix { path, .. } => {
                SockRef::from(&socket).set_nonblocking(true)?;
                Listener::Unix { socket: UnixListener::from(socket), path, file }
            }
        };
        Ok(ReservedAddress::Inherited { listener, is_own })
    }

    /// Returns true if this process creates the socket, or has created it before it executed the program again.
    pub fn is_own(&self) -> bool {
        !matches!(self, ReservedAddress::Inherited { is_own: false, .. })
    }
}

fn bind_tcp(address: SocketAddr, is_v6_only: bool, tcp: &TcpConfig) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the previous process to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    if tcp.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // The default is a setting of the machine.
        socket.set_only_v6(is_v6_only)?;
    }
    set_tcp_options(&SockRef::from(&socket), tcp)?;
    socket.bind(&address.into())?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Sets the options that accepted sockets inherit.
fn set_tcp_options(socket: &SockRef<'_>, tcp: &TcpConfig) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(tcp.user_timeout_ms))))?;
        socket.set_tcp_notsent_lowat(tcp.notsent_lowat_bytes)?;
    }
    Ok(())
}

impl Listener {
    /// The local address, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// getsockname(2) failed.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Listener::Tcp(socket) => socket.local_addr().map(ListenAddress::Tcp),
            Listener::Unix { path, .. } => Ok(ListenAddress::Unix { path: path.clone(), mode: None }),
        }
    }

    /// Registers the socket with the poll.
    ///
    /// # Errors
    /// The registration failed.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Listener::Tcp(socket) => registry.register(socket, token, Interest::READABLE),
            Listener::Unix { socket, .. } => registry.register(socket, token, Interest::READABLE),
        }
    }

    /// Returns the socket without closing it, for the next program. Connections wait in its backlog.
    ///
    /// # Errors
    /// The registration with the poll cannot be removed.
    pub fn into_inherited(mut self, registry: &Registry, is_own: bool) -> io::Result<InheritedSocket> {
        let address = self.address()?;
        match self {
            Listener::Tcp(ref mut socket) => registry.deregister(socket)?,
            Listener::Unix { ref mut socket, .. } => registry.deregister(socket)?,
        }
        let (socket, file) = match self {
            Listener::Tcp(socket) => (socket.into(), None),
            Listener::Unix { socket, file, .. } => (socket.into(), file),
        };
        Ok(InheritedSocket { socket, address, file, is_own })
    }

    /// Accepts one connection.
    ///
    /// # Errors
    /// `WouldBlock` if no client waits; the error of accept(2).
    pub fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        match self {
            Listener::Tcp(socket) => socket.accept().map(|(stream, peer)| (stream, Peer::from(peer))),
            Listener::Unix { socket, .. } => {
                let (stream, _) = socket.accept()?;
                Ok((TcpStream::from(OwnedFd::from(stream)), Peer::UNIX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let tcp =
            TcpConfig { backlog: 7, notsent_lowat_bytes: 4_096, user_timeout_ms: 1_234, reuse_port: false };
        let any = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = ReservedAddress::reserve(&any, false, &tcp).unwrap().listen(&tcp).unwrap();
        let Ok(ListenAddress::Tcp(address)) = listener.address() else { panic!("no TCP") };
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        assert!(peer.ip().is_loopback());
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 4_096);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1_234)));
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn backlog_bounds_waiting_clients() {
        let tcp = TcpConfig { backlog: 2, ..TcpConfig::default() };
        let any = ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = ReservedAddress::reserve(&any, false, &tcp).unwrap().listen(&tcp).unwrap();
        let Ok(ListenAddress::Tcp(address)) = listener.address() else { panic!("no TCP") };
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let waiting: Vec<_> = (0..8).map_while(|_| connect().ok()).collect();
        // listen(2) on Linux accepts one more than the backlog.
        assert_eq!(waiting.len(), 3);
    }
}
