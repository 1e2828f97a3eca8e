//! A single HTTP/1.1 request on a separate connection.

use std::fmt;
use std::io::{Read, Write};

use super::endpoint::Endpoint;
use super::error_response::RESPONSE_BYTES_MAX;

/// Maximum header fields of a response. Oyez sends about ten, and proxies add some.
const FIELDS_MAX: usize = 64;

/// The status and the body of a response.
#[derive(Debug)]
pub struct HttpResponse {
    /// The status code, 100 to 999.
    pub status: u16,
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
    Some(HttpResponse { status, body: response.split_off(head_bytes) })
}
