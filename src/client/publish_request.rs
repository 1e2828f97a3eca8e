//! `POST /v1/publish/{channel}`: publishes a single message over HTTP/1.1 and parses the response.

use std::io::{Read, Write};

use serde::Deserialize;

use super::endpoint::Endpoint;
use super::error_response::{self, RESPONSE_BYTES_MAX};

/// Maximum header fields of the response. Oyez sends about ten, and proxies add some.
const FIELDS_MAX: usize = 64;

/// The body of a successful response.
#[derive(Debug, Deserialize)]
pub struct PublishResponse {
    /// The id of the message.
    pub id: String,
    /// Number of subscribers that the message was queued for; null without the right to subscribe to the channel.
    pub subscribers: Option<u64>,
}

/// Publishes a text message.
///
/// # Errors
/// The server cannot be reached, or rejects the message, or its response is not valid.
pub fn publish(
    endpoint: &Endpoint,
    channel: &str,
    text: &str,
    token: Option<&str>,
) -> Result<PublishResponse, String> {
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "POST /v1/publish/{channel} HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        endpoint.authority(),
        text.len()
    );
    let failed = |why: &str| format!("{endpoint}: {why}");
    let mut stream = endpoint.open().map_err(|error| error.to_string())?;
    // A server that rejects a body responds before it has read all of it, so a failed write may have a response.
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    let mut response = Vec::new();
    let read = stream.take(RESPONSE_BYTES_MAX as u64).read_to_end(&mut response);
    if response.is_empty() {
        return Err(match sent.and(read) {
            Err(error) => failed(&format!("{error}; the message may not have been published")),
            Ok(_) => failed("no response; the message may not have been published"),
        });
    }
    let (status, body) = parse(&response).ok_or_else(|| failed("the response is not HTTP"))?;
    if status == 200 {
        return serde_json::from_slice(body)
            .map_err(|_| failed("the response is not that of an Oyez server"));
    }
    Err(failed(&error_response::describe(status, body)))
}

/// The status and the body of a response that ends with the connection or has a known length.
fn parse(response: &[u8]) -> Option<(u16, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head_bytes) = head.parse(response).ok()? else { return None };
    Some((head.code?, &response[head_bytes..]))
}
