//! What a run found out, gathered while it lasts.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::clients::Clients;
use super::clock::RunTime;
use super::connection_stats::{ConnectionStats, histogram};
use super::delivery_tracker::{DeliveryCounts, DeliveryTracker};
use super::probe::{CpuCounters, CpuTime, KernelMemory, ProcessMemory, ProcessProbe};
use super::reconnect_storm::StormFigures;

/// Points on the timeline, where the run is long enough.
const TIMELINE_POINTS: u32 = 100;

/// The shortest interval that is known to be no accident: a server's turn takes some milliseconds.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The same for a storm, which can be over in a tenth of a second.
const STORM_INTERVAL: Duration = Duration::from_millis(2);

/// Everything that a report is made of.
pub struct Measurements {
    server: Option<ProcessProbe>,
    /// What the server had used before the first connection.
    server_at_start: Option<CpuCounters>,
    /// What became of connections while they were opened.
    pub ramp: ConnectionStats,
    /// Seconds in which they were opened.
    pub ramp_seconds: f64,
    /// What the server used of the processors to open them.
    pub ramp_server: Option<CpuTime>,
    /// True if a signal ended the run early.
    pub interrupted: bool,
    /// ConnectionsReport that were open at the end.
    pub open_at_end: usize,
    /// What became of them afterwards, and of guests.
    pub after: ConnectionStats,
    /// ProcessMemory at several numbers of connections.
    pub memory: Vec<MemorySample>,
    /// Over the window that is measured.
    pub timeline: Vec<IntervalSample>,
    /// The window that is open.
    pub window: Option<Window>,
    /// The window that was measured.
    pub measured: Option<Measured>,
    /// From the intended time to each client, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The same, before clients stalled.
    pub latency_before: Option<Histogram<u64>>,
    /// Messages that were due and never sent.
    pub unsent: u64,
    /// How late messages were entered for which there was room: our own fault.
    pub lateness: Histogram<u64>,
    /// How long the loop's turns took: an event may have waited so long.
    pub lag: Histogram<u64>,
    /// How a storm went.
    pub storm: Option<StormFigures>,
    /// Messages that clients should have got and have not.
    pub lost: u64,
    /// All other counts.
    pub counts: DeliveryCounts,
    /// From the intended time to the last client, in nanoseconds.
    pub last_member: Histogram<u64>,
}

/// ProcessMemory at one number of connections.
#[derive(Clone, Copy, Debug)]
pub struct MemorySample {
    /// How many were open.
    pub connections: usize,
    /// The server's.
    pub server: Option<ProcessMemory>,
    /// The kernel's, for both ends if the server is on this machine.
    pub kernel: KernelMemory,
}

/// One interval of the timeline.
#[derive(Clone, Copy, Debug)]
pub struct IntervalSample {
    /// When it ended, in seconds from the start of the window.
    pub seconds: f64,
    /// Messages that clients got in it.
    pub deliveries: u64,
    /// ConnectionsReport open at its end.
    pub open: usize,
    /// Latencies in nanoseconds: the median, the 99th of a hundred, and the longest.
    pub p50: u64,
    /// See `p50`.
    pub p99: u64,
    /// See `p50`.
    pub max: u64,
}

/// The window that is being measured.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// When it began.
    pub from: RunTime,
    interval: Duration,
    next_point: RunTime,
    counts: DeliveryCounts,
    server: Option<CpuCounters>,
    own: Option<CpuCounters>,
}

/// What was measured over a window.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Its length.
    pub seconds: f64,
    /// Messages that clients got in it.
    pub deliveries: u64,
    /// Messages sent in it.
    pub sent: u64,
    /// What the server used of the processors.
    pub server: Option<CpuTime>,
    /// What we used.
    pub own: Option<CpuTime>,
}

impl Measurements {
    /// Nothing yet, about a server whose process may be known.
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
            last_member: histogram(),
        }
    }

    /// Reads what memory is used with so many connections.
    pub fn measure_memory(&mut self, connections: usize) {
        let server = self.server.and_then(|server| server.memory().ok());
        self.memory.push(MemorySample { connections, server, kernel: KernelMemory::now() });
    }

    /// All connections have been tried.
    pub fn opened(&mut self, clients: &mut Clients) {
        self.ramp = std::mem::take(&mut clients.stats);
        self.ramp_server =
            self.server.and_then(|server| Some(server.cpu().ok()?.since(self.server_at_start?)));
    }

    /// The measuring begins, for so long, if that is known.
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

    /// Takes a point of the timeline, if it is time.
    pub fn tick(&mut self, open: usize, tracker: &mut DeliveryTracker, now: RunTime) {
        let Some(window) = &mut self.window else { return };
        if window.next_point > now {
            return;
        }
        // Of a window whose length is not known, ever less is shown.
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

    /// Latencies from here on are kept apart from those before.
    pub fn split_latency(&mut self, tracker: &mut DeliveryTracker) {
        self.take_latency(tracker);
        self.latency_before = Some(std::mem::replace(&mut self.latency, histogram()));
    }

    /// A turn of the loop took so long.
    pub fn turned(&mut self, nanos: u64) {
        if self.window.is_some() {
            self.lag.saturating_record(nanos);
        }
    }

    /// The measuring ends. Latencies of what is still in flight are taken afterwards.
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
            server: spent(self.server, window.server),
            own: spent(Some(ProcessProbe::own()), window.own),
        });
    }

    /// The run is over.
    pub fn finish(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker) {
        self.take_latency(tracker);
        let behind: u64 = clients
            .iter_mut()
            .filter(|(_, client)| client.is_open())
            .map(|(_, client)| tracker.behind(&mut client.recipient))
            .sum();
        self.counts = tracker.counts;
        self.lost = tracker.counts.missing + behind;
        self.last_member = tracker.last_member.clone();
        self.after = std::mem::take(&mut clients.stats);
    }
}
