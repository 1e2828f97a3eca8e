"""The table: medians, ranges, ratios."""

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
class Row:
    """One line: a figure of one scenario's reports."""

    label: str
    scenario: str
    figure: object
    # A ratio of a few bytes to a few bytes means nothing.
    has_ratio: bool


def rows(all_scenarios):
    lines = []
    for scenario in all_scenarios:
        if scenario.name == "idle":
            lines.append(Row("RSS bytes per idle connection (slope)", "idle", scenarios.bytes_per_idle_connection, False))
        else:
            lines.append(Row(f"CPU ns per delivery: {scenario.label}", scenario.name, scenarios.ns_per_delivery, True))
    for payload in (64, 512):
        lines.append(Row(f"anonymous memory / subscribers after bursts of 64 × {payload} B, 10,000 subscribers",
                         f"fanout-10000-64-{payload}", scenarios.anonymous_bytes_per_subscriber_after, False))
        lines.append(Row(f"whole RSS / subscribers after bursts of 64 × {payload} B, 10,000 subscribers",
                         f"fanout-10000-64-{payload}", scenarios.bytes_per_subscriber_after, False))
    lines.append(Row("CPU µs per handshake", "idle", scenarios.us_per_handshake, True))
    return lines


def table(servers, all_scenarios, runs):
    """Formats the runs as one Markdown table."""
    head = ["", *(server.label for server in servers)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows(all_scenarios):
        cells = [cell(row, server.name, runs) for server in servers]
        if any(cells):
            lines.append("| " + " | ".join([row.label, *(text or "–" for text in cells)]) + " |")
    return "\n".join(lines)


def cell(row, server, runs):
    own = [run for run in runs if (run["scenario"], run["server"]) == (row.scenario, server)]
    clean = [run for run in own if not faults(run["report"])]
    failed = len(own) - len(clean)
    mark = f" !{failed}" if failed else ""
    values = [value for run in clean if (value := row.figure(run["report"])) is not None]
    if not values:
        return mark.strip()
    if row.figure is scenarios.ns_per_delivery and 2 * sum(is_bounded_by_load(run["report"]) for run in clean) > len(clean):
        mark += " *"
    ratio = ratio_to_base(row, server, runs) if row.has_ratio else None
    ratio = f" **{ratio:.2f}×**" if ratio else ""
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))}){ratio}{mark}"


def ratio_to_base(row, server, runs):
    """The median of the rounds' ratios. The two runs of a round are minutes apart at most, so a temporary
    slowdown of the machine affects both."""
    figures = {}
    for run in runs:
        if run["scenario"] == row.scenario and not faults(run["report"]):
            figures[run["server"], run["round"]] = row.figure(run["report"])
    ratios = [figures[server, number] / base for (name, number), base in figures.items()
              if name == BASE and base and (server, number) in figures]
    return median(ratios) if ratios else None


def number(value):
    return f"{value:,.1f}" if abs(value) < 100 and value != int(value) else f"{value:,.0f}"
