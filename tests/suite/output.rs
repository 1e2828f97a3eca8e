//! Commands whose output cannot be written. Each is run with standard output or standard error on a pipe without a
//! reader, or on a full disk, and must end with its usual status.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::folder::Folder;
use crate::support::process::{Server, TEST_TIMEOUT, free_port, oyez};
use crate::support::relay::Relay;

/// Returns true if this build has the command.
fn is_built(arguments: &[&str]) -> bool {
    let is_missing = |command, is_built: bool| arguments[0] == command && !is_built;
    !is_missing("bench", cfg!(feature = "bench")) && !is_missing("token", cfg!(feature = "jwt"))
}

/// A pipe whose reader is gone.
fn gone() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_disk() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("ended by signal {:?}", status.signal()))
}

#[test]
fn command_with_closed_stderr_keeps_its_status() {
    let port = free_port();
    let dead = format!("ws://127.0.0.1:{port}");
    let bench = ["bench", "idle", "--connections=3", "--hold=0.1"];
    let failing = [&bench[..], &["--assert=open=7"]].concat();
    for (arguments, expected) in [
        (&["nonsense"][..], 2),
        (&["serve", "--listen=nonsense"], 2),
        (&["pub", "x", "hi", "--url", &dead], 1),
        (&["token", "new"], 2),
        (&bench, 0),
        (&failing, 1),
    ] {
        if !is_built(arguments) {
            continue;
        }
        let status = oyez(arguments).stderr(gone()).status().unwrap();
        assert_eq!(code(status), expected, "{arguments:?}");
        let status = oyez(arguments).stderr(full_disk()).status().unwrap();
        assert_eq!(code(status), expected, "{arguments:?} on a full disk");
    }
}

#[test]
fn command_with_closed_stdout_ends_quietly_and_with_full_disk_fails() {
    let folder = Folder::new();
    let secret = folder.file("secret", &"s".repeat(32));
    let token = ["token", "new", "--admin", "--jwt-secret-file", &secret];
    let bench = ["bench", "idle", "--connections=3", "--hold=0.1"];
    let failing = [&bench[..], &["--assert=open=7"]].concat();
    for (arguments, no_reader, no_room) in [
        (&["--help"][..], 0, 1),
        (&["serve", "--help"], 0, 1),
        (&["--version"], 0, 1),
        (&token, 0, 1),
        (&bench, 0, 1),
        // Assertions count, even if the output is not read.
        (&failing, 1, 1),
    ] {
        if !is_built(arguments) {
            continue;
        }
        let output = oyez(arguments).stdout(gone()).output().unwrap();
        assert_eq!(code(output.status), no_reader, "{arguments:?} {output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked") && !stderr.contains("standard output"), "{stderr}");
        let output = oyez(arguments).stdout(full_disk()).output().unwrap();
        assert_eq!(code(output.status), no_room, "{arguments:?} {output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("standard output: No space left") || arguments == failing, "{stderr}");
    }
}

#[test]
fn sub_with_closed_stderr_reconnects_without_loss() {
    let server = Server::start(&[]);
    let proxy = Relay::start(server.address);
    let url = proxy.url();
    let mut child = oyez(&["sub", "x", "--count=2", "--url", &url]).stderr(gone()).spawn().unwrap();
    let publish = |text: &str| {
        assert!(oyez(&["pub", "x", text, "--url", &server.url()]).status().unwrap().success());
    };
    let start = Instant::now();
    let subscribers = || {
        let response =
            server.ask("GET /v1/channels/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        response.contains("\"subscribers\":1")
    };
    while !subscribers() {
        assert!(start.elapsed() < TEST_TIMEOUT);
        thread::sleep(Duration::from_millis(5));
    }
    publish("one");
    proxy.disconnect_all();
    publish("two");
    let status = child.wait().unwrap();
    assert_eq!(code(status), 0);
    let mut out = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut out).unwrap();
    assert_eq!(out, "one\ntwo\n");
}

#[test]
fn server_with_closed_output_serves() {
    for filters in ["info", "nonsense=nonsense=nonsense"] {
        for (stdout, stderr) in [(gone(), gone()), (full_disk(), full_disk())] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
            let mut command = oyez(&["serve", "--listen", &address.to_string()]);
            let mut child = command.env("RUST_LOG", filters).stdout(stdout).stderr(stderr).spawn().unwrap();
            let start = Instant::now();
            while TcpStream::connect(address).is_err() {
                assert!(start.elapsed() < TEST_TIMEOUT && child.try_wait().unwrap().is_none());
                thread::sleep(Duration::from_millis(5));
            }
            // SIGHUP, and the end: each is logged.
            for signal in ["-HUP", "-TERM"] {
                let pid = child.id().to_string();
                assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
            }
            assert_eq!(code(child.wait().unwrap()), 0);
        }
    }
}
