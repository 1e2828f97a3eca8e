"""What is measured, with `oyez bench`, and what is made of its reports."""

import json
import resource
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from servers import target

# Beside the connections, a server has some descriptors of its own.
DESCRIPTORS_RESERVED = 100
IDLE_CONNECTIONS = 18_000
IDLE_HOLD_S = 0.5
WARMUP_S = 0.5

# 64 messages to 10,000 members take a peer that writes each by itself 6 s; it has lost nothing for that.
PATIENCE_S = 30

# A run's ramp, its rests, and the wait for the last messages, over the time that is asked for.
RUN_LIMIT_S = 120

# What a member may not have, each a number in the report.
FAULTS = ("lost", "duplicated", "out_of_order", "misdelivered", "cut_off", "foreign", "abandoned")


@dataclass(frozen=True)
class Scenario:
    """One kind of run."""

    name: str
    label: str
    # The flags of `oyez bench`.
    flags: tuple

    def run(self, running, processor):
        """Runs it against a server; the report, or why there is none."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.json"
            command = ["taskset", "-c", str(processor), str(target() / "oyez"), "bench", *self.flags,
                       "--url", running.url, "--pid", str(running.pid), "--json", str(file)]
            try:
                done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.PIPE, text=True, timeout=RUN_LIMIT_S)
            except subprocess.TimeoutExpired:
                return {"failed": f"not over in {RUN_LIMIT_S} s"}
            if done.returncode != 0 or not file.exists():
                return {"failed": done.stderr.strip() or f"exit code {done.returncode}"}
            report = json.loads(file.read_text())
        # Long, and of no use here.
        report.pop("timeline", None)
        report.get("traffic", {}).pop("distribution", None)
        return report


def fanout(members, window, payload, seconds):
    return Scenario(
        f"fanout-{members}-{window}-{payload}",
        f"{members:,} members, {window} in flight, {payload} B",
        ("fanout", "--connections", str(members), "--window", str(window), "--payload", str(payload),
         "--warmup", str(WARMUP_S), "--duration", str(seconds), "--patience", str(PATIENCE_S)))


def idle():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = IDLE_CONNECTIONS if hard == resource.RLIM_INFINITY else hard - DESCRIPTORS_RESERVED
    connections = min(IDLE_CONNECTIONS, limit)
    return Scenario("idle", f"{connections:,} idle connections",
                    ("idle", "--connections", str(connections), "--hold", str(IDLE_HOLD_S)))


def scenarios(seconds):
    """All of them, in the order of the table."""
    sizes = [(members, window, payload) for members in (1_000, 10_000) for window in (1, 64) for payload in (64, 512)]
    return [*(fanout(*size, seconds) for size in sizes), idle()]


def faults(report):
    """What the server did wrong, in words; none for a clean run."""
    if "failed" in report:
        return [report["failed"]]
    traffic = report.get("traffic", {})
    wrong = [f"{name.replace('_', ' ')} {traffic[name]}" for name in FAULTS if traffic.get(name)]
    connections = report["connections"]
    if connections["refused"]:
        wrong.append(f"refused {connections['refused']}")
    wrong += [f"closed {close['cause']} {close['count']}" for close in report["unexpected_closes"]]
    return wrong


def is_bounded_by_load(report):
    """Was it the load generator that everything waited for? The server's time for a delivery stands, its rate
    does not."""
    return bool(report.get("invalid"))


def ns_per_delivery(report):
    return report["server"]["ns_per_delivery"]


def bytes_per_idle_connection(report):
    return report["memory"]["rss_bytes_per_connection"]


def bytes_per_member_after(report):
    """Everything over what the empty server had."""
    points = report["memory"]["points"]
    return (points[-1]["rss_bytes"] - points[0]["rss_bytes"]) / report["setup"]["connections"]


def us_per_handshake(report):
    return report["connections"]["server_us_per_handshake"]
