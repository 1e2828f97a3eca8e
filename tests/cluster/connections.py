"""How nodes reach Redis: TLS, Sentinel, and replicas that are waited for."""

import json
import signal
import socket
import subprocess

from clients import request, until
from cluster import QUICK
from engine import APPEND_ONLY, Resp, free_port
from sharing import rejected


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder, name):
    """A certificate authority: its certificate, and a function that issues certificates for a server."""
    key, ca = folder / f"{name}.key", folder / f"{name}.pem"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new_key, "-days", 2, "-subj", f"/CN={name}", "-keyout", key, "-out", ca)

    def issue(host, names):
        files = {kind: folder / f"{host}.{kind}" for kind in ("key", "csr", "pem")}
        openssl("req", *new_key, "-subj", f"/CN={host}", "-addext", f"subjectAltName={names}", "-keyout", files["key"], "-out", files["csr"])
        openssl("x509", "-req", "-in", files["csr"], "-CA", ca, "-CAkey", key, "-days", 2, "-copy_extensions", "copy", "-out", files["pem"])
        return files["pem"], files["key"]
    return ca, issue


def tls_options(ca, certificate, key):
    port = free_port()
    return port, ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
                  "--tls-ca-cert-file", str(ca), "--tls-auth-clients", "no")


async def tls_and_password(cluster):
    """Redis over TLS, with a certificate of an authority of its own, a user and a database. The connections are killed, and
    Redis is restarted. A wrong password is an error at start."""
    ca, issue = authority(cluster.folder, "ca")
    port, options = tls_options(ca, *issue("localhost", "DNS:localhost"))
    redis = cluster.redis(*options, *APPEND_ONLY, "--user", "oyez", "on", ">secret", "~*", "&*", "+@all")
    for name, text in ("right", "secret\n"), ("wrong", "else\n"):
        (cluster.folder / name).write_text(text)
        (cluster.folder / name).chmod(0o600)
    url, flags = f"rediss://localhost:{port}/3", ("--backplane-user", "oyez", "--backplane-tls-ca", str(ca))
    password = ("--backplane-password-file", str(cluster.folder / "right"))
    # No connection is replaced because a busy machine is late: they are counted below.
    patient = ("--backplane-heartbeat-timeout-ms", "60000", "--backplane-publish-timeout-ms", "600000")
    one = await cluster.node(url, *flags, *password, *patient)
    two = await cluster.node(url, *flags, *patient, variables={"OYEZ_BACKPLANE_PASSWORD": "secret"})
    assert "OYEZ_BACKPLANE_PASSWORD" not in two.logged(), "a known variable"
    await cluster.subscribers()
    for node in one, two:
        cluster.publisher(node)
        cluster.publisher(node, per_second=20, padding=50_000)
    await cluster.progress()
    killed = redis.command("CLIENT", "KILL", "USER", "oyez")
    assert killed == 4, f"{killed} connections were killed"
    await cluster.progress()
    await rejected(cluster, url, "AUTH.*--backplane-password-file", *flags, "--backplane-password-file", str(cluster.folder / "wrong"))
    await cluster.restart(redis, two)


async def tls_errors(cluster):
    """A certificate of another authority, for another name, a port without TLS, and a port with TLS that the address does not
    expect: the node logs the reason, serves no clients, and begins when the certificate has been replaced."""
    ca, issue = authority(cluster.folder, "ca")
    other_ca, _ = authority(cluster.folder, "other")
    wrong, right = issue("elsewhere", "DNS:elsewhere.example"), issue("localhost", "DNS:localhost")
    port, options = tls_options(ca, *wrong)
    redis = cluster.redis(*options)

    async def waits(url, pattern, *flags):
        node = cluster.start(url, *flags)
        await node.until_logged(pattern)
        assert await node.status("/readyz") == 503 and await node.status("/v1/channels") == 503
        return node
    trusting = ("--backplane-tls-ca", str(ca))
    nodes = [await waits(url, pattern, *flags) for url, pattern, flags in (
        (f"rediss://localhost:{port}", "certificate for another host name", trusting),
        (f"rediss://localhost:{port}", "certificate of an unknown issuer", ("--backplane-tls-ca", str(other_ca))),
        (f"rediss://localhost:{port}", "certificate of an unknown issuer", ()),
        (f"rediss://localhost:{redis.port}", "TLS handshake timeout|does not speak TLS", trusting),
        (f"redis://localhost:{port}", "connection lost: ", ()),
    )]
    for node in nodes[1:]:
        assert "backplane: connected" not in node.logged(), node.tail()
        node.kill()
    redis.command("CONFIG", "SET", "tls-cert-file", right[0], "tls-key-file", right[1])
    await nodes[0].ready()
    cluster.nodes[:] = nodes[:1]
    await cluster.load(nodes[0])
    await cluster.settle()


async def replica_of(cluster, primary, *options):
    replica = cluster.redis(*options)
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    replica.wait(lambda: replica.info("replication").get("master_link_status") == "up")
    return replica


async def watched(cluster):
    """A primary with a replica, three Sentinels that know each other and the replica, and two nodes that ask them."""
    primary = cluster.redis()
    replica = await replica_of(cluster, primary)
    sentinels = [cluster.sentinel(primary) for _ in range(3)]

    def knows_all(sentinel):
        found = dict(zip(*[iter(sentinel.command("SENTINEL", "MASTER", "main"))] * 2))
        return found[b"num-other-sentinels"] == b"2" and found[b"num-slaves"] == b"1"
    for sentinel in sentinels:
        sentinel.wait(lambda: knows_all(sentinel))
    # Nothing listens on the first port.
    url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in (free_port(), *(one.port for one in sentinels))) + "/main/2"
    nodes = [await cluster.node(url, *QUICK) for _ in range(2)]
    await cluster.load(*nodes)
    return primary, replica, sentinels, nodes


async def sentinel_failover(cluster):
    """The primary is killed, and its replica is promoted: the nodes follow, publishes wait, and none is rejected. Then a Sentinel
    ends too, and the new primary loses its clients."""
    primary, replica, sentinels, nodes = await watched(cluster)
    since = [len(node.logged()) for node in nodes]
    primary.kill()
    await cluster.progress(80)
    assert replica.info("replication")["role"] == "master"
    for node, start in zip(nodes, since):
        await node.until_logged(f"connected to 127.0.0.1:{replica.port}", start)
    sentinels[0].kill()
    replica.command("CLIENT", "KILL", "TYPE", "normal")
    await cluster.progress()
    await cluster.settle()
    cluster.expect_no_rejection()


async def sentinel_failover_to_a_lagging_replica(cluster):
    """The same, and the replica lacks the last entries, which both nodes have read and acknowledged: their subscribers are
    notified of the loss, and the nodes agree on everything that follows."""
    primary, replica, _, nodes = await watched(cluster)
    # The replica cannot connect again; the nodes and the Sentinels are connected.
    primary.command("CONFIG", "SET", "requirepass", "other")
    password = Resp(socket.create_connection(("127.0.0.1", primary.port)))
    password.command("AUTH", "other")
    assert password.command("CLIENT", "KILL", "TYPE", "replica") == 1
    await cluster.progress(80)
    primary.kill()
    await cluster.progress(80)
    assert replica.info("replication")["role"] == "master"
    await cluster.settle()
    cluster.expect_no_rejection()
    for node in nodes:
        assert cluster.gaps(node, why="lost"), f"{node.name} announced no loss"


async def replica_in_the_primarys_place(cluster):
    """A node does not use a replica. When it is promoted, the node begins without being restarted."""
    primary = cluster.redis()
    replica = await replica_of(cluster, primary)
    node = cluster.start(replica.url, *QUICK)
    await node.until_logged("OYEZROLE slave")
    assert await node.status("/readyz") == 503
    replica.command("REPLICAOF", "NO", "ONE")
    await node.ready()
    await cluster.load(node)
    await cluster.settle()
    assert primary.command("DBSIZE") == 0


async def waited_for_replicas(cluster):
    """With `--backplane-wait-replicas 1` a message is acknowledged when the replica has it. While the replica is stopped,
    publishes are delivered and `unconfirmed`; while there are fewer replicas than required, always."""
    primary = cluster.redis()
    replica = await replica_of(cluster, primary)
    flags = ("--backplane-wait-replicas", "1", "--backplane-wait-timeout-ms", "1000")
    strict = await cluster.node(primary.url, "--backplane-wait-replicas", "2", "--backplane-wait-timeout-ms", "50")
    status, _, body = await request(strict.port, "POST", "/v1/publish/a", b"for two replicas")
    assert status == 503 and json.loads(body)["error"]["code"] == "unconfirmed", (status, body)
    await strict.until_logged("replicas with the last entries: [01] of 2; publishes are unconfirmed")
    strict.kill()
    cluster.nodes.remove(strict)
    nodes = [await cluster.node(primary.url, *flags), await cluster.node(primary.url)]
    await cluster.subscribers()
    publisher = cluster.publisher(nodes[0])
    await cluster.progress()
    await nodes[0].until_metric("oyez_backplane_replicas", lambda count: count == 1)
    replica.signal(signal.SIGSTOP)
    await until(lambda: "unconfirmed" in publisher.codes, "a publish is unconfirmed")
    await nodes[0].until_logged("replicas with the last entries: 0 of 1;")
    # A node that waits for no replica is not concerned.
    status, _, body = await request(nodes[1].port, "POST", "/v1/publish/a", b"without waiting")
    assert status == 200, body
    await until(lambda: all("without waiting" in client.texts for client in cluster.receiving() if "a" in client.receiver.channels),
                "a message that no replica has is delivered")
    replica.signal(signal.SIGCONT)
    await nodes[0].until_logged("replicas with the last entries: 1; publishes are acknowledged again")
    await cluster.progress()
    await cluster.settle()
    assert await nodes[0].metric("oyez_backplane_waits_expired_total") > 0
    cluster.expect_no_gap()


ALL = [waited_for_replicas, tls_and_password, tls_errors, sentinel_failover, sentinel_failover_to_a_lagging_replica, replica_in_the_primarys_place]
