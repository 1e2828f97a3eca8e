//! Subscriptions and queries whose cursor is ahead of this node: the client has received it on another node. They wait
//! until this node has read the shared log up to its present end.

use super::waiting_intents::{Barrier, ReleasedIntents};
use crate::backplane::link::Link;
use crate::close::Reason;
use crate::ids::{Since, SlotId};
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::session::http::query::PendingQuery;
use crate::session::intent::{Intent, Query};
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Returns true if an intent has to wait until this node has read the shared log up to its present end: its cursor
    /// is ahead, since the client received it on another node; or an earlier intent of the connection waits. The
    /// connection then waits, and the intent is to be held.
    #[cold]
    pub(in crate::server) fn must_wait_for_log(
        &mut self,
        id: SlotId,
        intent: &Intent,
        now: LoopTime,
    ) -> bool {
        let Some(log) = &mut self.shared_log else { return false };
        if log.waiting.contains(id) {
            return true;
        }
        if log.waiting.take_pass(id) {
            return false;
        }
        let since = match intent {
            Intent::Subscribe { options, .. } => options.since,
            Intent::SendHello { subscription: Some((_, options)), .. } => options.since,
            Intent::Query => match self.slots.get(id).and_then(|slot| slot.state.query()) {
                Some(PendingQuery { query: Query::History { since, .. }, .. }) => *since,
                _ => return false,
            },
            _ => return false,
        };
        let Since::After(cursor) = since else { return false };
        let Some(link) = log.link.as_mut().filter(|_| self.hub.is_ahead(cursor)) else { return false };
        let (number, deadline) = (link.barrier(now), now.after(log.publish_timeout_ms));
        log.waiting.begin(Barrier { slot: id, number, deadline });
        self.slots.mark_waiting_for_log(id, true);
        true
    }

    /// Holds an intent of a connection that waits.
    #[cold]
    pub(in crate::server) fn hold_for_log(&mut self, id: SlotId, intent: Intent) {
        if let Some(log) = &mut self.shared_log {
            log.waiting.push(id, intent);
        }
    }

    /// Applies the intents that have waited for entries which were applied.
    pub(super) fn release_waiting(&mut self, now: LoopTime) {
        while let Some(log) = &mut self.shared_log
            && let applied_number = log.link().map(Link::applied_number)
            && let Some(released) = log.waiting.release_next(applied_number, now)
        {
            let ReleasedIntents { slot: id, intents, is_applied } = released;
            self.slots.mark_waiting_for_log(id, false);
            let mut intents = intents.into_iter();
            match intents.next() {
                // If the cursor is still ahead, it belongs to a log that this node does not read.
                Some(intent) if is_applied => self.apply_without_waiting(id, intent, now),
                // The link is down, so the cursor cannot be checked.
                Some(intent) => self.close_waiting(id, intent, now),
                None => {}
            }
            for intent in intents {
                self.apply(id, intent, now);
            }
            self.slots.resume_reading(id);
        }
    }

    /// Applies an intent that has waited, whatever its cursor.
    fn apply_without_waiting(&mut self, id: SlotId, intent: Intent, now: LoopTime) {
        if let Some(log) = &mut self.shared_log {
            log.waiting.pass_next(id);
        }
        self.apply(id, intent, now);
    }

    /// Closes a connection whose cursor cannot be checked: the client connects again, and may reach a node that can
    /// check it.
    fn close_waiting(&mut self, id: SlotId, intent: Intent, now: LoopTime) {
        match intent {
            // No hello is sent: its id would be less than the client's cursor.
            Intent::Subscribe { .. } | Intent::SendHello { subscription: Some(_), .. } => {
                self.close_with(id, Reason::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS }, now);
            }
            Intent::Query => {
                let query = self.slots.get_mut(id).and_then(|slot| slot.state.take_query());
                let rejection = Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS };
                if let Some(query) = query {
                    self.reject_request(id, &query.options, rejection, now);
                }
            }
            intent => self.apply(id, intent, now),
        }
    }

    /// Returns true if messages may be lost that other nodes have not reported yet.
    pub(in crate::server) fn has_unreported_loss(&self) -> bool {
        let link = self.shared_log.as_ref().and_then(|log| log.link());
        link.is_some_and(|link| link.has_unreported_loss())
    }
}
