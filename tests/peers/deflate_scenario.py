"""permessage-deflate with other projects' clients: each receives what a subscriber without compression receives.

    deflate_scenario.py path/to/oyez        with node's ws and undici in NODE_PATH, and gorilla's clients in GORILLA; see run

Clients of Python's websockets, node's ws and undici, and Go's gorilla/websocket join channels at random moments while prices
and boards are published, some of them after a replay, with echo=0, or with oyez.v1 in one channel or two. All of them offer
compression, and all but gorilla's decompress with a window of their own: gorilla accepts each message alone only, and
compresses each message that it publishes. For each mode of --deflate.
"""

import asyncio
import base64
import itertools
import json
import os
import random
import sys
import tempfile
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from scenario import PATIENT, STEP_S, Checks, Node, NodePeer, PythonPeer, SCENARIO_S, Server, kill

CHANNELS = "prices", "news"
MESSAGES = 600
MODES = "context", "fresh"
LIBRARIES = "websockets", "ws", "undici", "gorilla"
LAST = "the last message"
# (name, channels of oyez.v1 or None for a raw WebSocket, since, without its own messages)
WAYS = [
    ("raw", None, None, False),
    ("raw with a replay", None, "earliest", False),
    ("raw with echo=0", None, None, True),
    ("oyez.v1", CHANNELS[:1], None, False),
    ("oyez.v1 with a replay", CHANNELS[:1], "earliest", False),
    ("oyez.v1 with two channels", CHANNELS, None, False),
]
# Each way of joining is tried this often by each library.
JOINS = 2


def published(number):
    """A message: mostly prices, some boards above 1 KiB, which ws compresses too, short ones and binary ones."""
    if number % 16 == 7:
        return bytes([number % 256]) * 100 + str(number).encode()
    if number % 16 == 11:
        return f"short {number}"
    if number % 8 == 3:
        return board("server", number)
    return json.dumps({"symbol": "ACME", "bid": 100 + number % 7 + number * 37 % 100 / 100, "volume": number * 1009 % 100000,
                       "time": f"2026-01-01T00:{number // 60 % 60:02}:{number % 60:02}Z", "number": number})


def board(name, number):
    rows = [{"row": row, "player": f"player {row}", "points": (number * row) % 97} for row in range(40)]
    return json.dumps({"name": name, "number": number, "rows": rows})


def text_of(data):
    return data if isinstance(data, str) else "base64:" + base64.b64encode(data).decode()


class PythonReader(PythonPeer):
    """A client of Python's websockets that queues the text of its messages."""

    async def join(self, url, protocols, compression="deflate"):
        await self.open(url, subprotocols=protocols or None, compression=compression, max_queue=None)
        self.is_compressed = bool(self.socket.protocol.extensions)

    async def listen(self):
        try:
            async for data in self.socket:
                self.received.put_nowait(text_of(data))
        except ConnectionClosed:
            pass
        self.received.put_nowait(f"closed with {self.socket.close_code} {self.socket.close_reason}")

    async def write(self, text):
        await asyncio.wait_for(self.socket.send(text), STEP_S)


class NodeReader(NodePeer):
    """A client of node's ws or undici, or of gorilla."""

    def __init__(self, name, node, library):
        super().__init__(name, node)
        self.library = library

    async def join(self, url, protocols):
        await self.node.command("read", self, library=self.library, url=url, protocols=protocols)
        await asyncio.wait_for(self.opened.wait(), STEP_S)

    async def write(self, text):
        await self.node.command("write", self, text=text)

    def handle(self, event):
        if event["event"] == "text":
            self.received.put_nowait(event["text"])
        elif event["event"] == "open":
            self.is_compressed = event["extensions"].startswith("permessage-deflate")
            self.has_no_context = "server_no_context_takeover" in event["extensions"]
            self.opened.set()
        else:
            self.received.put_nowait(f"closed with {event['code']} {event['reason']}")


class Subscriber:
    """A reader, the way in which it joined, and the messages that it received."""

    def __init__(self, reader, way):
        self.reader = reader
        self.name, self.channels, self.since, self.is_quiet = way
        self.sent, self.messages, self.closed = [], [], None
        # How many messages preceded the response to its last subscription.
        self.messages_before_subscribed = 0

    async def join(self, server, **options):
        query = "&".join([f"since={self.since}"] * bool(self.since) + ["echo=0"] * self.is_quiet)
        path, protocols = (f"/ws/{CHANNELS[0]}?{query}", []) if self.channels is None else ("/ws", ["oyez.v1"])
        await self.reader.join(server.root + path, protocols, **options)
        for channel in self.channels or ():
            since = {"since": self.since} if self.since else {}
            await self.reader.write(json.dumps({"type": "subscribe", "ch": channel, **since}))

    async def publish(self, number):
        """A raw client publishes boards."""
        if self.channels is None:
            self.sent.append(board(self.reader.name, number))
            await self.reader.write(self.sent[-1])

    async def read(self):
        """Receives messages until the last one of each channel."""
        missing = set(self.channels or CHANNELS[:1])
        while missing:
            try:
                text = await asyncio.wait_for(self.reader.received.get(), STEP_S)
            except asyncio.TimeoutError:
                text = f"closed with nothing for {STEP_S} s"
            if text.startswith("closed with"):
                self.closed = text
                return
            channel = CHANNELS[0]
            if self.channels is not None:
                envelope = json.loads(text)
                if "type" in envelope:
                    if envelope["type"] == "subscribed":
                        self.messages_before_subscribed = len(self.messages)
                    continue
                channel = envelope["ch"]
                is_last = envelope.get("text") == LAST
            else:
                is_last = text == LAST
            self.messages.append((channel, text))
            if is_last:
                missing.discard(channel)

    def expected(self, plain):
        """The messages of a plain subscriber that this one has to receive, given its first one."""
        channels = self.channels or CHANNELS[:1]
        relevant = [one for one in plain.messages if one[0] in channels and not (self.is_quiet and one[1] in self.sent)]
        first = next(iter(self.received()), None)
        return relevant if self.since or first not in relevant else relevant[relevant.index(first):]

    def received(self):
        """Its messages, from the moment at which it subscribed to all of its channels."""
        return self.messages if self.since else self.messages[self.messages_before_subscribed:]


class Scenario:
    def __init__(self, mode, server, node, gorilla, checks):
        self.mode, self.server, self.node, self.gorilla = mode, server, node, gorilla
        self.check = lambda text, *found: checks.check(f"{mode}: {text}", *found)
        self.random = random.Random(7)
        self.subscribers = []

    def reader(self, library):
        name = f"{library} {self.mode} {len(self.subscribers)}"
        if library == "websockets":
            return PythonReader(name)
        return NodeReader(name, self.gorilla if library == "gorilla" else self.node, library)

    async def join(self, library, way):
        subscriber = Subscriber(self.reader(library), way)
        self.subscribers.append(subscriber)
        await subscriber.join(self.server)
        await subscriber.publish(len(self.subscribers))
        return subscriber

    async def publish(self):
        """Publishes at a steady rate, with bursts, while clients join."""
        joins = [(library, way) for library in LIBRARIES for way in WAYS] * JOINS
        self.random.shuffle(joins)
        moments = sorted(self.random.randrange(MESSAGES * 9 // 10) for _ in joins)
        async with connect(self.server.url(CHANNELS[0]), proxy=None, compression=None, **PATIENT) as prices, \
                connect(self.server.url(CHANNELS[1]), proxy=None, compression=None, **PATIENT) as news:
            # A published message returns to its publisher, which has to read.
            readers = [asyncio.create_task(self.drop(socket)) for socket in (prices, news)]
            joining = []
            for number in itertools.count():
                while moments and moments[0] <= number:
                    moments.pop(0)
                    joining.append(asyncio.create_task(self.join(*joins.pop())))
                if number >= MESSAGES and all(join.done() for join in joining):
                    break
                await (news if number % 5 == 4 else prices).send(published(number))
                if self.random.random() < 0.02:
                    await asyncio.sleep(0.02)
                    for extra in range(30):
                        await prices.send(published(10_000 + 100 * number + extra))
                await asyncio.sleep(0.002)
            await asyncio.gather(*joining)
            for number in range(20):
                for subscriber in self.subscribers[::3]:
                    await subscriber.publish(1000 + number)
                await asyncio.sleep(0.005)
            # All that subscribers have sent has to be in the channel before the last message.
            sent = {text for subscriber in self.subscribers for text in subscriber.sent}
            while sent:
                sent.discard(await asyncio.wait_for(self.seen.get(), STEP_S))
            for socket in prices, news:
                await socket.send(LAST)
            for reader in readers:
                await reader

    async def drop(self, socket):
        async for data in socket:
            self.seen.put_nowait(data)
            if data == LAST:
                return

    async def run(self):
        self.seen = asyncio.Queue()
        plain = [Subscriber(PythonReader("plain"), ("plain", channels, None, False)) for channels in (None, CHANNELS)]
        for subscriber in plain:
            await subscriber.join(self.server, compression=None)
        reading = [asyncio.create_task(subscriber.read()) for subscriber in plain]
        await self.publish()
        await asyncio.gather(*(subscriber.read() for subscriber in self.subscribers), *reading)
        raw, enveloped = plain
        self.check("the plain subscribers negotiate nothing and receive all", not any(one.reader.is_compressed for one in plain)
                   and len(raw.messages) > MESSAGES // 2 and len(enveloped.messages) > MESSAGES)
        for subscriber in self.subscribers:
            expected, received = subscriber.expected(raw if subscriber.channels is None else enveloped), subscriber.received()
            what = subscriber.closed or next((f"number {index}: {a} instead of {b}" for index, (a, b)
                                              in enumerate(itertools.zip_longest(received, expected)) if a != b), None)
            self.check(f"{subscriber.reader.name}, {subscriber.name}, negotiates compression and receives the plain "
                       f"subscriber's {len(expected)} messages", subscriber.reader.is_compressed and bool(received) and what is None, what)
        self.check("gorilla's clients alone have no context, as they offered",
                   all((one.reader.library == "gorilla") == one.reader.has_no_context
                       for one in self.subscribers if isinstance(one.reader, NodeReader)))
        self.metrics()

    def metrics(self):
        with urllib.request.urlopen(self.server.root.replace("ws", "http", 1) + "/metrics", timeout=STEP_S) as response:
            lines = response.read().decode().splitlines()
        value = {name: float(count) for name, _, count in (line.rpartition(" ") for line in lines) if name and name[0] != "#"}
        in_context = value['oyez_deflated_messages_total{context="previous"}']
        alone = value['oyez_deflated_messages_total{context="none"}']
        self.check("messages refer to the previous one in the mode context alone",
                   alone > 0 and (in_context > 0) == (self.mode == "context"), (in_context, alone))
        plain, sent = value["oyez_deflate_plain_bytes_total"], value["oyez_deflate_sent_bytes_total"]
        share = {"context": 0.4, "fresh": 0.8}[self.mode]
        self.check(f"compressed messages take {share:.0%} of the bytes at most", 0 < sent < share * plain, (sent, plain))
        self.check("clients' compressed messages are decompressed", value["oyez_inflated_bytes_total"] > 0)


async def main(oyez):
    checks, node, gorilla = Checks(), Node(), Node(os.environ["GORILLA"])
    with tempfile.TemporaryFile() as log:
        servers = []
        try:
            await node.start()
            await gorilla.start()
            for mode in MODES:
                servers.append(Server())
                await servers[-1].start(oyez, log, "--deflate", mode, "--history-messages-max", "1000000",
                                        "--history-bytes-max", "64MiB")
            runs = [Scenario(mode, server, node, gorilla, checks).run() for mode, server in zip(MODES, servers)]
            await asyncio.wait_for(asyncio.gather(*runs), SCENARIO_S)
        except Exception as error:
            checks.check(f"the scenario runs to its end within {SCENARIO_S} s", False, repr(error))
        finally:
            await kill(*servers, node, gorilla)
        return checks.report(log)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
