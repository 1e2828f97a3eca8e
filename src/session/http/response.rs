//! HTTP/1.1 responses and errors.
//!
//! A response never repeats bytes that a client sent, except an allowed Origin.

use std::fmt::Write as _;
use std::rc::Rc;

use crate::config::Limits;
use crate::plural::plural;
use crate::wire::chunk::LAST_CHUNK;
use crate::wire::{self, Form};

/// The form of a response, as the request asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseOptions {
    /// The `Connection` header.
    pub after: ConnectionHeader,
    /// HEAD: the head of the response, without its body.
    pub head_only: bool,
    /// HTTP/1.1: a body of unknown length is sent in chunks. In HTTP/1.0 it ends with the connection.
    pub is_chunked: bool,
    /// The origin whose pages may read the response, if it is another one.
    pub allowed_origin: Option<AllowedOrigin>,
    /// The value of `Date`, formatted once a second for all responses; empty for none.
    pub date: Rc<str>,
}

/// An origin whose pages may read a response (Fetch, CORS protocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin {
    /// The value of `Access-Control-Allow-Origin`.
    pub origin: Box<str>,
    /// The origin is listed by the operator, so its requests may carry credentials (`withCredentials` of EventSource).
    pub credentials: bool,
}

/// Whether the connection stays open after the response, and how the client learns that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionHeader {
    /// Open, the default of HTTP/1.1.
    #[default]
    KeepAlive,
    /// Open, with `Connection: keep-alive` for an HTTP/1.0 client.
    KeepAliveHeader,
    /// Closed.
    Close,
}

impl ResponseOptions {
    /// A response after which the connection is closed.
    pub fn last(date: Rc<str>) -> ResponseOptions {
        ResponseOptions { after: ConnectionHeader::Close, date, ..ResponseOptions::default() }
    }

    /// A complete response.
    pub fn respond(&self, status: u16, content_type: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut out = self.head(status, fields);
        // RFC 9110 15.3.5 and 15.4.5: neither has a body.
        if status != 204 && status != 304 {
            let _ = write!(out, "Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        if !self.head_only {
            out.extend_from_slice(body);
        }
        out
    }

    /// A complete response in JSON.
    pub fn json(&self, status: u16, body: &str) -> Vec<u8> {
        self.respond(status, "application/json", &[("Cache-Control", "no-store")], body.as_bytes())
    }

    /// The head of a JSON response of unknown length.
    pub fn begin_json(&self) -> Vec<u8> {
        let mut fields = vec![("Cache-Control", "no-store")];
        let mut out = if self.is_chunked {
            fields.push(("Transfer-Encoding", "chunked"));
            self.head(200, &fields)
        } else {
            ResponseOptions { after: ConnectionHeader::Close, ..self.clone() }.head(200, &fields)
        };
        out.push_str("Content-Type: application/json\r\n\r\n");
        out.into_bytes()
    }

    /// The beginning of an event stream: its head, and the reconnection time. It is the last response on its
    /// connection.
    ///
    /// In HTTP/1.1 its body is chunked, so that a client can distinguish its end from a lost connection, and one that
    /// reads by chunks gets each event as it arrives. HTTP/1.0 has no transfer coding: the body ends with the
    /// connection (RFC 9112 6.3), and the head has `Connection: close`.
    ///
    /// `no-transform` (RFC 9111 5.2.2.6) keeps intermediaries from compressing it, which holds events back until
    /// a block of the compressor is full (`compression` of Express); `X-Accel-Buffering` keeps nginx from
    /// collecting them.
    pub fn begin_event_stream(&self) -> Vec<u8> {
        let last = ResponseOptions { after: ConnectionHeader::Close, ..self.clone() };
        let mut fields = vec![("Cache-Control", "no-store, no-transform"), ("X-Accel-Buffering", "no")];
        if self.is_chunked {
            fields.push(("Transfer-Encoding", "chunked"));
        }
        let mut out = last.head(200, &fields);
        out.push_str("Content-Type: text/event-stream\r\n\r\n");
        let mut out = out.into_bytes();
        let form = Form::of_events(self.is_chunked, false);
        out.extend_from_slice(&form.piece(|out| wire::append_retry(out, wire::RETRY_MS)));
        out
    }

    /// An event stream that sets the reconnection time and ends.
    pub fn ended_event_stream(&self) -> Vec<u8> {
        let mut out = self.begin_event_stream();
        if self.is_chunked {
            out.extend_from_slice(LAST_CHUNK);
        }
        out
    }

    /// Status line and fields, without the empty line.
    fn head(&self, status: u16, fields: &[(&str, &str)]) -> String {
        let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let mut out = format!("HTTP/1.1 {status} {}\r\n", phrase.unwrap_or("Error"));
        // RFC 9110 6.6.1: an origin server with a clock sends Date.
        if !self.date.is_empty() {
            let _ = write!(out, "Date: {}\r\n", self.date);
        }
        for (field, value) in fields {
            let _ = write!(out, "{field}: {value}\r\n");
        }
        if let Some(AllowedOrigin { origin, credentials }) = &self.allowed_origin {
            let _ = write!(out, "Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n");
            if *credentials {
                out.push_str("Access-Control-Allow-Credentials: true\r\n");
            }
            // Pages of other origins can read this field only if it is listed.
            out.push_str("Access-Control-Expose-Headers: Retry-After\r\n");
        }
        match self.after {
            ConnectionHeader::KeepAlive => {}
            ConnectionHeader::KeepAliveHeader => out.push_str("Connection: keep-alive\r\n"),
            ConnectionHeader::Close => out.push_str("Connection: close\r\n"),
        }
        out
    }
}

/// The value of `Retry-After` for a time in milliseconds. Never 0: clients would retry at once, all at the same time.
fn retry_after_seconds(retry_ms: u32) -> u32 {
    retry_ms.div_ceil(1_000).max(1)
}

/// An error response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpError {
    status: u16,
    code: &'static str,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl HttpError {
    /// An error with a status, a code for programs and a message for people. The message must not contain a quote, a
    /// backslash or a control character.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> HttpError {
        HttpError { status, code, message: message.into(), fields: Vec::new() }
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(self, retry_ms: u32) -> HttpError {
        self.with("Retry-After", retry_after_seconds(retry_ms).to_string())
    }

    /// The response to a client that speaks plain HTTP where TLS is expected.
    pub fn tls_expected(date: Rc<str>) -> Vec<u8> {
        let error = HttpError::new(400, "tls_expected", "this port uses TLS: use https:// or wss://");
        error.respond(&ResponseOptions::last(date))
    }

    /// 413: the body is over the limit.
    pub fn body_too_large(limits: &Limits) -> HttpError {
        HttpError::new(413, "too_big", format!("the body is over {}", plural(limits.body_bytes_max, "byte")))
    }

    /// 431: the head is over a limit.
    pub fn head_too_large(limits: &Limits) -> HttpError {
        let Limits { head_bytes_max, head_fields_max, .. } = limits;
        let message = format!("the request head is over {head_bytes_max} bytes or {head_fields_max} fields");
        HttpError::new(431, "head_too_large", message)
    }

    /// 400: the request is invalid.
    pub fn bad(message: &str) -> HttpError {
        HttpError::new(400, "bad_request", message)
    }

    /// Adds a header field.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl Into<String>) -> HttpError {
        self.fields.push((field, value.into()));
        self
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns true if the same request may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self.status, 429 | 503)
    }

    /// The error code for programs.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The response bytes.
    pub fn respond(&self, options: &ResponseOptions) -> Vec<u8> {
        let HttpError { status, code, message, fields } = self;
        let body = format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}\n");
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(field, value)| (*field, value.as_str())).collect();
        options.respond(*status, "application/json", &fields, body.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn error_response_has_status_code_and_message() {
        let error = HttpError::new(503, "full", "no room").retry_after(1_000);
        let response = text(error.respond(&ResponseOptions::last(Rc::default())));
        assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"), "{response}");
        let (fields, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(fields.contains(&format!("Content-Length: {}", body.len())), "{response}");
        assert!(fields.contains("\r\nConnection: close\r\n"), "{response}");
        assert_eq!(body, "{\"error\":{\"code\":\"full\",\"message\":\"no room\"}}\n");
    }

    #[test]
    fn options_select_the_header_fields() {
        let allowed_origin = Some(AllowedOrigin { origin: "https://a.example".into(), credentials: true });
        let options = ResponseOptions { head_only: true, allowed_origin, ..ResponseOptions::default() };
        assert_eq!(
            text(options.json(200, "{}")),
            "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nAccess-Control-Allow-Origin: https://a.example\r\n\
             Vary: Origin\r\nAccess-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: Retry-After\r\n\
             Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        );
        let options =
            ResponseOptions { after: ConnectionHeader::KeepAliveHeader, ..ResponseOptions::default() };
        assert_eq!(
            text(options.respond(200, "text/plain", &[], b"ok\n")),
            "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
        );
        let dated =
            ResponseOptions { date: "Sun, 06 Nov 1994 08:49:37 GMT".into(), ..ResponseOptions::default() };
        assert_eq!(
            text(dated.respond(200, "text/plain", &[], b"")),
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(
            text(ResponseOptions::default().respond(204, "", &[], b"")),
            "HTTP/1.1 204 No Content\r\n\r\n"
        );
    }
}
