//! Per-connection protocol state machine: received bytes in, outbox bytes and intents out.
//!
//! A session is a [`State`] whose variants own their data and their deadline. It is pure: it does no I/O and takes the
//! time as an argument, so a test can simulate a year of timeouts and errors in a millisecond.
//!
//! ```text
//!   ProxyHeader --> Head, or Rejected --- error --> Closing
//!
//!           ,--- body ---> Body ---,
//!   Head --+                        +--> Responding -- response --> Head, or Closing
//!    ^      `--- request ----------'
//!    |
//!    +--- upgrade ---> Open ------- close ---,
//!    +--- events ----> Streaming --- end ----+--> Closing ---> Dead
//!    `--- error -----------------------------'
//! ```

pub mod auth_state;
mod buffer;
mod closing;
mod commands;
mod context;
mod deadlines;
pub mod decoder;
pub mod decoding;
mod ending;
pub mod frame_scanner;
mod heartbeat;
pub mod http;
pub mod intent;
mod open;
pub mod rejection;
mod streaming;
pub mod unfinished;
pub mod websocket;

use crate::close::Reason;
use crate::config::Limits;
use crate::time::LoopTime;
use auth_state::AuthState;
use closing::CloseStep;
use http::connection;
use http::extensions::Compression;
use http::query::PendingQuery;

pub use closing::{ClosedClient, Closing};
pub use context::{HttpConfig, LogMode, SMALL_BYTES, SessionContext};
pub use ending::Ended;
pub use http::body::Body;
pub use http::head::Head;
pub use http::rejected::Rejected;
pub use http::responding::Responding;
pub use open::Open;
pub use streaming::Streaming;

/// The state of a connection.
///
/// Most connections are idle and open, and such a connection must own no heap memory (**asleep between messages**). The
/// other states are short-lived and boxed, so that a slot stays small.
#[derive(Debug)]
pub enum State {
    /// Waiting for the PROXY protocol header, until the deadline of the first request head.
    ProxyHeader {
        /// The deadline.
        deadline: LoopTime,
    },
    /// Over a connection limit: waiting for a request head, to respond with an error.
    Rejected(Box<Rejected>),
    /// Reading a request head, or waiting for one.
    Head(Box<Head>),
    /// Reading a request's body.
    Body(Box<Body>),
    /// Waiting for the response to a request.
    Responding(Box<Responding>),
    /// An open WebSocket.
    Open(Open),
    /// A stream of server-sent events.
    Streaming(Box<Streaming>),
    /// Closing: the last bytes are written.
    Closing(Box<Closing>),
    /// Closed; the slot is freed in the reap phase.
    Dead(Box<Ended>),
}

/// The result of an expired deadline.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing to do.
    Nothing,
    /// Bytes were queued.
    Flush,
    /// The socket has to be read first: the awaited bytes may have arrived.
    Read,
    /// The connection is to be closed.
    Close(Reason),
}

/// How a client reconnects after the server has closed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnects {
    /// After `retry_ms` of the close frame: `oyez.v1`.
    AfterRetryMs,
    /// Immediately after the close, whatever the close frame says: a raw WebSocket, an event stream.
    Immediately,
    /// Never: an HTTP request.
    Never,
}

/// The action after a flush.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing.
    Nothing,
    /// Shut down the write side of the socket.
    ShutDownWrite,
    /// Close the connection.
    Close(Reason),
}

impl State {
    /// The state of an accepted connection.
    pub fn accepted(limits: &Limits, now: LoopTime) -> State {
        State::Head(Box::new(Head::fresh(now.after(limits.handshake_timeout_ms))))
    }

    /// The state of an accepted connection of a proxy that sends the client's address first.
    pub fn awaiting_proxy_header(limits: &Limits, now: LoopTime) -> State {
        State::ProxyHeader { deadline: now.after(limits.handshake_timeout_ms) }
    }

    /// The state of a connection that is over a limit.
    pub fn rejected(reason: Reason, limits: &Limits, now: LoopTime) -> State {
        State::Rejected(Box::new(Rejected::new(reason, now.after(limits.handshake_timeout_ms))))
    }

    /// Ends the wait for the PROXY protocol header: the first request head follows, within the same deadline.
    pub fn proxy_header_received(&mut self) {
        if let State::ProxyHeader { deadline } = *self {
            *self = State::Head(Box::new(Head::fresh(deadline)));
        }
    }

    /// Rejects a connection whose PROXY protocol header names a client over a limit.
    pub fn reject(&mut self, reason: Reason) {
        if let State::ProxyHeader { deadline } = *self {
            *self = State::Rejected(Box::new(Rejected::new(reason, deadline)));
        }
    }

    /// Returns true if the PROXY protocol header has not arrived.
    pub fn awaits_proxy_header(&self) -> bool {
        matches!(self, State::ProxyHeader { .. })
    }

    /// Returns true if the connection is over a connection limit, until its slot is freed.
    pub fn is_rejected(&self) -> bool {
        match self {
            State::Rejected(_) => true,
            State::Closing(closing) => matches!(closing.client, ClosedClient::Rejected),
            State::Dead(ended) => matches!(ended.client, ClosedClient::Rejected),
            _ => false,
        }
    }

    /// Returns true for an open WebSocket.
    pub fn is_web_socket(&self) -> bool {
        matches!(self, State::Open(_))
    }

    /// Memory of an incomplete message or request, in bytes.
    pub fn held_bytes(&self) -> usize {
        match self {
            State::Rejected(rejected) => rejected.held_bytes(),
            State::Head(head) => head.held_bytes(),
            State::Body(body) => body.held_bytes(),
            State::Responding(responding) => responding.held_bytes(),
            State::Open(open) => open.held_bytes(),
            State::ProxyHeader { .. } | State::Streaming(_) | State::Closing(_) | State::Dead(_) => 0,
        }
    }

    /// Returns true until a close has begun. After that only the peer's close frame and EOF are used.
    pub fn is_open(&self) -> bool {
        !matches!(self, State::Closing(_) | State::Dead(_))
    }

    /// Returns true if the socket is to be read. A client has to read its responses before more of its input is read:
    /// that bounds the memory of a connection, and the client's kernel buffers the rest. Queued published messages do
    /// not stop the reads of a WebSocket. `is_flushed`: the outbox is empty; `is_paused`: responses are queued, or the
    /// publisher has to wait for slow subscribers.
    pub fn takes_input(&self, is_flushed: bool, is_paused: bool) -> bool {
        match self {
            State::Rejected(_) | State::Head(_) | State::Body(_) => is_flushed && !is_paused,
            State::ProxyHeader { .. } | State::Responding(_) => false,
            State::Open(_) => !is_paused,
            State::Streaming(_) | State::Closing(_) | State::Dead(_) => true,
        }
    }

    /// Returns true if the connection waits for another request after a response.
    pub fn is_idle_request(&self) -> bool {
        matches!(self, State::Head(head) if head.is_idle())
    }

    /// How the client reconnects when the server closes the connection.
    pub fn reconnects(&self) -> Reconnects {
        match self {
            State::Open(open) if open.is_raw() => Reconnects::Immediately,
            State::Open(_) => Reconnects::AfterRetryMs,
            State::Streaming(_) => Reconnects::Immediately,
            State::ProxyHeader { .. }
            | State::Rejected(_)
            | State::Head(_)
            | State::Body(_)
            | State::Responding(_)
            | State::Closing(_)
            | State::Dead(_) => Reconnects::Never,
        }
    }

    /// Returns true if the next response to send is that of a query, or its next slice. Responses to earlier requests
    /// are sent first.
    pub fn has_query(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_query())
    }

    /// Returns true if the next response to send is that of a publish, which a shared log acknowledges.
    pub fn awaits_publish(&self) -> bool {
        matches!(self, State::Responding(responding) if !responding.has_query())
    }

    /// Returns true if requests were received that have to wait for the responses to those before them.
    pub fn has_waiting_requests(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_unread())
    }

    /// The query that [`State::has_query`] reports.
    pub fn query(&self) -> Option<&PendingQuery> {
        match self {
            State::Responding(responding) if responding.has_query() => responding.query.as_deref(),
            _ => None,
        }
    }

    /// Takes the query of [`State::has_query`], to encode some of its response.
    pub fn take_query(&mut self) -> Option<Box<PendingQuery>> {
        match self {
            State::Responding(responding) if responding.has_query() => responding.query.take(),
            _ => None,
        }
    }

    /// Gives a query back whose response is not complete.
    pub fn put_back_query(&mut self, query: Box<PendingQuery>) {
        if let State::Responding(responding) = self {
            responding.query = Some(query);
        }
    }

    /// Ends the response by closing the connection: HTTP/1.0 has no other end for a body of unknown length (RFC 9112
    /// 6.3).
    pub fn close_after_response(&mut self) {
        if let State::Responding(responding) = self {
            responding.close_after(Reason::Served);
        }
    }

    /// Returns true if a flush is due even with an empty outbox: the write side is to be shut down, or the connection
    /// to be closed.
    pub fn ends_with_flush(&self) -> bool {
        matches!(self, State::Closing(closing) if matches!(closing.step, CloseStep::Flushing | CloseStep::HalfClosed))
    }

    /// The negotiated use of permessage-deflate.
    pub fn compression(&self) -> Compression {
        match self {
            State::Open(open) => open.compression(),
            _ => Compression::None,
        }
    }

    /// Returns the number of missing bytes of the first frame in `input`, if `input` begins a message of a WebSocket.
    pub fn missing_frame_bytes(&self, input: &[u8], limits: &Limits) -> Option<u64> {
        match self {
            State::Open(open) => open.missing_frame_bytes(input, limits),
            _ => None,
        }
    }

    /// Returns true if a WebSocket has received bytes that are left to be decoded: no others are read before.
    pub fn has_undecoded(&self) -> bool {
        matches!(self, State::Open(open) if open.has_undecoded())
    }

    /// Parses the input that arrived after the last request, or that is left to be decoded.
    pub fn resume(&mut self, ctx: &mut SessionContext<'_>) {
        match self {
            State::Head(head) => {
                let unread = head.take_unread();
                self.receive(&unread, ctx);
            }
            State::Open(open) if open.has_undecoded() => {
                let unread = open.take_unread();
                // `unread` is empty if only a message is left to be decompressed.
                if let Some(next) = open.receive(&unread, ctx) {
                    self.become_next(next);
                }
            }
            _ => {}
        }
    }

    /// Handles received bytes.
    pub fn receive(&mut self, mut input: &[u8], ctx: &mut SessionContext<'_>) {
        while !input.is_empty() {
            let (consumed, next) = match self {
                State::Rejected(rejected) => (input.len(), rejected.receive(input, ctx)),
                State::Head(head) => connection::receive_head(head, input, ctx),
                State::Body(body) => connection::receive_body(body, input, ctx),
                State::Responding(responding) => {
                    responding.receive(input);
                    return;
                }
                State::Open(open) => (input.len(), open.receive(input, ctx)),
                State::Closing(closing) => {
                    closing.receive(input, ctx);
                    return;
                }
                State::ProxyHeader { .. } | State::Streaming(_) | State::Dead(_) => return,
            };
            if let Some(next) = next {
                self.become_next(next);
            }
            // Bytes after a head in the same read cause no event of their own.
            input = &input[consumed..];
        }
    }

    /// A response has been queued. Returns true if input that arrived after the request is to be parsed.
    pub fn responded(&mut self, limits: &Limits, now: LoopTime) -> bool {
        match self {
            State::Head(head) => head.responded(),
            State::Body(body) => body.responded(),
            State::Responding(responding) => {
                if let Some(next) = responding.responded(limits, now) {
                    *self = next;
                    return true;
                }
            }
            State::ProxyHeader { .. }
            | State::Rejected(_)
            | State::Open(_)
            | State::Streaming(_)
            | State::Closing(_)
            | State::Dead(_) => {}
        }
        false
    }

    fn auth(&self) -> Option<&AuthState> {
        match self {
            State::Open(open) => open.auth(),
            State::Streaming(streaming) => streaming.auth(),
            _ => None,
        }
    }

    fn auth_mut(&mut self) -> Option<&mut AuthState> {
        match self {
            State::Open(open) => open.auth_mut(),
            State::Streaming(streaming) => streaming.auth_mut(),
            _ => None,
        }
    }

    /// The user (`sub` of the token), if the client is authenticated.
    pub fn sub(&self) -> Option<&str> {
        self.auth()?.grant()?.sub.as_deref()
    }
}
