//! `POST /v1/publish/{channel}`: publishes a single message over HTTP/1.1 and parses the response.

use serde::Deserialize;

use super::endpoint::Endpoint;
use super::error_response;
use super::http_request::{self, HttpRequestError};

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
    let response = http_request::send(endpoint, request.as_bytes()).map_err(|error| match error {
        HttpRequestError::NotConnected(why) => why,
        HttpRequestError::NoResponse(why) => {
            failed(&format!("{why}; the message may not have been published"))
        }
        HttpRequestError::NotHttp => failed(&error.to_string()),
    })?;
    if response.status == 200 {
        return serde_json::from_slice(&response.body)
            .map_err(|_| failed("the response is not that of an Oyez server"));
    }
    Err(failed(&error_response::describe(response.status, &response.body)))
}
