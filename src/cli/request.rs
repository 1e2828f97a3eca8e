//! One request over HTTP/1.1, and its answer: how `oyez pub` publishes a single message.

use std::io::{Read, Write};

use serde::Deserialize;

use super::Failure;
use super::client::{NoConnection, Server};

/// The longest answer, in bytes: an id, or an error in words.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Header fields of an answer; ours have about ten, and proxies add some.
const FIELDS_MAX: usize = 64;

/// What the server did with a message.
#[derive(Debug, Deserialize)]
pub(super) struct Published {
    /// The id that it got.
    pub(super) id: String,
    /// How many subscribers it was queued for; null without the right to subscribe to the channel.
    #[serde(alias = "subscribers")]
    pub(super) members: Option<u64>,
}

#[derive(Deserialize)]
struct Refused {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    message: String,
}

/// Publishes a text (`POST /v1/publish/{channel}`).
pub(super) fn publish(
    server: &Server,
    channel: &str,
    text: &str,
    token: Option<&str>,
) -> Result<Published, Failure> {
    let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let request = format!(
        "POST /v1/publish/{channel} HTTP/1.1\r\nHost: {}\r\n{authorization}Content-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{text}",
        server.authority(),
        text.len()
    );
    let failed = |why: &str| Failure::Failed(format!("{server}: {why}"));
    let mut stream = server.open().map_err(|why: NoConnection| Failure::Failed(why.to_string()))?;
    // A server that refuses a body answers before it has read all of it.
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    let mut answer = Vec::new();
    let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    if answer.is_empty() {
        return Err(match sent.and(read) {
            Err(error) => failed(&format!("{error}; the message may not have been published")),
            Ok(_) => failed("no answer; the message may not have been published"),
        });
    }
    let (status, body) = parse(&answer).ok_or_else(|| failed("the answer is not HTTP"))?;
    if status == 200 {
        return serde_json::from_slice(body).map_err(|_| failed("the answer is not that of an Oyez server"));
    }
    Err(match serde_json::from_slice(body) {
        // Text from the server, printed on a terminal.
        Ok(Refused { error: Reason { code, message } }) => {
            failed(&format!("{status} {}: {}", code.escape_debug(), message.escape_debug()))
        }
        Err(_) => failed(&format!("the server answered {status}")),
    })
}

/// The status and the body of an answer that ends with the connection, or is of a known length.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(head_bytes) = response.parse(answer).ok()? else { return None };
    Some((response.code?, &answer[head_bytes..]))
}
