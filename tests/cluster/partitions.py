"""Partitions between hosts in network namespaces: packets are lost, and no end of a connection is notified."""

import asyncio

from clients import until
from engine import APPEND_ONLY
from network import Network

# The node's deadlines, and the time after which the others take it for gone.
FLAGS = ("--anonymous", "subscribe=* publish=*", "--backplane-heartbeat-timeout-ms", "1500", "--backplane-publish-timeout-ms")
NODE_TIMEOUT_S = 6
LOST = 'oyez_backplane_links_total{result="lost"}'


async def network(cluster, publish_timeout_ms="600000"):
    """Redis and two nodes, each on a host, with subscribers and publishers of both nodes."""
    cluster.network = Network()
    redis = cluster.redis(*APPEND_ONLY, on=cluster.network.host())
    nodes = [await cluster.node(redis.url, *FLAGS, publish_timeout_ms, on=cluster.network.host()) for _ in range(2)]
    publishers = await cluster.load(*nodes)
    return redis, nodes, publishers


async def until_lost(node, more=1):
    """Waits until the node has lost its link, or failed to connect, `more` times."""
    lost = await node.metric(LOST)
    await node.until_metric(LOST, lambda count: count >= lost + more)


async def partitioned_redis(cluster):
    """Redis disappears without a reset and comes back: publishes wait, and arrive once and in order. Redis still has the
    connections that the nodes have given up."""
    redis, nodes, _ = await network(cluster)
    for _ in range(2):
        redis.on.disconnect("backbone")
        # Attempts to connect, too, are without an answer.
        await asyncio.gather(*(until_lost(node, 2) for node in nodes))
        redis.on.connect("backbone")
        await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_close()
    cluster.expect_no_gap()


async def partitioned_host_of_a_node(cluster):
    """A node is cut off from Redis only, and is gone for the other one; its subscribers are late, and miss nothing. Then its
    whole host is cut off, with the connections of its clients."""
    redis, (one, two), (cut_off, other) = await network(cluster)
    since = len(two.logged())
    one.on.disconnect("backbone")
    await until_lost(one)
    await two.until_logged("timed out", since)
    assert await one.status("/readyz") == 200, "a node that was up stays ready"
    acked = cut_off.acked()
    await cluster.progress(every=False)
    assert cut_off.acked() == acked, "a node without Redis acknowledged"
    one.on.connect("backbone")
    await cluster.progress()

    lost = await one.metric(LOST)
    one.on.disconnect("backbone", "clients")
    acked = other.acked() + 100
    await until(lambda: other.acked() >= acked, "the other node goes on")
    await asyncio.sleep(2)
    one.on.connect("backbone", "clients")
    await one.until_metric(LOST, lambda count: count > lost)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_close()
    cluster.expect_no_gap()


async def partition_over_the_publish_timeout(cluster):
    """Publishes that wait longer than the publish timeout are rejected, or unconfirmed if they were sent; nothing that was
    rejected is delivered after the partition."""
    redis, (one, two), (cut_off, other) = await network(cluster, "2000")
    one.on.disconnect("backbone")
    await until_lost(one)
    # It publishes while nothing can be sent.
    late = cluster.publisher(one)
    await until(lambda: "backplane_down" in late.codes, "a publish is rejected with backplane_down")
    await cluster.progress(every=False)
    one.on.connect("backbone")
    acked = cut_off.acked() + 10
    await until(lambda: cut_off.acked() >= acked, "the node acknowledges again")
    await cluster.settle()
    rejected = [one.code for one in cluster.publishes() if one.outcome == "rejected"]
    assert set(rejected) == {"backplane_down"}, set(rejected)
    cluster.expect_no_close()
    cluster.expect_no_gap()


ALL = [partitioned_redis, partitioned_host_of_a_node, partition_over_the_publish_timeout]
