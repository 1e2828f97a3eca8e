"""Tests that take ten minutes each: `run --long`."""

import asyncio
import signal
import time

from clients import Client, until
from cluster import QUICK
from faults import random_faults

NAMES, NAMES_PER_SECOND = 1_000_000, 2_000
LOG_BYTES_MAX, HISTORY_BYTES_MAX, RSS_MAX = 256 << 20, 128 << 20, 1 << 30


async def ten_minutes_of_random_faults(cluster):
    """Random faults on three nodes, some while the previous one is not over."""
    await random_faults(cluster, per_second=10, seconds=600)


class NameFlood(Client):
    """Publishes one message on each of many channels: of 1 byte to 1 MiB, most of them short."""

    lines = "Sec-WebSocket-Protocol: oyez.v1\r\n"

    def __init__(self, choose):
        self.sent, self.answered, self.codes = 0, 0, set()
        super().__init__("names", choose)
        self.ticker = asyncio.ensure_future(self.tick())

    def on_open(self, connection):
        self.ready.set()

    def on_text(self, connection, payload):
        if payload.startswith(b'{"type":"ack"'):
            self.answered += 1
        elif payload.startswith(b'{"type":"error"'):
            self.answered += 1
            self.codes.add(payload)

    async def tick(self):
        due = time.monotonic()
        while self.sent < NAMES:
            due = max(due, time.monotonic() - 1)
            while self.ready.is_set() and due <= time.monotonic() and self.sent < NAMES and self.sent - self.answered < 512:
                due += 1 / NAMES_PER_SECOND
                self.sent += 1
                length = (1 << 20) - 100 if self.sent % 10_000 == 0 else 4_000 if self.sent % 100 == 0 else 1 + self.sent % 64
                self.connection.send(type="publish", ch=f"name.{self.sent}", text="x" * length, ref=self.sent)
            await asyncio.sleep(0.01)

    async def stop(self):
        self.ticker.cancel()
        await super().stop()


async def million_channel_names(cluster):
    """A million channels, with messages of 1 byte to 1 MiB: Redis and the nodes stay within their limits. A node that is
    stopped for two minutes catches up; one that is stopped for longer than the log reaches back announces a gap."""
    redis = cluster.redis()
    flags = ("--channels-max", "2000000", "--channels-per-client-max", "2000000", "--channels-per-publisher-max", "2000000",
             "--message-bytes-max", "1MiB", "--history-total-bytes-max", str(HISTORY_BYTES_MAX), "--memory-max", str(RSS_MAX),
             "--backplane-bytes-max", str(LOG_BYTES_MAX))
    one, two = await cluster.node(redis.url, *flags), await cluster.node(redis.url, *flags)
    await cluster.subscribers(each=1)
    cluster.publisher(one, per_second=10)
    empty = int(redis.info("memory")["used_memory"])
    peak = {"Redis": 0, one.name: 0, two.name: 0}

    async def watch():
        while True:
            peak["Redis"] = max(peak["Redis"], int(redis.info("memory")["used_memory"]) - empty)
            for node in one, two:
                peak[node.name] = max(peak[node.name], node.rss_bytes)
            await asyncio.sleep(1)
    watcher, names = asyncio.ensure_future(watch()), NameFlood(cluster.at(one))
    try:
        await until(lambda: names.sent >= 0.3 * NAMES, lambda: f"{names.sent} names", 1_200)
        two.signal(signal.SIGSTOP)
        await asyncio.sleep(120)
        two.signal(signal.SIGCONT)
        await cluster.progress(100)
        assert not cluster.gaps(), f"after a stop of two minutes: {cluster.gaps()[:3]}"
        await until(lambda: names.answered >= NAMES, lambda: f"{names.answered} names", 1_200)
        assert not names.codes, sorted(names.codes)[:3]
        two.signal(signal.SIGSTOP)
        large = cluster.publisher(one, ["large"], per_second=1_000, window=8, padding=1_000_000)
        await until(lambda: large.acked() > 1.5 * LOG_BYTES_MAX / 1_000_000, lambda: f"{large.acked()} large messages", 600)
        large.is_paused = True
        two.signal(signal.SIGCONT)
        await cluster.settle()
        assert cluster.gaps(two) and not cluster.gaps(one), f"{cluster.gaps()[:3]}"
    finally:
        watcher.cancel()
        await names.stop()
    cluster.notes.append(", ".join(f"{name} {bytes >> 20} MiB" for name, bytes in peak.items()))
    assert peak["Redis"] < 1.5 * LOG_BYTES_MAX and max(peak[one.name], peak[two.name]) < RSS_MAX, peak


ALL = [ten_minutes_of_random_faults, million_channel_names]
