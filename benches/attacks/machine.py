"""The server in a separate process and memory cgroup, and its memory use."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
START_LIMIT_S = 60


class Cgroup:
    """A memory cgroup, of the first or the second version. Without the right to make one it limits nothing."""

    def __init__(self, limit_bytes):
        self.path, self.version = None, None
        if limit_bytes is None or os.geteuid() != 0:
            return
        if (V1 / "memory.limit_in_bytes").exists():
            self.version, root = 1, V1
        elif "memory" in self._controllers():
            self.version, root = 2, V2
        else:
            return
        path = root / f"oyez-attacks-{os.getpid()}"
        try:
            path.mkdir(exist_ok=True)
            if self.version == 1:
                (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
                self._try(path / "memory.memsw.limit_in_bytes", str(limit_bytes))
            else:
                (path / "memory.max").write_text(str(limit_bytes))
                self._try(path / "memory.swap.max", "0")
        except OSError:
            self.version = None
            return
        self.path = path

    @staticmethod
    def _controllers():
        try:
            return (V2 / "cgroup.subtree_control").read_text().split()
        except OSError:
            return []

    @staticmethod
    def _try(path, text):
        try:
            path.write_text(text)
        except OSError:
            pass

    def enter(self):
        """Called in the server's process before it begins."""
        try:
            # A higher priority than other programs, a lower one than the healthy clients.
            os.nice(-5)
        except OSError:
            pass
        if self.path:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def begin_peak(self):
        if self.version == 1:
            self._try(self.path / "memory.max_usage_in_bytes", "0")
        elif self.version == 2:
            self._try(self.path / "memory.peak", "0")

    def peak_bytes(self):
        name = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}.get(self.version)
        try:
            return int((self.path / name).read_text()) if name else None
        except OSError:
            return None

    def remove(self):
        for _ in range(100):
            if not self.path:
                return
            try:
                self.path.rmdir()
                self.path = None
            except OSError:
                time.sleep(0.05)


class Server:
    """A running server with all flags at their defaults except `flags`."""

    def __init__(self, program, flags, cgroup):
        self.cgroup = cgroup
        self.folder = Path(tempfile.mkdtemp(prefix="oyez-attacks-"))
        self.log = open(self.folder / "log", "w")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OYEZ_")}
        self.process = subprocess.Popen([program, "serve", "--listen", "127.0.0.1:0", *self._flags(flags)],
                                        stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True,
                                        preexec_fn=cgroup.enter)
        line = self.process.stdout.readline()
        found = re.search(r"wss?://[^/\s]+:(\d+)", line)
        if not found:
            self.process.wait()
            raise SystemExit(f"the server did not start: {(self.folder / 'log').read_text()[-2000:]}")
        self.port = int(found.group(1))

    def _flags(self, flags):
        """Puts files in place of their names: {tls} is a certificate with its key, {secret} a key for tokens."""
        for flag in flags:
            if flag == "{tls}":
                certificate, key = self.folder / "certificate.pem", self.folder / "key.pem"
                if not shutil.which("openssl"):
                    raise SystemExit("openssl is missing, which makes the certificate")
                subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                                "-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
                               check=True, capture_output=True)
                yield from ("--tls-cert", str(certificate), "--tls-key", str(key))
            elif flag == "{secret}":
                path = self.folder / "secret"
                path.write_bytes(SECRET)
                path.chmod(0o600)
                yield from ("--jwt-secret-file", str(path), "--anonymous", "subscribe=* publish=*")
            else:
                yield flag

    def lives(self):
        return self.process.poll() is None

    def status(self, name):
        """A size of /proc/PID/status in bytes; None if the server is gone."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
        return int(found.group(1)) * 1024 if found else None

    def begin_peak(self):
        self.cgroup.begin_peak()
        try:
            # proc_pid_clear_refs(5): 5 resets the peak to the current resident size.
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        except OSError:
            pass

    def stop(self):
        for sign in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.lives():
                self.process.send_signal(sign)
                try:
                    self.process.wait(2)
                except subprocess.TimeoutExpired:
                    pass
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
        text = (self.folder / "log").read_text(errors="replace")
        shutil.rmtree(self.folder, ignore_errors=True)
        return text


SECRET = b"0123456789abcdef0123456789abcdef"
