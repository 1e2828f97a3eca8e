//! Runs the real binary: the `oyez` command, servers under test with generous deadlines, and their logs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::tls::{self, Identity, Tunnel};

/// How long a test waits for a condition before it fails: longer than a machine that is slow, busy, or paused for
/// minutes may take. A test that passes never waits for it.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Deadlines of servers under test, twice [`TEST_TIMEOUT`], so that a slow machine never breaks one that a test
/// is not about. A test that is about a deadline sets its flag, which overrides the variable. No pings either:
/// a client that waits for its turn in a test would answer late.
pub fn deadlines() -> impl Iterator<Item = (&'static str, &'static str)> {
    let part = |name: &str| match name {
        "OYEZ_AUTH_TIMEOUT_MS" | "OYEZ_TOKEN_GRACE_MS" => Some("jwt"),
        _ if name.starts_with("OYEZ_BACKPLANE_") => Some("backplane"),
        _ => None,
    };
    DEADLINES.iter().copied().filter(move |(name, _)| part(name).is_none_or(has_part))
}

const DEADLINES: &[(&str, &str)] = &[
    ("OYEZ_PING_INTERVAL_MS", "0"),
    ("OYEZ_PONG_TIMEOUT_MS", "600000"),
    ("OYEZ_HANDSHAKE_TIMEOUT_MS", "600000"),
    ("OYEZ_BODY_TIMEOUT_MS", "600000"),
    ("OYEZ_MESSAGE_TIMEOUT_MS", "600000"),
    ("OYEZ_KEEP_ALIVE_MS", "600000"),
    ("OYEZ_AUTH_TIMEOUT_MS", "600000"),
    ("OYEZ_TOKEN_GRACE_MS", "600000"),
    ("OYEZ_SLOW_TIMEOUT_MS", "600000"),
    ("OYEZ_REPLAY_WAIT_MS", "600000"),
    ("OYEZ_REPLAY_TAKE_MS", "600000"),
    ("OYEZ_BACKPLANE_PUBLISH_TIMEOUT_MS", "600000"),
    ("OYEZ_BACKPLANE_HEARTBEAT_TIMEOUT_MS", "600000"),
    ("OYEZ_USER_TIMEOUT_MS", "600000"),
];

/// The cargo features, and whether the tests were compiled with them.
pub const FEATURES: [(&str, bool); 9] = [
    ("backplane", cfg!(feature = "backplane")),
    ("bench", cfg!(feature = "bench")),
    ("console", cfg!(feature = "console")),
    ("deflate", cfg!(feature = "deflate")),
    ("history-file", cfg!(feature = "history-file")),
    ("jemalloc", cfg!(feature = "jemalloc")),
    ("jwt", cfg!(feature = "jwt")),
    ("print", cfg!(feature = "print")),
    ("tls", cfg!(feature = "tls")),
];

/// Returns true if the program under test has the part of a cargo feature.
pub fn has_part(feature: &str) -> bool {
    let (_, is_compiled) = FEATURES.iter().find(|(name, _)| *name == feature).unwrap();
    let missing = std::env::var("OYEZ_SUITE_WITHOUT").unwrap_or_default();
    *is_compiled && feature != missing
}

/// Another program with the same features, such as the smallest, or without the one that `OYEZ_SUITE_WITHOUT` names.
fn other_program() -> Option<OsString> {
    std::env::var_os("OYEZ_SUITE_PROGRAM")
}

/// Returns true if the program under test is the one that cargo has built with the tests.
pub fn is_own_program() -> bool {
    other_program().is_none()
}

/// The `oyez` command, with [`deadlines`].
pub fn oyez(arguments: &[&str]) -> Command {
    let mut command = Command::new(other_program().unwrap_or_else(|| env!("CARGO_BIN_EXE_oyez").into()));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The environment of the machine must not change the test.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OYEZ_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    // The help would show their values.
    if !arguments.contains(&"--help") {
        command.envs(deadlines());
    }
    command
}

/// A server that is started with a listening socket, as a service manager starts it.
pub fn activated(socket: Stdio, flags: &[&str]) -> Command {
    let script =
        "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=oyez.socket; exec \"$@\"";
    let server = oyez(&[&["serve"], flags].concat());
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(server.get_program()).args(server.get_args());
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The command with its log in a file, which a test can read while the server runs.
pub fn logging_to(log: &str, server: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 2>\"$LOG\""]).arg(server.get_program()).args(server.get_args());
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("LOG", log).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A port of the loopback address that nothing listens on. It is below the range from which the kernel gives ports to
/// sockets that ask for any (32768 and up by default): there, another test could be given it before it is used. Checks
/// that run side by side with these tests use ports from 20,000.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(97);
        let port = (FIRST + next % PORTS) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until the condition holds; panics with `what` if that takes longer than [`TEST_TIMEOUT`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TEST_TIMEOUT, "timed out: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The TLS tunnel for tests that use plain connections.
    tunnel: Option<Tunnel>,
    log: Option<thread::JoinHandle<String>>,
}

impl Server {
    /// Starts `oyez serve` on a free port, with further flags.
    pub fn start(flags: &[&str]) -> Server {
        if tls::is_enabled_for_suite() {
            return Server::start_behind_tunnel(flags);
        }
        Server::start_command(oyez(&[&["serve", "--listen", "127.0.0.1:0"], flags].concat()))
    }

    /// The same, with TLS, and a tunnel to it for plain connections.
    fn start_behind_tunnel(flags: &[&str]) -> Server {
        let identity = Identity::new();
        let mut server = Server::start_tls(&identity, flags);
        let tunnel = Tunnel::start(server.address, identity);
        server.address = tunnel.address;
        server.tunnel = Some(tunnel);
        server
    }

    /// A server that exposes each metric: it has a certificate, and a log, which cannot be reached.
    pub fn with_all_metrics() -> Server {
        Server::start_behind_tunnel(&["--backplane=unix:/nonexistent"])
    }

    /// The same as [`Server::start`], with TLS.
    pub fn start_tls(identity: &Identity, flags: &[&str]) -> Server {
        let mut command = oyez(&["serve", "--listen", "127.0.0.1:0"]);
        command.args(identity.flags()).args(flags);
        Server::start_command(command)
    }

    /// Starts a command that ends up as a server.
    pub fn start_command(mut command: Command) -> Server {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = collect(child.stderr.take().unwrap());
        let address = line.split("://").nth(1).and_then(|rest| rest.split('/').next());
        let Some(address) = address.and_then(|text| text.parse().ok()) else {
            panic!("{line:?}, {}", log.join().unwrap());
        };
        Server { child, address, tunnel: None, log: Some(log) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// A TCP connection without any bytes.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    }

    /// A client that has joined a channel.
    pub fn join(&self, path: &str) -> Client {
        let mut client = Client::new(self.connect());
        client.join(path);
        client
    }

    /// The response to a request, up to the end of file.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = Client::new(self.connect());
        client.send(request.as_ref());
        client.rest_as_text()
    }

    /// The response to a request followed by the end of file.
    pub fn request_then_eof(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = Client::new(self.connect());
        client.send(request.as_ref());
        client.send_eof();
        client.rest_as_text()
    }

    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end: the exit status and the log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.log.take().unwrap().join().unwrap());
            }
            assert!(start.elapsed() < TEST_TIMEOUT, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and the log.
    pub fn stop(self) -> String {
        self.signal("TERM");
        let (status, log) = self.wait();
        assert!(status.success(), "{status}: {log}");
        log
    }

    /// Resident memory without pages of the program's file, which come in as its code is first run.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        1_024 * line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // proc(5): after the name in parentheses, utime and stime are the 12th and 13th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Waits for a second in which the server uses at most a twentieth of a processor. A server that does not sleep has
    /// none; one that does may be busy at first with what was sent before, on a slow machine for long.
    pub fn sleeps(&self) {
        wait_until("a second in which the server sleeps", || {
            let (before, start) = (self.cpu_ticks(), Instant::now());
            thread::sleep(Duration::from_secs(1));
            let ticks = (self.cpu_ticks() - before) as f64;
            ticks <= 5.0 * start.elapsed().as_secs_f64()
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut stream: ChildStderr) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    })
}

/// A number in the line that the server logs at its end.
pub fn counter(log: &str, name: &str) -> u64 {
    let line = log.lines().rfind(|line| line.contains(" ended accepted=")).unwrap_or_else(|| panic!("{log}"));
    let prefix = format!("{name}=");
    line.split(' ').find_map(|word| word.strip_prefix(&prefix)).map_or(0, |value| value.parse().unwrap())
}
