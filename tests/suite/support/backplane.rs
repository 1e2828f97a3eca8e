//! Servers that a node connects to in place of a Redis, and what the node logs about them.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use super::client::Client;
use super::http::get;
use super::process::{Server, wait_until};

/// Accepts connections on a free port, each in a separate thread.
pub fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, serve) = (listener.local_addr().unwrap().port(), Arc::new(serve));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Starts nodes until one loses its first connection for another reason than a deadline, which a slow machine may miss;
/// returns that reason.
pub fn first_loss(flags: &[&str]) -> String {
    let mut reason = String::new();
    wait_until("a connection is lost before its deadline", || {
        reason = first_loss_of_any_kind(flags);
        !["no reply within ", " timeout", " takes too long"].iter().any(|deadline| reason.contains(deadline))
    });
    reason
}

/// Starts a node, and returns the reason for which its first connection is lost.
pub fn first_loss_of_any_kind(flags: &[&str]) -> String {
    let server = Server::start(flags);
    wait_until("a connection is lost", || {
        let mut client = Client::new(server.connect());
        let metrics = client.ask(get("/metrics")).body;
        metrics.lines().any(|line| {
            line.strip_prefix("oyez_backplane_links_total{result=\"lost\"} ")
                .is_some_and(|count| count != "0")
        })
    });
    let log = server.stop();
    let line = log.lines().find(|line| line.contains("connection lost: ")).unwrap_or_else(|| panic!("{log}"));
    let reason = line.split("connection lost: ").nth(1).unwrap();
    reason.split("; retrying").next().unwrap().to_owned()
}
