//! Several processes on one port (`--reuse-port`). Method: real servers that share a log on a real Redis, or that wait
//! for a Redis that does not exist, where only the port matters.

use std::collections::HashSet;
use std::process::Output;

use crate::support::client::Client;
use crate::support::frames;
use crate::support::process::{Server, free_port, oyez, wait_until};
use crate::support::redis::Redis;

/// A Redis that does not exist: the server listens, and responds with 503.
const NO_REDIS: &str = "unix:/nonexistent/redis.sock";

fn serve(listen: &str, flags: &[&str]) -> Server {
    Server::start_command(oyez(&[&["serve", "--listen", listen], flags].concat()))
}

fn fails(listen: &str, flags: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        oyez(&[&["serve", "--listen", listen], flags].concat()).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// A client of `oyez.v1`, and the node that has accepted its connection.
fn connected(server: &Server) -> (Client, String) {
    let mut client = Client::new(server.connect());
    client.send(frames::upgrade_v1("/ws").as_bytes());
    assert!(client.head().starts_with("HTTP/1.1 101"));
    let hello: serde_json::Value = serde_json::from_str(&client.text()).unwrap();
    (client, hello["node"].as_str().unwrap().to_owned())
}

#[test]
fn servers_with_reuse_port_share_the_port_and_the_channels() {
    let Some(redis) = Redis::start(&[]) else { return };
    let (address, backplane) =
        (format!("127.0.0.1:{}", free_port()), format!("unix:{}", redis.socket().display()));
    let servers = [(); 2].map(|()| serve(&address, &["--reuse-port", "--backplane", &backplane]));
    // Either process may respond, and each is ready once it has read the log.
    let is_ready = || servers[0].ask("GET /readyz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200");
    wait_until("20 responses of ready servers in a row", || (0..20).all(|_| is_ready()));

    let (mut clients, mut nodes) = (Vec::new(), HashSet::new());
    wait_until("connections at both servers", || {
        let (mut client, node) = connected(&servers[0]);
        client.send_text(r#"{"type":"subscribe","ch":"a"}"#);
        assert!(client.text().contains(r#""type":"subscribed""#));
        clients.push(client);
        nodes.insert(node);
        nodes.len() == 2
    });
    clients[0].send_text(r#"{"type":"publish","ch":"a","text":"hello","ref":1}"#);
    for client in &mut clients {
        while !client.text().contains(r#""text":"hello""#) {}
    }
}

#[test]
fn second_server_on_a_port_fails_if_one_of_them_has_no_reuse_port() {
    let shared = serve("127.0.0.1:0", &["--reuse-port", "--backplane", NO_REDIS]);
    let (status, error) = fails(&shared.address.to_string(), &[]);
    assert_eq!(status, Some(1), "{error}");
    assert!(
        error.contains("cannot listen on") && error.contains("share a port if all have --reuse-port"),
        "{error}"
    );
    let alone = serve("127.0.0.1:0", &[]);
    let (status, error) = fails(&alone.address.to_string(), &["--reuse-port", "--backplane", NO_REDIS]);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("another server uses it without --reuse-port"), "{error}");
}

#[test]
fn port_0_with_reuse_port_is_another_port_for_each_server() {
    let servers = [(); 2].map(|()| serve("127.0.0.1:0", &["--reuse-port", "--backplane", NO_REDIS]));
    assert_ne!(servers[0].address, servers[1].address);
}

#[test]
fn reuse_port_without_a_backplane_is_rejected() {
    let (status, error) = fails("127.0.0.1:0", &["--reuse-port"]);
    assert_eq!(status, Some(2), "{error}");
    assert!(error.contains("--reuse-port needs --backplane"), "{error}");
}
