//! The request head: read within bounds, judged, answered.
//!
//! tungstenite's own server handshake takes no bounds, writes nothing when it refuses, and accepts heads
//! that a proxy in front may read differently, which is how requests are smuggled. So the head is parsed
//! here, by httparse, and judged by RFC 9112 and RFC 6455 4.2.1; only then does tungstenite make the
//! response, from a request that has just what the judgement found.
//!
//! Nothing that a client sent is ever repeated in an answer.

use std::fmt::Write as _;

use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use httparse::Header;
use tungstenite::handshake::server::{Request, create_response, write_response};

use super::routes::{self, Route};
use crate::config::Limits;

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEnd {
    /// Its end is not there yet.
    Missing,
    /// It ends before this byte.
    At(usize),
    /// A line ends in LF alone. RFC 9112 2.2 lets a server take that; where a proxy in front does not,
    /// the two see different requests.
    BareLf,
}

/// Looks for the end of the head: the first empty line after a line that is not.
///
/// `seen` bytes were looked at before, without finding one.
pub fn find_head_end(bytes: &[u8], seen: usize) -> HeadEnd {
    // RFC 9112 2.2: empty lines before the request line are to be ignored.
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    for at in seen..bytes.len() {
        if bytes[at] != b'\n' {
            continue;
        }
        if at == 0 || bytes[at - 1] != b'\r' {
            return HeadEnd::BareLf;
        }
        let is_empty_line = at >= 3 && bytes[at - 2] == b'\n';
        if is_empty_line && begin < at {
            return HeadEnd::At(at + 1);
        }
    }
    HeadEnd::Missing
}

/// A request that may become a WebSocket.
#[derive(Debug)]
pub struct Upgrade {
    /// What to answer: 101.
    pub response: Vec<u8>,
    /// Where it wants to go.
    pub route: Route,
}

/// A request that is answered with an error and a close.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    status: u16,
    code: &'static str,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Refusal {
    /// A refusal with a status, a word for programs and a sentence for people. The sentence must not
    /// hold a quote, a backslash or a control character.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { status, code, message: message.into(), fields: Vec::new() }
    }

    /// 503: there is no room, or no time left.
    pub fn unavailable(code: &'static str, message: &str, retry_after_seconds: u32) -> Refusal {
        Refusal::new(503, code, message).with("Retry-After", retry_after_seconds.to_string())
    }

    /// 408: the head did not come in time.
    pub fn too_late(limits: &Limits) -> Refusal {
        let message = format!("the request head was not complete after {} ms", limits.handshake_timeout_ms);
        Refusal::new(408, "handshake_timeout", message)
    }

    /// 431: the head is over a limit.
    pub fn head_too_large(limits: &Limits) -> Refusal {
        let Limits { head_bytes_max, head_fields_max, .. } = limits;
        let message = format!("the request head is over {head_bytes_max} bytes or {head_fields_max} fields");
        Refusal::new(431, "head_too_large", message)
    }

    fn bad(message: &str) -> Refusal {
        Refusal::new(400, "bad_request", message)
    }

    fn with(mut self, field: &'static str, value: impl Into<String>) -> Refusal {
        self.fields.push((field, value.into()));
        self
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The answer on the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Refusal { status, code, message, fields } = self;
        let body = format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}\n");
        let phrase = http::StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason());
        let mut out = format!("HTTP/1.1 {status} {}\r\n", phrase.unwrap_or("Error"));
        for (field, value) in fields {
            let _ = write!(out, "{field}: {value}\r\n");
        }
        let _ = write!(
            out,
            "Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        out.into_bytes()
    }
}

/// Judges a complete head.
///
/// # Errors
/// The answer to send instead of 101.
pub fn judge(head: &[u8], limits: &Limits) -> Result<Upgrade, Refusal> {
    let mut fields = vec![httparse::EMPTY_HEADER; limits.head_fields_max];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(Refusal::bad("the request head ends before it is complete"));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::head_too_large(limits)),
        Err(httparse::Error::Version) => {
            return Err(Refusal::bad("the protocol is neither HTTP/1.1 nor HTTP/1.0"));
        }
        Err(_) => return Err(Refusal::bad("the request head is not HTTP")),
    }
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version)
    else {
        return Err(Refusal::bad("the request head ends before it is complete"));
    };
    let fields = Fields(request.headers);
    fields.check_host(minor_version)?;
    fields.check_length()?;
    let uri: http::Uri = target.parse().map_err(|_| Refusal::bad("the request target is not a URI"))?;
    let route = routes::find(uri.path(), uri.query())?;
    if method != "GET" {
        let message = "a WebSocket is opened with GET (RFC 6455 4.1)";
        return Err(Refusal::new(405, "method_not_allowed", message).with("Allow", "GET"));
    }
    let response = upgrade(&fields, minor_version)?;
    Ok(Upgrade { response, route })
}

/// RFC 6455 4.2.1 and 4.2.2.
fn upgrade(fields: &Fields<'_>, minor_version: u8) -> Result<Vec<u8>, Refusal> {
    let upgrade_required = |message: &str| {
        Refusal::new(426, "upgrade_required", message)
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Version", "13")
    };
    // RFC 9110 7.8: Upgrade is ignored in HTTP/1.0.
    if minor_version == 0 || !fields.lists("upgrade", "websocket") || !fields.lists("connection", "upgrade") {
        return Err(upgrade_required("this is a WebSocket: send Connection: Upgrade and Upgrade: websocket"));
    }
    match fields.one("sec-websocket-version") {
        Ok(Some(b"13")) => {}
        Ok(_) => return Err(upgrade_required("this server speaks Sec-WebSocket-Version 13 (RFC 6455)")),
        Err(_) => return Err(Refusal::bad("Sec-WebSocket-Version comes more than once")),
    }
    let bad_key = "Sec-WebSocket-Key has to come once and hold 16 bytes in base64";
    let key = match fields.one("sec-websocket-key") {
        Ok(Some(key)) => key,
        _ => return Err(Refusal::bad(bad_key)),
    };
    let request = Request::builder()
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, key)
        .body(())
        .map_err(|_| Refusal::bad(bad_key))?;
    let response = create_response(&request).map_err(|_| Refusal::bad(bad_key))?;
    let mut out = Vec::with_capacity(160);
    write_response(&mut out, &response).map_err(|_| Refusal::bad(bad_key))?;
    Ok(out)
}

/// The fields of one head, and the questions that are asked about them.
struct Fields<'a>(&'a [Header<'a>]);

/// A field that may come once came twice.
struct Twice;

impl<'a> Fields<'a> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    fn one(&self, name: &'static str) -> Result<Option<&'a [u8]>, Twice> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(Twice) } else { Ok(first) }
    }

    /// Is the token in the field's list? RFC 9110 5.3: several lines of a list are one list.
    fn lists(&self, name: &'static str, token: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|&byte| byte == b','))
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// RFC 9112 3.2: a request without Host, with two, or with a bad one is answered with 400.
    fn check_host(&self, minor_version: u8) -> Result<(), Refusal> {
        let one_host = "Host has to come once and name a host";
        match self.one("host") {
            Ok(None) if minor_version == 0 => Ok(()),
            Ok(Some(b"")) => Ok(()),
            Ok(Some(host))
                if http::uri::Authority::try_from(host).is_ok_and(|host| !host.as_str().contains('@')) =>
            {
                Ok(())
            }
            _ => Err(Refusal::bad(one_host)),
        }
    }

    /// Nothing that is answered here has a body. A head that says so in two ways is an attempt at
    /// smuggling (RFC 9112 6.1), and one that says so at all does not ask for a WebSocket.
    fn check_length(&self) -> Result<(), Refusal> {
        if self.all("transfer-encoding").next().is_some() {
            return Err(Refusal::bad("Transfer-Encoding is not taken here"));
        }
        match self.one("content-length") {
            Ok(None | Some(b"0")) => Ok(()),
            _ => Err(Refusal::bad("Content-Length is not taken here, but for one 0")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn head(request_line: &str, fields: &str) -> String {
        format!(
            "{request_line}\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\n{fields}\r\n"
        )
    }

    fn status(head: &str) -> u16 {
        judge(head.as_bytes(), &Limits::default()).map_or_else(|refusal| refusal.status(), |_| 101)
    }

    #[test]
    fn the_response_is_that_of_the_rfc() {
        let head = head("GET /ws HTTP/1.1", KEY);
        let upgrade = judge(head.as_bytes(), &Limits::default()).unwrap();
        let response = String::from_utf8(upgrade.response).unwrap().to_ascii_lowercase();
        assert!(response.starts_with("http/1.1 101 switching protocols\r\n"), "{response}");
        // The example of RFC 6455 1.3.
        assert!(response.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{response}");
        assert!(response.ends_with("\r\n\r\n"));
    }

    #[test]
    fn heads_that_are_served() {
        assert_eq!(status(&head("GET /ws HTTP/1.1", KEY)), 101);
        assert_eq!(status(&head("GET http://localhost/ws HTTP/1.1", KEY)), 101);
        assert_eq!(status(&head("GET /ws HTTP/1.1", &format!("{KEY}Content-Length: 0\r\n"))), 101);
        let two_lines = head("GET /ws HTTP/1.1", &format!("{KEY}Connection: keep-alive\r\nUpgrade: h2c\r\n"));
        assert_eq!(status(&two_lines), 101);
        let one_list = head("GET /ws HTTP/1.1", KEY).replace("Upgrade: websocket", "Upgrade: WebSocket, h2c");
        assert_eq!(status(&one_list.replace("Connection: Upgrade", "Connection: keep-alive, upgrade")), 101);
    }

    #[test]
    fn heads_that_are_refused() {
        let good = head("GET /ws HTTP/1.1", KEY);
        let check = |head: String, expected: u16| assert_eq!(status(&head), expected, "{head}");
        let without = |part: &str| {
            assert!(good.contains(part));
            good.replace(part, "")
        };
        let with = |field: &str| head("GET /ws HTTP/1.1", &format!("{KEY}{field}\r\n"));
        check(without("Host: localhost\r\n"), 400);
        check(with("Host: localhost"), 400);
        check(good.replace("Host: localhost", "Host: a b"), 400);
        check(good.replace("Host: localhost", "Host: user@localhost"), 400);
        check(without(KEY), 400);
        check(with(KEY.trim_end()), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400);
        check(with("Content-Length: 5"), 400);
        check(with("Content-Length: 0\r\nContent-Length: 0"), 400);
        check(with("Transfer-Encoding: chunked"), 400);
        check(with("Transfer-Encoding: chunked\r\nContent-Length: 0"), 400);
        check(with(" folded: x"), 400);
        check(with("spaced : x"), 400);
        check(with("nul: \0"), 400);
        check(without("Upgrade: websocket\r\n"), 426);
        check(without("Connection: Upgrade\r\n"), 426);
        check(without("Sec-WebSocket-Version: 13\r\n"), 426);
        check(good.replace("Version: 13", "Version: 8"), 426);
        check(with("Sec-WebSocket-Version: 13"), 400);
        check(head("GET /ws HTTP/1.0", KEY), 426);
        check(head("GET /ws HTTP/2.0", KEY), 400);
        check(head("POST /ws HTTP/1.1", KEY), 405);
        check(head("GET /nothing HTTP/1.1", KEY), 404);
        check(head("GET /ws/a%20b HTTP/1.1", KEY), 400);
        check(head("GET ws HTTP/1.1", KEY), 404);
        check(head("PRI * HTTP/2.0", ""), 400);
        check(with(&"x: y\r\n".repeat(125)), 431);
        check(with("x: y\r\n".repeat(59).trim_end()), 101);
        check(with("x: y\r\n".repeat(60).trim_end()), 431);
    }

    #[test]
    fn refusals_say_what_they_are() {
        let text = |refusal: Refusal| String::from_utf8(refusal.to_bytes()).unwrap();
        let not_upgraded = judge(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n", &Limits::default()).unwrap_err();
        let answer = text(not_upgraded);
        assert!(answer.starts_with("HTTP/1.1 426 Upgrade Required\r\n"), "{answer}");
        assert!(
            answer.contains("\r\nSec-WebSocket-Version: 13\r\n")
                && answer.contains("\r\nUpgrade: websocket\r\n")
        );
        let (fields, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(fields.contains(&format!("Content-Length: {}", body.len())), "{answer}");
        assert!(body.starts_with("{\"error\":{\"code\":\"upgrade_required\",\"message\":\""), "{body}");
        let post = judge(b"POST /ws HTTP/1.1\r\nHost: x\r\n\r\n", &Limits::default()).unwrap_err();
        assert!(text(post).contains("\r\nAllow: GET\r\n"));
        assert!(text(Refusal::unavailable("full", "no room", 1)).contains("\r\nRetry-After: 1\r\n"));
    }

    #[test]
    fn empty_lines_are_looked_at_once() {
        // A quadratic search takes seconds for a megabyte.
        let lines = b"\r\n".repeat(1 << 19);
        let start = std::time::Instant::now();
        assert_eq!(find_head_end(&lines, 0), HeadEnd::Missing);
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn the_end_of_a_head_is_found_at_every_cut() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\ntail\n";
        let end = head.len() - 5;
        for cut in 0..head.len() {
            let first = find_head_end(&head[..cut], 0);
            let found = if first == HeadEnd::Missing { find_head_end(head, cut) } else { first };
            assert_eq!(found, HeadEnd::At(end), "cut at {cut}");
        }
        assert_eq!(find_head_end(b"\r\n\r\n\r\n", 0), HeadEnd::Missing);
        assert_eq!(find_head_end(b"GET / HTTP/1.1\nHost: x\n\n", 0), HeadEnd::BareLf);
        assert_eq!(find_head_end(b"GET / HTTP/1.1\r\nHost: x\n\r\n", 0), HeadEnd::BareLf);
        assert_eq!(find_head_end(b"\n", 0), HeadEnd::BareLf);
    }
}
