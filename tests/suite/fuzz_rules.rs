//! The rules of the fuzz targets in tests/fuzz, with inputs that proptest generates and with the corpus of the targets:
//! input from clients, proxies, operators and files. Input from Redis is in `backplane_input`.

use std::fs;
use std::path::Path;

use oyez::wire::Kind;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::checks;
use crate::support::deflate;
use crate::support::frames::{self, BINARY, CONTINUATION, PING, TEXT};

fn joined(parts: Vec<Vec<u8>>) -> Vec<u8> {
    parts.concat()
}

/// One of these texts.
fn word(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    select(words).prop_map(|word| word.as_bytes().to_vec())
}

/// The first bytes of an input, which select its kind.
fn selected(selectors: Vec<u8>, rest: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (select(selectors), rest).prop_map(|(selector, rest)| [vec![selector], rest].concat())
}

fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = word(&[
        "GET /ws HTTP/1.1\r\n",
        "POST http://a:8/b?c HTTP/1.1\r\n",
        "HEAD * HTTP/1.0\r\n",
        "GET / HTTP/1.2\r\n",
        "Host: a\r\n",
        "host:  [::1]:80 \t\r\n",
        "Content-Length: 3\r\n",
        "content-length: 18446744073709551616\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Connection: keep-alive, Upgrade\r\n",
        "Upgrade: websocket\r\n",
        "Origin: null\r\n",
        " folded\r\n",
        "\r\n",
        "\n",
    ]);
    let junk = vec(any::<u8>(), 0..6);
    let parts = vec(prop_oneof![6 => line, 1 => junk], 0..12).prop_map(joined);
    selected(vec![0, 1, 2], parts.prop_map(|bytes| [&bytes[..], b"\r\n\r\n"].concat()))
}

/// Frames, most of them valid.
fn frames_of_clients() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        "[a-zäß€𝄞]{0,9}".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..9),
        (120_usize..400).prop_map(|length| vec![b'x'; length]),
    ];
    let first_byte = prop_oneof![
        8 => select(vec![0x80 | TEXT, 0x80 | BINARY, TEXT, BINARY, CONTINUATION, 0x80 | CONTINUATION, 0x80 | PING]),
        1 => any::<u8>(),
    ];
    let frame =
        (first_byte, payload).prop_map(|(first_byte, payload)| frames::fragment(first_byte, &payload));
    let closes = select(vec![
        frames::close(1000, "bye"),
        frames::close(1005, ""),
        frames::header(0x82, 0x80, 1 << 40),
    ]);
    vec(prop_oneof![12 => frame, 1 => closes, 1 => vec(any::<u8>(), 0..6)], 0..8).prop_map(joined)
}

fn commands() -> impl Strategy<Value = Vec<u8>> {
    let member = word(&[
        r#""type":"publish""#,
        r#""type":"subscribe""#,
        r#""type":"unsubscribe""#,
        r#""type":"ping""#,
        r#""type":"auth""#,
        r#""ch":"a""#,
        r#""ch":"\u0061.b""#,
        r#""since":"latest""#,
        r#""since":"5-6""#,
        r#""echo":false"#,
        r#""data":{"x":[1,2.50,"\ud834\udd1e"]}"#,
        r#""data":null"#,
        r#""text":"a\nb""#,
        r#""base64":"AP8=""#,
        r#""base64":"AP9=""#,
        r#""base64":"AP8=AP8=""#,
        r#""key":"k""#,
        r#""key":"""#,
        r#""token":"e30.e30.AA""#,
        r#""ref":7"#,
        r#""ref":"\ud800""#,
        r#""ref":[]"#,
        r#""other":"\ud800""#,
    ]);
    let nested = (0_usize..80)
        .prop_map(|depth| format!(r#""data":{}{}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes());
    let junk = vec(any::<u8>(), 0..4);
    vec(prop_oneof![12 => member, 1 => nested, 1 => junk], 0..6)
        .prop_map(|members| [b"{", &members.join(&b","[..])[..], b"}"].concat())
}

fn tokens() -> impl Strategy<Value = Vec<u8>> {
    let claim = word(&[
        r#""exp":1800000000"#,
        r#""exp":1900000000.5"#,
        r#""exp":"1900000000""#,
        r#""exp":1799999970"#,
        r#""nbf":1800000031"#,
        r#""nbf":1800000030"#,
        r#""sub":"alice""#,
        r#""sub":"\u202ealice""#,
        r#""sub":7"#,
        r#""aud":"x""#,
        r#""aud":null"#,
        r#""info":{"name":"\u0000"}"#,
        r#""oyez":{"subscribe":["a","room.*"],"publish":["*"]}"#,
        r#""oyez":{"admin":true,"messages_per_second":5}"#,
        r#""oyez":{"admin":1}"#,
        r#""oyez":{"subscribe":["*a"]}"#,
    ]);
    let claims =
        vec(claim, 0..5).prop_map(|claims| [b"{", &claims.join(&b","[..])[..], b"}"].concat()).boxed();
    let header = word(&[
        r#"{"alg":"HS256"}"#,
        r#"{"alg":"none"}"#,
        r#"{"alg":"HS256","crit":[]}"#,
        r#"{"alg":"HS256","kid":"\u0000"}"#,
        r#"{"alg":"RS256"}"#,
    ]);
    let with_header = (header, claims.clone())
        .prop_map(|(header, claims)| [vec![2, header.len() as u8], header, claims].concat());
    let key = word(&[
        r#"{"kty":"oct","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY","kid":"\u001b[31m"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":""}"#,
        r#"{"kty":7,"kid":[1]}"#,
        "{}",
        "7",
    ]);
    let keys =
        vec(key, 0..5).prop_map(|keys| [&b"\x03{\"keys\":["[..], &keys.join(&b","[..])[..], b"]}"].concat());
    let unsigned = "[A-Za-z0-9_.-]{0,60}".prop_map(|token| [b"\0", token.as_bytes()].concat());
    let issued = vec(any::<u8>(), 0..60).prop_map(|bytes| [vec![4], bytes].concat());
    let signed = claims.prop_map(|claims| [vec![1], claims].concat());
    prop_oneof![signed, with_header, keys, unsigned, issued]
}

fn addresses() -> impl Strategy<Value = Vec<u8>> {
    let content =
        (select(vec![0x20_u8, 0x21, 0x11]), select(vec![0x11_u8, 0x21, 0, 0x31]), vec(any::<u8>(), 0..60));
    let header = content.prop_map(|(command, family, content)| {
        [vec![1, command, family, 0, content.len() as u8], content].concat()
    });
    let address = "(10\\.0\\.0\\.[0-9]|203\\.0\\.113\\.[0-9]|::1|unknown|\\[2001:db8::1\\]:80)";
    let lines = format!(
        "(10.0.0.0/8|::/0|x)( ::1)?\n(10.0.0.1|::1|192.0.2.1)(\n{address}(, ?{address}){{0,3}}){{0,3}}"
    );
    let forwarded =
        proptest::string::string_regex(&lines).unwrap().prop_map(|text| [b"\x03", text.as_bytes()].concat());
    prop_oneof![header, forwarded, selected(vec![0, 2], vec(any::<u8>(), 0..60))]
}

fn offers() -> impl Strategy<Value = Vec<u8>> {
    let text = vec(
        word(&[
            "permessage-deflate",
            ";",
            "; ",
            ",",
            "=",
            "\"",
            "\n",
            "client_max_window_bits",
            "server_max_window_bits",
            "15",
            "8",
            "server_no_context_takeover",
        ]),
        0..12,
    );
    prop_oneof![
        selected(vec![0, 2, 4], text.prop_map(joined)),
        selected(vec![1, 3, 5], vec(any::<u8>(), 0..60)),
    ]
}

fn compressed() -> impl Strategy<Value = Vec<u8>> {
    let data = (vec(any::<u8>(), 0..200), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(message, at, change)| {
            let mut data = deflate::deflate(&message, 6);
            let at = at.index(data.len());
            data[at] ^= change & 0x11;
            data
        },
    );
    prop_oneof![selected(vec![0], data), selected((0..=255).collect(), vec(any::<u8>(), 0..300))]
}

fn arguments() -> impl Strategy<Value = Vec<u8>> {
    let word = word(&[
        "serve",
        "pub",
        "sub",
        "token",
        "new",
        "health",
        "print",
        "--listen",
        "--listen=0",
        "--history-bytes-max=1GiB",
        "--drain-seconds",
        "4294967",
        "4294967295",
        "18446744073709551615",
        "-1",
        "--memory-max=0",
        "--anonymous=subscribe=*",
        "--trusted-proxy=10.0.0.0/8",
        "--origin=https://*.example",
        "--backplane=redis://u:p@h/0",
        "--help",
        "--",
        "main",
        "--on-slow=skip",
        "--deflate-exclude=a,b.*",
    ]);
    vec(prop_oneof![8 => word, 1 => vec(any::<u8>(), 0..6)], 0..6).prop_map(|words| words.join(&0))
}

fn sessions() -> impl Strategy<Value = Vec<u8>> {
    let raw = frames_of_clients().prop_map(|bytes| (0, bytes));
    let v1 = vec(commands(), 0..6).prop_map(|lines| (1, lines.join(&b'\n')));
    let request = word(&[
        "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /v1/publish/a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "POST /v1/publish/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "GET /v1/channels HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /v1/channels/a/history?since=earliest HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /nothing HTTP/1.1\r\n\r\n",
        "\r\n",
    ]);
    let requests = vec(prop_oneof![8 => request, 1 => vec(any::<u8>(), 0..6)], 0..5);
    let http = requests.prop_map(|requests| (2, joined(requests)));
    (any::<[u8; 2]>(), prop_oneof![raw, v1, http])
        .prop_map(|(seed, (protocol, bytes))| [vec![protocol], seed.to_vec(), bytes].concat())
}

/// A file that the server has written, with changed bytes; or any bytes.
fn files() -> impl Strategy<Value = Vec<u8>> {
    selected(vec![0, 1, 1, 1, 3], vec(any::<u8>(), 0..60))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn request_head_of_any_form_keeps_the_rules(data in heads()) {
        checks::head::check(&data);
    }

    #[test]
    fn frames_of_any_form_keep_the_rules(data in frames_of_clients(), lengths in any::<[u8; 2]>()) {
        checks::frames::check(&[&lengths[..], &data].concat());
    }

    #[test]
    fn commands_of_any_form_keep_the_rules(data in commands()) {
        checks::commands::check(&data);
    }

    #[test]
    fn tokens_and_key_files_of_any_form_keep_the_rules(data in tokens()) {
        checks::token::check(&data);
    }

    #[test]
    fn addresses_from_proxies_of_any_form_keep_the_rules(data in addresses()) {
        checks::proxy::check(&data);
    }

    #[test]
    fn offered_extensions_of_any_form_keep_the_rules(data in offers()) {
        checks::extensions::check(&data);
    }

    #[test]
    fn compressed_messages_of_any_form_keep_the_rules(data in compressed()) {
        checks::inflate::check(&data);
    }

    #[test]
    fn command_line_of_any_form_keeps_the_rules(data in arguments()) {
        checks::command_line::check(&data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn session_over_a_hostile_transport_keeps_the_rules(data in sessions()) {
        checks::session::check(&data);
    }

    #[test]
    fn history_file_of_any_form_keeps_the_rules(data in files()) {
        checks::history::check(&data);
    }
}

#[test]
fn corpus_of_each_fuzz_target_keeps_the_rules() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (target, check) in checks::ALL {
        let files = fs::read_dir(corpus.join(target)).unwrap_or_else(|error| panic!("{target}: {error}"));
        let count = files.map(|file| check(&fs::read(file.unwrap().path()).unwrap())).count();
        assert!(count >= 4, "{target}: {count} files");
    }
}

/// Tests the reference decoder itself, with the examples of RFC 6455 5.7.
#[test]
fn reference_decoder_decodes_the_examples_of_the_rfc() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let decoded = checks::reference::decode(&hello, 5);
    assert_eq!(decoded.messages, [(Kind::Text, b"Hello".to_vec())]);
    assert!(!decoded.is_ended && decoded.is_at_boundary);
    assert!(checks::reference::decode(&hello, 4).is_ended, "a message above the limit");
    assert!(checks::reference::decode(&[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f], 5).is_ended, "not masked");
    let ping = frames::masked(PING, b"Hello");
    assert_eq!(checks::reference::decode(&ping, 5).pings, [b"Hello"]);
    let fragments = [frames::fragment(TEXT, b"Hel"), frames::masked(CONTINUATION, b"lo")].concat();
    assert_eq!(checks::reference::decode(&fragments, 5).messages, [(Kind::Text, b"Hello".to_vec())]);
    assert!(!checks::reference::decode(&fragments[..9], 5).is_at_boundary);
}
