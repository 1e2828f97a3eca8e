"""Python's websockets and node's ws meet in one channel: what each sends, both must hear.

    scenario.py path/to/oyez        with node's ws in NODE_PATH; see run

The server is a black box here: its binary, its one line of output, its signals and its wire. Both libraries
offer compression, as is their default; the server may decline it. The two kinds of client have one
interface, and a statement that holds for one is checked for both.
"""

import asyncio
import base64
import hashlib
import itertools
import json
import pathlib
import re
import signal
import sys
import tempfile
from collections import Counter
from typing import NamedTuple

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

# A step is one answer from a server on the same machine: milliseconds, or seconds when the machine is busy. Only a
# step that fails takes as long as this.
STEP_S = 60
SCENARIO_S = 600
MESSAGE_BYTES_MAX = 65536


class Message(NamedTuple):
    """What was sent or heard; the payload stands by its hash."""

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
    """A client: what it hears waits in `heard`, a Close being the last."""

    def __init__(self, name):
        self.name = name
        self.heard = asyncio.Queue()

    async def hear(self, count=1):
        """The next messages, `count` of them or as many as come in the time of a step."""
        got = []
        try:
            while len(got) < count:
                got.append(await asyncio.wait_for(self.heard.get(), STEP_S))
        except asyncio.TimeoutError:
            pass
        return got


class PythonPeer(Peer):
    async def open(self, url):
        self.socket = await asyncio.wait_for(connect(url, proxy=None, ping_interval=None), STEP_S)
        self.listener = asyncio.create_task(self.listen())

    async def listen(self):
        try:
            while True:
                data = await self.socket.recv()
                kind, data = ("text", data.encode()) if isinstance(data, str) else ("binary", data)
                await self.heard.put(message(kind, data))
        except ConnectionClosed:
            await self.heard.put(Close(self.socket.close_code, self.socket.close_reason))

    async def send(self, kind, *parts):
        whole = parts[0] if len(parts) == 1 else parts
        try:
            await asyncio.wait_for(self.socket.send(whole, text=kind == "text"), STEP_S)
        except ConnectionClosed:
            pass  # The listener says so, with the code.

    async def ping(self, payload):
        """Whether a pong with this payload came."""
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

    async def open(self, url):
        await self.node.command("open", self, url=url)
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

    def note(self, event):
        what = event["event"]
        if what == "open":
            self.opened.set()
        elif what == "message":
            self.heard.put_nowait(Message(event["kind"], event["bytes"], event["sha256"]))
        elif what == "pong":
            self.pongs.put_nowait(event["hex"])
        else:
            self.heard.put_nowait(Close(event["code"], event["reason"]))


class Node:
    """The node process with all its clients (node_peers.js)."""

    async def start(self):
        script = pathlib.Path(__file__).with_name("node_peers.js")
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec("node", str(script), stdin=pipe, stdout=pipe)
        self.peers = {}
        self.listener = asyncio.create_task(self.listen())

    async def listen(self):
        async for line in self.process.stdout:
            event = json.loads(line)
            self.peers[event["client"]].note(event)

    async def command(self, what, peer, **fields):
        line = json.dumps({"do": what, "client": peer.name, **fields})
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()


class Server:
    async def start(self, oyez, log):
        self.process = await asyncio.create_subprocess_exec(
            oyez, "serve", "--listen", "127.0.0.1:0", "--ping-interval-ms", "0",
            "--message-bytes-max", str(MESSAGE_BYTES_MAX),
            stdout=asyncio.subprocess.PIPE, stderr=log)
        line = await asyncio.wait_for(self.process.stdout.readline(), STEP_S)
        self.root = re.search(rb"ws://[^/\s]+", line).group().decode()

    def url(self, channel, query=""):
        return f"{self.root}/ws/{channel}{query}"


class Verdict:
    """Counts statements and prints each with its outcome."""

    def __init__(self):
        self.passed = self.failed = 0

    def state(self, statement, holds, found=""):
        if holds:
            self.passed += 1
            print("ok  ", statement, flush=True)
        else:
            self.failed += 1
            print("FAIL", statement, *([f"(found: {found})"] if found != "" else []), flush=True)


def is_close(heard, code, reason=".*"):
    """Whether all that was heard is this close; `reason` is a pattern."""
    [close, *more] = heard or [None]
    return (isinstance(close, Close) and not more
            and close.code == code and re.fullmatch(reason, close.reason) is not None)


def listing(heard):
    return ", ".join(map(str, heard)) or "nothing"


def is_merge(whole, a, b):
    """Whether `whole` is `a` and `b` interleaved, each in its own order."""
    # Prefixes of a (by length) which, merged with the rest from b, form the bytes of `whole` that have been read.
    lengths = {0}
    for read, heard in enumerate(whole):
        lengths = ({i + 1 for i in lengths if i < len(a) and a[i] == heard}
                   | {i for i in lengths if read - i < len(b) and b[read - i] == heard})
    return len(whole) == len(a) + len(b) and len(a) in lengths


def samples(name):
    """What a peer of this name sends: other content for other names, wherever there is content."""
    texts = ["", f"{name} says hello", f"{name}: zażółć gęślą jaźń, 日本語, \U0001f4e3\u0000."]
    # The sizes on both sides of each step of the frame header's length field.
    sizes = [0, 1, 125, 126, 65535, 65536]
    endless = hashlib.shake_256(name.encode()).digest(max(sizes))
    return [("text", text.encode()) for text in texts] + [("binary", endless[:size]) for size in sizes]


class Scenario:
    def __init__(self, server, node, verdict):
        self.server, self.node, self.state = server, node, verdict.state
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
        heard = {peer: await peer.hear(count) for peer in peers}
        for hearer, sender in itertools.product(peers, peers):
            for one in expected[sender]:
                times = heard[hearer].count(one)
                # An empty message does not show its sender, so each kind of peer has to receive it.
                wanted = sum(part.count(one) for part in expected.values())
                self.state(f"{hearer.name} hears {sender.name}'s {one}", times == wanted, f"{times} of {wanted}")
        for hearer in peers:
            self.state(f"{hearer.name} hears each sender's messages in the order sent",
                       is_merge(heard[hearer], *expected.values()), listing(heard[hearer]))
        self.state("both hear one order", heard[python] == heard[node], listing(heard[node]))

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
                for hearer in peers:
                    heard = await hearer.hear()
                    self.state(f"{hearer.name} hears whole what {sender.name} sent as {kind} in {len(parts)} fragments",
                               heard == [expected], listing(heard))

    async def pings(self):
        for peer in await self.pair("pings"):
            for payload in b"", b"tick", bytes(range(125)):
                self.state(f"{peer.name} gets a pong with its ping's {len(payload)} bytes", await peer.ping(payload))

    async def channels(self):
        here, there = await self.pair("here"), await self.pair("there")
        for sender in here:
            await sender.send("text", b"for the subscribers of one channel")
        for peer in here:
            self.state(f"{peer.name} hears its channel", len(await peer.hear(2)) == 2)
        await there[0].send("text", b"first")
        for peer in there:
            heard = await peer.hear()
            self.state(f"{peer.name} hears nothing of the other channel",
                       heard == [message("text", b"first")], listing(heard))

    async def echo(self):
        quiet, other = await self.pair("echo", "?echo=0"), PythonPeer("python")
        await other.open(self.server.url("echo"))
        for peer in quiet:
            await peer.send("text", peer.name.encode())
        said = [message("text", peer.name.encode()) for peer in quiet]
        heard = await other.hear(2)
        self.state("another member hears those who asked not to hear themselves",
                   Counter(heard) == Counter(said), listing(heard))
        await other.send("text", b"last")
        for peer, own in zip(quiet, said):
            heard = await peer.hear(2)
            self.state(f"{peer.name} asked not to hear itself, and does not",
                       heard == [one for one in said if one != own] + [message("text", b"last")], listing(heard))

    async def closes(self):
        peers = await self.pair("closes")
        left = PythonPeer("python")
        await left.open(self.server.url("closes"))
        for peer in peers:
            await peer.close(1000)
            heard = await peer.hear()
            self.state(f"{peer.name} closes with 1000 and gets 1000 back",
                       is_close(heard, 1000), listing(heard))
        await left.send("text", b"alone")
        heard = await left.hear()
        self.state("who is left hears on", heard == [message("text", b"alone")], listing(heard))

    async def limit(self):
        # One byte too many, and enough that the server sends its close while the peer still sends.
        for excess in 1, 1 << 20:
            peers = await self.pair("limit")
            witness = PythonPeer("python")
            await witness.open(self.server.url("limit"))
            for peer in peers:
                await peer.send("binary", bytes(MESSAGE_BYTES_MAX + excess))
                heard = await peer.hear()
                self.state(f"{peer.name} is closed with 1009 for {excess} bytes over the limit",
                           is_close(heard, 1009), listing(heard))
            await witness.send("text", b"still here")
            heard = await witness.hear()
            self.state("the channel hears nothing of it", heard == [message("text", b"still here")], listing(heard))

    async def drain(self):
        peers = await self.pair("drain")
        self.server.process.send_signal(signal.SIGTERM)
        for peer in peers:
            heard = await peer.hear()
            self.state(f"{peer.name} is closed with 4200 and told when to come back",
                       is_close(heard, 4200, r"drain retry_ms=\d+"), listing(heard))
        try:
            status = await asyncio.wait_for(self.server.process.wait(), STEP_S)
        except asyncio.TimeoutError:
            status = "still running"
        self.state("the server exits with 0", status == 0, status)

    # The last one ends the server.
    PARTS = [messages, fragments, pings, channels, echo, closes, limit, drain]

    async def run(self):
        for part in self.PARTS:
            try:
                await part(self)
            except Exception as error:  # One broken part must not hide what the others find.
                self.state(f"{part.__name__} runs to its end", False, repr(error))


async def main(oyez):
    verdict = Verdict()
    server, node = Server(), Node()
    with tempfile.TemporaryFile() as log:
        try:
            await server.start(oyez, log)
            await node.start()
            await asyncio.wait_for(Scenario(server, node, verdict).run(), SCENARIO_S)
        except Exception as error:
            verdict.state(f"the scenario runs to its end within {SCENARIO_S} s", False, repr(error))
        finally:
            for process in (getattr(part, "process", None) for part in (server, node)):
                if process and process.returncode is None:
                    process.kill()
                    await process.wait()
        if verdict.failed:
            log.seek(0)
            sys.stderr.writelines(line.decode(errors="replace") for line in log.readlines()[-20:])
    print(f"{verdict.passed} passed, {verdict.failed} failed", flush=True)
    return 0 if verdict.passed and not verdict.failed else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
