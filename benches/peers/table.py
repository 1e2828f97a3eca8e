"""The tables: medians, ranges, ratios."""

from dataclasses import dataclass
from statistics import median

import scenarios
from scenarios import faults, is_bounded_by_load

BASE = "baseline-turn"

LEGEND = """\
Cells: the median of the rounds, the range in brackets, and the median of the rounds' ratios to the baseline's
turn mode in the same round. `*`: in most rounds the load generator was the bottleneck, or had to wait for a
processor; the server's time per delivery is valid, its behavior under more load is not known.
`!k`: in k rounds the server lost messages, closed connections or failed; these are left out of the figures."""


@dataclass(frozen=True)
class Column:
    """A figure of one scenario's reports."""

    label: str
    scenario: str
    figure: object
    # A ratio of a few bytes to a few bytes means nothing.
    has_ratio: bool = False
    # The figure is a slope between this scenario, of the same round, and the other one.
    smaller: str | None = None


def tables(servers, all_scenarios, runs):
    """Formats the runs as Markdown tables with a row for each server: ratios and times of broadcasts, and the other figures."""
    broadcasts = [tuple(map(int, scenario.name.split("-")[1:])) for scenario in all_scenarios if scenario.name != "idle"]
    broadcasts.sort(key=lambda size: size[1])

    def columns(sizes, label):
        return [Column(label(*size), "fanout-{}-{}-{}".format(*size), scenarios.ns_per_delivery, True) for size in sizes]

    text = ["Processor time per delivery, as the ratio to the baseline's turn mode. 10k/64/512: 10,000 subscribers, 64 in flight, "
            "512 bytes.", table(servers, columns(broadcasts, lambda n, window, payload: f"{n // 1000}k/{window}/{payload}"), runs, ratios)]
    for window in dict.fromkeys(size[1] for size in broadcasts):
        part = [size for size in broadcasts if size[1] == window]
        text += [f"The same in ns, {window} in flight.",
                 table(servers, columns(part, lambda n, _, payload: f"{n:,}, {payload} B"), runs, times)]
    others = [Column("RSS, idle", "idle", scenarios.bytes_per_idle_connection),
              *(Column(f"{name} after 64 × {payload} B", f"fanout-10000-64-{payload}", figure,
                       smaller=f"fanout-1000-64-{payload}")
                for name, figure in (("anonymous", scenarios.anonymous_bytes_per_subscriber_after),
                                     ("RSS", scenarios.bytes_per_subscriber_after)) for payload in (64, 512)),
              Column("CPU µs per handshake", "idle", scenarios.us_per_handshake, True)]
    text += ["RSS bytes per idle connection; anonymous memory and RSS per subscriber after bursts, both slopes, the latter from "
             "1,000 to 10,000; and handshakes.",
             table(servers, others, runs, times_and_ratios)]
    return "\n\n".join(text)


def table(servers, columns, runs, form):
    lines = ["| " + " | ".join(["", *(column.label for column in columns)]) + " |", "|" + "---|" * (len(columns) + 1)]
    for server in servers:
        cells = [cell(column, server.name, runs, form) for column in columns]
        lines.append("| " + " | ".join([server.label, *(text or "–" for text in cells)]) + " |")
    return "\n".join(lines)


def ratios(_, ratio):
    return f"{ratio:.2f}×" if ratio else ""


def times(values, _):
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def times_and_ratios(values, ratio):
    return times(values, ratio) + (f" **{ratio:.2f}×**" if ratio else "")


def cell(column, server, runs, form):
    own = [run for run in runs if (run["scenario"], run["server"]) == (column.scenario, server)]
    clean = [run for run in own if not faults(run["report"])]
    failed = len(own) - len(clean)
    mark = f" !{failed}" if failed else ""
    values = figures(column, clean, runs)
    if not values:
        return mark.strip()
    is_broadcast = column.figure is scenarios.ns_per_delivery
    if is_broadcast and 2 * sum(is_bounded_by_load(run["report"]) for run in clean) > len(clean):
        mark += " *"
    ratio = ratio_to_base(column, server, runs) if column.has_ratio else None
    return form(values, ratio) + mark


def figures(column, clean, runs):
    """Returns the figure of each run that has one."""
    if column.smaller:
        smaller = {(run["round"], run["server"]): run["report"] for run in runs
                   if run["scenario"] == column.smaller and not faults(run["report"])}
        pairs = [(run["report"], smaller.get((run["round"], run["server"]))) for run in clean]
        return [column.figure(report, other) for report, other in pairs if other]
    return [value for run in clean if (value := column.figure(run["report"])) is not None]


def ratio_to_base(column, server, runs):
    """The median of the rounds' ratios. The two runs of a round are minutes apart at most, so a temporary
    slowdown of the machine affects both."""
    figures = {}
    for run in runs:
        if run["scenario"] == column.scenario and not faults(run["report"]):
            figures[run["server"], run["round"]] = column.figure(run["report"])
    found = [figures[server, number] / base for (name, number), base in figures.items()
             if name == BASE and base and (server, number) in figures]
    return median(found) if found else None


def number(value):
    return f"{value:,.1f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"
