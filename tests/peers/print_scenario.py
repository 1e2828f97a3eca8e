"""What `oyez print` prints, read by the programs that it is made for: man, bash, zsh, fish, promtool, the parsers of OpenAPI
and Grafana's JSON, and a server that is configured by the printed variables.

    print_scenario.py path/to/oyez        with these programs in PATH; see run
"""

import functools
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile

import jsonschema
import requests
from openapi_spec_validator import validate

from http_scenario import Server
from scenario import STEP_S, Checks

COMMANDS = ["", "serve", "pub", "sub", "bench", "bench fanout", "token", "token new", "health", "print"]
# Without a terminal of its own a shell completes nothing, so it is asked by its functions for scripts.
COMPLETE_BASH = """
source completions
COMP_WORDS=(oyez ser) COMP_CWORD=1
_oyez oyez ser oyez
echo "${COMPREPLY[@]}"
"""
COMPLETE_ZSH = """
autoload -U compinit && compinit -u -D
source ./completions
whence -w _oyez
echo $_comps[oyez]
"""
COMPLETE_FISH = "source completions; complete -C 'oyez ser'"


class Scenario:
    def __init__(self, oyez, folder, checks):
        self.oyez, self.folder, self.checks = oyez, folder, checks

    def print(self, *arguments):
        output = subprocess.run([self.oyez, "print", *arguments], capture_output=True, text=True, timeout=STEP_S)
        self.checks.check(f"oyez print {' '.join(arguments)} succeeds",
                          output.returncode == 0 and output.stdout and not output.stderr, output.stderr)
        return output.stdout

    def ask(self, *command, **options):
        """Runs a command in the folder, and returns its status and all of its output."""
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=STEP_S,
                                cwd=self.folder, **options)
        return output.returncode, output.stdout

    def run(self):
        self.manual_pages()
        self.completions()
        self.prometheus()
        self.configuration()
        self.api()

    def manual_pages(self):
        for command in COMMANDS:
            page = self.folder / "page.1"
            page.write_text(self.print("man", *command.split()))
            status, output = self.ask("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(page),
                                      env={**os.environ, "MANROFFSEQ": "", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"})
            warnings = [line for line in output.splitlines() if re.search(r"warning|error", line) and "page.1" in line]
            self.checks.check(f"man renders the page of oyez {command}", status == 0 and not warnings, warnings)
            self.checks.check(f"the page has the name oyez {command}",
                              f"oyez {command}".strip().replace(" ", "-") in re.sub(".\\x08", "", output).split("NAME")[1].split("SYNOPSIS")[0])

    def completions(self):
        script = self.folder / "completions"
        for shell, program in (("bash", COMPLETE_BASH), ("zsh", COMPLETE_ZSH), ("fish", COMPLETE_FISH)):
            script.write_text(self.print("completions", shell))
            status, output = self.ask(shell, "-c", program)
            completes = "_oyez" in output if shell == "zsh" else re.search(r"\bserve\b", output)
            self.checks.check(f"{shell} completes commands", status == 0 and completes, output)

    def prometheus(self):
        rules = self.folder / "rules.yml"
        rules.write_text(self.print("alert-rules"))
        status, output = self.ask("promtool", "check", "rules", "rules.yml")
        self.checks.check("promtool accepts the alert rules", status == 0, output)

        dashboard = json.loads(self.print("grafana-dashboard"))
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
        groups = {"groups": [{"name": "panels", "rules": [
            {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
            for number, expression in enumerate(expressions)]}]}
        rules.write_text(json.dumps(groups))
        status, output = self.ask("promtool", "check", "rules", "rules.yml")
        self.checks.check(f"promtool accepts the {len(expressions)} expressions of the dashboard",
                          len(expressions) > 30 and status == 0, output)

    def configuration(self):
        """Every default is written out, and a server starts with them."""
        lines = self.print("config").splitlines()
        values = dict(line[1:].split("=", 1) for line in lines if re.match(r"#OYEZ_[A-Z_]+=.", line))
        log = self.folder / "log"
        with open(log, "w") as stderr:
            server = Server(self.oyez, stderr, env={**values, "PATH": os.environ["PATH"]})
            try:
                self.checks.check(f"a server starts with the {len(values)} printed defaults",
                                  len(values) > 50 and requests.get(f"{server.root}/readyz", timeout=STEP_S).ok)
                health = [self.oyez, "health", "--ready", "--url", server.root]
                self.checks.check("oyez health finds it ready", self.ask(*health)[0] == 0)
            finally:
                server.stop()
        self.checks.check("oyez health fails without a server", self.ask(*health)[0] == 1, self.ask(*health))
        warnings = [line for line in log.read_text().splitlines() if " WARN " in line]
        self.checks.check("and warns of nothing", not warnings, warnings)

    def api(self):
        """The description is valid, and so are the server's responses by it."""
        document = json.loads(self.print("openapi"))
        try:
            validate(document)
            self.checks.check("the description of the API is valid", True)
        except Exception as error:
            self.checks.check("the description of the API is valid", False, error)
        self.operations = {(method, path) for path, methods in document["paths"].items() for method in methods
                           if method != "parameters"}
        self.document, self.seen = document, set()
        for flags, ask in ((), self.answers), ((), self.bodies), (("--body-timeout-ms=100",), self.late_body), self.tokens(), \
                (("--connections-per-address-max=1",), self.over_limit), (("--connections-max=1",), self.over_capacity):
            with open(self.folder / "log", "w") as stderr:
                server = Server(self.oyez, stderr, flags=flags)
                try:
                    ask(server)
                finally:
                    server.stop()
        described = {(method, path, status) for method, path in self.operations
                     for status in document["paths"][path][method]["responses"]}
        self.checks.check("every described response was received, but that of a system without random bytes",
                          described - self.seen == {("post", "/v1/tickets", "500")}, described - self.seen)

    def compare(self, method, path, target, response, name=""):
        """Compares a response, of `requests` or of http.client, with the description."""
        status, headers = (response.status_code, response.headers) if hasattr(response, "status_code") \
            else (response.status, response.headers)
        self.seen.add((method, path, str(status)))
        name = f"{method.upper()} {target} {name}".strip()
        described = self.document["paths"][path][method]["responses"].get(str(status))
        self.checks.check(f"{name}: {status} is described", described is not None)
        if described is None:
            return
        if "$ref" in described:
            described = self.document["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
        missing = [header for header in described.get("headers", {}) if header not in headers]
        self.checks.check(f"{name}: {status} has the described headers", not missing, missing)
        kind = headers["Content-Type"].split(";")[0]
        content = described["content"].get(kind)
        self.checks.check(f"{name}: the type {kind} is described", content is not None)
        if content and kind == "application/json":
            body = response.json() if hasattr(response, "json") else json.load(response)
            schema = {**content["schema"], "components": self.document["components"]}
            faults = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(body)]
            self.checks.check(f"{name}: the body is as described", not faults, faults)

    def ask_server(self, server, method, path, target, name="", **options):
        # The event stream has no end.
        with requests.request(method, server.root + target, timeout=STEP_S, stream=True, **options) as response:
            self.compare(method, path, target, response, name)

    def ask_all(self, server, name, except_for=(), query="", **options):
        for method, path in sorted(self.operations):
            if path not in except_for:
                target = path.replace("{channel}", "news") + query
                self.ask_server(server, method, path, target, name, **options)

    def answers(self, server):
        text = {"Content-Type": "text/plain"}
        binary = {"Content-Type": "application/octet-stream"}
        for method, path, target, options in [
            ("post", "/v1/publish/{channel}", "/v1/publish/news", {"data": "hi", "headers": text}),
            ("post", "/v1/publish/{channel}", "/v1/publish/news", {"json": {"a": 1}}),
            ("post", "/v1/publish/{channel}", "/v1/publish/news", {"data": b"\xff", "headers": binary}),
            ("post", "/v1/publish/{channel}", "/v1/publish/a%20b", {"data": "hi"}),
            ("post", "/v1/publish/{channel}", "/v1/publish/news", {"data": b"\xff", "headers": text}),
            ("get", "/v1/channels", "/v1/channels?limit=1", {}),
            ("get", "/v1/channels", "/v1/channels?limit=0", {}),
            ("get", "/v1/channels/{channel}", "/v1/channels/news", {}),
            ("get", "/v1/channels/{channel}", "/v1/channels/none", {}),
            ("get", "/v1/channels/{channel}/history", "/v1/channels/news/history?limit=2", {}),
            ("get", "/v1/channels/{channel}/history", "/v1/channels/news/history?since=x", {}),
            ("get", "/sse/{channel}", "/sse/news", {}),
            ("post", "/v1/tickets", "/v1/tickets", {}),
            ("get", "/v1/nodes", "/v1/nodes", {}),
            ("delete", "/v1/connections", "/v1/connections?sub=alice", {}),
            ("get", "/healthz", "/healthz", {}),
            ("get", "/readyz", "/readyz", {}),
            ("get", "/metrics", "/metrics", {}),
        ]:
            self.ask_server(server, method, path, target, options.get("headers", {}).get("Content-Type", ""), **options)
        self.ask_all(server, "with an invalid query", query="?since=x")
        self.ask_all(server, "for another name", headers={"Host": "example.org"})
        for method, path in sorted(self.operations):
            self.ask_raw(server, method, path, "with two origins", ("Origin", "https://a.org"), ("Origin", "https://b.org"))

    def ask_raw(self, server, method, path, name, *headers, body=b""):
        """A request that `requests` does not send."""
        target = path.replace("{channel}", "news")
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=STEP_S)
        connection.putrequest(method.upper(), target)
        for header in headers:
            connection.putheader(*header)
        connection.endheaders(body)
        self.compare(method, path, target, connection.getresponse(), name)
        connection.close()

    def publish_raw(self, server, *request, **options):
        self.ask_raw(server, "post", "/v1/publish/{channel}", *request, **options)

    def late_body(self, server):
        self.publish_raw(server, "without its body", ("Content-Length", "1"))

    def bodies(self, server):
        publish = functools.partial(self.publish_raw, server)
        publish("without a length")
        publish("too large", ("Content-Length", str(1 << 30)))
        publish("compressed", ("Content-Length", "1"), ("Content-Encoding", "gzip"), body=b"x")
        for body in b"x", b"y":
            publish("under one key", ("Content-Length", "1"), ("Idempotency-Key", "k"), body=body)

    def tokens(self):
        secret, metrics_token = self.folder / "secret.key", self.folder / "metrics.token"
        self.ask(self.oyez, "token", "secret", str(secret))
        metrics_token.write_text("0123456789abcdef\n")
        metrics_token.chmod(0o600)

        def ask(server):
            self.ask_all(server, "without a token")
            _, token = self.ask(self.oyez, "token", "new", "--jwt-secret-file", str(secret), "--sub", "operator", "--admin")
            for method, path, target, bearer in ("delete", "/v1/connections", "/v1/connections?sub=alice", token), \
                    ("get", "/metrics", "/metrics", metrics_token.read_text()):
                self.ask_server(server, method, path, target, "with its token",
                                headers={"Authorization": f"Bearer {bearer.strip()}"})

        return (f"--jwt-secret-file={secret}", f"--metrics-token-file={metrics_token}"), ask

    def over_limit(self, server):
        with socket.create_connection(("127.0.0.1", server.port)):
            self.ask_all(server, "on a second connection")

    def over_capacity(self, server):
        with socket.create_connection(("127.0.0.1", server.port)):
            self.ask_all(server, "on a server that is full")


def main(oyez):
    checks = Checks()
    for tool in "man", "bash", "zsh", "fish", "promtool":
        if not shutil.which(tool):
            sys.exit(f"{tool} is missing")
    with tempfile.TemporaryDirectory() as folder:
        Scenario(oyez, pathlib.Path(folder), checks).run()
    print(f"{checks.passed} passed, {checks.failed} failed", flush=True)
    return 0 if checks.passed and not checks.failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
