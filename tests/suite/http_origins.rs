//! Origins: which web pages may read and publish. Only the server's own by default, others with `--origin`. Real
//! servers; preflights, CORS headers and rejections of each kind of page are compared.

use crate::support::client::Client;
use crate::support::frames::upgrade_with;
use crate::support::http::{Response, post, request};
use crate::support::process::{Server, counter};

const ALLOW: &str = "Access-Control-Allow-Origin";

/// The answer to a page of this origin that publishes, to this `Host`.
fn publish_from(server: &Server, host: &str, origin: &str) -> Response {
    let request = post("/v1/publish/a", &format!("{origin}Connection: close\r\n"), "x");
    Client::new(server.connect()).ask(request.replace("Host: localhost", &format!("Host: {host}")))
}

/// An origin that is allowed without a CORS header: pages of the server's own host need none.
fn may(server: &Server, host: &str, origin: &str) {
    let answer = publish_from(server, host, &format!("Origin: {origin}\r\n"));
    assert_eq!((answer.status, answer.field(ALLOW)), (200, None), "{origin} to {host}");
}

/// An origin that is rejected, and whose page cannot read the response.
fn may_not(server: &Server, host: &str, origin: &str) {
    let answer = publish_from(server, host, &format!("Origin: {origin}\r\n"));
    assert_eq!(answer.status, 403, "{origin} to {host}");
    assert_eq!(answer.code(), "forbidden_origin");
    assert_eq!(answer.field(ALLOW), None);
    assert!(answer.is_last());
}

#[test]
fn foreign_page_by_default_may_not_publish() {
    let server = Server::start(&["--anonymous=subscribe=* publish=*"]);
    assert_eq!(publish_from(&server, "localhost:8080", "").status, 200, "this is no page");
    may(&server, "localhost:8080", "http://localhost:8080");
    may(&server, "LocalHost:8080", "HTTP://LOCALHOST:8080");
    may(&server, "example.com", "http://example.com");
    may(&server, "example.com", "https://example.com");
    may(&server, "example.com:443", "https://example.com");
    may(&server, "[::1]:8080", "http://[::1]:8080");
    may(&server, "localhost:8080", "http://localhost:8080/");
    for origin in [
        "http://localhost",
        "http://localhost:8081",
        "http://localhost.:8080",
        "http://127.0.0.1:8080",
        "http://localhost.evil.example:8080",
        "http://evil.example/localhost:8080",
        "http://localhost:8080@evil.example",
        "http://evil.example#localhost:8080",
        "http://localhost:8080//",
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
    assert_eq!(counter(&log, "published"), 8, "{log}");
}

#[test]
fn foreign_page_by_default_may_not_read() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let foreign = "Origin: https://evil.example\r\n";
    for path in ["/v1/channels", "/v1/channels/a/history", "/healthz", "/metrics"] {
        let answer = client.ask(request("GET", path, foreign));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, None), "a browser hides it: {path}");
    }
    let mut events = Client::new(server.connect());
    events.send(request("GET", "/sse/a", foreign).as_bytes());
    assert!(!events.head().contains(ALLOW));
    let asks = format!("{foreign}Access-Control-Request-Method: POST\r\n");
    let answer = client.ask(request("OPTIONS", "/v1/publish/a", &asks));
    assert_eq!((answer.status, answer.field(ALLOW)), (403, None));
    // The page cannot read the reason, so the log has it; public files and health checks are not a page's request.
    let log = server.stop();
    for path in ["/v1/channels", "/sse/a", "/v1/publish/a"] {
        let line = format!("rejected origin=https://evil.example host=localhost path={path}: ");
        assert!(
            log.lines().any(|logged| logged.contains(&line) && logged.contains("--origin")),
            "{path}: {log}"
        );
    }
    assert!(!log.contains("path=/healthz") && !log.contains("path=/metrics"), "{log}");
}

#[test]
fn preflight_is_answered_by_origin_and_method() {
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
                 Access-Control-Allow-Headers: content-type\r\nAccess-Control-Max-Age: 600\r\n\
                 Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n\
                 Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: Retry-After"
            );
            assert_eq!(answer.head, expected);
        }
    }
    // Not a page: what the path takes, and no more.
    let answer = client.ask(request("OPTIONS", "/v1/channels", ""));
    assert_eq!(answer.head, "HTTP/1.1 204 No Content\r\nAllow: GET, HEAD, OPTIONS");
    // A browser sends a preflight here too; without a good response its page could not read that the name is invalid.
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
    // Fields that libraries and tracing add are mirrored; a value that is not a list of fields is not.
    for (asked, answered) in [
        ("authorization,content-type,x-request-id", "authorization,content-type,x-request-id"),
        ("traceparent, baggage", "traceparent, baggage"),
        ("a b\u{b}c", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
        ("a: b", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
        ("", "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
        (&"a,".repeat(600), "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"),
    ] {
        let asks = format!("Origin: https://app.example\r\nAccess-Control-Request-Headers: {asked}\r\n");
        let mut client = Client::new(server.connect());
        let answer = client.ask(request("OPTIONS", "/v1/publish/a", &asks));
        if answer.status != 400 {
            assert_eq!(answer.field("Access-Control-Allow-Headers"), Some(answered), "{asked}");
        }
        let foreign = asks.replace("app.example", "evil.example");
        let answer = Client::new(server.connect()).ask(request("OPTIONS", "/v1/publish/a", &foreign));
        assert_eq!(answer.field("Access-Control-Allow-Headers"), None, "{asked}");
    }
    // Paths that are not shared have no preflight.
    let asks = "Origin: https://app.example\r\nAccess-Control-Request-Method: GET\r\n";
    let answer = client.ask(request("OPTIONS", "/metrics", asks));
    assert_eq!(answer.head, "HTTP/1.1 204 No Content\r\nAllow: GET, HEAD, OPTIONS");
}

#[test]
fn allowed_page_may_read_responses_and_exposed_headers() {
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
fn allowed_page_may_read_its_408() {
    let server = Server::start(&["--origin", "https://app.example", "--body-timeout-ms=200"]);
    let whole = post("/v1/publish/a", "Origin: https://app.example\r\n", "xy");
    let mut client = Client::new(server.connect());
    client.send(&whole.as_bytes()[..whole.len() - 1]);
    let answer = client.response();
    assert_eq!((answer.status, answer.field(ALLOW)), (408, Some("https://app.example")));
    assert!(answer.is_last());
}

#[test]
fn origin_star_allows_all_pages() {
    let server = Server::start(&["--origin=*"]);
    for origin in
        ["https://any.example", "null", "chrome-extension://abc", "file://", "app://.", "https://a.example/"]
    {
        let answer = publish_from(&server, "localhost", &format!("Origin: {origin}\r\n"));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, Some(origin)));
        assert_eq!(answer.field("Access-Control-Allow-Credentials"), None, "not named");
        let mut client = Client::new(server.connect());
        client.send(upgrade_with("/ws", &format!("Origin: {origin}\r\n")).as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 101 "), "{origin}");
    }
    // Values that no browser sends are not mirrored.
    for origin in ["", "https://a.example\u{b}", "a b", "\u{e9}"] {
        let answer = publish_from(&server, "localhost", &format!("Origin: {origin}\r\n"));
        assert!(matches!(answer.status, 200 | 400), "{answer:?}");
        assert_eq!(answer.field(ALLOW), None);
    }
}

#[test]
fn origin_without_host_can_be_allowed() {
    let server = Server::start(&["--origin=null,file://,app://.", "--origin=capacitor://localhost"]);
    for origin in ["null", "file://", "APP://.", "capacitor://localhost/", "file:///"] {
        let answer = publish_from(&server, "localhost", &format!("Origin: {origin}\r\n"));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, Some(origin)));
        assert_eq!(answer.field("Access-Control-Allow-Credentials"), Some("true"));
        assert_eq!(answer.field("Access-Control-Expose-Headers"), Some("Retry-After"));
    }
    for origin in ["app://x", "", "ionic://localhost", "https://evil.example"] {
        may_not(&server, "localhost", origin);
    }
}

/// A server that only its own machine reaches is open to the pages that its machine serves, at whatever port.
#[test]
fn local_page_may_use_an_open_loopback_server() {
    let pages =
        ["http://localhost:5173", "http://127.0.0.1:3000", "https://app.localhost:8443", "http://[::1]:1"];
    let server = Server::start(&[]);
    for origin in pages {
        let answer = publish_from(&server, "127.0.0.1:8080", &format!("Origin: {origin}\r\n"));
        assert_eq!((answer.status, answer.field(ALLOW)), (200, Some(origin)));
    }
    for origin in ["https://evil.example", "http://localhost.evil.example", "null", "http://10.0.0.1:5173"] {
        may_not(&server, "localhost", origin);
    }
    let server = Server::start(&["--anonymous=subscribe=* publish=*"]);
    for origin in pages {
        may_not(&server, "127.0.0.1:8080", origin);
    }
}

#[test]
fn rejected_page_is_logged_with_the_remedy() {
    let server = Server::start(&[]);
    let mut client = Client::new(server.connect());
    let hostile = "Origin: https://app.example\u{1b}[31m\r\n";
    for lines in ["Origin: https://app.example\r\n", hostile] {
        client.send(upgrade_with("/ws/news?ticket=secret", lines).as_bytes());
        client.response();
        client = Client::new(server.connect());
    }
    for _ in 0..50 {
        may_not(&server, "localhost", "https://flood.example");
    }
    let log = server.stop();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("rejected origin=")).collect();
    assert!((5..=10).contains(&lines.len()), "a few, and not all: {log}");
    assert!(lines[0].contains("WARN"), "{}", lines[0]);
    let expected = "rejected origin=https://app.example host=localhost path=/ws/news: the page's origin is neither the \
                    Host nor listed: allow it with --origin 'https://app.example', or let the proxy in front pass the \
                    Host that the page was loaded from";
    assert!(lines[0].ends_with(expected), "{}", lines[0]);
    assert!(!log.contains("secret") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn misdirected_request_is_logged_with_the_remedy() {
    let server = Server::start(&[]);
    let misdirected = request("GET", "/v1/channels", "").replace("localhost", "evil.example");
    assert_eq!(Client::new(server.connect()).ask(misdirected).status, 421);
    let log = server.stop();
    let line =
        log.lines().find(|line| line.contains("rejected origin=none host=evil.example path=/v1/channels"));
    assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("--anonymous")), "{log}");
}

/// No rule of a browser's stops a page from opening a WebSocket to another site, so the server does.
#[test]
fn foreign_page_gets_no_websocket() {
    let server = Server::start(&["--origin=https://*.app.example", "--anonymous=subscribe=* publish=*"]);
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
    // Cookies have no effect: they neither grant nor deny access.
    assert_eq!(status("Cookie: session=1\r\nOrigin: https://evil.example\r\n"), 403);
    let mut client = Client::new(server.connect());
    client.send(upgrade_with("/ws", "Origin: https://evil.example\r\n").as_bytes());
    let answer = client.response();
    assert_eq!(answer.code(), "forbidden_origin");
    assert!(answer.is_last());
}
