//! Secrets never appear in output. A real server at its most verbose log level gets tokens on every path; log,
//! responses and metrics are searched for them.

use serde_json::json;

use crate::support::auth_server::{AuthServer, bearer, claims, sign, token, unix_now};
use crate::support::client::Client;
use crate::support::frames::upgrade_with;
use crate::support::http::{get, post, request};
use crate::support::process::oyez;

#[test]
fn token_on_any_path_appears_in_no_log_response_or_metric() {
    let guarded = AuthServer::start_at(&["--tickets-max=2"], Some("trace"));
    let server = &guarded.server;
    let mut expired = claims("canary", &["*"], &["*"], unix_now());
    expired.exp = unix_now() - 100;
    let good = token("canary-subject", &["a"], &["a"]);
    let tokens = [
        "CANARYtoken".to_owned(),
        "CANARY.CANARY.CANARY".to_owned(),
        sign(&expired),
        format!("{good}CANARY"),
        good.clone(),
    ];
    let mut seen = String::new();
    for token in &tokens {
        let v1 = format!("Sec-WebSocket-Protocol: oyez.v1, oyez.token.{token}\r\n");
        for asks in [
            post("/v1/publish/b", &bearer(token), "x"),
            post("/v1/publish/b", &format!("{}{}", bearer(token), bearer(token)), "x"),
            post("/v1/tickets", &bearer(token), ""),
            request("DELETE", "/v1/connections?sub=x", &bearer(token)),
            request("GET", &format!("/sse/b?token={token}&ticket={token}"), ""),
            request("GET", &format!("/v1/channels?token={token}&limit=x"), &bearer(token)),
            request("GET", &format!("/nothing?token={token}"), &bearer(token)),
            request("BREW", &format!("/v1/channels?token={token}"), &bearer(token)),
            format!("GET /ws HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n"),
            upgrade_with("/ws/b", &v1).replace("Version: 13", "Version: 8"),
            upgrade_with("/ws/b", &format!("{v1}Origin: https://evil.example\r\n")),
        ] {
            seen += &server.request_then_eof(asks);
        }
        for (path, lines) in [
            ("/ws/b".to_owned(), bearer(token)),
            ("/ws/b".to_owned(), v1),
            (format!("/ws/b?ticket={token}"), String::new()),
            (format!("/ws/b?token={token}"), String::new()),
        ] {
            let mut client = guarded.upgraded(&path, &lines);
            client.send_eof();
            while let Some(frame) = client.frame_or_end() {
                seen += &String::from_utf8_lossy(&frame.payload);
            }
        }
        for lines in ["", "Sec-WebSocket-Protocol: oyez.v1\r\n"] {
            for text in [
                json!({"type": "auth", "token": token, "ref": 1}).to_string(),
                json!({"type": "auth", "token": [token]}).to_string(),
                json!({"type": "nonsense", "token": token}).to_string(),
                format!("{{\"type\":\"auth\",\"token\":\"{token}"),
            ] {
                let mut client = guarded.upgraded("/ws/b", lines);
                client.send_text(&text);
                client.send_eof();
                while let Some(frame) = client.frame_or_end() {
                    seen += &String::from_utf8_lossy(&frame.payload);
                }
            }
        }
    }
    // Only the ticket is shown, in the response to its request, and nowhere else.
    let mut client = Client::new(server.connect());
    let full = client.ask(post("/v1/tickets", &bearer(&good), ""));
    let ticket = full.json()["ticket"].as_str().map(str::to_owned);
    if let Some(ticket) = &ticket {
        guarded.upgraded(&format!("/ws/a?ticket={ticket}"), "");
        guarded.closed(&format!("/ws/a?ticket={ticket}"), "");
    }
    seen += &client.ask(get("/metrics")).body;
    // The log names the bearer of a token that opened a connection; a rejected token leaves no name.
    seen += &server_log(guarded).replace(" sub=canary-subject ", " ");
    let parts = tokens.iter().flat_map(|token| token.split('.')).filter(|part| part.len() > 20);
    for secret in
        parts.chain(["CANARY", "canary", crate::support::auth_server::SECRET]).chain(ticket.as_deref())
    {
        if let Some(at) = seen.find(secret) {
            panic!("{secret}: {}", &seen[at.saturating_sub(200)..(at + 200).min(seen.len())]);
        }
    }
}

/// The command-line client has a token and a log too.
#[test]
fn command_line_client_with_token_logs_no_token() {
    let guarded = AuthServer::start(&[]);
    let good = token("alice", &["a"], &["a"]);
    let url = guarded.server.url();
    for (name, text) in [("good", &good[..]), ("bad", "CANARYtoken"), ("none", "two CANARY words")] {
        let file = guarded.folder.file(name, text);
        for arguments in [
            &["pub", "a", "x", "--url", &url, "--token-file", &file][..],
            &["sub", "a", "--since=earliest", "--count=1", "--url", &url, "--token-file", &file],
            &["sub", "b", "--url", &url, "--token-file", &file],
        ] {
            let output = oyez(arguments).env("RUST_LOG", "trace").output().unwrap();
            let seen = format!("{output:?}");
            assert_eq!(output.status.success(), name == "good" && !arguments.contains(&"b"), "{seen}");
            let parts = good.split('.').filter(|part| part.len() > 20);
            for secret in parts.chain(["CANARY"]) {
                assert!(!seen.contains(secret), "{secret}: {seen}");
            }
        }
    }
}

fn server_log(guarded: AuthServer) -> String {
    let AuthServer { server, folder } = guarded;
    let log = server.stop();
    drop(folder);
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "it is at its most talkative: {log}");
    log
}
