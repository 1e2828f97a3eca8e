//! The request head: read within bounds, parsed, judged.
//!
//! tungstenite's own server handshake takes no bounds, writes nothing when it refuses, and accepts heads
//! that a proxy in front may read differently, which is how requests are smuggled. So the head is parsed
//! here, by httparse, and judged by RFC 9112, whether a WebSocket or a plain answer is to come of it.

use std::mem::MaybeUninit;
use std::rc::Rc;

use httparse::Header;

use super::response::{ConnectionHeader, HttpError, ResponseOptions};
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
    /// It begins like TLS, which has no lines to wait for.
    Tls,
}

/// The type of TLS's first record (RFC 8446 5.1). No method begins with it.
const TLS_HANDSHAKE: u8 = 22;

/// Looks for the end of the head: the first empty line after a line that is not.
///
/// `seen` bytes were looked at before, without finding one.
pub fn find_head_end(bytes: &[u8], seen: usize) -> HeadEnd {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return HeadEnd::Tls;
    }
    // RFC 9112 2.2: empty lines before the request line are to be ignored.
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
    for at in memchr::memchr_iter(b'\n', &bytes[seen..]).map(|at| seen + at) {
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

/// A request head that is well formed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method, as it came.
    pub method: &'a str,
    /// The authority of a target in absolute form.
    authority: Option<&'a str>,
    /// The target's path, not decoded.
    pub path: &'a str,
    /// The target's query, not decoded.
    pub query: &'a str,
    /// The 1 in HTTP/1.1.
    pub minor_version: u8,
    /// The header fields.
    pub fields: Fields<'a>,
    /// What the head says about a body.
    pub body: Body,
}

/// What a head says about a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    Unsaid,
    /// It has so many bytes.
    Bytes(u64),
    /// It comes in chunks (RFC 9112 7.1).
    Chunked,
}

/// Room for the fields of one head.
///
/// The default limit fits on the stack, and nothing is cleared that will be written.
#[derive(Debug)]
pub struct FieldRoom<'a> {
    few: [MaybeUninit<Header<'a>>; FieldRoom::FEW],
    many: Vec<MaybeUninit<Header<'a>>>,
}

impl<'a> FieldRoom<'a> {
    const FEW: usize = 64;

    /// Room for as many fields as the limit allows.
    pub fn new(limits: &Limits) -> FieldRoom<'a> {
        let many = match limits.head_fields_max {
            0..=Self::FEW => Vec::new(),
            count => vec![MaybeUninit::uninit(); count],
        };
        FieldRoom { few: [MaybeUninit::uninit(); Self::FEW], many }
    }

    fn as_mut_slice(&mut self, limits: &Limits) -> &mut [MaybeUninit<Header<'a>>] {
        if self.many.is_empty() { &mut self.few[..limits.head_fields_max] } else { &mut self.many }
    }
}

/// Parses and judges a complete head.
///
/// # Errors
/// The answer to send before hanging up: after a head that is not well formed nobody can tell where the
/// next request begins.
pub fn parse<'room, 'head: 'room>(
    head: &'head [u8],
    room: &'room mut FieldRoom<'head>,
    limits: &Limits,
) -> Result<Request<'room>, HttpError> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, room.as_mut_slice(limits)) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(HttpError::bad("the request head ends before it is complete"));
        }
        Err(httparse::Error::TooManyHeaders) => return Err(HttpError::head_too_large(limits)),
        Err(httparse::Error::Version) => {
            return Err(HttpError::bad("the protocol is neither HTTP/1.1 nor HTTP/1.0"));
        }
        Err(_) => return Err(HttpError::bad("the request head is not HTTP")),
    }
    let (Some(method), Some(target), Some(minor_version)) = (request.method, request.path, request.version)
    else {
        return Err(HttpError::bad("the request head ends before it is complete"));
    };
    let fields = Fields(request.headers);
    fields.check_host(minor_version)?;
    let body = fields.body(minor_version)?;
    let Target { authority, path, query } = split_target(target)?;
    Ok(Request { method, authority, path, query, minor_version, fields, body })
}

/// The parts of a request target.
struct Target<'a> {
    authority: Option<&'a str>,
    path: &'a str,
    query: &'a str,
}

/// Takes a target in origin form or absolute form apart (RFC 9112 3.2).
fn split_target(target: &str) -> Result<Target<'_>, HttpError> {
    let is_web = |scheme: &str| ["http", "https"].iter().any(|web| web.eq_ignore_ascii_case(scheme));
    // Nearly all begin with a slash, and need no search.
    let scheme = if target.starts_with('/') { None } else { target.split_once("://") };
    let (authority, target) = match scheme {
        Some((scheme, rest)) if is_web(scheme) => {
            let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            // RFC 9110 4.2.1: a URI with an empty host is invalid.
            if authority.is_empty() || !is_authority(authority.as_bytes()) {
                return Err(HttpError::bad("the request target names no host"));
            }
            (Some(authority), target)
        }
        _ => (None, target),
    };
    if target.contains('#') || !target.is_ascii() {
        return Err(HttpError::bad("the request target is not a URI"));
    }
    Ok(match target.split_once('?').unwrap_or((target, "")) {
        // RFC 9110 4.2.3: after a host an empty path is "/".
        ("", query) if authority.is_some() => Target { authority, path: "/", query },
        (path, query) => Target { authority, path, query },
    })
}

impl<'a> Request<'a> {
    /// The host that the request is sent to: the target's authority where it has one, whatever `Host` says
    /// (RFC 9112 3.2.2).
    ///
    /// # Errors
    /// `Host` comes more than once.
    pub fn host(&self) -> Result<Option<&'a [u8]>, Twice> {
        match self.authority {
            Some(authority) => Ok(Some(authority.as_bytes())),
            None => self.fields.one("host"),
        }
    }

    /// How it wants to be answered, apart from who may read that.
    ///
    /// RFC 9112 9.3: HTTP/1.1 keeps the connection unless told not to, HTTP/1.0 only when asked.
    pub fn manner(&self) -> ResponseOptions {
        let after = match self.minor_version {
            _ if self.fields.lists("connection", "close") => ConnectionHeader::Close,
            0 if self.fields.lists("connection", "keep-alive") => ConnectionHeader::KeepAliveHeader,
            0 => ConnectionHeader::Close,
            _ => ConnectionHeader::KeepAlive,
        };
        let is_chunked = self.minor_version > 0;
        ResponseOptions {
            after,
            head_only: self.method == "HEAD",
            is_chunked,
            share: None,
            date: Rc::default(),
        }
    }
}

/// The fields of one head, and the questions that are asked about them.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [Header<'a>]);

/// A field that may come once came twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twice;

impl<'a> Fields<'a> {
    /// The values of all lines with that name.
    pub fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The value of a field that may come once.
    ///
    /// # Errors
    /// It came more than once.
    pub fn one(&self, name: &'static str) -> Result<Option<&'a [u8]>, Twice> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(Twice) } else { Ok(first) }
    }

    /// The members of a field's list. RFC 9110 5.3: several lines of a list are one list.
    pub fn list(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// Is the token in the field's list?
    pub fn lists(&self, name: &'static str, token: &str) -> bool {
        self.list(name).any(|one| one.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// RFC 9112 6.1: chunked has to be the last coding, and to be applied once; of others none is known here.
    fn transfer_coding(&self) -> Result<Body, HttpError> {
        let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let chunked = self.list("transfer-encoding").filter(is_chunked).count();
        match (chunked, self.list("transfer-encoding").count()) {
            (1, 1) => Ok(Body::Chunked),
            (1, _) if self.list("transfer-encoding").last().as_ref().is_some_and(is_chunked) => {
                let message = "of transfer codings only chunked is known";
                Err(HttpError::new(501, "transfer_coding", message))
            }
            _ => Err(HttpError::bad(
                "the end of the body cannot be found: chunked has to be the last coding, once",
            )),
        }
    }

    /// RFC 9112 3.2: a request without Host, with two, or with a bad one is answered with 400.
    fn check_host(&self, minor_version: u8) -> Result<(), HttpError> {
        match self.one("host") {
            Ok(None) if minor_version == 0 => Ok(()),
            Ok(Some(host)) if is_authority(host) => Ok(()),
            _ => Err(HttpError::bad("Host has to come once and name a host")),
        }
    }

    /// A head that says in two ways how long its body is is an attempt at smuggling (RFC 9112 6.1).
    fn body(&self, minor_version: u8) -> Result<Body, HttpError> {
        let has_coding = self.all("transfer-encoding").next().is_some();
        match (has_coding, self.one("content-length")) {
            // RFC 9112 6.1: its framing is faulty, even if some server before this one took it.
            (true, Ok(None)) if minor_version == 0 => {
                Err(HttpError::bad("HTTP/1.0 has no Transfer-Encoding"))
            }
            (true, Ok(None)) => self.transfer_coding(),
            (true, _) => Err(HttpError::bad("a body has a Transfer-Encoding or a Content-Length, not both")),
            (false, Ok(None)) => Ok(Body::Unsaid),
            (false, Ok(Some(digits))) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                let bytes = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                // More than 2^64 is as far out of reach as that.
                Ok(Body::Bytes(bytes.unwrap_or(u64::MAX)))
            }
            (false, _) => Err(HttpError::bad("Content-Length has to come once, and is a whole number")),
        }
    }
}

/// The request with the minor version 1, if its own is a later one: RFC 9110 2.5 has a server of HTTP/1.1 take it so,
/// and httparse knows no other than 0 and 1.
pub fn of_known_version(head: &[u8]) -> Option<Vec<u8>> {
    let begin = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = &head[begin..begin + memchr::memchr(b'\r', &head[begin..])?];
    let (version, minor) = line.split_last_chunk::<1>().map(|(rest, [minor])| (rest, *minor))?;
    if !version.ends_with(b" HTTP/1.") || !matches!(minor, b'2'..=b'9') {
        return None;
    }
    let mut head = head.to_vec();
    head[begin + line.len() - 1] = b'1';
    Some(head)
}

/// RFC 9110 7.2: `Host` is a host and perhaps a port, or empty.
fn is_authority(value: &[u8]) -> bool {
    let colon = value.iter().rposition(|&byte| byte == b':').filter(|_| !value.ends_with(b"]"));
    let (host, port) = colon.map_or((value, &[][..]), |at| (&value[..at], &value[at + 1..]));
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let is_host = host.iter().all(is_name)
        || http::uri::Authority::try_from(host).is_ok_and(|host| !host.as_str().contains('@'));
    is_host && port.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, look: impl FnOnce(Result<Request<'_>, HttpError>)) {
        let limits = Limits::default();
        let mut room = FieldRoom::new(&limits);
        look(parse(head.as_bytes(), &mut room, &limits));
    }

    fn status(head: &str) -> u16 {
        let mut status = 200;
        check(head, |request| status = request.map_or_else(|refusal| refusal.status(), |_| 200));
        status
    }

    fn with(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
    }

    #[test]
    fn heads_that_are_well_formed() {
        for good in [
            with(""),
            with("Content-Length: 0\r\n"),
            "GET / HTTP/1.0\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost:\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n".into(),
            "GET / HTTP/1.1\r\nHost: a-b.example:80\r\n\r\n".into(),
            with(&"x: y\r\n".repeat(63)),
        ] {
            assert_eq!(status(&good), 200, "{good}");
        }
    }

    #[test]
    fn heads_that_are_not() {
        let check = |head: &str, expected: u16| assert_eq!(status(head), expected, "{head}");
        check("GET / HTTP/1.1\r\n\r\n", 400);
        check(&with("Host: localhost\r\n"), 400);
        check("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: user@localhost\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: localhost:x\r\n\r\n", 400);
        check(&with("Content-Length: 0\r\nContent-Length: 0\r\n"), 400);
        check(&with("Content-Length: 5, 5\r\n"), 400);
        check(&with("Content-Length: +5\r\n"), 400);
        check(&with("Content-Length:\r\n"), 400);
        check(&with("Transfer-Encoding: gzip, chunked\r\n"), 501);
        check(&with("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"), 501);
        for coding in [
            "gzip",
            "identity",
            "chunked, gzip",
            "chunked, chunked",
            "chunked,",
            "",
            ",chunked,",
            "xchunked",
            "chunked;q=1",
            "\u{b}chunked",
        ] {
            check(&with(&format!("Transfer-Encoding: {coding}\r\n")), 400);
        }
        check(&with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400);
        check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
        check(&with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400);
        check(&with("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"), 400);
        check(&with(" folded: x\r\n"), 400);
        check(&with("spaced : x\r\n"), 400);
        check(&with("nul: \0\r\n"), 400);
        check("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400);
        check("PRI * HTTP/2.0\r\nHost: x\r\n\r\n", 400);
        check("GET /#x HTTP/1.1\r\nHost: x\r\n\r\n", 400);
        check(&with(&"x: y\r\n".repeat(64)), 431);
    }

    #[test]
    fn targets() {
        for (target, expected) in [
            ("/", ("/", "")),
            ("/ws?since=1-2&echo=0", ("/ws", "since=1-2&echo=0")),
            ("http://localhost:8080/ws?x", ("/ws", "x")),
            ("http://localhost", ("/", "")),
            ("HTTPS://localhost?x", ("/", "x")),
            ("ftp://localhost/ws", ("ftp://localhost/ws", "")),
            ("*", ("*", "")),
        ] {
            check(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), |request| {
                let request = request.unwrap();
                assert_eq!((request.path, request.query), expected, "{target}");
            });
        }
        for (target, host) in
            [("/ws", "x"), ("http://a.example:8080/ws", "a.example:8080"), ("http://[::1]?y", "[::1]")]
        {
            check(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"), |request| {
                assert_eq!(request.unwrap().host(), Ok(Some(host.as_bytes())), "{target}");
            });
        }
        for target in ["http:///ws", "http://", "http://user@x/ws", "http://x:y/", "http://a b/"] {
            assert_eq!(status(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")), 400, "{target}");
        }
    }

    #[test]
    fn what_becomes_of_the_connection() {
        let after = |head: &str, expected| {
            check(head, |request| assert_eq!(request.unwrap().manner().after, expected))
        };
        after(&with(""), ConnectionHeader::KeepAlive);
        after(&with("Connection: close\r\n"), ConnectionHeader::Close);
        after(&with("Connection: x\r\nConnection: y, Close\r\n"), ConnectionHeader::Close);
        after("GET / HTTP/1.0\r\n\r\n", ConnectionHeader::Close);
        after("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", ConnectionHeader::KeepAliveHeader);
    }

    #[test]
    fn later_minor_version_is_taken_for_1() {
        for (head, expected) in [
            ("GET / HTTP/1.2\r\nHost: x\r\n\r\n", Some("GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
            ("\r\nGET / HTTP/1.9\r\n\r\n", Some("\r\nGET / HTTP/1.1\r\n\r\n")),
            ("GET / HTTP/1.1\r\n\r\n", None),
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("GET / HTTP/2.2\r\n\r\n", None),
            ("GET / HTTP/1.12\r\n\r\n", None),
            ("GET /HTTP/1.2\r\nHTTP/1.2\r\n\r\n", None),
            ("\r\n", None),
        ] {
            assert_eq!(of_known_version(head.as_bytes()).as_deref(), expected.map(str::as_bytes), "{head}");
        }
    }

    #[test]
    fn lengths() {
        let body = |fields: &str, expected| {
            check(&with(fields), |request| assert_eq!(request.unwrap().body, expected))
        };
        body("Transfer-Encoding: chunked\r\n", Body::Chunked);
        body("Transfer-Encoding: Chunked\r\n", Body::Chunked);
        body("", Body::Unsaid);
        body("Content-Length: 17\r\n", Body::Bytes(17));
        body("Content-Length: 99999999999999999999999\r\n", Body::Bytes(u64::MAX));
    }

    #[test]
    fn a_limit_above_the_default_has_room() {
        let limits = Limits { head_fields_max: 500, ..Limits::default() };
        let head = with(&"x: y\r\n".repeat(499));
        assert!(parse(head.as_bytes(), &mut FieldRoom::new(&limits), &limits).is_ok());
        let head = with(&"x: y\r\n".repeat(500));
        assert!(parse(head.as_bytes(), &mut FieldRoom::new(&limits), &limits).is_err());
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
        assert_eq!(find_head_end(b"\x16\x03\x01", 0), HeadEnd::Tls);
    }
}
