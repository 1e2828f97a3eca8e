//! A node whose log is reached over TLS (`rediss://`). Method: TLS in front of a real Redis for the valid case; servers
//! with a wrong certificate or protocol, and the line that the node logs, for the invalid ones.

use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;

use rcgen::{DnType, date_time_ymd};
use rustls::{ServerConnection, Stream};

use crate::support::backplane::{self, listen};
use crate::support::client::Client;
use crate::support::http::{get, publish};
use crate::support::process::{Server, TEST_TIMEOUT, free_port, oyez, wait_until};
use crate::support::redis::Redis;
use crate::support::tls::{Identity, Terminator};

/// A server that completes a TLS handshake on each connection, and then sends nothing.
fn tls_server(identity: &Identity) -> u16 {
    let config = Arc::new(identity.server());
    listen(move |mut stream| {
        let mut session = ServerConnection::new(config.clone()).unwrap();
        let _ = Stream::new(&mut session, &mut stream).read(&mut [0; 4096]);
    })
}

/// The reason for which a node's first connection is lost.
fn loss(url: &str, ca: &Identity) -> String {
    let ca = format!("--backplane-tls-ca={}", ca.certificate().display());
    backplane::first_loss(&[&format!("--backplane={url}"), &ca])
}

#[test]
fn certificate_of_an_unknown_issuer_is_rejected() {
    let port = tls_server(&Identity::new());
    let other = Identity::with(|params| params.distinguished_name.push(DnType::CommonName, "other"));
    let why = loss(&format!("rediss://localhost:{port}"), &other);
    let advice = "trust its authority with --backplane-tls-ca FILE";
    assert_eq!(why, format!("localhost:{port}: tls: certificate of an unknown issuer: {advice}"));
}

#[test]
fn certificate_for_another_name_is_rejected() {
    let identity = Identity::with(|params| {
        *params = rcgen::CertificateParams::new(["redis.example.com".to_owned()]).unwrap();
    });
    let port = tls_server(&identity);
    for host in ["localhost", "127.0.0.1"] {
        let why = loss(&format!("rediss://{host}:{port}"), &identity);
        assert_eq!(why, format!("{host}:{port}: tls: certificate for another host name"));
    }
}

#[test]
fn expired_certificate_is_rejected() {
    let identity = Identity::with(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let port = tls_server(&identity);
    let why = loss(&format!("rediss://localhost:{port}"), &identity);
    assert_eq!(why, format!("localhost:{port}: tls: certificate expired"));
}

#[test]
fn server_without_tls_is_named() {
    let port = listen(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"-ERR Protocol error: unbalanced quotes in request\r\n");
    });
    let why = loss(&format!("rediss://localhost:{port}"), &Identity::new());
    assert_eq!(why, format!("localhost:{port}: tls: the server does not speak TLS"));
}

#[test]
fn server_that_closes_in_the_handshake_is_named() {
    let port = listen(drop);
    let why = loss(&format!("rediss://localhost:{port}"), &Identity::new());
    let expected = ["the server has closed the connection", "Connection reset by peer (os error 104)"];
    assert!(expected.iter().any(|text| why == format!("localhost:{port}: {text}")), "{why}");
}

#[test]
fn handshake_that_does_not_end_has_a_deadline() {
    let port = listen(|stream| {
        thread::sleep(TEST_TIMEOUT);
        drop(stream);
    });
    let why = backplane::first_loss_of_any_kind(&[&format!("--backplane=rediss://localhost:{port}")]);
    assert_eq!(why, format!("localhost:{port}: TLS handshake timeout; the port may be one without TLS"));
}

#[test]
fn file_without_a_certificate_is_an_error_at_start() {
    let identity = Identity::new();
    let empty = identity.file("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let output = oyez(&["serve", "--listen", "127.0.0.1:0", "--backplane=rediss://localhost"])
        .arg(format!("--backplane-tls-ca={}", empty.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("--backplane-tls-ca {}: no certificate", empty.display())), "{text}");
}

#[test]
fn node_publishes_and_receives_over_tls() {
    let port = free_port();
    let Some(_redis) = Redis::start(&["--bind", "127.0.0.1", "--port", &port.to_string()]) else { return };
    let terminator = Terminator::start(([127, 0, 0, 1], port).into());
    let ca = format!("--backplane-tls-ca={}", terminator.certificate().display());
    let url = format!("--backplane=rediss://localhost:{}/1", terminator.address.port());
    let nodes = [Server::start(&[&url, &ca]), Server::start(&[&url, &ca])];
    for node in &nodes {
        let mut client = Client::new(node.connect());
        wait_until("the node is ready", || client.ask(get("/readyz")).status == 200);
    }
    let mut subscriber = nodes[1].join("/ws/a");
    let mut publisher = Client::new(nodes[0].connect());
    // The largest message exceeds the buffers of TLS and of the socket.
    for length in [1, 100_000, 900_000] {
        let text = "x".repeat(length);
        let response = publisher.ask(publish("a", &text));
        assert_eq!(response.status, 200, "{}", response.body);
        assert_eq!(subscriber.text(), text);
    }
}
