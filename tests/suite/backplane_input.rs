//! Anything that Redis may send: the rules of the fuzz targets in tests/fuzz, with inputs that proptest generates.

use proptest::collection::vec;
use proptest::prelude::*;
use redis_protocol::resp2::types::OwnedFrame;

use crate::checks;

/// Replies in pieces, which are mostly well-formed.
fn replies() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        "[+-][ -~\r\n]{0,20}\r\n".prop_map(String::into_bytes),
        "[:$*](-1|-2|[0-9]{1,3}|67108864|[0-9]{19})\r\n".prop_map(String::into_bytes),
        vec(any::<u8>(), 0..40).prop_map(bulk),
        (0_usize..6_000).prop_map(|length| bulk(vec![b'a'; length])),
        vec(any::<u8>(), 0..6),
    ];
    (any::<[u8; 2]>(), vec(line, 0..12))
        .prop_map(|(lengths, lines)| [lengths.to_vec(), lines.concat()].concat())
}

fn bulk(text: Vec<u8>) -> Vec<u8> {
    [format!("${}\r\n", text.len()).into_bytes(), text, b"\r\n".to_vec()].concat()
}

/// A reply that another encoder writes.
fn frame() -> impl Strategy<Value = OwnedFrame> {
    let line = "[ -~]{0,40}";
    let leaf = prop_oneof![
        line.prop_map(|text| OwnedFrame::SimpleString(text.into_bytes())),
        "ERR [ -~]{0,40}".prop_map(OwnedFrame::Error),
        any::<i64>().prop_map(OwnedFrame::Integer),
        vec(any::<u8>(), 0..300).prop_map(OwnedFrame::BulkString),
        Just(OwnedFrame::Null),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| vec(inner, 0..6).prop_map(OwnedFrame::Array))
}

/// An entry of items whose kinds and lengths are plausible.
fn entries() -> impl Strategy<Value = Vec<u8>> {
    let item = (0_u8..13, vec(prop_oneof![any::<u8>(), 0_u8..4, Just(b'a')], 0..60), any::<bool>());
    let header = (Just([1, 0].to_vec()), any::<[u8; 12]>());
    (header, vec(item, 0..5)).prop_map(|((version, numbers), items)| {
        let mut bytes = [version, numbers.to_vec()].concat();
        for (kind, body, is_truncated) in items {
            bytes.push(kind);
            let length = body.len() as u32 + u32::from(is_truncated && kind % 5 == 0);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend(body);
        }
        bytes
    })
}

/// Steps of a link that is connected and open.
fn steps() -> impl Strategy<Value = Vec<u8>> {
    let step = (0_u8..12, vec(prop_oneof![0_u8..4, any::<u8>()], 0..12));
    let opened = vec![2, 3, 0, 0, 4, 0, 0, 0, 0, 0, 4, 0, 1, 1, 1, 0, 0, 1, 0];
    vec(step, 0..20).prop_map(move |steps| {
        let steps = steps.into_iter().flat_map(|(kind, arguments)| [vec![kind], arguments].concat());
        opened.iter().copied().chain(steps).collect()
    })
}

proptest! {
    #[test]
    fn replies_of_any_form_keep_the_rules_of_the_codec(data in replies()) {
        checks::resp::check(&data);
    }

    #[test]
    fn replies_of_another_encoder_are_decoded_in_any_pieces(
        frames in vec(frame(), 1..4),
        lengths in vec(1_usize..70, 1..5),
    ) {
        checks::resp::check_frames(&frames, &lengths);
    }

    #[test]
    fn entries_of_any_form_keep_the_rules_of_the_format(data in entries()) {
        checks::entry::check(&data);
    }

    #[test]
    fn entries_of_any_values_are_decoded_as_they_were_encoded(data in vec(any::<u8>(), 0..3_000)) {
        checks::entry::check(&data);
    }

    #[test]
    fn link_with_replies_of_any_form_answers_each_publish_at_most_once(data in steps()) {
        checks::link::check(&data);
    }
}
