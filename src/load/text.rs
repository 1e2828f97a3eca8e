//! Formats a report as text.

use std::fmt::{self, Write};

use super::report::{CauseCount, ConnectionsReport, Quantiles, Report, Usage};
use crate::client::trust::Certificates;
use crate::plural::plural;

/// Displays a report as text.
pub struct TextReport<'a>(pub &'a Report);

impl fmt::Display for TextReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        line(f, &report.setup.scenario, &setup(report))?;
        if report.interrupted {
            line(f, "INTERRUPTED", "the figures are those measured until the signal")?;
        }
        connections(f, "connections", &report.connections)?;
        if let Some(short_lived) = &report.churn {
            connections(f, "short-lived", short_lived)?;
        }
        storm(f, report)?;
        traffic(f, report)?;
        stalled(f, report)?;
        let closes = match report.unexpected_closes.as_slice() {
            [] => "none".to_owned(),
            closes => list(closes),
        };
        line(f, "closes", &format!("unexpected: {closes}"))?;
        if let Some(server) = report.server {
            line(f, "server", &usage(server))?;
        }
        memory(f, report)?;
        generator(f, report)?;
        for why in &report.invalid {
            line(f, "INVALID", why)?;
        }
        Ok(())
    }
}

/// The default width of a terminal, and the column of the text.
const COLUMNS: usize = 80;
const INDENT: usize = 14;

/// A name followed by text, wrapped at the width of a terminal.
fn line(f: &mut fmt::Formatter<'_>, name: &str, text: &str) -> fmt::Result {
    write!(f, "{name:<width$}", width = INDENT - 1)?;
    let mut column = INDENT - 1;
    for (number, word) in text.split(' ').enumerate() {
        let width = word.chars().count();
        if number > 0 && column + 1 + width > COLUMNS {
            write!(f, "\n{:INDENT$}{word}", "")?;
            column = INDENT + width;
        } else {
            write!(f, " {word}")?;
            column += 1 + width;
        }
    }
    writeln!(f)
}

/// The configuration of the run, in one line.
pub fn setup(report: &Report) -> String {
    let setup = &report.setup;
    let clients = plural(setup.connections, "client");
    let mut text = format!("{clients} on {} at {}", plural(setup.channels, "channel"), setup.address);
    text.push_str(match setup.tls {
        Some(Certificates::Checked) => " over TLS",
        Some(Certificates::NotChecked) => " over TLS, certificates not checked",
        None => "",
    });
    if setup.publishers > 0 {
        let _ = write!(
            text,
            "; {}, {}, ",
            plural(setup.publishers, "publisher"),
            plural(setup.payload_bytes, "byte")
        );
        let _ = match (setup.window, setup.rate_per_second) {
            (Some(window), _) => write!(text, "closed loop, {window} in flight each"),
            (_, Some(rate)) => write!(text, "open loop, {rate} messages/s"),
            _ => Ok(()),
        };
    }
    text
}

fn connections(f: &mut fmt::Formatter<'_>, name: &str, connections: &ConnectionsReport) -> fmt::Result {
    let ConnectionsReport { attempted, opened, failed, seconds, handshakes_per_second, .. } = connections;
    let mut text = format!(
        "attempted {attempted}, open {opened}, failed {failed}; {handshakes_per_second:.0} handshakes/s over {seconds:.2} s"
    );
    if let Some(micros) = connections.server_us_per_handshake {
        let _ = write!(text, "; {micros:.1} us of the server each");
    }
    line(f, name, &text)?;
    if failed > &0 {
        line(f, "failed", &list(&connections.failures))?;
    }
    line(f, "handshake", &quantiles(&connections.handshake_us))
}

fn storm(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(storm) = &report.storm else { return Ok(()) };
    let after =
        |seconds: Option<f64>| seconds.map_or("never".to_owned(), |seconds| format!("{seconds:.3} s"));
    let text = format!(
        "{} dropped, {} reconnected; 95 % after {}, all after {}; {}",
        storm.dropped,
        storm.returned,
        after(storm.seconds_to_95_percent),
        after(storm.seconds_to_100_percent),
        plural(storm.attempts, "attempt"),
    );
    line(f, "storm", &text)?;
    if !storm.failures.is_empty() {
        line(f, "failed", &list(&storm.failures))?;
    }
    line(f, "handshake", &quantiles(&storm.handshake_us))
}

fn traffic(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(traffic) = &report.traffic else { return Ok(()) };
    let text = format!(
        "{} sent, {} delivered in {:.2} s: {:.0}/s, {:.0}/s",
        traffic.sent,
        traffic.deliveries,
        traffic.seconds,
        traffic.sent_per_second,
        traffic.deliveries_per_second,
    );
    line(f, "messages", &text)?;
    if report.setup.deflate {
        let ConnectionsReport { opened, deflate_negotiated, .. } = report.connections;
        let (sent, plain) = (traffic.bytes_per_delivery, traffic.plain_bytes_per_delivery);
        let text = format!(
            "negotiated by {deflate_negotiated} of {}; {sent:.1} bytes a delivery, {:.1} % of {plain:.1} without",
            plural(opened, "client"),
            if plain > 0.0 { sent / plain * 100.0 } else { 100.0 }
        );
        line(f, "compression", &text)?;
    }
    let mut text = format!(
        "lost {}, duplicated {}, out of order {}",
        traffic.lost, traffic.duplicated, traffic.out_of_order
    );
    let rare = [
        ("corrupted", traffic.corrupted),
        ("misdelivered", traffic.misdelivered),
        ("cut off", traffic.cut_off),
        ("foreign", traffic.foreign),
        ("abandoned", traffic.abandoned),
        ("unsent", traffic.unsent),
    ];
    for (name, count) in rare.iter().filter(|(_, count)| *count > 0) {
        let _ = write!(text, ", {name} {count}");
    }
    line(f, "order", &text)?;
    if let Some(before) = &traffic.latency_before_us {
        line(f, "before", &quantiles(before))?;
    }
    line(f, "latency", &quantiles(&traffic.latency_us))?;
    line(f, "last client", &quantiles(&traffic.last_subscriber_us))
}

fn stalled(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(stalled) = &report.stalled else { return Ok(()) };
    let ended = if stalled.ended.is_empty() { "none ended".to_owned() } else { list(&stalled.ended) };
    line(f, "stalled", &format!("{}: {ended}", plural(stalled.subscribers, "client")))
}

fn memory(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let memory = &report.memory;
    let bytes = |slope: Option<f64>| slope.map_or("unknown".to_owned(), |slope| format!("{slope:.0}"));
    let text = format!(
        "bytes a connection: RSS {}, PSS {}; kernel, both ends: socket buffers {}, tables {}",
        bytes(memory.rss_bytes_per_connection),
        bytes(memory.pss_bytes_per_connection),
        bytes(memory.kernel_socket_bytes_per_connection),
        bytes(memory.kernel_slab_bytes_per_connection),
    );
    line(f, "memory", &text)
}

fn generator(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let own = &report.generator;
    let mut text = usage(own.usage);
    let _ =
        write!(text, "; loop lag p99 {}, max {}", micros(own.loop_lag_us.p99), micros(own.loop_lag_us.max));
    if report.setup.rate_per_second.is_some() {
        let _ = write!(text, "; sent late p99 {}", micros(own.send_lateness_us.p99));
    }
    line(f, "generator", &text)
}

fn usage(usage: Usage) -> String {
    let percent = |share: f64| share * 100.0;
    let mut text = format!(
        "busy {:.1} % (user {:.1}, system {:.1}), waited for a processor {:.1} %",
        percent(usage.cpu_share),
        percent(usage.user_share),
        percent(usage.system_share),
        percent(usage.waited_share),
    );
    if let (Some(all), Some(user), Some(system)) =
        (usage.ns_per_delivery, usage.user_ns_per_delivery, usage.system_ns_per_delivery)
    {
        let _ = write!(text, "; {all:.0} ns a delivery (user {user:.0}, system {system:.0})");
    }
    text
}

fn list(counts: &[CauseCount]) -> String {
    let one = |count: &CauseCount| format!("{} {} {}", count.count, count.phase, count.cause);
    counts.iter().map(one).collect::<Vec<String>>().join(", ")
}

fn quantiles(quantiles: &Quantiles) -> String {
    if quantiles.count == 0 {
        return "nothing".to_owned();
    }
    let Quantiles { p50, p95, p99, p999, max, .. } = *quantiles;
    format!(
        "p50 {}, p95 {}, p99 {}, p99.9 {}, max {}",
        micros(p50),
        micros(p95),
        micros(p99),
        micros(p999),
        micros(max)
    )
}

/// Microseconds in a readable unit, with three digits.
pub fn micros(micros: f64) -> String {
    match micros {
        ..99.95 => format!("{micros:.1} us"),
        ..999.5 => format!("{micros:.0} us"),
        ..9_995.0 => format!("{:.2} ms", micros / 1e3),
        ..99_950.0 => format!("{:.1} ms", micros / 1e3),
        ..999_500.0 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_has_three_digits_and_a_unit() {
        for (value, text) in [
            (0.0, "0.0 us"),
            (99.94, "99.9 us"),
            (99.96, "100 us"),
            (999.6, "1.00 ms"),
            (9_996.0, "10.0 ms"),
            (99_960.0, "100 ms"),
            (999_600.0, "1.00 s"),
            (60e6, "60.00 s"),
        ] {
            assert_eq!(micros(value), text);
        }
    }

    #[test]
    fn quantiles_are_named_with_their_values() {
        let all =
            Quantiles { count: 1, mean: 9.0, p50: 1.0, p90: 2.0, p95: 3.0, p99: 4.0, p999: 5.0, max: 6.0 };
        let text = "p50 1.0 us, p95 3.0 us, p99 4.0 us, p99.9 5.0 us, max 6.0 us";
        assert_eq!(quantiles(&all), text);
    }

    #[test]
    fn line_is_wrapped_at_the_width_of_a_terminal() {
        struct Line(String);
        impl fmt::Display for Line {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                line(f, "name", &self.0)
            }
        }
        let words = "abcd ".repeat(40);
        let text = Line(words.trim().to_owned()).to_string();
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(widths, [78, 78, 78, 18], "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("              abcd")), "{text}");
        assert_eq!(Line("x".repeat(100)).to_string().lines().count(), 1, "a word stays whole");
    }
}
