"""Nodes without faults of Redis: order, ids, keys, confirmations, and nodes that start, end and are killed."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import signal
import time

from checks import Close
from clients import CLOSE, TEXT, OneConnection, request, until
from cluster import CHANNELS, QUICK
from engine import STEP_S, free_port
from nodes import Node

ACL = ("on", ">secret", "resetkeys", "resetchannels", "~{oyez:first}:*", "-@all", "+evalsha", "+script|load", "+xadd", "+xread",
       "+xinfo|stream", "+hmget", "+hset", "+hincrby", "+hkeys", "+hdel", "+exists", "+time", "+info", "+ping", "+auth", "+select", "+client|setname")


async def two_nodes_have_one_order(cluster):
    """Subscribers of two nodes receive the same messages in the same order, under the same ids, without a gap."""
    redis = cluster.redis()
    one, two = await cluster.node(redis.url), await cluster.node(redis.url)
    await cluster.subscribers(each=5)
    for node in one, two:
        cluster.publisher(node, per_second=200)
        cluster.publisher(node, per_second=50, padding=2_000)
    await cluster.progress(600, every=False)
    await cluster.settle()
    cluster.expect_no_gap()
    cluster.expect_no_close()
    pages = [await node.json("/v1/channels/a/history") for node in (one, two)]
    # `n` counts from when the node first saw the channel, which is the same here.
    # The head is that of the log, which has the heartbeats of nodes too.
    heads = [page.pop("head") for page in pages]
    assert pages[0] == pages[1], f"the histories differ; heads {heads}"
    runs = {hello["run"] for client in cluster.receiving() for hello in getattr(client, "hellos", [])}
    assert len(runs) == 1, f"one log has several identities: {runs}"


async def thousand_clients_on_three_nodes(cluster):
    """A thousand subscribers on three nodes over a Unix socket, and as many publishes from each node."""
    redis = cluster.redis(unix=True)
    nodes = [await cluster.node(redis.url) for _ in range(3)]
    for number in range(1_000):
        cluster.subscriber(nodes[number % 3], CHANNELS[:2] if number % 2 else CHANNELS[2:])
    await cluster.until_ready()
    for node in nodes:
        cluster.publisher(node, per_second=10)
    await cluster.progress(60)
    await cluster.settle()
    cluster.expect_no_gap()
    cluster.expect_no_close()


async def processes_on_one_port(cluster):
    """Three processes on one port and 300 clients, which the kernel distributes among them. One process is killed: its
    clients reconnect to the port and resume at another process, in the same order and without a gap."""
    redis = cluster.redis(unix=True)
    port = free_port()
    nodes = []
    for _ in range(3):
        nodes.append(cluster.start(redis.url, "--reuse-port", *QUICK, port=port))
        # The port responds as soon as one of them does.
        await nodes[-1].until_logged("backplane: up")
    for number in range(300):
        cluster.subscriber(None, CHANNELS[:2] if number % 2 else CHANNELS[2:])
    await cluster.until_ready()
    for _ in nodes:
        cluster.publisher(per_second=20)
    await cluster.progress(60)

    def first_and_last():
        return [(client.hellos[0]["node"], client.hellos[-1]["node"]) for client in cluster.receiving()]
    before = [first for first, _ in first_and_last()]
    assert len(set(before)) == 3, f"the clients are at {set(before)}"
    nodes[0].kill()
    await cluster.progress(60)
    await cluster.until_ready()
    moved = {(first, last) for first, last in first_and_last() if first != last}
    gone = {first for first, _ in moved}
    assert len(gone) == 1 and {last for _, last in moved} == set(before) - gone, f"clients have moved: {moved}"
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


async def confirmations(cluster):
    """While Redis does not respond, neither HTTP publishes nor the close of a raw WebSocket are confirmed; afterwards all are,
    in order. Over the publish timeout they are rejected, and such a message is never delivered."""
    redis = cluster.redis()
    proxy = await cluster.proxy(redis.port)
    flags = ("--backplane-heartbeat-timeout-ms", "60000", "--backplane-publish-timeout-ms")
    patient, strict = await cluster.node(proxy.url, *flags, "600000"), await cluster.node(proxy.url, *flags, "300")
    await cluster.node(redis.url)
    await cluster.subscribers(each=1, moving=0)
    texts = [f"raw-{number}" for number in range(20)]
    proxy.set("hold")
    raw = OneConnection(patient, path="/ws/a?echo=0")
    await until(lambda: raw.is_open, "the raw client is connected")
    for text in texts:
        raw.write(TEXT, text.encode())
    raw.write(CLOSE, b"\x03\xe8")
    posts = b"".join(b"POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhttp%d" % number for number in range(2))
    reader, writer = await asyncio.open_connection("127.0.0.1", patient.port)
    writer.write(posts + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    first = asyncio.ensure_future(reader.read(1))
    status, head, body = await request(strict.port, "POST", "/v1/publish/a", b"rejected")
    code = json.loads(body)["error"]["code"]
    # The request to append may have been sent before the deadline; then the outcome is not known.
    assert status == 503 and code in ("backplane_down", "unconfirmed"), (status, body)
    assert code == "unconfirmed" or "retry-after:" in head.lower(), head
    rejected = OneConnection(strict, path="/ws/a?echo=0")
    await until(lambda: rejected.is_open, "the other raw client is connected")
    rejected.write(TEXT, b"rejected too")
    await until(lambda: rejected.end, "the raw publisher is closed")
    assert rejected.end.code == 4104 and rejected.end.reason.startswith(("backplane_down", "unconfirmed")), rejected.end
    assert raw.end is None, f"a close was confirmed without Redis: {raw.end}"
    assert not first.done(), f"a publish was confirmed without Redis: {first.result()}"
    proxy.set("pass")
    await until(lambda: raw.end, "the close is confirmed")
    assert raw.end == Close(1000), raw.end
    responses = await first + await asyncio.wait_for(reader.read(), STEP_S)
    writer.close()
    assert responses.count(b"HTTP/1.1 200") == 3 and responses.endswith(b"ok\n") and responses.index(b'"id"') < responses.rindex(b'"id"'), responses
    await cluster.settle()
    for client in cluster.receiving():
        received = [message.text for message in client.receiver.messages() if message.channel == "a"]
        assert [text for text in received if text.startswith("raw")] == texts, f"{client.name}: {received}"
        assert [text for text in received if text.startswith("http")] == ["http0", "http1"], f"{client.name}: {received}"
        if code == "backplane_down":
            assert "rejected" not in received, client.name
    cluster.expect_no_gap()


async def one_key_on_two_nodes(cluster):
    """A publish whose response was lost is repeated with its key on another node: delivered once, under one id."""
    redis = cluster.redis()
    one, two = await cluster.node(redis.url), await cluster.node(redis.url)
    await cluster.subscribers(each=1, moving=0)

    async def publish(number):
        lines = f"Idempotency-Key: key-{number}\r\n"
        body = f"key-{number}".encode()
        first, second = (one, two) if number % 2 else (two, one)
        reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
        writer.write(f"POST /v1/publish/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)
        await writer.drain()
        if number % 4 < 2:
            # The request arrives, the response does not. Elsewhere both nodes have the publish at the same time.
            await asyncio.sleep(0.01)
        writer.transport.abort()
        ids = set()
        for node in second, first, second:
            status, _, response = await request(node.port, "POST", "/v1/publish/a", body, lines)
            assert status == 200, response
            ids.add(json.loads(response)["id"])
        assert len(ids) == 1, f"one key has several ids: {ids}"
        return ids.pop()

    ids = []
    for batch in range(10):
        ids += await asyncio.gather(*(publish(batch * 20 + number) for number in range(20)))
    assert len(set(ids)) == 200
    await cluster.settle()
    for client in cluster.receiving():
        texts = [message.text for message in client.receiver.messages() if message.text.startswith("key-")]
        if "a" in client.receiver.channels:
            assert sorted(texts) == sorted(f"key-{number}" for number in range(200)), f"{client.name}: {len(texts)} messages"


async def two_logs_on_one_redis(cluster):
    """Two logs on one Redis with other keys, one for a user with the rights of the manual: no message crosses."""
    redis = cluster.redis()
    redis.command("SET", "foreign", "value")
    redis.command("ACL", "SETUSER", "oyez", *ACL)
    password = cluster.folder / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    user = ("--backplane-user", "oyez", "--backplane-password-file", str(password))
    names = [("--backplane-name", "first", *user), ("--backplane-name", "second")]
    pairs = [(await cluster.node(redis.url, *flags), await cluster.node(redis.url, *flags)) for flags in names]
    for number, pair in enumerate(pairs):
        for node in pair:
            channels = [f"log{number}", "both"]
            cluster.subscriber(node, channels)
            cluster.publisher(node, channels)
    await cluster.until_ready()
    await cluster.progress(200)
    for publisher in cluster.publishing():
        await publisher.finish()
    # Each log for itself: a publish of the other log counts for no subscriber of this one.
    for number, pair in enumerate(pairs):
        texts = {one.text for publisher in cluster.publishing() if f"log{number}" in publisher.channels for one in publisher.publishes}
        receiving = [client for client in cluster.receiving() if f"log{number}" in client.receiver.channels]
        await until(lambda: all(client.texts >= texts for client in receiving), "all messages of the log are received")
        assert all(client.texts == texts for client in receiving), "a message of the other log was received"
    for node in cluster.nodes:
        assert "NOPERM" not in node.logged(), node.tail()
    assert redis.command("GET", "foreign") == b"value"
    assert sorted(redis.command("KEYS", "*")) == sorted(
        [b"foreign", *(b"{oyez:%b}:%b" % (name, key) for name in (b"first", b"second") for key in (b"log", b"state"))])


async def start_without_redis(cluster):
    """A node that cannot reach Redis serves no clients, and begins when it can. Errors that do not pass end it at once."""
    redis = cluster.redis()
    proxy = await cluster.proxy(redis.port)
    proxy.set("reject")
    node = Node(cluster.oyez, cluster.folder, "waiting", proxy.url)
    cluster.nodes.append(node.start())
    await node.until_logged("listening|backplane")
    await until_status(node, "/readyz", 503)
    assert await node.status("/healthz") == 200 and await node.status("/metrics") == 200
    assert await node.status("/v1/channels") == 503
    proxy.set("pass")
    await node.ready()
    await cluster.load(node)
    await cluster.settle()
    redis.command("ACL", "SETUSER", "narrow", *(right for right in ACL if right != "+xread"), "~*")
    password = cluster.folder / "password"
    for name, text in ("password", "secret\n"), ("wrong", "else\n"):
        (cluster.folder / name).write_text(text)
        (cluster.folder / name).chmod(0o600)
    redis.command("HSET", "{oyez:newer}:state", "v", "2")
    await rejected(cluster, redis.url, "XREAD", "--backplane-user", "narrow", "--backplane-password-file", str(password))
    await rejected(cluster, redis.url, "AUTH", "--backplane-user", "narrow", "--backplane-password-file", str(cluster.folder / "wrong"))
    await rejected(cluster, redis.url, "OYEZVERSION|newer|version", "--backplane-name", "newer")


async def until_status(node, path, status):
    async def poll():
        while await node.status(path) != status:
            await asyncio.sleep(0.02)
    await asyncio.wait_for(poll(), STEP_S)


async def rejected(cluster, url, pattern, *flags):
    """A node that must exit with status 1 and an error that matches."""
    node = Node(cluster.oyez, cluster.folder, f"rejected{len(cluster.nodes)}", url, flags).start()
    cluster.nodes.append(node)
    await until(lambda: not node.is_running, lambda: f"{flags}: the node exits\n{node.tail()}")
    assert node.process.returncode == 1 and re.search(pattern, node.logged(), re.I), f"{flags}: {node.process.returncode}\n{node.tail()}"
    cluster.nodes.remove(node)


async def killed_node(cluster):
    """A node is killed under load: its clients resume on the others, and miss nothing."""
    redis = cluster.redis()
    nodes = [await cluster.node(redis.url, *QUICK) for _ in range(3)]
    await cluster.subscribers(moving=2)
    for node in nodes:
        cluster.publisher(node)
    await cluster.progress()
    nodes[0].kill()
    await cluster.progress()
    await nodes[0].start().ready()
    for client in cluster.receiving():
        if client.name.startswith("moving"):
            client.disconnect()
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


async def mass_reconnect(cluster):
    """A thousand clients of a killed node resume on the other: from its memory, Redis gets no command for them."""
    redis = cluster.redis()
    one, two = await cluster.node(redis.url), await cluster.node(redis.url)
    for _ in range(1_000):
        cluster.subscriber(one, CHANNELS[:2])
    await cluster.until_ready()
    publisher = cluster.publisher(two, CHANNELS[:2], per_second=20)
    await cluster.progress(40)
    await publisher.finish()
    one.kill()
    missed = [publisher.publish() for _ in range(20)]
    await publisher.finish()
    assert all(message.outcome == "acked" for message in missed)
    loop = asyncio.get_running_loop()
    before, start = redis.calls(), loop.time()
    await cluster.until_ready()
    await until(lambda: all(missed[-1].text in client.texts for client in cluster.receiving()), "all have resumed")
    after, seconds = redis.calls(), loop.time() - start
    calls = sum(after.get(name, 0) - before.get(name, 0) for name in ("evalsha", "xread", "xrange", "xrevrange", "hmget", "hgetall"))
    # One node sends a heartbeat every 2 s, whose scripts call hmget, and reads it: less than four commands a second.
    assert calls <= 20 + 8 * seconds, f"{calls} commands in {seconds:.1f} s"
    await cluster.settle()
    cluster.expect_no_gap()


async def rolling_restart(cluster):
    """Each node in turn is restarted with SIGTERM under load: nothing is lost or rejected, and there is no gap."""
    redis = cluster.redis()
    nodes = [await cluster.node(redis.url, "--drain-seconds", "3") for _ in range(2)]
    await cluster.subscribers(moving=2)
    for node in nodes:
        cluster.publisher(node)
    await cluster.progress()
    for node in nodes:
        status = await node.terminate()
        assert status == 0, f"{node.name} exited with {status}\n{node.tail()}"
        await cluster.progress()
        await node.start().ready()
        await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


def token(secret, subject, **rights):
    """A token signed with HS256 (RFC 7515) that ends in an hour."""
    def encode(part):
        return base64.urlsafe_b64encode(part).rstrip(b"=")
    now = int(time.time())
    claims = {"sub": subject, "iat": now, "exp": now + 3600, "oyez": rights}
    message = b".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (message + b"." + encode(hmac.new(secret, message, hashlib.sha256).digest())).decode()


async def nodes_with_keys(cluster, redis, count):
    """Nodes that verify tokens, and the header lines of a user and of an admin."""
    secret, file = b"0123456789abcdef0123456789abcdef", cluster.folder / "secret"
    file.write_bytes(secret)
    file.chmod(0o600)
    flags = ("--jwt-secret-file", str(file), "--anonymous", "subscribe=* publish=*")
    nodes = [await cluster.node(redis.url, *flags) for _ in range(count)]
    user = f"Authorization: Bearer {token(secret, 'alice', subscribe=['*'], publish=['*'])}\r\n"
    admin = f"Authorization: Bearer {token(secret, 'root', admin=True, subscribe=['*'], publish=['*'])}\r\n"
    return nodes, user, admin


class Echo(OneConnection):
    """A client that publishes a message, and receives it if it is admitted."""

    is_admitted = False

    def on_open(self, connection):
        super().on_open(connection)
        self.write(TEXT, b"echo")

    def on_text(self, connection, payload):
        self.is_admitted = True


async def disconnect_on_all_nodes(cluster):
    """A user is disconnected on all nodes through one of them; a node that is stopped is named, and closes the connections
    when it continues."""
    nodes, user, admin = await nodes_with_keys(cluster, cluster.redis(), 3)

    async def disconnect(stopped=None):
        """Connects the user to all nodes, and disconnects it while one of them may be stopped; the response. A node responds
        within two seconds, which may be too short for a busy machine: then everything is done again."""
        end = time.monotonic() + STEP_S
        while True:
            connections = [OneConnection(node, user) for node in nodes]
            await until(lambda: all(connection.is_open for connection in connections), "the user is connected to all nodes")
            # A node that has not sent a heartbeat yet is not awaited.
            for node in nodes:
                await node.until_metric("oyez_backplane_nodes", lambda count: count == 3)
            if stopped:
                stopped.signal(signal.SIGSTOP)
            status, _, body = await request(nodes[0].port, "DELETE", "/v1/connections?sub=alice", lines=admin)
            assert status == 200, body
            found = json.loads(body)
            if stopped:
                assert connections[nodes.index(stopped)].end is None
                stopped.signal(signal.SIGCONT)
            await until(lambda: all(connection.end and connection.end.code == 4003 for connection in connections),
                        "all connections of the user are closed")
            if found["silent"] == (1 if stopped else 0) or time.monotonic() > end:
                return found

    assert await disconnect() == {"closed": 3, "nodes": 3, "silent": 0}
    assert await disconnect(nodes[2]) == {"closed": 2, "nodes": 3, "silent": 1}


async def tickets_on_any_node(cluster):
    """A ticket of one node is accepted once, on whichever node; also if two nodes receive it at the same time, and after the
    node that issued it was killed. Subscribers are counted over all nodes."""
    nodes, user, _ = await nodes_with_keys(cluster, cluster.redis(), 3)

    async def ticket(node):
        status, _, body = await request(node.port, "POST", "/v1/tickets", b"", user)
        assert status == 200, body
        return json.loads(body)["ticket"]

    async def use(secret, used):
        """How many of the nodes accept the ticket."""
        both = [Echo(node, path=f"/ws/a?ticket={secret}") for node in used]
        await until(lambda: all(connection.is_admitted or connection.end for connection in both), "all attempts have a result")
        assert all(connection.end.code == 4001 for connection in both if not connection.is_admitted), [c.end for c in both]
        return sum(connection.is_admitted for connection in both)

    for number in range(10):
        secret = await ticket(nodes[number % 3])
        assert await use(secret, [nodes[(number + 1) % 3], nodes[(number + 2) % 3]]) == 1, "accepted twice, or never"
        assert await use(secret, [nodes[number % 3]]) == 0, "accepted again"
    for node in nodes:
        end = time.monotonic() + STEP_S
        while (found := await node.json("/v1/channels/a"))["subscribers"] != 10 or found["nodes"] != 3:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.1)
    secret = await ticket(nodes[0])
    nodes[0].kill()
    assert await use(secret, [nodes[1]]) == 1


ALL = [two_nodes_have_one_order, thousand_clients_on_three_nodes, processes_on_one_port, confirmations, one_key_on_two_nodes, two_logs_on_one_redis, start_without_redis, killed_node, mass_reconnect, rolling_restart,
       disconnect_on_all_nodes, tickets_on_any_node]
