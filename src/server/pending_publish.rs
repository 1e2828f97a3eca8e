//! The publisher of a message that is not acknowledged yet.

use crate::access::authenticator::Rights;
use crate::ids::{ChannelName, SlotId};
use crate::session::intent::Receipt;

/// The publisher of a message that is not acknowledged yet, and the form of the acknowledgement.
///
/// The id has a generation, so the acknowledgement of a message whose connection has closed meanwhile reaches no other.
#[derive(Debug)]
pub struct PendingPublish {
    pub(super) slot: SlotId,
    /// `None`: the channel that a raw WebSocket subscribes to.
    pub(super) channel: Option<ChannelName>,
    pub(super) receipt: Receipt,
    pub(super) rights: Rights,
}

impl PendingPublish {
    /// Returns true if the publisher is a WebSocket, whose close waits for its messages.
    pub(super) fn is_web_socket(&self) -> bool {
        !matches!(self.receipt, Receipt::Response { .. })
    }
}
