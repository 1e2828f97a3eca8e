//! Lookups of a host name, each on a separate thread: `getaddrinfo` blocks for seconds when a name server fails.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use mio::Waker;

/// A lookup in progress.
pub(super) struct Lookup {
    host: String,
    port: u16,
    result: Receiver<io::Result<Vec<SocketAddr>>>,
}

impl Lookup {
    /// Begins a lookup, whose end wakes the loop.
    pub(super) fn begin(host: &str, port: u16, waker: Arc<Waker>) -> io::Result<Lookup> {
        let (sender, result) = channel();
        let name = (host.to_owned(), port);
        thread::Builder::new().name("lookup".to_owned()).spawn(move || {
            let addresses = name.to_socket_addrs().map(Iterator::collect);
            // The server may have ended. A wake that fails is made up for by the deadline of the lookup.
            if sender.send(addresses).is_ok() {
                let _ = waker.wake();
            }
        })?;
        Ok(Lookup { host: host.to_owned(), port, result })
    }

    /// Returns true if it is a lookup of this name.
    pub(super) fn is_of(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }

    /// The addresses, once they are known.
    pub(super) fn result(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(io::Error::other("the lookup has failed"))),
        }
    }
}
