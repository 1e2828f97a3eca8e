"""The attacker: thousands of connections in one process and one epoll loop, with bytes that are prepared in advance."""

import collections
import errno
import select
import socket
import ssl
import time

import wire

IN, OUT, GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
# Connections that are being opened at a time: fewer than a listener's backlog of 4,096.
OPENING_MAX = 400
# 127.0.0.1 to 127.0.0.8: one address has 28,000 ports, some of which are in TIME_WAIT after the attack before.
SOURCES = 8
IP_BIND_ADDRESS_NO_PORT = 24
TAIL_BYTES = 4096
# A body in chunks (RFC 9112 7.1), and how it ends.
CHUNKED, LAST_CHUNK = -1, b"\r\n0\r\n\r\n"


class Plan:
    """The behavior of one kind of connection.

    `first` is sent when they are open (bytes, or a function of their number), then what the iterator `feed` yields
    (made by a function of their number), then `repeat` without end. With `asks`, `first` is one request, which is
    repeated when its answer has arrived. They read everything or nothing. With `reopens`, one that ends is replaced.
    """

    def __init__(self, count, first=b"", feed=None, repeat=None, reads=True, asks=False, reopens=False, pongs=False,
                 tls=None, receive_buffer=None, name=""):
        self.count, self.first, self.feed, self.repeat, self.reads = count, first, feed, repeat, reads
        self.asks, self.reopens, self.pongs, self.tls = asks, reopens, pongs, tls
        self.receive_buffer, self.name = receive_buffer, name


class Peer:
    __slots__ = ("plan", "socket", "state", "out", "feed", "tail", "frames", "since", "mask", "left", "head", "opened")

    def __init__(self, plan):
        self.plan, self.state, self.out, self.feed = plan, "connecting", None, None
        self.tail, self.frames, self.left, self.head = b"", None, 0, b""


class Swarm:
    # Maximum seconds for which an attack keeps its connections; --hold sets it.
    hold_max = 600

    def __init__(self, port):
        self.port, self.epoll, self.peers = port, select.epoll(), {}
        self.queue, self.opening, self.number = collections.deque(), 0, 0
        self.seen = collections.Counter()
        self.sent = self.received = 0
        # Seconds from a sign of life to the ping that follows, and from the beginning to the end of a connection.
        self.ping_gap_max, self.lives = 0.0, collections.defaultdict(list)

    def add(self, plan):
        self.queue.extend([plan] * plan.count)
        return self

    # The loop.

    def run(self, seconds, limit=600):
        """Opens all connections, then runs for `hold` seconds after the last has opened and sent its first bytes."""
        begun, held_since = time.monotonic(), None
        seconds = min(seconds, self.hold_max)
        while True:
            now = time.monotonic()
            if held_since is None and not self.queue and not self.opening and not self.is_feeding():
                held_since = now
            if (held_since is not None and now >= held_since + seconds) or now >= begun + limit:
                break
            # All connections have ended, and the server accepts no more.
            if held_since is not None and not self.peers:
                break
            while self.queue and self.opening < OPENING_MAX:
                self.open(self.queue.popleft())
            for descriptor, events in self.epoll.poll(0.05, 1024):
                peer = self.peers.get(descriptor)
                if peer:
                    self.handle(peer, events)
        self.settle(time.monotonic())
        return self

    def is_feeding(self):
        return any(peer.feed is not None for peer in self.peers.values()) if self.has_feeds else False

    has_feeds = False

    def settle(self, now):
        """Counts the connections that are still open, and the answers they wait for."""
        for peer in list(self.peers.values()):
            # A close that has arrived on a connection that does not read.
            if peer.state == "open" and not peer.plan.reads:
                self.drain(peer)
            if peer.state != "ended":
                self.seen["open" if peer.state == "open" else "never opened"] += 1
            if peer.plan.pongs and peer.state == "open":
                self.ping_gap_max = max(self.ping_gap_max, now - peer.since)
            if peer.plan.name:
                self.lives[peer.plan.name + " (open)"].append(now - peer.opened)

    def drain(self, peer):
        for _ in range(64):
            try:
                data = peer.socket.recv(1 << 16)
            except OSError:
                return
            if not data:
                return self.end(peer, "end of file")
            self.received += len(data)
            peer.tail = (peer.tail + data)[-TAIL_BYTES:]

    def open(self, plan):
        peer = Peer(plan)
        number, self.number = self.number, self.number + 1
        peer.socket = socket.socket()
        peer.socket.setblocking(False)
        if plan.receive_buffer:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, plan.receive_buffer)
        first = plan.first(number) if callable(plan.first) else plan.first
        peer.out = memoryview(first)
        if plan.feed:
            peer.feed = plan.feed(number)
            self.has_feeds = True
        peer.since = peer.opened = time.monotonic()
        try:
            peer.socket.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            peer.socket.bind((f"127.0.0.{1 + number % SOURCES}", 0))
            code = peer.socket.connect_ex(("127.0.0.1", self.port))
        except OSError as error:
            code = error.errno
        if code not in (0, errno.EINPROGRESS):
            self.seen[errno.errorcode.get(code, str(code))] += 1
            peer.socket.close()
            return
        self.opening += 1
        self.peers[peer.socket.fileno()] = peer
        peer.mask = OUT
        self.epoll.register(peer.socket.fileno(), OUT | GONE)

    def handle(self, peer, events):
        if peer.state == "connecting":
            code = peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self.opening -= 1
                return self.end(peer, errno.errorcode.get(code, str(code)))
            if peer.plan.tls:
                peer.state = "handshake"
                descriptor = peer.socket.fileno()
                peer.socket = peer.plan.tls.wrap_socket(peer.socket, do_handshake_on_connect=False,
                                                        server_hostname="localhost")
                assert peer.socket.fileno() == descriptor
            else:
                self.opened(peer)
        if peer.state == "handshake":
            try:
                peer.socket.do_handshake()
            except ssl.SSLWantReadError:
                return self.watch(peer, IN)
            except ssl.SSLWantWriteError:
                return self.watch(peer, OUT)
            except OSError as error:
                self.opening -= 1
                return self.end(peer, f"TLS: {type(error).__name__}")
            self.opened(peer)
        if events & (IN | GONE) and (peer.plan.reads or events & GONE) and not self.read(peer):
            return
        self.write(peer)

    def opened(self, peer):
        self.opening -= 1
        peer.state = "open"
        # The sign of life that the first ping follows.
        peer.since = time.monotonic()
        if peer.plan.pongs:
            peer.frames = bytearray()

    def watch(self, peer, mask):
        if mask != peer.mask:
            peer.mask = mask
            self.epoll.modify(peer.socket.fileno(), mask | GONE)

    def write(self, peer):
        plan = peer.plan
        # Bounded per turn, so that every connection gets a share.
        for _ in range(8):
            if not peer.out:
                if peer.feed is not None:
                    chunk = next(peer.feed, None)
                    if chunk is None:
                        peer.feed = None
                        continue
                    peer.out = memoryview(chunk)
                elif plan.repeat:
                    peer.out = memoryview(plan.repeat)
                else:
                    break
            try:
                count = peer.socket.send(peer.out)
            except (BlockingIOError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                return self.end(peer, errno.errorcode.get(error.errno, type(error).__name__))
            self.sent += count
            peer.out = peer.out[count:]
        wants_out = bool(peer.out or peer.feed is not None or plan.repeat)
        self.watch(peer, (OUT if wants_out else 0) | (IN if plan.reads else 0))

    def read(self, peer):
        """Reads; false if the connection has ended."""
        for _ in range(4):
            try:
                data = peer.socket.recv(1 << 18)
            except (BlockingIOError, ssl.SSLWantReadError):
                return True
            except OSError as error:
                return self.end(peer, errno.errorcode.get(error.errno, type(error).__name__))
            if not data:
                return self.end(peer, "end of file")
            self.received += len(data)
            peer.tail = (peer.tail + data)[-TAIL_BYTES:] if len(data) < TAIL_BYTES else data[-TAIL_BYTES:]
            if peer.plan.asks:
                self.answered(peer, data)
            elif peer.plan.feed:
                for status in b"200", b"429", b"503":
                    if count := data.count(b"HTTP/1.1 " + status):
                        self.seen[f"HTTP {status.decode()}"] += count
            if peer.frames is not None:
                self.pong(peer, data)
            if len(data) < 1 << 18:
                return True
        return True

    def answered(self, peer, data):
        """Counts the answer whose bytes these are, and asks again after the last of them."""
        if peer.left == 0:
            data = peer.head + data
            at = data.find(b"\r\n\r\n")
            if at < 0:
                peer.head = data
                return
            self.seen[f"HTTP {data[9:12].decode(errors='replace')}"] += 1
            peer.head, peer.left, data = b"", body_bytes(data[:at]), data[at + 4:]
            if peer.left == 0:
                peer.out = memoryview(peer.plan.first)
                return
        if peer.left == CHUNKED:
            is_whole = peer.tail.endswith(LAST_CHUNK)
        else:
            peer.left -= len(data)
            is_whole = peer.left <= 0
        if is_whole:
            peer.left, peer.out = 0, memoryview(peer.plan.first)

    def pong(self, peer, data):
        peer.frames += data
        if b"\r\n\r\n" in peer.frames and peer.frames.startswith(b"HTTP/"):
            del peer.frames[:peer.frames.index(b"\r\n\r\n") + 4]
            peer.since = time.monotonic()
        while one := wire.take_frame(peer.frames):
            if one[0] == wire.PING:
                now = time.monotonic()
                self.seen["pings"] += 1
                self.ping_gap_max = max(self.ping_gap_max, now - peer.since)
                peer.since = now
                peer.out = memoryview(bytes(peer.out) + wire.frame(wire.PONG, one[1]))

    def end(self, peer, how):
        descriptor = peer.socket.fileno()
        if self.peers.pop(descriptor, None):
            self.epoll.unregister(descriptor)
        if peer.plan.name:
            self.lives[peer.plan.name].append(time.monotonic() - peer.opened)
        # The statuses of those that ask are counted as they arrive.
        self.seen[how if peer.plan.asks else wire.ending(peer.tail) or how] += 1
        peer.socket.close()
        peer.state = "ended"
        if peer.plan.reopens and self.number < 40 * peer.plan.count:
            self.queue.append(peer.plan)
        return False

    def report(self):
        return {"seen": dict(self.seen), "sent": self.sent, "received": self.received,
                "ping_gap_max_s": round(self.ping_gap_max, 2),
                "lives_s": {name: {"count": len(found), "max": round(max(found), 2)} for name, found in self.lives.items()}}


def body_bytes(head):
    """The length of the body that follows this head; CHUNKED if it is chunked."""
    low = head.lower()
    if b"transfer-encoding: chunked" in low:
        return CHUNKED
    at = low.find(b"content-length: ")
    return int(low[at + 16:].split(b"\r", 1)[0]) if at >= 0 else 0


def ask(port, requests, tls=False, source="127.0.0.1"):
    """Sends requests one after the other on one connection, and returns the status and the body of each."""
    with socket.create_connection(("127.0.0.1", port), 60, (source, 0)) as line:
        line = wire.trusting_all().wrap_socket(line) if tls else line
        answers, received = [], b""
        for one in requests:
            line.sendall(one)
            while b"\r\n\r\n" not in received:
                received += _some(line)
            head, _, received = received.partition(b"\r\n\r\n")
            size = body_bytes(head)
            while not received.endswith(LAST_CHUNK) if size == CHUNKED else len(received) < size:
                received += _some(line)
            size = len(received) if size == CHUNKED else size
            answers.append((int(head[9:12]), received[:size]))
            received = received[size:]
        return answers


def _some(line):
    data = line.recv(1 << 18)
    if not data:
        raise ConnectionError("the server closed the connection of a preparation")
    return data
