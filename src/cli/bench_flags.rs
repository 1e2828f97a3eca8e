//! The flags of `oyez bench`: each scenario accepts only the flags that apply to it.

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
    /// Open connections, hold them, and measure their cost.
    Idle(Idle),
    /// Broadcast to all clients, as fast as they receive it or at a fixed rate.
    Fanout(Fanout),
    /// Broadcast while other clients connect and disconnect.
    Churn(Churn),
    /// Drop all connections at once, and reconnect all of them.
    Storm(StormFlags),
    /// Broadcast while some clients do not read.
    Slow(Slow),
    /// Compare several runs on one page.
    Report(SideBySide),
}

#[derive(Debug, Args)]
pub(super) struct SideBySide {
    /// Files written with --json.
    #[arg(value_name = "FILE.json", required = true)]
    pub(super) runs: Vec<PathBuf>,

    /// The file to write.
    #[arg(long, value_name = "FILE.html")]
    pub(super) out: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Idle {
    #[command(flatten)]
    pub(super) common: CommonFlags,

    /// Time to hold the connections, in seconds.
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

    /// Connections per second in addition to the regular clients.
    #[arg(long, value_name = "N", default_value = "100", value_parser = rate)]
    pub(super) arrivals: f64,

    /// Time that each of them stays connected, in seconds.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    pub(super) stay: Duration,
}

#[derive(Debug, Args)]
pub(super) struct StormFlags {
    #[command(flatten)]
    pub(super) common: CommonFlags,

    /// Maximum time for all clients to reconnect, in seconds.
    #[arg(long, value_name = "S", default_value = "60", value_parser = seconds)]
    pub(super) within: Duration,
}

#[derive(Debug, Args)]
pub(super) struct Slow {
    #[command(flatten)]
    pub(super) common: CommonFlags,
    #[command(flatten)]
    pub(super) broadcast: BroadcastFlags,

    /// Clients that stop reading in the second half.
    #[arg(long, value_name = "N", default_value = "10", value_parser = count)]
    pub(super) stalled: usize,
}

/// The flags of every scenario.
#[derive(Debug, Args)]
pub(super) struct CommonFlags {
    /// The server: ws://host:port or wss://host:port, or with a path in which {channel} is replaced by the channel's
    /// name. Without it, bench starts a server and stops it afterwards.
    #[arg(long, value_name = "URL", conflicts_with_all = ["server_args", "pin_server"])]
    pub(super) url: Option<String>,

    /// Use TLS for a ws:// URL too, as if it were wss://.
    #[arg(long)]
    pub(super) tls: bool,

    #[command(flatten)]
    pub(super) trust: TrustFlags,

    /// Flags for the server that bench starts.
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    pub(super) server_args: String,

    /// Processor for the server that bench starts, while the load generator uses the others; "no" leaves it to the
    /// scheduler [default: the last, if there are several].
    #[arg(long, value_name = "CPU", value_parser = pin)]
    pub(super) pin_server: Option<Pin>,

    /// Process id of the server, to read its memory and processor time; known for a server that bench starts.
    #[arg(long, conflicts_with_all = ["server_args", "pin_server"])]
    pub(super) pid: Option<u32>,

    /// Offer compression (permessage-deflate), publish a table of which a fifth changes with each message, and verify
    /// each decompressed message.
    #[arg(long)]
    pub(super) deflate: bool,

    /// Number of clients.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = count)]
    pub(super) connections: usize,

    /// Number of channels; the clients are spread evenly over them.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) channels: usize,

    /// Time over which the clients connect, in seconds; 0: as fast as the server accepts them.
    #[arg(long, value_name = "S", default_value = "0", value_parser = seconds_or_0)]
    pub(super) ramp: Duration,

    /// Source address of connections. May be repeated.
    #[arg(long, value_name = "IP")]
    pub(super) source_ip: Vec<IpAddr>,

    /// Conditions that the report must meet, or the command fails: for instance "loss=0,p99<50ms". It also fails if
    /// the run is INVALID, unless the list has a condition on "invalid".
    #[arg(long, value_name = "LIST", value_parser = Assertion::parse_all)]
    pub(super) assert: Option<std::vec::Vec<Assertion>>,

    /// Write the report to a file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Write the report to a file, as an HTML page with charts.
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,
}

/// The flags of every scenario with a broadcast.
#[derive(Debug, Args)]
pub(super) struct BroadcastFlags {
    /// Number of clients that publish.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) publishers: usize,

    /// Publish from separate connections, not from the clients that are measured.
    #[arg(long)]
    pub(super) publishers_apart: bool,

    /// Size of a message, in bytes; at least 32.
    #[arg(long, value_name = "BYTES", default_value = "64", value_parser = payload)]
    pub(super) payload: usize,

    /// Send binary messages.
    #[arg(long)]
    pub(super) binary: bool,

    /// Open loop: messages per second of all publishers together, whether the server keeps up or not.
    #[arg(long, value_name = "N", conflicts_with = "window", value_parser = rate)]
    pub(super) rate: Option<f64>,

    /// Closed loop: maximum messages in flight per publisher. A message is in flight until all clients have received
    /// it.
    #[arg(long, value_name = "N", default_value = "1", value_parser = count)]
    pub(super) window: usize,

    /// Time to broadcast before the measurement, in seconds.
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = seconds_or_0)]
    pub(super) warmup: Duration,

    /// Time to measure, in seconds.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    pub(super) duration: Duration,

    /// Maximum time for a message to reach all clients before it is abandoned, in seconds: a slow server has not lost
    /// it yet.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    pub(super) patience: Duration,
}

impl BroadcastFlags {
    /// The traffic that these flags describe.
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

/// The largest count: well above the number of ports of all loopback addresses that are ever used.
const COUNT_MAX: usize = 10_000_000;

/// The longest time that a flag accepts, in seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

/// The largest message, in bytes.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// The processor for the server that bench starts.
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
    if span.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(span) }
}
