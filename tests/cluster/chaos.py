"""Random faults in episodes, for hours: `run --chaos MINUTES`.

Each episode starts its own servers and clients, injects random faults of random length, two at a time, heals them, and
checks the guarantees (checks.py): no acknowledged message is lost, repeated or out of order without a notice, and nothing
that was rejected is delivered. The seed of an episode is printed; the faults depend on it, their timing on the machine.
"""

import asyncio
import signal
import time

import checks
from cluster import QUICK
from network import Network

EPISODE_S = 60
# Longer than the deadlines of a node, so that some faults are noticed.
LENGTHS_S = (0, 0.1, 0.5, 2, 4)


async def inject(cluster, faults, workers=2):
    """Injects faults until the time is over. `faults`: pairs of a target and a function; a target has one fault at a time."""
    busy, counts, end = set(), dict.fromkeys((fault.__name__ for _, fault in faults), 0), time.monotonic() + EPISODE_S

    async def work():
        while time.monotonic() < end:
            target, fault = cluster.random.choice(faults)
            if target not in busy:
                busy.add(target)
                counts[fault.__name__] += 1
                await fault(target, cluster.random.choice(LENGTHS_S))
                busy.discard(target)
            await asyncio.sleep(cluster.random.choice(LENGTHS_S))
    await asyncio.gather(*(work() for _ in range(workers)))
    cluster.notes += [", ".join(f"{count} {name}" for name, count in counts.items() if count)]


async def stop(process, length_s):
    process.signal(signal.SIGSTOP)
    await asyncio.sleep(length_s)
    process.signal(signal.SIGCONT)


async def kill(process, length_s):
    process.kill()
    await asyncio.sleep(length_s)
    process.start()


async def cut_backbone(host, length_s):
    await cut(host, length_s, "backbone")


async def cut_host(host, length_s):
    await cut(host, length_s, "backbone", "clients")


async def cut(host, length_s, *cables):
    host.disconnect(*cables)
    await asyncio.sleep(length_s)
    host.connect(*cables)


async def fill_disk(disk, length_s):
    disk.fill()
    await asyncio.sleep(length_s)
    disk.empty()


async def chaos_of_a_cluster(cluster):
    """Three nodes and Redis on hosts of their own: kills, stops, partitions, a full disk of Redis, and reconnects."""
    cluster.network = Network()
    flags = ("--anonymous", "subscribe=* publish=*", *QUICK)
    redis = cluster.redis("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0",
                          on=cluster.network.host(), folder=cluster.disk("redis", "256m").folder)
    nodes = [await cluster.node(redis.url, *flags, on=cluster.network.host()) for _ in range(3)]
    await cluster.subscribers(each=2, moving=2)
    for node in nodes:
        cluster.publisher(node, per_second=20)
    await cluster.progress()

    async def reconnect_clients(clients, length_s):
        for client in cluster.random.sample(clients, 4):
            client.disconnect()

    async def kill_redis(redis, length_s):
        redis.kill()
        await asyncio.sleep(length_s)
        # Redis does not start on a full disk.
        cluster.disks[0].empty()
        redis.start()

    hosts = [node.on for node in nodes]
    faults = [*((node, fault) for node in nodes for fault in (stop, kill)), *((host, fault) for host in hosts for fault in (cut_backbone, cut_host)),
              (redis, stop), (redis, kill_redis), (redis.on, cut_backbone), (cluster.disks[0], fill_disk)]
    await inject(cluster, [*faults, (tuple(cluster.receiving()), reconnect_clients)])
    for node in nodes:
        await node.ready()
    await cluster.progress()
    await cluster.settle()


async def chaos_of_a_history_file(cluster):
    """A server with a history file on a small disk: kills, stops, clean restarts, a disk that is full while the server runs
    and while it starts, and reconnects."""
    checks.expect_random_epochs()
    disk = cluster.disk("disk", "12m")
    node = await cluster.node(None, "--history-file", str(disk.folder / "history"), "--history-sync-ms", "200", "--drain-seconds", "2",
                              "--history-age-seconds", "3600", "--history-messages-max", "200")
    await cluster.subscribers(each=3, moving=0)
    for padding in (0, 0, 2_000):
        cluster.publisher(node, per_second=20, padding=padding)
    await cluster.progress()

    async def restart(node, length_s):
        await node.terminate()
        await asyncio.sleep(length_s)
        await start(node)

    async def start(node):
        """On a full disk a server either starts, or ends with the reason; it starts once there is room."""
        node.start()
        while await node.status("/readyz") != 200:
            if not node.is_running:
                assert "--history-file" in node.tail() and node.process.returncode == 1, node.tail()
                disk.empty()
                node.start()
            await asyncio.sleep(0.05)

    async def kill_server(node, length_s):
        node.kill()
        await asyncio.sleep(length_s)
        await start(node)

    async def reconnect_clients(clients, length_s):
        for client in cluster.random.sample(clients, 2):
            client.disconnect()

    clients = tuple(cluster.receiving())
    await inject(cluster, [(node, stop), (node, kill_server), (node, restart), (disk, fill_disk), (disk, fill_disk), (clients, reconnect_clients)])
    disk.empty()
    await node.ready()
    await cluster.progress()
    await cluster.settle()


ALL = [chaos_of_a_cluster, chaos_of_a_history_file]
