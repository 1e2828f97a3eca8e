//! Request heads: bounded, parsed, and validated against RFC 9112.
//!
//! tungstenite's server handshake has no size limits, sends no error response, and accepts heads that a proxy in front
//! may parse differently (request smuggling). So every head is parsed here with httparse and validated, for WebSocket
//! upgrades and other requests alike.

use std::mem::MaybeUninit;
use std::rc::Rc;

use httparse::Header;

use super::response::{ConnectionHeader, HttpError, ResponseOptions};
use crate::config::Limits;

/// The result of the search for the end of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadEnd {
    /// The end has not arrived.
    Missing,
    /// The head ends before this byte.
    At(usize),
    /// A line ends in LF alone. RFC 9112 2.2 allows a server to accept that; if a proxy in front does not, the two
    /// parse different requests.
    BareLf,
    /// The input begins with a TLS record, which has no line end to wait for.
    Tls,
}

/// Content type of a TLS handshake record (RFC 8446 5.1). No method begins with this byte.
const TLS_HANDSHAKE: u8 = 22;

/// Searches for the end of the head: the first empty line after a line that is not empty.
///
/// The first `seen` bytes were searched before.
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

/// A valid request head.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
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
    /// The framing of the body.
    pub body: BodyLength,
}

/// How a request head frames its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Neither Content-Length nor Transfer-Encoding.
    Absent,
    /// Content-Length.
    Bytes(u64),
    /// Chunked transfer coding (RFC 9112 7.1).
    Chunked,
}

/// Storage for the parsed fields of one head.
///
/// The default limit fits on the stack, without initialization.
#[derive(Debug)]
pub struct FieldRoom<'a> {
    few: [MaybeUninit<Header<'a>>; FieldRoom::FEW],
    many: Vec<MaybeUninit<Header<'a>>>,
}

impl<'a> FieldRoom<'a> {
    const FEW: usize = 64;

    /// Storage for the maximum number of fields.
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

/// Parses and validates a complete head.
///
/// # Errors
/// The error response to send before closing the connection: after an invalid head, the beginning of the next request
/// cannot be determined.
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
    // Nearly all targets begin with a slash, and need no search.
    let scheme = if target.starts_with('/') { None } else { target.split_once("://") };
    let (authority, target) = match scheme {
        Some((scheme, rest)) if is_web(scheme) => {
            let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            // RFC 9110 4.2.1: a URI with an empty host is invalid.
            if authority.is_empty() || !is_authority(authority.as_bytes()) {
                return Err(HttpError::bad("the request target has no valid host"));
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
    /// `Host` is repeated.
    pub fn host(&self) -> Result<Option<&'a [u8]>, RepeatedField> {
        match self.authority {
            Some(authority) => Ok(Some(authority.as_bytes())),
            None => self.fields.one("host"),
        }
    }

    /// Returns true if the request has a body that is not empty.
    pub fn has_body(&self) -> bool {
        !matches!(self.body, BodyLength::Absent | BodyLength::Bytes(0))
    }

    /// Returns true if the client is an EventSource.
    pub fn accepts_event_stream(&self) -> bool {
        self.fields.list("accept").any(|one| media_type(one).eq_ignore_ascii_case(b"text/event-stream"))
    }

    /// Returns true if a response may be compressed by gzip (RFC 9110 12.5.3). `*` is ignored: clients that decompress
    /// name the coding.
    pub fn accepts_gzip(&self) -> bool {
        let is_accepted = |value: &[u8]| {
            let mut parts = value.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let is_gzip = parts.next().is_some_and(|coding| coding.eq_ignore_ascii_case(b"gzip"));
            // RFC 9110 12.4.2: a weight of 0 means "not acceptable".
            is_gzip && !parts.any(is_zero_weight)
        };
        self.fields.list("accept-encoding").any(is_accepted)
    }

    /// Returns true if the client has the representation with this strong entity tag (RFC 9110 13.1.2). The comparison
    /// is weak: a proxy that compresses makes tags weak.
    pub fn has_current(&self, tag: &str) -> bool {
        let is_current =
            |value: &[u8]| value == b"*" || value.strip_prefix(b"W/").unwrap_or(value) == tag.as_bytes();
        self.fields.list("if-none-match").any(is_current)
    }

    /// The options of the response, without CORS. `date`: the value of `Date`.
    ///
    /// RFC 9112 9.3: HTTP/1.1 keeps the connection open by default, HTTP/1.0 only with `keep-alive`.
    pub fn response_options(&self, date: Rc<str>) -> ResponseOptions {
        let after = match self.minor_version {
            _ if self.fields.lists("connection", "close") => ConnectionHeader::Close,
            0 if self.fields.lists("connection", "keep-alive") => ConnectionHeader::KeepAliveHeader,
            0 => ConnectionHeader::Close,
            _ => ConnectionHeader::KeepAlive,
        };
        let is_chunked = self.minor_version > 0;
        ResponseOptions { after, head_only: self.method == "HEAD", is_chunked, allowed_origin: None, date }
    }
}

/// A weight of 0: `q=0`, also as `q=0.000`.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let digits = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="));
    digits.is_some_and(|digits| digits.starts_with(b"0") && digits.iter().all(|digit| b"0.".contains(digit)))
}

/// The header fields of a request.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [Header<'a>]);

/// A field that must not be repeated is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepeatedField;

impl<'a> Fields<'a> {
    /// The values of all field lines with this name.
    pub fn all(&self, name: &'static str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    /// The value of a field that must not be repeated.
    ///
    /// # Errors
    /// The field is repeated.
    pub fn one(&self, name: &'static str) -> Result<Option<&'a [u8]>, RepeatedField> {
        let mut values = self.all(name);
        let first = values.next();
        if values.next().is_some() { Err(RepeatedField) } else { Ok(first) }
    }

    /// The elements of a list field. RFC 9110 5.3: several field lines are one list.
    pub fn list(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// Returns true if the list field contains the token.
    pub fn lists(&self, name: &'static str, token: &str) -> bool {
        self.list(name).any(|one| one.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// RFC 9112 6.1: chunked has to be the last coding, and applied once; no other coding is supported.
    fn transfer_coding(&self) -> Result<BodyLength, HttpError> {
        let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let chunked = self.list("transfer-encoding").filter(is_chunked).count();
        match (chunked, self.list("transfer-encoding").count()) {
            (1, 1) => Ok(BodyLength::Chunked),
            (1, _) if self.list("transfer-encoding").last().as_ref().is_some_and(is_chunked) => {
                let message = "the only supported transfer coding is chunked";
                Err(HttpError::new(501, "transfer_coding", message))
            }
            _ => Err(HttpError::bad(
                "the end of the body cannot be found: chunked must be the last transfer coding, once",
            )),
        }
    }

    /// RFC 9112 3.2: a request with a missing, repeated or invalid Host gets 400.
    fn check_host(&self, minor_version: u8) -> Result<(), HttpError> {
        match self.one("host") {
            Ok(None) if minor_version == 0 => Ok(()),
            Ok(Some(host)) if is_authority(host) => Ok(()),
            _ => Err(HttpError::bad("Host must be sent once, with a valid host")),
        }
    }

    /// A head with both Content-Length and Transfer-Encoding may be an attempt at request smuggling (RFC 9112 6.1).
    fn body(&self, minor_version: u8) -> Result<BodyLength, HttpError> {
        let has_coding = self.all("transfer-encoding").next().is_some();
        match (has_coding, self.one("content-length")) {
            // RFC 9112 6.1: the framing is faulty, even if a proxy forwarded it.
            (true, Ok(None)) if minor_version == 0 => {
                Err(HttpError::bad("HTTP/1.0 has no Transfer-Encoding"))
            }
            (true, Ok(None)) => self.transfer_coding(),
            (true, _) => {
                Err(HttpError::bad("a request must not have both Transfer-Encoding and Content-Length"))
            }
            (false, Ok(None)) => Ok(BodyLength::Absent),
            (false, Ok(Some(digits))) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                let bytes = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                // A larger length is over every limit.
                Ok(BodyLength::Bytes(bytes.unwrap_or(u64::MAX)))
            }
            (false, _) => Err(HttpError::bad("Content-Length must be sent once, as a whole number")),
        }
    }
}

/// Returns the request with minor version 1 if its minor version is higher: RFC 9110 2.5 requires an HTTP/1.1 server to
/// process it as such, and httparse accepts 0 and 1 only.
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

/// A media type without its parameters (RFC 9110 8.3.1).
pub(super) fn media_type(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii()
}

/// RFC 9110 7.2: `Host` is a host with an optional port, or empty.
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
        check(head, |request| status = request.map_or_else(|error| error.status(), |_| 200));
        status
    }

    fn with(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
    }

    #[test]
    fn valid_head_is_accepted() {
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
    fn invalid_head_is_rejected() {
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
    fn target_is_split_into_host_path_and_query() {
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
    fn connection_header_selects_keep_alive_or_close() {
        let after = |head: &str, expected| {
            check(head, |request| {
                assert_eq!(request.unwrap().response_options(Rc::default()).after, expected)
            })
        };
        after(&with(""), ConnectionHeader::KeepAlive);
        after(&with("Connection: close\r\n"), ConnectionHeader::Close);
        after(&with("Connection: x\r\nConnection: y, Close\r\n"), ConnectionHeader::Close);
        after("GET / HTTP/1.0\r\n\r\n", ConnectionHeader::Close);
        after("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", ConnectionHeader::KeepAliveHeader);
    }

    #[test]
    fn higher_minor_version_is_processed_as_1() {
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
    fn body_length_is_read_from_the_head() {
        let body = |fields: &str, expected| {
            check(&with(fields), |request| assert_eq!(request.unwrap().body, expected))
        };
        body("Transfer-Encoding: chunked\r\n", BodyLength::Chunked);
        body("Transfer-Encoding: Chunked\r\n", BodyLength::Chunked);
        body("", BodyLength::Absent);
        body("Content-Length: 17\r\n", BodyLength::Bytes(17));
        body("Content-Length: 99999999999999999999999\r\n", BodyLength::Bytes(u64::MAX));
    }

    #[test]
    fn field_limit_above_the_default_is_supported() {
        let limits = Limits { head_fields_max: 500, ..Limits::default() };
        let head = with(&"x: y\r\n".repeat(499));
        assert!(parse(head.as_bytes(), &mut FieldRoom::new(&limits), &limits).is_ok());
        let head = with(&"x: y\r\n".repeat(500));
        assert!(parse(head.as_bytes(), &mut FieldRoom::new(&limits), &limits).is_err());
    }

    #[test]
    fn empty_lines_are_searched_once() {
        // A quadratic search takes seconds for a megabyte.
        let lines = b"\r\n".repeat(1 << 19);
        let start = std::time::Instant::now();
        assert_eq!(find_head_end(&lines, 0), HeadEnd::Missing);
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
    }

    #[test]
    fn head_end_is_found_at_every_cut() {
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
