//! The state of a connection that has received a part of a request's body. Only publish requests have one.

use std::net::IpAddr;

use bytes::Bytes;

use super::chunked::{BadChunk, ChunkDecoder};
use super::exchange::{Exchange, Outcome};
use super::request::BodyLength;
use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use crate::access::authenticator::Rights;
use crate::config::Limits;
use crate::ids::ChannelName;
use crate::session::SessionContext;
use crate::session::buffer;
use crate::session::intent::{Intent, Receipt};
use crate::time::LoopTime;
use crate::wire::Kind;
use crate::wire::command::check_json;

/// A request whose body has not arrived completely.
#[derive(Debug)]
pub struct Body {
    request: PublishRequest,
    /// The framing of the response.
    options: ResponseOptions,
    framing: Framing,
    received: Vec<u8>,
    deadline: LoopTime,
    pending_responses: u32,
}

/// How the end of a body is found.
#[derive(Debug)]
pub(super) enum Framing {
    /// The body has this many bytes (Content-Length).
    Length(usize),
    /// The body ends with its last chunk (RFC 9112 7.1).
    Chunked(ChunkDecoder),
}

/// A publish request whose body is to be received.
#[derive(Debug)]
pub(super) struct PublishRequest {
    pub(super) channel: ChannelName,
    pub(super) kind: Kind,
    pub(super) key: Option<Box<str>>,
    pub(super) client: Option<IpAddr>,
    pub(super) rights: Rights,
}

impl Framing {
    /// The framing of a body that is to be published.
    pub(super) fn of(length: BodyLength, limits: &Limits) -> Result<Framing, HttpError> {
        match length {
            BodyLength::Absent => {
                let message = "send the message with a Content-Length (0 if it is empty) or in chunks";
                Err(HttpError::new(411, "length_required", message))
            }
            BodyLength::Chunked => Ok(Framing::Chunked(ChunkDecoder::new())),
            BodyLength::Bytes(length) => match usize::try_from(length) {
                Ok(length) if length <= limits.body_bytes_max => Ok(Framing::Length(length)),
                _ => Err(HttpError::body_too_large(limits)),
            },
        }
    }
}

impl PublishRequest {
    /// Publishes a complete body.
    pub(super) fn submit(
        self,
        payload: Bytes,
        exchange: &mut Exchange<'_, '_>,
    ) -> Result<Outcome, HttpError> {
        let PublishRequest { channel, kind, key, client, rights } = self;
        check_payload(kind, &payload)?;
        let receipt = Receipt::Response { options: exchange.options.clone(), key, client };
        let intent = Intent::Publish { channel: Some(channel), kind, payload, receipt, rights };
        exchange.ctx.intents.push(intent);
        Ok(exchange.pipeline())
    }
}

fn check_payload(kind: Kind, payload: &[u8]) -> Result<(), HttpError> {
    match kind {
        Kind::Binary => Ok(()),
        Kind::Text => std::str::from_utf8(payload).map(drop).map_err(|_| {
            let message = "the body is not UTF-8; use application/octet-stream for other bytes";
            HttpError::new(400, "not_utf8", message)
        }),
        Kind::Data => check_json(payload).map_err(|why| HttpError::new(400, why.code, why.message)),
    }
}

impl Body {
    /// A body before its first byte.
    pub(super) fn begin(request: PublishRequest, framing: Framing, exchange: &Exchange<'_, '_>) -> Body {
        // The announced length is not reserved: a head that announces a large body is cheap to send.
        Body {
            request,
            options: exchange.options.clone(),
            framing,
            received: Vec::new(),
            deadline: exchange.ctx.now.after(exchange.ctx.limits.body_timeout_ms),
            pending_responses: exchange.pending_responses,
        }
    }

    pub(in crate::session) fn held_bytes(&self) -> usize {
        self.received.capacity()
    }

    pub(in crate::session) fn deadline(&self) -> LoopTime {
        self.deadline
    }

    pub(in crate::session) fn pending_responses(&self) -> u32 {
        self.pending_responses
    }

    /// Handles received bytes, and publishes the body once it is complete.
    pub(super) fn receive(&mut self, input: &[u8], ctx: &mut SessionContext<'_>) -> Outcome {
        let consumed = match self.take(input, ctx.limits) {
            Ok(None) => return Outcome::Incomplete,
            Ok(Some(consumed)) => consumed,
            Err(error) => {
                return Exchange::with(self.last_options(), &[], self.pending_responses, ctx)
                    .finish(Err(error));
            }
        };
        let request = PublishRequest {
            channel: self.request.channel.clone(),
            kind: self.request.kind,
            key: self.request.key.take(),
            client: self.request.client,
            rights: self.request.rights.take(),
        };
        let payload = Bytes::from(std::mem::take(&mut self.received));
        let options = self.options.clone();
        let mut exchange = Exchange::with(options, &input[consumed..], self.pending_responses, ctx);
        let result = request.submit(payload, &mut exchange);
        exchange.finish(result)
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

    /// A response was queued.
    pub(in crate::session) fn responded(&mut self) {
        self.pending_responses = self.pending_responses.saturating_sub(1);
    }

    /// Options of the error response when the connection is closed: readable by the page that sent the request.
    pub(in crate::session) fn last_options(&self) -> ResponseOptions {
        ResponseOptions { after: ConnectionHeader::Close, ..self.options.clone() }
    }

    /// The client has read the responses before this request, so its time begins now.
    pub(in crate::session) fn restart_deadline(&mut self, limits: &Limits, now: LoopTime) {
        self.deadline = now.after(limits.body_timeout_ms);
    }
}
