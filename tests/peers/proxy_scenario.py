"""Proxies that nobody here wrote, in front of the server: nginx, Caddy, HAProxy, with the configurations of the manual.

    proxy_scenario.py path/to/oyez        with nginx, caddy, haproxy and openssl in PATH; see run

The configurations are read from src/manual/proxies.md; only names, ports and certificates are put in.
Clients come from 127.0.0.2 and 127.0.0.3, the proxies from 127.0.0.1, which is all that the server trusts.
"""

import asyncio
import concurrent.futures
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from scenario import STEP_S, Verdict

MANUAL = pathlib.Path(__file__).resolve().parents[2] / "src/manual/proxies.md"
CLIENT, OTHER = "127.0.0.2", "127.0.0.3"
CONNECTIONS_MAX = 3
PRINTING = threading.Lock()


def configuration(language):
    """The manual's block in that language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", MANUAL.read_text(), re.S | re.M)
    assert len(blocks) == 1, f"{len(blocks)} blocks of {language}"
    return blocks[0]


def put(text, *pairs):
    """The text with each name replaced, which has to be there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Place:
    """A folder with a certificate, and the configuration that a proxy is started with there."""

    def __init__(self, folder, oyez_port):
        self.folder, self.oyez, self.port = folder, f"127.0.0.1:{oyez_port}", free_port()
        self.certificate, self.key = folder / "pem", folder / "key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                        "-keyout", self.key, "-out", self.certificate], check=True, capture_output=True)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def nginx(self):
        block = put(configuration("nginx"), ("127.0.0.1:8080", self.oyez), ("listen 443", f"listen 127.0.0.1:{self.port}"),
                    ("example.com;", "localhost;"), ("/etc/ssl/example.com.pem", str(self.certificate)),
                    ("/etc/ssl/example.com.key", str(self.key)))
        paths = "\n".join(f"{kind}_temp_path {self.folder}/{kind};"
                          for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        conf = self.write("nginx.conf", f"daemon off;\nmaster_process off;\npid {self.folder}/nginx.pid;\n"
                                        f"events {{}}\nhttp {{\naccess_log off;\n{paths}\n{block}}}\n")
        return ["nginx", "-p", self.folder, "-e", "stderr", "-c", conf]

    def caddy(self):
        block = put(configuration("caddy"), ("127.0.0.1:8080", self.oyez),
                    ("example.com {", f"https://localhost:{self.port} {{\n    tls {self.certificate} {self.key}"))
        conf = self.write("Caddyfile", f"{{\n    admin off\n    auto_https disable_redirects\n    default_bind 127.0.0.1\n}}\n{block}")
        return ["caddy", "run", "--adapter", "caddyfile", "--config", conf]

    def haproxy(self):
        both = self.write("both.pem", self.certificate.read_text() + self.key.read_text())
        block = put(configuration("haproxy"), ("127.0.0.1:8080", self.oyez), ("bind :443", f"bind 127.0.0.1:{self.port}"),
                    ("/etc/ssl/example.com.both.pem", str(both)))
        return ["haproxy", "-db", "-f", self.write("haproxy.cfg", block)]

    def haproxy_forwardfor(self):
        """As the manual says under the configuration."""
        command = self.haproxy()
        path = self.folder / "haproxy.cfg"
        path.write_text(put(path.read_text(), (" send-proxy-v2", ""), ("    option http-server-close", "#"),
                            ("backend oyez\n", "backend oyez\n    option forwardfor\n")))
        return command


class Run:
    """A server, a proxy in front of it, and what is stated about both."""

    def __init__(self, oyez, name, flags, folder, verdict):
        self.name, self.folder = name, folder
        self.verdict = verdict
        self.log = open(folder / "log", "w+")
        self.server = subprocess.Popen([oyez, "serve", "--listen", "127.0.0.1:0", "--trusted-proxy", "127.0.0.1",
                                        "--connections-per-address-max", str(CONNECTIONS_MAX), *flags],
                                       stdout=subprocess.PIPE, stderr=self.log, text=True,
                                       env={**os.environ, "RUST_LOG": "info"})
        self.oyez_port = int(re.search(r"ws://[^/\s]+:(\d+)", self.server.stdout.readline()).group(1))
        self.place = Place(folder, self.oyez_port)
        self.proxy = subprocess.Popen(getattr(self.place, name)(), stdout=self.log, stderr=self.log,
                                      env={**os.environ, "HOME": str(folder)})
        self.port = self.place.port
        self.tls = ssl.create_default_context(cafile=self.place.certificate)

    def state(self, text, *found):
        with PRINTING:
            self.verdict.state(f"{self.name.replace('_', ' ')}: {text}", *found)

    def end(self):
        for process in self.proxy, self.server:
            if process.poll() is None:
                process.kill()
            process.wait()

    def logged(self):
        return (self.folder / "log").read_text()

    def request(self, method, path, body=None, client=CLIENT, headers={}):
        """The answer, and the connection on which it came."""
        line = http.client.HTTPSConnection("localhost", self.port, timeout=STEP_S, context=self.tls,
                                           source_address=(client, 0))
        line.request(method, path, body, headers)
        return line.getresponse(), line

    def wait(self):
        end = time.monotonic() + STEP_S
        while time.monotonic() < end:
            try:
                answer, line = self.request("GET", "/readyz")
                line.close()
                if answer.status == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.05)
        return False

    def web_socket(self, path, client=CLIENT, **more):
        return connect(f"wss://localhost:{self.port}{path}", proxy=None, ping_interval=None, ssl=self.tls,
                       local_addr=(client, 0), family=socket.AF_INET, open_timeout=STEP_S, max_size=None, **more)

    async def member(self, path, **more):
        """A WebSocket, as soon as there is room for it: connections that were closed before go through the proxy too."""
        end = time.monotonic() + STEP_S
        while True:
            try:
                return await self.web_socket(path, **more)
            except InvalidStatus as error:
                if error.response.status_code != 429 or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.02)

    def requests(self):
        answer, line = self.request("POST", "/v1/publish/news", b"hear ye")
        first = json.loads(answer.read())
        line.request("GET", "/v1/channels/news/history")
        history = json.loads(line.getresponse().read())
        line.close()
        self.state("a request is answered, and the next one on the same connection",
                   "id" in first and [one.get("text") for one in history["messages"]] == ["hear ye"], (first, history))
        body = b"x" * (1 << 20)
        answer, line = self.request("POST", "/v1/publish/large", body)
        self.state("1 MiB is published", answer.status == 200, (answer.status, answer.read()))
        line.close()

    def stream(self):
        answer, line = self.request("GET", "/sse/news?since=earliest")
        got = []

        def read_until(text):
            while text not in b"".join(got):
                got.append(answer.fp.readline())
                if not got[-1]:
                    return False
            return True

        old = read_until(b"data: hear ye")
        self.request("POST", "/v1/publish/news", b"at once")[1].close()
        self.state("events come while the stream is open", old and read_until(b"data: at once"), got)
        line.close()

    async def web_sockets(self):
        spoofed = {"X-Forwarded-For": "192.0.2.66"}
        async with await self.member("/ws/room", additional_headers=spoofed) as one, await self.member("/ws/room") as two:
            large = "x" * 65536
            heard = []
            for sent in ["hear ye", b"\x00\xff", large]:
                await one.send(sent)
                heard.append(await asyncio.wait_for(two.recv(), STEP_S) == sent)
            self.state("WebSockets hear each other: text, bytes, 64 KiB", all(heard), heard)
            async with await self.member("/ws", subprotocols=["oyez.v1"]) as three:
                hello = json.loads(await asyncio.wait_for(three.recv(), STEP_S))
                self.state("oyez.v1 is agreed on", three.subprotocol == "oyez.v1" and hello["type"] == "hello", hello)
                status = None
                try:
                    async with self.web_socket("/ws"):
                        pass
                except InvalidStatus as error:
                    status = error.response.status_code
                self.state("one connection too many of an address is refused with 429", status == 429, status)
                async with self.web_socket("/ws/room", client=OTHER) as other:
                    await other.send("another")
                    got = await asyncio.wait_for(other.recv(), STEP_S)
                    self.state("another address has its own limit", got == "another", got)

    async def drains(self):
        async with await self.member("/ws") as member:
            self.server.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(member.recv(), STEP_S)
                close = None
            except ConnectionClosed:
                close = member.close_code, member.close_reason
            self.state("a close passes with its code and reason", close and close[0] == 4200
                       and close[1].startswith("drain retry_ms="), close)

    def addresses(self):
        self.server.wait(STEP_S)
        closes = re.findall(r"close peer=(\S+) (?:code=\d+ )?reason=(\S+)", self.logged())
        of = lambda address: [reason for peer, reason in closes if peer.split(":")[0] == address]
        self.state("the log names the clients", "drain" in of(CLIENT) and len(of(CLIENT)) >= 5 and of(OTHER), closes)
        self.state("nobody is who he says he is", not of("192.0.2.66"), closes)

    def run(self):
        up = self.wait()
        self.state("it is ready", up, self.logged()[-2000:] if not up else None)
        if not up:
            return
        for part in self.requests, self.stream, self.web_sockets, self.drains, self.addresses:
            try:
                found = part()
                if asyncio.iscoroutine(found):
                    asyncio.run(found)
            except Exception as error:  # One broken part must not hide what the others find.
                self.state(f"{part.__name__} runs to its end", False, repr(error))


def main(oyez):
    for tool in "nginx", "caddy", "haproxy", "openssl":
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing")
    verdict = Verdict()
    runs = [("nginx", []), ("caddy", []), ("haproxy", ["--proxy-protocol"]), ("haproxy_forwardfor", [])]

    def one(name, flags):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(oyez, name, flags, pathlib.Path(folder), verdict)
            try:
                run.run()
            finally:
                run.end()
            return run.logged()

    # They wait for each other's timers most of the time.
    with concurrent.futures.ThreadPoolExecutor(len(runs)) as pool:
        logs = list(pool.map(lambda pair: one(*pair), runs))
    if verdict.failed:
        for (name, _), log in zip(runs, logs):
            sys.stderr.write(f"--- {name}\n" + "\n".join(log.splitlines()[-20:]) + "\n")
    print(f"{verdict.passed} passed, {verdict.failed} failed", flush=True)
    return 0 if verdict.passed and not verdict.failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
