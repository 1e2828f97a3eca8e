"""Hosts in network namespaces, on cables that can be pulled out.

Each host has two cables. One goes to the network of the clients, in which this process is too; the other one to the
backbone, over which nodes connect to Redis. A cable that is pulled out loses every packet, and neither end is notified:
there is no reset, no end of file and no ICMP error, so connections stay half-open, as they do in a partition.
"""

import ctypes
import os
import subprocess

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
# What a machine answers on which namespaces or their devices are not permitted.
NOT_PERMITTED = ("Operation not permitted", "not supported", "Unknown device type", "Permission denied")
BRIDGES = {"clients": "10.231.1", "backbone": "10.231.2"}


class LeftOut(Exception):
    """This machine does not permit what the test needs."""


def isolate():
    """Moves this process into a network namespace of its own; without the right to do so, in a user namespace too."""
    libc, uid, gid = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWNET) == 0:
        return
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        raise LeftOut(f"network namespaces: {os.strerror(ctypes.get_errno())}")
    for name, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        error = f"{' '.join(command)}: {done.stderr.strip()}"
        raise LeftOut(error) if any(text in error for text in NOT_PERMITTED) else RuntimeError(error)


class Network:
    """The networks of the clients and of the backbone. This process moves into a namespace, and stays there."""

    def __init__(self):
        isolate()
        self.hosts = []
        run("ip", "link", "set", "lo", "up")
        for bridge in BRIDGES:
            run("ip", "link", "add", bridge, "type", "bridge")
            run("ip", "link", "set", bridge, "up")
        run("ip", "address", "add", f"{BRIDGES['clients']}.254/24", "dev", "clients")

    def host(self):
        host = Host(len(self.hosts) + 1)
        for other in self.hosts:
            host.introduce(other)
            other.introduce(host)
        self.hosts.append(host)
        return host

    def close(self):
        for host in self.hosts:
            host.close()


class Host:
    def __init__(self, number):
        self.number = number
        self.address, self.backbone_address = (f"{prefix}.{number}" for prefix in BRIDGES.values())
        # It holds the namespace; at the end of this process it reads an end of file, and ends too.
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.holder.stdin.write(b"\n")
        self.holder.stdin.flush()
        if not self.holder.stdout.read(1):
            raise LeftOut("unshare --net: Operation not permitted")
        # Prefix of a command that runs on this host. nsenter replaces itself by it, so its pid is the command's.
        self.enter = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]
        run(*self.enter, "ip", "link", "set", "lo", "up")
        for bridge, prefix in BRIDGES.items():
            plug = self.plug(bridge)
            run("ip", "link", "add", plug, "type", "veth", "peer", "name", bridge, "address", self.mac(bridge), "netns", str(self.holder.pid))
            run("ip", "link", "set", plug, "up")
            run(*self.enter, "ip", "address", "add", f"{prefix}.{number}/24", "dev", bridge)
            run(*self.enter, "ip", "link", "set", bridge, "up")
            self.connect(bridge)

    def plug(self, bridge):
        return f"{bridge}{self.number}"

    def mac(self, bridge):
        return f"02:00:00:00:{list(BRIDGES).index(bridge):02x}:{self.number:02x}"

    def introduce(self, other):
        """Makes the other host's link address known for good: else its lookup would fail, which is an error at this end."""
        for bridge, prefix in BRIDGES.items():
            run(*self.enter, "ip", "neighbor", "replace", f"{prefix}.{other.number}", "lladdr", other.mac(bridge), "nud", "permanent", "dev", bridge)

    def connect(self, *bridges):
        for bridge in bridges:
            run("ip", "link", "set", self.plug(bridge), "master", bridge)

    def disconnect(self, *bridges):
        for bridge in bridges:
            run("ip", "link", "set", self.plug(bridge), "nomaster")

    def close(self):
        self.holder.kill()
        self.holder.wait()
