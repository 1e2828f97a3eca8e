//! Keys are read again at SIGHUP: two stand side by side while one takes over, and a bad file changes nothing.

use std::time::Instant;

use crate::support::client::Client;
use crate::support::guarded::{Folder, OTHER_SECRET, SECRET, bearer, claims, unix_now};
use crate::support::http::post;
use crate::support::process::{PATIENCE, Server, oyez};
use oyez::access::keys::SigningKey;

fn status(server: &Server, secret: &str) -> u16 {
    let key = SigningKey::from_secret(secret.as_bytes()).unwrap();
    let token = key.sign(&claims("alice", &["a"], &["a"], unix_now()), None).unwrap();
    Client::new(server.connect()).ask(post("/v1/publish/a", &bearer(&token), "x")).status
}

fn becomes(server: &Server, secret: &str, expected: u16) {
    let start = Instant::now();
    while status(server, secret) != expected {
        assert!(start.elapsed() < PATIENCE, "{secret} does not come to {expected}");
    }
}

#[test]
fn a_new_key_takes_over_from_an_old_one() {
    let folder = Folder::new();
    let (one, two) = (folder.file("one", SECRET), folder.file("two", SECRET));
    let flags = ["serve", "--listen=127.0.0.1:0", "--jwt-secret-file", &one, "--jwt-secret-file", &two];
    let server = Server::start_command(oyez(&flags));
    let key = SigningKey::from_secret(SECRET.as_bytes()).unwrap();
    let token = key.sign(&claims("alice", &["a"], &["a"], unix_now()), None).unwrap();
    let mut member = Client::new(server.connect());
    member.send(crate::support::guarded::upgrade_with("/ws/a", &bearer(&token)).as_bytes());
    member.head();
    assert_eq!((status(&server, SECRET), status(&server, OTHER_SECRET)), (200, 401));
    folder.file("two", OTHER_SECRET);
    server.signal("HUP");
    becomes(&server, OTHER_SECRET, 200);
    assert_eq!(status(&server, SECRET), 200, "both are good");
    folder.file("one", OTHER_SECRET);
    server.signal("HUP");
    becomes(&server, SECRET, 401);
    // Bad files keep the keys.
    folder.file("one", "too short");
    server.signal("HUP");
    folder.file("two", "-----BEGIN PUBLIC KEY-----");
    server.signal("HUP");
    assert_eq!(status(&server, OTHER_SECRET), 200);
    member.send_text("still here");
    while member.text() != "still here" {}
    let log = server.stop();
    assert!(log.contains("ERROR") && log.contains("not reloaded, the keys stay as they were"), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(OTHER_SECRET) && !log.contains("too short"), "{log}");
}

#[test]
fn without_keys_a_signal_to_reload_does_nothing() {
    let server = Server::start(&[]);
    server.signal("HUP");
    let mut client = server.join("/ws");
    client.send_text("x");
    assert_eq!(client.text(), "x");
}

#[test]
fn a_bad_file_is_refused_at_start() {
    let folder = Folder::new();
    let short = folder.file("short", "short");
    for flags in
        [vec!["--jwt-secret-file", &short], vec!["--jwks-file", "/nonexistent"], vec!["--jwt-audience=x"]]
    {
        let output = oyez(&[&["serve", "--listen=127.0.0.1:0"], &flags[..]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
