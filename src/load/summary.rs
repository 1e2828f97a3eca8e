//! Computes a report from the measurements of a run.

use hdrhistogram::Histogram;

use super::connection_stats::{Causes, ConnectionStats, Phase};
use super::measurements::{IntervalSample, Measurements, MemorySample};
use super::plan::{Plan, Speed, Workload};
use super::probe::CpuTime;
use super::report::{
    CauseCount, ConnectionsReport, Generator, MemoryPoint, MemoryReport, Quantiles, Report, Setup, Stalled,
    StormReport, TimelinePoint, TrafficReport, Usage,
};
use super::validity;
use crate::client::cause::Cause;
use crate::client::tls::TlsConnector;

impl Report {
    /// The report of a run.
    pub fn of(plan: &Plan, measurements: &Measurements, server_args: Option<String>) -> Report {
        let measured = measurements.measured;
        let deliveries = measured.map_or(0, |measured| measured.deliveries);
        let seconds = measured.map_or(0.0, |measured| measured.seconds);
        let usage = |spent: Option<CpuTime>| spent.map(|spent| Usage::new(spent, seconds, deliveries));
        let server = usage(measured.and_then(|measured| measured.server));
        let own = usage(measured.and_then(|measured| measured.own));
        let mut report = Report {
            oyez_version: env!("CARGO_PKG_VERSION").to_owned(),
            made: None,
            interrupted: measurements.interrupted,
            setup: Setup::new(plan, server_args),
            connections: ConnectionsReport {
                server_us_per_handshake: measurements
                    .ramp_server
                    .filter(|_| measurements.ramp.opened > 0)
                    .map(|spent| spent.nanos() / 1e3 / measurements.ramp.opened as f64),
                ..ConnectionsReport::new(&measurements.ramp, measurements.ramp_seconds)
            },
            churn: matches!(plan.workload, Workload::Churn { .. })
                .then(|| ConnectionsReport::new(&measurements.after, seconds)),
            traffic: plan.traffic.is_some().then(|| TrafficReport::new(measurements)),
            open_at_end: measurements.open_at_end,
            unexpected_closes: [counts(&measurements.ramp.lost), counts(&measurements.after.lost)].concat(),
            storm: measurements.storm.map(|storm| StormReport {
                dropped: storm.dropped,
                returned: storm.returned,
                seconds_to_95_percent: storm.seconds_to_95,
                seconds_to_100_percent: storm.seconds_to_100,
                attempts: measurements.after.attempted,
                failures: counts(&measurements.after.failed),
                handshake_us: Quantiles::of(&measurements.after.handshakes),
            }),
            stalled: (plan.stalled() > 0)
                .then(|| Stalled { subscribers: plan.stalled(), ended: counts(&measurements.after.stalled) }),
            server,
            memory: MemoryReport::new(&measurements.memory),
            generator: Generator {
                usage: own.unwrap_or(Usage::new(CpuTime::default(), 1.0, 0)),
                loop_lag_us: Quantiles::of(&measurements.lag),
                send_lateness_us: Quantiles::of(&measurements.lateness),
            },
            timeline: measurements.timeline.iter().map(TimelinePoint::new).collect(),
            invalid: Vec::new(),
        };
        report.invalid = validity::invalid(&report);
        report
    }
}

impl Setup {
    fn new(plan: &Plan, server_args: Option<String>) -> Setup {
        let speed = plan.traffic.map(|traffic| traffic.speed);
        Setup {
            scenario: plan.workload.name().to_owned(),
            address: plan.target.authority.clone(),
            tls: plan.target.tls.as_ref().map(TlsConnector::certificates),
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
            deflate: plan.target.offers_deflate,
        }
    }
}

impl ConnectionsReport {
    fn new(stats: &ConnectionStats, seconds: f64) -> ConnectionsReport {
        ConnectionsReport {
            attempted: stats.attempted,
            opened: stats.opened,
            deflate_negotiated: stats.deflate_negotiated,
            failed: stats.failed(),
            failures: counts(&stats.failed),
            seconds,
            handshakes_per_second: ratio(stats.opened as f64, seconds),
            server_us_per_handshake: None,
            handshake_us: Quantiles::of(&stats.handshakes),
        }
    }
}

impl TrafficReport {
    fn new(measurements: &Measurements) -> TrafficReport {
        let (seconds, sent, deliveries) = measurements
            .measured
            .map_or((0.0, 0, 0), |measured| (measured.seconds, measured.sent, measured.deliveries));
        let (sent_bytes, plain_bytes) =
            measurements.measured.map_or((0, 0), |measured| measured.delivered_bytes);
        let counts = measurements.counts;
        TrafficReport {
            seconds,
            sent,
            sent_per_second: ratio(sent as f64, seconds),
            deliveries,
            deliveries_per_second: ratio(deliveries as f64, seconds),
            bytes_per_delivery: ratio(sent_bytes as f64, deliveries as f64),
            plain_bytes_per_delivery: ratio(plain_bytes as f64, deliveries as f64),
            corrupted: counts.corrupted,
            latency_us: Quantiles::of(&measurements.latency),
            last_subscriber_us: Quantiles::of(&measurements.last_subscriber),
            latency_before_us: measurements.latency_before.as_ref().map(Quantiles::of),
            distribution: distribution(&measurements.latency),
            lost: measurements.lost,
            duplicated: counts.duplicated,
            out_of_order: counts.out_of_order,
            misdelivered: counts.misdelivered,
            cut_off: counts.cut_off,
            foreign: counts.foreign,
            abandoned: counts.abandoned,
            unsent: measurements.unsent,
        }
    }
}

impl Quantiles {
    /// Quantiles in microseconds, from nanoseconds.
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
    fn new(spent: CpuTime, seconds: f64, deliveries: u64) -> Usage {
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

impl MemoryReport {
    fn new(points: &[MemorySample]) -> MemoryReport {
        let points: Vec<MemoryPoint> = points
            .iter()
            .map(|point| MemoryPoint {
                connections: point.connections,
                rss_bytes: point.server.map(|memory| memory.rss),
                pss_bytes: point.server.and_then(|memory| memory.pss),
                anonymous_bytes: point.server.and_then(|memory| memory.anonymous),
                kernel_socket_bytes: point.kernel.sockets,
                kernel_slab_bytes: point.kernel.slab,
            })
            .collect();
        // A point after a broadcast at the same number of connections includes the broadcast's buffers, so the slope
        // is taken over the ramp only. It leaves out the first step, in which a server allocates its shared
        // structures.
        let rising = points.windows(2).take_while(|pair| pair[0].connections < pair[1].connections).count();
        let ramp = &points[..points.len().min(rising + 1)];
        let ramp = if ramp.len() > 3 { &ramp[1..] } else { ramp };
        let over = |value: fn(&MemoryPoint) -> Option<u64>| {
            slope(ramp.iter().filter_map(|at| Some((at.connections as f64, value(at)? as f64))))
        };
        MemoryReport {
            rss_bytes_per_connection: over(|at| at.rss_bytes),
            pss_bytes_per_connection: over(|at| at.pss_bytes),
            kernel_socket_bytes_per_connection: over(|at| Some(at.kernel_socket_bytes)),
            kernel_slab_bytes_per_connection: over(|at| Some(at.kernel_slab_bytes)),
            points,
        }
    }
}

impl TimelinePoint {
    fn new(point: &IntervalSample) -> TimelinePoint {
        TimelinePoint {
            seconds: point.seconds,
            open: point.open,
            deliveries: point.deliveries,
            p50_us: micros(point.p50),
            p99_us: micros(point.p99),
            max_us: micros(point.max),
        }
    }
}

/// Slope of the linear regression (least squares).
fn slope(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let points: Vec<(f64, f64)> = points.collect();
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let common: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    (spread > 0.0).then(|| common / spread)
}

/// Quantiles from the median towards one, each step a part of the rest, up to single deliveries.
fn distribution(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let last = 1.0 - 1.0 / histogram.len() as f64;
    let at = |quantile: f64| (quantile, micros(histogram.value_at_quantile(quantile).min(histogram.max())));
    let steps = histogram.iter_quantiles(5).map(|step| step.quantile_iterated_to());
    steps.take_while(|&quantile| quantile < last).chain([last]).map(at).collect()
}

fn counts(causes: &Causes) -> Vec<CauseCount> {
    let count = |((phase, cause), count): (&(Phase, Cause), &u64)| CauseCount {
        phase: phase.as_str().to_owned(),
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
    fn slope_of_points_is_that_of_their_line() {
        let line = |points: &[(f64, f64)]| slope(points.iter().copied());
        assert_eq!(line(&[(0.0, 5.0), (10.0, 25.0), (20.0, 45.0)]), Some(2.0));
        assert_eq!(line(&[(10.0, 5.0)]), None);
        assert_eq!(line(&[]), None);
    }

    #[test]
    fn quantiles_of_a_hundred_values_are_its_ranks() {
        let mut nanos = Histogram::new(3).unwrap();
        (1..=100).for_each(|rank| nanos.record(rank * 1_000).unwrap());
        let Quantiles { count, p50, p90, p95, p99, p999, max, .. } = Quantiles::of(&nanos);
        assert_eq!(count, 100);
        // Three digits are kept.
        for (value, rank) in [(p50, 50.0), (p90, 90.0), (p95, 95.0), (p99, 99.0), (p999, 100.0), (max, 100.0)]
        {
            assert!((value - rank).abs() < rank / 500.0, "{value} {rank}");
        }
    }
}
