//! A client of the load generator: the state of one connection, from connect to close.

use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::rc::Rc;

use bytes::Bytes;

use super::clock::RunTime;
use super::connection_stats::Phase;
use super::delivery_tracker::DeliveryTracker;
use super::recipient::Recipient;
use crate::client::cause::Cause;
use crate::client::deflate::{MessageScanner, SharedInflater};
use crate::client::frames::{self, FrameKind};
use crate::client::handshake::{Handshake, HandshakeResponse};
use crate::client::read::ReadResult;
use crate::client::transport::ClientTransport;
use crate::net::outbox::{FlushOutcome, Outbox, SlowConsumerLimits};
use crate::time::LoopTime;

/// A client and its connection.
#[derive(Debug)]
pub struct Client {
    pub(super) transport: ClientTransport,
    /// State of the connection.
    pub state: ClientState,
    /// Frames to send.
    pub outbox: Outbox,
    /// What the delivery tracker knows about the client.
    pub recipient: Recipient,
    /// Time of the connect.
    pub since: RunTime,
    pub(super) generation: u32,
    pub(super) flags: ClientFlags,
}

/// The buffers that all clients use in turn to read.
#[derive(Debug)]
pub(super) struct ReadBuffers {
    pub(super) scratch: Vec<u8>,
    pub(super) inflater: SharedInflater,
}

/// Queue memberships, and the last event.
#[derive(Debug, Default)]
pub(super) struct ClientFlags {
    pub(super) ready: bool,
    pub(super) dirty: bool,
    /// The last event announced that the server sends no more: after a short read there may be more to read.
    pub(super) read_closed: bool,
}

/// The state of a connection.
#[derive(Debug)]
pub enum ClientState {
    /// TCP connect in progress.
    Connecting(Handshake),
    /// The request is queued or sent.
    Handshaking(Handshake),
    /// The WebSocket is open; messages are counted.
    Open(MessageScanner),
    /// Open, but deliberately not read.
    Stalled(MessageScanner),
    /// The client's close frame is queued or sent, and the server's is expected.
    Leaving(MessageScanner),
    /// The connection has ended.
    Ended(ClientEnd),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// The client closed it.
    Closed,
    /// An unexpected end.
    Lost(Phase, Cause),
}

/// The effect of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadProgress {
    /// No change of state.
    Same,
    /// The handshake is complete.
    Opened,
}

impl Client {
    /// A client whose TCP connect has been started.
    pub(super) fn new(
        transport: ClientTransport,
        handshake: Handshake,
        recipient: Recipient,
        since: RunTime,
        generation: u32,
    ) -> Client {
        let state = ClientState::Connecting(handshake);
        let flags = ClientFlags::default();
        Client { transport, state, outbox: Outbox::Empty, recipient, since, generation, flags }
    }

    /// Returns true until the handshake is complete.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, ClientState::Connecting(_) | ClientState::Handshaking(_))
    }

    /// Returns true if the client sends and receives messages.
    pub fn is_open(&self) -> bool {
        matches!(self.state, ClientState::Open(_))
    }

    /// Returns true if the client is open and has negotiated permessage-deflate.
    pub(super) fn is_deflate_negotiated(&self) -> bool {
        matches!(&self.state, ClientState::Open(MessageScanner::Deflate(_)))
    }

    /// Queues a frame.
    pub fn send(&mut self, frame: Bytes) {
        self.outbox.queue(Rc::new(frame));
    }

    /// Returns true if there are bytes to write and the socket is not known to be full.
    pub(super) fn wants_write(&self) -> bool {
        (!self.outbox.is_empty() && !self.outbox.is_blocked()) || self.transport.wants_write()
    }

    /// Writes once, followed by the pending TLS records.
    pub(super) fn flush(&mut self, now: LoopTime) -> FlushOutcome {
        match self.outbox.flush(&mut self.transport, SlowConsumerLimits::NONE, now).1 {
            FlushOutcome::Drained => match self.transport.write_pending() {
                Ok(true) => FlushOutcome::Drained,
                Ok(false) => FlushOutcome::Blocked,
                Err(error) => FlushOutcome::Failed(error),
            },
            left => left,
        }
    }

    /// The socket is writable again.
    pub(super) fn unblock(&mut self) {
        self.outbox.unblock();
        self.transport.unblock();
    }

    /// Processes one read, which took place at `now`. Returns true if there may be more to read.
    pub(super) fn read(
        &mut self,
        buffers: &mut ReadBuffers,
        tracker: &mut DeliveryTracker,
        now: impl FnOnce() -> RunTime,
    ) -> (bool, ReadProgress) {
        let ReadBuffers { scratch, inflater } = buffers;
        if let ClientState::Connecting(_) = self.state {
            self.connected();
            return (self.flags.read_closed, ReadProgress::Same);
        }
        match self.transport.read(scratch) {
            ReadResult::Bytes { range, more } => {
                let progress = if range.is_empty() {
                    // A TLS session that rejected bytes before its handshake was complete may accept them now.
                    self.outbox.unblock();
                    ReadProgress::Same
                } else {
                    self.receive(&scratch[range], inflater, tracker, now())
                };
                (more || self.flags.read_closed, progress)
            }
            ReadResult::WouldBlock => (false, ReadProgress::Same),
            ReadResult::Ended(cause) => {
                self.end_of_file(cause);
                (false, ReadProgress::Same)
            }
        }
    }

    /// Handles the first event of a connecting socket: it has connected or failed.
    fn connected(&mut self) {
        match self.transport.stream().take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return self.lose(Cause::from(&error)),
        }
        // mio: an event alone does not show that the socket is connected; its peer address does.
        match self.transport.stream().peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
            Err(error) => return self.lose(Cause::from(&error)),
        }
        if let ClientState::Connecting(handshake) =
            mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Closed))
        {
            self.state = ClientState::Handshaking(handshake);
        }
    }

    /// Processes bytes from the server.
    fn receive(
        &mut self,
        bytes: &[u8],
        inflater: &mut SharedInflater,
        tracker: &mut DeliveryTracker,
        now: RunTime,
    ) -> ReadProgress {
        if !matches!(self.state, ClientState::Handshaking(_)) {
            self.count(bytes, inflater, tracker, now);
            return ReadProgress::Same;
        }
        let ClientState::Handshaking(handshake) = &mut self.state else { return ReadProgress::Same };
        let kept = mem::take(&mut handshake.received);
        let joined = [&kept, bytes].concat();
        match handshake.parse_response(&joined) {
            HandshakeResponse::Partial => handshake.received = joined,
            HandshakeResponse::Status { status, .. } => self.lose(Cause::Status(status)),
            HandshakeResponse::Invalid(why) => self.lose(Cause::Invalid(why)),
            HandshakeResponse::Open { head_bytes, is_deflate_negotiated } => {
                self.state = ClientState::Open(MessageScanner::new(is_deflate_negotiated));
                tracker.add_client(&self.recipient);
                self.count(&joined[head_bytes..], inflater, tracker, now);
                return ReadProgress::Opened;
            }
        }
        ReadProgress::Same
    }

    /// Scans frames and counts messages.
    fn count(
        &mut self,
        bytes: &[u8],
        inflater: &mut SharedInflater,
        tracker: &mut DeliveryTracker,
        now: RunTime,
    ) {
        let Client { state, outbox, recipient, .. } = self;
        let (ClientState::Open(scanner) | ClientState::Stalled(scanner) | ClientState::Leaving(scanner)) =
            state
        else {
            return;
        };
        let mut close = None;
        let scanned = scanner.scan(bytes, inflater, |frame| match frame.kind {
            FrameKind::Message => {
                tracker.receive(recipient, frame, now);
                ControlFlow::Continue(())
            }
            FrameKind::Ping => {
                outbox.queue(Rc::new(frames::pong(frame.start)));
                ControlFlow::Continue(())
            }
            FrameKind::Continuation | FrameKind::Pong => ControlFlow::Continue(()),
            FrameKind::Close => {
                close = Some(frames::close_code(frame.start));
                ControlFlow::Break(())
            }
        });
        if scanned.is_err() {
            self.lose(Cause::Invalid("invalid frame"));
        } else if let Some(code) = close {
            self.closed(code);
        }
    }

    /// Handles the server's close frame.
    fn closed(&mut self, code: u16) {
        let is_answer = matches!(self.state, ClientState::Leaving(_));
        if !is_answer {
            // One attempt, since a received close frame ends the connection (RFC 6455 5.5.1). The reply is small, and
            // the result does not matter.
            let reply = frames::close(Some(code).filter(|&code| code != 1005));
            if self.outbox.is_empty() {
                let _ = io::Write::write(&mut self.transport, &reply);
            }
        }
        self.transport.send_close_notify();
        let end = if is_answer { ClientEnd::Closed } else { ClientEnd::Lost(Phase::Open, Cause::Code(code)) };
        self.state = ClientState::Ended(end);
    }

    /// Handles the end of the byte stream.
    fn end_of_file(&mut self, cause: Cause) {
        match self.state {
            ClientState::Leaving(_) => self.state = ClientState::Ended(ClientEnd::Closed),
            _ => self.lose(cause),
        }
    }

    /// Ends the connection unexpectedly.
    pub fn lose(&mut self, cause: Cause) {
        let phase = match self.state {
            ClientState::Connecting(_) => Phase::Connect,
            ClientState::Handshaking(_) => Phase::Handshake,
            _ => Phase::Open,
        };
        if !matches!(self.state, ClientState::Ended(_)) {
            self.state = ClientState::Ended(ClientEnd::Lost(phase, cause));
        }
    }

    /// Stops reading.
    pub fn stall(&mut self) {
        self.state = match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Closed)) {
            ClientState::Open(scanner) => ClientState::Stalled(scanner),
            other => other,
        };
    }

    /// Reads again. Returns false if the client was not stalled.
    pub fn resume(&mut self) -> bool {
        match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Closed)) {
            ClientState::Stalled(scanner) => {
                self.state = ClientState::Open(scanner);
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }

    /// Queues a close frame.
    pub fn begin_close(&mut self) {
        self.state = match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Closed)) {
            ClientState::Open(scanner) => {
                self.outbox.queue(Rc::new(frames::close(Some(1000))));
                ClientState::Leaving(scanner)
            }
            other => other,
        };
    }
}
