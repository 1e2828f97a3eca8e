//! `oyez bench`: turns flags into a plan, and the measurements into a report.

use std::fs::{self, OpenOptions};
use std::path::Path;

use rustix::system::uname;

use super::bench_flags::{BenchCommand, BenchScenario, CommonFlags, Pin, SideBySide};
use super::failure::Failure;
use super::output;
use super::progress_display::ProgressDisplay;
use super::version::VERSION;
use crate::client::server_url::ServerUrl;
use crate::client::tls::TlsError;
use crate::load::assertion;
use crate::load::child::ChildServer;
use crate::load::page::{self, Run};
use crate::load::pin;
use crate::load::plan::{Plan, Traffic, Workload};
use crate::load::preflight::{HostLimits, Preflight};
use crate::load::report::{Report, RunEnvironment};
use crate::load::target::BenchTarget;
use crate::load::text::TextReport;
use crate::load::{self, RunSignals};
use crate::plural::plural;

/// The largest size that a flag of `oyez serve` accepts.
const SERVER_BYTES_MAX: usize = 1 << 30;

impl BenchCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (common, workload, broadcast) = match self.scenario {
            BenchScenario::Idle(idle) => (idle.common, Workload::Idle { hold: idle.hold }, None),
            BenchScenario::Fanout(fanout) => (fanout.common, Workload::Fanout, Some(fanout.broadcast)),
            BenchScenario::Churn(churn) => {
                let workload = Workload::Churn { arrivals_per_second: churn.arrivals, stay: churn.stay };
                (churn.common, workload, Some(churn.broadcast))
            }
            BenchScenario::Storm(storm) => (storm.common, Workload::Storm { within: storm.within }, None),
            BenchScenario::Report(report) => return report.run(),
            BenchScenario::Slow(slow) => {
                (slow.common, Workload::Slow { stalled: slow.stalled }, Some(slow.broadcast))
            }
        };
        let traffic = broadcast.map(|broadcast| broadcast.traffic());
        common.check(workload, traffic.as_ref())?;
        common.run(workload, traffic)
    }
}

impl SideBySide {
    fn run(&self) -> Result<(), Failure> {
        let mut runs = Vec::new();
        for path in &self.runs {
            let failed = |why: String| Failure::Failed(format!("{}: {why}", path.display()));
            let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
            let report = serde_json::from_str(&text)
                .map_err(|error| failed(format!("not a report of oyez bench: {error}")))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            runs.push(Run { name, report });
        }
        write(&self.out, &page::page(&runs).map_err(Failure::Failed)?)
    }
}

impl CommonFlags {
    /// Checks that the flags do not contradict each other.
    fn check(&self, workload: Workload, traffic: Option<&Traffic>) -> Result<(), Failure> {
        let reject = |text: String| Err(Failure::Usage(text));
        let is_secure = self.url.is_some() || self.server_args.contains("--tls-cert");
        if (self.tls || self.trust.is_given()) && !is_secure {
            return reject("--tls needs --url, or --tls-cert and --tls-key in --server-args".to_owned());
        }
        let connections = self.connections;
        if self.channels > connections {
            return reject(format!("--channels {} need at least as many --connections", self.channels));
        }
        let Some(traffic) = traffic else { return Ok(()) };
        let stalled = match workload {
            Workload::Slow { stalled } => stalled,
            _ => 0,
        };
        if stalled >= connections {
            return reject(format!(
                "--stalled {stalled} of --connections {connections} leaves no client that reads"
            ));
        }
        let publishers = traffic.publishers;
        if publishers > usize::from(u16::MAX) {
            return reject(format!("--publishers {publishers} is over {}", u16::MAX));
        }
        if !traffic.publishers_apart && publishers > connections - stalled {
            return reject(format!(
                "--publishers {publishers} needs as many clients, and --connections leaves only {}: raise it, or use --publishers-apart",
                connections - stalled
            ));
        }
        Ok(())
    }

    fn run(self, workload: Workload, traffic: Option<Traffic>) -> Result<(), Failure> {
        let signals = RunSignals::install()
            .map_err(|error| Failure::Failed(format!("cannot install signal handlers: {error}")))?;
        // Before the run, so that an unwritable report file does not waste it.
        for path in [&self.json, &self.report].into_iter().flatten() {
            check_writable(path)?;
        }
        let limits = HostLimits::raise();
        let mut child = match &self.url {
            Some(_) => None,
            None => Some(self.start(traffic.as_ref())?),
        };
        let url = match (&self.url, &child) {
            (Some(url), _) => url,
            (None, Some(child)) => &child.url,
            (None, None) => return Err(Failure::Failed("no server".to_owned())),
        };
        let plan = self.plan(url, workload, traffic, child.as_ref().map(ChildServer::pid), limits)?;
        let mut display = ProgressDisplay::new();
        let measurements =
            load::run(plan.clone(), child.as_mut(), signals, |progress| display.show(progress))
                .map_err(Failure::Failed)?;
        drop(display);
        let server_args = child.as_ref().map(|child| child.flags.clone());
        // Stopped before the report, so that no server is left running when the report fails.
        drop(child);
        self.report(Report { made: Some(run_environment()), ..Report::of(&plan, &measurements, server_args) })
    }

    /// Builds the plan, and checks that this machine can run it.
    fn plan(
        &self,
        url: &str,
        workload: Workload,
        traffic: Option<Traffic>,
        child: Option<u32>,
        limits: HostLimits,
    ) -> Result<Plan, Failure> {
        let mut target = self.target(url)?;
        if self.channels > 1 && !target.has_channels() {
            return Err(Failure::Usage(format!(
                "--channels {} needs {{channel}} in the path of --url",
                self.channels
            )));
        }
        target.sources = self.source_ip.clone();
        target.offers_deflate = self.deflate;
        let (connections, channels, ramp) = (self.connections, self.channels as u32, self.ramp);
        let pid = self.pid.or(child);
        let mut plan = Plan { workload, target, connections, channels, ramp, traffic, pid };
        plan.target.spread(HostLimits::ports_needed(&plan), limits.ports, std::process::id());
        let preflight = limits.check(&plan);
        let Preflight { connections_max, limit, raise, warning } = preflight;
        if connections > connections_max {
            return Err(Failure::Usage(format!(
                "--connections {connections} exceeds the limit of this machine: at most {connections_max}, by {limit} ({raise})"
            )));
        }
        output::note(format_args!("at most {} on this machine ({limit})", plural(connections_max, "client")));
        if let Some(warning) = warning {
            output::note(warning);
        }
        Ok(plan)
    }

    /// Parses the URL, with the TLS flags applied to it.
    fn target(&self, url: &str) -> Result<BenchTarget, Failure> {
        let mut url = ServerUrl::parse(url).map_err(Failure::Usage)?;
        url.is_encrypted |= self.tls;
        let target = BenchTarget::resolve(&url, &self.trust.trust()).map_err(Failure::Usage)?;
        if self.trust.is_given() && target.tls.is_none() {
            return Err(Failure::Usage("--tls-ca and --tls-insecure need wss:// or --tls".to_owned()));
        }
        Ok(target)
    }

    /// Starts a server with limits that fit the traffic of this run.
    fn start(&self, traffic: Option<&Traffic>) -> Result<ChildServer, Failure> {
        let mut arguments: Vec<String> = self.server_args.split_whitespace().map(str::to_owned).collect();
        let payload_bytes = traffic.map_or(0, |traffic| traffic.payload_bytes);
        for (flag, default_bytes, bytes) in [
            ("--message-bytes-max", 64 << 10, payload_bytes),
            ("--outbox-bytes-max", 2 << 20, traffic.map_or(0, Traffic::burst_bytes)),
        ] {
            let bytes = bytes.min(SERVER_BYTES_MAX);
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

    fn report(&self, report: Report) -> Result<(), Failure> {
        // Assertions decide the exit status, even if the text cannot be written.
        let printed = output::print(TextReport(&report));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report);
            write(path, &(text.map_err(|error| Failure::Failed(error.to_string()))? + "\n"))?;
        }
        let run = Run { name: report.setup.scenario.clone(), report };
        if let Some(path) = &self.report {
            write(path, &page::page(std::slice::from_ref(&run)).map_err(Failure::Failed)?)?;
        }
        let report = &run.report;
        if report.interrupted {
            return Err(Failure::Failed(
                "interrupted: the report contains the figures measured until then".to_owned(),
            ));
        }
        if report.connections.opened == 0 {
            return Err(Failure::Failed(none_opened(report)));
        }
        if report.open_at_end == 0 {
            return Err(Failure::Failed("no connection was open at the end".to_owned()));
        }
        if let Some(traffic) = report.traffic.as_ref().filter(|traffic| traffic.deliveries == 0) {
            return Err(Failure::Failed(format!(
                "nothing was delivered: {} sent during the measurement, and no client received one",
                plural(traffic.sent, "message")
            )));
        }
        if let Some(traffic) = report.traffic.as_ref().filter(|traffic| traffic.corrupted > 0) {
            return Err(Failure::Failed(format!(
                "decompression changed the content of {}",
                plural(traffic.corrupted, "message")
            )));
        }
        if self.deflate && report.connections.deflate_negotiated == 0 {
            return Err(Failure::Failed("the server negotiated no compression".to_owned()));
        }
        let broken = self.assert.as_ref().map(|all| assertion::check_all(all, report)).unwrap_or_default();
        if broken.is_empty() { printed } else { Err(Failure::Failed(broken.join("; "))) }
    }
}

/// The error if no connection was opened, with advice if the user can do something about it.
fn none_opened(report: &Report) -> String {
    let causes = &report.connections.failures;
    let advised = causes.iter().find_map(|count| Some((&count.cause, TlsError::advice_about(&count.cause)?)));
    match advised {
        Some((cause, advice)) => format!("no connection was opened: {cause}: {advice}"),
        None => "no connection was opened".to_owned(),
    }
}

/// Checks that a file can be written, and leaves it unchanged.
fn check_writable(path: &Path) -> Result<(), Failure> {
    let is_new = !path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    if is_new {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// Date, host, command line and versions of the run.
fn run_environment() -> RunEnvironment {
    let system = uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    RunEnvironment {
        date: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        host: format!(
            "{}, {} of {}",
            text(system.nodename()),
            plural(processors, "processor"),
            text(system.machine())
        ),
        command_line: std::env::args().map(|word| quote(&word)).collect::<Vec<_>>().join(" "),
        versions: format!("oyez {VERSION}; {} {}", text(system.sysname()), text(system.release())),
    }
}

/// An argument, quoted for a shell.
fn quote(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=./:,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn argument_that_a_shell_would_change_is_quoted() {
        for (word, quoted) in [
            ("--connections=10", "--connections=10"),
            ("/usr/local/bin/oyez", "/usr/local/bin/oyez"),
            ("ws://localhost:9000/ws/{channel}", "'ws://localhost:9000/ws/{channel}'"),
            ("loss=0,p99<50ms", "'loss=0,p99<50ms'"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quote(word), quoted, "{word}");
        }
    }
}
