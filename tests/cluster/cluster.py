"""One test's Redis servers, nodes and clients, and the checks at the end of each test."""

import random
import re
from pathlib import Path

import checks
from clients import Publisher, RawSubscriber, StreamSubscriber, Subscriber, until
from disk import Disk
from engine import Proxy, Redis
from nodes import Node

CHANNELS = ("a", "b", "c", "d")
# However late a client is, the history of its channels has everything that it missed.
HISTORY = {"OYEZ_HISTORY_MESSAGES_MAX": "1000000", "OYEZ_HISTORY_BYTES_MAX": "64MiB"}
# Deadlines of a node, short enough for a test; publishes wait for longer than any fault here.
QUICK = ("--backplane-heartbeat-timeout-ms", "1500", "--backplane-publish-timeout-ms", "600000")
# A loss may be announced later than the messages that follow it: the roll call takes 10 s.
NOTICE_S = 40


class Cluster:
    def __init__(self, oyez, folder, program, seed):
        self.oyez, self.folder, self.program = oyez, Path(folder), program
        self.random = random.Random(seed)
        self.servers, self.nodes, self.clients, self.proxies, self.disks = [], [], [], [], []
        self.network = None
        # Figures for the line of the test.
        self.notes = []

    def redis(self, *options, folder=None, **more):
        server = Redis(self.program, folder or self.folder / f"redis{len(self.servers)}", options, **more)
        self.servers.append(server)
        return server.start()

    def disk(self, name, size):
        disk = Disk(self.folder / name, size)
        self.disks.append(disk)
        return disk

    def sentinel(self, primary):
        """A Sentinel that watches the primary under the name main."""
        folder = self.folder / f"sentinel{len(self.servers)}"
        folder.mkdir()
        (folder / "sentinel.conf").write_text(
            # A primary that is only late on a busy machine must not count as down.
            f"sentinel monitor main 127.0.0.1 {primary.port} 2\nsentinel down-after-milliseconds main 4000\n"
            "sentinel failover-timeout main 6000\n")
        server = Redis(self.program, folder, [], conf=folder / "sentinel.conf")
        self.servers.append(server)
        return server.start()

    async def proxy(self, target):
        proxy = await Proxy(target).start()
        self.proxies.append(proxy)
        return proxy

    async def node(self, url, *flags, **more):
        return await self.start(url, *flags, **more).ready()

    def start(self, url, *flags, variables=None, **more):
        """Starts a node, and does not wait."""
        variables = {**HISTORY, **(variables or {})}
        node = Node(self.oyez, self.folder, f"node{len(self.nodes)}", url, flags, variables=variables, **more)
        self.nodes.append(node)
        return node.start()

    def at(self, node):
        """Chooses this node, and while it does not run another one."""
        def choose():
            running = [other for other in self.nodes if other.is_running]
            return node if node.is_running else self.random.choice(running) if running else None
        return choose

    def anywhere(self):
        """Chooses another node for each connection."""
        last = []

        def choose():
            running = [node for node in self.nodes if node.is_running and node not in last] or [n for n in self.nodes if n.is_running]
            last[:] = [self.random.choice(running)] if running else []
            return last[0] if last else None
        return choose

    def add(self, client):
        self.clients.append(client)
        return client

    def publisher(self, node=None, channels=CHANNELS, per_second=100, **more):
        name = f"p{len(self.clients)}"
        return self.add(Publisher(name, self.at(node) if node else self.anywhere(), channels, per_second, **more))

    def subscriber(self, node=None, channels=CHANNELS):
        name = f"{node.name if node else 'moving'}-v1-{len(self.clients)}"
        return self.add(Subscriber(name, self.at(node) if node else self.anywhere(), channels))

    async def subscribers(self, each=3, moving=1, channels=CHANNELS):
        """For every node `oyez.v1` clients, a raw WebSocket and an event stream; and clients that change nodes."""
        for node in self.nodes:
            for _ in range(each):
                self.subscriber(node, channels)
            self.add(RawSubscriber(f"{node.name}-raw", self.at(node), channels[0]))
            self.add(StreamSubscriber(f"{node.name}-sse", self.at(node), channels[0]))
        for _ in range(moving):
            self.subscriber(None, channels)
        await self.until_ready()

    async def load(self, *nodes):
        """Opens subscribers of every node and a publisher at each of these, and waits until messages arrive. Returns the
        publishers."""
        await self.subscribers()
        publishers = [self.publisher(node) for node in nodes]
        await self.progress()
        return publishers

    async def restart(self, redis, node):
        """Kills Redis, and starts it again when the node has noticed; no publish fails, and no message is lost."""
        redis.kill()
        await node.until_logged("connection lost")
        redis.start()
        await self.progress()
        await self.settle()
        self.expect_no_rejection()
        self.expect_no_gap()

    def unready(self):
        return [client.name for client in self.receiving() if not client.ready.is_set()]

    async def until_ready(self):
        """Waits until all subscribers are ready, for as long as some become ready: a busy machine takes minutes for a thousand."""
        while count := len(self.unready()):
            await until(lambda: len(self.unready()) < count, lambda: f"subscribers are ready: {self.unready()[:5]}")

    def receiving(self):
        return [client for client in self.clients if not isinstance(client, Publisher)]

    def publishing(self):
        return [client for client in self.clients if isinstance(client, Publisher)]

    def gaps(self, *nodes, why=None):
        """Gaps that subscribers received, of those at these nodes only if nodes are given."""
        chosen = [client for client in self.receiving()
                  if not nodes or any(client.name.startswith(f"{node.name}-") for node in nodes)]
        return [(client.name, gap) for client in chosen for gap in client.receiver.gaps() if why is None or gap.why == why]

    async def progress(self, count=40, every=True):
        """Waits until publishes that are sent from now on are acknowledged, some of every publisher."""
        await self.until_acked([one for one in self.publishing() if not one.is_paused], count, count // 4 if every else 0)

    async def until_acked(self, publishers, count, of_each):
        """Waits until so many publishes that these publishers send from now on are acknowledged. Those in flight do not count:
        on a busy machine they may be as many."""
        marks = [len(publisher.publishes) for publisher in publishers]

        def acked():
            return [publisher.acked(mark) for publisher, mark in zip(publishers, marks)]
        await until(lambda: sum(acked()) >= count and all(number >= of_each for number in acked()),
                    lambda: f"{count} more acknowledgements, {of_each} of each publisher: {acked()}\n{self.tails()}")

    def panics(self):
        """The panics of all nodes, which are more telling than their effects."""
        return [f"{node.name}: {text}" for node in self.nodes for text in re.findall(r"panicked at .*\n.*", node.logged())]

    def tails(self):
        return "\n".join(f"{node.name}:\n{node.tail()}" for node in self.nodes)

    async def settle(self):
        """Ends the publishing, waits until all subscribers have reached the end of their channels, and checks W1 to W5."""
        for publisher in self.publishing():
            await publisher.finish()
        await self.until_ready()
        last = self.publisher(per_second=1)
        last.is_paused = True
        await until(last.ready.is_set, "the last publisher is connected")
        channels = sorted({channel for client in self.receiving() for channel in client.receiver.channels})
        ends = {channel: last.publish(channel) for channel in channels}
        await last.finish()
        assert all(one.outcome == "acked" for one in ends.values()), f"the last messages are rejected: {last.codes}"

        def reached(client):
            # A raw WebSocket that was closed with a loss meanwhile has no replay.
            if client.receiver.is_raw and any(isinstance(event, checks.Close) for event in client.receiver.events):
                return True
            return all(ends[channel].text in client.texts or any(gap.covers(channel, ends[channel].id) for gap in client.receiver.gaps())
                       for channel in client.receiver.channels)
        await until(lambda: all(map(reached, self.receiving())),
                    lambda: f"the end has not reached {[c.name for c in self.receiving() if not reached(c)][:5]}\n{self.tails()}")
        found = []

        def is_clean():
            found[:] = checks.violations(self.publishes(), [client.receiver for client in self.receiving()])
            return not found
        try:
            await until(is_clean, "", NOTICE_S if any("W1" in one for one in found or [""]) else 1)
        except AssertionError:
            raise AssertionError(f"{len(found)} violations:\n" + "\n".join(found[:8]) + f"\n{self.tails()}") from None

    def publishes(self):
        return [one for publisher in self.publishing() for one in publisher.publishes]

    def expect_no_gap(self):
        gaps = self.gaps()
        assert not gaps, f"{len(gaps)} gaps: {gaps[:3]}"

    def expect_no_close(self):
        closes = [(client.name, event) for client in self.receiving() for event in client.receiver.events if isinstance(event, checks.Close)]
        assert not closes, f"{len(closes)} connections were lost: {closes[:3]}"

    def expect_no_rejection(self):
        rejected = [one for one in self.publishes() if one.outcome == "rejected"]
        assert not rejected, f"{len(rejected)} publishes were rejected: {rejected[:3]}"

    def summary(self):
        receivers = [client.receiver for client in self.receiving()]
        outcomes = [one.outcome for one in self.publishes()]
        counts = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("acked", "rejected", "unknown") if outcome in outcomes)
        codes = [code for publisher in self.publishing() for code in publisher.codes]
        counts += "".join(f", {codes.count(code)} {code}" for code in sorted(set(codes)))
        messages = sum(len(receiver.messages()) for receiver in receivers)
        whys = [gap.why for _, gap in self.gaps()]
        gaps = ", ".join(f"{whys.count(why)} {why}" for why in sorted(set(whys)))
        figures = f"{counts}; {messages} received by {len(receivers)}" + (f"; gaps: {gaps}" if gaps else "; no gap")
        return "; ".join([figures, *self.notes])

    async def close(self):
        for client in self.clients:
            await client.stop()
        for proxy in self.proxies:
            await proxy.stop()
        for node in self.nodes:
            node.kill()
        for server in self.servers:
            server.kill()
        for disk in self.disks:
            disk.close()
        if self.network:
            self.network.close()
