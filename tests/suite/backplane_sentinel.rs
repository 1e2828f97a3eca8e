//! A node that finds its Redis by Sentinels (`redis+sentinel://`). Method: a real Redis, and servers that reply as a
//! Sentinel does, late, wrongly or not at all. Real Sentinels are in tests/cluster.

use std::io::{Read, Write};
use std::thread;

use crate::support::backplane::{first_loss, first_loss_of_any_kind, listen};
use crate::support::client::Client;
use crate::support::http::get;
use crate::support::process::{Server, TEST_TIMEOUT, free_port, wait_until};
use crate::support::redis::Redis;

/// The query for the primary `main`.
const QUESTION: &[u8] = b"*3\r\n$8\r\nSENTINEL\r\n$23\r\nget-master-addr-by-name\r\n$4\r\nmain\r\n";

/// A Sentinel that replies to the query with these bytes, one at a time, and closes.
fn sentinel(reply: &str) -> u16 {
    let reply = reply.to_owned();
    listen(move |mut stream| {
        let mut question = [0; QUESTION.len()];
        if stream.read_exact(&mut question).is_ok() && question == QUESTION {
            stream.set_nodelay(true).unwrap();
            reply.bytes().for_each(|byte| drop(stream.write_all(&[byte])));
        }
    })
}

fn silent() -> u16 {
    listen(|stream| {
        thread::sleep(TEST_TIMEOUT);
        drop(stream);
    })
}

fn address_of(port: u16) -> String {
    format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.to_string().len())
}

fn flag(port: u16) -> String {
    format!("--backplane=redis+sentinel://127.0.0.1:{port}/main")
}

fn loss(port: u16) -> String {
    first_loss(&[&flag(port)])
}

#[test]
fn silent_and_closed_sentinels_are_followed_by_the_next_one() {
    let redis_port = free_port();
    let Some(_redis) = Redis::start(&["--bind", "127.0.0.1", "--port", &redis_port.to_string()]) else {
        return;
    };
    // The first attempt begins with the second Sentinel.
    let ports = [sentinel(&address_of(redis_port)), silent(), free_port(), sentinel("-ERR x\r\n")];
    let sentinels: Vec<String> = ports.iter().map(|port| format!("localhost:{port}")).collect();
    // On a slow machine the Sentinel that replies may miss its deadline too.
    wait_until("the first attempt finds the primary", || {
        let server =
            Server::start(&[&format!("--backplane=redis+sentinel://{}/main/1", sentinels.join(","))]);
        let mut client = Client::new(server.connect());
        wait_until("the node is ready", || client.ask(get("/readyz")).status == 200);
        let log = server.stop();
        assert!(log.contains(&format!("connected to 127.0.0.1:{redis_port}")), "{log}");
        !log.contains("connection lost")
    });
}

#[test]
fn error_of_a_sentinel_is_named() {
    let dead = free_port();
    assert_eq!(loss(dead), format!("Sentinel 127.0.0.1:{dead}: Connection refused (os error 111)"));
    for (reply, why) in [
        ("*-1\r\n", "no primary named \"main\": --backplane must have the name of \"sentinel monitor\""),
        ("-NOAUTH Authentication required.\r\n", "NOAUTH Authentication required."),
        ("+OK\r\n", "unexpected reply"),
        ("*2\r\n$9\r\n127.0", "connection closed before the reply"),
    ] {
        let port = sentinel(reply);
        assert_eq!(loss(port), format!("Sentinel 127.0.0.1:{port}: {why}"));
    }
    let port = silent();
    let why = first_loss_of_any_kind(&[&flag(port)]);
    assert_eq!(why, format!("Sentinel 127.0.0.1:{port}: no reply within 1000 ms"));
}

#[test]
fn replica_that_a_sentinel_names_is_not_used() {
    let redis_port = free_port();
    // The replica's primary does not exist.
    let options = ["--bind", "127.0.0.1", "--port", &redis_port.to_string(), "--replicaof", "127.0.0.1 1"];
    let Some(redis) = Redis::start(&options) else { return };
    let port = sentinel(&address_of(redis_port));
    assert_eq!(loss(port), "EVALSHA: OYEZROLE slave");
    assert!(redis.call(&["DBSIZE"]).starts_with(":0"));
}
