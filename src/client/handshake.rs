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
    /// permessage-deflate was offered.
    offers_deflate: bool,
    /// The beginning of a response that arrived in pieces.
    pub received: Vec<u8>,
}

/// The result of parsing a response.
#[derive(Debug, PartialEq, Eq)]
pub enum HandshakeResponse {
    /// The head is not complete.
    Partial,
    /// The connection is open.
    Open {
        /// The offset at which frames begin.
        head_bytes: usize,
        /// permessage-deflate was negotiated (RFC 7692).
        is_deflate_negotiated: bool,
    },
    /// A status other than 101.
    Status(u16),
    /// Not a valid response to this request.
    Invalid(&'static str),
}

impl Handshake {
    /// A request for a path, and the handshake that it starts. It may offer permessage-deflate with all defaults.
    pub fn request(authority: &str, path: &str, offers_deflate: bool) -> (Vec<u8>, Handshake) {
        let key = generate_key();
        let offer = if offers_deflate { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
        );
        let accept = derive_accept_key(key.as_bytes());
        (request.into_bytes(), Handshake { accept, offers_deflate, received: Vec::new() })
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
        let is_deflate_negotiated = match field("Sec-WebSocket-Extensions") {
            None | Some("") => false,
            Some(value) if self.offers_deflate && is_deflate(value) => true,
            Some(_) => return HandshakeResponse::Invalid("an extension that was not offered"),
        };
        HandshakeResponse::Open { head_bytes, is_deflate_negotiated }
    }
}

/// Returns true for a response to an offer of permessage-deflate without parameters. The parameters of a server may then
/// be any but `client_max_window_bits` (RFC 7692 7.1), and none of them changes how its messages are decompressed.
fn is_deflate(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let is_known = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default().trim();
        ["server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits"].contains(&name)
    };
    parts.next() == Some("permessage-deflate") && parts.all(is_known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_checked_against_the_request() {
        let (request, mut handshake) = Handshake::request("127.0.0.1:1", "/ws/a", false);
        assert!(request.starts_with(b"GET /ws/a HTTP/1.1\r\nHost: 127.0.0.1:1\r\n"));
        // The example of RFC 6455 1.3.
        handshake.accept = derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        let check =
            |text: &str, expected| assert_eq!(handshake.parse_response(text.as_bytes()), expected, "{text}");
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: upgrade\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        let open = HandshakeResponse::Open { head_bytes: good.len(), is_deflate_negotiated: false };
        check(good, open);
        let open = HandshakeResponse::Open { head_bytes: good.len(), is_deflate_negotiated: false };
        check(&format!("{good}\u{1}tail"), open);
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

    #[test]
    fn extension_is_accepted_only_if_it_was_offered() {
        let response = |handshake: &Handshake, extension: &str| {
            let text = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Extensions: {extension}\r\n\r\n",
                handshake.accept
            );
            match handshake.parse_response(text.as_bytes()) {
                HandshakeResponse::Open { is_deflate_negotiated, .. } => Some(is_deflate_negotiated),
                _ => None,
            }
        };
        let (request, handshake) = Handshake::request("127.0.0.1:1", "/ws/a", true);
        assert!(request.ends_with(b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"));
        for (extension, expected) in [
            ("", Some(false)),
            ("permessage-deflate", Some(true)),
            ("permessage-deflate; client_no_context_takeover; server_max_window_bits=10", Some(true)),
            ("permessage-deflate; client_max_window_bits=15", None),
            ("permessage-bzip2", None),
        ] {
            assert_eq!(response(&handshake, extension), expected, "{extension}");
        }
        let (_, plain) = Handshake::request("127.0.0.1:1", "/ws/a", false);
        assert_eq!(response(&plain, "permessage-deflate"), None);
    }
}
