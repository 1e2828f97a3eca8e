//! Client requests that wait until the shared log returns an item of this server.

use super::pending_publish::PendingPublish;
use crate::access::ticket::TicketHash;
use crate::ids::SlotId;
use crate::session::http::response::ResponseOptions;

/// The client request that an item of this server belongs to.
#[derive(Debug)]
pub enum PendingItem {
    /// A message.
    Publish(PendingPublish),
    /// A request to disconnect a user, by its reference.
    Disconnect(u32),
    /// A ticket that is issued.
    Ticket(Box<PendingTicket>),
    /// A ticket that is redeemed.
    Redemption(Box<PendingRedemption>),
}

/// A ticket whose client receives it when it is in the log.
#[derive(Debug)]
pub struct PendingTicket {
    pub(super) slot: SlotId,
    pub(super) options: ResponseOptions,
    /// In its written form, which is not in the log.
    pub(super) text: String,
}

/// A request with a ticket, which is processed again when the log has redeemed that.
#[derive(Debug)]
pub struct PendingRedemption {
    pub(super) slot: SlotId,
    pub(super) hash: TicketHash,
}
