//! Safe defaults: access rights of a server that was started without keys or access flags. Real servers on loopback
//! and public addresses; start errors, log lines and responses are compared.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{get, publish};
use crate::support::process::{Server, TEST_TIMEOUT, oyez};

const OPEN: &str = "--anonymous=subscribe=* publish=*";

#[test]
fn loopback_server_without_keys_is_open_and_logs_that_once() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = Server::start_command(oyez(&["serve", "--listen", address]));
        let log = server.stop();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("no key is configured")).collect();
        assert_eq!(lines.len(), 1, "{log}");
    }
}

#[test]
fn public_address_without_key_or_anonymous_flag_is_rejected_at_start() {
    for address in ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0"] {
        let mut child = oyez(&["serve", "--listen", address]).spawn().unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if start.elapsed() > TEST_TIMEOUT {
                child.kill().unwrap();
            }
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("--anonymous 'subscribe=* publish=*'"), "{text}");
        // Only a build that has tokens advises to use them.
        for what in ["--jwt-secret-file", "oyez token secret"] {
            assert_eq!(text.contains(what), cfg!(feature = "jwt"), "{text}");
        }
        assert!(output.stdout.is_empty());
    }
    let server = Server::start_command(oyez(&["serve", "--listen", "0.0.0.0:0", OPEN]));
    let log = server.stop();
    assert!(log.contains("WARN") && log.contains("subscribe to * and publish on *"), "{log}");
}

/// Responses to requests with that host name.
fn statuses(server: &Server, host: &str) -> [u16; 3] {
    let mut client = Client::new(server.connect());
    let named = |request: String| request.replace("Host: localhost", &format!("Host: {host}"));
    let page = client.ask(named(get("/oyez.js")));
    let mut client = Client::new(server.connect());
    let publication = client.ask(named(publish("a", "x")));
    let mut client = Client::new(server.connect());
    client.send(named(frames::upgrade("/ws")).as_bytes());
    let socket = client.head();
    [page.status, publication.status, socket[9..12].parse().unwrap()]
}

/// A page's own name, answered for a second time with 127.0.0.1, makes the page "the same host".
#[test]
fn open_loopback_server_accepts_only_local_host_names() {
    let server = Server::start(&[]);
    for host in [
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "app.localhost:8080",
        "127.0.0.1:1",
        "127.8.8.8",
        "[::1]:8080",
        "[::ffff:127.0.0.1]:8080",
    ] {
        assert_eq!(statuses(&server, host), [200, 200, 101], "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "xlocalhost", "127.0.0.1.nip.io", ""] {
        assert_eq!(statuses(&server, host), [421, 421, 421], "{host}");
    }
    // RFC 9112 3.2.2: of a target in absolute form the authority counts, whatever Host says.
    for (authority, host, status) in
        [("localhost", "evil.example", "200"), ("evil.example", "localhost", "421")]
    {
        let asks =
            format!("GET http://{authority}/oyez.js HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(&server.ask(asks)[9..12], status, "{authority}, Host {host}");
    }
    assert_eq!(server.ask("GET /oyez.js HTTP/1.0\r\n\r\n")[9..12], *"200", "no browser leaves it out");
    let server = Server::start(&[OPEN]);
    assert_eq!(statuses(&server, "evil.example"), [200, 200, 101], "the operator allows anonymous clients");
}
