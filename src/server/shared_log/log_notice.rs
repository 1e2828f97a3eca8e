//! Notices of this node to the others.

use crate::access::ticket::TicketHash;
use crate::backplane::entry::Item;
use crate::ids::RunId;

/// A notice of this node to the others.
#[derive(Clone, Debug)]
pub(in crate::server) enum LogNotice {
    /// Number of connections of a user that were closed for the request of another node.
    DisconnectResult { run: RunId, reference: u32, connections: u32 },
    /// An event stream has ended, and its ticket is valid again.
    StreamEnded { hash: TicketHash, channel: Box<str>, grant: String },
}

impl LogNotice {
    /// The notice as an item of the log.
    pub(super) fn item(&self) -> Item<'_> {
        match self {
            LogNotice::DisconnectResult { run, reference, connections } => {
                Item::DisconnectResult { run: *run, reference: *reference, connections: *connections }
            }
            LogNotice::StreamEnded { hash, channel, grant } => Item::StreamEnded { hash, channel, grant },
        }
    }
}
