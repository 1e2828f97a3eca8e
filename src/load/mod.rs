//! The load generator behind `oyez bench`: a second, smaller loop.
//!
//! It is built of the server's own parts (outboxes, ids, tokens) and by its habits: one thread, one slab,
//! a turn of named phases. Members cost it a read and a walk over headers for each batch of frames, and
//! no allocation; so that one thread can keep up with a server that has one too, and its own share can
//! be told from the server's.
//!
//! - **wait** for events, or for the time at which the next message is due;
//! - **note** flags clients, and does nothing else;
//! - **drive** reads: it asks the time after each read, since that is what is measured;
//! - **reap** before **steer**, so that whoever has ended is not waited for;
//! - **steer** opens connections and goes from stage to stage;
//! - **publish** after both, since what clients got may let a closed loop go on;
//! - **flush** writes; **sweep** looks for deadlines.

pub mod assertion;
pub mod chart;
pub mod child;
pub mod client;
pub mod clients;
pub mod clock;
pub mod connection_stats;
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

/// Events taken in one wait. Fewer than the server's: a message that is due waits for the turn's end.
const EVENTS_PER_TURN: usize = 256;

/// The longest wait. Stages end, and guests come and go, no more exactly than that.
const TICK: Duration = Duration::from_millis(10);

/// How often somebody who watches is told.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How a run stands, for somebody who watches.
#[derive(Clone, Copy, Debug)]
pub struct RunProgress {
    /// What it is doing.
    pub stage: &'static str,
    /// How far that has come, of `steps`.
    pub step: u64,
    /// How much there is of it.
    pub steps: u64,
    /// Members that are open.
    pub open: usize,
    /// Messages that clients got.
    pub deliveries: u64,
    /// RunTime since the run was born.
    pub since_birth: Duration,
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

/// Does a run. The child, if there is one, is watched, so that its end is not taken for the clients'.
///
/// # Errors
/// Says in one line why there is nothing to report.
pub fn run(
    plan: Plan,
    child: Option<&mut ChildServer>,
    mut watch: impl FnMut(RunProgress),
) -> Result<Measurements, String> {
    let mut bench = BenchLoop::new(plan, child).map_err(|error| error.to_string())?;
    while !bench.scenario.is_done() {
        bench.turn(&mut watch)?;
    }
    Ok(bench.scenario.measurements)
}

/// The signals that end a run. A terminal that closes sends SIGHUP, unless the run was started with `nohup`.
fn signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // proc_pid_status(5): the lowest bit is signal 1.
    let is_ignored = |signal: i32| ignored >> (signal - 1) & 1 == 1;
    [SIGTERM, SIGINT, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP)).collect()
}

impl<'a> BenchLoop<'a> {
    fn new(plan: Plan, child: Option<&'a mut ChildServer>) -> io::Result<BenchLoop<'a>> {
        let poll = Poll::new()?;
        let mut signals = Signals::new(signals())?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        let timer = Timer::new(poll.registry(), TIMER)?;
        let clock = RunClock::new();
        let now = clock.now();
        let clients = Clients::new(plan.target.clone(), poll.registry().try_clone()?);
        // Which run a message is of: process ids do not come again soon.
        let mut tracker = DeliveryTracker::new(std::process::id() as u16, plan.channels);
        if let Some(traffic) = plan.traffic {
            tracker.patience = traffic.patience;
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
        if self.note() {
            self.interrupt()?;
        }
        let BenchLoop { clients, tracker, scenario, clock, .. } = self;
        clients.drive(tracker, clock);
        clients.reap(tracker);
        let now = clock.now();
        scenario.steer(clients, tracker, now)?;
        scenario.publish(clients, tracker, now);
        clients.flush(now);
        clients.sweep(now);
        tracker.abandon(now);
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

    /// Returns true if a signal came.
    fn note(&mut self) -> bool {
        let mut is_signalled = false;
        for event in &self.events {
            match event.token() {
                TIMER => {}
                SIGNALS => is_signalled |= self.signals.pending().count() > 0,
                _ => self.clients.note(event),
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
            since_birth: Duration::from_nanos(now.nanos()),
        });
        match self.child.as_mut().and_then(|child| child.ended()) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}
