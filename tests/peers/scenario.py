"""Python's websockets and node's ws in one channel: both must receive every message of each.

    scenario.py path/to/oyez        with node's ws in NODE_PATH; see run

The server is a black box here: its binary, its one line of output, its signals and its wire. Both libraries
offer compression, as is their default, and the server accepts it; deflate_scenario.py is about that. The two kinds
of client have one interface, and each check is made for both.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import socket
import sys
import tempfile
from collections import Counter
from typing import NamedTuple

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

# A step is one answer from a server on the same machine: milliseconds, or seconds when the machine is busy. Only a
# step that fails takes as long as this.
STEP_S = 120
SCENARIO_S = 600
# Deadlines of servers that are not tested here: on a machine that is slow and busy they must not expire.
DEADLINES = {f"OYEZ_{name}_TIMEOUT_MS": "600000" for name in ("HANDSHAKE", "PONG", "SLOW", "USER")}
# At most the time of a drain.
DEADLINES["OYEZ_CLOSE_TIMEOUT_MS"] = "30000"
# The same for clients of Python's websockets.
PATIENT = {"ping_interval": None, "open_timeout": STEP_S, "close_timeout": STEP_S}
MESSAGE_BYTES_MAX = 65536


def free_port():
    """A port below the range from which the kernel assigns ports to clients, where it could be taken before it is used. Checks
    that run side by side with these use ports below 20,000."""
    while True:
        port = random.randrange(20_000, 30_000)
        if port in free_port.given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        free_port.given.add(port)
        return port


free_port.given = set()


class Message(NamedTuple):
    """A sent or received message, with the hash of its payload."""

    kind: str
    bytes: int
    sha256: str

    def __str__(self):
        return f"{self.kind} of {self.bytes} ({self.sha256[:8]})"


def message(kind, payload):
    return Message(kind, len(payload), hashlib.sha256(payload).hexdigest())


class Close(NamedTuple):
    code: int
    reason: str


class Peer:
    """A client. Received messages are queued in `received`; a Close is the last of them."""

    def __init__(self, name):
        self.name = name
        self.received = asyncio.Queue()

    async def receive(self, count=1):
        """The next `count` messages, or those that arrive within the time of a step."""
        got = []
        try:
            while len(got) < count:
                got.append(await asyncio.wait_for(self.received.get(), STEP_S))
        except asyncio.TimeoutError:
            pass
        return got


class PythonPeer(Peer):
    async def open(self, url, **options):
        self.socket = await asyncio.wait_for(connect(url, proxy=None, **PATIENT, **options), STEP_S)
        self.listener = asyncio.create_task(self.listen())

    async def listen(self):
        try:
            while True:
                data = await self.socket.recv()
                kind, data = ("text", data.encode()) if isinstance(data, str) else ("binary", data)
                await self.received.put(message(kind, data))
        except ConnectionClosed:
            await self.received.put(Close(self.socket.close_code, self.socket.close_reason))

    async def send(self, kind, *parts):
        whole = parts[0] if len(parts) == 1 else parts
        try:
            await asyncio.wait_for(self.socket.send(whole, text=kind == "text"), STEP_S)
        except ConnectionClosed:
            pass  # The listener queues a Close with the code.

    async def ping(self, payload):
        """Returns True if a pong with this payload arrived."""
        try:
            await asyncio.wait_for(await self.socket.ping(payload), STEP_S)
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self, code):
        await asyncio.wait_for(self.socket.close(code), STEP_S)


class NodePeer(Peer):
    def __init__(self, name, node):
        super().__init__(name)
        self.node = node
        self.opened = asyncio.Event()
        self.pongs = asyncio.Queue()
        node.peers[name] = self

    async def open(self, url, **options):
        await self.node.command("open", self, url=url, **options)
        await asyncio.wait_for(self.opened.wait(), STEP_S)

    async def send(self, kind, *parts):
        await self.node.command("send", self, kind=kind, parts=[base64.b64encode(p).decode() for p in parts])

    async def ping(self, payload):
        await self.node.command("ping", self, hex=payload.hex())
        try:
            return await asyncio.wait_for(self.pongs.get(), STEP_S) == payload.hex()
        except asyncio.TimeoutError:
            return False

    async def close(self, code):
        await self.node.command("close", self, code=code)

    def handle(self, event):
        what = event["event"]
        if what == "open":
            self.opened.set()
        elif what == "message":
            self.received.put_nowait(Message(event["kind"], event["bytes"], event["sha256"]))
        elif what == "pong":
            self.pongs.put_nowait(event["hex"])
        else:
            self.received.put_nowait(Close(event["code"], event["reason"]))


class Node:
    """The node process with all its clients (node_peers.js), or another program that is driven in the same way."""

    def __init__(self, *program):
        self.program = program or ("node", str(pathlib.Path(__file__).with_name("node_peers.js")))

    async def start(self):
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(*self.program, stdin=pipe, stdout=pipe)
        self.peers = {}
        self.listener = asyncio.create_task(self.listen())

    async def listen(self):
        async for line in self.process.stdout:
            event = json.loads(line)
            self.peers[event["client"]].handle(event)

    async def command(self, what, peer, **fields):
        line = json.dumps({"do": what, "client": peer.name, **fields})
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()


class Server:
    async def start(self, oyez, log, *flags):
        self.process = await asyncio.create_subprocess_exec(
            oyez, "serve", "--listen", "127.0.0.1:0", "--ping-interval-ms", "0",
            "--message-bytes-max", str(MESSAGE_BYTES_MAX), *flags,
            stdout=asyncio.subprocess.PIPE, stderr=log, env={**os.environ, **DEADLINES})
        line = await asyncio.wait_for(self.process.stdout.readline(), STEP_S)
        self.root = re.search(rb"ws://[^/\s]+", line).group().decode()

    def url(self, channel, query=""):
        return f"{self.root}/ws/{channel}{query}"


class Checks:
    """Counts checks and prints each with its result."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, statement, holds, found=""):
        if holds:
            self.passed += 1
            print("ok  ", statement, flush=True)
        else:
            self.failed += 1
            print("FAIL", statement, *([f"(found: {found})"] if found != "" else []), flush=True)

    def report(self, log):
        """Prints the counts, and after a failure the end of the server's log. Returns the exit status."""
        if self.failed:
            log.seek(0)
            sys.stderr.writelines(line.decode(errors="replace") for line in log.readlines()[-20:])
        return self.summary()

    def summary(self):
        """Prints the counts. Returns the exit status."""
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        return 0 if self.passed and not self.failed else 1


def is_close(received, code, reason=".*"):
    """Returns True if this close was received and nothing else; `reason` is a pattern."""
    [close, *more] = received or [None]
    return (isinstance(close, Close) and not more
            and close.code == code and re.fullmatch(reason, close.reason) is not None)


def listing(received):
    return ", ".join(map(str, received)) or "nothing"


def is_merge(whole, a, b):
    """Returns True if `whole` is `a` and `b` interleaved, each in its own order."""
    # Prefixes of a (by length) which, merged with the rest from b, form the bytes of `whole` that have been read.
    lengths = {0}
    for read, received in enumerate(whole):
        lengths = ({i + 1 for i in lengths if i < len(a) and a[i] == received}
                   | {i for i in lengths if read - i < len(b) and b[read - i] == received})
    return len(whole) == len(a) + len(b) and len(a) in lengths


def samples(name):
    """The messages that a peer of this name sends: payloads differ between names, except the empty one."""
    texts = ["", f"{name} says hello", f"{name}: zażółć gęślą jaźń, 日本語, \U0001f4e3\u0000."]
    # The sizes on both sides of each step of the frame header's length field.
    sizes = [0, 1, 125, 126, 65535, 65536]
    endless = hashlib.shake_256(name.encode()).digest(max(sizes))
    return [("text", text.encode()) for text in texts] + [("binary", endless[:size]) for size in sizes]


class Scenario:
    def __init__(self, server, node, checks):
        self.server, self.node, self.check = server, node, checks.check
        self.numbers = itertools.count(1)

    async def pair(self, channel, query=""):
        """One peer of each kind, both subscribers of the channel."""
        number = next(self.numbers)
        peers = [PythonPeer(f"python{number}"), NodePeer(f"node{number}", self.node)]
        for peer in peers:
            await peer.open(self.server.url(channel, query))
        return peers

    async def messages(self):
        python, node = peers = await self.pair("messages")
        sent = {peer: samples(peer.name) for peer in peers}

        async def send_all(peer):
            for kind, payload in sent[peer]:
                await peer.send(kind, payload)

        await asyncio.gather(*map(send_all, peers))
        expected = {peer: [message(*one) for one in sent[peer]] for peer in peers}
        count = sum(map(len, expected.values()))
        received = {peer: await peer.receive(count) for peer in peers}
        for receiver, sender in itertools.product(peers, peers):
            for one in expected[sender]:
                times = received[receiver].count(one)
                # An empty message does not show its sender, so each kind of peer has to receive it.
                wanted = sum(part.count(one) for part in expected.values())
                self.check(f"{receiver.name} receives {sender.name}'s {one}", times == wanted, f"{times} of {wanted}")
        for receiver in peers:
            self.check(f"{receiver.name} receives each sender's messages in the order sent",
                       is_merge(received[receiver], *expected.values()), listing(received[receiver]))
        self.check("both receive the same order", received[python] == received[node], listing(received[node]))

    async def fragments(self):
        peers = await self.pair("fragments")
        whole = "a fragment may end within a character: 日本語".encode()
        # An empty first and middle fragment, and a cut within the last character.
        text = [b"", whole[:10], b"", whole[10:-1], whole[-1:]]
        binary = [bytes([i]) * 20000 for i in range(3)]
        for sender in peers:
            for kind, parts in ("text", text), ("binary", binary):
                await sender.send(kind, *parts)
                expected = message(kind, b"".join(parts))
                for receiver in peers:
                    received = await receiver.receive()
                    self.check(f"{receiver.name} receives one {kind} message that {sender.name} sent in {len(parts)} fragments",
                               received == [expected], listing(received))

    async def pings(self):
        for peer in await self.pair("pings"):
            for payload in b"", b"tick", bytes(range(125)):
                self.check(f"{peer.name} gets a pong with its ping's {len(payload)} bytes", await peer.ping(payload))

    async def channels(self):
        here, there = await self.pair("here"), await self.pair("there")
        for sender in here:
            await sender.send("text", b"for the subscribers of one channel")
        for peer in here:
            self.check(f"{peer.name} receives the messages of its channel", len(await peer.receive(2)) == 2)
        await there[0].send("text", b"first")
        for peer in there:
            received = await peer.receive()
            self.check(f"{peer.name} receives no message of the other channel",
                       received == [message("text", b"first")], listing(received))

    async def echo(self):
        quiet, other = await self.pair("echo", "?echo=0"), PythonPeer("python")
        await other.open(self.server.url("echo"))
        for peer in quiet:
            await peer.send("text", peer.name.encode())
        sent = [message("text", peer.name.encode()) for peer in quiet]
        received = await other.receive(2)
        self.check("another subscriber receives the messages of those with echo=0",
                   Counter(received) == Counter(sent), listing(received))
        await other.send("text", b"last")
        for peer, own in zip(quiet, sent):
            received = await peer.receive(2)
            self.check(f"{peer.name} with echo=0 does not receive its own message",
                       received == [one for one in sent if one != own] + [message("text", b"last")], listing(received))

    async def closes(self):
        peers = await self.pair("closes")
        remaining = PythonPeer("python")
        await remaining.open(self.server.url("closes"))
        for peer in peers:
            await peer.close(1000)
            received = await peer.receive()
            self.check(f"{peer.name} closes with 1000 and gets 1000 back",
                       is_close(received, 1000), listing(received))
        await remaining.send("text", b"alone")
        received = await remaining.receive()
        self.check("the remaining subscriber still receives messages", received == [message("text", b"alone")], listing(received))

    async def limit(self):
        # One byte too many, and enough that the server sends its close while the peer still sends.
        for excess in 1, 1 << 20:
            peers = await self.pair("limit")
            witness = PythonPeer("python")
            await witness.open(self.server.url("limit"))
            for peer in peers:
                await peer.send("binary", bytes(MESSAGE_BYTES_MAX + excess))
                received = await peer.receive()
                self.check(f"{peer.name} is closed with 1009 for {excess} bytes over the limit",
                           is_close(received, 1009), listing(received))
            await witness.send("text", b"still here")
            received = await witness.receive()
            self.check("no subscriber receives a part of it", received == [message("text", b"still here")], listing(received))

    async def drain(self):
        peers = await self.pair("drain")
        self.server.process.send_signal(signal.SIGTERM)
        for peer in peers:
            received = await peer.receive()
            self.check(f"{peer.name} is closed with 4200 and a reconnect delay",
                       is_close(received, 4200, r"drain retry_ms=\d+"), listing(received))
        try:
            status = await asyncio.wait_for(self.server.process.wait(), STEP_S)
        except asyncio.TimeoutError:
            status = "still running"
        self.check("the server exits with 0", status == 0, status)

    # The last one ends the server.
    PARTS = [messages, fragments, pings, channels, echo, closes, limit, drain]

    async def run(self):
        for part in self.PARTS:
            try:
                await part(self)
            except Exception as error:  # A failed part must not hide the results of the others.
                self.check(f"{part.__name__} runs to its end", False, repr(error))


async def kill(*parts):
    """Ends the processes that still run."""
    for process in (getattr(part, "process", None) for part in parts):
        if process and process.returncode is None:
            process.kill()
            await process.wait()


async def main(oyez):
    checks = Checks()
    server, node = Server(), Node()
    with tempfile.TemporaryFile() as log:
        try:
            await server.start(oyez, log)
            await node.start()
            await asyncio.wait_for(Scenario(server, node, checks).run(), SCENARIO_S)
        except Exception as error:
            checks.check(f"the scenario runs to its end within {SCENARIO_S} s", False, repr(error))
        finally:
            await kill(server, node)
        return checks.report(log)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
