//! The flags of `oyez bench`: each scenario takes what it can use, and no more.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::trust::TrustFlags;
use crate::load::assertion::Assertion;
use crate::load::plan::{Speed, Traffic};
use crate::load::send_timestamp::SendTimestamp;

/// The flags of `oyez bench`.
#[derive(Debug, Args)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    pub(super) scenario: BenchScenario,
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchScenario {
    /// Open connections, hold them, and see what they cost.
    Idle(Idle),
    /// Broadcast to clients, as fast as all of them get it or at a rate.
    Fanout(Fanout),
    /// Broadcast while others come and go.
    Churn(Churn),
    /// Drop all connections at once, and bring all of them back.
    Storm(StormFlags),
    /// Broadcast while some clients do not read.
    Slow(Slow),
    /// Put several runs side by side on one page.
    Report(SideBySide),
}

#[derive(Debug, Args)]
pub(super) struct SideBySide {
    /// BenchScenario runs wrote with --json.
    #[arg(value_name = "FILE.json", required = true)]
    pub(super) runs: Vec<PathBuf>,

    /// The page.
    #[arg(long, value_name = "FILE.html")]
    pub(super) out: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Idle {
    #[command(flatten)]
    pub(super) common: CommonFlags,

    /// How long to hold them, in seconds.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub(super) hold: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Fanout {
    #[command(flatten)]
    pub(super) common: CommonFlags,
    #[command(flatten)]
    pub(super) broadcast: BroadcastFlags,
}

#[derive(Debug, Args)]
pub(super) struct Churn {
    #[command(flatten)]
    pub(super) common: CommonFlags,
    #[command(flatten)]
    pub(super) broadcast: BroadcastFlags,

    /// Connections a second that come beside the clients.
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate)]
    pub(super) arrivals: f64,

    /// How long each of them stays, in seconds.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(super) stay: Duration,
}

#[derive(Debug, Args)]
pub(super) struct StormFlags {
    #[command(flatten)]
    pub(super) common: CommonFlags,

    /// When those that are not back are given up, in seconds.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub(super) within: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Slow {
    #[command(flatten)]
    pub(super) common: CommonFlags,
    #[command(flatten)]
    pub(super) broadcast: BroadcastFlags,

    /// Members that do not read in the second half.
    #[arg(long, value_name = "N", default_value = "10", value_parser = count)]
    pub(super) stalled: usize,
}

/// BenchScenario every scenario takes.
#[derive(Debug, Args)]
pub(super) struct CommonFlags {
    /// The server: ws://host:port or wss://host:port, or with a path in which {channel} stands for the channel's name.
    /// Without it, a server of our own is started and stopped.
    #[arg(long, value_name = "URL", conflicts_with_all = ["server_args", "pin_server"])]
    pub(super) url: Option<String>,

    /// Speak TLS to a server at ws:// too, as if it were wss://.
    #[arg(long)]
    pub(super) tls: bool,

    #[command(flatten)]
    pub(super) trust: TrustFlags,

    /// Flags for the server of our own.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    pub(super) server_args: String,

    /// The processor that the server of our own is to run on, while the load generator keeps to the
    /// others, or "no" to leave it to the scheduler [default: the last, if there are several].
    #[arg(long, value_name = "CPU", value_parser = pin)]
    pub(super) pin_server: Option<Pin>,

    /// The server's process, to read its memory and time; known of a server of our own.
    #[arg(long, conflicts_with_all = ["server_args", "pin_server"])]
    pub(super) pid: Option<u32>,

    /// Members.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    pub(super) connections: usize,

    /// Channels that the clients are spread over evenly.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) channels: usize,

    /// The time over which the clients come, in seconds; 0 is as fast as the server takes them.
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds_or_0)]
    pub(super) ramp: Duration,

    /// An address to connect from; can be given several times.
    #[arg(long, value_name = "IP")]
    pub(super) source_ip: Vec<IpAddr>,

    /// BenchScenario the run has to keep to, or it fails: for instance "loss=0,p99<50ms".
    #[arg(long, value_name = "LIST", value_parser = Assertion::parse_all)]
    pub(super) assert: Option<std::vec::Vec<Assertion>>,

    /// Write the report to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Write the report to a file, as a page with charts.
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,
}

/// BenchScenario every scenario with a broadcast takes.
#[derive(Debug, Args)]
pub(super) struct BroadcastFlags {
    /// Members that publish.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) publishers: usize,

    /// Publish from connections of their own, beside the clients.
    #[arg(long)]
    pub(super) publishers_apart: bool,

    /// The size of a message, in bytes; 32 at least.
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = payload)]
    pub(super) payload: usize,

    /// Send binary messages.
    #[arg(long)]
    pub(super) binary: bool,

    /// Open loop: messages a second, of all publishers together, whether the server keeps up or not.
    #[arg(long, value_name = "N", conflicts_with = "window", value_parser = rate)]
    pub(super) rate: Option<f64>,

    /// Closed loop: messages of each publisher that have not reached all clients.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) window: usize,

    /// How long to broadcast before the measuring begins, in seconds.
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds_or_0)]
    pub(super) warmup: Duration,

    /// How long to measure, in seconds.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(super) duration: Duration,

    /// How long a message may take to reach all clients before it is given up, in seconds: a server
    /// that is slow has lost nothing yet.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub(super) patience: Duration,
}

impl BroadcastFlags {
    /// BenchScenario is to be published.
    pub(super) fn traffic(&self) -> Traffic {
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
            patience: self.patience,
        }
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
pub(super) enum Pin {
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
        Ok(bytes @ SendTimestamp::BYTES..=PAYLOAD_BYTES_MAX) => Ok(bytes),
        _ => Err(format!("not a whole number in {} to {PAYLOAD_BYTES_MAX}", SendTimestamp::BYTES)),
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
