"""A replica is promoted: complete, lagging, and while the old primary lives on; and Redis Cluster."""

import time

from clients import until
from cluster import QUICK
from engine import free_port


async def replicated(cluster, *options):
    """A primary, a replica that is in step, and two nodes behind proxies, which stand for an address that moves."""
    primary, replica = cluster.redis(*options), cluster.redis(*options)
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    replica.wait(lambda: replica.info("replication").get("master_link_status") == "up")
    proxies = [await cluster.proxy(primary.port) for _ in range(2)]
    nodes = [await cluster.node(proxy.url, *QUICK) for proxy in proxies]
    publishers = await cluster.load(*nodes)
    return primary, replica, proxies, nodes, publishers


def move(proxies, server):
    for proxy in proxies:
        proxy.target = server.port
        proxy.set("pass")
        proxy.cut()


async def failover_to_a_lagging_replica(cluster):
    """The primary is killed, and its replica lacks entries that one node has read and the other has not."""
    primary, replica, proxies, nodes, publishers = await replicated(cluster)
    proxies[1].set("hold")
    replica.command("REPLICAOF", "NO", "ONE")
    await cluster.until_acked(publishers[:1], 1, 1)
    primary.kill()
    move(proxies, replica)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    assert cluster.gaps(nodes[0], why="lost"), "the node that was ahead announced no loss"


async def planned_failover(cluster):
    """`FAILOVER` loses nothing."""
    primary, replica, proxies, nodes, publishers = await replicated(cluster)
    primary.command("FAILOVER", "TO", "127.0.0.1", replica.port)
    replica.wait(lambda: replica.info("replication")["role"] == "master")
    move(proxies, replica)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


async def split_brain(cluster):
    """The old primary lives on with one node: both sides acknowledge, and both are notified when they meet again."""
    primary, replica, proxies, nodes, publishers = await replicated(cluster)
    replica.command("REPLICAOF", "NO", "ONE")
    move(proxies[1:], replica)
    await cluster.until_acked(publishers, 40, 20)
    move(proxies[:1], replica)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    assert cluster.gaps(nodes[0], why="lost") and cluster.gaps(nodes[1], why="lost")


async def split_brain_with_min_replicas(cluster):
    """With `min-replicas-to-write 1` an old primary without its replica acknowledges nothing."""
    primary, replica, proxies, nodes, publishers = await replicated(cluster, "--repl-ping-replica-period", "1")
    primary.command("CONFIG", "SET", "min-replicas-to-write", 1)
    replica.command("REPLICAOF", "NO", "ONE")
    move(proxies[1:], replica)
    primary.wait(lambda: primary.info("replication")["connected_slaves"] == "0")
    marks = [publisher.acked() for publisher in publishers]
    await until(lambda: publishers[1].acked() > marks[1] + 60, "the other side acknowledges")
    # Whatever was in flight when the replica left is at most one window.
    assert publishers[0].acked() <= marks[0] + publishers[0].window, "the old primary still acknowledges"
    move(proxies[:1], replica)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()


def promote(replica):
    """Makes a replica of Redis Cluster the primary of its slots. An attempt is given up after five seconds."""
    attempts = []

    def is_primary():
        if replica.info("replication")["role"] == "master":
            return True
        if not attempts or time.monotonic() > attempts[-1] + 6:
            attempts.append(time.monotonic())
            replica.command("CLUSTER", "FAILOVER")
        return False
    replica.wait(is_primary)


async def redis_cluster(cluster):
    """Redis Cluster: the log's slot fails over, and is migrated under load. The migration loses nothing."""
    # No server ends here, and on a busy machine none may be taken for failed; but an election is repeated only after four
    # times as long.
    servers = [cluster.redis("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-port", str(free_port()))
               for _ in range(4)]
    first, ids = servers[0], [server.command("CLUSTER", "MYID") for server in servers]
    for number, server in enumerate(servers[:2]):
        server.command("CLUSTER", "ADDSLOTSRANGE", number * 8192, number * 8192 + 8191)
    for server in servers[1:]:
        first.command("CLUSTER", "MEET", "127.0.0.1", server.port, server.cluster_port)
    for server in servers:
        server.wait(lambda: server.command("CLUSTER", "INFO").count(b"cluster_known_nodes:4"))
    for number in (2, 3):
        servers[number].wait(lambda: servers[number].command("CLUSTER", "REPLICATE", ids[number - 2]) == b"OK")
    for number, server in enumerate(servers):
        server.wait(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO")
                    and (number < 2 or server.info("replication").get("master_link_status") == "up")
                    # A primary that takes the other's replica for a primary does not vote for it.
                    and server.command("CLUSTER", "NODES").count(b"slave ") == 2)
    slot = first.command("CLUSTER", "KEYSLOT", "{oyez:main}:log")
    owner = slot // 8192
    nodes = [await cluster.node(servers[1 - owner].url, *QUICK), await cluster.node(servers[owner].url, *QUICK)]
    await cluster.load(*nodes)
    replica = servers[owner + 2]
    promote(replica)
    await cluster.progress()
    source, target, names = replica, servers[1 - owner], (ids[owner + 2], ids[1 - owner])
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 10)
    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *keys)
    for server in target, source:
        server.command("CLUSTER", "SETSLOT", slot, "NODE", names[1])
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


ALL = [failover_to_a_lagging_replica, planned_failover, split_brain, split_brain_with_min_replicas, redis_cluster]
