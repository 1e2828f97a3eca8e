"""Other projects' HTTP clients: Python's requests and sseclient-py, Prometheus' parser and promtool, curl, wrk.

    http_scenario.py path/to/oyez        with promtool, curl and wrk in PATH; see run

The server is a black box here, as in scenario.py: its binary, its one line of output, its signals and its wire.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import requests
import sseclient
from prometheus_client.parser import text_string_to_metric_families

from scenario import DEADLINES, STEP_S, Checks, free_port

# Names as the parser returns them: counters without _total.
FAMILIES = """
    oyez_connections oyez_connections_accepted oyez_connections_closed oyez_http_requests_rejected
    oyez_rate_limited oyez_accept_errors oyez_channels oyez_subscriptions oyez_messages_published oyez_messages_delivered
    oyez_received_bytes oyez_sent_bytes oyez_pending_bytes oyez_slow_connections oyez_messages_skipped
    oyez_resumes oyez_history_bytes oyez_turn_seconds oyez_turn_events oyez_ping_rtt_seconds oyez_build_info
    process_cpu_seconds process_resident_memory_bytes process_virtual_memory_bytes process_open_fds
    process_max_fds process_start_time_seconds
""".split()
LABELS = {"context", "phase", "reason", "code", "errno", "source", "result", "version", "limit", "step", "le"}
WRK_S = 1
WRK_POST = """
wrk.method = "POST"
wrk.body = string.rep("x", 64)
"""


class Server:
    """A server on a free port, or on the port of an earlier one."""

    def __init__(self, oyez, log, port=0, flags=(), env=None):
        self.process = subprocess.Popen([oyez, "serve", "--listen", f"127.0.0.1:{port}", *flags],
                                        stdout=subprocess.PIPE, stderr=log, text=True,
                                        env=env or {**os.environ, **DEADLINES})
        self.port = int(re.search(r"ws://[^/\s]+:(\d+)", self.process.stdout.readline()).group(1))
        self.root = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STEP_S)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Scenario:
    def __init__(self, oyez, log, checks):
        self.oyez, self.log, self.check = oyez, log, checks.check
        # It is restarted on this port.
        self.server = Server(oyez, log, free_port())
        # Proxies configured on this machine are not used.
        self.session = requests.Session()
        self.session.trust_env = False

    def request(self, method, path, **options):
        return self.session.request(method, self.server.root + path, timeout=STEP_S, **options)

    def publishes(self):
        for name, options in [("text", {"data": "zażółć".encode()}), ("JSON", {"json": {"a": [1, None]}}),
                           ("bytes", {"data": b"\0\xff", "headers": {"Content-Type": "application/octet-stream"}}),
                           ("an empty body", {"data": b""})]:
            response = self.request("POST", "/v1/publish/py", **options)
            self.check(f"requests publishes {name}", response.status_code == 200 and "id" in response.json(), response.text)
        messages = self.request("GET", "/v1/channels/py/history").json()["messages"]
        payloads = [next(m[key] for key in ("data", "text", "base64") if key in m) for m in messages]
        self.check("requests reads them from the history", payloads == ["zażółć", {"a": [1, None]}, "AP8=", ""], payloads)
        rest = self.request("GET", "/v1/channels/py/history", params={"since": messages[1]["id"], "limit": 1}).json()
        self.check("and a page of them", [m["n"] for m in rest["messages"]] == [3], rest)
        channels = self.request("GET", "/v1/channels", params={"prefix": "p"}).json()["channels"]
        self.check("and the channel", [c["channel"] for c in channels] == ["py"] and channels[0]["messages"] == 4, channels)
        for path, status in ("/v1/channels/a%20b", 400), ("/nothing", 404), ("/v1/publish/a", 405):
            response = self.request("GET", path)
            self.check(f"{status} has a code", response.status_code == status and response.json()["error"]["code"], response.text)
        chunked = self.request("POST", "/v1/publish/py", data=iter([b"a", b"b"]))
        self.check("requests publishes a chunked body", chunked.status_code == 200, chunked.text)
        last = self.request("GET", "/v1/channels/py/history", params={"since": "latest"}).json()["messages"]
        self.check("as one message", [m["text"] for m in last] == ["ab"], last)
        pool = next(iter(self.session.adapters["http://"].poolmanager.pools._container.values()))
        self.check("one connection served nearly all requests", pool.num_connections <= 2, pool.num_connections)

    def restarts(self):
        self.request("POST", "/v1/publish/py", data="before")
        status = self.server.stop()
        self.check("the server exits with 0 while a connection is kept alive", status == 0, status)
        self.server = Server(self.oyez, self.log, self.server.port)
        response = self.request("POST", "/v1/publish/py", data="after")
        self.check("a session survives the restart of the server", response.status_code == 200, response.text)

    def streams(self):
        stream = self.request("GET", "/sse/py", stream=True)
        # In chunks of the transfer coding, so that the reader does not wait until its block is full.
        lines = stream.iter_lines(chunk_size=None)
        first = [next(lines) for _ in range(4)]
        self.check("a stream begins with retry and a cursor",
                   first[0] == b"retry: 3000" and re.fullmatch(rb"id: \d+-\d+", first[2]) and first[3] == b"", first)
        ids = []
        for text in "one\ntwo", "three":
            ids.append(requests.post(f"{self.server.root}/v1/publish/py", data=text, timeout=STEP_S).json()["id"])
        events = [next(lines).decode() for _ in range(7)]
        expected = [f"id: {ids[0]}", "data: one", "data: two", "", f"id: {ids[1]}", "data: three", ""]
        self.check("requests reads events as they arrive", events == expected, events)
        stream.close()
        again = self.request("GET", "/sse/py", stream=True, headers={"Last-Event-ID": ids[0]})
        events = [line.decode() for _, line in zip(range(7), again.iter_lines(chunk_size=None))]
        self.check("and resumes", events[4:] == expected[4:], events)
        again.close()

    def events_one_by_one(self):
        # Each event is published after the previous one was received: a reader that waits until a block is full
        # never gets it, and fails by its timeout.
        for name, events in [
            ("sseclient-py", lambda stream: (event.data for event in sseclient.SSEClient(stream).events())),
            ("requests, line by line", lambda stream: (line[6:] for line in stream.iter_lines(decode_unicode=True)
                                                       if line.startswith("data: "))),
        ]:
            channel = re.sub("[^a-z]", "", name)
            with self.request("GET", f"/sse/{channel}", stream=True, headers={"Accept": "text/event-stream"}) as stream:
                stream.encoding = "utf-8"
                received, events = [], events(stream)
                texts = ["x", "a little more", "y" * 3000, "z"]
                try:
                    for text in texts:
                        requests.post(f"{self.server.root}/v1/publish/{channel}", data=text, timeout=STEP_S)
                        received.append(next(events))
                except requests.RequestException as error:
                    received.append(repr(error))
                self.check(f"{name}: each event arrives before the next is published", received == texts, received)

    def metrics(self):
        for name in "canary", "canary2":
            self.request("POST", f"/v1/publish/{name}", data=name)
            self.request("GET", f"/{name}", headers={"User-Agent": name, "Origin": f"http://{name}"})
        response = self.request("GET", "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        for name in FAMILIES:
            family = families.get(name)
            self.check(f"{name} has a type and help", family and family.type != "unknown" and family.documentation)
        labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
        self.check("no label has a value from a client", labels <= LABELS, labels - LABELS)
        self.check("the metrics contain no text that a client sent", "canary" not in response.text)
        checked = subprocess.run(["promtool", "check", "metrics"], input=response.text, text=True,
                                 capture_output=True, timeout=STEP_S)
        self.check("promtool reports nothing", checked.returncode == 0 and not checked.stdout + checked.stderr,
                   checked.stdout + checked.stderr)

    def curl(self, *arguments, limit_s=STEP_S):
        return subprocess.run(["curl", "-sS", "--noproxy", "*", "--max-time", str(limit_s), *arguments],
                              capture_output=True, text=True, timeout=limit_s + STEP_S)

    def curls(self):
        root = self.server.root
        each = ["-w", " %{http_code} %{num_connects}\n"]
        urls = [f"{root}/{path}" for path in ("healthz", "nothing", "readyz", "v1/channels", "metrics")]
        done = self.curl("-o", "/dev/null", *each, *[part for url in urls for part in (url, "-o", "/dev/null")][:-2])
        found = done.stdout.split()
        self.check("curl sends five requests on one connection",
                   found == ["200", "1", "404", "0", "200", "0", "200", "0", "200", "0"], done.stdout + done.stderr)
        with tempfile.NamedTemporaryFile() as body:
            body.write(b"x" * (1 << 20))
            body.flush()
            sends = ["--data-binary", f"@{body.name}", f"{root}/v1/publish/curl"]
            for expect in [], ["-H", "Expect: 100-continue"], ["-H", "Expect:"]:
                done = self.curl(*each, *expect, *sends)
                self.check(f"curl sends 1 MiB {' '.join(expect)}", " 200 1" in done.stdout, done.stdout + done.stderr)
            body.write(b"x")
            body.flush()
            done = self.curl(*each, "-H", "Expect: 100-continue", *sends)
            self.check("curl gets 413 for one byte too many", " 413 1" in done.stdout, done.stdout + done.stderr)
        self.request("POST", "/v1/publish/curl2", data="first")
        stream = subprocess.Popen(["curl", "-sSN", "--noproxy", "*", "--max-time", str(STEP_S),
                                   f"{root}/sse/curl2?since=earliest"], stdout=subprocess.PIPE, text=True)
        lines = []
        while "data: first\n" not in lines and (line := stream.stdout.readline()):
            lines.append(line)
        # The empty line that ends the event arrives with it, while the stream continues.
        self.check("curl -N prints events", lines and stream.stdout.readline() == "\n", lines)
        stream.kill()
        stream.wait()
        with tempfile.TemporaryDirectory() as folder:
            got, tag = pathlib.Path(folder, "oyez.js"), pathlib.Path(folder, "tag")
            saved = ["--compressed", "-w", "%{http_code} %{size_download}", "-o", str(got), f"{root}/oyez.js"]
            done = self.curl("--etag-save", str(tag), *saved)
            whole = (pathlib.Path(__file__).parents[2] / "src/console/oyez.js").read_bytes()
            status, size = done.stdout.split()
            self.check("curl decompresses the client module",
                       status == "200" and int(size) < len(whole) / 2 and got.read_bytes() == whole, done.stdout)
            done = self.curl("--etag-compare", str(tag), *saved)
            self.check("curl gets 304 for the same module", done.stdout == "304 0", done.stdout + done.stderr)
        done = self.curl("-I", f"{root}/healthz")
        self.check("curl -I has a head and no body", done.returncode == 0 and "Content-Length: 3" in done.stdout, done.stdout)

    def wrks(self):
        with tempfile.NamedTemporaryFile(suffix=".lua", mode="w") as script:
            script.write(WRK_POST)
            script.flush()
            for name, path, options in [("GET", "/healthz", []), ("GET", "/v1/channels", []),
                                     ("POST", "/v1/publish/wrk", ["-s", script.name])]:
                done = subprocess.run(["wrk", "-t1", "-c50", f"-d{WRK_S}s", "--timeout", f"{STEP_S}s", *options, self.server.root + path],
                                      capture_output=True, text=True, timeout=WRK_S + STEP_S)
                served = re.search(r"(\d+) requests in", done.stdout)
                self.check(f"wrk on {name} {path}: all are 2xx, no socket fails",
                           served and int(served.group(1)) > 0 and "Non-2xx" not in done.stdout
                           and "Socket errors" not in done.stdout, done.stdout + done.stderr)

    PARTS = [publishes, restarts, streams, events_one_by_one, metrics, curls, wrks]

    def run(self):
        for part in self.PARTS:
            try:
                part(self)
            except Exception as error:  # A failed part must not hide the results of the others.
                self.check(f"{part.__name__} runs to its end", False, repr(error))


def main(oyez):
    checks = Checks()
    for tool in "promtool", "curl", "wrk":
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing")
    with tempfile.TemporaryFile() as log:
        scenario = Scenario(oyez, log, checks)
        try:
            scenario.run()
        finally:
            scenario.server.kill()
        return checks.report(log)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
