//! What a session asks of the server.
//!
//! A session knows its own conversation and nothing else. It does not reach out; it says what it wants,
//! and the deliver phase does it, for all sessions in the order in which they spoke.

use bytes::Bytes;

use crate::ids::ChannelName;
use crate::wire::Kind;

/// One wish of one session.
#[derive(Debug)]
pub enum Intent {
    /// Become a member.
    Subscribe {
        /// Of which channel.
        channel: ChannelName,
        /// Does it want to hear its own messages?
        echo: bool,
    },
    /// Send a message to all members of the session's channel.
    Publish {
        /// Text or binary.
        kind: Kind,
        /// A slice of the read buffer: it lives for this turn, and is copied once, into the frame.
        payload: Bytes,
    },
    /// Be a member no more: a close has begun, and nothing may follow its frame (RFC 6455 5.5.1). What
    /// the session published before, and what others did, is still handed out to it first.
    Leave {
        /// The close frame, if one goes out.
        farewell: Option<Bytes>,
    },
}
