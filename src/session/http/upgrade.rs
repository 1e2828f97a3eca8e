//! The server side of the WebSocket opening handshake (RFC 6455 4.2).
//!
//! tungstenite builds the request and the response as full tables of header fields, which is most of a handshake's cost
//! outside the kernel. Here only the accept key is computed by tungstenite.

use tungstenite::handshake::derive_accept_key;

use super::extensions::{Accepted, Compression};
use super::request::Request;
use super::response::HttpError;
use crate::config::DeflateMode;

/// The protocol of a WebSocket's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Payloads as they are.
    Raw,
    /// One JSON object in each text frame.
    V1,
}

/// The field in which subprotocols are offered.
pub(in crate::session) const PROTOCOLS: &str = "sec-websocket-protocol";

/// The subprotocol's name (RFC 6455 1.9).
pub const V1: &str = "oyez.v1";

/// An upgrade that is accepted.
#[derive(Debug)]
pub struct Upgrade {
    /// The 101 response.
    pub response: Vec<u8>,
    /// The negotiated subprotocol.
    pub protocol: Protocol,
    /// The negotiated extension.
    pub compression: Compression,
}

/// Returns the 101 response, and the negotiated parameters. `date` is the value of `Date`, which RFC 9110 6.6.1 makes
/// optional in a 1xx response: a client whose clock is wrong can detect that here too.
///
/// # Errors
/// RFC 6455 4.2.1: the request has no WebSocket upgrade, or an invalid one.
pub fn accept(request: &Request<'_>, date: &str, mode: DeflateMode) -> Result<Upgrade, HttpError> {
    let upgrade_required = |message: &str| {
        HttpError::new(426, "upgrade_required", message)
            .with("Upgrade", "websocket")
            .with("Sec-WebSocket-Version", "13")
    };
    let fields = request.fields;
    // RFC 9110 7.8: Upgrade is ignored in HTTP/1.0, which nginx passes on unless configured otherwise.
    if request.minor_version == 0 && fields.lists("upgrade", "websocket") {
        return Err(upgrade_required(
            "a WebSocket requires HTTP/1.1, and this request arrived as HTTP/1.0: configure the proxy in front to \
             use 1.1 (nginx: proxy_http_version 1.1)",
        ));
    }
    if request.minor_version == 0
        || !fields.lists("upgrade", "websocket")
        || !fields.lists("connection", "upgrade")
    {
        return Err(upgrade_required(
            "this is a WebSocket endpoint: send Connection: Upgrade and Upgrade: websocket",
        ));
    }
    match fields.one("sec-websocket-version") {
        Ok(Some(b"13")) => {}
        Ok(_) => return Err(upgrade_required("Sec-WebSocket-Version must be 13 (RFC 6455)")),
        Err(_) => return Err(HttpError::bad("Sec-WebSocket-Version is repeated")),
    }
    let key = match fields.one("sec-websocket-key") {
        Ok(Some(key)) if is_key(key) => key,
        _ => return Err(HttpError::bad("Sec-WebSocket-Key must be sent once, with 16 bytes in base64")),
    };
    // RFC 6455 4.2.2: the server selects one of the offered subprotocols, or none if it supports none of them.
    let protocol =
        if fields.list(PROTOCOLS).any(|one| one == V1.as_bytes()) { Protocol::V1 } else { Protocol::Raw };
    let extension = Accepted::select(mode, fields.all("sec-websocket-extensions"));
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nDate: ",
    );
    out.extend_from_slice(date.as_bytes());
    out.extend_from_slice(b"\r\n");
    if protocol == Protocol::V1 {
        out.extend_from_slice(b"Sec-WebSocket-Protocol: oyez.v1\r\n");
    }
    if let Some(extension) = extension {
        extension.append_field(&mut out);
    }
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(derive_accept_key(key).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    let compression = extension.map_or(Compression::None, |accepted| accepted.compression(mode));
    Ok(Upgrade { response: out, protocol, compression })
}

/// 16 bytes in base64: 22 letters and the padding (RFC 6455 4.1). The last letter carries four bits that belong to no
/// byte; some clients set them, and RFC 6455 4.2.2 needs the key as text only: "it is not necessary for the server to
/// base64-decode the value".
fn is_key(key: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.strip_suffix(b"==").is_some_and(|letters| letters.iter().all(is_letter))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use crate::session::http::request::{FieldRoom, parse};

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn head(fields: &str) -> String {
        format!(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\n{fields}\r\n"
        )
    }

    fn upgrade(head: &str) -> Result<(String, Protocol), u16> {
        let limits = Limits::default();
        let mut room = FieldRoom::new(&limits);
        let request = parse(head.as_bytes(), &mut room, &limits).map_err(|error| error.status())?;
        match accept(&request, DATE, DeflateMode::Context) {
            Ok(Upgrade { response, protocol, .. }) => Ok((String::from_utf8(response).unwrap(), protocol)),
            Err(error) => Err(error.status()),
        }
    }

    #[test]
    fn response_has_the_accept_key_of_the_rfc() {
        let (response, protocol) = upgrade(&head(KEY)).unwrap();
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
        // The example of RFC 6455 1.3.
        assert!(
            response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"),
            "{response}"
        );
        assert!(response.contains(&format!("\r\nDate: {DATE}\r\n")), "{response}");
        assert!(!response.contains("Protocol:"));
        assert_eq!(protocol, Protocol::Raw);
    }

    #[test]
    fn key_with_spare_bits_set_is_accepted() {
        for last in ["A", "Q", "R", "/", "9"] {
            let key = format!("AAAAAAAAAAAAAAAAAAAAA{last}==");
            let (response, _) = upgrade(&head(&format!("Sec-WebSocket-Key: {key}\r\n"))).unwrap();
            let accept = derive_accept_key(key.as_bytes());
            assert!(response.contains(&format!("Sec-WebSocket-Accept: {accept}\r\n")), "{response}");
        }
    }

    #[test]
    fn offered_subprotocol_is_selected() {
        let offer = |fields: &str| upgrade(&head(&format!("{KEY}{fields}"))).unwrap();
        let (response, protocol) = offer("Sec-WebSocket-Protocol: chat, oyez.v1\r\n");
        assert_eq!(protocol, Protocol::V1);
        assert!(response.contains("\r\nSec-WebSocket-Protocol: oyez.v1\r\n"), "{response}");
        assert_eq!(offer("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: oyez.v1\r\n").1, Protocol::V1);
        for other in ["chat", "oyez.v2", "OYEZ.V1", "oyez.v1x"] {
            let (response, protocol) = offer(&format!("Sec-WebSocket-Protocol: {other}\r\n"));
            assert_eq!(protocol, Protocol::Raw);
            assert!(!response.contains("Protocol:"), "{response}");
        }
    }

    #[cfg(feature = "deflate")]
    #[test]
    fn offered_extension_is_confirmed() {
        let (response, _) = upgrade(&head(KEY)).unwrap();
        assert!(!response.contains("Extensions"), "{response}");
        let offers = "Sec-WebSocket-Extensions: x; a=1\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
        let (response, _) = upgrade(&head(&format!("{KEY}{offers}"))).unwrap();
        let field = "\r\nSec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n";
        assert!(response.contains(field), "{response}");
        assert_eq!(response.matches("Extensions").count(), 1);
    }

    #[test]
    fn valid_upgrade_request_is_accepted() {
        let two_lines = head(&format!("{KEY}Connection: keep-alive\r\nUpgrade: h2c\r\n"));
        let one_list = head(KEY)
            .replace("Upgrade: websocket", "Upgrade: WebSocket, h2c")
            .replace("Connection: Upgrade", "Connection: keep-alive, upgrade");
        for good in [two_lines, one_list, head(&format!("{KEY}Content-Length: 0\r\n"))] {
            assert!(upgrade(&good).is_ok(), "{good}");
        }
    }

    #[test]
    fn invalid_upgrade_request_is_rejected() {
        let good = head(KEY);
        let check = |head: String, expected: u16| assert_eq!(upgrade(&head), Err(expected), "{head}");
        let without = |part: &str| {
            assert!(good.contains(part));
            good.replace(part, "")
        };
        check(without(KEY), 400);
        check(head(&format!("{KEY}{KEY}")), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=!"), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQAA"), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ==="), 400);
        check(good.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j-Q=="), 400);
        check(without("Upgrade: websocket\r\n"), 426);
        check(without("Connection: Upgrade\r\n"), 426);
        check(without("Sec-WebSocket-Version: 13\r\n"), 426);
        check(good.replace("Version: 13", "Version: 8"), 426);
        check(head(&format!("{KEY}Sec-WebSocket-Version: 13\r\n")), 400);
        check(good.replace("HTTP/1.1", "HTTP/1.0"), 426);
    }
}
