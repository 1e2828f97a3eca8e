//! Describes the error in an HTTP response of the server, for a terminal.

use serde::Deserialize;

/// Maximum length of a response that is read, in bytes: an id, or an error message.
pub const RESPONSE_BYTES_MAX: usize = 64 << 10;

#[derive(Deserialize)]
struct ErrorResponse {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
}

/// Describes the response of an Oyez server by its code and message, and any other by its status.
pub fn describe(status: u16, body: &[u8]) -> String {
    match serde_json::from_slice(body) {
        // The text is printed on a terminal, so control characters are escaped.
        Ok(ErrorResponse { error: ErrorBody { code, message } }) => {
            format!("{status} {}: {}", code.escape_debug(), message.escape_debug())
        }
        Err(_) => format!("the server returned {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_described_by_its_body_or_its_status() {
        let body = br#"{"error":{"code":"bad_request","message":"no \u001b[31m"}}"#;
        assert_eq!(describe(400, body), r"400 bad_request: no \u{1b}[31m");
        for other in ["", "<html>", "{}", r#"{"error":"bad"}"#, r#"{"error":{"code":"#] {
            assert_eq!(describe(502, other.as_bytes()), "the server returned 502");
        }
    }
}
