//! Commands of `oyez.v1` clients: one JSON object in each text frame, decoded without copying.
//!
//! Strings without escapes are borrowed, and the JSON of a published value is kept unchanged. Unknown fields are
//! ignored, so that a newer client can talk to an older server. An unknown type is an error, since the request cannot
//! be carried out.

use std::borrow::Cow;

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Kind;
use crate::ids::{ChannelName, Since};
use crate::json_object::JsonObject;

/// Maximum nesting depth of a published JSON value. Applications use a dozen levels; parsers of clients fail at some
/// hundreds to thousands, and some of them crash.
pub const DEPTH_MAX: usize = 64;

/// Maximum length of `ref`, in bytes of JSON: it is stored until the response, which repeats it.
pub const REF_BYTES_MAX: usize = 64;

/// Maximum length of `key`, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

/// A command of a client.
#[derive(Debug)]
pub enum ClientCommand<'a> {
    /// Subscribe to a channel.
    Subscribe {
        /// The channel.
        channel: ChannelName,
        /// The cursor.
        since: Since,
        /// True if the client receives the messages that it publishes itself.
        echo: bool,
    },
    /// Unsubscribe from a channel.
    Unsubscribe {
        /// The channel.
        channel: ChannelName,
    },
    /// Publish a message.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// The kind of the payload.
        kind: Kind,
        /// The payload.
        payload: Cow<'a, [u8]>,
        /// The idempotency key, under which a retry is published once.
        key: Option<Cow<'a, str>>,
    },
    /// Request a pong.
    Ping,
    /// Authenticate.
    Auth {
        /// The token.
        token: Cow<'a, str>,
    },
}

/// A command and its `ref`.
#[derive(Debug)]
pub struct ClientRequest<'a> {
    /// The client's `ref`, which the response repeats.
    pub reference: Option<&'a RawValue>,
    /// The command, or its error.
    pub command: Result<ClientCommand<'a>, BadCommand>,
}

/// An invalid command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadCommand {
    /// The error code, for programs.
    pub code: &'static str,
    /// The error message, which contains no part of the client's input.
    pub message: String,
}

impl BadCommand {
    fn new(code: &'static str, message: impl Into<String>) -> BadCommand {
        BadCommand { code, message: message.into() }
    }
}

#[derive(Deserialize)]
struct RequestFields<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    ch: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    since: Option<BorrowedText<'a>>,
    echo: Option<bool>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    base64: Option<BorrowedText<'a>>,
    #[serde(rename = "ref", borrow)]
    reference: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    token: Option<BorrowedText<'a>>,
}

/// A string that is borrowed if it has no escapes. serde borrows a `Cow` only if it is the type of the whole field, so
/// an `Option` of one needs this newtype.
#[derive(Deserialize)]
#[serde(transparent)]
struct BorrowedText<'a>(#[serde(borrow)] Cow<'a, str>);

/// The `ref` of a request with another invalid field. The other fields are skipped without checks of their types and
/// escapes.
#[derive(Deserialize)]
struct Reference<'a> {
    #[serde(rename = "ref", borrow)]
    reference: Option<&'a RawValue>,
}

/// Parses one request. A field that is `null` is absent, `data` too: serializers write null for each unset field of a
/// type, so null in `data` cannot be distinguished from a missing payload.
pub fn parse(text: &str) -> ClientRequest<'_> {
    // The message of a syntax error would contain the client's input.
    let Ok(JsonObject(fields)) = serde_json::from_str::<JsonObject<RequestFields<'_>>>(text) else {
        // Without the ref a client could not match this error to its request, and would wait for ever.
        let reference = serde_json::from_str::<JsonObject<Reference<'_>>>(text);
        let reference = reference.ok().and_then(|JsonObject(Reference { reference })| reference);
        let why = BadCommand::new(
            "bad_json",
            "a request must be one JSON object with fields of the documented types",
        );
        return ClientRequest {
            reference: reference.filter(|reference| is_reference(reference.get())),
            command: Err(why),
        };
    };
    let reference = fields.reference.filter(|reference| is_reference(reference.get()));
    if fields.reference.is_some() && reference.is_none() {
        let why = format!("ref must be a number or a string of at most {REF_BYTES_MAX} bytes");
        return ClientRequest { reference: None, command: Err(BadCommand::new("bad_ref", why)) };
    }
    ClientRequest { reference, command: command(fields) }
}

fn is_reference(json: &str) -> bool {
    let is_simple = matches!(json.as_bytes().first(), Some(b'"' | b'-' | b'0'..=b'9'));
    is_simple && json.len() <= REF_BYTES_MAX
}

fn command(fields: RequestFields<'_>) -> Result<ClientCommand<'_>, BadCommand> {
    let RequestFields { kind, ch, since, echo, data, text, base64, key, token, .. } = fields;
    let channel = || {
        let BorrowedText(name) =
            ch.as_ref().ok_or_else(|| BadCommand::new("bad_channel", "ch is missing: the channel's name"))?;
        ChannelName::parse(name.as_bytes()).map_err(|why| BadCommand::new("bad_channel", why.to_string()))
    };
    match kind.as_ref().map(|BorrowedText(word)| &word[..]) {
        Some("subscribe") => {
            let since = match &since {
                None => Since::Now,
                Some(BorrowedText(text)) => Since::parse(text.as_bytes())
                    .map_err(|why| BadCommand::new("bad_cursor", why.to_string()))?,
            };
            Ok(ClientCommand::Subscribe { channel: channel()?, since, echo: echo.unwrap_or(true) })
        }
        Some("unsubscribe") => Ok(ClientCommand::Unsubscribe { channel: channel()? }),
        Some("publish") => {
            let channel = channel()?;
            let (kind, payload) = payload(data, text, base64)?;
            let key = key.map(|BorrowedText(key)| key);
            if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > KEY_BYTES_MAX) {
                return Err(BadCommand::new("bad_key", format!("key has 1 to {KEY_BYTES_MAX} bytes")));
            }
            Ok(ClientCommand::Publish { channel, kind, payload, key })
        }
        Some("ping") => Ok(ClientCommand::Ping),
        Some("auth") => {
            let BorrowedText(token) =
                token.ok_or_else(|| BadCommand::new("bad_token", "token is missing"))?;
            Ok(ClientCommand::Auth { token })
        }
        Some(_) => {
            Err(BadCommand::new("unknown_type", "type is subscribe, unsubscribe, publish, auth or ping"))
        }
        None => Err(BadCommand::new(
            "unknown_type",
            "type is missing: subscribe, unsubscribe, publish, auth or ping",
        )),
    }
}

fn payload<'a>(
    data: Option<&'a RawValue>,
    text: Option<BorrowedText<'a>>,
    base64: Option<BorrowedText<'a>>,
) -> Result<(Kind, Cow<'a, [u8]>), BadCommand> {
    match (data, text, base64) {
        (Some(data), None, None) => {
            check_depth(data.get().as_bytes()).map_err(|why| BadCommand::new("too_deep", why.to_string()))?;
            Ok((Kind::Data, Cow::Borrowed(data.get().as_bytes())))
        }
        (None, Some(BorrowedText(Cow::Borrowed(text))), None) => {
            Ok((Kind::Text, Cow::Borrowed(text.as_bytes())))
        }
        (None, Some(BorrowedText(Cow::Owned(text))), None) => Ok((Kind::Text, Cow::Owned(text.into_bytes()))),
        (None, None, Some(BorrowedText(base64))) => match decode_base64(&base64) {
            Some(bytes) => Ok((Kind::Binary, Cow::Owned(bytes))),
            None => Err(BadCommand::new("bad_base64", "base64 is not base64 with padding (RFC 4648 4)")),
        },
        _ => Err(BadCommand::new(
            "bad_payload",
            "the payload is missing or ambiguous: set exactly one of data, text and base64; null is absent",
        )),
    }
}

/// Decodes base64 with padding at its end only. The library also accepts several texts in a row, each with its padding,
/// which would arrive at subscribers as another text than was sent.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let is_padded_within = text.trim_end_matches('=').contains('=');
    BASE64.decode(text.as_bytes()).ok().filter(|_| !is_padded_within)
}

/// The error of [`check_depth`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TooDeep;

impl std::fmt::Display for TooDeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the JSON is nested deeper than {DEPTH_MAX} levels")
    }
}

/// Checks the nesting depth of valid JSON.
///
/// # Errors
/// The JSON is nested deeper than [`DEPTH_MAX`].
fn check_depth(json: &[u8]) -> Result<(), TooDeep> {
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(TooDeep);
                }
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// Checks that the bytes are one JSON value, nested at most [`DEPTH_MAX`] deep.
///
/// # Errors
/// Invalid JSON, or too deep.
pub fn check_json(json: &[u8]) -> Result<(), BadCommand> {
    let bad = || BadCommand::new("bad_json", "the body is not one JSON value");
    let text = std::str::from_utf8(json).map_err(|_| bad())?;
    serde_json::from_str::<&RawValue>(text).map_err(|_| bad())?;
    check_depth(json).map_err(|why| BadCommand::new("too_deep", why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MessageId;

    fn code(text: &str) -> &'static str {
        parse(text).command.map_or_else(|why| why.code, |_| "good")
    }

    #[test]
    fn valid_command_is_parsed() {
        let Ok(ClientCommand::Subscribe { channel, since, echo }) =
            parse(r#"{"type":"subscribe","ch":"a","since":"5-6","unknown":{"x":[1]}}"#).command
        else {
            panic!("a subscribe")
        };
        assert_eq!(
            (channel.as_str(), since, echo),
            ("a", Since::After(MessageId { epoch: 5, seq: 6 }), true)
        );
        let text = r#"{"ref": 7, "type":"publish","ch":"a","data": {"x": [1, 2.50]} }"#;
        let ClientRequest { reference, command: Ok(ClientCommand::Publish { kind, payload, key, .. }) } =
            parse(text)
        else {
            panic!("a publish")
        };
        assert_eq!(
            (reference.unwrap().get(), kind, &payload[..], key),
            ("7", Kind::Data, &br#"{"x": [1, 2.50]}"#[..], None)
        );
        assert!(matches!(payload, Cow::Borrowed(_)), "nothing is copied");
        let escaped = parse(r#"{"type":"publish","ch":"a","text":"a\nb","key":"k"}"#);
        let Ok(ClientCommand::Publish { kind, payload, key, .. }) = escaped.command else {
            panic!("a publish")
        };
        assert_eq!((kind, &payload[..], key.as_deref()), (Kind::Text, &b"a\nb"[..], Some("k")));
        let Ok(ClientCommand::Publish { kind, payload, .. }) =
            parse(r#"{"type":"publish","ch":"a","base64":"AP8="}"#).command
        else {
            panic!("a publish")
        };
        assert_eq!((kind, &payload[..]), (Kind::Binary, &[0, 255][..]));
        assert!(matches!(parse(r#"{"type":"ping"}"#).command, Ok(ClientCommand::Ping)));
        assert!(matches!(
            parse(r#"{"type":"unsubscribe","ch":"a"}"#).command,
            Ok(ClientCommand::Unsubscribe { .. })
        ));
        assert!(matches!(parse(r#"{"type":"auth","token":"x"}"#).command, Ok(ClientCommand::Auth { .. })));
    }

    #[test]
    fn invalid_command_is_rejected_with_its_code() {
        let deep = |levels: usize| {
            format!(r#"{{"type":"publish","ch":"a","data":{}1{}}}"#, "[".repeat(levels), "]".repeat(levels))
        };
        for (text, expected) in [
            ("", "bad_json"),
            ("[]", "bad_json"),
            // The fields of a ping and of a subscription, in the order of the struct.
            (r#"["ping",null,null,null,null,null,null,null,null,null]"#, "bad_json"),
            (r#"["subscribe","a",null,true,null,null,null,7,null,null]"#, "bad_json"),
            ("{\"type\":\"ping\"} x", "bad_json"),
            (r#"{"type":7}"#, "bad_json"),
            (r#"{"type":"ping","type":"ping"}"#, "bad_json"),
            (r#"{}"#, "unknown_type"),
            (r#"{"type":"subscribed"}"#, "unknown_type"),
            (r#"{"type":"subscribe"}"#, "bad_channel"),
            (r#"{"type":"subscribe","ch":"a b"}"#, "bad_channel"),
            (r#"{"type":"subscribe","ch":"a","since":"x"}"#, "bad_cursor"),
            (r#"{"type":"publish","ch":"a"}"#, "bad_payload"),
            (r#"{"type":"publish","ch":"a","data":1,"text":""}"#, "bad_payload"),
            (r#"{"type":"publish","ch":"a","base64":"?"}"#, "bad_base64"),
            (r#"{"type":"publish","ch":"a","base64":"AP8=AP8="}"#, "bad_base64"),
            (r#"{"type":"publish","ch":"a","base64":"AA==AP8A"}"#, "bad_base64"),
            (r#"{"type":"publish","ch":"a","base64":"AP8A===="}"#, "bad_base64"),
            (r#"{"type":"publish","ch":"a","base64":"AP8A"}"#, "good"),
            (r#"{"type":"publish","ch":"a","data":1,"ref":[1]}"#, "bad_ref"),
            (r#"{"type":"publish","ch":"a","data":1,"key":""}"#, "bad_key"),
            (r#"{"type":"auth"}"#, "bad_token"),
            (&deep(DEPTH_MAX + 1), "too_deep"),
            (&deep(100_000), "too_deep"),
            (&deep(DEPTH_MAX), "good"),
            (r#"{"type":"publish","ch":"a","data":null}"#, "bad_payload"),
            (r#"{"type":"publish","ch":"a","data": null ,"text":null,"base64":null}"#, "bad_payload"),
            (r#"{"type":"publish","ch":"a","data":[null]}"#, "good"),
            (r#"{"type":"publish","ch":"a","data":"null"}"#, "good"),
            (r#"{"type":"publish","ch":"a","data":null,"base64":""}"#, "good"),
            (r#"{"type":"publish","ch":"a","data":{},"text":""}"#, "bad_payload"),
            (
                r#"{"type":"publish","ch":"a","data":null,"text":"","base64":null,"key":null,"ref":null}"#,
                "good",
            ),
            (r#"{"type":"subscribe","ch":"a","since":null,"echo":null,"data":null,"token":null}"#, "good"),
        ] {
            assert_eq!(code(text), expected, "{}", &text[..text.len().min(80)]);
        }
        let long = format!(r#"{{"type":"ping","ref":"{}"}}"#, "x".repeat(REF_BYTES_MAX));
        assert_eq!(code(&long), "bad_ref");
    }

    #[test]
    fn invalid_command_keeps_its_ref() {
        for text in [
            r#"{"type":"publish","ch":7,"data":1,"ref":5}"#,
            r#"{"ref":5,"type":["publish"],"ch":"a"}"#,
            r#"{"type":"subscribe","ch":"a","echo":"no","ref":5}"#,
            r#"{"type":"subscribe","ch":"a","since":12,"ref":5}"#,
            r#"{"type":"publish","ch":"a","text":"\ud800","ref":5}"#,
            r#"{"type":"publish","ch":"a","text":"x","key":"\udfff\ud800","ref":5}"#,
            r#"{"type":"publish","type":"publish","ref":5}"#,
        ] {
            let ClientRequest { reference, command } = parse(text);
            assert_eq!(command.unwrap_err().code, "bad_json", "{text}");
            assert_eq!(reference.map(RawValue::get), Some("5"), "{text}");
        }
        for text in [
            r#"{"ch":7,"ref":[1]}"#,
            r#"{"ch":7,"ref":null}"#,
            r#"{"ch":7,"ref":5"#,
            r#"{"ref":5,"ref":5}"#,
            "[2]",
        ] {
            assert!(parse(text).reference.is_none(), "{text}");
        }
    }

    #[test]
    fn brackets_in_strings_do_not_count_as_depth() {
        let text = format!("[\"{}\", \"\\\"{}\"]", "[".repeat(1_000), "{".repeat(1_000));
        assert_eq!(check_json(text.as_bytes()), Ok(()));
        assert_eq!(check_json(b"[1] [2]").unwrap_err().code, "bad_json");
        assert_eq!(check_json(b"\xff").unwrap_err().code, "bad_json");
        assert_eq!(check_json(b"").unwrap_err().code, "bad_json");
    }
}
