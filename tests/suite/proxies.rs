//! Client addresses from trusted proxies: the PROXY protocol and `X-Forwarded-For`. In memory, with headers split at
//! every byte and deadlines advanced by hand; a real server shows the addresses in its log.

use std::io::Read;
use std::time::Duration;

use oyez::access::connection_limiter::Proxies;
use oyez::access::proxy::Network;
use oyez::close::Reason;
use oyez::config::Limits;
use oyez::fault::ProxyFault;
use oyez::ids::SlotId;

use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{get, publish, request};
use crate::support::process::{Server, oyez};
use crate::support::rig::{Behavior, Rig, Rng};

/// A header for 203.0.113.9:4711, with extensions after the addresses as HAProxy and load balancers append them.
fn header() -> Vec<u8> {
    let addresses = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x67, 0x1f, 0x90, 4, 0, 2, 7, 7];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11"[..], &addresses].concat()
}

/// The same for the proxy itself: a health check.
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

fn rig(limits: Limits) -> Rig {
    let mut rig = Rig::new(limits);
    trust(&mut rig, "10.0.0.0/8", true);
    rig
}

fn trust(rig: &mut Rig, network: &str, send_header: bool) {
    rig.engine
        .shared
        .limiter
        .trust(Proxies { networks: vec![Network::parse(network).unwrap()], send_header });
}

fn peer_of(rig: &Rig, id: SlotId) -> String {
    rig.engine.slots.get(id).unwrap().peer.to_string()
}

#[test]
fn proxy_header_split_at_every_byte_is_accepted() {
    let whole = [header(), get("/healthz").into_bytes()].concat();
    for cut in 0..=whole.len() {
        let mut rig = rig(Limits::default());
        let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
        for part in [&whole[..cut], &whole[cut..]] {
            rig.send(id, part);
            rig.run_until_idle();
        }
        let answers = rig.responses(id);
        assert_eq!(answers.len(), 1, "cut at {cut}");
        assert_eq!(answers[0].status, 200, "cut at {cut}");
        assert_eq!(peer_of(&rig, id), "203.0.113.9:4711", "cut at {cut}");
    }
}

#[test]
fn proxy_header_sent_byte_by_byte_is_accepted() {
    let whole = [header(), frames::upgrade("/ws").into_bytes()].concat();
    for seed in 0..50 {
        let mut rig = rig(Limits::default());
        let id = rig.connect_from("10.0.0.1", Behavior::Random(Rng::new(seed)));
        for byte in &whole {
            rig.send(id, &[*byte]);
            rig.turn();
        }
        rig.run_until_idle();
        let head = String::from_utf8(rig.pipe(id).outgoing.clone()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "seed {seed}: {head}");
        assert_eq!(peer_of(&rig, id), "203.0.113.9:4711");
    }
}

#[test]
fn flood_from_one_proxied_client_rejects_no_other() {
    let mut rig = rig(Limits { connections_per_address_max: 1, ..Limits::default() });
    for _ in 0..1_000 {
        let id = rig.connect_from("10.0.0.1", Behavior::Stalled);
        rig.send(id, &header());
        rig.turn();
    }
    assert_eq!((rig.engine.rejected(), rig.engine.served()), (oyez::server::OVERLOAD_RESPONSES_MAX, 1));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::TooManyConnections), 999 - 16);
    rig.advance_ms(30_000);
    assert_eq!(rig.engine.rejected(), 0);
}

#[test]
fn invalid_proxy_header_ends_the_connection_with_its_reason() {
    let check = |bytes: &[u8], ends: bool, fault: ProxyFault| {
        let mut rig = rig(Limits::default());
        let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
        rig.send(id, bytes);
        if ends {
            rig.send_eof(id);
        }
        rig.run_until_idle();
        assert!(!rig.is_alive(id), "{fault:?}");
        assert!(rig.pipe(id).outgoing.is_empty(), "nothing is answered to {fault:?}");
        assert_eq!(rig.engine.shared.metrics.closed(Reason::ProxyHeader { fault }), 1);
    };
    check(get("/healthz").as_bytes(), false, ProxyFault::Missing);
    check(b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 8080\r\n", false, ProxyFault::Version1);
    assert_eq!(ProxyFault::Version1.as_str(), "version_1_expected_2");
    check(b"\x16\x03\x01", false, ProxyFault::Missing);
    check(b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c............", false, ProxyFault::Bad);
    check(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", false, ProxyFault::Bad);
    check(&header()[..20], true, ProxyFault::Incomplete);
}

#[test]
fn unfinished_proxy_header_has_the_handshake_timeout() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(id, &header()[..20]);
    rig.advance_ms(4_900);
    assert!(rig.is_alive(id));
    rig.advance_ms(600);
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::HandshakeTimeout), 1);
    // The header does not extend the head's deadline: both have to arrive in the same time.
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.advance_ms(4_000);
    rig.send(id, &header());
    rig.advance_ms(1_600);
    assert!(!rig.is_alive(id));
}

#[test]
fn client_over_its_limit_behind_a_proxy_keeps_the_first_deadline() {
    let mut rig = rig(Limits { connections_per_address_max: 1, ..Limits::default() });
    let served = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(served, &[header(), frames::upgrade("/ws").into_bytes()].concat());
    rig.run_until_idle();
    let rejected = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    assert_eq!(rig.engine.rejected(), 0, "its client is not known yet");
    rig.advance_ms(4_000);
    rig.send(rejected, &header());
    rig.run_until_idle();
    assert_eq!(rig.engine.rejected(), 1);
    assert!(rig.pipe(rejected).outgoing.is_empty(), "its request has not arrived");
    rig.advance_ms(1_600);
    assert_eq!(rig.responses(rejected)[0].status, 429);
    assert_eq!(rig.engine.rejected(), 1, "it is counted until it is freed");
    rig.advance_ms(10_000);
    assert!(!rig.is_alive(rejected));
    assert_eq!((rig.engine.rejected(), rig.engine.served()), (0, 1));
}

#[test]
fn connection_without_its_proxy_header_gets_an_error_when_the_drain_begins() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(id, &header()[..20]);
    rig.run_until_idle();
    // A signal is handled between two turns, so the close is complete at the earliest in the next one.
    rig.engine.drain(rig.now);
    rig.engine.slots.check();
    rig.run_until_idle();
    let response = &rig.responses(id)[0];
    assert_eq!(response.status, 503);
    assert!(response.head.contains("Retry-After: "), "{}", response.head);
}

#[test]
fn untrusted_proxy_header_is_ignored() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("203.0.113.66", Behavior::Cooperative);
    rig.send(id, &[header(), get("/healthz").into_bytes()].concat());
    rig.turn();
    assert_eq!(peer_of(&rig, id), "203.0.113.66:1");
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 400);
    // And needs none.
    let id = rig.connect_from("203.0.113.66", Behavior::Cooperative);
    rig.send(id, get("/healthz").as_bytes());
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 200);
}

#[test]
fn second_proxy_header_is_rejected() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(id, &[header(), header(), get("/healthz").into_bytes()].concat());
    rig.turn();
    assert_eq!(rig.responses(id)[0].status, 400);
}

#[test]
fn proxy_health_check_has_the_proxys_address() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(id, &[LOCAL, get("/readyz").as_bytes()].concat());
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 200);
    assert_eq!(peer_of(&rig, id), "10.0.0.1:1");
}

/// The end of file may come with the header, or before anything else does.
#[test]
fn eof_around_a_proxy_header_ends_the_connection() {
    let mut rig = rig(Limits::default());
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.send(id, &[header(), get("/healthz").into_bytes()].concat());
    rig.send_eof(id);
    rig.run_until_idle();
    assert_eq!(rig.responses(id)[0].status, 200);
    assert!(!rig.is_alive(id));
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    let before = rig.engine.shared.metrics.closed(Reason::EndOfFile);
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::EndOfFile), before + 1);
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    rig.reset(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    assert_eq!(rig.engine.shared.metrics.closed(Reason::Reset), 1);
}

#[test]
fn log_names_the_proxied_client() {
    // Connects without the test tunnel: the header has to be the first bytes.
    let flags = ["serve", "--listen=127.0.0.1:0", "--trusted-proxy=127.0.0.0/8", "--proxy-protocol"];
    let server = Server::start_command(oyez(&flags));
    let mut client = Client::new(server.connect());
    let (first, second) = (&header()[..7].to_vec(), &header()[7..].to_vec());
    client.send(first);
    std::thread::sleep(Duration::from_millis(50));
    client.send(second);
    client.join("/ws");
    client.send_text("x");
    assert_eq!(client.text(), "x");
    client.send(&frames::masked(frames::CLOSE, &[3, 232]));
    assert_eq!(client.closed_with().0, 1000);
    drop(client);
    let mut client = Client::new(server.connect());
    client.send(get("/healthz").as_bytes());
    // No response at all; unread bytes make the end a reset.
    assert!(matches!(client.stream.read(&mut [0; 64]), Ok(0) | Err(_)));
    let log = server.stop();
    assert!(log.contains("close peer=203.0.113.9:4711 reason=peer_closed"), "{log}");
    assert!(log.contains("reason=proxy_header why=missing"), "{log}");
}

#[cfg(feature = "tls")]
#[test]
fn tls_after_the_proxy_header_is_accepted() {
    use std::io::Write;

    let identity = crate::support::tls::Identity::new();
    let mut command =
        oyez(&["serve", "--listen", "127.0.0.1:0", "--trusted-proxy=127.0.0.1", "--proxy-protocol"]);
    command.args(identity.flags()).env("RUST_LOG", "debug");
    let server = Server::start_command(command);
    let mut stream = server.connect();
    stream.write_all(&header()).unwrap();
    let config = std::sync::Arc::new(identity.client(rustls::DEFAULT_VERSIONS));
    let session = rustls::ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    let mut secured = rustls::StreamOwned::new(session, stream);
    secured.write_all(request("GET", "/healthz", "Connection: close\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    secured.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    drop(secured);
    let log = server.stop();
    let line = log
        .lines()
        .find(|line| line.contains("close peer=203.0.113.9:4711 "))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(line.ends_with(" reason=served"), "{line}");
}

fn upgrade_for(forwarded: &str) -> String {
    frames::upgrade("/ws").replace("\r\n\r\n", &format!("\r\nX-Forwarded-For: {forwarded}\r\n\r\n"))
}

#[test]
fn proxied_websocket_and_stream_have_the_forwarded_client() {
    let mut rig = Rig::new(Limits::default());
    trust(&mut rig, "10.0.0.0/8", false);
    let mut peer_after = |from: &str, request: String| {
        let id = rig.connect_from(from, Behavior::Cooperative);
        rig.send(id, request.as_bytes());
        rig.run_until_idle();
        peer_of(&rig, id)
    };
    let stream = |forwarded: &str| request("GET", "/sse/a", &format!("X-Forwarded-For: {forwarded}\r\n"));
    assert_eq!(peer_after("10.0.0.1", upgrade_for("203.0.113.9")), "203.0.113.9");
    assert_eq!(peer_after("10.0.0.1", stream("203.0.113.9")), "203.0.113.9");
    // Values written by the client are on the left.
    assert_eq!(peer_after("10.0.0.1", upgrade_for("192.0.2.66, 203.0.113.9, 10.0.0.7")), "203.0.113.9");
    assert_eq!(
        peer_after("10.0.0.1", upgrade_for("192.0.2.66\r\nX-Forwarded-For: 203.0.113.9")),
        "203.0.113.9"
    );
    // Headers of other peers are ignored.
    assert_eq!(peer_after("203.0.113.66", upgrade_for("192.0.2.66")), "203.0.113.66:1");
    assert_eq!(peer_after("203.0.113.66", upgrade_for("10.0.0.1")), "203.0.113.66:1");
    // A proxy that sends no line or an invalid one is identified by its address.
    assert_eq!(peer_after("10.0.0.1", frames::upgrade("/ws")), "10.0.0.1:1");
    assert_eq!(peer_after("10.0.0.1", upgrade_for("unknown")), "10.0.0.1:1");
}

/// A proxy's connection carries requests of many: none of them makes it the connection of its client.
#[test]
fn proxy_connection_keeps_the_proxys_address() {
    let mut rig = Rig::new(Limits { messages_per_second: 1, ..Limits::default() });
    trust(&mut rig, "10.0.0.0/8", false);
    let id = rig.connect_from("10.0.0.1", Behavior::Cooperative);
    let publish_for = |client: &str| {
        publish("a", "x").replace("\r\nHost", &format!("\r\nX-Forwarded-For: {client}\r\nHost"))
    };
    let mut status = |client: &str| {
        rig.send(id, publish_for(client).as_bytes());
        rig.run_until_idle();
        rig.responses(id)[0].status
    };
    assert_eq!(status("203.0.113.1"), 200);
    assert_eq!(status("203.0.113.1"), 429, "too fast");
    assert_eq!(status("203.0.113.2"), 200, "and another pays nothing for it");
    assert_eq!(status("203.0.113.2"), 429);
    assert_eq!(peer_of(&rig, id), "10.0.0.1:1");
}
