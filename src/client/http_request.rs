//! A single HTTP/1.1 request on a separate connection.

use std::fmt;
use std::io::{Read, Write};
use std::time::Duration;

use super::endpoint::Endpoint;
use super::error_response::RESPONSE_BYTES_MAX;

/// Maximum header fields of a response. Oyez sends about ten, and proxies add some.
const FIELDS_MAX: usize = 64;

/// A response, as far as it is used.
#[derive(Debug)]
pub struct HttpResponse {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The time of `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The body, as far as it arrived.
    pub body: Vec<u8>,
}

/// Why a request has no response.
#[derive(Debug)]
pub enum HttpRequestError {
    /// The server could not be reached; nothing was sent.
    NotConnected(String),
    /// The request was sent, at least in part, and no response arrived.
    NoResponse(String),
    /// The response is not HTTP.
    NotHttp,
}

impl fmt::Display for HttpRequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HttpRequestError::NotConnected(why) | HttpRequestError::NoResponse(why) => f.write_str(why),
            HttpRequestError::NotHttp => f.write_str("the response is not HTTP"),
        }
    }
}

/// Sends the request, which must ask for `Connection: close`, and reads the response to its end.
///
/// # Errors
/// The server cannot be reached, or its response is not valid.
pub fn send(endpoint: &Endpoint, request: &[u8]) -> Result<HttpResponse, HttpRequestError> {
    let mut stream = endpoint.open().map_err(|error| HttpRequestError::NotConnected(error.to_string()))?;
    // A server that rejects a body responds before it has read all of it, so a failed write may have a response.
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    let mut response = Vec::new();
    let read = stream.take(RESPONSE_BYTES_MAX as u64).read_to_end(&mut response);
    if response.is_empty() {
        return Err(HttpRequestError::NoResponse(match sent.and(read) {
            Err(error) => error.to_string(),
            Ok(_) => "no response".to_owned(),
        }));
    }
    parse(response).ok_or(HttpRequestError::NotHttp)
}

/// The status, and the bytes after the head: the body, since the server closes the connection after it.
fn parse(mut response: Vec<u8>) -> Option<HttpResponse> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head_bytes) = head.parse(&response).ok()? else { return None };
    let status = head.code?;
    let body = response.split_off(head_bytes);
    Some(HttpResponse { status, retry_after: retry_after(&response), body })
}

/// The time of `Retry-After` in the head of a response (RFC 9110 10.2.3); `None` if it is a date, which Oyez never
/// sends.
pub fn retry_after(head: &[u8]) -> Option<Duration> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    response.parse(head).ok()?;
    let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("Retry-After"))?;
    std::str::from_utf8(field.value).ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_of_seconds() {
        let of = |value: &str| {
            retry_after(format!("HTTP/1.1 503 x\r\nA: b\r\nretry-after:{value}\r\n\r\n").as_bytes())
        };
        assert_eq!(of(" 7 "), Some(Duration::from_secs(7)));
        for other in ["", "-1", "1.5", "99999999999999999999999", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(retry_after(b"HTTP/1.1 503 x\r\n\r\n"), None);
        assert_eq!(retry_after(b"SSH-2.0"), None);
    }
}
