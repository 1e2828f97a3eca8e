//! Queries of HTTP clients that need the state of the server: metrics, readiness, channels and history.

use std::rc::Rc;

use super::channel_listing::{self, Channels};
use super::cost::Cost;
use super::engine::Engine;
use crate::hub::replay::Work;
use crate::ids::SlotId;
use crate::metrics::MemoryStep;
use crate::metrics::exposition;
use crate::metrics::levels::Levels;
use crate::net::transport::Transport;
use crate::session::LogMode;
use crate::session::http::query::{Listing, PendingQuery, QueryProgress};
use crate::session::intent::Query;
use crate::session::rejection::{BACKPLANE_RETRY_MS, Rejection};
use crate::time::LoopTime;
use crate::wire::chunk::{self, LAST_CHUNK};

/// Bytes of one slice of a listing or a history page: what the kernel takes of a connection before it has sent them
/// (`TCP_NOTSENT_LOWAT`), so that one write takes a slice, and the next one is made when most of it is sent.
const SLICE_BYTES: usize = 16 << 10;

/// Responses that are the same for all clients that request them in one turn.
#[derive(Debug, Default)]
pub(super) struct TurnCache {
    metrics: Option<String>,
}

impl<T: Transport> Engine<T> {
    /// Encodes one slice of the response to the query of a connection. Returns its cost.
    ///
    /// Messages that were published before the query are part of the response: a client that has read the response to
    /// its publish request finds the message in the history.
    pub(super) fn respond(&mut self, id: SlotId, cache: &mut TurnCache, now: LoopTime) -> Cost {
        let Some(mut pending) = self.slots.get_mut(id).and_then(|slot| slot.state.take_query()) else {
            return Cost::NONE;
        };
        let is_new = !pending.progress.has_begun();
        if is_new && let Some(rejection) = self.query_rejection(&pending.query) {
            self.reject_request(id, &pending.options, rejection, now);
            return Cost::SLICE;
        }
        if is_new && let Some((response, cost)) = self.respond_whole(&pending, cache, now) {
            self.send_response(id, response.into(), now);
            return cost;
        }
        let (body, work, is_over) = self.slice(&mut pending, now);
        let cost = Cost::of(work, body.len());
        let PendingQuery { options, .. } = &*pending;
        if is_new && is_over {
            let response = options.respond(200, "application/json", &[("Cache-Control", "no-store")], &body);
            self.send_response(id, response.into(), now);
            return cost;
        }
        let mut out = if is_new { options.begin_json() } else { Vec::new() };
        if is_new
            && !options.is_chunked
            && let Some(slot) = self.slots.get_mut(id)
        {
            slot.state.close_after_response();
        }
        if is_new && options.head_only {
            self.send_response(id, out.into(), now);
            return cost;
        }
        if options.is_chunked {
            let mut chunk = chunk::begin(body.len());
            chunk.extend_from_slice(&body);
            out.extend_from_slice(&chunk::finish(chunk));
            if is_over {
                out.extend_from_slice(LAST_CHUNK);
            }
        } else {
            out.extend_from_slice(&body);
        }
        if is_over {
            self.send_response(id, out.into(), now);
        } else {
            self.enqueue(id, Rc::new(out.into()));
            if let Some(slot) = self.slots.get_mut(id) {
                slot.state.put_back_query(pending);
            }
        }
        cost
    }

    /// Returns the error for a query that arrives now, if the server is to reject it. The only place where a query is
    /// rejected because of the state of the server.
    fn query_rejection(&self, query: &Query) -> Option<Rejection> {
        match query {
            // Health checks and metrics are served until the end.
            Query::Metrics => None,
            Query::Ready if self.shared.log_mode == LogMode::Starting => {
                Some(Rejection::BackplaneDown { retry_ms: BACKPLANE_RETRY_MS })
            }
            Query::Ready if self.is_drain_announced => {
                Some(Rejection::Draining { retry_ms: self.shared.limits.drain_delay_ms })
            }
            Query::Channels { .. } | Query::History { .. }
                if self.shared.memory.is_in_force(MemoryStep::RejectLarge) =>
            {
                Some(Rejection::LowMemory)
            }
            _ => self.drain_retry_ms().map(|retry_ms| Rejection::Draining { retry_ms }),
        }
    }

    /// The response to a short query, and its cost.
    fn respond_whole(
        &mut self,
        pending: &PendingQuery,
        cache: &mut TurnCache,
        now: LoopTime,
    ) -> Option<(Vec<u8>, Cost)> {
        let PendingQuery { query, options, .. } = pending;
        let no_store = [("Cache-Control", "no-store")];
        let response = match query {
            Query::Metrics => {
                let is_first = cache.metrics.is_none();
                let text = cache
                    .metrics
                    .get_or_insert_with(|| exposition::text(&self.shared.metrics, self.levels(now)));
                let response = options.respond(200, exposition::CONTENT_TYPE, &no_store, text.as_bytes());
                let mut cost = Cost::of(Work::default(), response.len());
                if is_first {
                    cost += Cost::of_metrics(self.slots.len());
                }
                return Some((response, cost));
            }
            Query::Ready => options.respond(200, "text/plain", &no_store, b"ready\n"),
            Query::Nodes => options.respond(200, "application/json", &no_store, self.nodes(now).as_bytes()),
            Query::Channel { channel } => {
                let body = channel_listing::channel(self.channels(), channel.as_str());
                options.respond(200, "application/json", &no_store, &body)
            }
            Query::Channels { .. } | Query::History { .. } => return None,
        };
        Some((response, Cost::SLICE))
    }

    /// The next slice of a listing or of a page, its cost, and true if it is the last.
    fn slice(&mut self, pending: &mut PendingQuery, now: LoopTime) -> (Vec<u8>, Work, bool) {
        let PendingQuery { query, progress, .. } = pending;
        if !progress.has_begun() {
            *progress = match query {
                Query::History { channel, since, limit } => {
                    QueryProgress::Page(self.hub.page(channel.as_str(), *since, *limit, now))
                }
                Query::Channels { after, limit, .. } => {
                    QueryProgress::Listing(Listing::new(after.take(), *limit))
                }
                _ => QueryProgress::Pending,
            };
        }
        let mut body = Vec::with_capacity(SLICE_BYTES);
        let (work, is_over) = match (progress, query) {
            (QueryProgress::Page(page), _) => page.append(&self.hub, &mut body, SLICE_BYTES),
            (QueryProgress::Listing(listing), Query::Channels { prefix, rights, .. }) => {
                let visible = &self.shared.authenticator.grant(rights).subscribe;
                channel_listing::append_channels(
                    self.channels(),
                    visible,
                    prefix,
                    listing,
                    &mut body,
                    SLICE_BYTES,
                )
            }
            _ => (Work::default(), true),
        };
        (body, work, is_over)
    }

    fn channels(&self) -> Channels<'_> {
        let shared = self.shared_log.as_ref();
        Channels {
            hub: &self.hub,
            shared: shared.map(|log| (&log.counts, log.link().map_or(1, |link| link.live_runs().count()))),
        }
    }

    fn levels(&self, now: LoopTime) -> Levels {
        let mut levels = Levels {
            connections: self.slots.len(),
            channels: self.hub.channels(),
            subscriptions: self.hub.subscriptions(),
            history_messages: self.hub.history_usage().messages,
            history_bytes: self.hub.history_usage().bytes,
            history_limits: self.shared.limits.history,
            removed_channels: self.hub.removed_channels().0,
            removed_channels_bytes: self.hub.removed_channels().1,
            deflate_context_bytes: self.hub.context_bytes(),
            replay_encoded_bytes: self.hub.large_replay_bytes(),
            tickets: self.shared.authenticator.tickets.len(),
            memory_max_bytes: self.shared.memory.bytes_max(),
            memory_used_bytes: self.shared.memory.used_bytes(),
            publishers_paused: self.paused_publishers(),
            backplane: self.shared_log.as_ref().and_then(|log| log.link()).map(|link| link.stats(now)),
            process: super::process::read(),
            ..Levels::default()
        };
        for (_, slot) in self.slots.iter() {
            levels.pending_bytes += slot.outbox.bytes();
            levels.replays_waiting += usize::from(slot.waits_for_memory());
            levels.slow_connections += usize::from(slot.outbox.is_blocked());
        }
        levels
    }
}
