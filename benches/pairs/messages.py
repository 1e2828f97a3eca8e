"""Messages of four kinds, as they are broadcast, and a subscriber that counts the bytes of its frames."""

import json
import random
import socket
import zlib

OFFER = "Sec-WebSocket-Extensions: permessage-deflate\r\n"


def ticks(count):
    """Prices: some 170 bytes."""
    dice = random.Random(1)
    price = 41_250
    for number in range(count):
        price += dice.randrange(-40, 41)
        yield json.dumps({"type": "tick", "symbol": "ACME", "bid": price / 100, "ask": (price + 3) / 100,
                          "last": price / 100, "volume": 1_200_000 + 37 * number, "change": dice.randrange(-300, 300) / 100,
                          "time": f"2026-01-05T14:{number // 60 % 60:02}:{number % 60:02}.{dice.randrange(1000):03}Z"})


def chats(count):
    """Chat messages: some 180 bytes, of which a third is the text."""
    dice = random.Random(2)
    names = "ada", "grace", "edsger", "barbara", "donald", "radia"
    words = ("the server restarts in a minute please wait for it and then try again or ask someone else about this error "
             "before lunch today maybe tomorrow after we have shipped what was promised last week").split()
    for number in range(count):
        yield json.dumps({"type": "message", "id": f"{dice.getrandbits(48):012x}", "room": "general",
                          "user": {"id": dice.randrange(10_000), "name": dice.choice(names)},
                          "text": " ".join(dice.choice(words) for _ in range(11)), "sent": 1_767_600_000_000 + 8_137 * number})


def boards(count, rows, changes, seed):
    """A table of which some rows change from message to message."""
    dice = random.Random(seed)
    table = [{"rank": row + 1, "player": f"player-{dice.randrange(100_000)}", "points": dice.randrange(100_000),
              "level": dice.randrange(60), "team": dice.choice(("red", "blue"))} for row in range(rows)]
    for _ in range(count):
        for row in dice.sample(table, changes):
            row["points"] += dice.randrange(1, 500)
        yield json.dumps({"type": "board", "rows": table})


KINDS = {
    "tick": ticks,
    "chat": chats,
    "board": lambda count: boards(count, 10, 2, 3),
    "dashboard": lambda count: boards(count, 100, 20, 4),
}


class Subscriber:
    """A raw WebSocket, which offers compression or not, and decompresses with a window of its own."""

    def __init__(self, address, path, offers_deflate):
        host, _, port = address.partition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                            f"{OFFER if offers_deflate else ''}\r\n".encode())
        self.stream = self.socket.makefile("rb")
        head = b"".join(iter(self.stream.readline, b"\r\n"))
        if not head.startswith(b"HTTP/1.1 101 ") or (b"permessage-deflate" in head) != offers_deflate:
            raise RuntimeError(head.decode())
        self.window = zlib.decompressobj(-15)

    def receive(self):
        """The text of the next frame, and its bytes."""
        first, second = self.stream.read(2)
        extended = {126: 2, 127: 8}.get(second, 0)
        length = int.from_bytes(self.stream.read(extended)) if extended else second
        payload = self.stream.read(length)
        if first & 0x40:
            payload = self.window.decompress(payload + b"\x00\x00\xff\xff")
        if first & 0x8f != 0x81:
            raise RuntimeError(f"frame {first:#x}")
        return payload.decode(), 2 + extended + length

    def skip(self):
        """Reads some of what has arrived, at least one byte."""
        if not self.socket.recv(1 << 16):
            raise RuntimeError("closed")

    def close(self):
        self.stream.close()
        self.socket.close()
