"""Clients that record everything that they send and receive, in the form that checks.py reads.

They use the standard library only, so that a thousand of them fit into one process: `oyez.v1` with
cursors and idempotency keys as oyez.js has them, raw WebSockets, event streams, and HTTP requests.
"""

import asyncio
import json
import random

from checks import CaughtUp, Close, Gap, Message, Publish, Receiver, parse_id
from engine import STEP_S

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
UPGRADE = ("GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n")
RECONNECT_S = 0.05


def frame(opcode, payload):
    """A frame, masked with zeros, which leave the payload as it is."""
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 65536:
        size = b"\xfe" + length.to_bytes(2, "big")
    else:
        size = b"\xff" + length.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + size + b"\0\0\0\0" + payload


async def until(condition, what, limit_s=STEP_S):
    """Waits for a condition; fails after a deadline that no healthy machine reaches."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    while not (found := condition()):
        if loop.time() > end:
            raise AssertionError(f"not within {limit_s} s: {what() if callable(what) else what}")
        await asyncio.sleep(0.02)
    return found


class WebSocket(asyncio.Protocol):
    """One connection; `user` gets on_open, on_text and on_end."""

    def __init__(self, user, path, lines=""):
        self.user, self.request = user, UPGRADE.format(path=path, lines=lines).encode()
        self.buffer, self.is_open, self.end = bytearray(), False, None

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        buffer = self.buffer
        buffer += data
        if not self.is_open:
            head_end = buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 101"):
                self.end = Close(int(buffer[9:12]), "http")
                self.transport.close()
                return
            del buffer[:head_end + 4]
            self.is_open = True
            self.user.on_open(self)
        at, length = 0, len(buffer)
        while length - at >= 2:
            size, start = buffer[at + 1] & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(buffer[at + 2:at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(buffer[at + 2:at + 10], "big"), at + 10
            if length < start + size:
                break
            opcode, payload = buffer[at] & 0x0F, bytes(buffer[start:start + size])
            at = start + size
            if opcode == TEXT:
                self.user.on_text(self, payload)
            elif opcode == PING:
                self.transport.write(frame(PONG, payload))
            elif opcode == CLOSE:
                self.end = Close(int.from_bytes(payload[:2], "big"), payload[2:].decode())
                self.transport.write(frame(CLOSE, payload[:2]))
        del buffer[:at]

    def send(self, **fields):
        self.transport.write(frame(TEXT, json.dumps(fields, separators=(",", ":")).encode()))

    def connection_lost(self, error):
        self.user.on_end(self, self.end or Close(None))


class OneConnection:
    """A client that does not reconnect; how its connection ended."""

    def __init__(self, node, lines="", path="/ws/a"):
        self.is_open, self.end = False, None
        self.task = asyncio.ensure_future(asyncio.get_running_loop().create_connection(
            lambda: WebSocket(self, path, lines), node.host, node.port))

    def on_open(self, connection):
        self.is_open, self.write = True, lambda opcode, payload: connection.transport.write(frame(opcode, payload))

    def on_text(self, connection, payload):
        pass

    def on_end(self, connection, close):
        self.end = close


class Client:
    """A client that reconnects until it is stopped. `choose` returns the node for the next attempt, or None to wait."""

    path, lines = "/ws", ""

    def __init__(self, name, choose):
        self.name, self.choose = name, choose
        self.connection, self.node, self.is_stopped, self.ready = None, None, False, asyncio.Event()
        self.task = asyncio.ensure_future(self.run())

    def make(self):
        return WebSocket(self, self.path, self.lines)

    async def run(self):
        loop = asyncio.get_running_loop()
        while not self.is_stopped:
            self.node = self.choose()
            if self.node:
                self.ended = asyncio.Event()
                try:
                    _, self.connection = await loop.create_connection(self.make, self.node.host, self.node.port)
                except OSError:
                    pass
                else:
                    await self.ended.wait()
            await asyncio.sleep(RECONNECT_S * random.uniform(0.5, 1.5))

    def on_end(self, connection, close):
        self.ready.clear()
        self.connection = None
        self.ended.set()

    def disconnect(self):
        """Cuts the connection; the client reconnects by itself."""
        if self.connection and self.connection.transport:
            self.connection.transport.abort()

    async def stop(self):
        self.is_stopped = True
        self.disconnect()
        self.task.cancel()


class Subscriber(Client):
    """An `oyez.v1` subscriber of several channels, which resumes each at its cursor."""

    lines = "Sec-WebSocket-Protocol: oyez.v1\r\n"

    def __init__(self, name, choose, channels, since="earliest"):
        self.receiver = Receiver(name, frozenset(channels))
        self.events, self.cursors, self.replays = self.receiver.events, dict.fromkeys(channels, since), set()
        self.hellos, self.texts = [], set()
        super().__init__(name, choose)

    def on_open(self, connection):
        self.replays = set(self.cursors)
        for channel, cursor in self.cursors.items():
            connection.send(type="subscribe", ch=channel, since=cursor)

    def on_text(self, connection, payload):
        message = json.loads(payload)
        kind, channel = message.get("type"), message.get("ch")
        if kind is None:
            self.events.append(Message(channel, parse_id(message["id"]), message["text"]))
            self.texts.add(message["text"])
            self.cursors[channel] = message["id"]
        elif kind == "gap":
            self.events.append(Gap(channel, parse_id(message["after"]), parse_id(message["resume"]), message["why"], message["missed"]))
            self.cursors[channel] = message["resume"]
        elif kind in ("subscribed", "live"):
            self.cursors[channel] = message["id"]
            if kind == "live":
                self.replays.discard(channel)
                if not self.replays:
                    self.events.append(CaughtUp())
                    self.ready.set()
        elif kind == "hello":
            self.hellos.append(message)
        elif kind == "error":
            connection.transport.close()

    def on_end(self, connection, close):
        if connection.is_open:
            self.events.append(close)
        super().on_end(connection, close)


class RawSubscriber(Client):
    """A raw WebSocket, which has no ids."""

    def __init__(self, name, choose, channel):
        self.path = f"/ws/{channel}"
        self.channel, self.receiver, self.texts = channel, Receiver(name, frozenset([channel]), is_raw=True), set()
        super().__init__(name, choose)

    def on_open(self, connection):
        self.ready.set()

    def on_text(self, connection, payload):
        text = payload.decode()
        self.receiver.events.append(Message(self.channel, None, text))
        self.texts.add(text)

    def on_end(self, connection, close):
        if connection.is_open:
            self.receiver.events.append(close)
        super().on_end(connection, close)


class EventStream(asyncio.Protocol):
    """One event stream. HTTP/1.0: the response is not chunked."""

    def __init__(self, user, request):
        self.user, self.request, self.buffer, self.is_open = user, request, b"", False

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.buffer += data
        if not self.is_open:
            head, mark, rest = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            if b" 200 " not in head[:16] or b"text/event-stream" not in head:
                self.transport.close()
                return
            self.buffer, self.is_open = rest, True
        *events, self.buffer = self.buffer.split(b"\n\n")
        for event in events:
            fields = {}
            for line in event.decode().split("\n"):
                name, _, value = line.partition(": ")
                fields[name] = fields[name] + "\n" + value if name == "data" and name in fields else value
            self.user.on_event(fields)

    def connection_lost(self, error):
        self.user.on_end(self, Close(None))


class StreamSubscriber(Client):
    """An event stream that resumes with Last-Event-ID."""

    def __init__(self, name, choose, channel):
        self.channel, self.cursor, self.receiver, self.texts = channel, None, Receiver(name, frozenset([channel])), set()
        super().__init__(name, choose)

    def make(self):
        query, line = ("?since=earliest", "") if self.cursor is None else ("", f"Last-Event-ID: {self.cursor}\r\n")
        request = f"GET /sse/{self.channel}{query} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n{line}\r\n"
        return EventStream(self, request.encode())

    def on_event(self, fields):
        if fields.get("event") == "gap":
            gap = json.loads(fields["data"])
            self.receiver.events.append(
                Gap(self.channel, parse_id(gap["after"]), parse_id(gap["resume"]), gap["why"], gap["missed"]))
        elif "data" in fields:
            self.receiver.events.append(Message(self.channel, parse_id(fields["id"]), fields["data"]))
            self.texts.add(fields["data"])
        if "id" in fields:
            self.cursor = fields["id"]
            self.ready.set()

    def on_end(self, connection, close):
        if connection.is_open:
            self.receiver.events.append(close)
        super().on_end(connection, close)


class Publisher(Client):
    """Publishes texts of its own through `oyez.v1`, at a rate and with a bounded number in flight.

    As oyez.js does, it sends publishes without an answer again after a reconnect, under the same key, while `run` of `hello`
    is the same. It also repeats those that are answered with `unconfirmed`."""

    lines = "Sec-WebSocket-Protocol: oyez.v1\r\n"
    # Errors after which the same publish is sent again.
    RETRIED = ("unconfirmed", "drain")

    def __init__(self, name, choose, channels, per_second, window=64, padding=0):
        self.channels, self.per_second, self.window, self.padding = list(channels), per_second, window, "." * padding
        self.publishes, self.in_flight, self.is_uncertain, self.run_id = [], {}, set(), None
        self.codes, self.is_paused = [], False
        super().__init__(name, choose)
        self.ticker = asyncio.ensure_future(self.tick())

    def on_open(self, connection):
        pass

    async def tick(self):
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due, loop.time() - 1)
            while not self.is_paused and self.connection and self.ready.is_set() and due <= loop.time() and len(self.in_flight) < self.window:
                due += 1 / self.per_second
                self.publish()
            await asyncio.sleep(max(0.005, due - loop.time()))

    def publish(self, channel=None):
        number = len(self.publishes)
        one = Publish(channel or self.channels[number % len(self.channels)], f"{self.name}-{number}{self.padding}")
        self.publishes.append(one)
        self.in_flight[number] = one
        self.send(number, one)
        return one

    def send(self, ref, one):
        self.connection.send(type="publish", ch=one.channel, text=one.text, ref=ref, key=f"{self.name}-{ref}")

    def on_text(self, connection, payload):
        message = json.loads(payload)
        kind, ref = message.get("type"), message.get("ref")
        if kind == "hello":
            if self.run_id not in (None, message["run"]):
                # The server knows none of the keys: the outcome of publishes without an answer stays unknown.
                self.in_flight.clear()
            self.run_id = message["run"]
            self.is_uncertain |= self.in_flight.keys()
            for number, one in sorted(self.in_flight.items()):
                self.send(number, one)
            self.ready.set()
        elif kind == "ack" and ref in self.in_flight:
            one = self.in_flight.pop(ref)
            one.outcome, one.id = "acked", parse_id(message["id"])
        elif kind == "error" and ref in self.in_flight:
            self.codes.append(message["code"])
            one = self.in_flight[ref]
            if message["code"] in self.RETRIED or ref in self.is_uncertain:
                if message["code"] == "unconfirmed":
                    self.is_uncertain.add(ref)
                asyncio.get_running_loop().call_later(0.1, self.again, ref)
            else:
                one.outcome, one.code = "rejected", message["code"]
                del self.in_flight[ref]

    def again(self, ref):
        if self.connection and self.ready.is_set() and ref in self.in_flight:
            self.send(ref, self.in_flight[ref])

    async def finish(self):
        """Publishes nothing further, and waits until every publish has an outcome."""
        self.is_paused = True
        await until(lambda: not self.in_flight, lambda: f"{len(self.in_flight)} publishes of {self.name} have no outcome: {self.codes[-3:]}")

    def acked(self, since=0):
        """How many publishes are acknowledged, of those since this number."""
        return sum(one.outcome == "acked" for one in self.publishes[since:])

    async def stop(self):
        self.ticker.cancel()
        await super().stop()


async def request(port, method, path, body=None, lines="", limit_s=STEP_S, host="127.0.0.1"):
    """One HTTP request on a connection of its own; status, head and body of the response."""
    async def exchange():
        reader, writer = await asyncio.open_connection(host, port)
        try:
            length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}{lines}\r\n".encode() + (body or b""))
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            text = await reader.read()
            if "transfer-encoding: chunked" in head.lower():
                text, rest = b"", text
                while rest:
                    size, _, rest = rest.partition(b"\r\n")
                    text, rest = text + rest[:int(size, 16)], rest[int(size, 16) + 2:]
            return int(head.split()[1]), head, text
        finally:
            writer.close()
    return await asyncio.wait_for(exchange(), limit_s)
