//! What a run found out, gathered while it lasts.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::clock::Time;
use super::crowd::Crowd;
use super::ledger::{Counts, Ledger};
use super::probe::{Cpu, Kernel, Memory, Process, Spent};
use super::storm;
use super::tally::{Tally, histogram};

/// Points on the timeline, where the run is long enough.
const TIMELINE_POINTS: u32 = 100;

/// The shortest interval that is known to be no accident: a server's turn takes some milliseconds.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// The same for a storm, which can be over in a tenth of a second.
const STORM_INTERVAL: Duration = Duration::from_millis(2);

/// Everything that a report is made of.
pub struct Findings {
    server: Option<Process>,
    /// What the server had used before the first connection.
    server_at_start: Option<Cpu>,
    /// What became of connections while they were opened.
    pub ramp: Tally,
    /// Seconds in which they were opened.
    pub ramp_seconds: f64,
    /// What the server used of the processors to open them.
    pub ramp_server: Option<Spent>,
    /// True if a signal ended the run early.
    pub interrupted: bool,
    /// Connections that were open at the end.
    pub open_at_end: usize,
    /// What became of them afterwards, and of guests.
    pub after: Tally,
    /// Memory at several numbers of connections.
    pub memory: Vec<MemoryPoint>,
    /// Over the window that is measured.
    pub timeline: Vec<Point>,
    /// The window that is open.
    pub window: Option<Window>,
    /// The window that was measured.
    pub measured: Option<Measured>,
    /// From the intended time to each member, in nanoseconds.
    pub latency: Histogram<u64>,
    /// The same, before members stalled.
    pub latency_before: Option<Histogram<u64>>,
    /// Messages that were due and never sent.
    pub unsent: u64,
    /// How late messages were entered for which there was room: our own fault.
    pub lateness: Histogram<u64>,
    /// How long the loop's turns took: an event may have waited so long.
    pub lag: Histogram<u64>,
    /// How a storm went.
    pub storm: Option<storm::Figures>,
    /// Messages that members should have got and have not.
    pub lost: u64,
    /// All other counts.
    pub counts: Counts,
    /// From the intended time to the last member, in nanoseconds.
    pub last_member: Histogram<u64>,
}

/// Memory at one number of connections.
#[derive(Clone, Copy, Debug)]
pub struct MemoryPoint {
    /// How many were open.
    pub connections: usize,
    /// The server's.
    pub server: Option<Memory>,
    /// The kernel's, for both ends if the server is on this machine.
    pub kernel: Kernel,
}

/// One interval of the timeline.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// When it ended, in seconds from the start of the window.
    pub seconds: f64,
    /// Messages that members got in it.
    pub deliveries: u64,
    /// Connections open at its end.
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
    pub from: Time,
    interval: Duration,
    next_point: Time,
    counts: Counts,
    server: Option<Cpu>,
    own: Option<Cpu>,
}

/// What was measured over a window.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Its length.
    pub seconds: f64,
    /// Messages that members got in it.
    pub deliveries: u64,
    /// Messages sent in it.
    pub sent: u64,
    /// What the server used of the processors.
    pub server: Option<Spent>,
    /// What we used.
    pub own: Option<Spent>,
}

impl Findings {
    /// Nothing yet, about a server whose process may be known.
    pub fn new(server: Option<Process>) -> Findings {
        Findings {
            server,
            server_at_start: server.and_then(|server| server.cpu().ok()),
            ramp: Tally::new(),
            ramp_seconds: 0.0,
            ramp_server: None,
            interrupted: false,
            open_at_end: 0,
            after: Tally::new(),
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
            counts: Counts::default(),
            last_member: histogram(),
        }
    }

    /// Reads what memory is used with so many connections.
    pub fn measure_memory(&mut self, connections: usize) {
        let server = self.server.and_then(|server| server.memory().ok());
        self.memory.push(MemoryPoint { connections, server, kernel: Kernel::now() });
    }

    /// All connections have been tried.
    pub fn opened(&mut self, crowd: &mut Crowd) {
        self.ramp = std::mem::take(&mut crowd.tally);
        self.ramp_server =
            self.server.and_then(|server| Some(server.cpu().ok()?.since(self.server_at_start?)));
    }

    /// The measuring begins, for so long, if that is known.
    pub fn open_window(&mut self, length: Option<Duration>, ledger: &mut Ledger, now: Time) {
        let interval = length.map_or(STORM_INTERVAL, |length| (length / TIMELINE_POINTS).max(INTERVAL_MIN));
        ledger.measured_from = Some(now);
        ledger.interval.clear();
        self.lag.reset();
        self.lateness.reset();
        self.window = Some(Window {
            from: now,
            interval,
            next_point: now.after(interval),
            counts: ledger.counts,
            server: self.server.and_then(|server| server.cpu().ok()),
            own: Process::own().cpu().ok(),
        });
    }

    /// Takes a point of the timeline, if it is time.
    pub fn tick(&mut self, open: usize, ledger: &mut Ledger, now: Time) {
        let Some(window) = &mut self.window else { return };
        if window.next_point > now {
            return;
        }
        // Of a window whose length is not known, ever less is shown.
        let elapsed = Duration::from_nanos(now.nanos_since(window.from));
        window.next_point = now.after(window.interval.max(elapsed / TIMELINE_POINTS));
        let seconds = elapsed.as_secs_f64();
        self.take_point(seconds, open, ledger);
    }

    fn take_point(&mut self, seconds: f64, open: usize, ledger: &mut Ledger) {
        let latency = &ledger.interval.latency;
        self.timeline.push(Point {
            seconds,
            deliveries: ledger.interval.deliveries,
            open,
            p50: latency.value_at_quantile(0.5),
            p99: latency.value_at_quantile(0.99),
            max: latency.max(),
        });
        self.take_latency(ledger);
    }

    fn take_latency(&mut self, ledger: &mut Ledger) {
        self.latency.add(&ledger.interval.latency).expect("both have the same bounds");
        ledger.interval.clear();
    }

    /// Latencies from here on are kept apart from those before.
    pub fn split_latency(&mut self, ledger: &mut Ledger) {
        self.take_latency(ledger);
        self.latency_before = Some(std::mem::replace(&mut self.latency, histogram()));
    }

    /// A turn of the loop took so long.
    pub fn turned(&mut self, nanos: u64) {
        if self.window.is_some() {
            self.lag.saturating_record(nanos);
        }
    }

    /// The measuring ends. Latencies of what is still in flight are taken afterwards.
    pub fn close_window(&mut self, open: usize, ledger: &mut Ledger, now: Time) {
        let Some(window) = self.window.take() else { return };
        self.take_point(now.seconds_since(window.from), open, ledger);
        let spent =
            |process: Option<Process>, earlier: Option<Cpu>| Some(process?.cpu().ok()?.since(earlier?));
        self.measured = Some(Measured {
            seconds: now.seconds_since(window.from),
            deliveries: ledger.counts.deliveries - window.counts.deliveries,
            sent: ledger.counts.sent - window.counts.sent,
            server: spent(self.server, window.server),
            own: spent(Some(Process::own()), window.own),
        });
    }

    /// The run is over.
    pub fn finish(&mut self, crowd: &mut Crowd, ledger: &mut Ledger) {
        self.take_latency(ledger);
        let behind: u64 = crowd
            .iter_mut()
            .filter(|(_, member)| member.is_open())
            .map(|(_, member)| ledger.behind(&mut member.attendance))
            .sum();
        self.counts = ledger.counts;
        self.lost = ledger.counts.missing + behind;
        self.last_member = ledger.last_member.clone();
        self.after = std::mem::take(&mut crowd.tally);
    }
}
