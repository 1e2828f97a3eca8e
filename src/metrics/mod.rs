//! Counters and histograms of the server.
//!
//! They are plain integers: one thread needs no atomics, so an increment costs one addition. [`exposition`] encodes
//! them for Prometheus on request.

pub mod backplane;
pub mod exposition;
mod histogram;
mod label_values;
pub mod levels;
mod memory_step;
mod turn_phase;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::access::limit::Limit;
use crate::close::Reason;
pub use histogram::Histogram;
pub use memory_step::MemoryStep;
pub use turn_phase::TurnPhase;

/// From 10 us, which a turn with one message takes, to a second.
const TURN_SECONDS: [f64; 15] =
    [1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0];

/// Up to the maximum number of events that one wait returns.
const TURN_EVENTS: [f64; 12] = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// From a client in the same rack to a phone with a poor mobile connection.
const PING_SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The phases are measured in one of this many turns, at random.
pub const PHASES_SAMPLED_TURNS: u32 = 16;

/// Counters of one server since its start.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// The maximum number of connections.
    pub connections_max: usize,
    /// The end of the certificate's validity, in seconds since 1970, if there is one.
    pub certificate_expires_at: Option<u64>,
    /// Sockets taken from the listener.
    pub connections_accepted: u64,
    /// Slots reaped, by [`Reason::index`].
    pub connections_closed: [u64; Reason::COUNT],
    /// Rejected HTTP requests, by error code.
    pub requests_rejected: BTreeMap<&'static str, u64>,
    /// Requests, connections and messages that exceeded a limit per client, in the order of [`Limit::WORDS`].
    pub rate_limited: [u64; Limit::WORDS.len()],
    /// `accept` calls that failed, by the name of the error.
    pub accept_errors: BTreeMap<&'static str, u64>,
    /// Messages published over WebSockets.
    pub published_by_websocket: u64,
    /// Messages published over HTTP.
    pub published_by_http: u64,
    /// Messages that other nodes published in the shared log.
    pub published_by_backplane: u64,
    /// Messages queued in outboxes, counted for each subscriber.
    pub messages_delivered: u64,
    /// Messages that slow subscribers missed (`--on-slow skip`), counted for each subscriber.
    pub messages_skipped: u64,
    /// Pauses of publishers for subscribers to catch up.
    pub publish_pauses: u64,
    /// Duplicate publishes, found by their idempotency key and not published again.
    pub messages_repeated: u64,
    /// Subscriptions that resumed from a cursor without a gap.
    pub resumes_whole: u64,
    /// Subscriptions that resumed from a cursor with a gap.
    pub resumes_gap: u64,
    /// Bytes of messages and channel records written to the history file.
    pub history_file_bytes_written: u64,
    /// Size of the history file.
    pub history_file_bytes: u64,
    /// Times when a write began to take longer than the sync interval.
    pub history_file_late: u64,
    /// 1 if the history file is no longer written.
    pub history_file_errors: u64,
    /// Reads that ended because a share or the turn's budget was used up.
    pub reads_requeued: u64,
    /// How often each step against memory pressure began, in the order of [`MemoryStep::ALL`].
    pub memory_pressure: [u64; MemoryStep::COUNT],
    /// Connections closed for the memory that they held.
    pub memory_connections_closed: u64,
    /// Messages evicted from histories before their time, for the memory that they took.
    pub memory_evicted: u64,
    /// Log lines that peers caused and that were left out.
    pub log_lines_suppressed: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
    /// Messages queued compressed with reference to the one before, counted for each subscriber.
    pub deflated_in_context: u64,
    /// Messages queued compressed without that, counted for each subscriber.
    pub deflated_without_context: u64,
    /// Bytes of batches that were queued compressed, as plain frames.
    pub deflate_plain_bytes: u64,
    /// Bytes of these batches as they were queued.
    pub deflate_sent_bytes: u64,
    /// Bytes of messages that clients compressed, after their decompression.
    pub inflated_bytes: u64,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// The longest turn without its wait, in microseconds.
    pub turn_micros_max: u64,
    /// How long turns took without their wait.
    pub turn_seconds: Histogram<15>,
    /// Time of the phases of turns in nanoseconds, in the order of [`TurnPhase::ALL`]: an estimate, see
    /// [`PHASES_SAMPLED_TURNS`].
    pub phase_nanos: [u64; TurnPhase::COUNT],
    /// How many events turns began with.
    pub turn_events: Histogram<12>,
    /// From pings to the next sign of life.
    pub ping_rtt: Histogram<10>,
    /// Messages that the shared log has and this node does not.
    pub backplane_lost_messages: u64,
    /// Publishes that were sent to the shared log and not confirmed in time.
    pub backplane_unconfirmed: u64,
    /// From the submission of an own entry of the shared log until it was applied.
    pub backplane_round_trip: Histogram<10>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            connections_max: 0,
            certificate_expires_at: None,
            connections_accepted: 0,
            connections_closed: [0; Reason::COUNT],
            requests_rejected: BTreeMap::new(),
            rate_limited: [0; Limit::WORDS.len()],
            accept_errors: BTreeMap::new(),
            published_by_websocket: 0,
            published_by_http: 0,
            published_by_backplane: 0,
            messages_delivered: 0,
            messages_skipped: 0,
            publish_pauses: 0,
            messages_repeated: 0,
            resumes_whole: 0,
            resumes_gap: 0,
            history_file_bytes_written: 0,
            history_file_bytes: 0,
            history_file_late: 0,
            history_file_errors: 0,
            reads_requeued: 0,
            memory_pressure: [0; MemoryStep::COUNT],
            memory_connections_closed: 0,
            memory_evicted: 0,
            log_lines_suppressed: 0,
            received_bytes: 0,
            deflated_in_context: 0,
            deflated_without_context: 0,
            deflate_plain_bytes: 0,
            deflate_sent_bytes: 0,
            inflated_bytes: 0,
            sent_bytes: 0,
            turn_micros_max: 0,
            turn_seconds: Histogram::new(&TURN_SECONDS),
            phase_nanos: [0; TurnPhase::COUNT],
            turn_events: Histogram::new(&TURN_EVENTS),
            ping_rtt: Histogram::new(&PING_SECONDS),
            backplane_lost_messages: 0,
            backplane_unconfirmed: 0,
            backplane_round_trip: Histogram::new(&PING_SECONDS),
        }
    }
}

impl Metrics {
    /// The number of connections that were closed with this reason.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.connections_closed[reason.index()]
    }

    /// Published messages.
    pub fn messages_published(&self) -> u64 {
        self.published_by_websocket + self.published_by_http + self.published_by_backplane
    }

    /// Counts a rejected request.
    pub fn reject(&mut self, code: &'static str) {
        *self.requests_rejected.entry(code).or_default() += 1;
    }

    /// Counts an exceeded limit.
    pub fn limit(&mut self, limit: Limit) {
        self.rate_limited[limit as usize] += 1;
    }

    /// Counts a failed call of `accept`.
    pub fn accept_failed(&mut self, error: &std::io::Error) {
        *self.accept_errors.entry(errno_name(error.raw_os_error())).or_default() += 1;
    }

    /// Records the duration of a phase in a turn that stands for those whose phases are not measured.
    pub fn observe_phase(&mut self, phase: TurnPhase, duration: Duration) {
        self.phase_nanos[phase as usize] += duration.as_nanos() as u64 * u64::from(PHASES_SAMPLED_TURNS);
    }

    /// Records the duration of a turn.
    pub fn observe_turn(&mut self, micros: u64) {
        self.turn_micros_max = self.turn_micros_max.max(micros);
        self.turn_seconds.observe(micros as f64 / 1e6);
    }
}

/// The name of an errno of accept(2). Other errors share one label, so that the number of labels is bounded.
fn errno_name(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EMFILE) => "EMFILE",
        Some(libc::ENFILE) => "ENFILE",
        Some(libc::ENOBUFS) => "ENOBUFS",
        Some(libc::ENOMEM) => "ENOMEM",
        Some(libc::ECONNABORTED) => "ECONNABORTED",
        Some(libc::EPERM) => "EPERM",
        _ => "other",
    }
}

/// One line of `name=value`, the closes by reason at its end.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "accepted={} accept_errors={} published={} delivered={} skipped={} received_bytes={} sent_bytes={} \
             turn_micros_max={}",
            self.connections_accepted,
            self.accept_errors.values().sum::<u64>(),
            self.messages_published(),
            self.messages_delivered,
            self.messages_skipped,
            self.received_bytes,
            self.sent_bytes,
            self.turn_micros_max,
        )?;
        for (word, count) in Reason::WORDS.iter().zip(self.connections_closed) {
            if count > 0 {
                write!(f, " closed_{word}={count}")?;
            }
        }
        Ok(())
    }
}
