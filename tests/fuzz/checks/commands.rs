//! Commands of `oyez.v1`: fields as another JSON parser reads them; the same command after it is encoded again; a `ref`
//! that is short and simple; and errors with a documented code.

use std::borrow::Cow;

use data_encoding::BASE64;
use oyez::ids::Since;
use oyez::wire::Kind;
use oyez::wire::command::{
    ClientCommand, ClientRequest, DEPTH_MAX, KEY_BYTES_MAX, REF_BYTES_MAX, check_json, parse,
};
use serde_json::{Value, json};

/// The codes of the manual.
const CODES: [&str; 10] = [
    "bad_base64",
    "bad_channel",
    "bad_cursor",
    "bad_json",
    "bad_key",
    "bad_payload",
    "bad_ref",
    "bad_token",
    "too_deep",
    "unknown_type",
];

/// The input is the text of one frame, or the body of a request.
pub fn check(data: &[u8]) {
    check_body(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let ClientRequest { reference, command } = parse(text);
    let oracle = serde_json::from_str::<Value>(text).ok();
    if let Some(reference) = reference {
        let json = reference.get();
        assert!(json.len() <= REF_BYTES_MAX, "{json}");
        // Numbers of any size, and escapes, are returned unchanged.
        assert!(json.starts_with(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']), "{json}");
        if let (Some(oracle), Ok(reference)) = (&oracle, serde_json::from_str::<Value>(json)) {
            assert_eq!(oracle["ref"], reference);
        }
    }
    match &command {
        Err(why) => assert!(CODES.contains(&why.code) && !why.message.is_empty(), "{why:?}"),
        Ok(command) => {
            if let Some(oracle) = oracle {
                check_fields(command, &oracle);
            }
            let again = encode(command);
            let ClientRequest { command: second, .. } = parse(&again);
            assert_eq!(format!("{:?}", second.expect("an encoded command")), owned(command), "{again}");
        }
    }
}

/// `Debug` of a command, which is the same for borrowed and owned fields.
fn owned(command: &ClientCommand<'_>) -> String {
    format!("{command:?}")
}

fn check_fields(command: &ClientCommand<'_>, oracle: &Value) {
    let is = |name: &str, text: &str| assert_eq!(oracle[name], json!(text), "{name}");
    match command {
        ClientCommand::Subscribe { channel, since, echo } => {
            is("type", "subscribe");
            is("ch", channel.as_str());
            assert_eq!(oracle["echo"].as_bool().unwrap_or(true), *echo);
            assert_eq!(*since == Since::Now, oracle["since"].is_null());
        }
        ClientCommand::Unsubscribe { channel } => {
            is("type", "unsubscribe");
            is("ch", channel.as_str());
        }
        ClientCommand::Publish { channel, kind, payload, key } => {
            is("type", "publish");
            is("ch", channel.as_str());
            match kind {
                Kind::Text => assert_eq!(oracle["text"].as_str().map(str::as_bytes), Some(&payload[..])),
                Kind::Binary => is("base64", &BASE64.encode(payload)),
                Kind::Data => assert_eq!(serde_json::from_slice::<Value>(payload).unwrap(), oracle["data"]),
            }
            assert_eq!(key.as_deref(), oracle["key"].as_str());
            assert!(key.as_ref().is_none_or(|key| (1..=KEY_BYTES_MAX).contains(&key.len())));
        }
        ClientCommand::Ping => is("type", "ping"),
        ClientCommand::Auth { token } => {
            is("type", "auth");
            is("token", token);
        }
    }
}

fn encode(command: &ClientCommand<'_>) -> String {
    let text = |text: &str| serde_json::to_string(text).unwrap();
    match command {
        ClientCommand::Subscribe { channel, since, echo } => {
            let since = match since {
                Since::Now => "null".to_owned(),
                Since::Latest => text("latest"),
                Since::Earliest => text("earliest"),
                Since::After(id) => text(&id.to_string()),
            };
            format!(r#"{{"type":"subscribe","ch":"{}","since":{since},"echo":{echo}}}"#, channel.as_str())
        }
        ClientCommand::Unsubscribe { channel } => {
            format!(r#"{{"type":"unsubscribe","ch":"{}"}}"#, channel.as_str())
        }
        ClientCommand::Publish { channel, kind, payload, key } => {
            let payload = match kind {
                Kind::Text => format!(r#""text":{}"#, text(std::str::from_utf8(payload).expect("a text"))),
                Kind::Binary => format!(r#""base64":"{}""#, BASE64.encode(payload)),
                Kind::Data => format!(r#""data":{}"#, std::str::from_utf8(payload).expect("JSON")),
            };
            let key = key.as_ref().map(|key| format!(r#","key":{}"#, text(key))).unwrap_or_default();
            format!(r#"{{"type":"publish","ch":"{}",{payload}{key}}}"#, channel.as_str())
        }
        ClientCommand::Ping => r#"{"type":"ping"}"#.to_owned(),
        ClientCommand::Auth { token } => format!(r#"{{"type":"auth","token":{}}}"#, text(token)),
    }
}

/// The body of a request that publishes JSON.
fn check_body(data: &[u8]) {
    let is_accepted = check_json(data).is_ok();
    let text = String::from_utf8_lossy(data);
    if let Cow::Borrowed(text) = text
        && let Ok(value) = serde_json::from_str::<Value>(text)
    {
        // The other parser keeps the last of the members with one name, and they count here.
        assert!(!is_accepted || depth(&value) <= DEPTH_MAX, "{value}");
    }
    assert!(!is_accepted || std::str::from_utf8(data).is_ok());
}

fn depth(value: &Value) -> usize {
    let deepest = |depths: &mut dyn Iterator<Item = usize>| 1 + depths.max().unwrap_or(0);
    match value {
        Value::Array(values) => deepest(&mut values.iter().map(depth)),
        Value::Object(members) => deepest(&mut members.values().map(depth)),
        _ => 0,
    }
}
