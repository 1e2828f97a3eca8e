//! Reloading keys at SIGHUP. Real servers whose key files are replaced: two keys are valid during a rotation, and an
//! invalid file changes nothing.

use std::time::Instant;

use oyez::access::keys::SigningKey;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::support::auth_server::{OTHER_SECRET, SECRET, bearer, claims, unix_now};
use crate::support::client::Client;
use crate::support::folder::Folder;
use crate::support::http::post;
use crate::support::process::{Server, TEST_TIMEOUT, oyez};
use crate::support::tokens::{base64url, unsigned};

fn status(server: &Server, secret: &str) -> u16 {
    let key = SigningKey::from_secret(secret.as_bytes()).unwrap();
    let token = key.sign(&claims("alice", &["a"], &["a"], unix_now()), None).unwrap();
    Client::new(server.connect()).ask(post("/v1/publish/a", &bearer(&token), "x")).status
}

fn becomes(server: &Server, secret: &str, expected: u16) {
    let start = Instant::now();
    while status(server, secret) != expected {
        assert!(start.elapsed() < TEST_TIMEOUT, "{secret} does not come to {expected}");
    }
}

#[test]
fn new_key_added_at_sighup_replaces_the_old_one() {
    let folder = Folder::new();
    let (one, two) = (folder.file("one", SECRET), folder.file("two", SECRET));
    let flags = ["serve", "--listen=127.0.0.1:0", "--jwt-secret-file", &one, "--jwt-secret-file", &two];
    let server = Server::start_command(oyez(&flags));
    let key = SigningKey::from_secret(SECRET.as_bytes()).unwrap();
    let token = key.sign(&claims("alice", &["a"], &["a"], unix_now()), None).unwrap();
    let mut subscriber = Client::new(server.connect());
    subscriber.send(crate::support::frames::upgrade_with("/ws/a", &bearer(&token)).as_bytes());
    subscriber.head();
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
    subscriber.send_text("still here");
    while subscriber.text() != "still here" {}
    let log = server.stop();
    assert!(log.contains("ERROR") && log.contains("not reloaded, the keys stay as they were"), "{log}");
    assert!(!log.contains(SECRET) && !log.contains(OTHER_SECRET) && !log.contains("too short"), "{log}");
}

/// The log of a server after SIGHUP; a message published after the signal has arrived.
fn log_of_a_reload(server: Server) -> String {
    let mut client = server.join("/ws/a");
    server.signal("HUP");
    client.send_text("x");
    assert_eq!(client.text(), "x");
    server.stop()
}

#[test]
fn sighup_without_files_logs_that_nothing_was_reloaded() {
    let plain = oyez(&["serve", "--listen=127.0.0.1:0"]);
    let log = log_of_a_reload(Server::start_command(plain));
    assert_eq!(log.matches("nothing to reload").count(), 1, "{log}");
    assert!(!log.contains("reloaded"), "{log}");
}

#[test]
fn sighup_log_names_only_reloaded_files() {
    let folder = Folder::new();
    let secret = folder.file("secret", SECRET);
    let keys = oyez(&[
        "serve",
        "--listen=127.0.0.1:0",
        "--jwt-secret-file",
        &secret,
        "--anonymous=subscribe=* publish=*",
    ]);
    let log = log_of_a_reload(Server::start_command(keys));
    assert!(log.contains("reloaded: tokens are verified by HS256"), "{log}");
    assert!(!log.contains("reloaded: the certificate") && !log.contains("nothing to reload"), "{log}");
}

#[test]
fn invalid_key_file_is_rejected_at_start() {
    let folder = Folder::new();
    let short = folder.file("short", "short");
    for flags in
        [vec!["--jwt-secret-file", &short], vec!["--jwks-file", "/nonexistent"], vec!["--jwt-audience=x"]]
    {
        let output = oyez(&[&["serve", "--listen=127.0.0.1:0"], &flags[..]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn token_with_other_audience_or_issuer_is_rejected() {
    let folder = Folder::new();
    let secret = folder.file("secret", SECRET);
    let command = |flags: &[&str]| oyez(&[&["serve", "--listen=127.0.0.1:0"], flags].concat());
    let key = SigningKey::from_secret(SECRET.as_bytes()).unwrap();
    let ask = |server: &Server, aud: &[&str], iss: Option<&str>| {
        let mut claims = claims("alice", &["a"], &["a"], unix_now());
        claims.aud = aud.iter().map(|one| (*one).to_owned()).collect();
        claims.iss = iss.map(str::to_owned);
        let token = key.sign(&claims, None).unwrap();
        let answer = Client::new(server.connect()).ask(post("/v1/publish/a", &bearer(&token), "x"));
        if answer.status == 200 { "taken".to_owned() } else { answer.code() }
    };
    let flags = ["--jwt-secret-file", &secret, "--jwt-audience=us", "--jwt-audience=we", "--jwt-issuer=me"];
    let by_flags = Server::start_command(command(&flags));
    let mut by_variables = command(&[]);
    by_variables.env("OYEZ_JWT_SECRET_FILE", &secret);
    by_variables
        .env("OYEZ_JWT_AUDIENCE", "we")
        .env("OYEZ_JWT_ISSUER", "me")
        .env("OYEZ_ANONYMOUS", "publish=b");
    let by_variables = Server::start_command(by_variables);
    for server in [&by_flags, &by_variables] {
        assert_eq!(ask(server, &["we"], Some("me")), "taken");
        assert_eq!(ask(server, &["them"], Some("me")), "token_audience");
        assert_eq!(ask(server, &[], Some("me")), "token_audience");
        assert_eq!(ask(server, &["we"], Some("you")), "token_issuer");
        assert_eq!(ask(server, &["we"], None), "token_issuer");
    }
    let anonymous =
        |server: &Server| Client::new(server.connect()).ask(post("/v1/publish/b", "", "x")).status;
    assert_eq!((anonymous(&by_flags), anonymous(&by_variables)), (401, 200));
}

/// A set of public keys, as an identity provider publishes it.
#[test]
fn key_set_selects_by_kid_and_is_reloaded_at_sighup() {
    let folder = Folder::new();
    let pair = |seed: u8| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let jwk = |kid: &str, seed: u8| json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "x": base64url(pair(seed).public_key().as_ref())});
    let set = |keys: &[Value]| json!({"keys": keys}).to_string();
    let file = folder.file("set", &set(&[jwk("one", 1), jwk("two", 2)]));
    let server = Server::start_command(oyez(&["serve", "--listen=127.0.0.1:0", "--jwks-file", &file]));
    let status = |kid: &str, seed: u8| {
        let header = json!({"alg": "EdDSA", "kid": kid}).to_string();
        let claims = serde_json::to_string(&claims("alice", &["a"], &["a"], unix_now())).unwrap();
        let message = unsigned(&header, &claims);
        let token = format!("{message}.{}", base64url(pair(seed).sign(message.as_bytes()).as_ref()));
        Client::new(server.connect()).ask(post("/v1/publish/a", &bearer(&token), "x")).status
    };
    assert_eq!((status("one", 1), status("two", 2)), (200, 200));
    assert_eq!((status("one", 2), status("three", 1), status("three", 3)), (401, 401, 401));
    folder.file("set", &set(&[jwk("two", 2), jwk("three", 3)]));
    server.signal("HUP");
    let start = Instant::now();
    while status("three", 3) != 200 {
        assert!(start.elapsed() < TEST_TIMEOUT);
    }
    assert_eq!((status("one", 1), status("two", 2)), (401, 200));
    // An unusable key does not hide the others, and a removed key is not trusted any longer.
    let odd = json!({"kty": "RSA", "kid": "weak\u{1b}", "n": base64url(&[0xff; 128]), "e": "AQAB"});
    folder.file("set", &set(&[odd, json!({"kty": "AKP"}), jwk("three", 3)]));
    server.signal("HUP");
    let start = Instant::now();
    while status("two", 2) != 401 {
        assert!(start.elapsed() < TEST_TIMEOUT);
    }
    assert_eq!(status("three", 3), 200);
    let log = server.stop();
    assert!(log.contains("key skipped: keys[0] (kid weak\\u{1b}): an RSA key of 1024 bits"), "{log}");
    assert!(log.contains("key skipped: keys[1]: key type AKP is not supported"), "{log}");
}
