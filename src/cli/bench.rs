//! `oyez bench`: flags to a plan, a plan to a report.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::Failure;
use super::progress::Progress;
use crate::load;
use crate::load::assertion::Assertion;
use crate::load::child::ChildServer;
use crate::load::pin;
use crate::load::plan::{Plan, Scenario, Speed, Traffic};
use crate::load::preflight::{Limits, Preflight};
use crate::load::report::Report;
use crate::load::stamp::Stamp;
use crate::load::target::Target;
use crate::load::text::Text;

/// The flags of `oyez bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Open connections, hold them, and see what they cost.
    Idle(Idle),
    /// Broadcast to members, as fast as all of them get it or at a rate.
    Fanout(Fanout),
    /// Broadcast while others come and go.
    Churn(Churn),
    /// Drop all connections at once, and bring all of them back.
    Storm(Storm),
    /// Broadcast while some members do not read.
    Slow(Slow),
}

#[derive(Debug, Args)]
struct Idle {
    #[command(flatten)]
    common: Common,

    /// How long to hold them, in seconds.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    hold: Duration,
}

#[derive(Debug, Args)]
struct Fanout {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    broadcast: Broadcast,
}

#[derive(Debug, Args)]
struct Churn {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    broadcast: Broadcast,

    /// Connections a second that come beside the members.
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate)]
    arrivals: f64,

    /// How long each of them stays, in seconds.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    stay: Duration,
}

#[derive(Debug, Args)]
struct Storm {
    #[command(flatten)]
    common: Common,

    /// When those that are not back are given up, in seconds.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    within: Duration,
}

#[derive(Debug, Args)]
struct Slow {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    broadcast: Broadcast,

    /// Members that do not read in the second half.
    #[arg(long, value_name = "N", default_value = "10", value_parser = count)]
    stalled: usize,
}

/// What every scenario takes.
#[derive(Debug, Args)]
struct Common {
    /// The server: ws://host:port, or with a path in which {channel} stands for the channel's name.
    /// Without it, a server of our own is started and stopped.
    #[arg(long, value_name = "URL", conflicts_with_all = ["server_args", "pin_server"])]
    url: Option<String>,

    /// Flags for the server of our own.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    server_args: String,

    /// The processor that the server of our own is to run on, while the load generator keeps to the
    /// others, or "no" to leave it to the scheduler [default: the last, if there are several].
    #[arg(long, value_name = "CPU", value_parser = pin)]
    pin_server: Option<Pin>,

    /// The server's process, to read its memory and time; known of a server of our own.
    #[arg(long, conflicts_with_all = ["server_args", "pin_server"])]
    pid: Option<u32>,

    /// Members.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    connections: usize,

    /// Channels that the members are spread over evenly.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    channels: usize,

    /// The time over which the members come, in seconds; 0 is as fast as the server takes them.
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds_or_0)]
    ramp: Duration,

    /// An address to connect from; can be given several times.
    #[arg(long, value_name = "IP")]
    source_ip: Vec<IpAddr>,

    /// What the run has to keep to, or it fails: for instance "loss=0,p99<50ms".
    #[arg(long, value_name = "LIST", value_parser = Assertion::parse_all)]
    assert: Option<std::vec::Vec<Assertion>>,

    /// Write the report to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What every scenario with a broadcast takes.
#[derive(Debug, Args)]
struct Broadcast {
    /// Members that publish.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    publishers: usize,

    /// Publish from connections of their own, beside the members.
    #[arg(long)]
    publishers_apart: bool,

    /// The size of a message, in bytes; 32 at least.
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = payload)]
    payload: usize,

    /// Send binary messages.
    #[arg(long)]
    binary: bool,

    /// Open loop: messages a second, of all publishers together, whether the server keeps up or not.
    #[arg(long, value_name = "N", conflicts_with = "window", value_parser = rate)]
    rate: Option<f64>,

    /// Closed loop: messages of each publisher that have not reached all members.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    window: usize,

    /// How long to broadcast before the measuring begins, in seconds.
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds_or_0)]
    warmup: Duration,

    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    duration: Duration,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (common, scenario, broadcast) = match self.what {
            What::Idle(idle) => (idle.common, Scenario::Idle { hold: idle.hold }, None),
            What::Fanout(fanout) => (fanout.common, Scenario::Fanout, Some(fanout.broadcast)),
            What::Churn(churn) => {
                let scenario = Scenario::Churn { arrivals_per_second: churn.arrivals, stay: churn.stay };
                (churn.common, scenario, Some(churn.broadcast))
            }
            What::Storm(storm) => (storm.common, Scenario::Storm { within: storm.within }, None),
            What::Slow(slow) => (slow.common, Scenario::Slow { stalled: slow.stalled }, Some(slow.broadcast)),
        };
        let traffic = broadcast.map(|broadcast| broadcast.traffic());
        common.check(scenario, traffic.as_ref())?;
        common.run(scenario, traffic)
    }
}

impl Broadcast {
    fn traffic(&self) -> Traffic {
        Traffic {
            publishers: self.publishers,
            publishers_apart: self.publishers_apart,
            payload_bytes: self.payload,
            is_text: !self.binary,
            speed: match self.rate {
                Some(rate) => Speed::Rate(rate),
                None => Speed::Window(self.window as u32),
            },
            warmup: self.warmup,
            duration: self.duration,
        }
    }
}

impl Common {
    /// Do the flags go together?
    fn check(&self, scenario: Scenario, traffic: Option<&Traffic>) -> Result<(), Failure> {
        let refuse = |text: String| Err(Failure::Usage(text));
        let connections = self.connections;
        if self.channels > connections {
            return refuse(format!("--channels {} need at least as many --connections", self.channels));
        }
        let Some(traffic) = traffic else { return Ok(()) };
        let stalled = match scenario {
            Scenario::Slow { stalled } => stalled,
            _ => 0,
        };
        if stalled >= connections {
            return refuse(format!(
                "--stalled {stalled} of --connections {connections} leaves nobody to read"
            ));
        }
        let publishers = traffic.publishers;
        if publishers > usize::from(u16::MAX) {
            return refuse(format!("--publishers {publishers} is over {}", u16::MAX));
        }
        if !traffic.publishers_apart && publishers > connections - stalled {
            return refuse(format!(
                "--publishers {publishers} are members, and --connections leaves only {}: raise it, or use --publishers-apart",
                connections - stalled
            ));
        }
        Ok(())
    }

    fn run(self, scenario: Scenario, traffic: Option<Traffic>) -> Result<(), Failure> {
        let limits = Limits::raise();
        let mut child = match &self.url {
            Some(_) => None,
            None => Some(self.start(traffic.as_ref())?),
        };
        let url = match (&self.url, &child) {
            (Some(url), _) => url,
            (None, Some(child)) => &child.url,
            (None, None) => return Err(Failure::Failed("there is no server".to_owned())),
        };
        let plan = self.plan(url, scenario, traffic, child.as_ref().map(ChildServer::pid), limits)?;
        let mut progress = Progress::new();
        let found = load::run(plan.clone(), child.as_mut(), |standing| progress.show(standing))
            .map_err(Failure::Failed)?;
        drop(progress);
        let server_args = child.as_ref().map(|_| self.server_args.clone());
        // Stopped before the report, so that nothing is left behind whatever becomes of it.
        drop(child);
        self.report(&Report::new(&plan, &found, server_args))
    }

    /// Makes the plan, and sees whether this machine can carry it out.
    fn plan(
        &self,
        url: &str,
        scenario: Scenario,
        traffic: Option<Traffic>,
        child: Option<u32>,
        limits: Limits,
    ) -> Result<Plan, Failure> {
        let mut target = Target::parse(url).map_err(Failure::Usage)?;
        if self.channels > 1 && !target.has_channels() {
            return Err(Failure::Usage(format!(
                "--channels {} need a place in the path of --url: write {{channel}}",
                self.channels
            )));
        }
        target.sources = self.source_ip.clone();
        let (connections, channels, ramp) = (self.connections, self.channels as u32, self.ramp);
        let pid = self.pid.or(child);
        let mut plan = Plan { scenario, target, connections, channels, ramp, traffic, pid };
        plan.target.spread(Limits::ports_needed(&plan), limits.ports);
        let preflight = limits.check(&plan);
        let Preflight { connections_max, raise, warning } = preflight;
        if connections > connections_max {
            return Err(Failure::Usage(format!(
                "--connections {connections} cannot be reached here: at most {connections_max}, by {raise}"
            )));
        }
        eprintln!("oyez: at most {connections_max} members can be reached here, by {raise}");
        if let Some(warning) = warning {
            eprintln!("oyez: {warning}");
        }
        Ok(plan)
    }

    /// Starts a server of our own that takes what we are going to send.
    fn start(&self, traffic: Option<&Traffic>) -> Result<ChildServer, Failure> {
        let mut arguments: Vec<String> = self.server_args.split_whitespace().map(str::to_owned).collect();
        let payload_bytes = traffic.map_or(0, |traffic| traffic.payload_bytes);
        for (flag, default_bytes, bytes) in [
            ("--message-bytes-max", 64 << 10, payload_bytes),
            ("--outbox-bytes-max", 1 << 20, payload_bytes * 4),
        ] {
            if bytes > default_bytes && !self.server_args.contains(flag) {
                arguments.extend([flag.to_owned(), bytes.to_string()]);
            }
        }
        let processor = match self.pin_server {
            Some(Pin::To(processor)) => Some(processor),
            Some(Pin::No) => None,
            None => pin::choose(),
        };
        ChildServer::start(&arguments, processor)
            .map_err(|error| Failure::Failed(format!("cannot start a server: {error}")))
    }

    fn report(&self, report: &Report) -> Result<(), Failure> {
        print!("{}", Text(report));
        if let Some(path) = &self.json {
            let text =
                serde_json::to_string_pretty(report).map_err(|error| Failure::Failed(error.to_string()))?;
            fs::write(path, text + "\n")
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
        }
        if report.connections.opened == 0 {
            return Err(Failure::Failed("no connection was opened".to_owned()));
        }
        let broken: Vec<String> = self
            .assert
            .iter()
            .flatten()
            .filter_map(|assertion| assertion.check(report).err())
            .map(|broken| broken.to_string())
            .collect();
        if broken.is_empty() { Ok(()) } else { Err(Failure::Failed(broken.join("; "))) }
    }
}

/// The most of anything that can be counted here: well over the ports of all loopback addresses that are
/// ever used.
const COUNT_MAX: usize = 10_000_000;

/// The longest time that a flag takes, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// The largest message, in bytes.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Where a server of our own is to run.
#[derive(Clone, Copy, Debug)]
enum Pin {
    To(usize),
    No,
}

fn pin(text: &str) -> Result<Pin, String> {
    match text {
        "no" => Ok(Pin::No),
        _ => text.parse().map(Pin::To).map_err(|_| "not a processor's number, nor \"no\"".to_owned()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=COUNT_MAX) => Ok(count),
        _ => Err(format!("not a whole number in 1 to {COUNT_MAX}")),
    }
}

fn payload(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ Stamp::BYTES..=PAYLOAD_BYTES_MAX) => Ok(bytes),
        _ => Err(format!("not a whole number in {} to {PAYLOAD_BYTES_MAX}", Stamp::BYTES)),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e7).contains(&rate) => Ok(rate),
        _ => Err("not a number in 0.001 to 10000000".to_owned()),
    }
}

fn seconds_or_0(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("not a number in 0 to {SECONDS_MAX}")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let span = seconds_or_0(text)?;
    if span.is_zero() { Err("0 is no time at all".to_owned()) } else { Ok(span) }
}
