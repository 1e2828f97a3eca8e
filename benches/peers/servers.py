"""The servers: their packages, and how each is built, started and stopped.

All are started in the same way: pinned to one processor, with the maximum number of descriptors. A server is ready
when it prints its line `listening on ws://...`.
"""

import json
import os
import re
import select
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "oyez-bench-peers"

START_LIMIT_S = 10
STOP_LIMIT_S = 10
BUILD_LIMIT_S = 1200


class Missing(Exception):
    """A server is not available on this machine."""


@dataclass
class Running:
    """A running server."""

    process: subprocess.Popen
    url: str
    # The process whose time and memory are measured: nginx works in a child process.
    pid: int

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class Server:
    """One server. `name` is its name for --only, `label` the heading of its column."""

    # Debian packages, and the paths that exist once they are installed.
    packages = ()
    needs = ()

    def __init__(self, name, label, *flags):
        self.name, self.label, self.flags = name, label, flags

    def build(self):
        """Builds the server; returns its version."""
        raise NotImplementedError

    def command(self):
        raise NotImplementedError

    def environment(self):
        return os.environ

    def start(self, processor):
        process = subprocess.Popen(
            ["taskset", "-c", str(processor), *map(str, self.command())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self.environment())
        running = Running(process, "", process.pid)
        try:
            running.url = self.wait(running)
        except BaseException:
            running.stop()
            raise
        return running

    def wait(self, running):
        """Waits for the line on standard output; returns the URL in it."""
        stdout = running.process.stdout
        deadline = time.monotonic() + START_LIMIT_S
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stdout], [], [], max(0, deadline - time.monotonic()))
            more = os.read(stdout.fileno(), 4096) if ready else b""
            if not more:
                raise RuntimeError(f"{self.name} did not start")
            line += more
        return re.search(r"ws://\S+", line.decode()).group()


class Oyez(Server):
    """Oyez with all flags at their defaults, except for those given."""

    def build(self):
        build(["cargo", "build", "--release", "--locked", "--bin", "oyez", "--example", "baseline"], ROOT)
        return output([target() / "oyez", "--version"])

    def command(self):
        return [target() / "oyez", "serve", "--listen", "127.0.0.1:0", *self.flags]

    def environment(self):
        # One log line per close would be an additional load.
        return {**os.environ, "RUST_LOG": "error"}


class Baseline(Server):
    """The baseline server, in one of its modes. It is built together with oyez."""

    def __init__(self, name, label, mode):
        super().__init__(name, label)
        self.mode = mode

    def build(self):
        Oyez.build(self)
        return f"--mode {self.mode}"

    def command(self):
        return [target() / "examples" / "baseline", "--mode", self.mode]


class Crate(Server):
    """A small crate in a folder of the peer's name."""

    def build(self):
        manifest = HERE / self.name / "Cargo.toml"
        build(["cargo", "build", "--release", "--locked", "--manifest-path", manifest, "--target-dir", CACHE / "target"])
        metadata = json.loads(output(["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]))
        version = {package["name"]: package["version"] for package in metadata["packages"]}
        return f"{version[self.name]}, tokio {version['tokio']}"

    def command(self):
        return [CACHE / "target" / "release" / f"peer-{self.name}"]


class Ws(Server):
    packages = ("nodejs", "npm")
    needs = ("node", "npm")

    def build(self):
        folder = CACHE / "ws"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", "server.js"):
            shutil.copy(HERE / "ws" / name, folder / name)
        build(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        version = json.loads((folder / "node_modules/ws/package.json").read_text())["version"]
        return f"{version}, node {output(['node', '--version']).lstrip('v')}"

    def command(self):
        return ["node", CACHE / "ws" / "server.js", *self.flags]


class Nchan(Server):
    packages = ("nginx-light", "libnginx-mod-nchan")
    module = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
    needs = ("/usr/sbin/nginx", module)
    # The connection table is allocated at the start, so its size is just what the scenarios need.
    descriptors = 20_000

    def build(self):
        (CACHE / "nchan").mkdir(parents=True, exist_ok=True)
        package = output(["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"])
        nginx = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True).stderr
        return f"{package}, nginx {nginx.strip().rpartition('/')[2]}"

    def command(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        text = (HERE / "nchan" / "nginx.conf").read_text()
        deflate = "on" if "--deflate" in self.flags else "off"
        values = {"MODULE": self.module, "PORT": self.port, "DESCRIPTORS": self.descriptors, "DEFLATE": deflate}
        for name, value in values.items():
            text = text.replace(f"@{name}@", str(value))
        (CACHE / "nchan" / "nginx.conf").write_text(text)
        return ["/usr/sbin/nginx", "-p", CACHE / "nchan", "-c", CACHE / "nchan" / "nginx.conf", "-e", "stderr"]

    def wait(self, running):
        """nginx prints nothing when it is ready, so connect until it accepts."""
        master = running.process.pid
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and running.process.poll() is None:
            time.sleep(0.05)
            workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
            if workers and socket.socket().connect_ex(("127.0.0.1", self.port)) == 0:
                running.pid = int(workers[0])
                return f"ws://127.0.0.1:{self.port}/ws"
        raise RuntimeError("nginx did not start")


class Gorilla(Server):
    packages = ("golang-go", "golang-github-gorilla-websocket-dev")
    # Debian's libraries for Go are source code in a GOPATH: nothing is fetched.
    path = Path("/usr/share/gocode")
    needs = ("go", path / "src/github.com/gorilla/websocket")

    def build(self):
        CACHE.mkdir(parents=True, exist_ok=True)
        build(["go", "build", "-o", CACHE / "gorilla"], HERE / "gorilla",
              {"GO111MODULE": "off", "GOPATH": str(self.path), "GOCACHE": str(CACHE / "go")})
        package = output(["dpkg-query", "-W", "-f", "${Version}", "golang-github-gorilla-websocket-dev"])
        return f"{package}, {output(['go', 'version']).split()[2]}"

    def command(self):
        return [CACHE / "gorilla", *self.flags]


class UWebSockets(Server):
    packages = ("g++", "zlib1g-dev")
    needs = ("g++", "/usr/include/zlib.h")
    # A package on crates.io contains the source code.
    package = "libuwebsockets-sys"

    def build(self):
        folder = CACHE / "uwebsockets"
        folder.mkdir(parents=True, exist_ok=True)
        manifest = HERE / "uwebsockets" / "Cargo.toml"
        metadata = json.loads(output(["cargo", "metadata", "--format-version", "1", "--locked", "--manifest-path", manifest]))
        found = next(package for package in metadata["packages"] if package["name"] == self.package)
        source = Path(found["manifest_path"]).parent / "uWebSockets"
        # As its own makefile, without TLS.
        flags = ["-O3", "-flto", "-march=native", "-DLIBUS_NO_SSL", f"-I{source}/src", f"-I{source}/uSockets/src"]
        files = [*(source / "uSockets/src").glob("*.c"), *(source / "uSockets/src/eventing").glob("*.c")]
        build(["gcc", "-std=c11", "-D_GNU_SOURCE", *flags, "-c", *files], folder)
        build(["g++", "-w", "-std=c++20", *flags, HERE / "uwebsockets/main.cpp",
               *(f"{file.stem}.o" for file in files), "-lz", "-o", "uwebsockets"], folder)
        return f"of {self.package} {found['version']}, {output(['g++', '--version']).splitlines()[0]}"

    def command(self):
        return [CACHE / "uwebsockets" / "uwebsockets", *self.flags]


ALL = [
    Baseline("baseline-message", "baseline, a write per message", "message"),
    Baseline("baseline-turn", "baseline, a write per turn", "turn"),
    Oyez("oyez", "oyez"),
    Crate("tokio-tungstenite", "tokio-tungstenite"),
    Crate("fastwebsockets", "fastwebsockets"),
    Ws("ws", "npm ws"),
    Nchan("nchan", "nginx nchan"),
    Gorilla("gorilla", "gorilla/websocket"),
]

# With permessage-deflate; see `deflate`.
COMPRESSING = [
    Oyez("oyez", "oyez"),
    UWebSockets("uws-shared", "uWebSockets, shared", "shared"),
    UWebSockets("uws-dedicated", "uWebSockets, dedicated", "dedicated"),
    Ws("ws", "npm `ws`", "--deflate"),
    Nchan("nchan", "nginx nchan", "--deflate"),
    Gorilla("gorilla", "gorilla/websocket", "--deflate"),
]


def prepare(servers, say):
    """Installs and builds; returns the versions of the available servers by name."""
    install(servers, say)
    versions = {}
    for server in servers:
        absent = [str(need) for need in server.needs if not is_there(need)]
        if absent:
            say(f"left out: {server.name}: no {', '.join(absent)}; Debian has them in {' '.join(server.packages)}")
            continue
        say(f"building {server.name}")
        versions[server.name] = server.build()
    return versions


def install(servers, say):
    packages = sorted({package for server in servers if not all(map(is_there, server.needs)) for package in server.packages})
    if not packages or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    say(f"installing {' '.join(packages)}")
    # Packages must not start services.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "-q", "update"], env=environment, stdout=subprocess.DEVNULL)
    subprocess.run(["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages],
                   env=environment, stdout=subprocess.DEVNULL)


def is_there(need):
    return Path(need).exists() if str(need).startswith("/") else shutil.which(need) is not None


def build(command, folder=None, environment=None):
    subprocess.run([*map(str, command)], cwd=folder, env={**os.environ, **(environment or {})}, check=True,
                   stdout=subprocess.DEVNULL, timeout=BUILD_LIMIT_S)


def output(command):
    return subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def target():
    """The folder in which cargo puts oyez and the baseline server."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release"
