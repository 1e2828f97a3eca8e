//! Reports as one self-contained HTML page: a table of figures, followed by charts.

use std::fmt::Write;

use super::chart::{self, Axis, Chart, Scale, Series, escape};
use super::report::{CauseCount, Quantiles, Report};
use super::text::{TextReport, micros, setup};

const STYLE: &str = include_str!("page.css");

/// A report and its name.
pub struct Run {
    /// The name, from the file or the scenario.
    pub name: String,
    /// The report.
    pub report: Report,
}

/// An HTML page that compares the reports.
///
/// # Errors
/// A chart cannot be drawn.
pub fn page(runs: &[Run]) -> Result<String, String> {
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>oyez bench: {}</title>\n<style>\n{STYLE}</style>\n<main>\n<h1>oyez bench</h1>\n",
        names.join(", ")
    );
    for run in runs {
        for why in &run.report.invalid {
            let _ = writeln!(
                page,
                "<p class=\"invalid\"><strong>INVALID</strong> {}: {}</p>",
                escape(&run.name),
                escape(why)
            );
        }
    }
    page.push_str(&table(runs));
    page.push_str(&latency_over_time(runs)?);
    page.push_str(&open_over_time(runs)?);
    page.push_str(&distribution(runs)?);
    page.push_str(&memory(runs)?);
    page.push_str("<h2>In full</h2>\n");
    for run in runs {
        let _ = writeln!(
            page,
            "<details><summary>{}</summary><pre>{}</pre></details>",
            escape(&run.name),
            escape(&TextReport(&run.report).to_string())
        );
    }
    page.push_str("</main>\n</html>\n");
    Ok(page)
}

/// A figure's name, and its text for a report that contains it.
type Row = (&'static str, fn(&Report) -> Option<String>);

const ROWS: [Row; 25] = [
    ("Configuration", |report| Some(format!("{}: {}", report.setup.scenario, setup(report)))),
    ("Date", |report| Some(report.made.as_ref()?.date.clone())),
    ("Host", |report| Some(report.made.as_ref()?.host.clone())),
    ("Command line", |report| Some(report.made.as_ref()?.command_line.clone())),
    ("Versions", |report| Some(report.made.as_ref()?.versions.clone())),
    ("Validity", |report| {
        let word = if report.invalid.is_empty() { "valid" } else { "INVALID" };
        Some(if report.interrupted { format!("{word}, interrupted") } else { word.to_owned() })
    }),
    ("Connections open, of attempted", |report| {
        Some(format!("{} of {}", report.connections.opened, report.connections.attempted))
    }),
    ("Failed", |report| Some(list(&report.connections.failures))),
    ("Unexpected closes", |report| Some(list(&report.unexpected_closes))),
    ("Handshakes a second", |report| Some(format!("{:.0}", report.connections.handshakes_per_second))),
    ("Reconnected after a storm: 95 %, all", |report| {
        let storm = report.storm.as_ref()?;
        let after =
            |seconds: Option<f64>| seconds.map_or("never".to_owned(), |after| format!("{after:.3} s"));
        Some(format!("{}, {}", after(storm.seconds_to_95_percent), after(storm.seconds_to_100_percent)))
    }),
    ("Messages sent a second", |report| Some(format!("{:.0}", report.traffic.as_ref()?.sent_per_second))),
    ("Deliveries a second", |report| Some(format!("{:.0}", report.traffic.as_ref()?.deliveries_per_second))),
    ("Lost, duplicated, out of order", |report| {
        let traffic = report.traffic.as_ref()?;
        Some(format!("{}, {}, {}", traffic.lost, traffic.duplicated, traffic.out_of_order))
    }),
    ("Latency p50", |report| Some(micros(latency(report)?.p50))),
    ("Latency p95", |report| Some(micros(latency(report)?.p95))),
    ("Latency p99", |report| Some(micros(latency(report)?.p99))),
    ("Latency p99.9", |report| Some(micros(latency(report)?.p999))),
    ("Latency maximum", |report| Some(micros(latency(report)?.max))),
    ("Last client p50, p99", |report| {
        let last = report.traffic.as_ref()?.last_subscriber_us;
        Some(format!("{}, {}", micros(last.p50), micros(last.p99)))
    }),
    ("Server: ns a delivery (user + system)", |report| {
        let server = report.server?;
        Some(format!(
            "{:.0} ({:.0} + {:.0})",
            server.ns_per_delivery?, server.user_ns_per_delivery?, server.system_ns_per_delivery?
        ))
    }),
    ("Server busy", |report| Some(format!("{:.0} %", report.server?.cpu_share * 100.0))),
    ("Server: bytes a connection, RSS, PSS", |report| {
        let memory = &report.memory;
        Some(format!("{:.0}, {:.0}", memory.rss_bytes_per_connection?, memory.pss_bytes_per_connection?))
    }),
    ("Kernel, both ends: buffers, tables", |report| {
        let memory = &report.memory;
        Some(format!(
            "{:.0}, {:.0}",
            memory.kernel_socket_bytes_per_connection?, memory.kernel_slab_bytes_per_connection?
        ))
    }),
    ("Load generator busy, lag p99", |report| {
        let own = &report.generator;
        Some(format!("{:.0} %, {}", own.usage.cpu_share * 100.0, micros(own.loop_lag_us.p99)))
    }),
];

fn latency(report: &Report) -> Option<Quantiles> {
    report.traffic.as_ref().map(|traffic| traffic.latency_us).filter(|latency| latency.count > 0)
}

fn list(counts: &[CauseCount]) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let one = |count: &CauseCount| format!("{} {}", count.count, count.cause);
    counts.iter().map(one).collect::<Vec<String>>().join(", ")
}

/// One column per report, without the rows that no report contains.
fn table(runs: &[Run]) -> String {
    let mut table = String::from("<div class=\"wide\"><table>\n<thead><tr><th></th>");
    for run in runs {
        let _ = write!(table, "<th scope=\"col\">{}</th>", escape(&run.name));
    }
    table.push_str("</tr></thead>\n<tbody>\n");
    for (name, of) in ROWS {
        let cells: Vec<Option<String>> = runs.iter().map(|run| of(&run.report)).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(table, "<tr><th scope=\"row\">{name}</th>");
        for cell in cells {
            let _ = write!(table, "<td>{}</td>", escape(cell.as_deref().unwrap_or("-")));
        }
        table.push_str("</tr>\n");
    }
    table.push_str("</tbody></table></div>\n");
    table
}

/// One panel per report, all on the same scale.
fn latency_over_time(runs: &[Run]) -> Result<String, String> {
    let points = |report: &Report, value: fn(&super::report::TimelinePoint) -> f64| {
        let reached = report.timeline.iter().filter(|point| point.max_us > 0.0);
        reached.map(|point| (point.seconds, value(point))).collect::<Vec<(f64, f64)>>()
    };
    let panels: Vec<(&Run, Vec<Series>)> = runs
        .iter()
        .map(|run| {
            let series = |name: &str, style, value| Series {
                name: name.to_owned(),
                style,
                points: points(&run.report, value),
            };
            let lines = vec![
                series("maximum", 2, |point| point.max_us),
                series("p99", 1, |point| point.p99_us),
                series("p50", 0, |point| point.p50_us),
            ];
            (run, lines)
        })
        .filter(|(_, lines)| !lines[0].points.is_empty())
        .collect();
    let all: Vec<Series> = panels.iter().flat_map(|(_, lines)| lines.clone()).collect();
    let titles = panels.iter().map(|(run, _)| run.name.clone()).collect::<Vec<String>>();
    let panels = titles.into_iter().zip(panels.into_iter().map(|(_, lines)| lines)).collect();
    section("Latency over time", panels, |values| {
        let x = Axis::over("seconds", Scale::Linear, plain, values(&all, |point| point.0));
        let y = Axis::over("latency", Scale::Logarithmic, power, values(&all, |point| point.1));
        (x, y)
    })
}

/// Open connections in storms and churns.
fn open_over_time(runs: &[Run]) -> Result<String, String> {
    let lines = lines(runs, |report| {
        let is_moving = report.storm.is_some() || report.churn.is_some();
        let points = report.timeline.iter().filter(|_| is_moving);
        points.map(|point| (point.seconds, point.open as f64)).collect()
    });
    one_chart("Open connections", lines, |all, values| {
        let x = Axis::over("seconds", Scale::Linear, plain, values(all, |point| point.0));
        let y = Axis::over("connections", Scale::Linear, plain, values(all, |point| point.1));
        (x, y)
    })
}

fn distribution(runs: &[Run]) -> Result<String, String> {
    let lines = lines(runs, |report| {
        report.traffic.iter().flat_map(|traffic| traffic.distribution.iter().copied()).collect()
    });
    one_chart("Latency distribution", lines, |all, values| {
        let x = Axis::over(
            "share of deliveries that are faster",
            Scale::Nines,
            share,
            values(all, |point| point.0),
        );
        let y = Axis::over("latency", Scale::Logarithmic, power, values(all, |point| point.1));
        (x, y)
    })
}

fn memory(runs: &[Run]) -> Result<String, String> {
    let lines = lines(runs, |report| {
        let bytes = |at: &super::report::MemoryPoint| at.pss_bytes.or(at.rss_bytes);
        let points = report.memory.points.iter();
        points.filter_map(|at| Some((at.connections as f64, bytes(at)? as f64 / 1048576.0))).collect()
    });
    one_chart("The server's memory", lines, |all, values| {
        let x = Axis::over("connections", Scale::Linear, plain, values(all, |point| point.0));
        let y = Axis::over("MiB (PSS)", Scale::Linear, decimal, values(all, |point| point.1));
        (x, y)
    })
}

/// One line per report that has points, in the style of that report.
fn lines(runs: &[Run], points: fn(&Report) -> Vec<(f64, f64)>) -> Vec<Series> {
    runs.iter()
        .enumerate()
        .map(|(style, run)| Series { name: run.name.clone(), style, points: points(&run.report) })
        .filter(|line| !line.points.is_empty())
        .collect()
}

/// All values of the lines on one axis.
type Values = fn(&[Series], fn(&(f64, f64)) -> f64) -> std::vec::IntoIter<f64>;

fn values(series: &[Series], value: fn(&(f64, f64)) -> f64) -> std::vec::IntoIter<f64> {
    let all: Vec<f64> = series.iter().flat_map(|line| line.points.iter().map(value)).collect();
    all.into_iter()
}

fn one_chart(
    title: &str,
    lines: Vec<Series>,
    axes: impl Fn(&[Series], Values) -> (Axis, Axis),
) -> Result<String, String> {
    let (x, y) = axes(&lines, values);
    let panels = if lines.is_empty() { Vec::new() } else { vec![(String::new(), lines)] };
    section(title, panels, |_| (x.clone(), y.clone()))
}

/// A heading, a legend and one chart per panel; empty without panels.
fn section(
    title: &str,
    panels: Vec<(String, Vec<Series>)>,
    axes: impl Fn(Values) -> (Axis, Axis),
) -> Result<String, String> {
    let Some((_, first)) = panels.first() else { return Ok(String::new()) };
    let mut out = format!("<h2>{title}</h2>\n<ul class=\"legend\">");
    for line in first {
        let _ = write!(out, "<li>{} {}</li>", chart::sample(line.style), escape(&line.name));
    }
    out.push_str("</ul>\n<div class=\"panels\">\n");
    for (name, series) in panels {
        let (x, y) = axes(values);
        let chart = Chart { title: format!("{title} {name}"), x, y, series };
        let _ = writeln!(out, "<figure>{}", chart.svg()?);
        if !name.is_empty() {
            let _ = writeln!(out, "<figcaption>{}</figcaption>", escape(&name));
        }
        out.push_str("</figure>\n");
    }
    out.push_str("</div>\n");
    Ok(out)
}

/// At most three decimals, without trailing zeros.
fn plain(value: f64) -> String {
    format!("{}", (value * 1e3).round() / 1e3)
}

/// A power of ten of microseconds.
fn power(micros: f64) -> String {
    let (value, unit) = match micros {
        ..0.9 => (micros * 1e3, "ns"),
        ..900.0 => (micros, "us"),
        ..900_000.0 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    format!("{value:.0} {unit}")
}

fn decimal(value: f64) -> String {
    format!("{value:.1}")
}

/// A quantile in percent, with as many nines as it has.
fn share(quantile: f64) -> String {
    let percent = format!("{:.5}", quantile * 100.0);
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}
