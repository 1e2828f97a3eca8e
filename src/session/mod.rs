//! Per-connection protocol state machine: received bytes in, outbox bytes and intents out.
//!
//! A session is a [`State`] whose variants own their data and their deadline. It is pure: it does no I/O and takes the
//! time as an argument, so a test can simulate a year of timeouts and errors in a millisecond.
//!
//! ```text
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
pub mod decoder;
pub mod frame_scanner;
mod heartbeat;
pub mod http;
pub mod intent;
mod open;
pub mod rejection;
mod unfinished;
pub mod websocket;

use std::rc::Rc;

use bytes::Bytes;

use crate::access::authenticator::Authenticator;
use crate::access::connection_limiter::ConnectionLimiter;
use crate::access::grant::Grant;
use crate::access::origin::OriginPattern;
use crate::close::Reason;
use crate::config::{Asset, Limits};
use crate::ids::{Peer, SlotId};
use crate::metrics::Metrics;
use crate::net::outbox::Outbox;
use crate::time::LoopTime;
use crate::wire::chunk::LAST_CHUNK;
use crate::wire::{self, Form};
use auth_state::AuthState;
use closing::CloseStep;
use frame_scanner::FrameScanner;
use heartbeat::Heartbeat;
use http::query::PendingQuery;
use http::response::{HttpError, ResponseOptions};
use intent::Intent;
use rejection::Rejection;

pub use closing::Closing;
pub use http::connection::{Body, Head, Responding};
pub use http::dispatch::SMALL_BYTES;
pub use open::Open;

/// Minimum cost of one WebSocket frame in a turn's budget. A frame of 64 bytes takes hardly longer than an empty one:
/// 43,690 empty frames (256 KiB) took 20 to 45 ms in one turn.
pub const FRAME_COST_BYTES_MIN: usize = 64;

/// Cost of one HTTP request in a turn's budget, in addition to its bytes: parsing, routing and the response take about
/// as long as 16 small frames.
pub const REQUEST_COST_BYTES: usize = 1024;

/// The state of a connection.
///
/// Most connections are idle and open, and such a connection must own no heap memory (**asleep between messages**). The
/// other states are short-lived and boxed, so that a slot stays small.
#[derive(Debug)]
pub enum State {
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

/// How a connection ended, for the log.
#[derive(Debug)]
pub struct Ended {
    /// The reason.
    pub reason: Reason,
    /// The grant of an authenticated client.
    pub grant: Option<Rc<Grant>>,
}

/// A stream of server-sent events. The client sends nothing but EOF.
///
/// It lives in a box of 32 bytes: with the authentication state in the slot, every connection would be 8 bytes larger.
#[derive(Debug)]
pub struct Streaming {
    /// `None` for an anonymous client.
    auth: Option<Box<AuthState>>,
    heartbeat: Heartbeat,
    /// The framing of its events.
    form: Form,
}

/// Configuration of the HTTP endpoints.
#[derive(Debug, Default)]
pub struct HttpConfig {
    /// Files embedded in the program.
    pub assets: Vec<&'static Asset>,
    /// Origins whose pages may send requests, in addition to those of the server's own host.
    pub origins: Vec<OriginPattern>,
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

/// What is to be done after a flush.
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

/// The environment of a session while it handles an event.
#[derive(Debug)]
pub struct SessionContext<'a> {
    /// The limits.
    pub limits: &'a Limits,
    /// Configuration of the HTTP endpoints.
    pub http_config: &'a HttpConfig,
    /// Connections and handshakes per address.
    pub limiter: &'a mut ConnectionLimiter,
    /// The connection's id.
    pub id: SlotId,
    /// The peer's address.
    pub peer: &'a mut Peer,
    /// Verifies tokens and tickets.
    pub authenticator: &'a mut Authenticator,
    /// The metrics.
    pub metrics: &'a mut Metrics,
    /// The time of this turn.
    pub now: LoopTime,
    /// Spreads the pings of connections that were accepted together; any number that differs between slots.
    pub ping_offset: u32,
    /// The process is close to its memory budget, and rejects large messages and bodies that are not complete.
    pub is_memory_short: bool,
    /// Bytes to be written.
    pub outbox: &'a mut Outbox,
    /// Operations requested from the server.
    pub intents: &'a mut Vec<Intent>,
    /// Cost of the received frames and requests, in addition to their bytes, in bytes of the turn's budget.
    pub cost: usize,
    /// The unused part of the connection's share, in the same unit: at this cost, further pipelined requests wait for
    /// the responses to those before them.
    pub cost_max: usize,
}

impl State {
    /// The state of an accepted connection.
    pub fn accepted(limits: &Limits, now: LoopTime) -> State {
        State::Head(Box::new(Head::fresh(limits, now)))
    }

    /// Rejects a connection that was just accepted, or whose proxy has just sent the client's address.
    ///
    /// The error response is sent when a request head has arrived, or its deadline has expired: an EventSource never
    /// reconnects after a status other than 200, so the form of the response depends on the request.
    pub fn reject(&mut self, reason: Reason) {
        if let State::Head(head) = self {
            head.reject(reason);
        }
    }

    /// Returns true for an open WebSocket.
    pub fn is_web_socket(&self) -> bool {
        matches!(self, State::Open(_))
    }

    /// Memory of an incomplete message or request, in bytes.
    pub fn held_bytes(&self) -> usize {
        match self {
            State::Head(head) => head.held_bytes(),
            State::Body(body) => body.held_bytes(),
            State::Responding(responding) => responding.held_bytes(),
            State::Open(open) => open.held_bytes(),
            State::Streaming(_) | State::Closing(_) | State::Dead(_) => 0,
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
            State::Head(_) | State::Body(_) => is_flushed && !is_paused,
            State::Responding(_) => false,
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
            State::Head(_) | State::Body(_) | State::Responding(_) | State::Closing(_) | State::Dead(_) => {
                Reconnects::Never
            }
        }
    }

    /// Returns true if the next response to send is that of a query, or its next slice. Responses to earlier requests
    /// are sent first.
    pub fn has_query(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_query())
    }

    /// Returns true if requests were received that have to wait for the responses to those before them.
    pub fn has_waiting_requests(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_unread())
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

    /// Parses the input that arrived after the last request.
    pub fn resume(&mut self, ctx: &mut SessionContext<'_>) {
        if let State::Head(head) = self {
            let unread = head.take_unread();
            if !unread.is_empty() {
                self.receive(&unread, ctx);
            }
        }
    }

    /// Handles received bytes.
    pub fn receive(&mut self, mut input: &[u8], ctx: &mut SessionContext<'_>) {
        while !input.is_empty() {
            let (consumed, next) = match self {
                State::Head(head) => head.receive(input, ctx),
                State::Body(body) => body.receive(input, ctx),
                State::Responding(responding) => {
                    responding.receive(input);
                    return;
                }
                State::Open(open) => (input.len(), open.receive(input, ctx)),
                State::Closing(closing) => {
                    closing.receive(input, ctx);
                    return;
                }
                State::Streaming(_) | State::Dead(_) => return,
            };
            if let Some(next) = next {
                self.become_next(next);
            }
            // Bytes after a head in the same read cause no event of their own.
            input = &input[consumed..];
        }
    }

    /// Handles the peer's EOF, after all received bytes.
    pub fn end_of_file(&mut self) {
        match self {
            State::Head(head) => *self = head.end_of_file(),
            State::Body(body) => *self = body.end_of_file(),
            State::Responding(responding) => responding.end_of_file(),
            State::Open(_) | State::Streaming(_) => self.become_next(State::dead(Reason::EndOfFile)),
            State::Closing(closing) => {
                if closing.end_of_file() {
                    let reason = closing.reason;
                    self.become_next(State::dead(reason));
                }
            }
            State::Dead(_) => {}
        }
    }

    /// Handles a socket error.
    pub fn fail(&mut self) {
        match self {
            // The reason of a close that has begun is more informative than the socket error.
            State::Closing(closing) => {
                let reason = closing.reason;
                self.become_next(State::dead(reason));
            }
            State::Dead(_) => {}
            _ => self.become_next(State::dead(Reason::Reset)),
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
            State::Open(_) | State::Streaming(_) | State::Closing(_) | State::Dead(_) => {}
        }
        false
    }

    /// Begins to close the connection. Does nothing if a close has begun.
    pub fn close(&mut self, reason: Reason, ctx: &mut SessionContext<'_>) {
        let SessionContext { limits, now, .. } = *ctx;
        match self {
            // After a TLS failure the client can read no HTTP response.
            State::Head(_) | State::Body(_) | State::Responding(_)
                if matches!(reason, Reason::TlsFailed { .. }) =>
            {
                *self = Closing::begin(reason, CloseStep::Flushing, limits, now);
            }
            // An error response cannot be sent within another response. A drain lets that be completed; any other
            // close omits its last chunk, so that the client detects that it is incomplete (RFC 9112 8).
            State::Responding(responding) if responding.has_begun() => {
                if !matches!(reason, Reason::Drain { .. }) {
                    ctx.outbox.drop_unstarted();
                    *self = Closing::begin(reason, CloseStep::Flushing, limits, now);
                }
            }
            State::Head(_) | State::Responding(_) => {
                *self = respond_and_close(
                    reason,
                    &ResponseOptions::last(ctx.authenticator.http_date()),
                    limits,
                    ctx.metrics,
                    now,
                    ctx.outbox,
                );
            }
            State::Body(body) => {
                *self = respond_and_close(reason, &body.last_options(), limits, ctx.metrics, now, ctx.outbox);
            }
            State::Open(open) => {
                let grant = open.auth().and_then(AuthState::grant).cloned();
                *self = begin_close(reason, open.take_scanner(), ctx).with_grant(grant);
            }
            State::Streaming(streaming) => {
                let mut last = Vec::new();
                if let Reason::Drain { retry_ms } = reason {
                    last.extend_from_slice(&streaming.form.piece(|out| wire::append_retry(out, retry_ms)));
                }
                if reason == Reason::Slow {
                    // A slow client does not read its queue and misses events: the last chunk is omitted, which
                    // marks the body as incomplete.
                    ctx.outbox.drop_unstarted();
                } else if streaming.form.is_chunked() {
                    last.extend_from_slice(LAST_CHUNK);
                }
                ctx.intents.push(Intent::BeginClose { close_frame: Some(last.into()) });
                self.become_next(Closing::begin(reason, CloseStep::Flushing, limits, now));
            }
            State::Closing(_) | State::Dead(_) => {}
        }
    }

    /// Replaces the reason of a close that the peer began after a message that is rejected: an echo of the peer's own
    /// code would confirm that message. Returns false if the connection is not closing.
    pub fn replace_close_reason(&mut self, reason: Reason) -> bool {
        match self {
            State::Closing(closing) => {
                closing.reason = reason;
                true
            }
            _ => false,
        }
    }

    /// The time at which [`State::expire`] has to be called.
    pub fn deadline(&self) -> Option<LoopTime> {
        match self {
            State::Head(head) => Some(head.deadline()),
            State::Body(body) => Some(body.deadline()),
            State::Open(_) | State::Streaming(_) => {
                let auth_deadline = self.auth().map(AuthState::deadline);
                self.heartbeat_deadline()
                    .into_iter()
                    .chain(auth_deadline)
                    .chain(self.message_deadline())
                    .reduce(LoopTime::min)
            }
            State::Closing(closing) => Some(closing.deadline),
            State::Responding(_) | State::Dead(_) => None,
        }
    }

    /// The time of the next ping, or the deadline of a pong.
    fn heartbeat_deadline(&self) -> Option<LoopTime> {
        match self {
            State::Open(open) => open.heartbeat.deadline(),
            State::Streaming(streaming) => streaming.heartbeat.deadline(),
            _ => None,
        }
    }

    /// The deadline of an incomplete message.
    fn message_deadline(&self) -> Option<LoopTime> {
        match self {
            State::Open(open) => open.message_deadline(),
            _ => None,
        }
    }

    fn auth(&self) -> Option<&AuthState> {
        match self {
            State::Open(open) => open.auth(),
            State::Streaming(streaming) => streaming.auth.as_deref(),
            _ => None,
        }
    }

    fn auth_mut(&mut self) -> Option<&mut AuthState> {
        match self {
            State::Open(open) => open.auth_mut(),
            State::Streaming(streaming) => streaming.auth.as_deref_mut(),
            _ => None,
        }
    }

    /// The state of a closed connection.
    pub fn dead(reason: Reason) -> State {
        State::Dead(Box::new(Ended { reason, grant: None }))
    }

    /// Closes the connection, in any state.
    pub fn end(&mut self, reason: Reason) {
        self.become_next(State::dead(reason));
    }

    /// Changes the state. The grant is kept until the end of the connection is logged.
    fn become_next(&mut self, next: State) {
        let grant = match self {
            State::Closing(closing) => closing.grant.take(),
            State::Dead(ended) => ended.grant.take(),
            _ => self.auth().and_then(AuthState::grant).cloned(),
        };
        *self = next.with_grant(grant);
    }

    fn with_grant(mut self, grant: Option<Rc<Grant>>) -> State {
        match &mut self {
            State::Closing(closing) => closing.grant = grant,
            State::Dead(ended) => ended.grant = grant,
            _ => {}
        }
        self
    }

    /// The user (`sub` of the token), if the client is authenticated.
    pub fn sub(&self) -> Option<&str> {
        self.auth()?.grant()?.sub.as_deref()
    }

    /// Returns true if only a ping, or a comment in an event stream, is due.
    pub fn is_ping_due(&self, now: LoopTime) -> bool {
        let is_due = match self {
            State::Open(open) => {
                matches!(open.heartbeat, Heartbeat::Quiet { ping_at } if ping_at.is_due(now))
            }
            State::Streaming(streaming) => streaming.heartbeat.deadline().is_some_and(|at| at.is_due(now)),
            _ => false,
        };
        is_due && !self.auth().is_some_and(|auth| auth.deadline().is_due(now))
    }

    /// Handles an expired deadline. `is_unread`: the socket is still to be read in this turn.
    pub fn expire(&mut self, is_unread: bool, ctx: &mut SessionContext<'_>) -> Due {
        if let State::Open(open) = self
            && open.heartbeat == Heartbeat::Overdue
            && !is_unread
        {
            self.close(Reason::NoPong, ctx);
            return Due::Flush;
        }
        if !self.deadline().is_some_and(|deadline| deadline.is_due(ctx.now)) {
            return Due::Nothing;
        }
        // The end of the message may have arrived without being read yet. The extension is limited, since a client can
        // always have something unread.
        let extension_ms = if is_unread { UNREAD_MESSAGE_MS } else { 0 };
        if self.message_deadline().is_some_and(|deadline| deadline.after(extension_ms).is_due(ctx.now)) {
            self.close(Reason::MessageTimeout, ctx);
            return Due::Flush;
        }
        if let Some(reason) = self.auth_mut().and_then(|auth| auth.expire(ctx)) {
            self.close(reason, ctx);
            return Due::Flush;
        }
        let is_heartbeat_due = self.heartbeat_deadline().is_some_and(|at| at.is_due(ctx.now));
        match self {
            // The deadline was that of the authentication or the message.
            State::Open(_) | State::Streaming(_) if !is_heartbeat_due => Due::Nothing,
            // The request may have arrived: the turn's budget was used up, or the client has not read the previous
            // response. Whether it reads fast enough is checked by the outbox.
            State::Head(_) | State::Body(_) if is_unread || !ctx.outbox.is_empty() => Due::Nothing,
            // No request, so no 408: browsers open spare connections.
            State::Head(head) if head.is_silent() && head.rejection().is_none() => {
                Due::Close(head.timeout_reason())
            }
            State::Head(head) => {
                let reason = head.rejection().unwrap_or(head.timeout_reason());
                self.close(reason, ctx);
                Due::Flush
            }
            State::Body(_) => {
                self.close(Reason::BodyTimeout, ctx);
                Due::Flush
            }
            State::Open(open) => open.check_liveness(ctx),
            State::Streaming(streaming) => {
                ctx.outbox.queue(Rc::new(streaming.form.piece(wire::append_comment)));
                streaming.heartbeat = Heartbeat::received(ctx);
                Due::Flush
            }
            State::Closing(closing) => Due::Close(closing.reason),
            State::Responding(_) | State::Dead(_) => Due::Nothing,
        }
    }

    /// Updates deadlines after a flush.
    pub fn flushed(&mut self, written: usize, outbox: &Outbox, limits: &Limits, now: LoopTime) -> AfterFlush {
        match self {
            State::Closing(closing) => closing.flushed(written, outbox, limits, now),
            State::Head(head) if written > 0 && outbox.is_empty() => {
                head.restart_deadline(limits, now);
                AfterFlush::Nothing
            }
            State::Body(body) if written > 0 && outbox.is_empty() => {
                body.restart_deadline(limits, now);
                AfterFlush::Nothing
            }
            _ => AfterFlush::Nothing,
        }
    }
}

/// Extension of the deadline of a message whose end may be unread: longer than any turn.
const UNREAD_MESSAGE_MS: u32 = 1_000;

/// Queues the error response to an HTTP client whose connection is closed.
fn respond_and_close(
    reason: Reason,
    options: &ResponseOptions,
    limits: &Limits,
    metrics: &mut Metrics,
    now: LoopTime,
    outbox: &mut Outbox,
) -> State {
    let error = Rejection::of_close(reason, limits).http();
    let response = error.respond(options);
    send_last_response(reason, &error, response, limits, metrics, now, outbox)
}

/// Queues an error response, the last of its connection.
fn send_last_response(
    reason: Reason,
    error: &HttpError,
    response: Vec<u8>,
    limits: &Limits,
    metrics: &mut Metrics,
    now: LoopTime,
    outbox: &mut Outbox,
) -> State {
    metrics.reject(error.code());
    outbox.queue(Rc::new(Bytes::from(response)));
    Closing::begin(reason, CloseStep::Flushing, limits, now)
}

/// Begins to close an open WebSocket from the server's side: the close frame is the last that is queued.
fn begin_close(reason: Reason, scanner: FrameScanner, ctx: &mut SessionContext<'_>) -> State {
    if reason == Reason::Slow {
        // A slow client would never reach a close frame at the end of its queue.
        ctx.outbox.drop_unstarted();
    }
    ctx.intents.push(Intent::BeginClose { close_frame: wire::close(reason) });
    let step = if reason.awaits_peers_close() { CloseStep::AwaitClose(scanner) } else { CloseStep::Flushing };
    Closing::begin(reason, step, ctx.limits, ctx.now)
}
