//! One client's connection: bytes in; frames for the server and an end out.

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
use crate::client::frames::{self, FrameKind, ServerFrameScanner};
use crate::client::handshake::{Handshake, HandshakeResponse};
use crate::client::transport::{ClientTransport, ReadResult};
use crate::hub::outbox::{Left, Outbox, Pace};
use crate::moment::Moment;

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub(super) transport: ClientTransport,
    /// How far it has come.
    pub state: ClientState,
    /// What it has yet to send.
    pub outbox: Outbox,
    /// What it is there for, and what it got.
    pub recipient: Recipient,
    /// When the connection was begun.
    pub since: RunTime,
    pub(super) generation: u32,
    pub(super) flags: ClientFlags,
}

/// Which lists it is on, and what the last event said.
#[derive(Debug, Default)]
pub(super) struct ClientFlags {
    pub(super) ready: bool,
    pub(super) dirty: bool,
    /// The last event said that the server sends no more: a short read is not the end of what there is.
    pub(super) read_closed: bool,
}

/// How far a connection has come.
#[derive(Debug)]
pub enum ClientState {
    /// `connect` is under way.
    Connecting(Handshake),
    /// The request is out, or on its way.
    Handshaking(Handshake),
    /// Frames are counted.
    Open(ServerFrameScanner),
    /// Nothing is read any more.
    Stalled(ServerFrameScanner),
    /// Our close frame is out, or on its way, and the server's is to come.
    Leaving(ServerFrameScanner),
    /// It is over.
    Ended(ClientEnd),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// As it was meant to.
    Left,
    /// Not so.
    Lost(Phase, Cause),
}

/// What came of some input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadProgress {
    /// Nothing that anybody waits for.
    Same,
    /// The handshake is complete.
    Opened,
}

impl Client {
    /// A connection that has been begun.
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

    /// Is the handshake still to be completed?
    pub fn is_pending(&self) -> bool {
        matches!(self.state, ClientState::Connecting(_) | ClientState::Handshaking(_))
    }

    /// Does it take part?
    pub fn is_open(&self) -> bool {
        matches!(self.state, ClientState::Open(_))
    }

    /// Queues a frame.
    pub fn send(&mut self, frame: Bytes) {
        self.outbox.queue(Rc::new(frame));
    }

    /// Is there something to write, and may the socket take it?
    pub(super) fn wants_write(&self) -> bool {
        (!self.outbox.is_empty() && !self.outbox.is_blocked()) || self.transport.wants_write()
    }

    /// One write; with TLS, what it has to say comes with it.
    pub(super) fn flush(&mut self, now: Moment) -> Left {
        match self.outbox.flush(&mut self.transport, Pace::ANY, now).1 {
            Left::Nothing => match self.transport.write_pending() {
                Ok(true) => Left::Nothing,
                Ok(false) => Left::Blocked,
                Err(error) => Left::Failed(error),
            },
            left => left,
        }
    }

    /// The socket takes bytes again.
    pub(super) fn unblock(&mut self) {
        self.outbox.unblock();
        self.transport.unblock();
    }

    /// Takes what one read found, at `now`; true if there may be more to read.
    pub fn read(
        &mut self,
        scratch: &mut [u8],
        tracker: &mut DeliveryTracker,
        now: impl FnOnce() -> RunTime,
    ) -> (bool, ReadProgress) {
        if let ClientState::Connecting(_) = self.state {
            self.connected();
            return (self.flags.read_closed, ReadProgress::Same);
        }
        match self.transport.read(scratch) {
            ReadResult::Bytes { range, more } => {
                let progress = if range.is_empty() {
                    // A session that said no before its handshake may say yes now.
                    self.outbox.unblock();
                    ReadProgress::Same
                } else {
                    self.receive(&scratch[range], tracker, now())
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

    /// An event came for a connection that was being made: it is made, or it failed.
    fn connected(&mut self) {
        match self.transport.stream().take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return self.lose(Cause::from(&error)),
        }
        // mio: an event alone does not say that the connection is made; its address does.
        match self.transport.stream().peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
            Err(error) => return self.lose(Cause::from(&error)),
        }
        if let ClientState::Connecting(handshake) =
            mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Left))
        {
            self.state = ClientState::Handshaking(handshake);
        }
    }

    /// Takes bytes from the server.
    fn receive(&mut self, bytes: &[u8], tracker: &mut DeliveryTracker, now: RunTime) -> ReadProgress {
        if !matches!(self.state, ClientState::Handshaking(_)) {
            self.count(bytes, tracker, now);
            return ReadProgress::Same;
        }
        let ClientState::Handshaking(handshake) = &mut self.state else { return ReadProgress::Same };
        let kept = mem::take(&mut handshake.received);
        let joined = [&kept, bytes].concat();
        match handshake.parse_response(&joined) {
            HandshakeResponse::Partial => handshake.received = joined,
            HandshakeResponse::Status(status) => self.lose(Cause::Status(status)),
            HandshakeResponse::Invalid(why) => self.lose(Cause::Invalid(why)),
            HandshakeResponse::Open(head_bytes) => {
                self.state = ClientState::Open(ServerFrameScanner::new());
                tracker.joined(&self.recipient);
                self.count(&joined[head_bytes..], tracker, now);
                return ReadProgress::Opened;
            }
        }
        ReadProgress::Same
    }

    /// Walks over frames.
    fn count(&mut self, bytes: &[u8], tracker: &mut DeliveryTracker, now: RunTime) {
        let Client { state, outbox, recipient, .. } = self;
        let (ClientState::Open(walker) | ClientState::Stalled(walker) | ClientState::Leaving(walker)) = state
        else {
            return;
        };
        let mut close = None;
        let walked = walker.scan(bytes, |frame| match frame.kind {
            FrameKind::Message => {
                tracker.receive(recipient, frame.start, now);
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
        if walked.is_err() {
            self.lose(Cause::Invalid("what came is no frame"));
        } else if let Some(code) = close {
            self.closed(code);
        }
    }

    /// The server's close frame came.
    fn closed(&mut self, code: u16) {
        let is_answer = matches!(self.state, ClientState::Leaving(_));
        if !is_answer {
            // One try, since the connection is over with it (RFC 6455 5.5.1): it is small, and what the
            // server makes of it is the server's business.
            let reply = frames::close(Some(code).filter(|&code| code != 1005));
            if self.outbox.is_empty() {
                let _ = io::Write::write(&mut self.transport, &reply);
            }
        }
        self.transport.send_close_notify();
        let end = if is_answer { ClientEnd::Left } else { ClientEnd::Lost(Phase::Open, Cause::Code(code)) };
        self.state = ClientState::Ended(end);
    }

    /// Nothing more comes.
    fn end_of_file(&mut self, cause: Cause) {
        match self.state {
            ClientState::Leaving(_) => self.state = ClientState::Ended(ClientEnd::Left),
            _ => self.lose(cause),
        }
    }

    /// It ends, and was not meant to.
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

    /// Reads no more.
    pub fn stall(&mut self) {
        self.state = match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Left)) {
            ClientState::Open(walker) => ClientState::Stalled(walker),
            other => other,
        };
    }

    /// Reads again; false if it did not stall.
    pub fn resume(&mut self) -> bool {
        match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Left)) {
            ClientState::Stalled(walker) => {
                self.state = ClientState::Open(walker);
                true
            }
            other => {
                self.state = other;
                false
            }
        }
    }

    /// Says goodbye.
    pub fn leave(&mut self) {
        self.state = match mem::replace(&mut self.state, ClientState::Ended(ClientEnd::Left)) {
            ClientState::Open(walker) => {
                self.outbox.queue(Rc::new(frames::close(Some(1000))));
                ClientState::Leaving(walker)
            }
            other => other,
        };
    }
}
