//! A server in a child process, started for one run. A separate process, so that its memory and processor time are not
//! mixed with those of the load generator.
//!
//! The kernel stops it when its parent ends: see [`END_WITH_PARENT_FLAG`].

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::pin;

/// Time from SIGTERM to SIGKILL. All connections are closed by then, so the server has nothing to drain.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(5);

/// The hidden flag of `oyez serve` that takes the process id of its parent.
pub const END_WITH_PARENT_FLAG: &str = "--end-with-parent";

/// A running `oyez serve`, stopped when it is dropped.
#[derive(Debug)]
pub struct ChildServer {
    child: Child,
    /// Kept open, so that the server never writes to a closed pipe.
    _stdout: BufReader<std::process::ChildStdout>,
    /// `ws://host:port`, or `wss://` if its flags enable TLS.
    pub url: String,
    /// The flags that it was started with.
    pub flags: String,
}

impl ChildServer {
    /// Starts a server on a free port of the loopback address, and waits until it listens.
    ///
    /// # Errors
    /// The server did not start; it has printed the reason on standard error.
    pub fn start(arguments: &[String], pin: Option<usize>) -> io::Result<ChildServer> {
        let program = std::env::current_exe()?;
        let mut command = Command::new(program);
        let own_pid = std::process::id().to_string();
        command.args(["serve", "--listen", "127.0.0.1:0", END_WITH_PARENT_FLAG, &own_pid]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // Environment variables of the operator's own server must not configure the measured one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"OYEZ_"))
        {
            command.env_remove(name);
        }
        if std::env::var_os("RUST_LOG").is_none() {
            // A log line for each close would add load.
            command.env("RUST_LOG", "error");
        }
        // Ctrl-C signals a whole process group, and the server must run until the last messages of the run have
        // arrived.
        command.process_group(0);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut server = ChildServer {
            child,
            _stdout: BufReader::new(stdout),
            url: String::new(),
            flags: arguments.join(" "),
        };
        if let Some(processor) = pin {
            pin::apart(server.pid(), processor)?;
        }
        let mut line = String::new();
        server._stdout.read_line(&mut line)?;
        let url = line.split_whitespace().find(|word| word.contains("://"));
        let Some(url) = url.and_then(|url| url.strip_suffix("/ws")) else {
            return Err(io::Error::other("the server did not start"));
        };
        server.url = url.to_owned();
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the server has exited by itself.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(format!("the server ended: {status}")),
            _ => None,
        }
    }
}

impl Drop for ChildServer {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let polls = END_TIMEOUT.as_millis() / END_POLL.as_millis();
        for _ in 0..polls {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(END_POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
