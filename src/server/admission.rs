//! Admission of connections: counted by the address that they come from, or that a proxy names; then served or
//! rejected.

use std::io;

use log::warn;

use super::OVERLOAD_RESPONSES_MAX;
use super::engine::Engine;
use super::log_limit::LogLine;
use crate::access::connection_limiter::LimitExceeded;
use crate::access::proxy::{PROXY_HEADER_BYTES_MAX, ProxyHeader, parse_proxy_header};
use crate::close::Reason;
use crate::fault::ProxyFault;
use crate::ids::{Peer, SlotId};
use crate::net::outbox::Outbox;
use crate::net::transport::Transport;
use crate::plural::plural;
use crate::session::State;
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Admits a connection, unless its address has reached a limit.
    pub fn admit(&mut self, transport: T, mut peer: Peer, now: LoopTime) -> SlotId {
        let awaits_header = self.shared.limiter.awaits_header(peer.ip());
        if !awaits_header && let Err(over) = self.shared.limiter.admit(&mut peer, now) {
            return self.reject_over_limit(transport, peer, over, now);
        }
        self.shared.metrics.connections_accepted += 1;
        let limits = &self.shared.limits;
        let state = if awaits_header {
            State::awaiting_proxy_header(limits, now)
        } else {
            State::accepted(limits, now)
        };
        self.insert(transport, peer, state)
    }

    fn insert(&mut self, transport: T, peer: Peer, state: State) -> SlotId {
        let id = self.slots.insert(transport, peer, state, Outbox::Empty);
        self.shared.connection_log.open(id, self.shared.authenticator.unix_now);
        id
    }

    /// Admits a connection whose address has reached a limit, to send it an error response. At most
    /// [`OVERLOAD_RESPONSES_MAX`] connections receive one at a time, and the others are closed at once: one address
    /// must not keep clients of other addresses waiting.
    fn reject_over_limit(&mut self, transport: T, peer: Peer, over: LimitExceeded, now: LoopTime) -> SlotId {
        self.shared.metrics.limit(over.limit);
        let gets_response = self.rejected < OVERLOAD_RESPONSES_MAX;
        let id = self.reject(transport, peer, over.reason(), now);
        if !gets_response {
            self.slots.schedule_close(id, over.reason());
        }
        id
    }

    /// Admits a connection that will not be served, to send it an error response when it has sent a request.
    pub fn reject(&mut self, transport: T, peer: Peer, reason: Reason, now: LoopTime) -> SlotId {
        self.shared.metrics.connections_accepted += 1;
        self.rejected += 1;
        let state = State::rejected(reason, &self.shared.limits, now);
        self.insert(transport, peer, state)
    }

    /// Records that the process has too many open files, or no memory for another connection, and that accept is
    /// paused. `is_first` is true if a connection was accepted since the last time.
    pub fn accept_exhausted(&mut self, error: &io::Error, is_first: bool, now: LoopTime) {
        self.shared.metrics.accept_failed(error);
        if is_first && self.admits_line(LogLine::AcceptPaused, now) {
            warn!("accept: {error}; {} open, accept paused", plural(self.slots.len(), "connection"));
        }
    }

    /// Logs that a connection was closed right after it was accepted, since it cannot be registered or TLS cannot be
    /// set up.
    pub fn not_served(&mut self, peer: Peer, error: &io::Error, now: LoopTime) {
        if self.admits_line(LogLine::NotServed, now) {
            warn!("cannot serve {peer}: {error}");
        }
    }

    /// Returns the number of connections that are served: all but the rejected ones.
    pub fn served(&self) -> usize {
        self.slots.len() - self.rejected
    }

    /// Returns the number of rejected connections that are still open.
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// Reads the PROXY protocol header of a connection. Returns true if the slot can be read on.
    ///
    /// The header is peeked at in the kernel and taken when it is complete, so no part of it is stored, and the bytes
    /// after it are untouched, whether they are a request or TLS.
    pub(super) fn take_proxy_header(&mut self, id: SlotId, now: LoopTime) -> bool {
        let Some(slot) = self.slots.get_mut(id) else { return false };
        let mut buffer = [0; PROXY_HEADER_BYTES_MAX];
        let looked = slot.transport.peek(&mut buffer);
        let fault = match looked.map(|count| (count, parse_proxy_header(&buffer[..count]))) {
            Ok((0, _)) => return self.end(id, Reason::EndOfFile),
            Ok((_, ProxyHeader::Whole { bytes, client })) => {
                if slot.transport.skip(bytes).is_err() {
                    return self.end(id, Reason::Reset);
                }
                slot.peer = client.map_or(slot.peer, Peer::from);
                let Err(over) = self.shared.limiter.admit(&mut slot.peer, now) else {
                    slot.state.proxy_header_received();
                    return true;
                };
                self.shared.metrics.limit(over.limit);
                if self.rejected >= OVERLOAD_RESPONSES_MAX {
                    return self.end(id, over.reason());
                }
                self.rejected += 1;
                slot.state.reject(over.reason());
                return true;
            }
            Ok((_, ProxyHeader::Incomplete)) if !slot.is_read_closed() => return false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return self.end(id, Reason::Reset),
            Ok((_, ProxyHeader::Incomplete)) => ProxyFault::Incomplete,
            Ok((_, ProxyHeader::Missing)) => ProxyFault::Missing,
            Ok((_, ProxyHeader::Version1)) => ProxyFault::Version1,
            Ok((_, ProxyHeader::Bad)) => ProxyFault::Bad,
        };
        self.end(id, Reason::ProxyHeader { fault })
    }

    /// Closes a connection without a response. Returns false, since it is not read on.
    fn end(&mut self, id: SlotId, reason: Reason) -> bool {
        self.slots.schedule_close(id, reason);
        false
    }
}
