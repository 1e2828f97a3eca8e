//! The service manager: notifications, and listening sockets that it passes. Method: the test is the manager of real
//! servers, with a datagram socket, and a shell that puts a listening socket where sd_listen_fds(3) expects it.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::frames;
use crate::support::http::get;
use crate::support::process::{Server, TEST_TIMEOUT, activated, logging_to, oyez, wait_until};

const ANY: &str = "127.0.0.1:0";

/// The socket of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new(socket: UnixDatagram) -> Manager {
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        Manager(socket)
    }

    /// The next message that contains the text.
    fn next(&self, text: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{text}: {error}"));
            let message = str::from_utf8(&buffer[..length]).unwrap();
            if message.contains(text) {
                return message.to_owned();
            }
        }
    }
}

#[test]
fn service_manager_is_notified_of_each_state() {
    let folder = Folder::new();
    let path = folder.path("notify");
    let name = format!("oyez-test-{}", std::process::id());
    for (socket, address) in [
        (UnixDatagram::bind(&path).unwrap(), path.clone()),
        (
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            format!("@{name}"),
        ),
    ] {
        let manager = Manager::new(socket);
        let mut command = oyez(&["serve", "--listen", ANY]);
        command.env("NOTIFY_SOCKET", &address);
        let server = Server::start_command(command);
        assert_eq!(manager.next("READY=1"), "READY=1");
        assert_eq!(manager.next("STATUS="), "STATUS=0 connections, 0 subscribers, 0 channels");
        let _client = server.join("/ws/news");
        assert_eq!(manager.next("STATUS=1"), "STATUS=1 connection, 1 subscriber, 1 channel");
        server.signal("HUP");
        let reloading = manager.next("RELOADING=1");
        let micros = reloading.split("\nMONOTONIC_USEC=").nth(1).unwrap().split('\n').next().unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0, "{reloading}");
        manager.next("READY=1");
        server.signal("TERM");
        manager.next("STOPPING=1");
        assert!(server.wait().0.success());
    }
}

#[test]
fn reload_during_the_drain_announces_no_ready() {
    let folder = Folder::new();
    let path = folder.path("notify");
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = oyez(&["serve", "--listen", ANY, "--close-timeout-ms=600000", "--drain-seconds=600"]);
    command.env("NOTIFY_SOCKET", &path);
    let log = folder.path("log");
    let server = Server::start_command(logging_to(&log, &command));
    manager.next("READY=1");
    // A client that does not answer the close frame, so that the drain goes on.
    let mut client = server.join("/ws/news");
    server.signal("TERM");
    assert_eq!(client.frame().close_code().0, 4200);
    manager.next("STOPPING=1");
    server.signal("HUP");
    wait_until("the reload", || std::fs::read_to_string(&log).unwrap().contains("SIGHUP: nothing to reload"));
    client.send(&frames::close(4200, ""));
    drop(client);
    server.wait();
    manager.0.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    while let Ok(length) = manager.0.recv(&mut buffer) {
        let message = str::from_utf8(&buffer[..length]).unwrap();
        assert!(!message.contains("READY=1") && !message.contains("RELOADING=1"), "{message}");
    }
}

#[cfg(all(feature = "backplane", feature = "history-file"))]
#[test]
fn ready_is_sent_when_clients_are_served() {
    let folder = Folder::new();
    let (path, history) = (folder.path("notify"), folder.path("history"));
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let port = crate::support::process::free_port();
    // A log that cannot be reached does not delay `READY=1`.
    for flags in [["--history-file", &history], ["--backplane", "unix:/nonexistent"]] {
        let mut command = oyez(&[&["serve", "--listen", &port.to_string()], &flags[..]].concat());
        let mut child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
        manager.next("READY=1");
        let stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        assert_eq!(Client::new(stream).ask(get("/healthz")).status, 200);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn watchdog_of_this_process_is_sent_by_an_idle_server() {
    let folder = Folder::new();
    let path = folder.path("notify");
    let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
    let mut command = oyez(&["serve", "--listen", ANY]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000");
    let server = Server::start_command(command);
    for _ in 0..3 {
        manager.next("WATCHDOG=1");
    }
    drop(server);
    // The variables are those of another process, which has passed them on.
    let manager = Manager::new(UnixDatagram::bind(folder.path("other")).unwrap());
    let mut command = oyez(&["serve", "--listen", ANY]);
    command.env("NOTIFY_SOCKET", folder.path("other")).env("WATCHDOG_USEC", "20000").env("WATCHDOG_PID", "1");
    let server = Server::start_command(command);
    server.sleeps();
    server.signal("TERM");
    let mut buffer = [0; 4096];
    loop {
        let length = manager.0.recv(&mut buffer).unwrap();
        let message = str::from_utf8(&buffer[..length]).unwrap();
        assert!(!message.contains("WATCHDOG"), "{message}");
        if message.contains("STOPPING") {
            break;
        }
    }
}

#[test]
fn passed_socket_is_used_instead_of_the_default_or_of_the_same_address() {
    let socket = TcpListener::bind(ANY).unwrap();
    let address = socket.local_addr().unwrap();
    let shared = || Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
    for flags in [&[][..], &["--listen", &address.to_string()]] {
        let server = Server::start_command(activated(shared(), flags));
        assert_eq!(server.address, address);
        let mut client = server.join("/ws/news");
        client.send_text("hi");
        assert_eq!(client.text(), "hi");
        // A client that connects while no server runs waits for the next one.
        server.stop();
        let waiting = std::net::TcpStream::connect(address).unwrap();
        waiting.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        let next = Server::start_command(activated(shared(), flags));
        assert_eq!(Client::new(waiting).ask(get("/healthz")).status, 200);
        drop(next);
    }
    // Another address is listened on in addition.
    let server = Server::start_command(activated(shared(), &["--listen", ANY]));
    assert_eq!(server.address, address, "port 0 is any port");
    drop(server);
    let server = Server::start_command(activated(shared(), &["--listen", "[::1]:0"]));
    assert!(server.address.is_ipv6());
    let stream = std::net::TcpStream::connect(address).unwrap();
    assert_eq!(Client::new(stream).ask(get("/healthz")).status, 200);
    assert_eq!(Client::new(server.connect()).ask(get("/healthz")).status, 200);
}

#[test]
fn file_of_a_passed_unix_socket_stays() {
    let folder = Folder::new();
    let path = folder.join("oyez.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let shared = Stdio::from(std::os::fd::OwnedFd::from(socket.try_clone().unwrap()));
    let server = Server::start_command(activated(shared, &["--listen", ANY]));
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let stream = std::net::TcpStream::from(std::os::fd::OwnedFd::from(stream));
    assert_eq!(Client::new(stream).ask(get("/healthz")).status, 200);
    server.stop();
    assert!(path.exists());
}

#[test]
fn passed_socket_that_cannot_be_used_is_an_error() {
    let connected = TcpListener::bind(ANY).unwrap();
    let connected = std::net::TcpStream::connect(connected.local_addr().unwrap()).unwrap();
    let datagram = std::net::UdpSocket::bind(ANY).unwrap();
    let public = TcpListener::bind("0.0.0.0:0").unwrap();
    for (socket, status, text) in [
        (
            std::os::fd::OwnedFd::from(connected),
            1,
            "(oyez.socket) of the service manager cannot be used: it does not listen",
        ),
        (datagram.into(), 1, "it must be a listening TCP or Unix stream socket"),
        (public.into(), 2, "is reachable from other machines"),
    ] {
        let (mut child, start) = (activated(socket.into(), &[]).spawn().unwrap(), Instant::now());
        while child.try_wait().unwrap().is_none() && start.elapsed() < TEST_TIMEOUT {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Ends a server that has accepted the socket.
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(status) && error.contains(text), "{error}");
    }
}

#[test]
fn sockets_of_another_process_are_ignored() {
    let socket = TcpListener::bind(ANY).unwrap();
    let mut command = oyez(&["serve", "--listen", ANY]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let server = Server::start_command(command);
    assert_ne!(server.address, socket.local_addr().unwrap());
}
