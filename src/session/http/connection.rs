//! States of an HTTP/1.1 connection: request head, request body, and waiting for the response.
//!
//! Programs publish many times a second, so publish requests may be pipelined up to the connection's share of the turn:
//! each response is short, and responses are sent in the order of the intents. Every other request is processed alone:
//! its response may be large, and the next request is not parsed until the client has read it. **A limit on
//! everything**: a connection can make the server hold one response and one read.

use std::net::IpAddr;

use bytes::Bytes;

use super::chunked::{BadChunk, ChunkDecoder};
use super::dispatch::serve;
use super::query::{PendingQuery, QueryProgress};
use super::request::{self, HeadEnd};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use crate::access::authenticator::Rights;
use crate::close::Reason;
use crate::config::Limits;
use crate::ids::ChannelName;
use crate::session::buffer;
use crate::session::closing::{CloseStep, Closing};
use crate::session::intent::{Intent, Query, Receipt};
use crate::session::{SessionContext, State};
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::command::check_json;

/// Waiting for a request, or in its head.
#[derive(Debug)]
pub struct Head {
    received: Vec<u8>,
    progress: HeadProgress,
    deadline: LoopTime,
    /// Responses to earlier requests that are not queued yet.
    pending_responses: u32,
}

/// The progress of a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadProgress {
    /// Nothing has arrived on a new connection.
    Fresh,
    /// A part of a head has arrived, and has no end.
    Partial,
    /// Nothing has arrived since the last response.
    Idle,
    /// Input that arrived after a request has not been parsed.
    Unread,
}

/// In a request body.
#[derive(Debug)]
pub struct Body {
    request: PublishRequest,
    framing: Framing,
    received: Vec<u8>,
    deadline: LoopTime,
    pending_responses: u32,
}

/// How the end of a body is found.
#[derive(Debug)]
pub(in crate::session) enum Framing {
    /// The body has this many bytes (Content-Length).
    Length(usize),
    /// The body ends with its last chunk (RFC 9112 7.1).
    Chunked(ChunkDecoder),
}

/// A publish request whose body is to be received.
#[derive(Debug)]
pub(in crate::session) struct PublishRequest {
    pub(in crate::session) channel: ChannelName,
    pub(in crate::session) kind: Kind,
    pub(in crate::session) options: ResponseOptions,
    pub(in crate::session) key: Option<Box<str>>,
    pub(in crate::session) client: Option<IpAddr>,
    pub(in crate::session) rights: Rights,
}

/// Waiting for the response to a complete request.
#[derive(Debug)]
pub struct Responding {
    /// Input that arrived after the request.
    unread: Vec<u8>,
    pending_responses: u32,
    then: AfterResponses,
    /// A query, until its response is complete. It is the last request: those before it were publish requests.
    pub(in crate::session) query: Option<Box<PendingQuery>>,
}

/// The connection's state after the last pending response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterResponses {
    Next,
    Close(Reason),
    /// The peer has sent EOF and still reads (half-closed).
    HalfClosed(Reason),
}

/// The result of a request.
pub(in crate::session) enum Outcome {
    /// The next request begins after this many bytes.
    Next { consumed: usize },
    /// All input is consumed.
    Become(State),
    /// The input after the head consists of frames.
    Upgraded(State),
}

impl Head {
    /// A new connection, whose first request head has to arrive before the deadline.
    pub(in crate::session) fn fresh(deadline: LoopTime) -> Head {
        Head { received: Vec::new(), progress: HeadProgress::Fresh, deadline, pending_responses: 0 }
    }

    fn next(unread: Vec<u8>, limits: &Limits, now: LoopTime) -> Head {
        let progress = if unread.is_empty() { HeadProgress::Idle } else { HeadProgress::Unread };
        Head { received: unread, progress, deadline: now.after(limits.keep_alive_ms), pending_responses: 0 }
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.deadline
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    /// Returns true if no part of a request has arrived.
    pub(in crate::session) fn is_silent(&self) -> bool {
        matches!(self.progress, HeadProgress::Fresh | HeadProgress::Idle)
    }

    /// Returns true if the connection waits for another request after a response.
    pub(in crate::session) fn is_idle(&self) -> bool {
        self.progress == HeadProgress::Idle
    }

    /// The reason to close the connection when the deadline expires.
    pub(in crate::session) fn timeout_reason(&self) -> Reason {
        if self.is_idle() { Reason::Idle } else { Reason::HandshakeTimeout }
    }

    /// Returns the input after the last request that has not been parsed.
    pub(in crate::session) fn take_unread(&mut self) -> Vec<u8> {
        if self.progress != HeadProgress::Unread {
            return Vec::new();
        }
        self.progress = HeadProgress::Idle;
        std::mem::take(&mut self.received)
    }

    /// Handles received bytes. Returns the number of consumed bytes, and the next state if it changes.
    pub(in crate::session) fn receive(
        &mut self,
        input: &[u8],
        ctx: &mut SessionContext<'_>,
    ) -> (usize, Option<State>) {
        let limits = ctx.limits;
        let before = self.received.len();
        // A head nearly always arrives complete; then it is parsed without a copy.
        let bytes = if before == 0 {
            input
        } else {
            buffer::append(&mut self.received, input, limits.head_bytes_max);
            &self.received[..]
        };
        let end = match request::find_head_end(bytes, before) {
            HeadEnd::At(end) if end <= limits.head_bytes_max => Ok(end),
            HeadEnd::BareLf => Err(HttpError::bad("a line ends in LF without CR")),
            HeadEnd::Tls => Err(HttpError::bad("this port does not use TLS: use http:// or ws://")),
            HeadEnd::Missing if bytes.len() < limits.head_bytes_max => {
                if before == 0 {
                    buffer::append(&mut self.received, input, limits.head_bytes_max);
                }
                if self.progress == HeadProgress::Idle {
                    self.deadline = ctx.now.after(limits.handshake_timeout_ms);
                }
                self.progress = HeadProgress::Partial;
                return (input.len(), None);
            }
            HeadEnd::At(_) | HeadEnd::Missing => Err(HttpError::head_too_large(limits)),
        };
        let (consumed_head, outcome) = match end {
            Ok(end) => {
                (end - before, serve(&bytes[..end], &input[end - before..], self.pending_responses, ctx))
            }
            Err(error) => (input.len(), reject_and_close(&error, self.pending_responses, ctx)),
        };
        match outcome {
            Outcome::Next { consumed } => {
                self.received = Vec::new();
                self.progress = HeadProgress::Idle;
                self.deadline = ctx.now.after(limits.keep_alive_ms);
                self.pending_responses += 1;
                (consumed_head + consumed, None)
            }
            Outcome::Become(state) => (input.len(), Some(state)),
            Outcome::Upgraded(state) => (consumed_head, Some(state)),
        }
    }

    /// Handles the peer's EOF. Returns the next state.
    pub(in crate::session) fn end_of_file(&self) -> State {
        half_close(self.pending_responses)
    }

    pub(in crate::session) fn responded(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// The client has read its responses. It was not read before that, so its time begins now.
    pub(in crate::session) fn restart_deadline(&mut self, limits: &Limits, now: LoopTime) {
        self.deadline = now.after(match self.progress {
            HeadProgress::Idle | HeadProgress::Unread => limits.keep_alive_ms,
            HeadProgress::Fresh | HeadProgress::Partial => limits.handshake_timeout_ms,
        });
    }
}

impl Body {
    /// A body before its first byte.
    pub(in crate::session) fn begin(
        request: PublishRequest,
        framing: Framing,
        pending_responses: u32,
        ctx: &SessionContext<'_>,
    ) -> Body {
        // The announced length is not reserved: a head that announces a large body is cheap to send.
        Body {
            request,
            framing,
            received: Vec::new(),
            deadline: ctx.now.after(ctx.limits.body_timeout_ms),
            pending_responses,
        }
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    /// Takes received bytes. Returns how many bytes of `input` belong to the body, once it is complete.
    fn take(&mut self, input: &[u8], limits: &Limits) -> Result<Option<usize>, HttpError> {
        match &mut self.framing {
            Framing::Length(length) => {
                let missing = *length - self.received.len();
                let own = input.get(..missing);
                buffer::append(&mut self.received, own.unwrap_or(input), *length);
                Ok(own.map(<[u8]>::len))
            }
            Framing::Chunked(decoder) => {
                decoder.decode(input, &mut self.received, limits).map_err(|why| match why {
                    BadChunk::Malformed => {
                        HttpError::bad("the body is not valid chunked coding (RFC 9112 7.1)")
                    }
                    BadChunk::TooBig => HttpError::body_too_large(limits),
                    BadChunk::TooMuchExtra => HttpError::bad(
                        "chunk extensions and trailers are over the maximum size of a request head",
                    ),
                })
            }
        }
    }

    /// Takes the bytes that arrived with the head, and publishes if the body is complete.
    pub(in crate::session) fn serve(mut self, unread: &[u8], ctx: &mut SessionContext<'_>) -> Outcome {
        match self.take(unread, ctx.limits) {
            Ok(None) => Outcome::Become(State::Body(Box::new(self))),
            Ok(Some(consumed)) => self.complete(consumed, &unread[consumed..], ctx),
            Err(error) => reject(&error, self.last_options(), &[], self.pending_responses, ctx),
        }
    }

    /// The body is complete. `consumed` bytes of the input belong to it.
    fn complete(&mut self, consumed: usize, unread: &[u8], ctx: &mut SessionContext<'_>) -> Outcome {
        let request = PublishRequest {
            channel: self.request.channel.clone(),
            kind: self.request.kind,
            options: std::mem::take(&mut self.request.options),
            key: self.request.key.take(),
            client: self.request.client,
            rights: self.request.rights.take(),
        };
        let payload = Bytes::from(std::mem::take(&mut self.received));
        match submit_publish(request, payload, unread, self.pending_responses, ctx) {
            Outcome::Next { .. } => Outcome::Next { consumed },
            other => other,
        }
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.deadline
    }

    pub(in crate::session) fn receive(
        &mut self,
        input: &[u8],
        ctx: &mut SessionContext<'_>,
    ) -> (usize, Option<State>) {
        let outcome = match self.take(input, ctx.limits) {
            Ok(None) => return (input.len(), None),
            Ok(Some(consumed)) => self.complete(consumed, &input[consumed..], ctx),
            Err(error) => reject(&error, self.last_options(), &[], self.pending_responses, ctx),
        };
        match outcome {
            Outcome::Next { consumed } => {
                let mut head = Head::next(Vec::new(), ctx.limits, ctx.now);
                head.pending_responses = self.pending_responses + 1;
                (consumed, Some(State::Head(Box::new(head))))
            }
            Outcome::Become(state) | Outcome::Upgraded(state) => (input.len(), Some(state)),
        }
    }

    /// The peer sends no more, and this request will never be; the next state.
    pub(in crate::session) fn end_of_file(&self) -> State {
        half_close(self.pending_responses)
    }

    pub(in crate::session) fn responded(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// Options of the error response when the connection is closed: readable by the page that sent the request.
    pub(in crate::session) fn last_options(&self) -> ResponseOptions {
        ResponseOptions { after: ConnectionHeader::Close, ..self.request.options.clone() }
    }

    /// The client has read the responses before this request, so its time begins now.
    pub(in crate::session) fn restart_deadline(&mut self, limits: &Limits, now: LoopTime) {
        self.deadline = now.after(limits.body_timeout_ms);
    }
}

/// The state after the peer's EOF: pending responses are still sent.
fn half_close(pending_responses: u32) -> State {
    if pending_responses == 0 {
        return State::dead(Reason::EndOfFile);
    }
    let then = AfterResponses::HalfClosed(Reason::Served);
    State::Responding(Box::new(Responding { unread: Vec::new(), pending_responses, then, query: None }))
}

impl Responding {
    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.unread.capacity()
    }

    /// Returns true if bytes arrived after the request.
    pub(in crate::session) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Returns true if the response to its query is next.
    pub(in crate::session) fn has_query(&self) -> bool {
        self.pending_responses == 1 && self.query.is_some()
    }

    /// Returns true if the head of the response to its query is sent.
    pub(in crate::session) fn has_begun(&self) -> bool {
        self.query.as_ref().is_some_and(|query| query.progress.has_begun())
    }

    /// Closes the connection after the last response.
    pub(in crate::session) fn close_after(&mut self, reason: Reason) {
        self.unread = Vec::new();
        self.then = match self.then {
            AfterResponses::HalfClosed(_) => AfterResponses::HalfClosed(reason),
            AfterResponses::Next | AfterResponses::Close(_) => AfterResponses::Close(reason),
        };
    }

    /// Keeps input that arrived after the request; it is parsed after the response.
    pub(in crate::session) fn receive(&mut self, input: &[u8]) {
        if self.then == AfterResponses::Next {
            self.unread.extend_from_slice(input);
        }
    }

    pub(in crate::session) fn end_of_file(&mut self) {
        self.then = match self.then {
            // The unread input ends in a request that will never be complete.
            AfterResponses::Next => AfterResponses::HalfClosed(Reason::Served),
            AfterResponses::Close(reason) | AfterResponses::HalfClosed(reason) => {
                AfterResponses::HalfClosed(reason)
            }
        };
    }

    /// A response was queued. Returns the next state if it was the last pending one.
    pub(in crate::session) fn responded(&mut self, limits: &Limits, now: LoopTime) -> Option<State> {
        self.pending_responses = self.pending_responses.saturating_sub(1);
        if self.pending_responses > 0 {
            return None;
        }
        Some(match self.then {
            AfterResponses::Next => {
                State::Head(Box::new(Head::next(std::mem::take(&mut self.unread), limits, now)))
            }
            AfterResponses::Close(reason) => Closing::begin(reason, CloseStep::Flushing, limits, now),
            AfterResponses::HalfClosed(reason) => Closing::begin(reason, CloseStep::HalfClosed, limits, now),
        })
    }
}

/// Waits for the pending responses before `unread` is parsed.
pub(in crate::session) fn wait(unread: Vec<u8>, pending_responses: u32) -> Outcome {
    Outcome::Become(State::Responding(Box::new(Responding {
        unread,
        pending_responses,
        then: AfterResponses::Next,
        query: None,
    })))
}

/// Waits for the response that was just requested by an intent.
pub(in crate::session) fn await_response(
    after: ConnectionHeader,
    reason: Reason,
    unread: &[u8],
    pending_responses: u32,
) -> Outcome {
    wait_for(None, after, reason, unread, pending_responses)
}

fn wait_for(
    query: Option<Box<PendingQuery>>,
    after: ConnectionHeader,
    reason: Reason,
    unread: &[u8],
    pending_responses: u32,
) -> Outcome {
    let (unread, then) = match after {
        ConnectionHeader::Close => (Vec::new(), AfterResponses::Close(reason)),
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader => {
            (unread.to_vec(), AfterResponses::Next)
        }
    };
    Outcome::Become(State::Responding(Box::new(Responding {
        unread,
        pending_responses: pending_responses + 1,
        then,
        query,
    })))
}

/// Sends an error response and closes the connection: the beginning of the next request cannot be determined, or is not
/// worth reading up to.
pub(in crate::session) fn reject_and_close(
    error: &HttpError,
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    reject(error, ResponseOptions::last(ctx.authenticator.http_date()), &[], pending_responses, ctx)
}

/// Sends an error response.
pub(in crate::session) fn reject(
    error: &HttpError,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.metrics.reject(error.code());
    ctx.intents.push(Intent::Respond(Bytes::from(error.respond(&options))));
    await_response(options.after, Reason::Refused { status: error.status() }, unread, pending_responses)
}

pub(in crate::session) fn query_server(
    query: Query,
    options: ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let after = options.after;
    ctx.intents.push(Intent::Query);
    let query = PendingQuery { query, options, progress: QueryProgress::Pending };
    wait_for(Some(Box::new(query)), after, Reason::Served, unread, pending_responses)
}

pub(in crate::session) fn respond(
    response: Vec<u8>,
    options: &ResponseOptions,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.intents.push(Intent::Respond(Bytes::from(response)));
    await_response(options.after, Reason::Served, unread, pending_responses)
}

/// Publishes a complete body.
pub(in crate::session) fn submit_publish(
    request: PublishRequest,
    payload: Bytes,
    unread: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let PublishRequest { channel, kind, options, key, client, rights } = request;
    let error = match kind {
        Kind::Binary => None,
        Kind::Text => std::str::from_utf8(&payload).is_err().then(|| {
            let message = "the body is not UTF-8; use application/octet-stream for other bytes";
            HttpError::new(400, "not_utf8", message)
        }),
        Kind::Data => check_json(&payload).err().map(|why| HttpError::new(400, why.code, why.message)),
    };
    if let Some(error) = error {
        return reject(&error, options, unread, pending_responses, ctx);
    }
    let (after, consumed) = (options.after, payload.len());
    let receipt = Receipt::Response { options, key, client };
    ctx.intents.push(Intent::Publish { channel: Some(channel), kind, payload, receipt, rights });
    match after {
        ConnectionHeader::Close => await_response(after, Reason::Served, unread, pending_responses),
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader
            if ctx.cost >= ctx.cost_max && !unread.is_empty() =>
        {
            await_response(after, Reason::Served, unread, pending_responses)
        }
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader => Outcome::Next { consumed },
    }
}
