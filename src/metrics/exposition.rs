//! The Prometheus exposition format of the metrics (`GET /metrics`).
//!
//! The official client library encodes the text, from a copy of the counters that is made for each scrape: the
//! library's own counters are atomic and guarded by locks, which one thread does not need.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::backplane::{BackplaneStats, EntrySource, EpochReason, ErrorKind, LossReason};
use super::levels::{Levels, Process};
use super::{Histogram, Limit, MemoryStep, Metrics, TurnPhase};
use crate::close::Reason;
use crate::config::HistoryLimits;

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// Encodes all metrics.
pub fn text(metrics: &Metrics, levels: Levels) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(MetricsCollector { metrics: metrics.clone(), levels }));
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = prometheus_client::encoding::prometheus_text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct MetricsCollector {
    metrics: Metrics,
    levels: Levels,
}

impl Collector for MetricsCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let MetricsCollector { metrics, levels } = self;
        let mut page = ExpositionWriter(encoder);
        page.info("oyez_build", "Version of the server", [("version", env!("CARGO_PKG_VERSION"))])?;
        page.connections(metrics, levels)?;
        page.messages(metrics, levels)?;
        if let Some(stats) = &levels.backplane {
            page.backplane(metrics, stats)?;
        }
        page.compression(metrics, levels)?;
        page.slow_consumers(metrics, levels)?;
        page.history(levels)?;
        page.history_file(metrics)?;
        page.memory(metrics, levels)?;
        page.turns(metrics)?;
        page.process(&levels.process)
    }
}

/// Writes metric families.
struct ExpositionWriter<'a>(DescriptorEncoder<'a>);

/// One method for each subject.
impl ExpositionWriter<'_> {
    fn connections(&mut self, metrics: &Metrics, levels: &Levels) -> fmt::Result {
        self.gauge("oyez_connections", "Open connections", levels.connections as u64)?;
        let help = "Maximum connections (--connections-max)";
        self.gauge("oyez_connections_max", help, metrics.connections_max as u64)?;
        if let Some(seconds) = metrics.certificate_expires_at {
            let help = "End of the validity of the certificate in use, in seconds of unix time";
            self.gauge("oyez_tls_certificate_expiry_timestamp_seconds", help, seconds)?;
        }
        self.counter("oyez_connections_accepted", "Accepted connections", metrics.connections_accepted)?;
        let closes = Reason::WORDS.iter().copied().zip(metrics.connections_closed);
        self.counters("oyez_connections_closed", "Closed connections, by reason", "reason", closes)?;
        let rejected = metrics.requests_rejected.iter().map(|(code, count)| (*code, *count));
        let help = "Requests that were rejected, by error code";
        self.counters("oyez_http_requests_rejected", help, "code", rejected)?;
        let limited = Limit::WORDS.iter().copied().zip(metrics.rate_limited);
        let help = "Connections, handshakes and publishes that exceeded a limit per client";
        self.counters("oyez_rate_limited", help, "limit", limited)?;
        let errors = metrics.accept_errors.iter().map(|(name, count)| (*name, *count));
        self.counters("oyez_accept_errors", "Failed calls of accept, by error", "errno", errors)?;
        self.gauge("oyez_tickets", "Valid one-time tickets", levels.tickets as u64)?;
        self.counter("oyez_log_lines_suppressed", "Suppressed log lines", metrics.log_lines_suppressed)?;
        self.counter("oyez_received_bytes", "Bytes read from connections", metrics.received_bytes)?;
        self.counter("oyez_sent_bytes", "Bytes written to connections", metrics.sent_bytes)?;
        self.histogram("oyez_ping_rtt_seconds", "From a ping to the next sign of life", &metrics.ping_rtt)
    }

    fn messages(&mut self, metrics: &Metrics, levels: &Levels) -> fmt::Result {
        self.gauge("oyez_channels", "Channels with subscribers or history", levels.channels as u64)?;
        self.gauge("oyez_subscriptions", "Subscriptions of all channels", levels.subscriptions as u64)?;
        let sources = [("websocket", metrics.published_by_websocket), ("http", metrics.published_by_http)];
        let shared = levels.backplane.map(|_| ("backplane", metrics.published_by_backplane));
        let sources = sources.into_iter().chain(shared);
        self.counters("oyez_messages_published", "Published messages", "source", sources)?;
        let help = "Messages queued to subscribers, counted for each subscriber";
        self.counter("oyez_messages_delivered", help, metrics.messages_delivered)?;
        let help = "Duplicate publishes, found by their idempotency key and not published again";
        self.counter("oyez_messages_repeated", help, metrics.messages_repeated)?;
        let resumes = [("whole", metrics.resumes_whole), ("gap", metrics.resumes_gap)];
        let help = "Subscriptions that resumed from a cursor, without (whole) or with a gap";
        self.counters("oyez_resumes", help, "result", resumes.into_iter())
    }

    fn compression(&mut self, metrics: &Metrics, levels: &Levels) -> fmt::Result {
        let deflated =
            [("previous", metrics.deflated_in_context), ("none", metrics.deflated_without_context)];
        let help = "Messages queued compressed, with reference to earlier ones or to none, counted for each subscriber";
        self.counters("oyez_deflated_messages", help, "context", deflated.into_iter())?;
        let help = "Bytes that messages queued compressed would have taken as plain frames";
        self.counter("oyez_deflate_plain_bytes", help, metrics.deflate_plain_bytes)?;
        let help = "Bytes of messages queued compressed";
        self.counter("oyez_deflate_sent_bytes", help, metrics.deflate_sent_bytes)?;
        let help = "Bytes of compressed messages that are kept for the next ones to refer to";
        self.gauge("oyez_deflate_context_bytes", help, levels.deflate_context_bytes as u64)?;
        let help = "Bytes of messages that clients compressed, after their decompression";
        self.counter("oyez_inflated_bytes", help, metrics.inflated_bytes)
    }

    fn slow_consumers(&mut self, metrics: &Metrics, levels: &Levels) -> fmt::Result {
        self.gauge("oyez_pending_bytes", "Bytes queued in outboxes", levels.pending_bytes as u64)?;
        let help = "Connections whose socket does not take the queued bytes";
        self.gauge("oyez_slow_connections", help, levels.slow_connections as u64)?;
        let help = "Messages that slow subscribers missed (--on-slow skip)";
        self.counter("oyez_messages_skipped", help, metrics.messages_skipped)?;
        let help = "Publishers that are paused while subscribers of their channel catch up";
        self.gauge("oyez_publishers_paused", help, levels.publishers_paused as u64)?;
        let help = "Pauses of publishers for subscribers to catch up";
        self.counter("oyez_publish_pauses", help, metrics.publish_pauses)
    }

    fn history(&mut self, levels: &Levels) -> fmt::Result {
        self.gauge("oyez_history_messages", "Messages kept in histories", levels.history_messages as u64)?;
        self.gauge("oyez_history_bytes", "Bytes kept in histories", levels.history_bytes as u64)?;
        let HistoryLimits { messages_max, bytes_max, age_ms, total_bytes_max } = levels.history_limits;
        let help = "Maximum messages in the history of a channel (--history-messages-max)";
        self.gauge("oyez_history_messages_max", help, messages_max as u64)?;
        let help = "Maximum bytes in the history of a channel (--history-bytes-max)";
        self.gauge("oyez_history_bytes_max", help, bytes_max as u64)?;
        let help = "Maximum age of messages in histories (--history-age-seconds)";
        self.gauge("oyez_history_age_seconds_max", help, u64::from(age_ms / 1_000))?;
        let help = "Maximum bytes in the histories of all channels (--history-total-bytes-max)";
        self.gauge("oyez_history_total_bytes_max", help, total_bytes_max as u64)?;
        let help = "Removed channels whose names are remembered";
        self.gauge("oyez_removed_channels", help, levels.removed_channels as u64)?;
        let help = "Bytes of the names of removed channels";
        self.gauge("oyez_removed_channels_bytes", help, levels.removed_channels_bytes as u64)?;
        let help = "Bytes of messages above 64 KiB that are encoded for replays and not yet sent";
        self.gauge("oyez_replay_encoded_bytes", help, levels.replay_encoded_bytes as u64)?;
        let help = "Replays that wait for such an encoding to be sent";
        self.gauge("oyez_replays_waiting", help, levels.replays_waiting as u64)
    }

    fn history_file(&mut self, metrics: &Metrics) -> fmt::Result {
        self.gauge("oyez_history_file_bytes", "Size of the history file", metrics.history_file_bytes)?;
        let help = "Bytes of messages and channel records written to the history file";
        self.counter("oyez_history_file_written_bytes", help, metrics.history_file_bytes_written)?;
        let help = "Times when the disk began to take longer than the sync interval";
        self.counter("oyez_history_file_late", help, metrics.history_file_late)?;
        let help = "Errors of the history file; after one it is no longer written";
        self.counter("oyez_history_file_errors", help, metrics.history_file_errors)
    }

    fn memory(&mut self, metrics: &Metrics, levels: &Levels) -> fmt::Result {
        let help = "Memory budget (--memory-max); 0: no budget";
        self.gauge("oyez_memory_max_bytes", help, levels.memory_max_bytes)?;
        let help = "Bytes in use by the allocator's count, which count against the memory budget";
        self.gauge("oyez_memory_used_bytes", help, levels.memory_used_bytes)?;
        let steps = MemoryStep::label(metrics.memory_pressure);
        let help = "Times when a step against memory pressure began";
        self.counters("oyez_memory_pressure", help, "step", steps)?;
        let help = "Connections closed under memory pressure, since they held most";
        self.counter("oyez_memory_connections_closed", help, metrics.memory_connections_closed)?;
        let help = "Messages evicted from histories under memory pressure";
        self.counter("oyez_memory_evicted_messages", help, metrics.memory_evicted)
    }

    fn turns(&mut self, metrics: &Metrics) -> fmt::Result {
        self.histogram("oyez_turn_seconds", "How long a turn takes without its wait", &metrics.turn_seconds)?;
        let help = "Time of the phases of turns, estimated from one of 16 turns";
        let mut phases =
            self.0.encode_descriptor("oyez_turn_phase_seconds", help, None, MetricType::Counter)?;
        for (phase, nanos) in TurnPhase::label(metrics.phase_nanos) {
            ConstCounter::new(nanos as f64 / 1e9).encode(phases.encode_family(&[("phase", phase)])?)?;
        }
        self.histogram("oyez_turn_events", "Events that a turn begins with", &metrics.turn_events)?;
        let help = "Reads that ended with more to read, since the connection had used its share of the turn";
        self.counter("oyez_reads_requeued", help, metrics.reads_requeued)
    }

    /// Writes the metrics of the link to a shared log.
    fn backplane(&mut self, metrics: &Metrics, stats: &BackplaneStats) -> fmt::Result {
        let up = "1 if the log of the backplane was read up to its end since the link was opened";
        self.gauge("oyez_backplane_up", up, u64::from(stats.is_up))?;
        self.gauge("oyez_backplane_nodes", "Nodes that are alive, with this one", stats.nodes as u64)?;
        let lag = "Items that are known to be in the log and are not applied";
        self.gauge("oyez_backplane_lag_items", lag, stats.lag_items)?;
        let lag = "Age of the oldest own entry that was sent to the backplane and not read back";
        let encoder = self.0.encode_descriptor("oyez_backplane_lag_seconds", lag, None, MetricType::Gauge)?;
        ConstGauge::new(f64::from(stats.lag_ms) / 1e3).encode(encoder)?;
        self.histogram(
            "oyez_backplane_round_trip_seconds",
            "From the submission of an own entry until it was read back and applied",
            &metrics.backplane_round_trip,
        )?;
        let pending = "Bytes of publishes that the backplane has not acknowledged";
        self.gauge("oyez_backplane_pending_bytes", pending, stats.pending_bytes as u64)?;
        let pending = "Publishes that the backplane has not acknowledged";
        self.gauge("oyez_backplane_pending_messages", pending, stats.pending as u64)?;
        self.gauge("oyez_backplane_log_bytes", "Bytes of the entries in the log", stats.log_bytes)?;
        let links = ["opened", "lost"].into_iter().zip([stats.links_opened, stats.links_lost]);
        let help = "Links to the backplane that were opened, and that were lost or not established";
        self.counters("oyez_backplane_links", help, "result", links)?;
        let epochs = EpochReason::label(stats.read.epochs);
        self.counters("oyez_backplane_epochs", "Epochs of the log that began", "why", epochs)?;
        let errors = ErrorKind::label(stats.errors);
        self.counters("oyez_backplane_errors", "Error replies of the backplane", "kind", errors)?;
        let entries = EntrySource::label(stats.read.entries);
        let help = "Entries of the log that were applied, of this node and of other nodes";
        self.counters("oyez_backplane_entries", help, "source", entries)?;
        let items = EntrySource::label(stats.read.items);
        self.counters("oyez_backplane_items", "Items of these entries", "source", items)?;
        let help = "Entries that were skipped, since they were applied before";
        self.counter("oyez_backplane_duplicates", help, stats.read.duplicates)?;
        let help = "Losses that all subscribers were notified of";
        let discontinuities = LossReason::label(stats.read.discontinuities);
        self.counters("oyez_backplane_discontinuities", help, "reason", discontinuities)?;
        let help = "Messages that the log had and this node has not read";
        self.counter("oyez_backplane_lost_messages", help, metrics.backplane_lost_messages)?;
        let help = "Publishes that were sent to the backplane and not confirmed in time";
        self.counter("oyez_backplane_unconfirmed", help, metrics.backplane_unconfirmed)?;
        let help = "Replicas that had the last entries when they were last waited for";
        self.gauge("oyez_backplane_replicas", help, stats.replicas)?;
        let help = "Waits for replicas that have expired";
        self.counter("oyez_backplane_waits_expired", help, stats.waits_expired)
    }

    /// Writes the metrics of the process, under the standard names of Prometheus' client libraries.
    fn process(&mut self, process: &Process) -> fmt::Result {
        if let Some(seconds) = process.cpu_seconds {
            let help = "Processor time of user and system";
            let encoder = self.0.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(encoder)?;
        }
        let sizes = [
            ("process_resident_memory_bytes", "Resident memory", process.resident_bytes),
            ("process_virtual_memory_bytes", "Address space", process.virtual_bytes),
            ("process_open_fds", "Descriptors that are open", process.open_fds),
            ("process_max_fds", "Descriptors that may be open", process.max_fds),
        ];
        for (name, help, value) in sizes {
            if let Some(value) = value {
                self.gauge(name, help, value)?;
            }
        }
        if let Some(seconds) = process.start_time_seconds {
            let help = "When the process began, in seconds of unix time";
            let encoder =
                self.0.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(seconds).encode(encoder)?;
        }
        Ok(())
    }
}

/// One method for each type of family.
impl ExpositionWriter<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl Iterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (word, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, word)])?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn info(&mut self, name: &str, help: &str, labels: [(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn histogram<const N: usize>(&mut self, name: &str, help: &str, values: &Histogram<N>) -> fmt::Result {
        let buckets: Vec<(f64, u64)> = values.buckets().collect();
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(values.sum(), values.count(), &buckets, None)
    }
}
