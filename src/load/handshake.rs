//! The client's side of RFC 6455 4.1, without a blocking call and without a copy.

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// The longest answer that is read. Servers send 150 to 400 bytes.
pub const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Header fields in an answer. Servers send 3 to 10.
const FIELDS_MAX: usize = 64;

/// A request that is out, and what its answer has to say.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    /// The beginning of an answer that came in pieces.
    pub(super) kept: Vec<u8>,
}

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The head is not complete.
    Partial,
    /// The connection is open; frames begin after so many bytes.
    Open(usize),
    /// Any status but 101.
    Status(u16),
    /// It is no answer to this request.
    Bad(&'static str),
}

impl Handshake {
    /// A request for a path, and the handshake that it begins.
    pub fn request(authority: &str, path: &str) -> (Vec<u8>, Handshake) {
        let key = generate_key();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        (request.into_bytes(), Handshake { accept: derive_accept_key(key.as_bytes()), kept: Vec::new() })
    }

    /// Judges an answer, as far as it has come.
    pub fn judge(&self, bytes: &[u8]) -> Answer {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let head_bytes = match response.parse(bytes) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if bytes.len() < ANSWER_BYTES_MAX => return Answer::Partial,
            Ok(httparse::Status::Partial) => return Answer::Bad("answer too long"),
            Err(_) => return Answer::Bad("not HTTP"),
        };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
        };
        match response.code {
            Some(101) => {}
            Some(status) => return Answer::Status(status),
            None => return Answer::Bad("not HTTP"),
        }
        // RFC 6455 4.1: "If the response lacks ... the client MUST _Fail the WebSocket Connection_".
        if !field("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            return Answer::Bad("101 without Upgrade");
        }
        if field("Sec-WebSocket-Accept") != Some(&self.accept) {
            return Answer::Bad("wrong Sec-WebSocket-Accept");
        }
        if field("Sec-WebSocket-Extensions").is_some_and(|value| !value.is_empty()) {
            return Answer::Bad("an extension that was not asked for");
        }
        Answer::Open(head_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let (request, mut handshake) = Handshake::request("127.0.0.1:1", "/ws/a");
        assert!(request.starts_with(b"GET /ws/a HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"));
        // RFC 6455 1.3 gives the answer to its own example's key.
        handshake.accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        let check = |text: &str, expected| assert_eq!(handshake.judge(text.as_bytes()), expected, "{text}");
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        check(good, Answer::Open(good.len()));
        check(&format!("{good}\u{1}tail"), Answer::Open(good.len()));
        check(&good[..good.len() - 1], Answer::Partial);
        check(&good.replace("s3p", "S3P"), Answer::Bad("wrong Sec-WebSocket-Accept"));
        check(&good.replace("upgrade: WebSocket\r\n", ""), Answer::Bad("101 without Upgrade"));
        check("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\n", Answer::Status(503));
        check("SSH-2.0-OpenSSH_9.2\r\n", Answer::Bad("not HTTP"));
        let endless = format!("HTTP/1.1 101 x\r\nA: {}", "a".repeat(ANSWER_BYTES_MAX));
        check(&endless, Answer::Bad("answer too long"));
    }
}
