//! Validity of a run: whether the figures describe the server, or the load generator itself.

use super::report::{CauseCount, Report};

use crate::plural::plural;

/// A loop that is busier than this may be the bottleneck.
const BUSY_SHARE: f64 = 0.9;

/// Maximum share of time that the generator may wait for a processor. Above it, other programs or the server run on
/// the same processors.
const WAITED_SHARE_MAX: f64 = 0.1;

/// Maximum delay of messages of an open loop (99th percentile), in microseconds.
const LATENESS_US_MAX: f64 = 5_000.0;

/// Connection errors that this machine causes: no ports, descriptors or memory.
const OWN_CAUSES: [&str; 6] = ["EADDRINUSE", "EADDRNOTAVAIL", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];

/// The reasons why the figures describe the load generator and not the server.
pub fn invalid(report: &Report) -> Vec<String> {
    let mut why = Vec::new();
    let own = report.generator.usage;
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    // A server that is equally busy is the bottleneck too, and the figures describe it.
    let server_share = report.server.map_or(0.0, |server| server.cpu_share);
    if own.cpu_share >= BUSY_SHARE && server_share < BUSY_SHARE {
        why.push(format!(
            "the load generator was busy for {} of the time and the server for {}",
            percent(own.cpu_share),
            report.server.map_or("an unknown part".to_owned(), |server| percent(server.cpu_share)),
        ));
    }
    if own.waited_share > WAITED_SHARE_MAX {
        why.push(format!(
            "the load generator waited for a processor for {} of the time: other programs or the server run on the same processors",
            percent(own.waited_share)
        ));
    }
    let short_lived = report.churn.iter().flat_map(|churn| &churn.failures);
    let storm = report.storm.iter().flat_map(|storm| &storm.failures);
    let failed: Vec<&CauseCount> =
        report.connections.failures.iter().chain(short_lived).chain(storm).collect();
    for cause in OWN_CAUSES {
        let count: u64 = failed.iter().filter(|count| count.cause == cause).map(|count| count.count).sum();
        if count > 0 {
            why.push(format!(
                "{} failed on this machine and not at the server, with {cause}{}",
                plural(count, "connection"),
                advice(cause)
            ));
        }
    }
    let lateness = report.generator.send_lateness_us;
    if report.setup.rate_per_second.is_some() && lateness.p99 > LATENESS_US_MAX {
        why.push(format!("messages were sent up to {:.1} ms late (p99)", lateness.p99 / 1e3));
    }
    why
}

fn advice(cause: &str) -> &'static str {
    match cause {
        "EADDRNOTAVAIL" | "EADDRINUSE" => ": add source addresses of this machine (--source-ip)",
        "EMFILE" => ": raise the descriptor limit",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::server_url::ServerUrl;
    use crate::client::trust::Trust;
    use crate::load::measurements::Measurements;
    use crate::load::plan::{Plan, Workload};
    use crate::load::report::Usage;
    use crate::load::target::BenchTarget;
    use std::time::Duration;

    #[test]
    fn busy_generator_is_invalid_unless_the_server_is_as_busy() {
        let target =
            BenchTarget::resolve(&ServerUrl::parse("ws://127.0.0.1:1").unwrap(), &Trust::Public).unwrap();
        let (workload, ramp) = (Workload::Fanout, Duration::ZERO);
        let plan = Plan { workload, target, connections: 1, channels: 1, ramp, traffic: None, pid: None };
        let idle = Report::of(&plan, &Measurements::new(None), None);
        let busy = |own: f64, server: Option<f64>, waited: f64| {
            let mut report = idle.clone();
            let usage = |cpu_share| Usage { cpu_share, ..report.generator.usage };
            report.server = server.map(usage);
            report.generator.usage = Usage { waited_share: waited, ..usage(own) };
            invalid(&report).len()
        };
        assert_eq!(busy(0.5, Some(0.99), 0.0), 0);
        assert_eq!(busy(0.95, Some(0.95), 0.0), 0, "both are saturated");
        assert_eq!(busy(0.95, Some(0.5), 0.0), 1);
        assert_eq!(busy(0.95, None, 0.0), 1);
        assert_eq!(busy(0.95, Some(0.5), 0.2), 2);
        let mut late = idle.clone();
        late.generator.send_lateness_us.p99 = 6_000.0;
        assert_eq!(invalid(&late).len(), 0, "a closed loop has no intended times");
        late.setup.rate_per_second = Some(10.0);
        assert_eq!(invalid(&late).len(), 1);
        let failed = |cause: &str| {
            let mut report = idle.clone();
            let count = CauseCount { phase: "connect".to_owned(), cause: cause.to_owned(), count: 7 };
            report.connections.failures.push(count);
            invalid(&report)
        };
        for cause in OWN_CAUSES {
            let why = failed(cause).join("");
            assert!(why.starts_with("7 connections failed on this machine") && why.contains(cause), "{why}");
        }
        assert_eq!(failed("ECONNREFUSED").len(), 0, "the server rejected them");
    }
}
