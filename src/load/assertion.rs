//! `--assert "loss=0,p99<50ms"`: conditions that a report must meet.

use std::fmt;

use super::report::{Quantiles, Report};

/// One condition.
#[derive(Clone, Debug)]
pub struct Assertion {
    figure: Figure,
    comparison: Comparison,
    value: f64,
    /// The condition as given on the command line.
    text: String,
}

/// A figure of a report that can be asserted.
#[derive(Clone, Copy, Debug)]
struct Figure {
    name: &'static str,
    unit: Unit,
    of: fn(&Report) -> Option<f64>,
}

/// The unit of a figure; decides which suffixes its values may have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    /// Plain numbers.
    CauseCount,
    /// Percent of one processor.
    Percent,
    /// Bytes; the suffixes KiB and MiB are accepted.
    Bytes,
    /// Time in microseconds; a value needs a unit.
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Less,
    AtMost,
    Equal,
    NotEqual,
    AtLeast,
    Greater,
}

/// A condition that a report does not meet.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedAssertion {
    text: String,
    found: Option<String>,
}

/// The figure that counts the reasons why a run is invalid.
const VALIDITY: &str = "invalid";

/// All figures. Those of traffic come first, since they are asserted most.
const FIGURES: [Figure; 34] = [
    count("loss", |report| Some(report.traffic.as_ref()?.lost as f64)),
    count("duplicated", |report| Some(report.traffic.as_ref()?.duplicated as f64)),
    count("out_of_order", |report| Some(report.traffic.as_ref()?.out_of_order as f64)),
    count("misdelivered", |report| Some(report.traffic.as_ref()?.misdelivered as f64)),
    count("cut_off", |report| Some(report.traffic.as_ref()?.cut_off as f64)),
    count("abandoned", |report| Some(report.traffic.as_ref()?.abandoned as f64)),
    count("unsent", |report| Some(report.traffic.as_ref()?.unsent as f64)),
    count("sent_per_second", |report| Some(report.traffic.as_ref()?.sent_per_second)),
    count("deliveries", |report| Some(report.traffic.as_ref()?.deliveries as f64)),
    count("deliveries_per_second", |report| Some(report.traffic.as_ref()?.deliveries_per_second)),
    time("p50", |report| Some(latency(report)?.p50)),
    time("p90", |report| Some(latency(report)?.p90)),
    time("p95", |report| Some(latency(report)?.p95)),
    time("p99", |report| Some(latency(report)?.p99)),
    time("p99.9", |report| Some(latency(report)?.p999)),
    time("max", |report| Some(latency(report)?.max)),
    time("last_p50", |report| Some(last(report)?.p50)),
    time("last_p95", |report| Some(last(report)?.p95)),
    time("last_p99", |report| Some(last(report)?.p99)),
    time("last_max", |report| Some(last(report)?.max)),
    count("open", |report| Some(report.connections.opened as f64)),
    count("failed", |report| Some(failed(report))),
    count("closes", |report| Some(report.closes() as f64)),
    count("handshakes_per_second", |report| Some(report.connections.handshakes_per_second)),
    time("handshake_p99", |report| Some(report.connections.handshake_us.p99)),
    count("returned", |report| Some(report.storm.as_ref()?.returned as f64)),
    time("back_95", |report| Some(report.storm.as_ref()?.seconds_to_95_percent? * 1e6)),
    time("back_100", |report| Some(report.storm.as_ref()?.seconds_to_100_percent? * 1e6)),
    time("cpu_per_delivery", |report| Some(report.server?.ns_per_delivery? / 1e3)),
    Figure { name: "cpu", unit: Unit::Percent, of: |report| Some(report.server?.cpu_share * 100.0) },
    Figure { name: "rss", unit: Unit::Bytes, of: |report| report.memory.rss_bytes_per_connection },
    Figure { name: "pss", unit: Unit::Bytes, of: |report| report.memory.pss_bytes_per_connection },
    time("lag_p99", |report| Some(report.generator.loop_lag_us.p99)),
    count(VALIDITY, |report| Some(report.invalid.len() as f64)),
];

const fn count(name: &'static str, of: fn(&Report) -> Option<f64>) -> Figure {
    Figure { name, unit: Unit::CauseCount, of }
}

const fn time(name: &'static str, of: fn(&Report) -> Option<f64>) -> Figure {
    Figure { name, unit: Unit::Time, of }
}

/// An empty distribution has no quantiles.
fn latency(report: &Report) -> Option<Quantiles> {
    report.traffic.as_ref().map(|traffic| traffic.latency_us).filter(|latency| latency.count > 0)
}

fn last(report: &Report) -> Option<Quantiles> {
    report.traffic.as_ref().map(|traffic| traffic.last_subscriber_us).filter(|latency| latency.count > 0)
}

fn failed(report: &Report) -> f64 {
    let short_lived = report.churn.as_ref().map_or(0, |churn| churn.failed);
    (report.connections.failed + short_lived) as f64
}

impl Assertion {
    /// Parses a comma-separated list.
    ///
    /// # Errors
    /// The first invalid condition, and the valid forms.
    pub fn parse_all(text: &str) -> Result<Vec<Assertion>, String> {
        text.split(',').map(str::trim).map(Assertion::parse).collect()
    }

    fn parse(text: &str) -> Result<Assertion, String> {
        let signs = [
            ("<=", Comparison::AtMost),
            (">=", Comparison::AtLeast),
            ("!=", Comparison::NotEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
            ("=", Comparison::Equal),
        ];
        let split = signs.iter().find_map(|&(sign, comparison)| {
            text.split_once(sign).map(|(name, value)| (name.trim(), comparison, value.trim()))
        });
        let Some((name, comparison, value)) = split else {
            return Err(format!("{text:?} has no comparison: write loss=0 or p99<50ms"));
        };
        let Some(&figure) = FIGURES.iter().find(|figure| figure.name == name) else {
            let names: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
            return Err(format!("{name:?} is not a figure; valid figures: {}", names.join(" ")));
        };
        let value = figure.unit.parse(value).map_err(|why| format!("{text:?}: {why}"))?;
        Ok(Assertion { figure, comparison, value, text: text.to_owned() })
    }

    /// Checks the condition. A report without the figure does not meet it.
    ///
    /// # Errors
    /// The value in the report.
    pub fn check(&self, report: &Report) -> Result<(), FailedAssertion> {
        let found = (self.figure.of)(report);
        let value = self.value;
        let holds = found.is_some_and(|found| match self.comparison {
            Comparison::Less => found < value,
            Comparison::AtMost => found <= value,
            Comparison::Equal => found == value,
            Comparison::NotEqual => found != value,
            Comparison::AtLeast => found >= value,
            Comparison::Greater => found > value,
        });
        if holds {
            return Ok(());
        }
        Err(FailedAssertion {
            text: self.text.clone(),
            found: found.map(|found| self.figure.unit.show(found)),
        })
    }
}

/// Checks all conditions, and that the run is valid: the figures of an invalid run do not describe the server. A
/// condition on `invalid` replaces the check of validity.
pub fn check_all(assertions: &[Assertion], report: &Report) -> Vec<String> {
    let failed = assertions.iter().filter_map(|assertion| assertion.check(report).err());
    let mut broken: Vec<String> = failed.map(|failed| failed.to_string()).collect();
    if !assertions.iter().any(|assertion| assertion.figure.name == VALIDITY) {
        broken.extend(report.invalid.iter().map(|why| format!("the run is invalid: {why}")));
    }
    broken
}

impl fmt::Display for FailedAssertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(found) => write!(f, "{} does not hold: it is {found}", self.text),
            None => write!(f, "{} does not hold: this run has no such figure", self.text),
        }
    }
}

impl Unit {
    fn parse(self, text: &str) -> Result<f64, String> {
        let scales: &[(&str, f64)] = match self {
            Unit::CauseCount => &[],
            Unit::Percent => &[("%", 1.0)],
            Unit::Bytes => &[("KiB", 1024.0), ("MiB", 1024.0 * 1024.0), ("B", 1.0)],
            Unit::Time => &[("ns", 1e-3), ("us", 1.0), ("ms", 1e3), ("s", 1e6)],
        };
        let scaled = scales.iter().find_map(|&(unit, scale)| Some((text.strip_suffix(unit)?, scale)));
        let (digits, scale) = match (scaled, self) {
            (Some(scaled), _) => scaled,
            (None, Unit::Time) => return Err("a time needs a unit: ns, us, ms or s".to_owned()),
            (None, _) => (text, 1.0),
        };
        match digits.trim().parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value * scale),
            _ => Err(format!("{text:?} is not a number")),
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Unit::CauseCount if value.fract() == 0.0 => format!("{value}"),
            Unit::CauseCount => format!("{value:.1}"),
            Unit::Percent => format!("{value:.1}%"),
            Unit::Bytes => format!("{value:.0}B"),
            Unit::Time => super::text::micros(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::server_url::ServerUrl;
    use crate::client::trust::Trust;
    use crate::load::measurements::Measurements;
    use crate::load::plan::{Plan, Workload};
    use crate::load::target::BenchTarget;

    #[test]
    fn assertion_is_parsed_with_its_unit() {
        let value = |text: &str| Assertion::parse(text).map(|assertion| assertion.value);
        assert_eq!(value("loss=0"), Ok(0.0));
        assert_eq!(value(" p99 <= 50ms "), Ok(50_000.0));
        assert_eq!(value("p99.9<1.5s"), Ok(1_500_000.0));
        assert_eq!(value("cpu_per_delivery<500ns"), Ok(0.5));
        assert_eq!(value("pss<1KiB"), Ok(1024.0));
        assert_eq!(value("cpu<80%"), Ok(80.0));
        for bad in ["", "loss", "loss=", "loss=x", "p99<50", "p98<1ms", "loss=0ms", "p99<infs", "loss==0"] {
            assert!(Assertion::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Assertion::parse_all("loss=0, p99<50ms").map(|all| all.len()), Ok(2));
    }

    #[test]
    fn invalid_run_fails_unless_a_condition_allows_it() {
        let url = ServerUrl::parse("ws://127.0.0.1:1").unwrap();
        let target = BenchTarget::resolve(&url, &Trust::Public).unwrap();
        let (workload, ramp) = (Workload::Fanout, Duration::ZERO);
        let plan = Plan { workload, target, connections: 1, channels: 1, ramp, traffic: None, pid: None };
        let mut report = Report::of(&plan, &Measurements::new(None), None);
        report.invalid.clear();
        let check = |list: &str, report: &Report| check_all(&Assertion::parse_all(list).unwrap(), report);
        assert_eq!(check("open=0", &report), Vec::<String>::new());
        report.invalid.push("it was busy".to_owned());
        assert_eq!(check("open=0", &report), ["the run is invalid: it was busy"]);
        assert_eq!(check("open=0,invalid<=1", &report), Vec::<String>::new());
        assert_eq!(check("open=0,invalid=0", &report), ["invalid=0 does not hold: it is 1"]);
    }
}
