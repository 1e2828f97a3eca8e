//! The two connections to the Redis server that has the shared log: reads, writes and deadlines. [`dialer`] opens them.
//!
//! They are in the loop like all other sockets: an event only marks, *receive* reads, *flush* writes. The [`Link`]
//! interprets the bytes. If one connection fails, both are closed.

mod connection;
mod dialer;
mod lookup;
mod sentinel;
mod stream;

use std::io::{self, ErrorKind, Read, Write};

use mio::Registry;

use crate::backplane::link::{Link, LinkAction, Side};
use crate::config::BackplaneConfig;
use crate::features::HasBackplane;
use crate::time::LoopTime;
use connection::LogConnection;
use dialer::{Dial, DialProgress, Dialer, TOKENS, WAKER};

/// The connections to the shared log.
pub(super) struct Sockets {
    dialer: Dialer,
    state: SocketsState,
    _feature: HasBackplane,
}

enum SocketsState {
    Closed,
    Dialing(Dial),
    Open([LogConnection; 2]),
}

impl Sockets {
    pub(super) fn new(config: &BackplaneConfig, registry: &Registry) -> io::Result<Sockets> {
        let (dialer, state) = (Dialer::new(config, registry)?, SocketsState::Closed);
        Ok(Sockets { dialer, state, _feature: config.feature })
    }

    /// Records an event. Returns false if the token is of another socket.
    pub(super) fn mark(&mut self, event: &mio::event::Event) -> bool {
        let Some(at) = TOKENS.iter().position(|&token| token == event.token()) else {
            return event.token() == WAKER;
        };
        let connection = match &mut self.state {
            SocketsState::Closed => None,
            SocketsState::Dialing(dial) => dial.connection_mut(at),
            SocketsState::Open(connections) => connections.get_mut(at),
        };
        connection.into_iter().for_each(|connection| connection.mark(event));
        true
    }

    /// Connects if the link requests it, and reads each connection once. Returns true if the link may have new events.
    ///
    /// **Drain or requeue**: a connection that was not read until its socket was empty is read by the next call.
    pub(super) fn receive<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        self.act(link, now);
        match &mut self.state {
            SocketsState::Closed => false,
            SocketsState::Dialing(_) => self.dial(link, now),
            SocketsState::Open(connections) => {
                let mut has_events = false;
                for (side, connection) in Side::ALL.into_iter().zip(connections) {
                    if !connection.is_readable || !link.wants_input(side) {
                        continue;
                    }
                    match connection.stream.read(link.room(side)) {
                        Ok(0) => {
                            link.failed("the server has closed the connection".to_owned(), now);
                            return true;
                        }
                        Ok(count) => link.filled(side, count),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            connection.is_readable = false;
                            continue;
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => {
                            link.failed(error.to_string(), now);
                            return true;
                        }
                    }
                    has_events = true;
                    // The link has one reply or entry to apply before the other connection is read.
                    break;
                }
                has_events
            }
        }
    }

    /// Writes what the link has to send. Returns true if the link may have new events.
    pub(super) fn flush<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let SocketsState::Open(connections) = &mut self.state else { return false };
        for (side, connection) in Side::ALL.into_iter().zip(connections) {
            loop {
                let unsent = link.unsent(side, now);
                if unsent.is_empty() || !connection.is_writable {
                    break;
                }
                match connection.stream.write(unsent) {
                    Ok(count) => link.sent(side, count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => connection.is_writable = false,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        link.failed(error.to_string(), now);
                        return true;
                    }
                }
            }
            if !connection.is_writable {
                continue;
            }
            // Sends TLS records for which the socket had no room before.
            match connection.stream.flush() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => connection.is_writable = false,
                Err(error) => {
                    link.failed(error.to_string(), now);
                    return true;
                }
            }
        }
        false
    }

    /// Expires the deadlines of the link, of lookups and of connects. Returns true if the link may have new events.
    pub(super) fn expire<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let is_due = self.next_deadline(link).is_some_and(|deadline| deadline.is_due(now));
        if !is_due {
            return false;
        }
        if let SocketsState::Dialing(dial) = &self.state
            && dial.deadline().is_due(now)
        {
            match self.dialer.expire(dial, now) {
                Ok(dial) => self.state = SocketsState::Dialing(dial),
                Err(error) => link.failed(error.to_string(), now),
            }
        }
        link.expire(now);
        self.act(link, now);
        true
    }

    /// When [`Sockets::expire`] is to be called.
    pub(super) fn next_deadline<P>(&self, link: &Link<P>) -> Option<LoopTime> {
        let own = match &self.state {
            SocketsState::Dialing(dial) => Some(dial.deadline()),
            SocketsState::Closed | SocketsState::Open(_) => None,
        };
        own.into_iter().chain(link.next_deadline()).reduce(LoopTime::min)
    }

    /// Does what the link requests.
    fn act<P>(&mut self, link: &mut Link<P>, now: LoopTime) {
        while let Some(action) = link.take_action() {
            // Dropping the connections closes their descriptors, which deregisters them.
            self.state = SocketsState::Closed;
            let LinkAction::Connect { redirect } = action else { continue };
            match self.dialer.begin(redirect.as_deref(), now) {
                Ok(dial) => self.state = SocketsState::Dialing(dial),
                Err(error) => link.failed(error.to_string(), now),
            }
        }
    }

    /// Continues to open the connections. Returns true if the link may have new events.
    fn dial<P>(&mut self, link: &mut Link<P>, now: LoopTime) -> bool {
        let SocketsState::Dialing(dial) = std::mem::replace(&mut self.state, SocketsState::Closed) else {
            return false;
        };
        match self.dialer.advance(dial, now) {
            Ok(DialProgress::Waits(dial)) => {
                self.state = SocketsState::Dialing(dial);
                return false;
            }
            Ok(DialProgress::Open { connections, address }) => {
                link.connected(&address, now);
                self.state = SocketsState::Open(connections);
            }
            Err(error) => link.failed(error.to_string(), now),
        }
        true
    }
}
