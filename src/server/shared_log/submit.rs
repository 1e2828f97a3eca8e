//! Requests of this node's clients that are items of the log: how they are submitted, and how they fail.

use super::pending_item::PendingItem;
use crate::backplane::entry::Item;
use crate::backplane::event::PublishFailure;
use crate::backplane::link::SubmitError;
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Adds an item of a client to this turn's entry of the shared log.
    pub(in crate::server) fn submit_item(
        &mut self,
        item: &Item<'_>,
        pending: PendingItem,
        now: LoopTime,
    ) -> Result<(), Rejection> {
        let link = self.shared_log.as_mut().and_then(|log| log.link.as_mut());
        let Some(link) = link else { return Err(SubmitError::Backlog.into()) };
        link.submit(item, Some(pending), now).map_err(|(error, _)| error.into())
    }

    /// Responds to the clients whose items failed.
    pub(super) fn fail_items(&mut self, pending: Vec<PendingItem>, why: PublishFailure, now: LoopTime) {
        let rejection = match why {
            PublishFailure::BackplaneDown => Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS },
            PublishFailure::Unconfirmed => Rejection::Unconfirmed,
            PublishFailure::BackplaneFull => Rejection::BackplaneFull,
        };
        for pending in pending {
            match pending {
                PendingItem::Publish(pending) => self.fail_publish(&pending, rejection, now),
                PendingItem::Disconnect(reference) => self.fail_disconnect(reference, rejection, now),
                PendingItem::Ticket(pending) => {
                    self.reject_request(pending.slot, &pending.options, rejection, now);
                }
                PendingItem::Redemption(pending) => self.fail_redemption(&pending, rejection, now),
            }
        }
    }
}

impl From<SubmitError> for Rejection {
    fn from(error: SubmitError) -> Rejection {
        match error {
            SubmitError::Backlog => Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS },
            SubmitError::Full => Rejection::BackplaneFull,
        }
    }
}
