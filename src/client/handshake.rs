//! The opening handshake on the client side (RFC 6455 4.1), without a blocking call: the request, and a check of the
//! response.

use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

/// Maximum length of a response head. Servers send 150 to 400 bytes.
pub const RESPONSE_BYTES_MAX: usize = 16 << 10;

/// Maximum header fields of a response. Servers send 3 to 10.
const FIELDS_MAX: usize = 64;

/// A request, and the accept key that its response must contain.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    /// The beginning of a response that arrived in pieces.
    pub received: Vec<u8>,
}

/// The result of parsing a response.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeResponse {
    /// The head is not complete.
    Partial,
    /// The connection is open; frames begin at this offset.
    Open(usize),
    /// A status other than 101.
    Status(u16),
    /// Not a valid response to this request.
    Invalid(&'static str),
}

impl Handshake {
    /// A request for a path, and the handshake that it starts.
    pub fn request(authority: &str, path: &str) -> (Vec<u8>, Handshake) {
        let key = generate_key();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        (request.into_bytes(), Handshake { accept: derive_accept_key(key.as_bytes()), received: Vec::new() })
    }

    /// Parses the bytes of a response that have arrived so far.
    pub fn parse_response(&self, bytes: &[u8]) -> HandshakeResponse {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let head_bytes = match response.parse(bytes) {
            Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
            Ok(httparse::Status::Partial) if bytes.len() < RESPONSE_BYTES_MAX => {
                return HandshakeResponse::Partial;
            }
            Ok(httparse::Status::Partial) => return HandshakeResponse::Invalid("response too long"),
            Err(_) => return HandshakeResponse::Invalid("not HTTP"),
        };
        let field = |name: &str| {
            let found = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.and_then(|field| std::str::from_utf8(field.value).ok()).map(str::trim)
        };
        match response.code {
            Some(101) => {}
            Some(status) => return HandshakeResponse::Status(status),
            None => return HandshakeResponse::Invalid("not HTTP"),
        }
        // RFC 6455 4.1: "If the response lacks ... the client MUST _Fail the WebSocket Connection_".
        if !field("Upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
            return HandshakeResponse::Invalid("101 without Upgrade");
        }
        if field("Sec-WebSocket-Accept") != Some(&self.accept) {
            return HandshakeResponse::Invalid("wrong Sec-WebSocket-Accept");
        }
        if field("Sec-WebSocket-Extensions").is_some_and(|value| !value.is_empty()) {
            return HandshakeResponse::Invalid("an extension that was not offered");
        }
        HandshakeResponse::Open(head_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_checked_against_the_request() {
        let (request, mut handshake) = Handshake::request("127.0.0.1:1", "/ws/a");
        assert!(request.starts_with(b"GET /ws/a HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"));
        // The example of RFC 6455 1.3.
        handshake.accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        let check =
            |text: &str, expected| assert_eq!(handshake.parse_response(text.as_bytes()), expected, "{text}");
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        check(good, HandshakeResponse::Open(good.len()));
        check(&format!("{good}\u{1}tail"), HandshakeResponse::Open(good.len()));
        check(&good[..good.len() - 1], HandshakeResponse::Partial);
        check(&good.replace("s3p", "S3P"), HandshakeResponse::Invalid("wrong Sec-WebSocket-Accept"));
        check(&good.replace("upgrade: WebSocket\r\n", ""), HandshakeResponse::Invalid("101 without Upgrade"));
        check(
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\n",
            HandshakeResponse::Status(503),
        );
        check("SSH-2.0-OpenSSH_9.2\r\n", HandshakeResponse::Invalid("not HTTP"));
        let endless = format!("HTTP/1.1 101 x\r\nA: {}", "a".repeat(RESPONSE_BYTES_MAX));
        check(&endless, HandshakeResponse::Invalid("response too long"));
    }
}
