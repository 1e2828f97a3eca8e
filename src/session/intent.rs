//! Intents: the operations that a session requests from the server.
//!
//! A session knows only its own connection. It queues intents, and the deliver phase applies those of all sessions in
//! the order in which they were queued. Bytes for the session's own client are intents too where their order relative
//! to the server's responses matters.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::http::request::Request;
use super::http::response::ResponseOptions;
use crate::access::authenticator::Rights;
use crate::access::grant::Grant;
use crate::access::ticket::TicketHash;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, Since};
use crate::wire::Kind;

/// An operation requested by one session.
#[derive(Debug)]
pub enum Intent {
    /// Send `hello` of `oyez.v1`, and subscribe to the channel that the request named.
    SendHello {
        /// The channel, if the request named one.
        subscription: Option<(ChannelName, SubscribeOptions)>,
        /// The rights of the client.
        rights: Rights,
    },
    /// Subscribe to a channel.
    Subscribe {
        /// The channel.
        channel: ChannelName,
        /// Message format, cursor and echo.
        options: SubscribeOptions,
        /// The rights of the client.
        rights: Rights,
        /// The client's `ref`, returned with the response.
        reference: Option<Box<RawValue>>,
    },
    /// Unsubscribe from a channel.
    Unsubscribe {
        /// The channel.
        channel: ChannelName,
        /// The client's `ref`, returned with the response.
        reference: Option<Box<RawValue>>,
    },
    /// Publish a message to all subscribers of a channel.
    Publish {
        /// The channel; `None`: the channel that a raw WebSocket subscribes to.
        channel: Option<ChannelName>,
        /// The type of the payload.
        kind: Kind,
        /// Usually a slice of the read buffer: it lives for this turn, and is copied once, into the frame.
        payload: Bytes,
        /// How the message is acknowledged.
        receipt: Receipt,
        /// The rights of the client.
        rights: Rights,
    },
    /// The client has new rights: end the subscriptions that they do not include.
    Reauthorize {
        /// The rights of the client.
        rights: Rights,
    },
    /// Close all connections of a user.
    DisconnectUser {
        /// The user (`sub` of the token).
        sub: Box<str>,
        /// Framing of the response.
        options: ResponseOptions,
    },
    /// Issue a ticket.
    IssueTicket {
        /// The rights of the ticket.
        grant: Rc<Grant>,
        /// The client for which a trusted proxy sent the request.
        client: Option<IpAddr>,
        /// Framing of the response.
        options: ResponseOptions,
    },
    /// Redeem the ticket of a request in the shared log. The request is processed again after that.
    RedeemTicket {
        /// The hash of the ticket.
        hash: TicketHash,
        /// The channel, if the request is for an event stream.
        stream: Option<Box<str>>,
    },
    /// Respond to the session's query.
    Query,
    /// Send a complete response to a request.
    Respond(Bytes),
    /// Send bytes, after everything queued before.
    Send(Bytes),
    /// Write a warning to the log.
    Warn(Box<str>),
    /// Write a request to the log, and keep it for the line about the end of the connection.
    LogRequest(Box<RequestLog>),
    /// End all subscriptions and queue the close frame, which nothing may follow (RFC 6455 5.5.1). Messages published
    /// earlier in the turn are delivered first.
    BeginClose {
        /// The close frame, or the end of an event stream; `None`: none is sent.
        close_frame: Option<Bytes>,
    },
}

/// The logged fields of a request: neither its query nor any field that may contain a credential.
#[derive(Debug)]
pub struct RequestLog {
    /// The method.
    pub method: Box<str>,
    /// The path, without the query.
    pub path: Box<str>,
    /// The value of `Origin`.
    pub origin: Option<Box<str>>,
    /// The value of `User-Agent`.
    pub agent: Option<Box<str>>,
}

impl RequestLog {
    /// Maximum bytes of each of its texts; the user agents of browsers have about 120.
    const TEXT_BYTES_MAX: usize = 256;

    pub(in crate::session) fn new(request: &Request<'_>) -> RequestLog {
        let text = |bytes: &[u8]| {
            let bytes = &bytes[..bytes.len().min(RequestLog::TEXT_BYTES_MAX)];
            Box::from(&*String::from_utf8_lossy(bytes))
        };
        let field = |name| request.fields.all(name).next().map(text);
        RequestLog {
            method: text(request.method.as_bytes()),
            path: text(request.path.as_bytes()),
            origin: field("origin"),
            agent: field("user-agent"),
        }
    }
}

/// The acknowledgement that the publisher of a message expects.
#[derive(Debug)]
pub enum Receipt {
    /// No acknowledgement: a raw WebSocket.
    None,
    /// `ack` of `oyez.v1`.
    Ack {
        /// The client's `ref`, returned with the acknowledgement.
        reference: Option<Box<RawValue>>,
        /// The idempotency key.
        key: Option<Box<str>>,
    },
    /// An HTTP response.
    Response {
        /// Framing of the response.
        options: ResponseOptions,
        /// The idempotency key (`Idempotency-Key`).
        key: Option<Box<str>>,
        /// The client for which a trusted proxy sent the request, on a connection that may carry requests of several.
        client: Option<IpAddr>,
    },
}

impl Receipt {
    /// The client for which a trusted proxy sent the message.
    pub fn client(&self) -> Option<IpAddr> {
        match self {
            Receipt::None | Receipt::Ack { .. } => None,
            Receipt::Response { client, .. } => *client,
        }
    }

    /// Takes the message's idempotency key.
    pub fn take_key(&mut self) -> Option<Box<str>> {
        match self {
            Receipt::None => None,
            Receipt::Ack { key, .. } | Receipt::Response { key, .. } => key.take(),
        }
    }

    /// The message's idempotency key.
    pub fn key(&self) -> Option<&str> {
        match self {
            Receipt::None => None,
            Receipt::Ack { key, .. } | Receipt::Response { key, .. } => key.as_deref(),
        }
    }
}

/// A resource that an HTTP client requests, and that only the server can respond with.
#[derive(Debug)]
pub enum Query {
    /// Readiness: whether the server accepts new clients.
    Ready,
    /// The metrics.
    Metrics,
    /// The nodes that share the log.
    Nodes,
    /// A page of the list of channels.
    Channels {
        /// Prefix of the names.
        prefix: Box<str>,
        /// List the names after this one.
        after: Option<Box<str>>,
        /// Maximum number of channels.
        limit: usize,
        /// The list has only channels that these rights allow to subscribe to.
        rights: Rights,
    },
    /// One channel.
    Channel {
        /// The channel.
        channel: ChannelName,
    },
    /// A page of a channel's history.
    History {
        /// The channel.
        channel: ChannelName,
        /// The position from which messages are returned.
        since: Since,
        /// Maximum number of messages.
        limit: usize,
    },
}
