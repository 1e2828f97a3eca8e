//! Raw WebSockets that request earlier messages (`?since=`), driven turn by turn. The engine checks its invariants
//! after each turn.

use std::rc::Rc;

use oyez::access::authenticator::Authenticator;
use oyez::access::grant::Grant;
use oyez::config::Limits;
use serde_json::json;

#[cfg(feature = "jwt")]
use crate::support::auth_server::{claims, sign, verifier};
use crate::support::frames::{self, CLOSE};
use crate::support::rig::{Behavior, Rig};

/// No deadline expires during these tests.
fn limits() -> Limits {
    Limits { ping_interval_ms: 0, ..Limits::default() }
}

/// A channel `a` whose history is replayed in several parts.
fn publish_history(rig: &mut Rig) -> Vec<String> {
    let texts: Vec<String> = (0..5).map(|number| format!("{number}{}", "x".repeat(40_000))).collect();
    let publisher = rig.join("/ws/a?echo=0");
    for text in &texts {
        rig.send_text(publisher, text);
        rig.run_until_idle();
    }
    texts
}

#[cfg(feature = "jwt")]
#[test]
fn raw_subscriber_with_token_in_first_message_catches_up_and_goes_live() {
    let mut rig = Rig::new(limits());
    let everything = Rc::new(Grant::everything());
    rig.engine.shared.authenticator =
        Authenticator { verifier: Some(verifier()), anonymous: everything, ..Authenticator::open(10) };
    let mut expected = publish_history(&mut rig);
    let publisher = rig.join("/ws/a?echo=0");
    rig.engine.shared.authenticator.anonymous = Rc::new(Grant::default());
    let token = sign(&claims("alice", &["a"], &["a"], rig.unix_now()));
    let id = rig.join("/ws/a?since=earliest");
    rig.send_text(id, &json!({"type": "auth", "token": token}).to_string());
    rig.run_until_idle();
    assert_eq!(rig.texts(id).len(), expected.len(), "messages published before");
    rig.engine.shared.authenticator.anonymous = Rc::new(Grant::everything());
    rig.send_text(publisher, "new");
    rig.run_until_idle();
    expected.push("new".into());
    assert_eq!(rig.texts(id), expected[5..], "messages published from then on");
}

#[test]
fn raw_subscriber_whose_socket_fails_within_its_replay_is_closed_and_its_last_message_is_published() {
    let mut rig = Rig::new(limits());
    publish_history(&mut rig);
    let witness = rig.join("/ws/a");
    let id = rig.connect(Behavior::LimitedWrites(1_000));
    rig.send(id, frames::upgrade("/ws/a?since=earliest").as_bytes());
    rig.turn();
    assert!(rig.engine.slots.get(id).unwrap().is_replaying());
    rig.pipe(id).behavior = Behavior::WriteError;
    rig.send_without_event(id, &frames::masked(frames::TEXT, b"last"));
    rig.pipe(id).incoming_ends = true;
    rig.turn();
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    let frames = rig.frames(witness);
    assert!(frames.iter().all(|frame| frame.opcode != CLOSE));
    assert_eq!(frames.last().unwrap().payload, b"last");
}
