//! The listening socket: bind, accept with a budget, and pause at the connection limit or without file descriptors.
//!
//! The listener is edge-triggered like every socket: an event announces once that clients wait. So it keeps a state
//! (**drain or requeue**): until `accept` returns WouldBlock it is `Ready`, and the loop calls it again. While it is
//! `Paused`, clients wait in the kernel's backlog, at no cost to the process. Accepting resumes when a connection
//! closes, or by timer, without an event from a new client.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::TcpConfig;
use crate::time::LoopTime;

/// How long accepting pauses at the connection limit or without descriptors, in milliseconds. A connection that closes
/// ends the pause earlier; the timer is for descriptors that other parts of the process close.
const PAUSE_MS: u32 = 100;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    state: Accepting,
    /// A spare descriptor, closed when no other is left, so that one client can be accepted and get a response.
    reserve: Option<File>,
    /// The last accept failed for want of a descriptor. It does so ten times a second, and is logged once.
    is_exhausted: bool,
}

/// Whether clients wait to be accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    /// No client waits; an event announces the next.
    Idle,
    /// Clients may wait.
    Ready,
    /// Clients may wait, and must do so until there is room.
    Paused { until: LoopTime },
}

/// The result of one accept.
#[derive(Debug)]
pub enum Accept {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// No client waits, or accepting is paused.
    Idle,
    /// A client that has disconnected already: accept(2) returns the error of its connection. The next accept may
    /// succeed.
    Aborted(io::Error),
    /// No descriptor or no memory is left, and accepting is paused; one client may have been sent a response.
    Exhausted {
        /// The error of accept(2).
        error: io::Error,
        /// It is the first since a client was accepted.
        is_first: bool,
    },
}

impl Listener {
    /// Binds without listening.
    ///
    /// # Errors
    /// The address is in use or not available, or a socket option is rejected.
    pub fn bind(address: SocketAddr, tcp: &TcpConfig) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the last server's connections to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
        if tcp.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_user_timeout(Some(Duration::from_millis(u64::from(tcp.user_timeout_ms))))?;
            socket.set_tcp_notsent_lowat(tcp.notsent_lowat_bytes)?;
        }
        socket.bind(&address.into())?;
        Ok(Listener {
            socket: TcpListener::from_std(socket.into()),
            state: Accepting::Idle,
            reserve: reserve(),
            is_exhausted: false,
        })
    }

    /// Calls `load`, then listens, and returns the result of `load`. The kernel refuses connections until then.
    ///
    /// # Errors
    /// `load` failed, or another socket listens on the address.
    pub fn listen_after<R, E: From<io::Error>>(
        &mut self,
        tcp: &TcpConfig,
        load: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let loaded = load()?;
        SockRef::from(&self.socket).listen(tcp.backlog.try_into().unwrap_or(i32::MAX))?;
        Ok(loaded)
    }

    /// The local address, with the port that the kernel chose for port 0.
    ///
    /// # Errors
    /// getsockname(2) failed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Registers the socket with the poll.
    ///
    /// # Errors
    /// The registration failed.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    /// Records an event: clients wait. It does not end a pause.
    pub fn mark_ready(&mut self) {
        if self.state == Accepting::Idle {
            self.state = Accepting::Ready;
        }
    }

    /// Ends a pause: a connection has closed, so there may be room.
    pub fn resume(&mut self) {
        if matches!(self.state, Accepting::Paused { .. }) {
            self.state = Accepting::Ready;
        }
    }

    /// Pauses accepting, for lack of room or descriptors.
    pub fn pause(&mut self, now: LoopTime) {
        self.state = Accepting::Paused { until: now.after(PAUSE_MS) };
    }

    /// Returns true if clients may wait that no further event will announce.
    pub fn has_work(&self) -> bool {
        self.state == Accepting::Ready
    }

    /// When a pause ends by timer.
    pub fn deadline(&self) -> Option<LoopTime> {
        match self.state {
            Accepting::Paused { until } => Some(until),
            Accepting::Idle | Accepting::Ready => None,
        }
    }

    /// Accepts one connection. `overload_response` is sent to one client if descriptors run out.
    pub fn accept(&mut self, now: LoopTime, overload_response: impl FnOnce() -> Vec<u8>) -> Accept {
        if self.deadline().is_some_and(|deadline| deadline.is_due(now)) {
            self.state = Accepting::Ready;
        }
        if self.state != Accepting::Ready {
            return Accept::Idle;
        }
        if self.reserve.is_none() {
            self.reserve = reserve();
        }
        match self.socket.accept() {
            Ok((stream, peer)) => {
                self.is_exhausted = false;
                Accept::Connection(stream, peer)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.state = Accepting::Idle;
                Accept::Idle
            }
            Err(error) if is_exhausted(&error) => {
                self.pause(now);
                self.reject_one(overload_response);
                Accept::Exhausted { error, is_first: !std::mem::replace(&mut self.is_exhausted, true) }
            }
            Err(error) => Accept::Aborted(error),
        }
    }

    /// Closes the spare descriptor for as long as it takes to send one client the overload response.
    fn reject_one(&mut self, overload_response: impl FnOnce() -> Vec<u8>) {
        self.reserve = None;
        if let Ok((mut stream, _)) = self.socket.accept() {
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
    use super::*;
    use socket2::SockRef;

    fn listen(listener: &mut Listener, tcp: &TcpConfig) {
        listener.listen_after(tcp, || io::Result::Ok(())).unwrap();
    }

    fn bind(address: SocketAddr) -> io::Result<Listener> {
        Listener::bind(address, &TcpConfig::default())
    }

    #[test]
    fn connections_are_refused_until_load_returns() {
        let mut listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.address().unwrap();
        let connect = || std::net::TcpStream::connect(address).map_err(|error| error.kind());
        let load = || -> io::Result<u32> {
            assert_eq!(connect().unwrap_err(), io::ErrorKind::ConnectionRefused);
            Ok(7)
        };
        assert_eq!(listener.listen_after(&TcpConfig::default(), load).unwrap(), 7);
        let _client = connect().unwrap();
    }

    #[test]
    fn failed_load_does_not_listen() {
        let mut listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let load = || io::Result::<()>::Err(io::ErrorKind::InvalidData.into());
        assert_eq!(
            listener.listen_after(&TcpConfig::default(), load).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert!(std::net::TcpStream::connect(listener.address().unwrap()).is_err());
    }

    #[test]
    fn second_listener_fails_before_it_loads_or_after_if_both_load() {
        let mut first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = first.address().unwrap();
        let mut second = bind(address).unwrap();
        listen(&mut first, &TcpConfig::default());
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse, "while the first listens");
        let late = second.listen_after(&TcpConfig::default(), || io::Result::Ok(()));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::AddrInUse, "SO_REUSEADDR allows the bind");
    }

    #[test]
    fn accepted_sockets_inherit_the_options() {
        let tcp =
            TcpConfig { backlog: 7, notsent_lowat_bytes: 4_096, user_timeout_ms: 1_234, reuse_port: false };
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &tcp).unwrap();
        listen(&mut listener, &tcp);
        let _client = std::net::TcpStream::connect(listener.address().unwrap()).unwrap();
        listener.mark_ready();
        let Accept::Connection(stream, _) = listener.accept(LoopTime::from_millis(0), Vec::new) else {
            panic!("no connection")
        };
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 4_096);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1_234)));
        assert!(matches!(listener.accept(LoopTime::from_millis(0), Vec::new), Accept::Idle));
    }

    #[test]
    fn backlog_bounds_waiting_clients() {
        let tcp = TcpConfig { backlog: 2, ..TcpConfig::default() };
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &tcp).unwrap();
        listen(&mut listener, &tcp);
        let address = listener.address().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let waiting: Vec<_> = (0..8).map_while(|_| connect().ok()).collect();
        // listen(2) on Linux accepts one more than the backlog.
        assert_eq!(waiting.len(), 3);
    }

    #[test]
    fn paused_accept_resumes_by_timer_or_after_a_close() {
        let tcp = crate::config::TcpConfig::default();
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &tcp).unwrap();
        listen(&mut listener, &tcp);
        let now = LoopTime::from_millis(0);
        listener.pause(now);
        listener.mark_ready();
        assert!(!listener.has_work(), "a new client does not end it");
        assert_eq!(listener.deadline(), Some(now.after(PAUSE_MS)));
        listener.resume();
        assert!(listener.has_work());
        listener.pause(now);
        let _client = std::net::TcpStream::connect(listener.address().unwrap()).unwrap();
        assert!(matches!(listener.accept(now, Vec::new), Accept::Idle));
        assert!(matches!(listener.accept(now.after(PAUSE_MS), Vec::new), Accept::Connection(..)));
    }
}
