//! All listening sockets: they take turns, and pause together at the connection limit or without file descriptors.
//!
//! A listener is edge-triggered like every socket: an event announces once that clients wait. So each has a flag
//! (**drain or requeue**): until `accept` returns WouldBlock it is ready, and the loop calls it again. While accepting
//! is paused, clients wait in the kernel's backlogs, at no cost to the process. Accepting resumes when a connection
//! closes, or by timer, without an event from a new client.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::net::SocketAddr;

use log::warn;
use mio::net::TcpStream;
use mio::{Registry, Token};

use super::inherited_socket::InheritedSocket;
use super::listener::{Listener, ReservedAddress};
use crate::config::{ListenAddress, TcpConfig};
use crate::ids::Peer;
use crate::time::LoopTime;

/// How long accepting pauses at the connection limit or without descriptors, in milliseconds. A connection that closes
/// ends the pause earlier; the timer is for descriptors that other parts of the process close.
const PAUSE_MS: u32 = 100;

/// The reserved addresses of a server that does not listen yet.
#[derive(Debug)]
pub struct ReservedAddresses(Vec<(ListenAddress, ReservedAddress)>);

/// The listening sockets of a server.
#[derive(Debug)]
pub struct Listeners {
    entries: Vec<ListenerEntry>,
    /// Index of the listener that accepts next, so that a flood at one listener does not keep the clients of the others
    /// waiting.
    next: usize,
    /// The token of the first listener; those of the others are the next lower ones.
    first_token: Token,
    /// Accepting is paused until there is room, and at most until this time.
    paused_until: Option<LoopTime>,
    /// A spare descriptor, closed when no other is left, so that one client can be accepted and get a response.
    reserve: Option<File>,
    /// The last accept failed since no descriptor was left. This repeats ten times a second, and is logged once.
    is_exhausted: bool,
}

#[derive(Debug)]
struct ListenerEntry {
    listener: Listener,
    /// Clients may be waiting that no further event will announce.
    is_ready: bool,
    /// Clients that wait are lost when this process closes the socket: no service manager keeps it open.
    is_own: bool,
}

/// The result of one accept.
#[derive(Debug)]
pub enum Accept {
    /// A connection.
    Connection(TcpStream, Peer),
    /// No client waits, or accepting is paused.
    Idle,
    /// A client that has disconnected already: accept(2) returns the error of its connection. The next accept may
    /// succeed.
    Aborted(io::Error),
    /// No descriptor or no memory is left, and accepting is paused; one client may have been sent a response.
    Exhausted {
        /// The error of accept(2).
        error: io::Error,
        /// True for the first failure since a client was accepted.
        is_first: bool,
    },
}

/// An address that cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The address.
    pub address: ListenAddress,
    /// The reason.
    pub error: io::Error,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.error)
    }
}

impl ReservedAddresses {
    /// Checks that the addresses are free, and binds the TCP addresses. An inherited socket is used for its address, or
    /// in addition to the addresses.
    ///
    /// # Errors
    /// The first address that cannot be listened on.
    pub fn reserve(
        addresses: &[ListenAddress],
        mut inherited: Vec<InheritedSocket>,
        tcp: &TcpConfig,
    ) -> Result<ReservedAddresses, ListenError> {
        // First those of the same port: a socket that port 0 takes may be that of a later address.
        let mut take = |address: &ListenAddress, is_exact: bool| {
            let is_used = |socket: &InheritedSocket| {
                socket.serves(address) && (!is_exact || socket.address == *address)
            };
            inherited.iter().position(is_used).map(|at| inherited.remove(at))
        };
        let exact: Vec<_> = addresses.iter().map(|address| take(address, true)).collect();
        let mut reserved = Vec::new();
        for (address, socket) in addresses.iter().zip(exact) {
            let found = match socket.or_else(|| take(address, false)) {
                Some(socket) => ReservedAddress::inherit(socket, tcp),
                None => ReservedAddress::reserve(address, is_v6_only(address, addresses), tcp),
            };
            let failed = |error| ListenError { address: address.clone(), error };
            reserved.push((address.clone(), found.map_err(failed)?));
        }
        for socket in inherited {
            let address = socket.address.clone();
            let found = ReservedAddress::inherit(socket, tcp);
            let failed = |error| ListenError { address: address.clone(), error };
            reserved.push((address.clone(), found.map_err(failed)?));
        }
        Ok(ReservedAddresses(reserved))
    }

    /// Calls `load`, then listens. Returns the result of `load` and the listeners. The kernel refuses connections until
    /// then.
    ///
    /// # Errors
    /// `load` failed, or an address cannot be listened on.
    pub fn listen_after<R, E: From<ListenError>>(
        self,
        tcp: &TcpConfig,
        load: impl FnOnce() -> Result<R, E>,
    ) -> Result<(R, Listeners), E> {
        let loaded = load()?;
        let listening = self.0.into_iter().map(|(address, reserved)| {
            let is_own = reserved.is_own();
            let listener = reserved.listen(tcp).map_err(|error| ListenError { address, error })?;
            Ok(ListenerEntry { listener, is_ready: false, is_own })
        });
        let listeners = Listeners {
            entries: listening.collect::<Result<_, ListenError>>()?,
            next: 0,
            first_token: Token(usize::MAX),
            paused_until: None,
            reserve: reserve(),
            is_exhausted: false,
        };
        Ok((loaded, listeners))
    }
}

/// Returns true if an address stands for all IPv6 addresses only, and not for those of IPv4, as it does by itself: IPv4
/// clients of the port are accepted at another address of the list, and Linux does not let both listen.
fn is_v6_only(address: &ListenAddress, addresses: &[ListenAddress]) -> bool {
    let ListenAddress::Tcp(SocketAddr::V6(v6)) = address else { return false };
    let is_v4 = |other: &ListenAddress| matches!(other, ListenAddress::Tcp(SocketAddr::V4(v4)) if v4.port() == v6.port());
    v6.ip().is_unspecified() && v6.port() != 0 && addresses.iter().any(is_v4)
}

impl Listeners {
    /// The local addresses, with the ports that the kernel chose for port 0.
    pub fn addresses(&self) -> impl Iterator<Item = ListenAddress> {
        self.entries.iter().filter_map(|entry| entry.listener.address().ok())
    }

    /// Registers the sockets with the poll: the first with this token, each further one with the next lower token.
    ///
    /// # Errors
    /// A registration failed.
    pub fn register(&mut self, registry: &Registry, first_token: Token) -> io::Result<()> {
        self.first_token = first_token;
        for (at, entry) in self.entries.iter_mut().enumerate() {
            entry.listener.register(registry, Token(first_token.0 - at))?;
        }
        Ok(())
    }

    /// Returns the sockets without closing them, for the next program. Clients wait in their backlogs.
    pub fn into_inherited(self, registry: &Registry) -> Vec<InheritedSocket> {
        let sockets =
            self.entries.into_iter().map(|entry| entry.listener.into_inherited(registry, entry.is_own));
        sockets
            .filter_map(|socket| {
                socket.inspect_err(|error| warn!("a listening socket is lost: {error}")).ok()
            })
            .collect()
    }

    /// Records an event: clients wait. It does not end a pause. Returns false if the token is not of a listener.
    pub fn mark(&mut self, token: Token) -> bool {
        let at = self.first_token.0.checked_sub(token.0);
        let entry = at.and_then(|at| self.entries.get_mut(at));
        entry.map(|entry| entry.is_ready = true).is_some()
    }

    /// Prepares for the last accepts: clients may be waiting at each socket that this process is about to close. Those
    /// of a service manager wait for the next process.
    pub fn mark_own(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.is_ready = entry.is_own);
    }

    /// Ends a pause: a connection has closed, so there may be room.
    pub fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Pauses accepting, for lack of room or descriptors.
    pub fn pause(&mut self, now: LoopTime) {
        self.paused_until = Some(now.after(PAUSE_MS));
    }

    /// Returns true if clients may wait that no further event will announce.
    pub fn has_work(&self) -> bool {
        self.paused_until.is_none() && self.entries.iter().any(|entry| entry.is_ready)
    }

    /// When a pause ends by timer.
    pub fn deadline(&self) -> Option<LoopTime> {
        self.paused_until
    }

    /// Accepts one connection: at the next listener at which a client waits, after the one that accepted last.
    /// `overload_response` is sent to one client if descriptors run out.
    pub fn accept(&mut self, now: LoopTime, overload_response: impl FnOnce() -> Vec<u8>) -> Accept {
        if self.paused_until.is_some_and(|deadline| deadline.is_due(now)) {
            self.paused_until = None;
        }
        if self.paused_until.is_some() {
            return Accept::Idle;
        }
        if self.reserve.is_none() {
            self.reserve = reserve();
        }
        for _ in 0..self.entries.len() {
            let at = self.next;
            self.next = (at + 1) % self.entries.len();
            let entry = &mut self.entries[at];
            if !entry.is_ready {
                continue;
            }
            match entry.listener.accept() {
                Ok((stream, peer)) => {
                    self.is_exhausted = false;
                    return Accept::Connection(stream, peer);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => entry.is_ready = false,
                Err(error) if is_exhausted(&error) => {
                    self.pause(now);
                    self.reject_one(at, overload_response);
                    let is_first = !mem::replace(&mut self.is_exhausted, true);
                    return Accept::Exhausted { error, is_first };
                }
                Err(error) => return Accept::Aborted(error),
            }
        }
        Accept::Idle
    }

    /// Closes the spare descriptor for as long as it takes to send one client the overload response.
    fn reject_one(&mut self, at: usize, overload_response: impl FnOnce() -> Vec<u8>) {
        self.reserve = None;
        if let Ok((mut stream, _)) = self.entries[at].listener.accept() {
            // Best effort, without waiting: bytes that have arrived are read, since closing with unread bytes sends a
            // reset, which would overtake the response.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write(&overload_response());
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        self.reserve = reserve();
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Returns true if the server is out of descriptors or memory; other errors are those of the client's connection.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    use super::*;
    use crate::ids::UNIX_ADDRESS;
    use crate::net::inherited_socket::OWN_NAME;

    const FIRST: Token = Token(100);

    fn tcp_address() -> ListenAddress {
        ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The path of a socket that does not exist.
    fn path(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("oyez-{}-{name}.sock", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    fn unix_address(path: &Path) -> ListenAddress {
        ListenAddress::Unix { path: path.to_owned(), mode: None }
    }

    fn reserve_all(addresses: &[ListenAddress]) -> Result<ReservedAddresses, ListenError> {
        ReservedAddresses::reserve(addresses, Vec::new(), &TcpConfig::default())
    }

    fn listen(addresses: &[ListenAddress]) -> Listeners {
        let load = || Ok::<_, ListenError>(());
        let mut listeners =
            reserve_all(addresses).unwrap().listen_after(&TcpConfig::default(), load).unwrap().1;
        listeners.first_token = FIRST;
        listeners
    }

    fn mark_all(listeners: &mut Listeners) {
        (0..listeners.entries.len()).for_each(|at| assert!(listeners.mark(Token(FIRST.0 - at))));
    }

    fn connect(address: &ListenAddress) -> io::Result<Box<dyn std::any::Any>> {
        match address {
            ListenAddress::Tcp(address) => TcpStream::connect(address).map(|stream| Box::new(stream) as _),
            ListenAddress::Unix { path, .. } => UnixStream::connect(path).map(|stream| Box::new(stream) as _),
        }
    }

    fn now() -> LoopTime {
        LoopTime::from_millis(0)
    }

    #[test]
    fn connections_are_refused_until_load_returns() {
        let unix = unix_address(&path("load"));
        let reserved = reserve_all(&[tcp_address(), unix.clone()]).unwrap();
        let ReservedAddress::Tcp(socket) = &reserved.0[0].1 else { panic!("no TCP") };
        let tcp = ListenAddress::Tcp(socket.local_addr().unwrap());
        let load = || -> Result<u32, ListenError> {
            assert_eq!(connect(&tcp).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            assert!(connect(&unix).is_err());
            Ok(7)
        };
        let (loaded, listeners) = reserved.listen_after(&TcpConfig::default(), load).unwrap();
        assert_eq!(loaded, 7);
        assert_eq!(listeners.addresses().collect::<Vec<_>>(), [tcp.clone(), unix.clone()]);
        let _clients = [connect(&tcp).unwrap(), connect(&unix).unwrap()];
    }

    #[test]
    fn failed_load_does_not_listen() {
        let path = path("failed");
        let unix = unix_address(&path);
        let failure = ListenError { address: unix.clone(), error: io::ErrorKind::InvalidData.into() };
        let reserved = reserve_all(&[tcp_address(), unix]).unwrap();
        let failed = reserved.listen_after(&TcpConfig::default(), || Err::<(), _>(failure));
        assert_eq!(failed.unwrap_err().error.kind(), io::ErrorKind::InvalidData);
        assert!(!path.exists());
    }

    #[test]
    fn second_listener_fails_before_it_loads_or_after_if_both_load() {
        for address in [tcp_address(), unix_address(&path("second"))] {
            let first = reserve_all(std::slice::from_ref(&address)).unwrap();
            let address = match &first.0[0].1 {
                ReservedAddress::Tcp(socket) => ListenAddress::Tcp(socket.local_addr().unwrap()),
                ReservedAddress::Unix { .. } | ReservedAddress::Inherited { .. } => address,
            };
            let second = reserve_all(std::slice::from_ref(&address)).unwrap();
            let load = || Ok::<_, ListenError>(());
            let _first = first.listen_after(&TcpConfig::default(), load).unwrap();
            let error = reserve_all(std::slice::from_ref(&address)).unwrap_err();
            assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse, "while the first listens");
            assert_eq!(error.address, address);
            let late = second.listen_after(&TcpConfig::default(), load).unwrap_err();
            assert_eq!(late.error.kind(), io::ErrorKind::AddrInUse, "SO_REUSEADDR allows the bind");
        }
    }

    #[test]
    fn socket_file_is_removed_only_if_it_is_a_socket_without_a_listener() {
        let path = path("stale");
        let address = unix_address(&path);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a server that is killed leaves its file");
        let listeners = listen(std::slice::from_ref(&address));
        let _client = connect(&address).unwrap();
        drop(listeners);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        let error = reserve_all(std::slice::from_ref(&address)).unwrap_err().error;
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
        let missing = unix_address(Path::new("/nonexistent/oyez.sock"));
        assert_eq!(reserve_all(&[missing]).unwrap_err().error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn socket_file_of_another_server_is_not_removed() {
        let path = path("taken");
        let listeners = listen(&[unix_address(&path)]);
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(listeners);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn mode_sets_the_permissions_of_the_socket_file() {
        let path = path("mode");
        for mode in [0o600, 0o666] {
            let _listeners = listen(&[ListenAddress::Unix { path: path.clone(), mode: Some(mode) }]);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn inherited_socket_is_used_for_its_address_or_in_addition() {
        let unix = path("inherited");
        let (tcp, own) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(&unix).unwrap());
        let other = TcpListener::bind("[::1]:0").unwrap();
        let addresses = [
            ListenAddress::Tcp(tcp.local_addr().unwrap()),
            unix_address(&unix),
            ListenAddress::Tcp(other.local_addr().unwrap()),
        ];
        let sockets: [(OwnedFd, &str); 3] =
            [(other.into(), "oyez.socket"), (own.into(), OWN_NAME), (tcp.into(), "oyez.socket")];
        let inherited = sockets.map(|(socket, name)| InheritedSocket::new(socket, name).unwrap());
        let config = TcpConfig::default();
        // Port 0 is any port of its address.
        let wanted = [tcp_address(), addresses[1].clone()];
        let reserved = ReservedAddresses::reserve(&wanted, inherited.into(), &config).unwrap();
        let (_, listeners) = reserved.listen_after(&config, || Ok::<_, ListenError>(())).unwrap();
        assert_eq!(listeners.addresses().collect::<Vec<_>>(), addresses);
        let clients: Vec<_> = addresses.iter().map(|address| connect(address).unwrap()).collect();
        drop((listeners, clients));
        assert!(!unix.exists(), "its own file");
        let socket = InheritedSocket::new(UnixListener::bind(&unix).unwrap().into(), "oyez.socket").unwrap();
        drop(ReservedAddresses::reserve(&[], vec![socket], &config).unwrap());
        // Port 0 does not take the socket of a later address.
        let passed = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ListenAddress::Tcp(passed.local_addr().unwrap());
        let socket = InheritedSocket::new(passed.into(), "oyez.socket").unwrap();
        let wanted = [tcp_address(), address.clone()];
        let reserved = ReservedAddresses::reserve(&wanted, vec![socket], &config).unwrap();
        let (_, listeners) = reserved.listen_after(&config, || Ok::<_, ListenError>(())).unwrap();
        assert_eq!(listeners.addresses().nth(1), Some(address));
        assert!(unix.exists(), "the file of the service manager");
        fs::remove_file(&unix).unwrap();
    }

    #[test]
    fn listeners_take_turns() {
        let mut listeners = listen(&[tcp_address(), unix_address(&path("turns")), tcp_address()]);
        let addresses: Vec<_> = listeners.addresses().collect();
        let clients: Vec<_> = [0, 0, 0, 1, 1, 2].iter().map(|&at| connect(&addresses[at]).unwrap()).collect();
        mark_all(&mut listeners);
        assert!(!listeners.mark(Token(FIRST.0 + 1)) && !listeners.mark(Token(FIRST.0 - 3)));
        let mut order = Vec::new();
        while let Accept::Connection(stream, peer) = listeners.accept(now(), Vec::new) {
            let is_unix = peer.ip() == UNIX_ADDRESS;
            let local = stream.local_addr().ok().filter(|_| !is_unix).map(ListenAddress::Tcp);
            order.push(local.map_or(1, |local| addresses.iter().position(|one| *one == local).unwrap()));
        }
        assert_eq!(order, [0, 1, 2, 0, 1, 0]);
        assert!(!listeners.has_work());
        drop(clients);
    }

    #[test]
    fn paused_accept_resumes_by_timer_or_after_a_close() {
        let mut listeners = listen(&[tcp_address(), unix_address(&path("paused"))]);
        let addresses: Vec<_> = listeners.addresses().collect();
        listeners.pause(now());
        mark_all(&mut listeners);
        assert!(!listeners.has_work(), "a new client does not end it");
        assert_eq!(listeners.deadline(), Some(now().after(PAUSE_MS)));
        listeners.resume();
        assert!(listeners.has_work());
        listeners.pause(now());
        let _clients: Vec<_> = addresses.iter().map(|address| connect(address).unwrap()).collect();
        assert!(matches!(listeners.accept(now(), Vec::new), Accept::Idle));
        for _ in 0..2 {
            assert!(matches!(listeners.accept(now().after(PAUSE_MS), Vec::new), Accept::Connection(..)));
        }
    }
}
