//! What a session asks of the server.
//!
//! A session knows its own conversation and nothing else. It does not reach out; it says what it wants,
//! and the deliver phase does it, for all sessions in the order in which they spoke. What a session says
//! to its own client goes the same way where it has to stand in one order with answers that are not its own.

use std::net::IpAddr;
use std::rc::Rc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::http::response::ResponseOptions;
use crate::access::authenticator::Rights;
use crate::access::grant::Grant;
use crate::hub::SubscribeOptions;
use crate::ids::{ChannelName, Since};
use crate::wire::Kind;

/// One wish of one session.
#[derive(Debug)]
pub enum Intent {
    /// Say hello in `oyez.v1`, and become a member of the channel that the request named.
    SendHello {
        /// The channel, if there was one.
        subscription: Option<(ChannelName, SubscribeOptions)>,
        /// With whose rights.
        rights: Rights,
    },
    /// Become a member.
    Subscribe {
        /// Of which channel.
        channel: ChannelName,
        /// How, and from where.
        options: SubscribeOptions,
        /// With whose rights.
        rights: Rights,
        /// What the client calls the request.
        reference: Option<Box<RawValue>>,
    },
    /// Be a member of that channel no more.
    Unsubscribe {
        /// Which.
        channel: ChannelName,
        /// What the client calls the request.
        reference: Option<Box<RawValue>>,
    },
    /// Send a message to all members of a channel.
    Publish {
        /// Which channel; `None` is the one that a raw WebSocket is a member of.
        channel: Option<ChannelName>,
        /// What the payload is.
        kind: Kind,
        /// As a rule a slice of the read buffer: it lives for this turn, and is copied once, into the frame.
        payload: Bytes,
        /// Who waits for the answer.
        receipt: Receipt,
        /// With whose rights.
        rights: Rights,
    },
    /// Its rights are others now: what it is a member of is looked at again.
    Reauthorize {
        /// With whose rights.
        rights: Rights,
    },
    /// Close all connections of a person.
    DisconnectUser {
        /// Whose.
        sub: Box<str>,
        /// How the request is answered.
        manner: ResponseOptions,
    },
    /// Respond to the query that the session waits for, which only the server can.
    Query,
    /// Answer a request with this.
    Answer(Bytes),
    /// Send this, behind all that was said before.
    Send(Bytes),
    /// Warn the operator, in a line of the log.
    Warn(Box<str>),
    /// Be a member no more: a close has begun, and nothing may follow its frame (RFC 6455 5.5.1). What
    /// the session published before, and what others did, is still handed out to it first.
    BeginClose {
        /// The close frame, if one goes out.
        farewell: Option<Bytes>,
    },
}

/// Who waits to hear that a message was published.
#[derive(Debug)]
pub enum Receipt {
    /// Nobody: a raw WebSocket.
    None,
    /// A client of `oyez.v1`.
    Ack {
        /// What it calls the request.
        reference: Option<Box<RawValue>>,
        /// Names the message across retries.
        key: Option<Box<str>>,
    },
    /// A client of HTTP.
    Response {
        /// How it is answered.
        manner: ResponseOptions,
        /// Names the message across retries (`Idempotency-Key`).
        key: Option<Box<str>>,
        /// For whom a trusted proxy sent it, on a connection that carries requests of others too.
        client: Option<IpAddr>,
    },
}

impl Receipt {
    /// The client for which a trusted proxy sent it.
    pub fn client(&self) -> Option<IpAddr> {
        match self {
            Receipt::None | Receipt::Ack { .. } => None,
            Receipt::Response { client, .. } => *client,
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

/// What only the server knows.
#[derive(Debug)]
pub enum Question {
    /// Does it take new clients?
    Ready,
    /// The counters.
    Metrics,
    /// The channels, a page of them.
    Channels {
        /// Whose names begin so.
        prefix: Box<str>,
        /// Behind this one.
        after: Option<Box<str>>,
        /// So many at most.
        limit: usize,
        /// Whoever asks sees what it may subscribe to.
        rights: Rights,
    },
    /// A ticket for these rights.
    Ticket {
        /// The rights.
        grant: Rc<Grant>,
        /// The client for which a trusted proxy sent the request.
        client: Option<IpAddr>,
    },
    /// One channel.
    Channel {
        /// Which.
        channel: ChannelName,
    },
    /// What is kept of a channel, a page of it.
    History {
        /// Which.
        channel: ChannelName,
        /// From where.
        since: Since,
        /// So many messages at most.
        limit: usize,
    },
}
