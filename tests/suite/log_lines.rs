//! Log lines of connections: their fields, levels and formats; and that no client can forge a line or has a secret in
//! one.

use serde_json::Value;

#[cfg(feature = "jwt")]
use crate::support::auth_server::{AuthServer, bearer, token};
use crate::support::client::Client;
use crate::support::frames;
use crate::support::http::{Response, get, publish, request};
use crate::support::process::{Server, oyez};

/// A server with a log level and a format, and its log when it has ended.
fn log_of(level: &str, format: &str, run: impl FnOnce(&Server)) -> String {
    let mut command = oyez(&["serve", "--listen", "127.0.0.1:0", "--log-format", format]);
    command.env("RUST_LOG", level);
    let server = Server::start_command(command);
    run(&server);
    server.stop()
}

/// An HTTP client that closes its connection after a response.
fn finished_request(server: &Server, request: &str) -> Response {
    let mut client = Client::new(server.connect());
    let response = client.ask(request);
    client.send_eof();
    assert_eq!(client.rest_as_text(), "");
    response
}

/// A WebSocket that sends a text and begins the close handshake.
fn closed_web_socket(server: &Server, path: &str, lines: &str) {
    let mut client = Client::new(server.connect());
    client.send(frames::upgrade(path).replace("\r\n\r\n", &format!("\r\n{lines}\r\n")).as_bytes());
    client.head();
    client.send_text("hello");
    client.text();
    client.send(&frames::close(1000, "bye"));
    assert_eq!(client.closed_with().0, 1000);
}

fn objects(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn with_message<'a>(objects: &'a [Value], message: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["message"] == message).collect()
}

#[test]
fn close_line_of_a_recorded_connection_has_its_request_time_and_bytes() {
    let log = log_of("info,oyez::connection=debug", "json", |server| {
        let lines = "Origin: http://localhost\r\nUser-Agent: test \"1\"\r\n";
        closed_web_socket(server, "/ws/a?echo=1&since=latest", lines);
    });
    let objects = objects(&log);
    let [close] = with_message(&objects, "close")[..] else { panic!("{log}") };
    assert_eq!((&close["level"], &close["target"]), (&"info".into(), &"oyez::connection".into()));
    assert!(close["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{close}");
    assert_eq!((&close["path"], &close["origin"]), (&"/ws/a".into(), &"http://localhost".into()));
    assert_eq!((&close["agent"], &close["reason"]), (&"test \"1\"".into(), &"peer_closed".into()));
    assert!(close["seconds"].as_u64().unwrap() < 600, "{close}");
    // The request, a text of five bytes with its header, and the close frame.
    let received = frames::upgrade("/ws/a?echo=1&since=latest").len() as u64 + 48 + 11 + 11;
    assert!(close["received_bytes"].as_u64().unwrap() >= received, "{received} {close}");
    assert!(close["sent_bytes"].as_u64().unwrap() > 130, "{close}");
    let [request] = with_message(&objects, "request")[..] else { panic!("{log}") };
    assert_eq!((&request["method"], &request["path"]), (&"GET".into(), &"/ws/a".into()));
    assert_eq!(with_message(&objects, "subscribe").len(), 0, "{log}");
}

#[test]
fn close_line_without_records_has_the_peer_and_the_reason() {
    let log = log_of("info", "logfmt", |server| closed_web_socket(server, "/ws/a", ""));
    let closes: Vec<&str> = log.lines().filter(|line| line.contains(" message=close ")).collect();
    let [close] = closes[..] else { panic!("{log}") };
    let (_, fields) = close.split_once(" target=").unwrap();
    let fields: Vec<&str> = fields.split(' ').map(|field| field.split('=').next().unwrap()).collect();
    assert_eq!(fields, ["oyez::connection", "message", "peer", "reason"], "{close}");
    assert!(close.starts_with("time=2") && close.contains(" level=info "), "{close}");
}

#[test]
fn finished_http_connections_are_logged_at_debug() {
    let run = |server: &Server| {
        finished_request(server, &get("/healthz"));
        finished_request(server, &get("/healthz").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        drop(server.connect());
        finished_request(server, "GET / HTTP/1.1\r\n\r\n");
    };
    let of = |log: &str| -> Vec<String> {
        let closes = log.lines().filter(|line| line.contains("] close peer="));
        let mut reasons: Vec<String> =
            closes.map(|line| line[line.find("reason=").unwrap()..].to_owned()).collect();
        reasons.sort();
        reasons
    };
    assert_eq!(of(&log_of("info", "text", run)), ["reason=rejected status=400"]);
    let all = ["reason=end_of_file", "reason=end_of_file", "reason=rejected status=400", "reason=served"];
    assert_eq!(of(&log_of("debug", "text", run)), all);
}

#[test]
fn subscriptions_and_messages_are_logged_at_debug_without_their_payloads() {
    let run = |server: &Server| {
        closed_web_socket(server, "/ws/a", "");
        finished_request(server, &publish("b", "secret payload"));
    };
    let log = log_of("info,oyez::channel=debug", "json", run);
    let objects = objects(&log);
    let [subscribe] = with_message(&objects, "subscribe")[..] else { panic!("{log}") };
    assert_eq!((&subscribe["channel"], &subscribe["since"]), (&"a".into(), &"now".into()));
    let [first, second] = with_message(&objects, "publish")[..] else { panic!("{log}") };
    assert_eq!((&first["channel"], &first["bytes"]), (&"a".into(), &5.into()));
    assert_eq!((&second["channel"], &second["bytes"]), (&"b".into(), &14.into()));
    assert!(!log.contains("secret payload") && !log.contains("hello"), "{log}");
    let log = log_of("info", "json", run);
    assert!(!log.contains("\"publish\"") && !log.contains("\"subscribe\""), "{log}");
}

#[test]
fn text_of_a_client_forges_no_line() {
    let agent = "x\" reason=\u{85}\u{2028}[2026-01-01T00:00:00Z INFO  oyez] close peer=1.2.3.4 \u{202e}";
    for format in ["text", "json", "logfmt"] {
        let log = log_of("debug", format, |server| {
            closed_web_socket(server, "/ws/a", &format!("User-Agent: {agent}\r\n"));
        });
        assert!(!log.contains(['\u{85}', '\u{2028}', '\u{202e}']), "{log}");
        let closes = log.lines().filter(|line| line.contains("seconds"));
        let closes: Vec<&str> = closes.collect();
        let [close] = closes[..] else { panic!("{log}") };
        assert!(close.contains("x\\\" reason=\\u0085\\u2028[2026"), "{close}");
    }
}

#[cfg(feature = "jwt")]
#[test]
fn log_contains_no_credential_at_any_level() {
    let server = AuthServer::start_at(&["--allow-query-token", "--log-format=json"], Some("trace"));
    let token = token("alice", &["a"], &[]);
    let mut client = server.upgraded("/ws/a", &bearer(&token));
    client.send(&frames::close(1000, ""));
    client.closed_with();
    let mut client = server.upgraded(&format!("/ws/a?token={token}"), "");
    client.send(&frames::close(1000, ""));
    client.closed_with();
    let mut client = Client::new(server.server.connect());
    client.ask(request("GET", &format!("/v1/channels?token={token}"), &bearer(&token)));
    drop(client);
    let log = server.server.stop();
    let signature = token.rsplit('.').next().unwrap();
    assert!(log.lines().count() > 5 && !log.contains(signature) && !log.contains("Bearer"), "{log}");
}
