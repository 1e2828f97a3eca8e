"""The scenarios, run with `oyez bench`, and the figures taken from its reports."""

import json
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from servers import target

# Descriptors that a server needs in addition to its connections.
DESCRIPTORS_RESERVED = 100
IDLE_CONNECTIONS = 18_000
IDLE_HOLD_S = 0.5
WARMUP_S = 0.5

# A server that writes each message separately takes 6 s for 64 messages to 10,000 subscribers, and loses none.
PATIENCE_S = 30

# The ramp, the pauses and the wait for the last messages, in addition to the measured time.
RUN_LIMIT_S = 120

# Counts in the report that must be zero.
FAULTS = ("lost", "duplicated", "out_of_order", "misdelivered", "cut_off", "foreign", "abandoned")


@dataclass(frozen=True)
class Scenario:
    """One kind of run."""

    name: str
    label: str
    # The flags of `oyez bench`.
    flags: tuple

    def run(self, running, processor):
        """Runs it against a server; returns the report, or the failure."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.json"
            command = ["taskset", "-c", str(processor), str(target() / "oyez"), "bench", *self.flags,
                       "--url", running.url, "--pid", str(running.pid), "--json", str(file)]
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, text=True, timeout=RUN_LIMIT_S)
            except subprocess.TimeoutExpired:
                return {"failed": f"not finished in {RUN_LIMIT_S} s"}
            if done.returncode != 0 or not file.exists():
                return {"failed": done.stderr.strip() or f"exit code {done.returncode}"}
            report = json.loads(file.read_text())
        # Long, and not used here.
        report.pop("timeline", None)
        report.get("traffic", {}).pop("distribution", None)
        return report


def fanout(subscribers, window, payload, seconds):
    return Scenario(
        f"fanout-{subscribers}-{window}-{payload}",
        f"{subscribers:,} subscribers, {window} in flight, {payload} B",
        ("fanout", "--connections", str(subscribers), "--window", str(window), "--payload", str(payload),
         "--warmup", str(WARMUP_S), "--duration", str(seconds), "--patience", str(PATIENCE_S)))


def idle():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = IDLE_CONNECTIONS if hard == resource.RLIM_INFINITY else hard - DESCRIPTORS_RESERVED
    connections = min(IDLE_CONNECTIONS, limit)
    return Scenario("idle", f"{connections:,} idle connections",
                    ("idle", "--connections", str(connections), "--hold", str(IDLE_HOLD_S)))


def scenarios(seconds):
    """Returns all scenarios, in the order of the table."""
    sizes = [(subscribers, window, payload) for subscribers in (1_000, 10_000) for window in (1, 64) for payload in (64, 512)]
    return [*(fanout(*size, seconds) for size in sizes), idle()]


def faults(report):
    """Describes the faults of the server; empty for a clean run."""
    if "failed" in report:
        return [report["failed"]]
    traffic = report.get("traffic", {})
    wrong = [f"{name.replace('_', ' ')} {traffic[name]}" for name in FAULTS if traffic.get(name)]
    connections = report["connections"]
    if connections["failed"]:
        wrong.append(f"failed {connections['failed']}")
    wrong += [f"closed {close['cause']} {close['count']}" for close in report["unexpected_closes"]]
    return wrong


def is_bounded_by_load(report):
    """Returns True if the load generator was the bottleneck. The server's time per delivery is valid then, its rate
    is not."""
    return bool(report.get("invalid"))


def ns_per_delivery(report):
    return report["server"]["ns_per_delivery"]


def bytes_per_idle_connection(report):
    return report["memory"]["rss_bytes_per_connection"]


def bytes_per_subscriber_after(report, smaller, kind="rss_bytes"):
    """Resident memory for each further subscriber: the slope between the runs with fewer and with more of them. Pages of
    the program that become resident when their code first runs, and buffers that exist once, are in both."""
    subscribers = report["setup"]["connections"] - smaller["setup"]["connections"]
    return (memory_above_empty(report, kind) - memory_above_empty(smaller, kind)) / subscribers


def anonymous_bytes_per_subscriber_after(report, smaller):
    """The same without files."""
    return bytes_per_subscriber_after(report, smaller, "anonymous_bytes")


def memory_above_empty(report, kind):
    points = report["memory"]["points"]
    return points[-1][kind] - points[0][kind]


def us_per_handshake(report):
    return report["connections"]["server_us_per_handshake"]
