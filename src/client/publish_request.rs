//! `POST /v1/publish/{channel}`: publishes a single message over HTTP/1.1 and parses the response.

use serde::Deserialize;

use super::endpoint::{AttemptError, Endpoint};
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

/// A text message to publish.
#[derive(Clone, Copy, Debug)]
pub struct TextToPublish<'a> {
    /// Its channel.
    pub channel: &'a str,
    /// The message.
    pub text: &'a str,
    /// Its idempotency key.
    pub key: Option<&'a str>,
    /// The token of the publisher.
    pub token: Option<&'a str>,
}

impl TextToPublish<'_> {
    /// Publishes the message.
    ///
    /// # Errors
    /// The server cannot be reached, or rejects the message, or its response is not valid.
    pub fn send(self, endpoint: &Endpoint) -> Result<PublishResponse, AttemptError> {
        let TextToPublish { channel, text, key, token } = self;
        let line =
            |name, value: Option<&str>| value.map_or_else(String::new, |value| format!("{name}{value}\r\n"));
        let (authorization, key) = (line("Authorization: Bearer ", token), line("Idempotency-Key: ", key));
        let request = format!(
            "POST /v1/publish/{channel} HTTP/1.1\r\nHost: {}\r\n{authorization}{key}Content-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
            endpoint.authority(),
            text.len()
        );
        let failed = |why: &str| format!("{endpoint}: {why}");
        let response = http_request::send(endpoint, request.as_bytes()).map_err(|error| match error {
            HttpRequestError::NotConnected(why) => AttemptError::Unreachable(why),
            HttpRequestError::NoResponse(why) => {
                AttemptError::Unreachable(failed(&format!("{why}; the message may not have been published")))
            }
            HttpRequestError::NotHttp => AttemptError::Rejected(failed(&error.to_string())),
        })?;
        if response.status == 200 {
            return serde_json::from_slice(&response.body)
                .map_err(|_| AttemptError::Rejected(failed("the response is not that of an Oyez server")));
        }
        let why = failed(&error_response::describe(response.status, &response.body));
        Err(match response.retry_after.filter(|_| response.status == 503) {
            Some(retry_after) => AttemptError::Unavailable { why, retry_after },
            None => AttemptError::Rejected(why),
        })
    }
}
