"""Healthy clients: subscribers of one channel with a steady publisher, in a separate process.

The publisher is an open loop: a message carries the time at which it was due, so a server that reads late is measured
late. A message that has not arrived when a phase ends counts with its waiting time so far.
"""

import collections
import multiprocessing
import os
import selectors
import socket
import ssl
import time

from wire import CLOSE, PING, PONG, TEXT, frame, take_frame, trusting_all, upgrade

CONNECT_LIMIT_S = 60


class Client:
    def __init__(self, port, path, tls):
        self.socket = socket.create_connection(("127.0.0.1", port), CONNECT_LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            self.socket = trusting_all().wrap_socket(self.socket)
        self.socket.sendall(upgrade(path))
        self.received, self.waits = bytearray(), bytearray()
        while b"\r\n\r\n" not in self.received:
            data = self.socket.recv(65536)
            if not data:
                raise SystemExit("a healthy client was not accepted")
            self.received += data
        if not self.received.startswith(b"HTTP/1.1 101"):
            raise SystemExit(f"a healthy client was not accepted: {bytes(self.received[:200])}")
        del self.received[:self.received.index(b"\r\n\r\n") + 4]
        self.socket.setblocking(False)
        self.next, self.ended = None, None

    def send(self, data=b""):
        self.waits += data
        try:
            while self.waits:
                del self.waits[:self.socket.send(self.waits)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self.ended = self.ended or type(error).__name__

    def read(self):
        """Reads all available bytes, and returns the texts."""
        try:
            while True:
                data = self.socket.recv(65536)
                if not data:
                    self.ended = self.ended or "end of file"
                    break
                self.received += data
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self.ended = self.ended or type(error).__name__
        texts = []
        while one := take_frame(self.received):
            opcode, payload = one
            if opcode == TEXT:
                texts.append(payload)
            elif opcode == PING:
                self.send(frame(PONG, payload))
            elif opcode == CLOSE:
                self.ended = f"close {int.from_bytes(payload[:2], 'big')}"
        return texts


class Observer:
    """The main function of the healthy clients' process. Times are nanoseconds of the monotonic clock."""

    def __init__(self, port, tls, count, interval_ms, channel):
        self.interval = interval_ms * 1_000_000
        self.subscribers = [Client(port, f"/ws/{channel}", tls) for _ in range(count)]
        self.publisher = Client(port, f"/ws/{channel}?echo=0", tls)
        self.selector = selectors.DefaultSelector()
        for client in [*self.subscribers, self.publisher]:
            self.selector.register(client.socket, selectors.EVENT_READ, client)
        self.due, self.number, self.first = None, 0, 0
        self.sent, self.latencies, self.faults = {}, [], []

    def publish(self, now):
        while self.due <= now:
            self.publisher.send(frame(TEXT, f"{self.number} {self.due}".encode()))
            self.sent[self.number] = self.due
            self.number += 1
            self.due += self.interval
        if self.publisher.waits:
            self.publisher.send()

    def take(self, client, now):
        for text in client.read():
            number, due = map(int, text.split())
            if client.next is not None and number != client.next:
                self.faults.append(f"message {number} in place of {client.next}")
            client.next = number + 1
            self.latencies.append(now - due)
        if client.ended:
            self.selector.unregister(client.socket)

    def phase(self, now):
        """Ends a phase; returns its measurements."""
        for client in self.subscribers:
            if client.ended is None:
                begun = client.next if client.next is not None else self.first
                for number in range(max(begun, self.first), self.number):
                    self.latencies.append(now - self.sent[number])
        found = sorted(self.latencies)
        at = lambda share: found[min(len(found) - 1, int(len(found) * share))] / 1e6 if found else None
        ended = dict(collections.Counter(client.ended for client in [*self.subscribers, self.publisher] if client.ended))
        result = {
            "stayed": sum(client.ended is None for client in self.subscribers), "of": len(self.subscribers),
            "publisher_stayed": self.publisher.ended is None, "ended": ended, "faults": self.faults[:5], "fault_count": len(self.faults),
            "count": len(found), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": found[-1] / 1e6 if found else None,
        }
        self.latencies, self.faults, self.first = [], [], self.number
        self.sent = {number: due for number, due in self.sent.items() if number >= self.number - 10}
        return result

    def run(self, pipe):
        self.selector.register(pipe, selectors.EVENT_READ, None)
        self.due = time.monotonic_ns() + self.interval
        pipe.send("ready")
        while True:
            now = time.monotonic_ns()
            self.publish(now)
            for key, _ in self.selector.select(max(0, self.due - time.monotonic_ns()) / 1e9):
                if key.data is None:
                    if pipe.recv() == "end":
                        return
                    pipe.send(self.phase(time.monotonic_ns()))
                else:
                    self.take(key.data, time.monotonic_ns())


def _main(pipe, *arguments):
    try:
        # The server is measured, not the scheduler: this process has the highest priority, the attacker the lowest.
        os.nice(-10)
    except OSError:
        pass
    try:
        Observer(*arguments).run(pipe)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


class Observers:
    """The handle to such a process."""

    def __init__(self, *arguments):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_main, args=(other, *arguments), daemon=True)
        self.process.start()
        other.close()
        if not self.pipe.poll(CONNECT_LIMIT_S) or self.pipe.recv() != "ready":
            raise SystemExit("the healthy clients did not connect")

    def phase(self):
        self.pipe.send("phase")
        return self.pipe.recv()

    def end(self):
        try:
            self.pipe.send("end")
        except OSError:
            pass
        self.process.join(5)
        self.process.kill()
