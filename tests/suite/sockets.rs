//! Several listening sockets and Unix sockets. Method: real servers, which listen on TCP first, where the helpers find
//! them; the clients of Unix sockets are those of TCP, since both are descriptors.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::http::{get, publish, request};
use crate::support::process::{Server, TEST_TIMEOUT, free_port, oyez};

const TCP: &str = "127.0.0.1:0";

/// A server on a free port and on a Unix socket.
fn start(socket: &str, flags: &[&str]) -> Server {
    let unix = format!("unix:{socket}");
    Server::start_command(oyez(&[&["serve", "--listen", TCP, "--listen", &unix], flags].concat()))
}

fn connect(socket: impl AsRef<Path>) -> Client {
    let stream = TcpStream::from(OwnedFd::from(UnixStream::connect(socket).unwrap()));
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    Client::new(stream)
}

fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = oyez(&[&["serve"], arguments].concat()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn messages_reach_the_clients_of_all_listeners() {
    let folder = Folder::new();
    let sockets = ["one.sock", "two.sock"].map(|name| folder.path(name));
    let mut command = oyez(&["serve"]);
    command.env("OYEZ_LISTEN", format!("{TCP},unix:{},mode=0600,unix:{}", sockets[0], sockets[1]));
    let server = Server::start_command(command);
    let mode = |socket: &str| std::fs::metadata(socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sockets[0]), 0o600);
    let mut clients = [server.join("/ws/news"), connect(&sockets[0]), connect(&sockets[1])];
    clients[1..].iter_mut().for_each(|client| client.join("/ws/news"));
    for publisher in 0..clients.len() {
        clients[publisher].send_text(&format!("from {publisher}"));
        for client in &mut clients {
            assert_eq!(client.text(), format!("from {publisher}"));
        }
    }
    drop(clients);
    let log = server.stop();
    assert_eq!(log.matches("peer=unix: ").count(), 2, "{log}");
    assert_eq!(log.matches("peer=127.0.0.1:").count(), 1, "{log}");
    assert!(sockets.iter().all(|socket| !Path::new(socket).exists()), "files of a server that has ended");
}

#[test]
fn socket_file_of_a_killed_server_is_replaced_and_that_of_a_running_one_is_not() {
    let folder = Folder::new();
    let socket = folder.path("oyez.sock");
    // The server is killed when it is dropped.
    drop(start(&socket, &[]));
    assert!(Path::new(&socket).exists());
    let server = start(&socket, &[]);
    let (status, error) = fails(&["--listen", &format!("unix:{socket}")]);
    assert_eq!(status, Some(1), "{error}");
    let expected = format!("oyez: cannot listen on unix:{socket}: ");
    assert!(error.starts_with(&expected) && error.contains("another process listens on it"), "{error}");
    assert_eq!(connect(&socket).ask(get("/healthz")).status, 200);
    let log = server.stop();
    assert!(log.contains(&format!("unix:{socket}: no process listens on this socket; removed")), "{log}");
}

#[test]
fn unusable_path_is_an_error_that_says_what_to_do() {
    let folder = Folder::new();
    let file = folder.file("notes", "precious");
    let long = folder.path(&"x".repeat(120));
    for (path, advice) in
        [(&file[..], "not a socket"), ("/nonexistent/oyez.sock", "create its directory"), (&long, "SUN_LEN")]
    {
        let (status, error) = fails(&["--listen", &format!("unix:{path}")]);
        assert_eq!(status, Some(1), "{error}");
        assert!(
            error.contains(&format!("cannot listen on unix:{path}: ")) && error.contains(advice),
            "{error}"
        );
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    for (list, advice) in [
        ("8080,mode=0660", "mode= follows the Unix socket"),
        ("unix:/x,mode=rw", "mode=0660"),
        ("unix:@oyez", "abstract sockets have no permissions"),
    ] {
        let (status, error) = fails(&["--listen", list]);
        assert_eq!(status, Some(2), "{error}");
        assert!(error.contains(advice) && error.contains("--listen"), "{error}");
    }
}

#[test]
fn one_public_address_of_several_needs_access_control() {
    let folder = Folder::new();
    let unix = format!("unix:{}", folder.path("oyez.sock"));
    let (status, error) = fails(&["--listen", &unix, "--listen", TCP, "--listen", "0.0.0.0:0"]);
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("0.0.0.0:0 is reachable from other machines"), "{error}");
}

#[test]
fn all_addresses_of_ipv4_and_of_ipv6_can_be_listed() {
    let port = free_port();
    for list in [
        format!("0.0.0.0:{port},[::]:{port}"),
        format!("[::]:{port},127.0.0.1:{port}"),
        format!("[::]:{port}"),
    ] {
        let server = Server::start_command(oyez(&[
            "serve",
            "--listen",
            &list,
            "--anonymous",
            "subscribe=* publish=*",
        ]));
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            assert_eq!(Client::new(stream).ask(get("/healthz")).status, 200, "{list}");
        }
        server.stop();
    }
}

#[test]
fn commands_reach_a_server_by_its_unix_socket() {
    let folder = Folder::new();
    let socket = folder.path("oyez.sock");
    let server = start(&socket, &[]);
    let url = format!("unix:{socket}");
    let run = |arguments: &[&str]| {
        let output = oyez(&[arguments, &["--url", &url]].concat()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["health"]), "ok\n");
    run(&["pub", "news", "by socket"]);
    assert!(run(&["sub", "news", "--since", "earliest", "--count", "1"]).contains("by socket"));
    drop(server);
    let output = oyez(&["health", "--url", &url]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().starts_with(&format!("oyez: {url}: ")));
}

#[test]
fn trusted_proxy_on_a_unix_socket_names_the_client() {
    for (flags, peer) in [
        (&["--trusted-proxy", "unix:"][..], "peer=203.0.113.9 "),
        (&["--trusted-proxy", "::/0"], "peer=unix: "),
    ] {
        let folder = Folder::new();
        let socket = folder.path("oyez.sock");
        let server = start(&socket, flags);
        let mut client = connect(&socket);
        let head = request("GET", "/sse/news", "X-Forwarded-For: 192.0.2.66, 203.0.113.9\r\n");
        client.send(head.as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 200 "));
        drop(client);
        let log = server.stop();
        assert!(log.contains(peer), "{flags:?}: {log}");
    }
}

#[test]
fn proxy_header_on_a_unix_socket_names_the_client() {
    let folder = Folder::new();
    let socket = folder.path("oyez.sock");
    let server = start(&socket, &["--trusted-proxy", "unix:", "--proxy-protocol"]);
    let mut client = connect(&socket);
    let addresses = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90];
    client.send(&[&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat());
    client.join("/ws/news");
    drop(client);
    // TCP connections are not trusted, and need no header.
    server.join("/ws/news");
    let log = server.stop();
    assert!(log.contains("peer=203.0.113.9:4711 "), "{log}");
}

#[test]
fn clients_of_unix_sockets_share_the_limits_per_address() {
    let folder = Folder::new();
    let socket = folder.path("oyez.sock");
    let server = start(&socket, &["--connections-per-address-max", "1"]);
    let mut first = connect(&socket);
    first.join("/ws/news");
    assert_eq!(connect(&socket).ask(get("/healthz")).status, 429);
    // Clients of TCP are counted separately.
    let response = Client::new(server.connect()).ask(publish("news", "hi"));
    assert_eq!(response.status, 200);
    assert_eq!(first.text(), "hi");
}
