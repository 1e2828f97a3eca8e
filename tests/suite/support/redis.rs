//! A Redis server of a test's own: on a Unix socket, in a folder of its own, without persistence.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use oyez::backplane::resp::command;

use super::folder::Folder;
use super::process::{TEST_TIMEOUT, wait_until};

pub struct Redis {
    folder: Folder,
    options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// `None`, with a line on stdout, if no Redis is installed; with `TESTS_REQUIRE_REDIS=1` that is a failure.
    pub fn start(options: &[&str]) -> Option<Redis> {
        let is_installed =
            Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok();
        if !is_installed {
            assert!(std::env::var_os("TESTS_REQUIRE_REDIS").is_none(), "redis-server is not installed");
            // Not captured by the harness.
            let _ = writeln!(std::io::stdout(), "skipped: redis-server is not installed");
            return None;
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Redis { folder: Folder::new(), options, child: None };
        redis.restart();
        Some(redis)
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Starts the server again, with the files of the folder.
    pub fn restart(&mut self) {
        self.kill();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--dbfilename", "d.rdb"])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.as_ref())
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
        let is_ready = |reply: Vec<u8>| reply.starts_with(b"+PONG") || reply.starts_with(b"-NOAUTH");
        wait_until("PONG", || self.try_call(&[b"PING"]).is_some_and(is_ready));
    }

    /// Kills the server: nothing is saved.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            // A socket without a server refuses connections, as a stopped server does.
        }
    }

    /// Sends a command and returns the beginning of its reply.
    pub fn call(&self, args: &[&str]) -> String {
        let args: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        String::from_utf8_lossy(&self.try_call(&args).expect("a reply")).into_owned()
    }

    fn try_call(&self, args: &[&[u8]]) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(self.socket()).ok()?;
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let (mut out, mut reply) = (Vec::new(), vec![0; 64 << 10]);
        command(&mut out, args);
        stream.write_all(&out).ok()?;
        let count = stream.read(&mut reply).ok()?;
        reply.truncate(count);
        Some(reply)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
