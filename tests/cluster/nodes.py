"""Nodes: servers under test, which share a log."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from clients import request, until
from engine import STEP_S, free_port

# Deadlines of the server that are not tested here: on a machine that is slow and busy they must not expire.
DEADLINES = {f"OYEZ_{name}_MS": "600000" for name in
             ("PONG_TIMEOUT", "HANDSHAKE_TIMEOUT", "BODY_TIMEOUT", "KEEP_ALIVE", "SLOW_TIMEOUT", "USER_TIMEOUT")}


class Node:
    def __init__(self, oyez, folder, name, url, flags=(), port=None, on=None, variables=None):
        self.oyez, self.name, self.url, self.flags = oyez, name, url, list(flags)
        self.port, self.log = port or free_port(), Path(folder) / f"{name}.log"
        # The host that it runs on, in a network namespace, or this one.
        self.on, self.host = on, on.address if on else "127.0.0.1"
        self.process, self.variables = None, variables or {}

    def start(self, *more):
        """Starts it. It does not wait: see `ready`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OYEZ_")}
        backplane = ["--backplane", self.url] if self.url else []
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [*(self.on.enter if self.on else []), self.oyez, "serve", "--listen", f"{self.host}:{self.port}", "--ping-interval-ms", "0", *backplane, *self.flags, *more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environment, **DEADLINES, **self.variables, "RUST_LOG": "info"})
        return self

    @property
    def is_running(self):
        return self.process is not None and self.process.poll() is None

    async def status(self, path):
        try:
            return (await request(self.port, "GET", path, host=self.host))[0]
        except (OSError, asyncio.IncompleteReadError):
            return None

    async def ready(self):
        """Waits until it serves clients."""
        end = time.monotonic() + STEP_S
        while await self.status("/readyz") != 200:
            if not self.is_running or time.monotonic() > end:
                raise AssertionError(f"{self.name} is not ready:\n{self.tail()}")
            await asyncio.sleep(0.02)
        return self

    async def json(self, path):
        status, _, body = await request(self.port, "GET", path, host=self.host)
        assert status == 200, f"{path}: {status} {body[:200]}"
        return json.loads(body)

    async def metrics(self):
        """All samples, by their names with labels."""
        _, _, body = await request(self.port, "GET", "/metrics", host=self.host)
        lines = (line.rpartition(" ") for line in body.decode().splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    async def metric(self, name):
        return (await self.metrics()).get(name)

    async def until_metric(self, name, condition):
        end = time.monotonic() + STEP_S
        while not condition(value := await self.metric(name)):
            assert time.monotonic() < end, f"{self.name}: {name} is still {value}\n{self.tail()}"
            await asyncio.sleep(0.05)

    def logged(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self):
        return "\n".join(self.logged().splitlines()[-12:])

    async def until_logged(self, pattern, since=0):
        await until(lambda: re.search(pattern, self.logged()[since:]), lambda: f"{pattern!r} in the log of {self.name}:\n{self.tail()}")

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.is_running:
            self.process.kill()
            self.process.wait()

    async def terminate(self):
        """Ends it with SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        await until(lambda: self.process.poll() is not None, f"{self.name} exits")
        return self.process.returncode

    @property
    def rss_bytes(self):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) * 1024
