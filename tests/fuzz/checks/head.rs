//! Request heads: the same end wherever the bytes are cut; fields as a split into lines finds them; and a framing of
//! the body that the head has once, since a proxy in front may take another occurrence.

use oyez::config::Limits;
use oyez::session::http::request::{BodyLength, FieldRoom, HeadEnd, find_head_end, of_known_version, parse};

use super::Input;

/// Fields that the server reads.
const NAMES: [&str; 12] = [
    "accept",
    "authorization",
    "connection",
    "content-length",
    "host",
    "origin",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];

/// The first byte selects the maximum number of fields, the rest is a head.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let head_fields_max = [64, 8, 200][usize::from(input.u8()) % 3];
    let bytes = input.0;
    let whole = find_head_end(bytes, 0);
    for cut in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
        let first = find_head_end(&bytes[..cut], 0);
        let found = if first == HeadEnd::Missing { find_head_end(bytes, cut) } else { first };
        assert_eq!(found, whole, "cut at {cut}");
    }
    if let HeadEnd::At(end) = whole {
        assert!(bytes[..end].ends_with(b"\r\n\r\n"));
        check_head(&bytes[..end], head_fields_max);
    }
}

fn check_head(head: &[u8], head_fields_max: usize) {
    let limits = Limits { head_fields_max, ..Limits::default() };
    let mut room = FieldRoom::new(&limits);
    if let Some(other) = of_known_version(head) {
        assert!(parse(head, &mut FieldRoom::new(&limits), &limits).is_err(), "httparse has no such version");
        assert_eq!((other.len(), of_known_version(&other)), (head.len(), None));
    }
    let Ok(request) = parse(head, &mut room, &limits) else { return };
    let lines = lines(head);
    assert!(lines.len() <= head_fields_max, "{} fields", lines.len());
    for name in NAMES {
        let values = |(_, value): &&(Vec<u8>, Vec<u8>)| value.clone();
        let expected: Vec<Vec<u8>> = lines
            .iter()
            .filter(|(one, _)| one.eq_ignore_ascii_case(name.as_bytes()))
            .map(|line| values(&line))
            .collect();
        assert_eq!(request.fields.all(name).collect::<Vec<_>>(), expected, "{name}");
    }
    let count = |name: &'static str| request.fields.all(name).count();
    match request.body {
        BodyLength::Absent => assert_eq!((count("content-length"), count("transfer-encoding")), (0, 0)),
        BodyLength::Bytes(_) => assert_eq!((count("content-length"), count("transfer-encoding")), (1, 0)),
        BodyLength::Chunked => {
            assert_eq!((count("content-length"), count("transfer-encoding")), (0, 1));
            assert_eq!(request.minor_version, 1);
        }
    }
    assert!(count("host") == 1 || count("host") == 0 && request.minor_version == 0);
    let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(is_visible(request.method) && is_visible(request.path) && is_visible(request.query));
    let host = request.host().expect("one host");
    assert!(host.is_none_or(|host| !host.contains(&b'@') && !host.contains(&b' ')));
}

/// The names and values of the field lines.
fn lines(head: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let text: Vec<char> = head.iter().map(|byte| char::from(*byte)).collect();
    let text: String = text.into_iter().collect();
    let bytes = |text: &str| text.chars().map(|letter| letter as u8).collect::<Vec<u8>>();
    let lines = text.split("\r\n").skip_while(|line| line.is_empty()).skip(1).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').expect("a field has a colon");
            (bytes(name), bytes(value.trim_matches([' ', '\t'])))
        })
        .collect()
}
