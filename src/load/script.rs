//! What happens when: the stages of a run.
//!
//! ```text
//! idle    Ramping -> Holding                              -> Done
//! fanout  Ramping -> Warming -> Measuring -> Collecting   -> Done
//! churn   the same; guests come and go while Measuring
//! slow    the same; in the second half of Measuring some members do not read
//! storm   Ramping -> Returning                            -> Done
//! ```

use std::time::Duration;

use super::attendance::Role;
use super::clock::Time;
use super::crowd::Crowd;
use super::findings::{Findings, Window};
use super::ledger::Ledger;
use super::pace::Pace;
use super::plan::{Plan, Scenario, Speed, Traffic};
use super::probe::Process;
use super::ramp::{Next, Ramp};
use super::storm::Storm;
use crate::client::frames;
use crate::ids::SlotId;

/// How much longer is waited for the last messages than the ledger waits for any of them.
const COLLECT_MARGIN: Duration = Duration::from_secs(1);

/// How long members that had stalled may take to read what waits for them.
const RESUME_TIMEOUT: Duration = Duration::from_secs(3);

/// The receive buffer of a member that is to stall: the kernel makes at least this much of it, and it is
/// soon full.
const STALLED_BUFFER_BYTES: usize = 4096;

/// Messages entered in one turn of the loop; in an open loop that is far behind, members have their turn
/// between.
const SENDS_PER_TURN: usize = 1_024;

/// The same in bytes: what comes back is read between, or a server that limits what waits for a member
/// would take us for slow.
const SEND_BYTES_PER_TURN: usize = 256 << 10;

/// Bytes that wait to be sent by one publisher in an open loop before it takes no more messages.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

/// A run's course.
pub struct Script {
    plan: Plan,
    stage: Stage,
    pace: Option<Pace>,
    payload: Vec<u8>,
    /// Is the next message due, and its publisher's socket full? An event will tell.
    is_held_up: bool,
    /// Guests begun.
    arrived: u64,
    /// What was found so far.
    pub found: Findings,
}

enum Stage {
    Ramping(Ramp),
    Holding { until: Time },
    Warming { until: Time },
    Measuring { until: Time, stall_at: Option<Time> },
    Collecting { until: Time },
    Returning(Storm),
    Done,
}

impl Script {
    /// A run at its beginning.
    pub fn new(plan: Plan, now: Time) -> Script {
        let server = plan.pid.map(|pid| Process { pid });
        let ramp = Ramp::new(plan.sockets(), plan.ramp, now);
        let payload = vec![b'.'; plan.traffic.map_or(0, |traffic| traffic.payload_bytes)];
        let mut found = Findings::new(server);
        found.measure_memory(0);
        Script {
            plan,
            stage: Stage::Ramping(ramp),
            pace: None,
            payload,
            is_held_up: false,
            arrived: 0,
            found,
        }
    }

    /// Ends the run early, with the measurements so far. Messages in flight may still arrive; a stage that waits for
    /// nothing ends at once.
    pub fn interrupt(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) {
        self.found.interrupted = true;
        match &mut self.stage {
            Stage::Ramping(ramp) => {
                self.found.ramp_seconds = ramp.seconds();
                self.found.opened(crowd);
                self.finish(crowd, ledger, now);
            }
            Stage::Warming { .. } => {
                self.pace = None;
                self.stage = Stage::Collecting { until: now.after(ledger.patience + COLLECT_MARGIN) };
            }
            Stage::Measuring { until, stall_at } => (*until, *stall_at) = (now, None),
            Stage::Holding { until } => *until = now,
            Stage::Returning(storm) => storm.give_up(now),
            Stage::Collecting { .. } | Stage::Done => {}
        }
    }

    /// Is it over?
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// When the next message is due, if no event announces it.
    pub fn next_send(&self, ledger: &Ledger, now: Time) -> Option<Time> {
        match &self.pace {
            // What the turn's budget has left.
            Some(Pace::Closed) => ledger.has_credit().then_some(now),
            Some(pace) if !self.is_held_up => pace.next(),
            _ => None,
        }
    }

    /// What the run is doing, in one word.
    pub fn word(&self) -> &'static str {
        match self.stage {
            Stage::Ramping(_) => "opening",
            Stage::Holding { .. } => "holding",
            Stage::Warming { .. } => "warming up",
            Stage::Measuring { .. } => "measuring",
            Stage::Collecting { .. } => "collecting",
            Stage::Returning(_) => "returning",
            Stage::Done => "done",
        }
    }

    /// How far the stage has come: in connections, or in milliseconds.
    pub fn progress(&self, crowd: &Crowd, now: Time) -> (u64, u64) {
        let traffic =
            |length: fn(&Traffic) -> Duration| self.plan.traffic.as_ref().map_or(Duration::ZERO, length);
        let (until, length) = match (&self.stage, self.plan.scenario) {
            (Stage::Ramping(_) | Stage::Returning(_), _) => {
                return (crowd.open() as u64, self.plan.sockets() as u64);
            }
            (Stage::Holding { until }, Scenario::Idle { hold }) => (until, hold),
            (Stage::Warming { until }, _) => (until, traffic(|traffic| traffic.warmup)),
            (Stage::Measuring { until, .. }, _) => (until, traffic(|traffic| traffic.duration)),
            _ => return (1, 1),
        };
        let left = Duration::from_nanos(until.nanos_since(now));
        (length.saturating_sub(left).as_millis() as u64, length.as_millis() as u64)
    }

    /// Does what is due in the stage, and goes on to the next when its time has come.
    ///
    /// # Errors
    /// The run cannot go on.
    pub fn steer(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) -> Result<(), String> {
        self.found.tick(crowd.open(), ledger, now);
        if self.is_deserted(crowd) {
            self.finish(crowd, ledger, now);
        }
        match &mut self.stage {
            Stage::Ramping(_) => self.ramp(crowd, ledger, now)?,
            Stage::Holding { until } if *until <= now => self.finish(crowd, ledger, now),
            Stage::Warming { until } if *until <= now => self.measure(crowd, ledger, now),
            Stage::Measuring { .. } => self.measuring(crowd, ledger, now),
            Stage::Collecting { until } if *until <= now || has_all(crowd, ledger) => {
                self.finish(crowd, ledger, now);
            }
            Stage::Returning(storm) => {
                if storm.steer(crowd, now) {
                    self.found.storm = Some(storm.figures());
                    self.found.close_window(crowd.open(), ledger, now);
                    self.found.measure_memory(crowd.open());
                    self.finish(crowd, ledger, now);
                }
            }
            Stage::Holding { .. } | Stage::Warming { .. } | Stage::Collecting { .. } | Stage::Done => {}
        }
        Ok(())
    }

    /// Is nobody left of those who were there?
    fn is_deserted(&self, crowd: &Crowd) -> bool {
        let has_members = !matches!(self.stage, Stage::Ramping(_) | Stage::Returning(_) | Stage::Done);
        has_members && crowd.open() + crowd.pending() == 0
    }

    fn ramp(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) -> Result<(), String> {
        let Stage::Ramping(ramp) = &mut self.stage else { return Ok(()) };
        let begun = ramp.begun();
        match ramp.next(crowd.pending(), now) {
            Next::Connect(count) => {
                for place in begun..begun + count {
                    let (role, channel, buffer) = seat(&self.plan, place);
                    crowd.connect(role, channel, buffer, now);
                }
                Ok(())
            }
            Next::Measure => {
                self.found.measure_memory(crowd.open());
                Ok(())
            }
            Next::Complete => {
                self.found.ramp_seconds = ramp.seconds();
                self.found.opened(crowd);
                if crowd.open() == 0 {
                    self.stage = Stage::Done;
                    return Ok(());
                }
                self.begin(crowd, ledger, now)
            }
        }
    }

    /// All are there.
    fn begin(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) -> Result<(), String> {
        match (self.plan.scenario, self.plan.traffic) {
            (Scenario::Idle { hold }, _) => {
                self.found.open_window(Some(hold), ledger, now);
                self.stage = Stage::Holding { until: now.after(hold) };
            }
            (Scenario::Storm { within }, _) => {
                self.found.open_window(None, ledger, now);
                self.stage = Stage::Returning(Storm::begin(&self.plan, crowd, within, now));
            }
            (_, Some(traffic)) => {
                self.appoint(&traffic, crowd, ledger)?;
                self.pace = Some(match traffic.speed {
                    Speed::Window(_) => Pace::closed(),
                    Speed::Rate(per_second) => Pace::open(per_second, now),
                });
                self.stage = Stage::Warming { until: now.after(traffic.warmup) };
                if traffic.warmup.is_zero() {
                    self.measure(crowd, ledger, now);
                }
            }
            (_, None) => self.stage = Stage::Done,
        }
        Ok(())
    }

    /// Chooses the publishers among those that are open.
    fn appoint(&self, traffic: &Traffic, crowd: &mut Crowd, ledger: &mut Ledger) -> Result<(), String> {
        let role = if traffic.publishers_apart { Role::Apart } else { Role::Regular };
        let channels = self.plan.channels as usize;
        let mut candidates: Vec<Vec<SlotId>> = vec![Vec::new(); channels];
        for (id, member) in crowd.iter_mut() {
            if member.is_open() && member.attendance.role == role {
                candidates[member.attendance.channel as usize].push(id);
            }
        }
        let window = match traffic.speed {
            Speed::Window(window) => window,
            Speed::Rate(_) => 0,
        };
        for number in 0..traffic.publishers {
            let channel = number % channels;
            let candidate = candidates[channel].get(number / channels).ok_or_else(|| {
                format!("channel {channel} has {} open members to publish", candidates[channel].len())
            })?;
            ledger.add_publisher(*candidate, window);
        }
        Ok(())
    }

    /// Enters the messages that are due.
    pub fn publish(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) {
        let Some(pace) = &mut self.pace else { return };
        let Some(traffic) = self.plan.traffic else { return };
        self.is_held_up = false;
        let sends = (SEND_BYTES_PER_TURN / traffic.payload_bytes.max(1)).clamp(1, SENDS_PER_TURN);
        for _ in 0..sends {
            let has_room = |id| {
                let member = crowd.get_mut(id);
                let has_room = member.is_none_or(|member| member.outbox.bytes() < BACKLOG_BYTES_MAX);
                self.is_held_up = !has_room;
                has_room
            };
            let Some((publisher, intended)) = pace.due(ledger, now, has_room) else { break };
            let id = ledger.publisher(publisher);
            let Some(member) = crowd.get_mut(id).filter(|member| member.is_open()) else {
                // The publisher is gone: its credit is void, its place in an open loop's round is not.
                self.found.unsent += u64::from(matches!(traffic.speed, Speed::Rate(_)));
                continue;
            };
            if member.outbox.is_empty() {
                self.found.lateness.saturating_record(now.nanos_since(intended));
            }
            ledger.send(publisher, intended).write(&mut self.payload);
            crowd.send(id, frames::message(traffic.is_text, &self.payload));
        }
    }

    fn measure(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) {
        let Some(traffic) = self.plan.traffic else { return };
        self.found.open_window(Some(traffic.duration), ledger, now);
        let stall_at = (self.plan.stalled() > 0).then(|| now.after(traffic.duration / 2));
        self.stage = Stage::Measuring { until: now.after(traffic.duration), stall_at };
        if let Scenario::Churn { stay, .. } = self.plan.scenario {
            crowd.stay = stay;
        }
    }

    fn measuring(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) {
        let Stage::Measuring { until, stall_at } = self.stage else { return };
        if stall_at.is_some_and(|stall_at| stall_at <= now) {
            self.stage = Stage::Measuring { until, stall_at: None };
            self.stall(crowd, ledger);
        }
        if now < until {
            self.receive_guests(crowd, now);
            return;
        }
        // What was due since the last turn; what a server keeps us from sending stays unsent.
        self.publish(crowd, ledger, Time::from_nanos(until.nanos() - 1));
        if let Some(pace) = self.pace.take() {
            self.found.unsent += pace.backlog(until);
        }
        self.found.close_window(crowd.open(), ledger, now);
        self.found.measure_memory(crowd.open());
        // They read again, to learn what they were told.
        crowd.resume_stalled();
        let timeout = if self.plan.stalled() > 0 { RESUME_TIMEOUT } else { ledger.patience + COLLECT_MARGIN };
        self.stage = Stage::Collecting { until: now.after(timeout) };
    }

    /// Begins the guests' connections that are due.
    fn receive_guests(&mut self, crowd: &mut Crowd, now: Time) {
        let Scenario::Churn { arrivals_per_second, .. } = self.plan.scenario else { return };
        let Some(Window { from, .. }) = self.found.window else { return };
        let due = (now.seconds_since(from) * arrivals_per_second) as u64;
        while self.arrived < due {
            let channel = (self.arrived % u64::from(self.plan.channels)) as u32;
            crowd.connect(Role::Guest, channel, None, now);
            self.arrived += 1;
        }
    }

    /// Some members read no more. Nobody waits for them from here on.
    fn stall(&mut self, crowd: &mut Crowd, ledger: &mut Ledger) {
        self.found.split_latency(ledger);
        for (_, member) in crowd.iter_mut() {
            if member.is_open() && member.attendance.role == Role::Slow {
                member.stall();
                ledger.stalled(&mut member.attendance);
            }
        }
    }

    fn finish(&mut self, crowd: &mut Crowd, ledger: &mut Ledger, now: Time) {
        self.found.open_at_end = crowd.open();
        self.found.close_window(crowd.open(), ledger, now);
        self.found.finish(crowd, ledger);
        self.stage = Stage::Done;
    }
}

/// Is there nothing more to wait for?
fn has_all(crowd: &mut Crowd, ledger: &Ledger) -> bool {
    ledger.in_flight() == 0 && crowd.iter_mut().all(|(_, member)| member.attendance.role != Role::Stalled)
}

/// What the connection at a place is there for, its channel, and its receive buffer.
fn seat(plan: &Plan, place: usize) -> (Role, u32, Option<usize>) {
    let channel = |place: usize| (place % plan.channels as usize) as u32;
    if place >= plan.connections {
        return (Role::Apart, channel(place - plan.connections), None);
    }
    if place >= plan.connections - plan.stalled() {
        return (Role::Slow, channel(place), Some(STALLED_BUFFER_BYTES));
    }
    (Role::Regular, channel(place), None)
}
