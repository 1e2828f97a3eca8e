"""Redis servers for the tests, each in a folder and on a port of its own, and a proxy that fails on command."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

# A deadline for steps of milliseconds, long enough for a machine that is slow and busy.
STEP_S = 180


def free_port():
    """A port below the range from which the kernel assigns ports to clients, so that a restarted server can have it again.
    Checks that run side by side with these tests use ports from 20,000."""
    for port in range(10_000 + os.getpid() * 97 % 9_000, 20_000):
        if port in free_port.used:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free_port.used.add(port)
        return port
    raise RuntimeError("no free port")


free_port.used = set()


# An append-only file from which a kill takes nothing that was acknowledged. With `everysec`, the default, Redis replies before
# it writes while the disk is busy.
APPEND_ONLY = ("--appendonly", "yes", "--appendfsync", "no")


class ReplyError(Exception):
    """An error reply of Redis."""


class Redis:
    """A Redis server (or Valkey, or a Sentinel), started with nothing but the options given here."""

    def __init__(self, program, folder, options=(), unix=False, conf=None, on=None):
        self.program, self.folder, self.options = program, Path(folder), list(options)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.path = self.folder / "socket" if unix else None
        self.conf = conf
        # The host that it runs on, in a network namespace, or this one.
        self.on, self.host = on, on.address if on else "127.0.0.1"
        self.process = None

    @property
    def cluster_port(self):
        return self.options[self.options.index("--cluster-port") + 1]

    @property
    def url(self):
        return f"unix:{self.path}" if self.path else f"redis://{self.on.backbone_address if self.on else self.host}:{self.port}/0"

    def start(self, *more):
        """Starts it and waits until it has loaded its data."""
        listen = ["--port", str(self.port), "--bind", self.host]
        if self.on:
            listen += [self.on.backbone_address, "--protected-mode", "no"]
        if self.path:
            listen = ["--port", "0", "--unixsocket", str(self.path)]
        if self.conf:
            command = [self.program, str(self.conf), "--sentinel", *listen]
        else:
            command = [self.program, *listen, "--save", "", "--appendonly", "no", "--enable-debug-command", "yes",
                       "--repl-diskless-sync-delay", "0"]
        self.process = subprocess.Popen(
            [*(self.on.enter if self.on else []), *command, "--dir", str(self.folder), "--logfile", str(self.folder / "log"), *self.options, *more],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait(lambda: self.command("PING") == b"PONG")
        return self

    def wait(self, condition):
        end = time.monotonic() + STEP_S
        while True:
            try:
                if condition():
                    return
            except (OSError, ReplyError):
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                log = self.folder / "log"
                raise RuntimeError(f"Redis: {log.read_text()[-2000:] if log.exists() else 'did not start'}")
            time.sleep(0.01)

    def command(self, *arguments):
        """Sends a command on a new connection and returns its reply."""
        with socket.socket(socket.AF_UNIX if self.path else socket.AF_INET) as connection:
            connection.settimeout(STEP_S)
            connection.connect(str(self.path) if self.path else (self.host, self.port))
            return Resp(connection).command(*arguments)

    def info(self, section):
        """A section of INFO as a dict."""
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def calls(self):
        """How often each command was called, by its lower-case name."""
        found = self.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(re.match(r"calls=(\d+)", text).group(1)) for name, text in found.items()}

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def version(program):
    """Name and version of the program, for the results."""
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=([\d.]+)", text)
    return f"{Path(program).name} {found.group(1) if found else text.strip()}"


def programs():
    """The servers that are installed."""
    return [path for name in ("redis-server", "valkey-server") if (path := shutil.which(name))]


class Resp:
    """A RESP2 connection that sends one command at a time."""

    def __init__(self, connection):
        self.connection, self.file = connection, connection.makefile("rb")

    def command(self, *arguments):
        parts = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
        self.connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis closed the connection")
        kind, text = line[:1], line[1:-2]
        if kind == b"+":
            return text
        if kind == b"-":
            raise ReplyError(text.decode())
        if kind == b":":
            return int(text)
        if kind == b"$":
            return None if text == b"-1" else self.file.read(int(text) + 2)[:-2]
        if kind == b"*":
            return None if text == b"-1" else [self.reply() for _ in range(int(text))]
        raise ConnectionError(f"malformed reply: {line!r}")


class Proxy:
    """A TCP proxy between one node and Redis that fails on command.

    `reject`: closes connections at once. `hold`: forwards nothing, and loses nothing. `one_way`: forwards commands, and
    discards replies on connections that have sent XREAD.
    """

    def __init__(self, target):
        self.target, self.port, self.mode, self.pairs = target, free_port(), "pass", set()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    async def start(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: _Half(self, None), "127.0.0.1", self.port)
        return self

    def set(self, mode):
        self.mode = mode
        for half in list(self.pairs):
            half.apply()

    def cut(self):
        """Resets all connections."""
        for half in list(self.pairs):
            half.transport.abort()

    async def stop(self):
        self.server.close()
        self.cut()


class _Half(asyncio.Protocol):
    """One side of a proxied connection. `other` is the side to which it forwards."""

    def __init__(self, proxy, other):
        self.proxy, self.other, self.early, self.reads, self.ended = proxy, other, bytearray(), False, False

    def connection_made(self, transport):
        self.transport = transport
        if self.proxy.mode == "reject":
            transport.abort()
            return
        self.proxy.pairs.add(self)
        if self.other is None:
            asyncio.ensure_future(self.connect())
        self.apply()

    async def connect(self):
        try:
            _, other = await asyncio.get_running_loop().create_connection(
                lambda: _Half(self.proxy, self), "127.0.0.1", self.proxy.target)
        except OSError:
            self.transport.abort()
            return
        if self.ended:
            other.transport.abort()
            return
        self.other = other
        other.transport.write(bytes(self.early))

    def apply(self):
        if self.proxy.mode == "hold":
            self.transport.pause_reading()
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data):
        is_client = self.other is None or self.is_client
        if is_client and b"XREAD" in data:
            self.reads = True
        if self.other is None:
            self.early += data
        elif not self.other.transport.is_closing() and (self.is_client or self.proxy.mode != "one_way" or not self.other.reads):
            self.other.transport.write(data)

    @property
    def is_client(self):
        return self.transport.get_extra_info("sockname")[1] == self.proxy.port

    def connection_lost(self, error):
        self.ended = True
        self.proxy.pairs.discard(self)
        if self.other:
            self.other.transport.abort() if error else self.other.transport.close()
