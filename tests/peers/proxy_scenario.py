"""Other projects' proxies in front of the server: nginx, Caddy, HAProxy, with the configurations of the manual.

    proxy_scenario.py path/to/oyez        with nginx, caddy, haproxy and openssl in PATH; see run

The configurations are read from src/manual/proxies.md; only names, ports and certificates are replaced.
Clients come from 127.0.0.2 and 127.0.0.3, the proxies from 127.0.0.1, the only address that the server trusts.
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

from scenario import DEADLINES, PATIENT, STEP_S, Checks, free_port

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
    """The text with each name replaced; every name must occur."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


class Setup:
    """A folder with a certificate and the proxy's configuration."""

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

    def nginx_unix(self):
        self.oyez = f"unix:{self.folder}/oyez.sock"
        return self.nginx()

    def caddy_unix(self):
        self.oyez = f"unix/{self.folder}/oyez.sock"
        return self.caddy()

    def haproxy_unix(self):
        self.oyez = f"unix@{self.folder}/oyez.sock"
        return self.haproxy()

    def haproxy_forwardfor(self):
        """The variant that the manual describes below the configuration."""
        command = self.haproxy()
        path = self.folder / "haproxy.cfg"
        path.write_text(put(path.read_text(), (" send-proxy-v2", ""), ("    option http-server-close", "#"),
                            ("backend oyez\n", "backend oyez\n    option forwardfor\n")))
        return command


class Run:
    """A server, a proxy in front of it, and the checks of both."""

    def __init__(self, oyez, name, flags, folder, checks):
        self.name, self.folder = name, folder
        self.checks = checks
        self.log = open(folder / "log", "w+")
        if name.endswith("_unix"):
            # As the manual describes it below the configurations.
            flags = [*flags, "--listen", f"unix:{folder}/oyez.sock,mode=0600", "--trusted-proxy", "unix:"]
        self.server = subprocess.Popen([oyez, "serve", "--listen", "127.0.0.1:0", "--trusted-proxy", "127.0.0.1",
                                        "--connections-per-address-max", str(CONNECTIONS_MAX), *flags],
                                       stdout=subprocess.PIPE, stderr=self.log, text=True,
                                       env={**os.environ, **DEADLINES, "RUST_LOG": "info"})
        self.oyez_port = int(re.search(r"ws://[^/\s]+:(\d+)", self.server.stdout.readline()).group(1))
        self.setup = Setup(folder, self.oyez_port)
        self.proxy = subprocess.Popen(getattr(self.setup, name)(), stdout=self.log, stderr=self.log,
                                      env={**os.environ, "HOME": str(folder)})
        self.port = self.setup.port
        self.tls = ssl.create_default_context(cafile=self.setup.certificate)

    def check(self, text, *found):
        with PRINTING:
            self.checks.check(f"{self.name.replace('_', ' ')}: {text}", *found)

    def end(self):
        for process in self.proxy, self.server:
            if process.poll() is None:
                process.kill()
            process.wait()

    def logged(self):
        return (self.folder / "log").read_text()

    def request(self, method, path, body=None, client=CLIENT, headers={}):
        """The response, and its connection, once the limit of connections allows it: earlier connections may still be closing
        in the proxy."""
        end = time.monotonic() + STEP_S
        while True:
            connection = http.client.HTTPSConnection("localhost", self.port, timeout=STEP_S, context=self.tls,
                                                     source_address=(client, 0))
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if response.status != 429 or time.monotonic() > end:
                return response, connection
            connection.close()
            time.sleep(0.02)

    def wait(self):
        end = time.monotonic() + STEP_S
        while time.monotonic() < end:
            try:
                response, connection = self.request("GET", "/readyz")
                connection.close()
                if response.status == 200:
                    return True
            except OSError:
                pass
            time.sleep(0.05)
        return False

    def web_socket(self, path, client=CLIENT, **more):
        return connect(f"wss://localhost:{self.port}{path}", proxy=None, ssl=self.tls, local_addr=(client, 0),
                       family=socket.AF_INET, max_size=None, **PATIENT, **more)

    async def connected(self, path, **more):
        """A WebSocket, once the limit of connections allows it."""
        end = time.monotonic() + STEP_S
        while True:
            try:
                return await self.web_socket(path, **more)
            except InvalidStatus as error:
                if error.response.status_code != 429 or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.02)

    def requests(self):
        response, connection = self.request("POST", "/v1/publish/news", b"hear ye")
        first = json.loads(response.read())
        connection.request("GET", "/v1/channels/news/history")
        history = json.loads(connection.getresponse().read())
        connection.close()
        self.check("two requests on one connection are answered",
                   "id" in first and [one.get("text") for one in history["messages"]] == ["hear ye"], (first, history))
        body = b"x" * (1 << 20)
        response, connection = self.request("POST", "/v1/publish/large", body)
        self.check("1 MiB is published", response.status == 200, (response.status, response.read()))
        connection.close()

    def stream(self):
        response, connection = self.request("GET", "/sse/news?since=earliest")
        got = []

        def read_until(text):
            while text not in b"".join(got):
                got.append(response.fp.readline())
                if not got[-1]:
                    return False
            return True

        old = read_until(b"data: hear ye")
        self.request("POST", "/v1/publish/news", b"at once")[1].close()
        self.check("events arrive while the stream is open", old and read_until(b"data: at once"), got)
        connection.close()

    async def web_sockets(self):
        spoofed = {"X-Forwarded-For": "192.0.2.66"}
        async with await self.connected("/ws/room", additional_headers=spoofed) as one, await self.connected("/ws/room") as two:
            large = "x" * 65536
            received = []
            for sent in ["hear ye", b"\x00\xff", large]:
                await one.send(sent)
                received.append(await asyncio.wait_for(two.recv(), STEP_S) == sent)
            self.check("WebSockets receive each other's messages: text, bytes, 64 KiB", all(received), received)
            async with await self.connected("/ws", subprotocols=["oyez.v1"]) as three:
                hello = json.loads(await asyncio.wait_for(three.recv(), STEP_S))
                self.check("oyez.v1 is agreed on", three.subprotocol == "oyez.v1" and hello["type"] == "hello", hello)
                status = None
                try:
                    async with self.web_socket("/ws"):
                        pass
                except InvalidStatus as error:
                    status = error.response.status_code
                self.check("a connection over the limit of its address is rejected with 429", status == 429, status)
                async with self.web_socket("/ws/room", client=OTHER) as other:
                    await other.send("another")
                    got = await asyncio.wait_for(other.recv(), STEP_S)
                    self.check("another address has its own limit", got == "another", got)

    async def compression(self):
        async with await self.connected("/ws/prices") as one, await self.connected("/ws/prices", compression=None) as plain:
            extensions = one.protocol.extensions
            self.check("permessage-deflate is agreed on", len(extensions) == 1 and not plain.protocol.extensions, extensions)
            are_compressed = []
            if extensions:
                decode = extensions[0].decode

                def decode_and_note(frame, **options):
                    are_compressed.append(frame.rsv1)
                    return decode(frame, **options)

                extensions[0].decode = decode_and_note
            sent = [json.dumps({"symbol": "ACME", "bid": 100 + number * 37 % 100 / 100, "note": "a price " * 8, "number": number})
                    for number in range(50)]
            for text in sent:
                await one.send(text)
            received = [[await asyncio.wait_for(client.recv(), STEP_S) for _ in sent] for client in (one, plain)]
            self.check("compressed messages pass in both directions", received == [sent, sent]
                       and are_compressed == [True] * len(sent), (received, are_compressed))

    async def drains(self):
        async with await self.connected("/ws") as client:
            self.server.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(client.recv(), STEP_S)
                close = None
            except ConnectionClosed:
                close = client.close_code, client.close_reason
            self.check("a close passes with its code and reason", close and close[0] == 4200
                       and close[1].startswith("drain retry_ms="), close)

    def addresses(self):
        self.server.wait(STEP_S)
        closes = re.findall(r"close peer=(\S+) (?:code=\d+ )?reason=(\S+)", self.logged())
        of = lambda address: [reason for peer, reason in closes if peer.split(":")[0] == address]
        self.check("the log names the clients", "drain" in of(CLIENT) and len(of(CLIENT)) >= 5 and of(OTHER), closes)
        self.check("no client chooses its address with X-Forwarded-For", not of("192.0.2.66"), closes)

    def run(self):
        up = self.wait()
        self.check("it is ready", up, self.logged()[-2000:] if not up else None)
        if not up:
            return
        for part in self.requests, self.stream, self.web_sockets, self.compression, self.drains, self.addresses:
            try:
                found = part()
                if asyncio.iscoroutine(found):
                    asyncio.run(found)
            except Exception as error:  # A failed part must not hide the results of the others.
                self.check(f"{part.__name__} runs to its end", False, repr(error))


def main(oyez):
    for tool in "nginx", "caddy", "haproxy", "openssl":
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing")
    checks = Checks()
    runs = [("nginx", []), ("caddy", []), ("haproxy", ["--proxy-protocol"]), ("haproxy_forwardfor", []),
            ("nginx_unix", []), ("caddy_unix", []), ("haproxy_unix", ["--proxy-protocol"])]

    def one(name, flags):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(oyez, name, flags, pathlib.Path(folder), checks)
            try:
                run.run()
            finally:
                run.end()
            return run.logged()

    # Side by side: most of their time is waiting for timers.
    with concurrent.futures.ThreadPoolExecutor(len(runs)) as pool:
        logs = list(pool.map(lambda pair: one(*pair), runs))
    if checks.failed:
        for (name, _), log in zip(runs, logs):
            sys.stderr.write(f"--- {name}\n" + "\n".join(log.splitlines()[-20:]) + "\n")
    return checks.summary()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
