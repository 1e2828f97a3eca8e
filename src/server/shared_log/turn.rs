//! The end of a turn for a shared log: the entry of this node is complete. Deadlines of requests that wait for the log.

use std::ops::Bound;

use super::SharedLog;
use super::shared_settings::SharedSettings;
use super::subscriber_counts::CountsPart;
use super::unreplicated_publishes::UnreplicatedPublishes;
use crate::backplane::entry::{ChannelCounts, Item};
use crate::hub::channel::Channel;
use crate::net::transport::Transport;
use crate::server::engine::Engine;
use crate::time::LoopTime;

impl<T: Transport> Engine<T> {
    /// Ends the turn for the log: its entry is complete.
    pub fn finish_log_turn(&mut self, now: LoopTime) {
        let settings = SharedSettings::of(&self.shared.limits.idempotency);
        self.send_notices(now);
        self.send_counts(now);
        let needs_block = self.clients.needs_block(self.slots.next_id());
        let (connections, subscribers) = (self.slots.len() as u32, self.hub.subscriptions() as u32);
        let Some(SharedLog { link: Some(link), settings: declared, clock, .. }) = &mut self.shared_log else {
            return;
        };
        link.set_counts(connections, subscribers);
        if needs_block {
            link.request_client_block();
        }
        if link.was_up() && declared.begin_declaring(settings, link.oldest_kept(), clock.last_entry_at()) {
            link.submit_notice(&settings.item(), now);
        }
        link.finish_turn();
    }

    /// Sends the notices of this turn to the other nodes.
    fn send_notices(&mut self, now: LoopTime) {
        let Some(SharedLog { link: Some(link), notices, .. }) = &mut self.shared_log else { return };
        for notice in notices.drain(..) {
            link.submit_notice(&notice.item(), now);
        }
    }

    /// Sends numbers of subscribers that have changed to the other nodes.
    fn send_counts(&mut self, now: LoopTime) {
        let Engine { shared_log: Some(log), hub, .. } = self else { return };
        let SharedLog { link: Some(link), counts, .. } = log else { return };
        if !link.is_up() || !counts.begin_part(now) {
            return;
        }
        let subscribers = |id| hub.channel(id).map_or(0, Channel::subscribers);
        let part = counts.next_part(
            |name| hub.find(name).map_or(0, subscribers),
            |after| {
                let from = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
                hub.channels_from("", from).map(move |(name, id)| (name, subscribers(id)))
            },
        );
        if let Some(CountsPart { is_request, range, rows }) = part {
            let range = range.as_ref().map(|(after, upto)| (&**after, &**upto));
            let counts = ChannelCounts::encoded(&rows);
            link.submit_notice(&Item::SubscriberCounts { is_request, range, counts }, now);
        }
    }

    /// Rejects the subscriptions and publishes whose deadline has expired, and responds to requests without the results
    /// of silent nodes.
    pub(in crate::server) fn expire_log(&mut self, now: LoopTime) {
        if self.shared_log.is_some() {
            self.release_waiting(now);
            self.expire_unreplicated_publishes(now);
            self.respond_to_disconnects(now);
            self.send_gathered();
        }
    }

    /// When a waiting subscription or publish is rejected, or a request to disconnect a user gets its response.
    pub(in crate::server) fn next_log_expiry(&self) -> Option<LoopTime> {
        let log = self.shared_log.as_ref()?;
        let unreplicated = log.unreplicated.as_ref().and_then(UnreplicatedPublishes::deadline);
        let deadlines = [log.waiting.deadline(), unreplicated, log.disconnects.deadline()];
        deadlines.into_iter().flatten().reduce(LoopTime::min)
    }

    /// The time by which idempotency keys expire.
    pub(in crate::server) fn log_time(&self, now: LoopTime) -> LoopTime {
        self.shared_log.as_ref().map_or(now, |log| log.clock.last_entry_at())
    }
}
