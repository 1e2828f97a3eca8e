//! One connection's conversation: bytes in, outbox bytes and intents out.
//!
//! A session is a [`State`] whose variants own their data and their deadline. It is pure: it never does
//! I/O and never asks the time, so a test can put it through a year of bad luck in a millisecond.
//!
//! ```text
//!           ,--- body ---> Body ---,
//!   Head --+                        +--> Responding --- answered ---> Head, or Draining
//!    ^      `--- request ----------'
//!    |
//!    +--- upgrade ---> Open ------- close ---,
//!    +--- events ----> Streaming --- end ----+--> Draining ---> Dead
//!    `--- refusal ---------------------------'
//! ```

pub mod auth_state;
mod buffer;
mod closing;
mod commands;
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
use http::query::Query;
use http::response::{HttpError, ResponseOptions};
use intent::Intent;
use rejection::Rejection;

pub use closing::Closing;
pub use http::connection::{Body, Head, Responding};
pub use http::dispatch::SMALL_BYTES;
pub use open::Open;

/// Minimum cost of one WebSocket frame in a turn's budget. A frame of 64 bytes takes hardly longer than an empty one:
/// 43,690 empty frames, which have 256 KiB, took 20 to 45 ms in one turn.
pub const FRAME_COST_BYTES_MIN: usize = 64;

/// Cost of one HTTP request in a turn's budget, in addition to its bytes: to parse it, route it and write a response
/// takes about as long as 16 small frames.
pub const REQUEST_COST_BYTES: usize = 1024;

/// Where a connection stands.
///
/// An idle open one is the most frequent of all, and must own no heap memory (**asleep between
/// messages**); the others are short and live in a box, so that it stays small.
#[derive(Debug)]
pub enum State {
    /// Reading a request's head, or waiting for one.
    Head(Box<Head>),
    /// Reading a request's body.
    Body(Box<Body>),
    /// A request waits for its answer.
    Responding(Box<Responding>),
    /// A WebSocket.
    Open(Open),
    /// Server-sent events.
    Streaming(Box<Streaming>),
    /// Saying goodbye.
    Closing(Box<Closing>),
    /// Over; the slot waits to be reaped.
    Dead(Box<Ended>),
}

/// How a connection ended, for the log.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: Reason,
    /// The rights that it had by a token.
    pub grant: Option<Rc<Grant>>,
}

/// A stream of server-sent events. Nothing is expected from the client but its end.
///
/// It lives in a box of 32 bytes: with a guest in the slot every connection would be 8 bytes larger.
#[derive(Debug)]
pub struct Streaming {
    /// `None` for everybody.
    auth: Option<Box<AuthState>>,
    heartbeat: Heartbeat,
    /// How its events are framed.
    form: Form,
}

/// What all sessions serve, beside channels.
#[derive(Debug, Default)]
pub struct HttpConfig {
    /// Files in the program.
    pub assets: Vec<&'static Asset>,
    /// Origins whose pages may ask and publish, beside those of the server's own host.
    pub origins: Vec<OriginPattern>,
}

/// What the deadline of a state asks for.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// A ping has been queued.
    Flush,
    /// The slot must be read before it can be judged.
    Read,
    /// It is over.
    Close(Reason),
}

/// How a client reconnects after the server has closed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnects {
    /// When the close frame says (`retry_ms`): `oyez.v1`.
    AsTold,
    /// As soon as it is closed, whatever the close frame says: a raw WebSocket, an event stream.
    AtOnce,
    /// It does not: a request over HTTP.
    No,
}

/// What the end of a flush asks for.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFlush {
    /// Nothing.
    Nothing,
    /// An end of file for the peer.
    ShutDownWrite,
    /// It is over.
    Close(Reason),
}

/// What a session works with while it has its turn.
#[derive(Debug)]
pub struct SessionContext<'a> {
    /// The limits of all.
    pub limits: &'a Limits,
    /// What is served beside channels.
    pub http_config: &'a HttpConfig,
    /// Who comes from where.
    pub limiter: &'a mut ConnectionLimiter,
    /// Which connection it is.
    pub id: SlotId,
    /// Who is at the other end.
    pub peer: &'a mut Peer,
    /// Who may come in.
    pub authenticator: &'a mut Authenticator,
    /// The counters.
    pub metrics: &'a mut Metrics,
    /// The time of this turn.
    pub now: LoopTime,
    /// Spreads the pings of connections that came at once; any number that differs between slots.
    pub ping_offset: u32,
    /// The process is close to its memory budget, and accepts no large message or body that is not complete.
    pub is_memory_short: bool,
    /// What waits to be written.
    pub outbox: &'a mut Outbox,
    /// What it wants from the server.
    pub intents: &'a mut Vec<Intent>,
    /// Cost of the received frames and requests, in addition to their bytes, in bytes of the turn's budget.
    pub cost: usize,
    /// The rest of the connection's share, in the same unit: at this cost, further pipelined requests have to wait for
    /// the responses to those before them.
    pub cost_max: usize,
}

impl State {
    /// A connection that was just accepted.
    pub fn accepted(limits: &Limits, now: LoopTime) -> State {
        State::Head(Box::new(Head::fresh(limits, now)))
    }

    /// Refuses a connection that was just accepted, or whose proxy has just sent the client's address.
    ///
    /// The refusal is held until the head of a request has arrived, or its time is up: an EventSource stops for ever
    /// at any status but 200, so how it is refused depends on what it asks for.
    pub fn refuse(&mut self, reason: Reason) {
        if let State::Head(head) = self {
            head.refuse(reason);
        }
    }

    /// Returns true if it is an open WebSocket.
    pub fn is_web_socket(&self) -> bool {
        matches!(self, State::Open(_))
    }

    /// Memory that it takes for an incomplete message or request, in bytes.
    pub fn held_bytes(&self) -> usize {
        match self {
            State::Head(head) => head.held_bytes(),
            State::Body(body) => body.held_bytes(),
            State::Responding(responding) => responding.held_bytes(),
            State::Open(open) => open.held_bytes(),
            State::Streaming(_) | State::Closing(_) | State::Dead(_) => 0,
        }
    }

    /// Is what the peer sends still of use? Not once a close has begun, but for its close frame.
    pub fn is_open(&self) -> bool {
        !matches!(self, State::Closing(_) | State::Dead(_))
    }

    /// Returns true if it is to be read. A client, of HTTP or a WebSocket, has to take its answers before it is read
    /// again: that bounds the memory of a connection, and its own kernel buffers the rest. Published messages that wait
    /// for a WebSocket do not stop its reads. `is_flushed` says that its socket has taken all that there was,
    /// `is_paused` that answers wait, or that it has to wait for subscribers.
    pub fn takes_input(&self, is_flushed: bool, is_paused: bool) -> bool {
        match self {
            State::Head(_) | State::Body(_) => is_flushed && !is_paused,
            State::Responding(_) => false,
            State::Open(_) => !is_paused,
            State::Streaming(_) | State::Closing(_) | State::Dead(_) => true,
        }
    }

    /// Does it wait for another request, after one that was answered?
    pub fn is_idle_request(&self) -> bool {
        matches!(self, State::Head(head) if head.is_idle())
    }

    /// How its client reconnects when the server closes it.
    pub fn reconnects(&self) -> Reconnects {
        match self {
            State::Open(open) if open.is_raw() => Reconnects::AtOnce,
            State::Open(_) => Reconnects::AsTold,
            State::Streaming(_) => Reconnects::AtOnce,
            State::Head(_) | State::Body(_) | State::Responding(_) | State::Closing(_) | State::Dead(_) => {
                Reconnects::No
            }
        }
    }

    /// Returns true if the next thing that is due to the client is a response to a query, or its next slice. Responses to
    /// earlier requests come first.
    pub fn has_query(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_query())
    }

    /// Returns true if requests were received that have to wait for the responses to those before them.
    pub fn has_waiting_requests(&self) -> bool {
        matches!(self, State::Responding(responding) if responding.has_rest())
    }

    /// Takes the query of [`State::has_query`], to encode some of its response.
    pub fn take_query(&mut self) -> Option<Box<Query>> {
        match self {
            State::Responding(responding) if responding.has_query() => responding.query.take(),
            _ => None,
        }
    }

    /// Gives a query back whose response is not complete.
    pub fn put_back_query(&mut self, query: Box<Query>) {
        if let State::Responding(responding) = self {
            responding.query = Some(query);
        }
    }

    /// The end of the connection is the end of the response: HTTP/1.0 has no other end for one of unknown length (RFC
    /// 9112 6.3).
    pub fn close_after_response(&mut self) {
        if let State::Responding(responding) = self {
            responding.close_after(Reason::Served);
        }
    }

    /// Is a flush due even when nothing is queued? Yes when all has been said, and only the end of file
    /// or the end is left to come.
    pub fn ends_with_flush(&self) -> bool {
        matches!(self, State::Closing(draining) if matches!(draining.closing, CloseStep::Flushing | CloseStep::HalfClosed))
    }

    /// Looks at what came behind the last request, if it was not looked at then.
    pub fn resume(&mut self, ctx: &mut SessionContext<'_>) {
        if let State::Head(head) = self {
            let rest = head.take_rest();
            if !rest.is_empty() {
                self.receive(&rest, ctx);
            }
        }
    }

    /// Takes bytes from the peer.
    pub fn receive(&mut self, mut input: &[u8], ctx: &mut SessionContext<'_>) {
        while !input.is_empty() {
            let (taken, next) = match self {
                State::Head(head) => head.receive(input, ctx),
                State::Body(body) => body.receive(input, ctx),
                State::Responding(responding) => {
                    responding.receive(input);
                    return;
                }
                State::Open(open) => (input.len(), open.receive(input, ctx)),
                State::Closing(draining) => {
                    draining.receive(input, ctx);
                    return;
                }
                State::Streaming(_) | State::Dead(_) => return,
            };
            if let Some(next) = next {
                self.become_next(next);
            }
            // What follows a head in the same segment raises no event of its own.
            input = &input[taken..];
        }
    }

    /// Takes the peer's end of file. It comes after everything that the peer has sent.
    pub fn end_of_file(&mut self) {
        match self {
            State::Head(head) => *self = head.end_of_file(),
            State::Body(body) => *self = body.end_of_file(),
            State::Responding(responding) => responding.end_of_file(),
            State::Open(_) | State::Streaming(_) => self.become_next(State::dead(Reason::EndOfFile)),
            State::Closing(draining) => {
                if draining.end_of_file() {
                    let reason = draining.reason;
                    self.become_next(State::dead(reason));
                }
            }
            State::Dead(_) => {}
        }
    }

    /// Takes a failure of the socket.
    pub fn fail(&mut self) {
        match self {
            // The close was on its way, and its reason says more than how it ended.
            State::Closing(draining) => {
                let reason = draining.reason;
                self.become_next(State::dead(reason));
            }
            State::Dead(_) => {}
            _ => self.become_next(State::dead(Reason::Reset)),
        }
    }

    /// An answer that was asked for has been queued. Says whether there is more to look at.
    pub fn answered(&mut self, limits: &Limits, now: LoopTime) -> bool {
        match self {
            State::Head(head) => head.answered(),
            State::Body(body) => body.answered(),
            State::Responding(responding) => {
                if let Some(next) = responding.answered(limits, now) {
                    *self = next;
                    return true;
                }
            }
            State::Open(_) | State::Streaming(_) | State::Closing(_) | State::Dead(_) => {}
        }
        false
    }

    /// Begins to close, from our side. Does nothing if a close has begun.
    pub fn close(&mut self, reason: Reason, ctx: &mut SessionContext<'_>) {
        let SessionContext { limits, now, .. } = *ctx;
        match self {
            // There are no words that it would understand.
            State::Head(_) | State::Body(_) | State::Responding(_)
                if matches!(reason, Reason::TlsFailed { .. }) =>
            {
                *self = Closing::begin(reason, CloseStep::Flushing, limits, now);
            }
            // An error response cannot follow within a response. A drain lets it be completed; any other close leaves
            // it without its last chunk, and the client sees that it is incomplete (RFC 9112 8).
            State::Responding(responding) if responding.has_begun() => {
                if !matches!(reason, Reason::Drain { .. }) {
                    ctx.outbox.drop_unstarted();
                    *self = Closing::begin(reason, CloseStep::Flushing, limits, now);
                }
            }
            State::Head(_) | State::Responding(_) => {
                *self = answer(
                    reason,
                    &ResponseOptions::last(ctx.authenticator.http_date()),
                    limits,
                    ctx.metrics,
                    now,
                    ctx.outbox,
                );
            }
            State::Body(body) => {
                *self = answer(reason, &body.last_manner(), limits, ctx.metrics, now, ctx.outbox);
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
                    // A slow client would not receive it after the queue that it does not read, and it misses events:
                    // so the body stays without its last chunk, which means that it is incomplete.
                    ctx.outbox.drop_unstarted();
                } else if streaming.form.is_chunked() {
                    last.extend_from_slice(LAST_CHUNK);
                }
                ctx.intents.push(Intent::BeginClose { farewell: Some(last.into()) });
                self.become_next(Closing::begin(reason, CloseStep::Flushing, limits, now));
            }
            State::Closing(_) | State::Dead(_) => {}
        }
    }

    /// It has begun to close by itself, behind something that is refused: it is to be told that instead of an
    /// echo of its own code, which it takes for a receipt. False if it is not closing.
    pub fn overrule(&mut self, reason: Reason) -> bool {
        match self {
            State::Closing(draining) => {
                draining.reason = reason;
                true
            }
            _ => false,
        }
    }

    /// The moment at which [`State::expire`] has something to do.
    pub fn deadline(&self) -> Option<LoopTime> {
        match self {
            State::Head(head) => Some(head.deadline()),
            State::Body(body) => Some(body.deadline()),
            State::Open(_) | State::Streaming(_) => {
                let leaves = self.auth().map(AuthState::deadline);
                self.asks_at().into_iter().chain(leaves).chain(self.message_deadline()).reduce(LoopTime::min)
            }
            State::Closing(draining) => Some(draining.until),
            State::Responding(_) | State::Dead(_) => None,
        }
    }

    /// When an open connection wants to ask for a sign of life, or for the answer.
    fn asks_at(&self) -> Option<LoopTime> {
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

    /// A connection that is over.
    pub fn dead(reason: Reason) -> State {
        State::Dead(Box::new(Ended { reason, grant: None }))
    }

    /// Ends the connection, in any state.
    pub fn end(&mut self, reason: Reason) {
        self.become_next(State::dead(reason));
    }

    /// Its rights are kept until its end is logged.
    fn become_next(&mut self, next: State) {
        let grant = match self {
            State::Closing(draining) => draining.grant.take(),
            State::Dead(ended) => ended.grant.take(),
            _ => self.auth().and_then(AuthState::grant).cloned(),
        };
        *self = next.with_grant(grant);
    }

    fn with_grant(mut self, grant: Option<Rc<Grant>>) -> State {
        match &mut self {
            State::Closing(draining) => draining.grant = grant,
            State::Dead(ended) => ended.grant = grant,
            _ => {}
        }
        self
    }

    /// Whose connection it is, if that was shown.
    pub fn sub(&self) -> Option<&str> {
        self.auth()?.grant()?.sub.as_deref()
    }

    /// Returns true if the expired deadline only asks for a ping, or for a comment in an event stream.
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

    /// Does what the deadline asks for, when it has come. `unread` says that the slot is yet to be read
    /// this turn.
    pub fn expire(&mut self, unread: bool, ctx: &mut SessionContext<'_>) -> Due {
        if let State::Open(open) = self
            && open.heartbeat == Heartbeat::Overdue
            && !unread
        {
            self.close(Reason::NoPong, ctx);
            return Due::Flush;
        }
        if !self.deadline().is_some_and(|deadline| deadline.is_due(ctx.now)) {
            return Due::Nothing;
        }
        // The rest may have arrived and not been read; but a client that always has something unread gets only a
        // limited extension.
        let patience_ms = if unread { UNREAD_MESSAGE_MS } else { 0 };
        if self.message_deadline().is_some_and(|deadline| deadline.after(patience_ms).is_due(ctx.now)) {
            self.close(Reason::MessageTimeout, ctx);
            return Due::Flush;
        }
        if let Some(reason) = self.auth_mut().and_then(|auth| auth.expire(ctx)) {
            self.close(reason, ctx);
            return Due::Flush;
        }
        let is_asked = self.asks_at().is_some_and(|at| at.is_due(ctx.now));
        match self {
            // The deadline was the guest's, or the message's.
            State::Open(_) | State::Streaming(_) if !is_asked => Due::Nothing,
            // It may be there, behind the turn's budget, or behind an answer that is not taken; whether it is
            // taken fast enough is another question.
            State::Head(_) | State::Body(_) if unread || !ctx.outbox.is_empty() => Due::Nothing,
            // Nothing was asked, so nothing is answered: browsers open connections that they may need.
            State::Head(head) if head.is_silent() && head.refused().is_none() => Due::Close(head.late()),
            State::Head(head) => {
                let reason = head.refused().unwrap_or(head.late());
                self.close(reason, ctx);
                Due::Flush
            }
            State::Body(_) => {
                self.close(Reason::BodyTimeout, ctx);
                Due::Flush
            }
            State::Open(open) => open.ask(ctx),
            State::Streaming(streaming) => {
                ctx.outbox.queue(Rc::new(streaming.form.piece(wire::append_comment)));
                streaming.heartbeat = Heartbeat::heard(ctx);
                Due::Flush
            }
            State::Closing(draining) => Due::Close(draining.reason),
            State::Responding(_) | State::Dead(_) => Due::Nothing,
        }
    }

    /// Takes note of what a flush did.
    pub fn flushed(&mut self, written: usize, outbox: &Outbox, limits: &Limits, now: LoopTime) -> AfterFlush {
        match self {
            State::Closing(draining) => draining.flushed(written, outbox, limits, now),
            State::Head(head) if written > 0 && outbox.is_empty() => {
                head.taken(limits, now);
                AfterFlush::Nothing
            }
            State::Body(body) if written > 0 && outbox.is_empty() => {
                body.taken(limits, now);
                AfterFlush::Nothing
            }
            _ => AfterFlush::Nothing,
        }
    }
}

/// The extension for a message whose rest may have arrived and not been read: longer than any turn.
const UNREAD_MESSAGE_MS: u32 = 1_000;

/// Answers a client of HTTP whose connection is closed, and says goodbye.
fn answer(
    reason: Reason,
    manner: &ResponseOptions,
    limits: &Limits,
    metrics: &mut Metrics,
    now: LoopTime,
    outbox: &mut Outbox,
) -> State {
    let refusal = Rejection::of_close(reason, limits).http();
    let response = refusal.respond(manner);
    say_last(reason, &refusal, response, limits, metrics, now, outbox)
}

/// Queues the last response, which is that of a refusal.
fn say_last(
    reason: Reason,
    refusal: &HttpError,
    response: Vec<u8>,
    limits: &Limits,
    metrics: &mut Metrics,
    now: LoopTime,
    outbox: &mut Outbox,
) -> State {
    metrics.reject(refusal.code());
    outbox.queue(Rc::new(Bytes::from(response)));
    Closing::begin(reason, CloseStep::Flushing, limits, now)
}

/// Ends an open conversation from our side: the close frame is the last that is queued.
fn begin_close(reason: Reason, scanner: FrameScanner, ctx: &mut SessionContext<'_>) -> State {
    if reason == Reason::Slow {
        // It would never get to the close frame behind all that.
        ctx.outbox.drop_unstarted();
    }
    ctx.intents.push(Intent::BeginClose { farewell: wire::close(reason) });
    let closing =
        if reason.awaits_peers_close() { CloseStep::AwaitClose(scanner) } else { CloseStep::Flushing };
    Closing::begin(reason, closing, ctx.limits, ctx.now)
}
