//! From what a run found to what its report says.

use hdrhistogram::Histogram;

use super::findings::{self, Findings, MemoryPoint};
use super::plan::{Plan, Scenario, Speed};
use super::probe::Spent;
use super::report::{
    Connections, Count, Generator, Memory, MemoryAt, Point, Quantiles, Report, Setup, Stalled, Storm,
    Traffic, Usage,
};
use super::tally::{Causes, Phase, Tally};
use super::verdict;
use crate::client::cause::Cause;

impl Report {
    /// Draws up the report of a run.
    pub fn of(plan: &Plan, found: &Findings, server_args: Option<String>) -> Report {
        let measured = found.measured;
        let deliveries = measured.map_or(0, |measured| measured.deliveries);
        let seconds = measured.map_or(0.0, |measured| measured.seconds);
        let usage = |spent: Option<Spent>| spent.map(|spent| Usage::new(spent, seconds, deliveries));
        let server = usage(measured.and_then(|measured| measured.server));
        let own = usage(measured.and_then(|measured| measured.own));
        let mut report = Report {
            oyez_version: env!("CARGO_PKG_VERSION").to_owned(),
            made: None,
            interrupted: found.interrupted,
            setup: Setup::new(plan, server_args),
            connections: Connections {
                server_us_per_handshake: found
                    .ramp_server
                    .filter(|_| found.ramp.opened > 0)
                    .map(|spent| spent.nanos() / 1e3 / found.ramp.opened as f64),
                ..Connections::new(&found.ramp, found.ramp_seconds)
            },
            guests: matches!(plan.scenario, Scenario::Churn { .. })
                .then(|| Connections::new(&found.after, seconds)),
            traffic: plan.traffic.is_some().then(|| Traffic::new(found)),
            open_at_end: found.open_at_end,
            unexpected_closes: [counts(&found.ramp.lost), counts(&found.after.lost)].concat(),
            storm: found.storm.map(|storm| Storm {
                dropped: storm.dropped,
                returned: storm.returned,
                seconds_to_95_percent: storm.seconds_to_95,
                seconds_to_100_percent: storm.seconds_to_100,
                attempts: found.after.attempted,
                refused_by: counts(&found.after.refused),
                handshake_us: Quantiles::of(&found.after.handshakes),
            }),
            stalled: (plan.stalled() > 0)
                .then(|| Stalled { members: plan.stalled(), ended: counts(&found.after.stalled) }),
            server,
            memory: Memory::new(&found.memory),
            generator: Generator {
                usage: own.unwrap_or(Usage::new(Spent::default(), 1.0, 0)),
                loop_lag_us: Quantiles::of(&found.lag),
                send_lateness_us: Quantiles::of(&found.lateness),
            },
            timeline: found.timeline.iter().map(Point::new).collect(),
            invalid: Vec::new(),
        };
        report.invalid = verdict::invalid(&report);
        report
    }
}

impl Setup {
    fn new(plan: &Plan, server_args: Option<String>) -> Setup {
        let speed = plan.traffic.map(|traffic| traffic.speed);
        Setup {
            scenario: plan.scenario.name().to_owned(),
            address: plan.target.authority.clone(),
            tls: plan.target.tls.as_ref().map(|tls| tls.certificates),
            connections: plan.connections,
            channels: plan.channels,
            ramp_seconds: plan.ramp.as_secs_f64(),
            publishers: plan.traffic.map_or(0, |traffic| traffic.publishers),
            payload_bytes: plan.traffic.map_or(0, |traffic| traffic.payload_bytes),
            window: match speed {
                Some(Speed::Window(window)) => Some(window),
                _ => None,
            },
            rate_per_second: match speed {
                Some(Speed::Rate(rate)) => Some(rate),
                _ => None,
            },
            server_args,
        }
    }
}

impl Connections {
    fn new(tally: &Tally, seconds: f64) -> Connections {
        Connections {
            attempted: tally.attempted,
            opened: tally.opened,
            refused: tally.refused(),
            refused_by: counts(&tally.refused),
            seconds,
            handshakes_per_second: ratio(tally.opened as f64, seconds),
            server_us_per_handshake: None,
            handshake_us: Quantiles::of(&tally.handshakes),
        }
    }
}

impl Traffic {
    fn new(found: &Findings) -> Traffic {
        let (seconds, sent, deliveries) = found
            .measured
            .map_or((0.0, 0, 0), |measured| (measured.seconds, measured.sent, measured.deliveries));
        let counts = found.counts;
        Traffic {
            seconds,
            sent,
            sent_per_second: ratio(sent as f64, seconds),
            deliveries,
            deliveries_per_second: ratio(deliveries as f64, seconds),
            latency_us: Quantiles::of(&found.latency),
            last_member_us: Quantiles::of(&found.last_member),
            latency_before_us: found.latency_before.as_ref().map(Quantiles::of),
            distribution: distribution(&found.latency),
            lost: found.lost,
            duplicated: counts.duplicated,
            out_of_order: counts.out_of_order,
            misdelivered: counts.misdelivered,
            cut_off: counts.cut_off,
            foreign: counts.foreign,
            abandoned: counts.abandoned,
            unsent: found.unsent,
        }
    }
}

impl Quantiles {
    /// The quantiles of nanoseconds, in microseconds.
    pub fn of(histogram: &Histogram<u64>) -> Quantiles {
        if histogram.is_empty() {
            return Quantiles::default();
        }
        let at = |quantile| micros(histogram.value_at_quantile(quantile).min(histogram.max()));
        Quantiles {
            count: histogram.len(),
            mean: (histogram.mean() / 10.0).round() / 100.0,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(histogram.max()),
        }
    }
}

impl Usage {
    fn new(spent: Spent, seconds: f64, deliveries: u64) -> Usage {
        let share = |nanos: f64| ratio(nanos, seconds * 1e9);
        let each = |nanos: f64| (deliveries > 0).then(|| nanos / deliveries as f64);
        Usage {
            cpu_share: share(spent.nanos()),
            user_share: share(spent.user_nanos),
            system_share: share(spent.system_nanos),
            waited_share: share(spent.waited_nanos),
            ns_per_delivery: each(spent.nanos()),
            user_ns_per_delivery: each(spent.user_nanos),
            system_ns_per_delivery: each(spent.system_nanos),
        }
    }
}

impl Memory {
    fn new(points: &[MemoryPoint]) -> Memory {
        let points: Vec<MemoryAt> = points
            .iter()
            .map(|point| MemoryAt {
                connections: point.connections,
                rss_bytes: point.server.map(|memory| memory.rss),
                pss_bytes: point.server.and_then(|memory| memory.pss),
                kernel_socket_bytes: point.kernel.sockets,
                kernel_slab_bytes: point.kernel.slab,
            })
            .collect();
        // What is measured after a broadcast at the same number of connections holds the broadcast's
        // buffers too; the slope is that of the ramp, and not of its first step, where a server sets up
        // what it needs once.
        let rising = points.windows(2).take_while(|pair| pair[0].connections < pair[1].connections).count();
        let ramp = &points[..points.len().min(rising + 1)];
        let ramp = if ramp.len() > 3 { &ramp[1..] } else { ramp };
        let over = |value: fn(&MemoryAt) -> Option<u64>| {
            slope(ramp.iter().filter_map(|at| Some((at.connections as f64, value(at)? as f64))))
        };
        Memory {
            rss_bytes_per_connection: over(|at| at.rss_bytes),
            pss_bytes_per_connection: over(|at| at.pss_bytes),
            kernel_socket_bytes_per_connection: over(|at| Some(at.kernel_socket_bytes)),
            kernel_slab_bytes_per_connection: over(|at| Some(at.kernel_slab_bytes)),
            points,
        }
    }
}

impl Point {
    fn new(point: &findings::Point) -> Point {
        Point {
            seconds: point.seconds,
            open: point.open,
            deliveries: point.deliveries,
            p50_us: micros(point.p50),
            p99_us: micros(point.p99),
            max_us: micros(point.max),
        }
    }
}

/// The slope of the line that lies closest to the points (least squares).
fn slope(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let points: Vec<(f64, f64)> = points.collect();
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let common: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    (spread > 0.0).then(|| common / spread)
}

/// From the median towards one, each step a part of what is left, as far as single deliveries.
fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let last = 1.0 - 1.0 / histogram.len() as f64;
    let at = |quantile: f64| (quantile, micros(histogram.value_at_quantile(quantile).min(histogram.max())));
    let steps = histogram.iter_quantiles(5).map(|step| step.quantile_iterated_to());
    steps.take_while(|&quantile| quantile < last).chain([last]).map(at).collect()
}

fn counts(causes: &Causes) -> Vec<Count> {
    let count = |((phase, cause), count): (&(Phase, Cause), &u64)| Count {
        phase: phase.word().to_owned(),
        cause: cause.to_string(),
        count: *count,
    };
    causes.iter().map(count).collect()
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn ratio(value: f64, of: f64) -> f64 {
    if of > 0.0 { value / of } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes() {
        let line = |points: &[(f64, f64)]| slope(points.iter().copied());
        assert_eq!(line(&[(0.0, 5.0), (10.0, 25.0), (20.0, 45.0)]), Some(2.0));
        assert_eq!(line(&[(10.0, 5.0)]), None);
        assert_eq!(line(&[]), None);
    }
}
