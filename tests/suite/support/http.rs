//! HTTP by hand: requests as text, and responses parsed as a client has to.

use serde_json::Value;

/// A request without a body.
pub fn get(path: &str) -> String {
    request("GET", path, "")
}

/// A request without a body, with further header lines, each with its CR LF.
pub fn request(method: &str, path: &str, lines: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

/// A request with a body, and further header lines.
pub fn post(path: &str, lines: &str, body: &str) -> String {
    format!("{}{body}", request("POST", path, &format!("{lines}Content-Length: {}\r\n", body.len())))
}

/// A text for a channel.
pub fn publish(channel: &str, text: &str) -> String {
    post(&format!("/v1/publish/{channel}"), "", text)
}

/// A complete chunked body (RFC 9112 7.1) without its framing, and how long it is with it.
fn chunked_body(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut at, mut data) = (0, Vec::new());
    loop {
        let line = bytes[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("{size:?} is no chunk size"));
        let start = at + line + 2;
        at = start + size + 2;
        assert_eq!(bytes.get(at - 2..at)?, b"\r\n", "a chunk ends in a line end");
        if size == 0 {
            // Parsed only when complete: a body is checked after each read, and copied once.
            return Some((data.concat(), at));
        }
        data.push(&bytes[start..start + size]);
    }
}

/// A head without its `Date`, which differs between answers that are the same; and its value.
pub fn without_date(head: &str) -> (String, Option<String>) {
    let Some(at) = head.find("\r\nDate: ") else { return (head.to_owned(), None) };
    let line = &head[at + 2..];
    let line = &line[..line.find("\r\n").unwrap_or(line.len())];
    let date = line.strip_prefix("Date: ").unwrap();
    // RFC 9110 5.6.7: an IMF-fixdate has 29 characters.
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    (head.replacen(&format!("\r\n{line}"), "", 1), Some(date.to_owned()))
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Status line and fields, without `Date` and the empty line.
    pub head: String,
    /// The value of `Date`.
    pub date: Option<String>,
    pub body: String,
}

impl Response {
    /// Takes the first complete response off `bytes`. A response to HEAD has only a head.
    pub fn take(bytes: &mut Vec<u8>, head_only: bool) -> Option<Response> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(bytes[..end - 4].to_vec()).unwrap();
        let status: u16 = head.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let (head, date) = without_date(&head);
        let mut answer = Response { status, head, date, body: String::new() };
        if answer.field("Transfer-Encoding") == Some("chunked") {
            assert_eq!(answer.field("Content-Length"), None, "RFC 9112 6.2: {}", answer.head);
            let (body, length) = if head_only { (Vec::new(), 0) } else { chunked_body(&bytes[end..])? };
            answer.body = String::from_utf8(body).unwrap();
            bytes.drain(..end + length);
            return Some(answer);
        }
        let length = match answer.field("Content-Length") {
            Some(length) => length.parse().unwrap(),
            None => {
                assert!(
                    status == 204 || status == 304 || status < 200,
                    "where does this body end? {}",
                    answer.head
                );
                0
            }
        };
        let length = if head_only { 0 } else { length };
        let body = bytes.get(end..end + length)?.to_vec();
        answer.body = String::from_utf8(body).unwrap();
        bytes.drain(..end + length);
        Some(answer)
    }

    /// All answers in `bytes`, which must hold nothing else.
    pub fn take_all(bytes: &mut Vec<u8>) -> Vec<Response> {
        let answers = std::iter::from_fn(|| Response::take(bytes, false)).collect();
        assert!(bytes.is_empty(), "half an answer: {}", String::from_utf8_lossy(bytes));
        answers
    }

    /// The field's value, if it is there.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        let mut values = fields.filter(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let first = values.next();
        assert_eq!(values.next(), None, "{name} twice: {}", self.head);
        first
    }

    /// Returns true if the server announces the end of the connection.
    pub fn is_last(&self) -> bool {
        self.field("Connection") == Some("close")
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The machine-readable code of an error.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned()
    }

    /// The id of the message that was published.
    pub fn id(&self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["id"].as_str().unwrap().to_owned()
    }
}
