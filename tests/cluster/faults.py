"""Redis is killed, stopped, paused, flushed, restored and full, and nodes are cut off from it.

No time is checked. Deadlines of the nodes are so short that a test need not wait long for their effect.
"""

import asyncio
import os
import signal
import time
from pathlib import Path

from clients import until
from cluster import QUICK
from engine import APPEND_ONLY

SOURCES = Path(__file__).resolve().parents[2] / "src"


async def killed_redis_with_append_only_file(cluster):
    """Redis is killed under load and restarted with its append-only file: publishes wait, and none is lost."""
    redis = cluster.redis(*APPEND_ONLY)
    one, two = await cluster.node(redis.url, *QUICK), await cluster.node(redis.url, *QUICK)
    await cluster.load(one, two)
    await cluster.restart(redis, two)


async def killed_redis_with_cut_append_only_file(cluster):
    """The same, and the file lacks its last entries: ids are not reused, and subscribers are notified."""
    redis = cluster.redis(*APPEND_ONLY)
    one, two = await cluster.node(redis.url, *QUICK), await cluster.node(redis.url, *QUICK)
    await cluster.load(one, two)
    file = next((redis.folder / "appendonlydir").glob("*.incr.aof"))
    size = file.stat().st_size
    await cluster.progress()
    redis.kill()
    assert file.stat().st_size > size
    os.truncate(file, size - 7)
    redis.start()
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    assert cluster.gaps(why="lost"), "entries that were read are lost, and no gap was announced"


async def silent_links(cluster):
    """Links that are open and silent are replaced: replies that do not arrive, a stopped and a paused Redis."""
    redis = cluster.redis(*APPEND_ONLY)
    proxy = await cluster.proxy(redis.port)
    one, two = await cluster.node(proxy.url, *QUICK), await cluster.node(redis.url, *QUICK)
    await cluster.load(one, two)

    # By the counter: a log line about a lost link is written at most once in 10 s.
    name = 'oyez_backplane_links_total{result="lost"}'

    async def lost(node, before):
        await node.until_metric(name, lambda count: count > before)

    before = await one.metric(name)
    proxy.set("one_way")
    await lost(one, before)
    proxy.set("pass")
    await cluster.progress()
    before = await one.metric(name), await two.metric(name)
    redis.signal(signal.SIGSTOP)
    await asyncio.gather(lost(one, before[0]), lost(two, before[1]))
    redis.signal(signal.SIGCONT)
    await cluster.progress()
    before = await two.metric(name)
    redis.command("CLIENT", "PAUSE", "5000", "ALL")
    await lost(two, before)
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()
    cluster.expect_no_gap()


async def old_data(cluster):
    """Redis restarts with an older dump, and loses its data: no id identifies two messages."""
    redis = cluster.redis("--dbfilename", "dump.rdb")
    one, two = await cluster.node(redis.url, *QUICK), await cluster.node(redis.url, *QUICK)
    await cluster.load(one, two)
    redis.command("SAVE")
    await cluster.progress()
    redis.kill()
    redis.start()
    await cluster.progress()
    for command in [("FLUSHALL",), ("DEL", "{oyez:main}:log"), ("DEL", "{oyez:main}:state")]:
        redis.command(*command)
        await cluster.progress()
    # An epoch of a node whose Redis had a clock two hours ahead: the next one is greater, though the time is less.
    script = redis.command("SCRIPT", "LOAD", (SOURCES / "backplane/open.lua").read_bytes())
    ahead = int(redis.command("TIME")[0]) * 1000 + 7_200_000
    redis.command("EVALSHA", script, 2, "{oyez:main}:log", "{oyez:main}:state", "00000000", 0, ahead, 0, 1)
    await cluster.progress()
    redis.command("DEL", "{oyez:main}:log")
    await cluster.progress()
    epochs = [message.id[0] for client in cluster.receiving() for message in client.receiver.messages() if message.id]
    assert max(epochs) > ahead, "no epoch follows one of a clock that was ahead"
    await cluster.settle()
    cluster.expect_no_rejection()
    assert cluster.gaps(why="lost")


async def evicted_log(cluster):
    """Redis evicts the log for lack of memory: a new epoch, announced. Without eviction, publishes are rejected."""
    redis = cluster.redis()
    one, two = await cluster.node(redis.url, *QUICK), await cluster.node(redis.url, *QUICK)
    await cluster.subscribers(each=1)
    publishers = [cluster.publisher(node) for node in (one, two)]
    await cluster.progress()
    used = int(redis.info("memory")["used_memory"])
    redis.command("CONFIG", "SET", "maxmemory", used - 1_000)
    await until(lambda: any("backplane_full" in one.codes for one in publishers), "a publish is rejected with backplane_full")
    redis.command("CONFIG", "SET", "maxmemory", 0)
    await cluster.progress()
    for one in publishers:
        one.padding = "." * 4_000
    redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis.command("CONFIG", "SET", "maxmemory", int(redis.info("memory")["used_memory"]) + 100_000)
    await until(lambda: cluster.gaps(why="lost"), "a gap is announced")
    redis.command("CONFIG", "SET", "maxmemory", 0)
    await cluster.progress()
    await cluster.settle()


async def partitioned_node(cluster):
    """A node without Redis: its publishes wait and are then rejected, its subscribers are late and miss nothing, or get a
    gap where the log no longer reaches back. The other node notices nothing."""
    redis = cluster.redis()
    proxy = await cluster.proxy(redis.port)
    flags = ("--backplane-heartbeat-timeout-ms", "1500", "--backplane-publish-timeout-ms", "2000", "--backplane-bytes-max", "1MiB")
    one, two = await cluster.node(proxy.url, *flags), await cluster.node(redis.url, *flags)
    cut_off, other = await cluster.load(one, two)
    proxy.set("reject")
    proxy.cut()
    await until(lambda: "backplane_down" in cut_off.codes, "a publish is rejected with backplane_down")
    assert await one.status("/readyz") == 200, "a node that was up stays ready"
    await cluster.progress(every=False)
    proxy.set("pass")
    await cluster.until_acked([cut_off], 1, 1)
    await cluster.progress()
    cluster.expect_no_gap()
    cut_off.is_paused = True
    await until(lambda: not cut_off.in_flight, "the publishes of the node have an outcome")
    proxy.set("reject")
    proxy.cut()
    # Its own node may be late by what is in flight, which is less than the log has.
    window, other.window = other.window, 8
    await until(lambda: len(other.in_flight) <= other.window, "fewer publishes are in flight")
    other.padding, other.per_second = "." * 20_000, 400
    await cluster.progress(150)
    other.padding, other.per_second, other.window = "", 100, window
    proxy.set("pass")
    cut_off.is_paused = False
    await until(lambda: cluster.gaps(one), "the subscribers of the node get a gap")
    await cluster.settle()
    assert not cluster.gaps(two), f"subscribers of the other node have gaps: {cluster.gaps(two)[:3]}"


async def bounded_log(cluster):
    """The log stays within its bytes, whatever is published; a stopped node catches up, and gets a gap if it stopped too
    long."""
    redis = cluster.redis()
    flags = ("--backplane-bytes-max", "2MiB", "--history-total-bytes-max", "8MiB")
    one, two = await cluster.node(redis.url, *flags), await cluster.node(redis.url, *flags)
    await cluster.subscribers(each=1)
    small, large = cluster.publisher(one, per_second=200), cluster.publisher(one, per_second=1_000, window=16, padding=30_000)
    large.channels = [f"many.{number}" for number in range(100)]
    empty = int(redis.info("memory")["used_memory"])
    await cluster.progress(500, every=False)
    log_bytes = redis.command("MEMORY", "USAGE", "{oyez:main}:log", "SAMPLES", "0")
    # MINID ~ removes whole nodes of the stream, and nodes of one second or 256 KiB are counted.
    assert log_bytes < 4 << 20, f"the log has {log_bytes} bytes"
    assert int(redis.info("memory")["used_memory"]) < empty + (8 << 20)
    large.is_paused = True
    await until(lambda: not large.in_flight, "all large messages are acknowledged")
    last = small.publish()
    at_two = [client for client in cluster.receiving() if client.name.startswith(f"{two.name}-") and last.channel in client.receiver.channels]
    await until(lambda: all(last.text in client.texts for client in at_two), "the other node has read the whole log")
    # On a busy machine it may have been late by more than the log has.
    gaps = len(cluster.gaps())
    two.signal(signal.SIGSTOP)
    await cluster.progress(100)
    two.signal(signal.SIGCONT)
    await cluster.progress(20)
    assert len(cluster.gaps()) == gaps, f"{cluster.gaps()[gaps:][:3]}"
    two.signal(signal.SIGSTOP)
    large.is_paused, target = False, large.acked() + 200
    await until(lambda: large.acked() >= target, "three times the bytes of the log are published")
    large.is_paused = True
    two.signal(signal.SIGCONT)
    await cluster.settle()
    assert len(cluster.gaps()) > gaps, "the node that was stopped for long announced no gap"
    assert not cluster.gaps(one), f"{cluster.gaps(one)[:3]}"
    assert one.rss_bytes < 200 << 20 and two.rss_bytes < 200 << 20, f"{one.rss_bytes} {two.rss_bytes}"


async def random_faults(cluster, per_second=50, seconds=0):
    """At least a dozen random faults, some while the previous one is not over."""
    redis = cluster.redis(*APPEND_ONLY)
    proxies = [await cluster.proxy(redis.port) for _ in range(3)]
    nodes = [await cluster.node(proxy.url, *QUICK) for proxy in proxies]
    await cluster.subscribers(each=2, moving=2)
    for node in nodes:
        cluster.publisher(node, per_second=per_second)
    await cluster.progress()

    async def restart_redis():
        redis.kill()
        await pause()
        redis.start()

    async def flush():
        redis.command("FLUSHALL")

    async def delete_state():
        redis.command("DEL", "{oyez:main}:state")

    async def cut():
        cluster.random.choice(proxies).cut()

    async def hold():
        proxy = cluster.random.choice(proxies)
        proxy.set(cluster.random.choice(("hold", "one_way", "reject")))
        await pause()
        proxy.set("pass")

    async def stop_node():
        node = cluster.random.choice(nodes)
        node.signal(signal.SIGSTOP)
        await pause()
        node.signal(signal.SIGCONT)

    async def kill_node():
        node = cluster.random.choice(nodes)
        node.kill()
        await pause()
        await node.start().ready()

    async def reconnect_clients():
        for client in cluster.random.sample(cluster.receiving(), 4):
            client.disconnect()

    async def pause():
        await asyncio.sleep(cluster.random.choice((0, 0.1, 0.5, 2)))

    faults = [restart_redis, flush, delete_state, cut, hold, stop_node, kill_node, reconnect_clients]
    counts, end = dict.fromkeys((fault.__name__ for fault in faults), 0), time.monotonic() + seconds
    while sum(counts.values()) < 12 or time.monotonic() < end:
        fault = cluster.random.choice(faults)
        counts[fault.__name__] += 1
        await fault()
        await pause()
    cluster.notes += [f"{count} {name}" for name, count in counts.items() if seconds and count]
    for proxy in proxies:
        proxy.set("pass")
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()


ALL = [killed_redis_with_append_only_file, killed_redis_with_cut_append_only_file, silent_links, old_data, evicted_log, partitioned_node, bounded_log, random_faults]
