//! Disconnecting a user: on this node, or on all nodes that share its log.
//!
//! The request is an item of the log. Each node that reads it closes the user's connections, revokes its unused
//! tickets, and appends the number. The node that received the HTTP request adds these numbers up until all nodes that
//! were alive have responded, for at most two seconds: a node that is silent longer closes the connections when it
//! reads the request.

use std::collections::BTreeSet;

use super::engine::Engine;
use super::shared_log::applied_entry::AppliedEntry;
use super::shared_log::disconnect_requests::DisconnectRequest;
use super::shared_log::log_notice::LogNotice;
use super::shared_log::pending_item::PendingItem;
use crate::backplane::entry::Item;
use crate::close::Reason;
use crate::ids::{RunId, SlotId};
use crate::net::transport::Transport;
use crate::session::http::response::ResponseOptions;
use crate::session::rejection::Rejection;
use crate::time::LoopTime;

/// Maximum wait for the results of other nodes, in ms: as long as the time between two heartbeats, within which a node
/// that is alive has appended something.
const RESULTS_TIMEOUT_MS: u32 = 2_000;

impl<T: Transport> Engine<T> {
    /// Closes all connections of a user, and revokes its unused tickets. Its tokens remain valid.
    pub(super) fn disconnect_user(
        &mut self,
        id: SlotId,
        sub: &str,
        options: &ResponseOptions,
        now: LoopTime,
    ) {
        // Also with a shared log, which may be down.
        let closed = self.close_connections_of(sub, now);
        let Some(log) = &mut self.shared_log else {
            let body = format!("{{\"closed\":{closed}}}\n");
            self.respond_with_json(id, options, &body, now);
            return;
        };
        let reference = log.disconnects.take_reference();
        let item = Item::Disconnect { reference, sub };
        let live = log.link().into_iter().flat_map(|link| link.live_runs());
        let awaited: BTreeSet<RunId> = live.filter(|run| *run != self.run).collect();
        if let Err(rejection) = self.submit_item(&item, PendingItem::Disconnect(reference), now) {
            self.reject_request(id, options, rejection, now);
            return;
        }
        if let Some(log) = &mut self.shared_log {
            log.disconnects.add(DisconnectRequest {
                reference,
                slot: id,
                options: options.clone(),
                closed: closed as u64,
                nodes: awaited.len() + 1,
                awaited,
                deadline: None,
            });
        }
    }

    fn close_connections_of(&mut self, sub: &str, now: LoopTime) -> usize {
        self.shared.authenticator.tickets.revoke(sub);
        let of_user = self.slots.iter().filter(|(_, slot)| slot.state.sub() == Some(sub));
        let connections: Vec<SlotId> = of_user.map(|(id, _)| id).collect();
        for &closed in &connections {
            self.close(closed, Reason::Forbidden, now);
        }
        connections.len()
    }

    /// Applies the request of a node.
    pub(super) fn apply_disconnect(&mut self, entry: AppliedEntry, reference: u32, sub: &str, now: LoopTime) {
        let closed = self.close_connections_of(sub, now);
        let Some(log) = &mut self.shared_log else { return };
        let AppliedEntry { run, time_ms, .. } = entry;
        if run == self.run {
            if let Some(request) = log.disconnects.get_mut(reference) {
                request.closed += closed as u64;
                request.deadline = Some(now.after(RESULTS_TIMEOUT_MS));
            }
            self.respond_to_disconnects(now);
        } else if log.age_ms(time_ms, now) <= RESULTS_TIMEOUT_MS {
            let connections = u32::try_from(closed).unwrap_or(u32::MAX);
            log.add_notice(LogNotice::DisconnectResult { run, reference, connections });
        }
    }

    /// Applies the result of a node for a request of this one.
    pub(super) fn apply_disconnect_result(
        &mut self,
        from: RunId,
        reference: u32,
        connections: u32,
        now: LoopTime,
    ) {
        let request = self.shared_log.as_mut().and_then(|log| log.disconnects.get_mut(reference));
        if let Some(request) = request.filter(|request| request.deadline.is_some()) {
            request.closed += u64::from(connections);
            request.awaited.remove(&from);
        }
        self.respond_to_disconnects(now);
    }

    /// Rejects a request that the log does not return.
    pub(super) fn fail_disconnect(&mut self, reference: u32, rejection: Rejection, now: LoopTime) {
        let Some(log) = &mut self.shared_log else { return };
        let Some(request) = log.disconnects.remove(reference) else { return };
        self.reject_request(request.slot, &request.options, rejection, now);
    }

    /// Responds to the requests whose results are complete, or whose deadline has expired.
    pub(super) fn respond_to_disconnects(&mut self, now: LoopTime) {
        while let Some(log) = &mut self.shared_log
            && let Some(request) = log.disconnects.take_complete(now)
        {
            let DisconnectRequest { slot, options, closed, nodes, awaited, .. } = request;
            let silent = awaited.len();
            let body = format!("{{\"closed\":{closed},\"nodes\":{nodes},\"silent\":{silent}}}\n");
            self.respond_with_json(slot, &options, &body, now);
        }
    }
}
