//! The measurements of a run, collected while it lasts.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::clients::Clients;
use super::clock::RunTime;
use super::connection_stats::{ConnectionStats, histogram};
use super::delivery_tracker::{DeliveryCounts, DeliveryTracker};
use super::probe::{CpuCounters, CpuTime, KernelMemory, ProcessMemory, ProcessProbe};
use super::reconnect_storm::StormFigures;

/// Number of points on the timeline of a sufficiently long run.
const TIMELINE_POINTS: u32 = 100;

/// The shortest useful interval: a turn of a server takes some milliseconds.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The interval of a storm, which can be over in a tenth of a second.
const STORM_INTERVAL: Duration = Duration::from_millis(2);

/// All measurements that a report is made from.
pub struct Measurements {
    server: Option<ProcessProbe>,
    /// Processor time of the server before the first connection.
    server_at_start: Option<CpuCounters>,
    /// Statistics of the connections that the ramp opened.
    pub ramp: ConnectionStats,
    /// Seconds that the ramp took.
    pub ramp_seconds: f64,
    /// Processor time of the server during the ramp.
    pub ramp_server: Option<CpuTime>,
    /// True if a signal ended the run early.
    pub interrupted: bool,
    /// Number of connections open at the end.
    pub open_at_end: usize,
    /// Statistics of connections after the ramp, short-lived clients included.
    pub after: ConnectionStats,
    /// Memory at several numbers of connections.
    pub memory: Vec<MemorySample>,
    /// Points of the timeline, over the measured window.
    pub timeline: Vec<IntervalSample>,
    /// The window that is being measured.
    pub window: Option<Window>,
    /// The window after its end.
    pub measured: Option<Measured>,
    /// Time from the intended time to each client, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The latency before clients stalled.
    pub latency_before: Option<Histogram<u64>>,
    /// Messages that were due and never sent.
    pub unsent: u64,
    /// Delay of messages that the publisher's outbox had room for: caused by the load generator.
    pub lateness: Histogram<u64>,
    /// Time of the loop's turns: the maximum time that an event waited.
    pub lag: Histogram<u64>,
    /// Figures of a reconnect storm.
    pub storm: Option<StormFigures>,
    /// Messages that clients did not receive.
    pub lost: u64,
    /// All other counts.
    pub counts: DeliveryCounts,
    /// Time from the intended time to the last client, in nanoseconds.
    pub last_subscriber: Histogram<u64>,
}

/// Memory at one number of connections.
#[derive(Clone, Copy, Debug)]
pub struct MemorySample {
    /// Number of open connections.
    pub connections: usize,
    /// The server's memory.
    pub server: Option<ProcessMemory>,
    /// The kernel's memory, for both ends if the server runs on this machine.
    pub kernel: KernelMemory,
}

/// One interval of the timeline.
#[derive(Clone, Copy, Debug)]
pub struct IntervalSample {
    /// End of the interval, in seconds since the start of the window.
    pub seconds: f64,
    /// Messages received in the interval.
    pub deliveries: u64,
    /// Connections open at its end.
    pub open: usize,
    /// Latencies in nanoseconds: median, 99th percentile and maximum.
    pub p50: u64,
    /// See `p50`.
    pub p99: u64,
    /// See `p50`.
    pub max: u64,
}

/// The window that is being measured.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Start of the window.
    pub from: RunTime,
    interval: Duration,
    next_point: RunTime,
    counts: DeliveryCounts,
    server: Option<CpuCounters>,
    own: Option<CpuCounters>,
}

/// The measurements over a window.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Length of the window.
    pub seconds: f64,
    /// Messages received in the window.
    pub deliveries: u64,
    /// Messages sent in the window.
    pub sent: u64,
    /// Bytes of the received messages, as they were sent and without compression.
    pub delivered_bytes: (u64, u64),
    /// Processor time of the server.
    pub server: Option<CpuTime>,
    /// Processor time of the load generator.
    pub own: Option<CpuTime>,
}

impl Measurements {
    /// No measurements yet. `server` is the server's process, if it is known.
    pub fn new(server: Option<ProcessProbe>) -> Measurements {
        Measurements {
            server,
            server_at_start: server.and_then(|server| server.cpu().ok()),
            ramp: ConnectionStats::new(),
            ramp_seconds: 0.0,
            ramp_server: None,
            interrupted: false,
            open_at_end: 0,
            after: ConnectionStats::new(),
            memory: Vec::new(),
            timeline: Vec::new(),
            window: None,
            measured: None,
            latency: histogram(),
            latency_before: None,
            unsent: 0,
            lateness: histogram(),
            lag: histogram(),
            storm: None,
            lost: 0,
            counts: DeliveryCounts::default(),
            last_subscriber: histogram(),
        }
    }

    /// Measures memory at this number of open connections.
    pub fn measure_memory(&mut self, connections: usize) {
        let server = self.server.and_then(|server| server.memory().ok());
        self.memory.push(MemorySample { connections, server, kernel: KernelMemory::now() });
    }

    /// Ends the ramp: all connections have been attempted.
    pub fn opened(&mut self, clients: &mut Clients) {
        self.ramp = std::mem::take(&mut clients.stats);
        self.ramp_server =
            self.server.and_then(|server| Some(server.cpu().ok()?.since(self.server_at_start?)));
    }

    /// Starts the window, with its length if that is known.
    pub fn open_window(&mut self, length: Option<Duration>, tracker: &mut DeliveryTracker, now: RunTime) {
        let interval = length.map_or(STORM_INTERVAL, |length| (length / TIMELINE_POINTS).max(INTERVAL_MIN));
        tracker.measured_from = Some(now);
        tracker.interval.clear();
        self.lag.reset();
        self.lateness.reset();
        self.window = Some(Window {
            from: now,
            interval,
            next_point: now.after(interval),
            counts: tracker.counts,
            server: self.server.and_then(|server| server.cpu().ok()),
            own: ProcessProbe::own().cpu().ok(),
        });
    }

    /// Adds a point to the timeline if it is due.
    pub fn tick(&mut self, open: usize, tracker: &mut DeliveryTracker, now: RunTime) {
        let Some(window) = &mut self.window else { return };
        if window.next_point > now {
            return;
        }
        // In a window of unknown length the intervals grow.
        let elapsed = Duration::from_nanos(now.nanos_since(window.from));
        window.next_point = now.after(window.interval.max(elapsed / TIMELINE_POINTS));
        let seconds = elapsed.as_secs_f64();
        self.take_point(seconds, open, tracker);
    }

    fn take_point(&mut self, seconds: f64, open: usize, tracker: &mut DeliveryTracker) {
        let latency = &tracker.interval.latency;
        self.timeline.push(IntervalSample {
            seconds,
            deliveries: tracker.interval.deliveries,
            open,
            p50: latency.value_at_quantile(0.5),
            p99: latency.value_at_quantile(0.99),
            max: latency.max(),
        });
        self.take_latency(tracker);
    }

    fn take_latency(&mut self, tracker: &mut DeliveryTracker) {
        self.latency.add(&tracker.interval.latency).expect("both have the same bounds");
        tracker.interval.clear();
    }

    /// Separates the latencies recorded so far from later ones.
    pub fn split_latency(&mut self, tracker: &mut DeliveryTracker) {
        self.take_latency(tracker);
        self.latency_before = Some(std::mem::replace(&mut self.latency, histogram()));
    }

    /// Records the time of one turn of the loop.
    pub fn turned(&mut self, nanos: u64) {
        if self.window.is_some() {
            self.lag.saturating_record(nanos);
        }
    }

    /// Ends the window. Latencies of messages in flight are still added afterwards.
    pub fn close_window(&mut self, open: usize, tracker: &mut DeliveryTracker, now: RunTime) {
        let Some(window) = self.window.take() else { return };
        self.take_point(now.seconds_since(window.from), open, tracker);
        let spent = |process: Option<ProcessProbe>, earlier: Option<CpuCounters>| {
            Some(process?.cpu().ok()?.since(earlier?))
        };
        self.measured = Some(Measured {
            seconds: now.seconds_since(window.from),
            deliveries: tracker.counts.deliveries - window.counts.deliveries,
            sent: tracker.counts.sent - window.counts.sent,
            delivered_bytes: (
                tracker.counts.sent_bytes - window.counts.sent_bytes,
                tracker.counts.plain_bytes - window.counts.plain_bytes,
            ),
            server: spent(self.server, window.server),
            own: spent(Some(ProcessProbe::own()), window.own),
        });
    }

    /// Takes the final counts.
    pub fn finish(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker) {
        self.take_latency(tracker);
        let not_received: u64 = clients
            .iter_mut()
            .filter(|(_, client)| client.is_open())
            .map(|(_, client)| tracker.not_received(&mut client.recipient))
            .sum();
        self.counts = tracker.counts;
        self.lost = tracker.counts.missing + not_received;
        self.last_subscriber = tracker.last_subscriber.clone();
        self.after = std::mem::take(&mut clients.stats);
    }
}
