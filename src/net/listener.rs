//! Bind, and accept with a budget; what to do when there is no room or no descriptor.
//!
//! The listener is edge-triggered like every socket: an event says once that somebody waits. So it
//! remembers (**drain or requeue**): as long as `accept` has not said "nobody", it is `Ready`, and the loop
//! comes back. While it is `Paused`, whoever waits stays in the kernel's backlog and costs nothing; it
//! goes on when a connection ends, or by timer, with no need for a new client to raise an event.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::TcpConfig;
use crate::time::LoopTime;

/// How long accepting rests when there is no room or no descriptor, in milliseconds. Ends of
/// connections wake it earlier; the timer is for descriptors that others in the process give back.
const PAUSE_MS: u32 = 100;

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    state: Accepting,
    /// A descriptor to give up when none is left, so that one client can be taken in and told.
    reserve: Option<File>,
    /// Did the last accept find no descriptor? It will ten times a second, and is worth one line in the log.
    is_exhausted: bool,
}

/// Is somebody waiting?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    /// Nobody; an event will say.
    Idle,
    /// Somebody may be.
    Ready,
    /// Somebody may be, and there is no room.
    Paused { until: LoopTime },
}

/// What one accept found.
#[derive(Debug)]
pub enum Accept {
    /// A connection.
    Connection(TcpStream, SocketAddr),
    /// Nobody waits, or accepting rests.
    Nobody,
    /// A client that is gone already: accept(2) passes on what happened to it. The next may be well.
    Gone(io::Error),
    /// No descriptor or no memory is left, and accepting rests; somebody may have been told.
    Exhausted {
        /// Which of them.
        error: io::Error,
        /// Is it the first time since somebody was taken?
        is_news: bool,
    },
}

impl Listener {
    /// Binds, and does not listen yet.
    ///
    /// # Errors
    /// The address is in use or not ours, or an option is not taken.
    pub fn bind(address: SocketAddr, tcp: &TcpConfig) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restart must not wait for the last server's connections to leave TIME_WAIT.
        socket.set_reuse_address(true)?;
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

    /// Calls `load`, and listens after that: the kernel refuses connections meanwhile. What `load` returns is returned.
    ///
    /// # Errors
    /// `load` failed, or another socket listens on the address by now.
    pub fn listen_after<R, E: From<io::Error>>(
        &mut self,
        tcp: &TcpConfig,
        load: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let loaded = load()?;
        SockRef::from(&self.socket).listen(tcp.backlog.try_into().unwrap_or(i32::MAX))?;
        Ok(loaded)
    }

    /// The address that it really listens on.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Has the poll watch it.
    ///
    /// # Errors
    /// The poll does not take it.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    /// An event said that somebody waits. It does not end a pause.
    pub fn mark_ready(&mut self) {
        if self.state == Accepting::Idle {
            self.state = Accepting::Ready;
        }
    }

    /// A connection ended, so there may be room.
    pub fn resume(&mut self) {
        if matches!(self.state, Accepting::Paused { .. }) {
            self.state = Accepting::Ready;
        }
    }

    /// There is no room.
    pub fn pause(&mut self, now: LoopTime) {
        self.state = Accepting::Paused { until: now.after(PAUSE_MS) };
    }

    /// May somebody be taken in without waiting for an event?
    pub fn has_work(&self) -> bool {
        self.state == Accepting::Ready
    }

    /// When a pause ends by itself.
    pub fn deadline(&self) -> Option<LoopTime> {
        match self.state {
            Accepting::Paused { until } => Some(until),
            Accepting::Idle | Accepting::Ready => None,
        }
    }

    /// Takes one connection. `no_room` makes the response to a client for which there is no descriptor.
    pub fn accept(&mut self, now: LoopTime, no_room: impl FnOnce() -> Vec<u8>) -> Accept {
        if self.deadline().is_some_and(|deadline| deadline.is_due(now)) {
            self.state = Accepting::Ready;
        }
        if self.state != Accepting::Ready {
            return Accept::Nobody;
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
                Accept::Nobody
            }
            Err(error) if is_exhausted(&error) => {
                self.pause(now);
                self.tell_one(no_room);
                Accept::Exhausted { error, is_news: !std::mem::replace(&mut self.is_exhausted, true) }
            }
            Err(error) => Accept::Gone(error),
        }
    }

    /// Gives up the reserve descriptor for as long as it takes to tell one client that there is no room.
    fn tell_one(&mut self, no_room: impl FnOnce() -> Vec<u8>) {
        self.reserve = None;
        if let Ok((mut stream, _)) = self.socket.accept() {
            // Best effort, in one go: what has come is read, so that closing sends no reset that would
            // overtake the answer.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write(&no_room());
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        self.reserve = reserve();
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Is it us who have run out, rather than the client who has gone?
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
    fn connections_are_refused_until_all_is_loaded() {
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
    fn what_cannot_be_loaded_is_not_listened_for() {
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
        let tcp = TcpConfig { backlog: 7, notsent_lowat_bytes: 4_096, user_timeout_ms: 1_234 };
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &tcp).unwrap();
        listen(&mut listener, &tcp);
        let _client = std::net::TcpStream::connect(listener.address().unwrap()).unwrap();
        listener.mark_ready();
        let Accept::Connection(stream, _) = listener.accept(LoopTime::from_millis(0), Vec::new) else {
            panic!("nobody")
        };
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 4_096);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1_234)));
        assert!(matches!(listener.accept(LoopTime::from_millis(0), Vec::new), Accept::Nobody));
    }

    #[test]
    fn the_backlog_bounds_who_waits() {
        let tcp = TcpConfig { backlog: 2, ..TcpConfig::default() };
        let mut listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &tcp).unwrap();
        listen(&mut listener, &tcp);
        let address = listener.address().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
        let waiting: Vec<_> = (0..8).map_while(|_| connect().ok()).collect();
        // listen(2) on Linux takes one more than it is told.
        assert_eq!(waiting.len(), 3);
    }

    #[test]
    fn a_pause_ends_by_timer_or_by_room() {
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
        assert!(matches!(listener.accept(now, Vec::new), Accept::Nobody));
        assert!(matches!(listener.accept(now.after(PAUSE_MS), Vec::new), Accept::Connection(..)));
    }
}
