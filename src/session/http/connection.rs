//! Plain HTTP/1.1: requests in, intents and answers out, in order, on a connection that is kept.
//!
//! Publishing is what programs do many times a second, so its requests may follow each other without
//! waiting (pipelining), up to the connection's share of the turn: each answer is short and is said in the order of the
//! intents. Every other request is waited for: its answer may be large, and the next one is not looked at until the client has
//! taken it. **A limit on everything**: what a connection can make the server hold is one answer and one
//! read.

use std::net::IpAddr;

use bytes::Bytes;

use super::chunked::{BadChunk, ChunkDecoder};
use super::dispatch::{refuse_connection, serve};
use super::query::{Progress, Query};
use super::request::{self, HeadEnd};
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use crate::access::authenticator::Rights;
use crate::close::Reason;
use crate::config::Limits;
use crate::ids::ChannelName;
use crate::session::buffer;
use crate::session::closing::{CloseStep, Closing};
use crate::session::intent::{Intent, Question, Receipt};
use crate::session::{SessionContext, State};
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::command::check_json;

/// Between requests, or in a request's head.
#[derive(Debug)]
pub struct Head {
    received: Vec<u8>,
    stage: Stage,
    until: LoopTime,
    /// Answers that have not been said.
    pending_responses: u32,
    /// Why the connection is not served, if it is not: its first request gets that for a response.
    refused: Option<Reason>,
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has come on a new connection.
    Fresh,
    /// A part of a head is there, and its end was looked for.
    Partial,
    /// A request was answered, and nothing has come since.
    Idle,
    /// What came behind a request that had to be answered first has yet to be looked at.
    Rest,
}

/// In a request's body.
#[derive(Debug)]
pub struct Body {
    order: PublishRequest,
    framing: Framing,
    received: Vec<u8>,
    until: LoopTime,
    pending_responses: u32,
}

/// Where a body ends.
#[derive(Debug)]
pub(in crate::session) enum Framing {
    /// After this many bytes.
    Length(usize),
    /// After its last chunk.
    Chunked(ChunkDecoder),
}

/// What is to be done with a body.
#[derive(Debug)]
pub(in crate::session) struct PublishRequest {
    pub(in crate::session) channel: ChannelName,
    pub(in crate::session) kind: Kind,
    pub(in crate::session) manner: ResponseOptions,
    pub(in crate::session) key: Option<Box<str>>,
    pub(in crate::session) client: Option<IpAddr>,
    pub(in crate::session) rights: Rights,
}

/// A request has come whole, and its answer is waited for.
#[derive(Debug)]
pub struct Responding {
    /// What came behind it.
    rest: Vec<u8>,
    pending_responses: u32,
    then: AfterResponses,
    /// A query, if the request is one, until its response is complete. It is the last request: those before it were to
    /// publish.
    pub(in crate::session) query: Option<Box<Query>>,
}

/// What becomes of the connection when all is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterResponses {
    Next,
    Close(Reason),
    /// The peer has sent its end of file, and reads on.
    HalfClosed(Reason),
}

/// What a request comes to.
pub(in crate::session) enum Outcome {
    /// The next one begins behind so many bytes.
    Next { consumed: usize },
    /// All that came is taken.
    Become(State),
    /// What follows are frames.
    Upgraded(State),
}

impl Head {
    pub(in crate::session) fn fresh(limits: &Limits, now: LoopTime) -> Head {
        let until = now.after(limits.handshake_timeout_ms);
        Head { received: Vec::new(), stage: Stage::Fresh, until, pending_responses: 0, refused: None }
    }

    /// Not served. The form of its error response depends on the request.
    pub(in crate::session) fn refuse(&mut self, reason: Reason) {
        self.refused = Some(reason);
    }

    /// Why the connection is not served, if it is not.
    pub(in crate::session) fn refused(&self) -> Option<Reason> {
        self.refused
    }

    fn next(rest: Vec<u8>, limits: &Limits, now: LoopTime) -> Head {
        let stage = if rest.is_empty() { Stage::Idle } else { Stage::Rest };
        Head {
            received: rest,
            stage,
            until: now.after(limits.keep_alive_ms),
            pending_responses: 0,
            refused: None,
        }
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.until
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    /// Has nothing come that has yet to be answered?
    pub(in crate::session) fn is_silent(&self) -> bool {
        matches!(self.stage, Stage::Fresh | Stage::Idle)
    }

    /// Does it wait for another request, after one that was answered?
    pub(in crate::session) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Why the connection ends if nothing more comes.
    pub(in crate::session) fn late(&self) -> Reason {
        if self.is_idle() { Reason::Idle } else { Reason::HandshakeTimeout }
    }

    /// What came behind the last request and has not been looked at.
    pub(in crate::session) fn take_rest(&mut self) -> Vec<u8> {
        if self.stage != Stage::Rest {
            return Vec::new();
        }
        self.stage = Stage::Idle;
        std::mem::take(&mut self.received)
    }

    /// How much of `input` was taken, and the next state, if it is another.
    pub(in crate::session) fn receive(
        &mut self,
        input: &[u8],
        ctx: &mut SessionContext<'_>,
    ) -> (usize, Option<State>) {
        let limits = ctx.limits;
        let before = self.received.len();
        // A head nearly always comes in one piece; then it is judged where it lies.
        let bytes = if before == 0 {
            input
        } else {
            buffer::append(&mut self.received, input, limits.head_bytes_max);
            &self.received[..]
        };
        let end = match request::find_head_end(bytes, before) {
            HeadEnd::At(end) if end <= limits.head_bytes_max => Ok(end),
            HeadEnd::BareLf => Err(HttpError::bad("a line ends in LF without CR")),
            HeadEnd::Tls => Err(HttpError::bad("TLS is not spoken on this port: write http:// or ws://")),
            HeadEnd::Missing if bytes.len() < limits.head_bytes_max => {
                if before == 0 {
                    buffer::append(&mut self.received, input, limits.head_bytes_max);
                }
                if self.stage == Stage::Idle {
                    self.until = ctx.now.after(limits.handshake_timeout_ms);
                }
                self.stage = Stage::Partial;
                return (input.len(), None);
            }
            HeadEnd::At(_) | HeadEnd::Missing => Err(HttpError::head_too_large(limits)),
        };
        if let Some(reason) = self.refused {
            let head = end.map_or(&[][..], |end| &bytes[..end]);
            return (input.len(), Some(refuse_connection(head, reason, ctx)));
        }
        let (taken, outcome) = match end {
            Ok(end) => {
                (end - before, serve(&bytes[..end], &input[end - before..], self.pending_responses, ctx))
            }
            Err(refusal) => (input.len(), reject_and_close(&refusal, self.pending_responses, ctx)),
        };
        match outcome {
            Outcome::Next { consumed } => {
                self.received = Vec::new();
                self.stage = Stage::Idle;
                self.until = ctx.now.after(limits.keep_alive_ms);
                self.pending_responses += 1;
                (taken + consumed, None)
            }
            Outcome::Become(state) => (input.len(), Some(state)),
            Outcome::Upgraded(state) => (taken, Some(state)),
        }
    }

    /// The peer sends no more; the next state.
    pub(in crate::session) fn end_of_file(&self) -> State {
        match self.refused {
            Some(reason) => State::dead(reason),
            None => half_close(self.pending_responses),
        }
    }

    pub(in crate::session) fn answered(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// The client has taken its answers. It was not read before, and its time begins now.
    pub(in crate::session) fn taken(&mut self, limits: &Limits, now: LoopTime) {
        self.until = now.after(match self.stage {
            Stage::Idle | Stage::Rest => limits.keep_alive_ms,
            Stage::Fresh | Stage::Partial => limits.handshake_timeout_ms,
        });
    }
}

impl Body {
    /// A body of which nothing has arrived.
    pub(in crate::session) fn begin(
        order: PublishRequest,
        framing: Framing,
        pending_responses: u32,
        ctx: &SessionContext<'_>,
    ) -> Body {
        // Not all of it at once: a head that announces much is cheap to send.
        Body {
            order,
            framing,
            received: Vec::new(),
            until: ctx.now.after(ctx.limits.body_timeout_ms),
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
                    BadChunk::Malformed => HttpError::bad("the body is not in chunks as RFC 9112 has them"),
                    BadChunk::TooBig => HttpError::body_too_large(limits),
                    BadChunk::TooMuchExtra => {
                        HttpError::bad("chunk extensions and trailers are longer than a request head may be")
                    }
                })
            }
        }
    }

    /// Takes the bytes that arrived with the head, and publishes if the body is complete.
    pub(in crate::session) fn serve(mut self, rest: &[u8], ctx: &mut SessionContext<'_>) -> Outcome {
        match self.take(rest, ctx.limits) {
            Ok(None) => Outcome::Become(State::Body(Box::new(self))),
            Ok(Some(consumed)) => self.complete(consumed, &rest[consumed..], ctx),
            Err(refusal) => refuse(&refusal, self.last_manner(), &[], self.pending_responses, ctx),
        }
    }

    /// The body is complete. `consumed` bytes of the input belong to it.
    fn complete(&mut self, consumed: usize, rest: &[u8], ctx: &mut SessionContext<'_>) -> Outcome {
        let order = PublishRequest {
            channel: self.order.channel.clone(),
            kind: self.order.kind,
            manner: std::mem::take(&mut self.order.manner),
            key: self.order.key.take(),
            client: self.order.client,
            rights: self.order.rights.take(),
        };
        let payload = Bytes::from(std::mem::take(&mut self.received));
        match submit_publish(order, payload, rest, self.pending_responses, ctx) {
            Outcome::Next { .. } => Outcome::Next { consumed },
            other => other,
        }
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.until
    }

    pub(in crate::session) fn receive(
        &mut self,
        input: &[u8],
        ctx: &mut SessionContext<'_>,
    ) -> (usize, Option<State>) {
        let outcome = match self.take(input, ctx.limits) {
            Ok(None) => return (input.len(), None),
            Ok(Some(consumed)) => self.complete(consumed, &input[consumed..], ctx),
            Err(refusal) => refuse(&refusal, self.last_manner(), &[], self.pending_responses, ctx),
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

    pub(in crate::session) fn answered(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// How it is answered when its connection is closed: to the page that sent it, if one did.
    pub(in crate::session) fn last_manner(&self) -> ResponseOptions {
        ResponseOptions { after: ConnectionHeader::Close, ..self.order.manner.clone() }
    }

    /// The client has taken the answers before this request. Its time begins now.
    pub(in crate::session) fn taken(&mut self, limits: &Limits, now: LoopTime) {
        self.until = now.after(limits.body_timeout_ms);
    }
}

/// The peer's end of file has come; the state in which it gets what it is owed.
fn half_close(pending_responses: u32) -> State {
    if pending_responses == 0 {
        return State::dead(Reason::EndOfFile);
    }
    let then = AfterResponses::HalfClosed(Reason::Served);
    State::Responding(Box::new(Responding { rest: Vec::new(), pending_responses, then, query: None }))
}

impl Responding {
    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.rest.capacity()
    }

    /// Returns true if bytes arrived after the request.
    pub(in crate::session) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Returns true if the response to its query is next.
    pub(in crate::session) fn has_query(&self) -> bool {
        self.pending_responses == 1 && self.query.is_some()
    }

    /// Returns true if the response to its query has begun and is not complete.
    pub(in crate::session) fn has_begun(&self) -> bool {
        self.query.as_ref().is_some_and(|query| query.progress.has_begun())
    }

    /// The connection ends after the last response.
    pub(in crate::session) fn close_after(&mut self, reason: Reason) {
        self.rest = Vec::new();
        self.then = match self.then {
            AfterResponses::HalfClosed(_) => AfterResponses::HalfClosed(reason),
            AfterResponses::Next | AfterResponses::Close(_) => AfterResponses::Close(reason),
        };
    }

    /// More came behind the request. It is looked at when that is answered.
    pub(in crate::session) fn receive(&mut self, input: &[u8]) {
        if self.then == AfterResponses::Next {
            self.rest.extend_from_slice(input);
        }
    }

    pub(in crate::session) fn end_of_file(&mut self) {
        self.then = match self.then {
            // What came behind it has come whole, but for a request that will never be.
            AfterResponses::Next => AfterResponses::HalfClosed(Reason::Served),
            AfterResponses::Close(reason) | AfterResponses::HalfClosed(reason) => {
                AfterResponses::HalfClosed(reason)
            }
        };
    }

    /// One more answer has been queued; the next state, if that was the last that is owed.
    pub(in crate::session) fn answered(&mut self, limits: &Limits, now: LoopTime) -> Option<State> {
        self.pending_responses = self.pending_responses.saturating_sub(1);
        if self.pending_responses > 0 {
            return None;
        }
        Some(match self.then {
            AfterResponses::Next => {
                State::Head(Box::new(Head::next(std::mem::take(&mut self.rest), limits, now)))
            }
            AfterResponses::Close(reason) => Closing::begin(reason, CloseStep::Flushing, limits, now),
            AfterResponses::HalfClosed(reason) => Closing::begin(reason, CloseStep::HalfClosed, limits, now),
        })
    }
}

/// Waits for the answers that are owed, and looks at `rest` then.
pub(in crate::session) fn wait(rest: Vec<u8>, pending_responses: u32) -> Outcome {
    Outcome::Become(State::Responding(Box::new(Responding {
        rest,
        pending_responses,
        then: AfterResponses::Next,
        query: None,
    })))
}

/// Waits for an answer that an intent has just asked for.
pub(in crate::session) fn respond(
    after: ConnectionHeader,
    reason: Reason,
    rest: &[u8],
    pending_responses: u32,
) -> Outcome {
    wait_for(None, after, reason, rest, pending_responses)
}

fn wait_for(
    query: Option<Box<Query>>,
    after: ConnectionHeader,
    reason: Reason,
    rest: &[u8],
    pending_responses: u32,
) -> Outcome {
    let (rest, then) = match after {
        ConnectionHeader::Close => (Vec::new(), AfterResponses::Close(reason)),
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader => {
            (rest.to_vec(), AfterResponses::Next)
        }
    };
    Outcome::Become(State::Responding(Box::new(Responding {
        rest,
        pending_responses: pending_responses + 1,
        then,
        query,
    })))
}

/// Says no, and ends the connection: nobody can tell where the next request begins, or it is not worth
/// reading what comes before that.
pub(in crate::session) fn reject_and_close(
    refusal: &HttpError,
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    refuse(refusal, ResponseOptions::last(ctx.authenticator.http_date()), &[], pending_responses, ctx)
}

/// Says no.
pub(in crate::session) fn refuse(
    refusal: &HttpError,
    manner: ResponseOptions,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.metrics.reject(refusal.code());
    ctx.intents.push(Intent::Answer(Bytes::from(refusal.respond(&manner))));
    respond(manner.after, Reason::Refused { status: refusal.status() }, rest, pending_responses)
}

pub(in crate::session) fn ask(
    question: Question,
    manner: ResponseOptions,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let after = manner.after;
    ctx.intents.push(Intent::Query);
    let query = Query { question, manner, progress: Progress::Pending };
    wait_for(Some(Box::new(query)), after, Reason::Served, rest, pending_responses)
}

pub(in crate::session) fn answer(
    response: Vec<u8>,
    manner: &ResponseOptions,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    ctx.intents.push(Intent::Answer(Bytes::from(response)));
    respond(manner.after, Reason::Served, rest, pending_responses)
}

/// The body is complete: publish it.
pub(in crate::session) fn submit_publish(
    order: PublishRequest,
    payload: Bytes,
    rest: &[u8],
    pending_responses: u32,
    ctx: &mut SessionContext<'_>,
) -> Outcome {
    let PublishRequest { channel, kind, manner, key, client, rights } = order;
    let bad = match kind {
        Kind::Binary => None,
        Kind::Text => std::str::from_utf8(&payload).is_err().then(|| {
            let message = "the body is not UTF-8; application/octet-stream takes any bytes";
            HttpError::new(400, "not_utf8", message)
        }),
        Kind::Data => check_json(&payload).err().map(|why| HttpError::new(400, why.code, why.message)),
    };
    if let Some(refusal) = bad {
        return refuse(&refusal, manner, rest, pending_responses, ctx);
    }
    let (after, consumed) = (manner.after, payload.len());
    let receipt = Receipt::Response { manner, key, client };
    ctx.intents.push(Intent::Publish { channel: Some(channel), kind, payload, receipt, rights });
    match after {
        ConnectionHeader::Close => respond(after, Reason::Served, rest, pending_responses),
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader
            if ctx.cost >= ctx.cost_max && !rest.is_empty() =>
        {
            respond(after, Reason::Served, rest, pending_responses)
        }
        ConnectionHeader::KeepAlive | ConnectionHeader::KeepAliveHeader => Outcome::Next { consumed },
    }
}
