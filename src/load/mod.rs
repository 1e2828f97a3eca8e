//! The load generator of `oyez bench`: a second, smaller event loop.
//!
//! It reuses parts of the server (outboxes, ids, tokens) and its structure: one thread, one slab, a turn of named
//! phases. A batch of frames costs one read and a scan of the frame headers, without an allocation. So one thread can
//! keep up with a server of one thread, and the report can separate the processor time of the two.
//!
//! - **wait** for events, or until the next message is due;
//! - **mark** marks clients by their events;
//! - **read** reads ready clients. It reads the clock after each read, since that is the time that is measured;
//! - **reap** removes ended clients, before **advance**, which would otherwise wait for them;
//! - **advance** opens connections and goes from stage to stage;
//! - **publish** follows both, since deliveries allow a closed loop to send;
//! - **flush** writes; **expire** handles deadlines.

pub mod assertion;
pub mod chart;
pub mod child;
pub mod client;
pub mod clients;
pub mod clock;
pub mod connection_stats;
pub mod content;
pub mod delivery_tracker;
pub mod measurements;
pub mod page;
pub mod pin;
pub mod plan;
pub mod preflight;
pub mod probe;
pub mod ramp;
pub mod received;
pub mod recipient;
pub mod reconnect_storm;
pub mod report;
pub mod scenario;
pub mod send_schedule;
pub mod send_timestamp;
mod summary;
pub mod target;
pub mod text;
mod timer;
pub mod validity;

use std::io;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use child::ChildServer;
use clients::Clients;
use clock::{RunClock, RunTime};
use delivery_tracker::DeliveryTracker;
use measurements::Measurements;
use plan::Plan;
use scenario::Scenario;
use timer::Timer;

const SIGNALS: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// Maximum events per wait. Fewer than in the server, since a due message waits for the end of the turn.
const EVENTS_PER_TURN: usize = 256;

/// Maximum wait, and so the accuracy of stages and of short-lived clients.
const TICK: Duration = Duration::from_millis(10);

/// Interval between two calls of the progress callback.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The progress of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunProgress {
    /// Name of the stage.
    pub stage: &'static str,
    /// Completed part of the stage, of `steps`.
    pub step: u64,
    /// Length of the stage.
    pub steps: u64,
    /// Number of open clients.
    pub open: usize,
    /// Messages that clients got.
    pub deliveries: u64,
    /// Time since the start of the run.
    pub since_start: Duration,
}

/// The handlers of the signals that end a run.
pub struct RunSignals(Signals);

impl RunSignals {
    /// Installs the handlers. Call it before anything that takes time: without a handler a signal ends the process, and
    /// a server that it has started is not stopped in order. Signals that arrive before the run starts interrupt it at
    /// once.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn install() -> io::Result<RunSignals> {
        Signals::new(signals()).map(RunSignals)
    }
}

struct BenchLoop<'a> {
    poll: Poll,
    events: Events,
    signals: Signals,
    timer: Timer,
    clock: RunClock,
    clients: Clients,
    tracker: DeliveryTracker,
    scenario: Scenario,
    child: Option<&'a mut ChildServer>,
    woke: RunTime,
    next_watch: RunTime,
}

/// Runs the plan. The child server, if there is one, is monitored, so that its exit is not reported as a failure of
/// the clients.
///
/// # Errors
/// Why there is nothing to report, in one line.
pub fn run(
    plan: Plan,
    child: Option<&mut ChildServer>,
    signals: RunSignals,
    mut watch: impl FnMut(RunProgress),
) -> Result<Measurements, String> {
    let mut bench = BenchLoop::new(plan, child, signals).map_err(|error| error.to_string())?;
    while !bench.scenario.is_done() {
        bench.turn(&mut watch)?;
    }
    Ok(bench.scenario.measurements)
}

/// The signals that end a run. A closed terminal sends SIGHUP, unless the run was started with `nohup`.
fn signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // proc_pid_status(5): the lowest bit is signal 1.
    let is_ignored = |signal: i32| ignored >> (signal - 1) & 1 == 1;
    [SIGTERM, SIGINT, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP)).collect()
}

impl<'a> BenchLoop<'a> {
    fn new(
        plan: Plan,
        child: Option<&'a mut ChildServer>,
        RunSignals(mut signals): RunSignals,
    ) -> io::Result<BenchLoop<'a>> {
        let poll = Poll::new()?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let clock = RunClock::new();
        let now = clock.now();
        let clients = Clients::new(plan.target.clone(), poll.registry().try_clone()?);
        // Identifies the messages of this run: process ids are not reused soon.
        let mut tracker = DeliveryTracker::new(std::process::id() as u16, plan.channels);
        if let Some(traffic) = plan.traffic {
            tracker.delivery_timeout = traffic.patience;
        }
        Ok(BenchLoop {
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            signals,
            timer,
            clock,
            clients,
            tracker,
            scenario: Scenario::new(plan, now),
            child,
            woke: now,
            next_watch: now,
        })
    }

    fn turn(&mut self, watch: &mut impl FnMut(RunProgress)) -> Result<(), String> {
        self.wait().map_err(|error| format!("the poll failed: {error}"))?;
        if self.mark() {
            self.interrupt()?;
        }
        let BenchLoop { clients, tracker, scenario, clock, .. } = self;
        clients.read(tracker, clock);
        clients.reap(tracker);
        let now = clock.now();
        scenario.advance(clients, tracker, now)?;
        scenario.publish(clients, tracker, now);
        clients.flush(now);
        clients.expire(now);
        tracker.abandon_overdue(now);
        self.watch(watch, now)
    }

    fn wait(&mut self) -> io::Result<()> {
        let now = self.clock.now();
        self.scenario.measurements.turned(now.nanos_since(self.woke));
        let mut timeout = TICK;
        if let Some(next) = self.scenario.next_send(&self.tracker, now) {
            if next <= now {
                timeout = Duration::ZERO;
            } else {
                self.timer.arm(next, now)?;
            }
        }
        if self.clients.has_work() {
            timeout = Duration::ZERO;
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        self.woke = self.clock.now();
        Ok(())
    }

    /// Returns true if a signal arrived.
    fn mark(&mut self) -> bool {
        let mut is_signalled = false;
        for event in &self.events {
            match event.token() {
                TIMER => {}
                SIGNALS => is_signalled |= self.signals.pending().count() > 0,
                _ => self.clients.mark(event),
            }
        }
        is_signalled
    }

    /// The first signal ends the run with a report of the measurements so far, the second without one.
    fn interrupt(&mut self) -> Result<(), String> {
        let BenchLoop { clients, tracker, scenario, clock, .. } = self;
        if scenario.measurements.interrupted {
            return Err("interrupted twice".to_owned());
        }
        scenario.interrupt(clients, tracker, clock.now());
        Ok(())
    }

    fn watch(&mut self, watch: &mut impl FnMut(RunProgress), now: RunTime) -> Result<(), String> {
        if self.next_watch > now {
            return Ok(());
        }
        self.next_watch = now.after(WATCH_INTERVAL);
        let (step, steps) = self.scenario.progress(&self.clients, now);
        watch(RunProgress {
            stage: self.scenario.stage_name(),
            step,
            steps,
            open: self.clients.open(),
            deliveries: self.tracker.counts.deliveries,
            since_start: Duration::from_nanos(now.nanos()),
        });
        match self.child.as_mut().and_then(|child| child.ended()) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}
