"""The attacks: the traffic and number of connections of each, and the bars that hold during it."""

from dataclasses import dataclass, field
from typing import Callable

import wire
from machine import SECRET
from swarm import Plan, Swarm, ask
from wire import BINARY, DEFLATE, TEXT, V1, command, compressed, frame, header, request, upgrade

CHUNK = 64 << 10
V1_OPEN = upgrade("/ws", V1)
LARGE = b"x" * (1 << 20)
# The default of --message-bytes-max.
MESSAGE_BYTES = 64 << 10
# As much as a history of 1 MiB keeps, with its fixed cost of a message. JSON writes a control character in six bytes.
KEPT_BYTES = (1 << 20) - 1024


@dataclass
class Attack:
    name: str
    # One line for the table.
    what: str
    # Number of connections, or of other units of the attack; --scale multiplies it.
    count: int
    # Processes of attackers: functions that are given a port and the scaled count, and return a report.
    parts: list
    # "memory" or "flood": which bars hold.
    kind: str = "memory"
    flags: list = field(default_factory=list)
    tls: bool = False
    # Preparation, before anything is measured.
    prepare: Callable = lambda port, count: None
    # True if `count` is a number of connections (a server with --connections-max takes fewer).
    is_connections: bool = True
    # Further bars: functions of the reports that return the failures.
    check: Callable = lambda reports: []


def part(plan, seconds=5, limit=300):
    """One process with connections of one plan."""
    def run(port, count):
        return Swarm(port).add(plan(count)).run(seconds, limit).report()
    return run


def of(total, size):
    """`total` in pieces of at most `size`."""
    begun = 0
    while begun < total:
        yield begun, min(begun + size, total)
        begun += size


EMPTY_FRAMES = frame(TEXT, b"") * (CHUNK // 6)


def own_channels(port, count):
    """Subscribers that do not read, three ways for each channel, and publishers of 64 KiB that make their outboxes full."""
    swarm = Swarm(port)
    raw = lambda number: upgrade(f"/ws/own.{number % count}")
    stream = lambda number: request("GET", f"/sse/own.{number % count}")
    many = lambda number: V1_OPEN + b"".join(
        command(type="subscribe", ch=f"own.{(number * 128 + place) % count}") for place in range(128))
    for first, connections in (raw, count), (stream, count), (many, -(-count // 128)):
        swarm.add(Plan(connections, first, reads=False, receive_buffer=4096))
    swarm.run(1)
    body = b"y" * (64 << 10)
    rounds = lambda number: (request("POST", f"/v1/publish/own.{channel}", body)
                             for _ in range(12) for channel in range(number % 4, count, 4))
    return swarm.add(Plan(4, feed=rounds)).run(8, 120).report()


def bombs(port, count, seconds=10):
    """Compressed messages that inflate to the maximum of a message, on half of the connections. Of the others, some send
    a message that is a byte larger, and some one of 50 MiB, and connect again."""
    first = lambda number: upgrade(f"/ws/bomb.{number}?echo=0", DEFLATE)
    within, beyond, large = (compressed(b"x" * size) for size in (MESSAGE_BYTES, MESSAGE_BYTES + 1, 50 << 20))
    swarm = Swarm(port).add(Plan(count - count // 2, first, repeat=within * 200))
    swarm.add(Plan(count // 2 - count // 4, lambda number: first(number) + beyond, reopens=True))
    return swarm.add(Plan(count // 4, lambda number: first(number) + large, reopens=True)).run(seconds).report()


def channels(count):
    def feed(_):
        for begun, end in of(count, 1_000):
            yield b"".join(b"POST /v1/publish/c%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n" % number
                           for number in range(begun, end))
    return Plan(1, feed=feed)


def keys(count):
    share = -(-count // 4)
    def feed(connection):
        for begun, end in of(share, 1_000):
            yield b"".join(b"POST /v1/publish/keys HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: k%d.%d\r\n"
                           b"Content-Length: 1\r\n\r\nx" % (connection, number) for number in range(begun, end))
    return Plan(4, feed=feed)


def tickets(count):
    lines = f"Authorization: Bearer {wire.token(SECRET, 'mallory', subscribe=['*'])}\r\n"
    one = request("POST", "/v1/tickets", b"", lines)
    return Plan(1, feed=lambda _: (one * (end - begun) for begun, end in of(count, 100)))


def half_body(_):
    return request("POST", "/v1/publish/half", LARGE)[:-1]


def publish(channel, *bodies):
    def prepare(port, _):
        answers = ask(port, [request("POST", f"/v1/publish/{channel}", body) for body in bodies])
        if any(status != 200 for status, _ in answers):
            raise SystemExit(f"preparation failed: {answers[-1]}")
    return prepare


def many_channels(port, _):
    ask(port, [request("POST", f"/v1/publish/listed.{number}", b"x") for number in range(5_000)])


def idle_subscribers(port, count):
    """14,000 subscribers that answer pings, and connections that say nothing."""
    silent = max(20, count // 70)
    # All have room: above --connections-max a connection first waits in the listen queue, and that time would count.
    swarm = Swarm(port).add(Plan(count - min(1_000, count // 3), upgrade("/ws/idle"), pongs=True))
    swarm.add(Plan(silent, reopens=True, name="silent"))
    return swarm.run(65, 200).report()


def deadlines_kept(reports):
    missed = []
    gap = max(report["ping_gap_max_s"] for report in reports)
    if gap > 1.2 * 25:
        missed.append(f"a ping {gap:.1f} s after the last sign of life")
    for report in reports:
        silent = [one["max"] for name, one in report["lives_s"].items() if name.startswith("silent")]
        if silent and max(silent) > 6:
            missed.append(f"a silent connection ended after {max(silent):.1f} s")
    return missed


ALL = [
    Attack("empty-frames", "1 connection sends empty `oyez.v1` frames and reads the answers", 1,
           [part(lambda n: Plan(1, V1_OPEN, repeat=EMPTY_FRAMES), 8)], is_connections=False),
    Attack("empty-frames-unread", "1,000 connections send empty `oyez.v1` frames and read nothing", 1_000,
           [part(lambda n: Plan(n, V1_OPEN, repeat=EMPTY_FRAMES, reads=False, receive_buffer=4096), 8)]),
    Attack("half-messages", "8,000 half messages of 60 KiB", 8_000,
           [part(lambda n: Plan(n, upgrade("/ws/half") + header(BINARY, 65_000) + LARGE[:60 << 10], reads=False))]),
    Attack("half-bodies", "3,000 half bodies of 1 MiB", 3_000, [part(lambda n: Plan(n, half_body(0), reads=False))]),
    Attack("history-page", "500 requests of a page with a message of 1 MiB of control characters, which is not read", 500,
           [part(lambda n: Plan(n, request("GET", "/v1/channels/big/history"), reads=False, receive_buffer=4096))],
           prepare=publish("big", b"\x01" * KEPT_BYTES)),
    Attack("replay-expensive", "600 replays of that message by `oyez.v1`, which are not read", 600,
           [part(lambda n: Plan(n, upgrade("/ws/big?since=earliest", V1), reads=False, receive_buffer=4096))],
           prepare=publish("big", b"\x01" * KEPT_BYTES)),
    Attack("replay-large", "1,500 replays of a message of 1 MiB, which are not read", 1_500,
           [part(lambda n: Plan(n, upgrade("/ws/big?since=earliest", V1), reads=False, receive_buffer=4096))],
           prepare=publish("big", b"x" * KEPT_BYTES)),
    Attack("own-channels", "1,200 channels, each with a raw subscriber, an event stream and a place in an `oyez.v1` "
           "connection with 128 channels, none of which reads; messages of 64 KiB on all of them", 1_200, [own_channels]),
    Attack("million-channels", "1,000,000 channels by one connection", 1_000_000, [part(channels, 2, 120)],
           is_connections=False),
    Attack("half-hellos", "6,000 halves of a ClientHello of 16 KiB", 6_000,
           [part(lambda n: Plan(n, wire.half_client_hello(), reads=False), 3)], tls=True),
    Attack("idle-tls", "19,000 idle TLS connections", 19_000,
           [part(lambda n: Plan(n, upgrade("/ws/idle"), tls=wire.trusting_all()), 3)], tls=True),
    Attack("half-requests", "19,000 request heads of 8,000 bytes without an end, opened again when they are closed", 19_000,
           [part(lambda n: Plan(n, b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX: " + LARGE[:7_950], reads=True,
                                reopens=True), 3, 60)]),
    Attack("idempotency-keys", "1,000,000 messages with an `Idempotency-Key` each", 1_000_000, [part(keys, 2, 120)],
           is_connections=False),
    Attack("tickets", "10,000 tickets by one token", 10_000, [part(tickets, 2)], flags=["{secret}"], is_connections=False),
    Attack("flood-messages", "1,000 connections publish small messages as fast as they can", 1_000,
           [part(lambda n: Plan(n, lambda number: upgrade(f"/ws/flood.{number}?echo=0"),
                                repeat=frame(TEXT, b"m" * 32) * 400), 10)], kind="flood"),
    Attack("flood-bombs", "1,000 connections send compressed messages that inflate to 64 KiB, or to more and connect again",
           1_000, [bombs], kind="flood", flags=["--history-messages-max", "0"]),
    Attack("flood-listings", "3,000 connections ask for `/v1/channels` again and again; there are 5,000 channels", 3_000,
           [part(lambda n: Plan(n, request("GET", "/v1/channels"), asks=True), 10)], kind="flood", prepare=many_channels),
    Attack("flood-history", "3,000 connections ask for a history page of 100 messages of 1 KiB", 3_000,
           [part(lambda n: Plan(n, request("GET", "/v1/channels/hist/history"), asks=True), 10)], kind="flood",
           prepare=publish("hist", *[b"h" * 1024] * 100)),
    Attack("flood-metrics", "3,000 connections ask for `/metrics`", 3_000,
           [part(lambda n: Plan(n, request("GET", "/metrics"), asks=True), 10)], kind="flood"),
    Attack("flood-deadlines", "14,000 subscribers and connections that send nothing, with 500 that request `/v1/channels`",
           14_000, [idle_subscribers, lambda port, count: Swarm(port).add(
               Plan(min(500, count // 4), request("GET", "/v1/channels"), asks=True)).run(70, 200).report()],
           kind="flood", prepare=many_channels, check=deadlines_kept),
]
