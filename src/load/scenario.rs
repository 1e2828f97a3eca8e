//! What happens when: the stages of a run.
//!
//! ```text
//! idle    Ramping -> Holding                              -> Done
//! fanout  Ramping -> Warming -> Measuring -> Collecting   -> Done
//! churn   the same; short-lived clients come and go while Measuring
//! slow    the same; in the second half of Measuring some clients do not read
//! storm   Ramping -> Returning                            -> Done
//! ```

use std::time::Duration;

use super::clients::Clients;
use super::clock::RunTime;
use super::content;
use super::delivery_tracker::DeliveryTracker;
use super::measurements::{Measurements, Window};
use super::plan::{Plan, Speed, Traffic, Workload};
use super::probe::ProcessProbe;
use super::ramp::{Next, Ramp};
use super::recipient::Role;
use super::reconnect_storm::ReconnectStorm;
use super::send_schedule::SendSchedule;
use crate::client::frames;
use crate::ids::SlotId;

/// Time to wait for the last messages, in addition to the timeout of a message.
const COLLECT_MARGIN: Duration = Duration::from_secs(1);

/// Maximum time for stalled clients to read their queued messages.
const RESUME_TIMEOUT: Duration = Duration::from_secs(3);

/// Receive buffer of a client that will stall: the kernel allocates at least this much, and it fills soon.
const STALLED_BUFFER_BYTES: usize = 4096;

/// Maximum messages sent in one turn of the loop. In an open loop that is late, clients are read in between.
const SENDS_PER_TURN: usize = 1_024;

/// Maximum bytes sent in one turn of the loop. Messages are read in between, or a server that limits the queue of a
/// client would treat the load generator as slow.
const SEND_BYTES_PER_TURN: usize = 256 << 10;

/// Maximum bytes in a publisher's outbox in an open loop before it takes no further messages.
const BACKLOG_BYTES_MAX: usize = 1 << 20;

/// The stages of a run, and the current one.
pub struct Scenario {
    plan: Plan,
    stage: ScenarioStage,
    schedule: Option<SendSchedule>,
    payload: Vec<u8>,
    /// The next message is due, but its publisher's socket is full; an event will announce room.
    is_blocked: bool,
    /// Number of short-lived clients connected so far.
    arrived: u64,
    /// The measurements so far.
    pub measurements: Measurements,
}

enum ScenarioStage {
    Ramping(Ramp),
    Holding { until: RunTime },
    Warming { until: RunTime },
    Measuring { until: RunTime, stall_at: Option<RunTime> },
    Collecting { until: RunTime },
    Returning(ReconnectStorm),
    Done,
}

impl Scenario {
    /// A run before its first connection.
    pub fn new(plan: Plan, now: RunTime) -> Scenario {
        let server = plan.pid.map(|pid| ProcessProbe { pid });
        let ramp = Ramp::new(plan.sockets(), plan.ramp, now);
        let payload = vec![b'.'; plan.traffic.map_or(0, |traffic| traffic.payload_bytes)];
        let mut measurements = Measurements::new(server);
        measurements.measure_memory(0);
        Scenario {
            plan,
            stage: ScenarioStage::Ramping(ramp),
            schedule: None,
            payload,
            is_blocked: false,
            arrived: 0,
            measurements,
        }
    }

    /// Ends the run early, with the measurements so far. Messages in flight may still arrive; other stages end at
    /// once.
    pub fn interrupt(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker, now: RunTime) {
        self.measurements.interrupted = true;
        match &mut self.stage {
            ScenarioStage::Ramping(ramp) => {
                self.measurements.ramp_seconds = ramp.seconds();
                self.measurements.opened(clients);
                self.finish(clients, tracker, now);
            }
            ScenarioStage::Warming { .. } => {
                self.schedule = None;
                self.stage =
                    ScenarioStage::Collecting { until: now.after(tracker.delivery_timeout + COLLECT_MARGIN) };
            }
            ScenarioStage::Measuring { until, stall_at } => (*until, *stall_at) = (now, None),
            ScenarioStage::Holding { until } => *until = now,
            ScenarioStage::Returning(storm) => storm.give_up(now),
            ScenarioStage::Collecting { .. } | ScenarioStage::Done => {}
        }
    }

    /// Returns true after the last stage.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, ScenarioStage::Done)
    }

    /// Time of the next message, if no event announces it.
    pub fn next_send(&self, tracker: &DeliveryTracker, now: RunTime) -> Option<RunTime> {
        match &self.schedule {
            // Messages that exceeded the budget of the turn.
            Some(SendSchedule::Closed) => tracker.has_credit().then_some(now),
            Some(schedule) if !self.is_blocked => schedule.next(),
            _ => None,
        }
    }

    /// Name of the stage, for the progress display.
    pub fn stage_name(&self) -> &'static str {
        match self.stage {
            ScenarioStage::Ramping(_) => "opening",
            ScenarioStage::Holding { .. } => "holding",
            ScenarioStage::Warming { .. } => "warming up",
            ScenarioStage::Measuring { .. } => "measuring",
            ScenarioStage::Collecting { .. } => "collecting",
            ScenarioStage::Returning(_) => "returning",
            ScenarioStage::Done => "done",
        }
    }

    /// Progress and length of the stage, in connections or in milliseconds.
    pub fn progress(&self, clients: &Clients, now: RunTime) -> (u64, u64) {
        let traffic =
            |length: fn(&Traffic) -> Duration| self.plan.traffic.as_ref().map_or(Duration::ZERO, length);
        let (until, length) = match (&self.stage, self.plan.workload) {
            (ScenarioStage::Ramping(_) | ScenarioStage::Returning(_), _) => {
                return (clients.open() as u64, self.plan.sockets() as u64);
            }
            (ScenarioStage::Holding { until }, Workload::Idle { hold }) => (until, hold),
            (ScenarioStage::Warming { until }, _) => (until, traffic(|traffic| traffic.warmup)),
            (ScenarioStage::Measuring { until, .. }, _) => (until, traffic(|traffic| traffic.duration)),
            _ => return (1, 1),
        };
        let left = Duration::from_nanos(until.nanos_since(now));
        (length.saturating_sub(left).as_millis() as u64, length.as_millis() as u64)
    }

    /// Does the due work of the stage, and starts the next stage.
    ///
    /// # Errors
    /// The run cannot continue.
    pub fn advance(
        &mut self,
        clients: &mut Clients,
        tracker: &mut DeliveryTracker,
        now: RunTime,
    ) -> Result<(), String> {
        self.measurements.tick(clients.open(), tracker, now);
        if self.has_no_clients(clients) {
            self.finish(clients, tracker, now);
        }
        match &mut self.stage {
            ScenarioStage::Ramping(_) => self.ramp(clients, tracker, now)?,
            ScenarioStage::Holding { until } if *until <= now => self.finish(clients, tracker, now),
            ScenarioStage::Warming { until } if *until <= now => self.measure(clients, tracker, now),
            ScenarioStage::Measuring { .. } => self.measuring(clients, tracker, now),
            ScenarioStage::Collecting { until } if *until <= now || has_all_deliveries(clients, tracker) => {
                self.finish(clients, tracker, now);
            }
            ScenarioStage::Returning(storm) => {
                if storm.advance(clients, now) {
                    self.measurements.storm = Some(storm.figures());
                    self.measurements.close_window(clients.open(), tracker, now);
                    self.measurements.measure_memory(clients.open());
                    self.finish(clients, tracker, now);
                }
            }
            ScenarioStage::Holding { .. }
            | ScenarioStage::Warming { .. }
            | ScenarioStage::Collecting { .. }
            | ScenarioStage::Done => {}
        }
        Ok(())
    }

    /// Returns true if all clients are gone.
    fn has_no_clients(&self, clients: &Clients) -> bool {
        let expects_clients = !matches!(
            self.stage,
            ScenarioStage::Ramping(_) | ScenarioStage::Returning(_) | ScenarioStage::Done
        );
        expects_clients && clients.open() + clients.pending() == 0
    }

    fn ramp(
        &mut self,
        clients: &mut Clients,
        tracker: &mut DeliveryTracker,
        now: RunTime,
    ) -> Result<(), String> {
        let ScenarioStage::Ramping(ramp) = &mut self.stage else { return Ok(()) };
        let begun = ramp.begun();
        match ramp.next(clients.pending(), now) {
            Next::Connect(count) => {
                for place in begun..begun + count {
                    let (role, channel, buffer) = assignment(&self.plan, place);
                    clients.connect(role, channel, buffer, now);
                }
                Ok(())
            }
            Next::Measure => {
                self.measurements.measure_memory(clients.open());
                Ok(())
            }
            Next::Complete => {
                self.measurements.ramp_seconds = ramp.seconds();
                self.measurements.opened(clients);
                if clients.open() == 0 {
                    self.stage = ScenarioStage::Done;
                    return Ok(());
                }
                self.begin(clients, tracker, now)
            }
        }
    }

    /// Starts the load after the ramp.
    fn begin(
        &mut self,
        clients: &mut Clients,
        tracker: &mut DeliveryTracker,
        now: RunTime,
    ) -> Result<(), String> {
        match (self.plan.workload, self.plan.traffic) {
            (Workload::Idle { hold }, _) => {
                self.measurements.open_window(Some(hold), tracker, now);
                self.stage = ScenarioStage::Holding { until: now.after(hold) };
            }
            (Workload::Storm { within }, _) => {
                self.measurements.open_window(None, tracker, now);
                self.stage =
                    ScenarioStage::Returning(ReconnectStorm::begin(&self.plan, clients, within, now));
            }
            (_, Some(traffic)) => {
                self.choose_publishers(&traffic, clients, tracker)?;
                self.schedule = Some(match traffic.speed {
                    Speed::Window(_) => SendSchedule::closed(),
                    Speed::Rate(per_second) => SendSchedule::open(per_second, now),
                });
                self.stage = ScenarioStage::Warming { until: now.after(traffic.warmup) };
                if traffic.warmup.is_zero() {
                    self.measure(clients, tracker, now);
                }
            }
            (_, None) => self.stage = ScenarioStage::Done,
        }
        Ok(())
    }

    /// Chooses the publishers among the open clients.
    fn choose_publishers(
        &self,
        traffic: &Traffic,
        clients: &mut Clients,
        tracker: &mut DeliveryTracker,
    ) -> Result<(), String> {
        let role = if traffic.publishers_apart { Role::Apart } else { Role::Regular };
        let channels = self.plan.channels as usize;
        let mut candidates: Vec<Vec<SlotId>> = vec![Vec::new(); channels];
        for (id, client) in clients.iter_mut() {
            if client.is_open() && client.recipient.role == role {
                candidates[client.recipient.channel as usize].push(id);
            }
        }
        let window = match traffic.speed {
            Speed::Window(window) => window,
            Speed::Rate(_) => 0,
        };
        for number in 0..traffic.publishers {
            let channel = number % channels;
            let candidate = candidates[channel].get(number / channels).ok_or_else(|| {
                format!("channel {channel} has {} open clients to publish", candidates[channel].len())
            })?;
            tracker.add_publisher(*candidate, window);
        }
        Ok(())
    }

    /// Sends the messages that are due.
    pub fn publish(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker, now: RunTime) {
        let Some(schedule) = &mut self.schedule else { return };
        let Some(traffic) = self.plan.traffic else { return };
        self.is_blocked = false;
        let sends = (SEND_BYTES_PER_TURN / traffic.payload_bytes.max(1)).clamp(1, SENDS_PER_TURN);
        for _ in 0..sends {
            let has_room = |id| {
                let client = clients.get_mut(id);
                let has_room = client.is_none_or(|client| client.outbox.bytes() < BACKLOG_BYTES_MAX);
                self.is_blocked = !has_room;
                has_room
            };
            let Some((publisher, intended)) = schedule.due(tracker, now, has_room) else { break };
            let id = tracker.publisher(publisher);
            let Some(client) = clients.get_mut(id).filter(|client| client.is_open()) else {
                // The publisher is gone. Its credit is dropped; in an open loop its turn is counted as unsent.
                self.measurements.unsent += u64::from(matches!(traffic.speed, Speed::Rate(_)));
                continue;
            };
            if client.outbox.is_empty() {
                self.measurements.lateness.saturating_record(now.nanos_since(intended));
            }
            let timestamp = tracker.send(publisher, intended);
            timestamp.write(&mut self.payload);
            if self.plan.target.offers_deflate {
                content::fill(&mut self.payload, timestamp.sequence);
            }
            clients.send(id, frames::message(traffic.is_text, &self.payload));
        }
    }

    fn measure(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker, now: RunTime) {
        let Some(traffic) = self.plan.traffic else { return };
        self.measurements.open_window(Some(traffic.duration), tracker, now);
        let stall_at = (self.plan.stalled() > 0).then(|| now.after(traffic.duration / 2));
        self.stage = ScenarioStage::Measuring { until: now.after(traffic.duration), stall_at };
        if let Workload::Churn { stay, .. } = self.plan.workload {
            clients.stay = stay;
        }
    }

    fn measuring(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker, now: RunTime) {
        let ScenarioStage::Measuring { until, stall_at } = self.stage else { return };
        if stall_at.is_some_and(|stall_at| stall_at <= now) {
            self.stage = ScenarioStage::Measuring { until, stall_at: None };
            self.stall(clients, tracker);
        }
        if now < until {
            self.connect_short_lived(clients, now);
            return;
        }
        // Messages due since the last turn. Messages that the server's backpressure prevents stay unsent.
        self.publish(clients, tracker, RunTime::from_nanos(until.nanos() - 1));
        if let Some(schedule) = self.schedule.take() {
            self.measurements.unsent += schedule.backlog(until);
        }
        self.measurements.close_window(clients.open(), tracker, now);
        self.measurements.measure_memory(clients.open());
        // Stalled clients read again, to receive their close frames.
        clients.resume_stalled();
        let timeout =
            if self.plan.stalled() > 0 { RESUME_TIMEOUT } else { tracker.delivery_timeout + COLLECT_MARGIN };
        self.stage = ScenarioStage::Collecting { until: now.after(timeout) };
    }

    /// Connects the short-lived clients that are due.
    fn connect_short_lived(&mut self, clients: &mut Clients, now: RunTime) {
        let Workload::Churn { arrivals_per_second, .. } = self.plan.workload else { return };
        let Some(Window { from, .. }) = self.measurements.window else { return };
        let due = (now.seconds_since(from) * arrivals_per_second) as u64;
        while self.arrived < due {
            let channel = (self.arrived % u64::from(self.plan.channels)) as u32;
            clients.connect(Role::ShortLived, channel, None, now);
            self.arrived += 1;
        }
    }

    /// Stalls the slow clients. Their messages are no longer waited for.
    fn stall(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker) {
        self.measurements.split_latency(tracker);
        for (_, client) in clients.iter_mut() {
            if client.is_open() && client.recipient.role == Role::Slow {
                client.stall();
                tracker.stop_expecting(&mut client.recipient);
            }
        }
    }

    fn finish(&mut self, clients: &mut Clients, tracker: &mut DeliveryTracker, now: RunTime) {
        self.measurements.open_at_end = clients.open();
        self.measurements.close_window(clients.open(), tracker, now);
        self.measurements.finish(clients, tracker);
        self.stage = ScenarioStage::Done;
    }
}

/// Returns true if there is nothing to wait for.
fn has_all_deliveries(clients: &mut Clients, tracker: &DeliveryTracker) -> bool {
    tracker.in_flight() == 0 && clients.iter_mut().all(|(_, client)| client.recipient.role != Role::Stalled)
}

/// Role, channel and receive buffer of the connection with this number.
fn assignment(plan: &Plan, place: usize) -> (Role, u32, Option<usize>) {
    let channel = |place: usize| (place % plan.channels as usize) as u32;
    if place >= plan.connections {
        return (Role::Apart, channel(place - plan.connections), None);
    }
    if place >= plan.connections - plan.stalled() {
        return (Role::Slow, channel(place), Some(STALLED_BUFFER_BYTES));
    }
    (Role::Regular, channel(place), None)
}
