//! Subscribers that receive compressed messages, in memory, and messages that compress well.

use oyez::access::grant::Patterns;
use oyez::ids::SlotId;

use super::deflate::{Decoded, Decoder, upgrade};
use super::rig::{Behavior, Rig, Rng};

/// A subscriber and its decoder.
pub struct Subscriber {
    pub id: SlotId,
    pub decoder: Decoder,
}

impl Subscriber {
    pub fn join(rig: &mut Rig, path: &str, offer: &str) -> Subscriber {
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, upgrade(path, offer).as_bytes());
        rig.turn();
        Subscriber { id, decoder: take_head(rig, id).unwrap() }
    }

    pub fn v1(rig: &mut Rig, offer: &str, channels: &[&str]) -> Subscriber {
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, with_v1(&upgrade("/ws", offer)).as_bytes());
        rig.turn();
        let mut subscriber = Subscriber { id, decoder: take_head(rig, id).unwrap() };
        for channel in channels {
            rig.send_text(id, &format!(r#"{{"type":"subscribe","ch":"{channel}"}}"#));
        }
        rig.turn();
        subscriber.take(rig);
        subscriber
    }

    pub fn take(&mut self, rig: &mut Rig) -> Vec<Decoded> {
        self.decoder.take_all(&mut rig.pipe(self.id).outgoing)
    }

    pub fn texts(&mut self, rig: &mut Rig) -> Vec<String> {
        self.take(rig).into_iter().map(|frame| String::from_utf8(frame.payload).unwrap()).collect()
    }
}

pub fn with_v1(request: &str) -> String {
    request.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: oyez.v1\r\n\r\n")
}

pub fn take_head(rig: &mut Rig, id: SlotId) -> Option<Decoder> {
    let bytes = &mut rig.pipe(id).outgoing;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes.drain(..end).collect()).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    Some(Decoder::of_response(&head))
}

pub fn tick(number: u64) -> String {
    format!(
        r#"{{"symbol":"ACME","bid":{}.{:02},"ask":{}.{:02},"volume":{},"time":"2026-01-01T00:00:{:02}Z","number":{number}}}"#,
        100 + number % 7,
        number * 37 % 100,
        101 + number % 7,
        number * 53 % 100,
        number * 1_009 % 100_000,
        number % 60
    )
}

/// A text that resembles only texts of the same key, from which it differs in the number at its end.
pub fn distinct(key: u64, number: u64) -> String {
    let mut rng = Rng::new(key + 1);
    let words: String = (0..40).map(|_| format!("{:x} ", rng.below(1 << 40))).collect();
    format!("{words}{number}")
}

pub fn patterns(list: &str) -> Patterns {
    Patterns::parse(list.split(',')).unwrap()
}
