//! Checks before a run whether this machine has the descriptors and ports for it. A run that fails at connection
//! 28,233 fails for reasons that have nothing to do with the server.

use std::fs;

use super::plan::{Plan, Workload};
use crate::plural::plural;
use crate::server::DESCRIPTORS_RESERVED;

/// Time that a port stays reserved after its connection (TIME_WAIT).
const PORT_REST_SECONDS: f64 = 60.0;

/// Time that a short-lived client needs in addition to its stay, for its two handshakes.
const HANDSHAKES_SECONDS: f64 = 2.0;

/// The limits of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Maximum descriptors of this process.
    pub descriptors: usize,
    /// Ephemeral ports per source address.
    pub ports: usize,
    /// Maximum connections in the accept backlog.
    pub backlog: usize,
}

/// The result of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    /// Maximum number of clients.
    pub connections_max: usize,
    /// The limit that decides it.
    pub limit: String,
    /// The commands that raise the limit.
    pub raise: String,
    /// A problem that does not prevent the run, but affects the figures.
    pub warning: Option<String>,
}

impl HostLimits {
    /// Raises the descriptor limit as far as possible, and reads the others.
    pub fn raise() -> HostLimits {
        let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
        HostLimits {
            descriptors: usize::try_from(descriptors).unwrap_or(usize::MAX),
            ports: ports(&range).unwrap_or(28_232),
            backlog: somaxconn.trim().parse().unwrap_or(4096),
        }
    }

    /// Number of ports that a plan needs, including those in TIME_WAIT. With fewer ports the run takes longer, and the
    /// report would blame the load generator.
    pub fn ports_needed(plan: &Plan) -> usize {
        let others = match plan.workload {
            Workload::Churn { arrivals_per_second, .. } => (arrivals_per_second * PORT_REST_SECONDS) as usize,
            // The ports of dropped connections, and as many for second attempts.
            Workload::Storm { .. } => 2 * plan.connections,
            _ => 0,
        };
        plan.sockets() + others
    }

    /// Checks a plan whose source addresses are chosen.
    pub fn check(&self, plan: &Plan) -> Preflight {
        let short_lived = match plan.workload {
            Workload::Churn { arrivals_per_second, stay } => {
                (arrivals_per_second * (stay.as_secs_f64() + HANDSHAKES_SECONDS)) as usize
            }
            _ => 0,
        };
        let others = DESCRIPTORS_RESERVED + short_lived + (plan.sockets() - plan.connections);
        let by_descriptors = self.descriptors.saturating_sub(others);
        let sources = plan.target.sources.len().max(1);
        let by_ports = (self.ports * sources).saturating_sub(others - DESCRIPTORS_RESERVED);
        let (limit, raise) = if by_descriptors <= by_ports {
            let nofile = plan.connections.max(self.descriptors) * 2;
            (
                format!("{} descriptors", self.descriptors),
                format!(
                    "raise the hard limit as root, here and for the server: `prlimit --pid $$ --nofile={nofile}`"
                ),
            )
        } else {
            (
                format!("{} ports, source addresses: {sources}", self.ports),
                "raise them: `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"`, or add --source-ip"
                    .to_owned(),
            )
        };
        Preflight { connections_max: by_descriptors.min(by_ports), limit, raise, warning: self.warn(plan) }
    }

    fn warn(&self, plan: &Plan) -> Option<String> {
        let storm = matches!(plan.workload, Workload::Storm { .. });
        (storm && plan.connections > self.backlog).then(|| {
            format!(
                "{} are opened at once, and the backlog holds {}: the kernel drops the first segment of the others, \
                 which is sent again after a second (raise it: `sysctl -w net.core.somaxconn={}`, and the server's --backlog)",
                plural(plan.connections, "connection"),
                self.backlog,
                plan.connections
            )
        })
    }
}

/// Number of ports in the range.
fn ports(range: &str) -> Option<usize> {
    let mut ends = range.split_whitespace().map(str::parse::<usize>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    last.checked_sub(first).map(|between| between + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::server_url::ServerUrl;
    use crate::client::trust::Trust;
    use crate::load::target::BenchTarget;
    use std::time::Duration;

    fn plan(connections: usize, workload: Workload) -> Plan {
        let target =
            BenchTarget::resolve(&ServerUrl::parse("ws://127.0.0.1:1").unwrap(), &Trust::Public).unwrap();
        Plan { workload, target, connections, channels: 1, ramp: Duration::ZERO, traffic: None, pid: None }
    }

    #[test]
    fn limit_is_named_with_the_command_that_raises_it() {
        let idle = Workload::Idle { hold: Duration::from_secs(1) };
        let limits = HostLimits { descriptors: 20_000, ports: 28_232, backlog: 4_096 };
        let found = limits.check(&plan(100_000, idle));
        assert_eq!(found.connections_max, 20_000 - DESCRIPTORS_RESERVED);
        assert!(found.raise.contains("prlimit") && found.raise.contains("200000"), "{}", found.raise);
        let limits = HostLimits { descriptors: 1_000_000, ..limits };
        let found = limits.check(&plan(100_000, idle));
        assert_eq!(found.connections_max, 28_232);
        let note = format!(
            "oyez: at most {} on this machine ({})",
            plural(found.connections_max, "client"),
            found.limit
        );
        assert!(note.len() <= 80, "{note}");
        assert!(found.raise.contains("ip_local_port_range"), "{}", found.raise);
        let mut spread = plan(100_000, idle);
        spread.target.spread(100_000, limits.ports, 1);
        assert!(limits.check(&spread).connections_max > 100_000);
    }

    #[test]
    fn short_lived_client_needs_a_descriptor_while_connected_and_a_port_for_a_minute() {
        let churn = Workload::Churn { arrivals_per_second: 100.0, stay: Duration::from_secs(3) };
        let limits = HostLimits { descriptors: 1_000 + DESCRIPTORS_RESERVED, ports: 7_000, backlog: 4_096 };
        assert_eq!(limits.check(&plan(10, churn)).connections_max, 500);
        assert_eq!(HostLimits::ports_needed(&plan(10, churn)), 6_010);
    }

    #[test]
    fn storm_above_the_backlog_has_a_warning() {
        let storm = Workload::Storm { within: Duration::from_secs(1) };
        let limits = HostLimits { descriptors: 20_000, ports: 28_232, backlog: 128 };
        assert_eq!(HostLimits::ports_needed(&plan(100, storm)), 300);
        assert!(limits.check(&plan(129, storm)).warning.is_some());
        assert_eq!(limits.check(&plan(128, storm)).warning, None);
    }

    #[test]
    fn port_range_is_counted() {
        assert_eq!(ports("32768\t60999\n"), Some(28_232));
        assert_eq!(ports(""), None);
    }
}
