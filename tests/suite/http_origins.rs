//! Which web pages may ask and publish: nothing but the server's own, unless `--origin` says so.

use crate::support::client::Client;
use crate::support::guarded::upgrade_with;
use crate::support::http::{Answer, post, request};
use crate::support::process::{Server, counter};

const ALLOW: &str = "Access-Control-Allow-Origin";

/// The answer to a page of this origin that publishes, to this `Host`.
fn publish_from(server: &Server, host: &str, origin: &str) -> Answer {
    let request = post("/v1/publish/a", &format!("{origin}Connection: close\r\n"), "x");
    Client::new(server.connect()).ask(request.replace("Host: localhost", &format!("Host: {host}")))
}

/// An origin that may, and is not told so: a page of the server's own host needs no word of it.
fn may(server: &Server, host: &str, origin: &str) {
    let answer = publish_from(server, host, &format!("Origin: {origin}\r\n"));
    assert_eq!((answer.status, answer.field(ALLOW)), (200, None), "{origin} to {host}");
}

/// An origin that may not, and whose page is not shown the answer.
fn may_not(server: &Server, host: &str, origin: &str) {
    let answer = publish_from(server, host, &format!("Origin: {origin}\r\n"));
    assert_eq!(answer.status, 403, "{origin} to {host}");
    assert_eq!(answer.code(), "forbidden_origin");
    assert_eq!(answer.field(ALLOW), None);
    assert!(answer.is_last());
}

#[test]
fn by_default_only_pages_of_the_same_host_and_port_may_publish() {
    let server = Server::start(&["--anonymous=subscribe=* publish=*"]);
    assert_eq!(publish_from(&server, "localhost:8080", "").status, 200, "this is no page");
    may(&server, "localhost:8080", "http://localhost:8080");
    may(&server, "LocalHost:8080", "HTTP://LOCALHOST:8080");
    may(&server, "example.com", "http://example.com");
    may(&server, "example.com", "https://example.com");
    may(&server, "example.com:443", "https://example.com");
    may(&server, "[::1]:8080", "http://[::1]:8080");
    for origin in [
        "http://localhost",
        "http://localhost:8081",
        "http://localhost.:8080",
        "http://127.0.0.1:8080",
        "http://localhost.evil.example:8080",
        "http://evil.example/localhost:8080",
        "http://localhost:8080@evil.example",
        "http://evil.example#localhost:8080",
        "http://localhost:8080/",
        "http://xlocalhost:8080",
        "http://localhost:08080",
        "http://localhost:8080, http://evil.example",
        "http://localhost:8080 http://evil.example",
        "localhost:8080",
        "//localhost:8080",
        "null",
        "",
        "*",
        "\u{ff4c}ocalhost",
    ] {
        may_not(&server, "localhost:8080", origin);
    }
    let twice = "Origin: http://localhost:8080\r\nOrigin: http://localhost:8080\r\n";
    assert_eq!(publish_from(&server, "localhost:8080", twice).status, 403);
    let log = server.stop();
    assert_eq!(counter(&log, "published"), 7, "{log}");
}

#[test]
fn by_default_a_foreign_page_reads_nothing() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let foreign = "Origin: https://evil.example\r\n";
    for path in ["/v1/channels", "/v1/channels/a", "/v1/channels/a/history", "/healthz", "/metrics"] {
        let answer = client.ask(request("GET", path, foreign));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, None), "a browser hides it: {path}");
    }
    let mut events = Client::new(server.connect());
    events.send(request("GET", "/sse/a", foreign).as_bytes());
    assert!(!events.head().contains(ALLOW));
    let asks = format!("{foreign}Access-Control-Request-Method: POST\r\n");
    let answer = client.ask(request("OPTIONS", "/v1/publish/a", &asks));
    assert_eq!((answer.status, answer.field(ALLOW)), (403, None));
}

#[test]
fn preflights() {
    let server = Server::start(&[
        "--origin=https://app.example,https://*.wild.example",
        "--origin=http://localhost:5173",
    ]);
    let mut client = Client::new(server.connect());
    for origin in ["https://app.example", "https://a.b.wild.example", "http://localhost:5173"] {
        for (path, methods) in [
            ("/v1/publish/a", "POST, OPTIONS"),
            ("/v1/channels", "GET, HEAD, OPTIONS"),
            ("/v1/channels/a", "GET, HEAD, OPTIONS"),
            ("/v1/channels/a/history", "GET, HEAD, OPTIONS"),
            ("/sse/a", "GET, OPTIONS"),
        ] {
            let asks = format!(
                "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: content-type\r\n"
            );
            let answer = client.ask(request("OPTIONS", path, &asks));
            let expected = format!(
                "HTTP/1.1 204 No Content\r\nAllow: {methods}\r\nAccess-Control-Allow-Methods: {methods}\r\n\
                 Access-Control-Allow-Headers: Authorization, Content-Type, Idempotency-Key, Last-Event-ID\r\n\
                 Access-Control-Max-Age: 600\r\nAccess-Control-Allow-Origin: {origin}\r\nVary: Origin"
            );
            assert_eq!(answer.head, expected);
        }
    }
    // Not a page: what the path takes, and no more.
    let answer = client.ask(request("OPTIONS", "/v1/channels", ""));
    assert_eq!(answer.head, "HTTP/1.1 204 No Content\r\nAllow: GET, HEAD, OPTIONS");
    // A browser asks first here too, and without a good answer its page would not hear that the name is none.
    for path in ["/v1/publish/a%20b", "/sse/a%20b", "/v1/channels/%00/history"] {
        let asks = "Origin: https://app.example\r\nAccess-Control-Request-Method: POST\r\n";
        let answer = client.ask(request("OPTIONS", path, asks));
        assert_eq!((answer.status, answer.field(ALLOW)), (204, Some("https://app.example")), "{path}");
        let headers = answer.field("Access-Control-Allow-Headers");
        assert!(headers.unwrap().starts_with("Authorization, "), "{path}");
        let foreign = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
        let answer = client.ask(request("OPTIONS", path, foreign));
        assert_eq!((answer.status, answer.field(ALLOW)), (400, None), "{path}");
    }
    // What is not shared has no preflight.
    let asks = "Origin: https://app.example\r\nAccess-Control-Request-Method: GET\r\n";
    assert_eq!(client.ask(request("OPTIONS", "/metrics", asks)).status, 405);
}

#[test]
fn what_an_allowed_page_may_read() {
    let server = Server::start(&["--origin", "https://app.example"]);
    let mut client = Client::new(server.connect());
    let page = "Origin: https://app.example\r\n";
    for asks in [
        post("/v1/publish/a", page, "x"),
        request("GET", "/v1/channels", page),
        request("GET", "/v1/channels/a", page),
        request("GET", "/v1/channels/a/history", page),
        // Errors too, or the page would not know what went wrong.
        request("GET", "/v1/channels?limit=x", page),
        post("/v1/publish/a", &format!("{page}Content-Type: application/json\r\n"), "{"),
        request("DELETE", "/v1/channels", page),
        request("GET", "/v1/channels/a%20b", page),
        request("GET", "/sse/a%20b", page),
        request("GET", "/v1/nothing", page),
        post("/v1/publish/a%20b", page, ""),
        request("OPTIONS", "/v1/publish/a%20b", page),
    ] {
        let answer = client.ask(&asks);
        assert_eq!(answer.field(ALLOW), Some("https://app.example"), "{asks}");
        assert_eq!(answer.field("Vary"), Some("Origin"), "{asks}");
    }
    let mut events = Client::new(server.connect());
    events.send(request("GET", "/sse/a", page).as_bytes());
    assert!(events.head().contains("\r\nAccess-Control-Allow-Origin: https://app.example\r\n"));
    for origin in [
        "http://app.example",
        "https://app.example:444",
        "https://www.app.example",
        "https://app.example.evil.example",
        "https://evilapp.example",
        "https://app.example@evil.example",
        "https://app.example.",
        "null",
    ] {
        may_not(&server, "localhost", origin);
    }
    may(&server, "localhost", "http://localhost");
}

#[test]
fn an_allowed_page_hears_that_it_was_too_slow() {
    let server = Server::start(&["--origin", "https://app.example", "--body-timeout-ms=200"]);
    let whole = post("/v1/publish/a", "Origin: https://app.example\r\n", "xy");
    let mut client = Client::new(server.connect());
    client.send(&whole.as_bytes()[..whole.len() - 1]);
    let answer = client.answer();
    assert_eq!((answer.status, answer.field(ALLOW)), (408, Some("https://app.example")));
    assert!(answer.is_last());
}

#[test]
fn a_star_lets_all_pages_in() {
    let server = Server::start(&["--origin=*"]);
    for origin in ["https://any.example", "null", "chrome-extension://abc"] {
        let answer = publish_from(&server, "localhost", &format!("Origin: {origin}\r\n"));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, Some(origin)));
    }
    // What no browser sends is repeated to nobody.
    for origin in ["https://a.example\u{b}", "https://a.example/path", "a b", "\u{e9}"] {
        let answer = publish_from(&server, "localhost", &format!("Origin: {origin}\r\n"));
        assert!(matches!(answer.status, 400 | 403), "{answer:?}");
        assert_eq!(answer.field(ALLOW), None);
    }
}

/// No rule of a browser's stops a page from opening a WebSocket to another site, so the server does.
#[test]
fn a_foreign_page_gets_no_websocket() {
    let server = Server::start(&["--origin=https://*.app.example"]);
    let status = |lines: &str| {
        let mut client = Client::new(server.connect());
        client.send(upgrade_with("/ws", lines).as_bytes());
        client.head()[9..12].parse::<u16>().unwrap()
    };
    assert_eq!(status(""), 101, "no browser");
    for origin in ["http://localhost", "https://localhost", "https://a.app.example"] {
        assert_eq!(status(&format!("Origin: {origin}\r\n")), 101, "{origin}");
    }
    for origin in [
        "http://localhost:8081",
        "https://app.example",
        "http://a.app.example",
        "https://a.app.example.evil.example",
        "https://evil.example",
        "null",
        "",
        "file://",
    ] {
        assert_eq!(status(&format!("Origin: {origin}\r\n")), 403, "{origin}");
    }
    assert_eq!(status("Origin: http://localhost\r\nOrigin: http://localhost\r\n"), 403);
    // Cookies are taken for nothing: they neither let in nor keep out.
    assert_eq!(status("Cookie: session=1\r\nOrigin: https://evil.example\r\n"), 403);
    let mut client = Client::new(server.connect());
    client.send(upgrade_with("/ws", "Origin: https://evil.example\r\n").as_bytes());
    let answer = client.answer();
    assert_eq!(answer.code(), "forbidden_origin");
    assert!(answer.is_last());
}
