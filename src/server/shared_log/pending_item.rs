//! Client requests that wait until the shared log returns an item of this node.

use crate::access::ticket::TicketHash;
use crate::ids::SlotId;
use crate::server::pending_publish::PendingPublish;
use crate::session::http::response::ResponseOptions;

/// The client request that an item of this node belongs to.
#[derive(Debug)]
pub enum PendingItem {
    /// A message.
    Publish(PendingPublish),
    /// A request to disconnect a user, by its reference.
    Disconnect(u32),
    /// A request to issue a ticket.
    Ticket(Box<PendingTicket>),
    /// A request with a ticket, which the log is to redeem.
    Redemption(Box<PendingRedemption>),
}

/// A new ticket, which its client receives once the ticket is in the log.
#[derive(Debug)]
pub struct PendingTicket {
    pub(in crate::server) slot: SlotId,
    pub(in crate::server) options: ResponseOptions,
    /// The ticket as the client receives it; the log has only its hash.
    pub(in crate::server) text: String,
}

/// A request with a ticket, which is processed again once the log has redeemed the ticket.
#[derive(Debug)]
pub struct PendingRedemption {
    pub(in crate::server) slot: SlotId,
    pub(in crate::server) hash: TicketHash,
}
