//! Token expiry, in memory: tests set the wall clock and advance the loop time, so that deadlines, grace periods and
//! leeways are exact.

use std::rc::Rc;
use std::time::Instant;

use oyez::access::authenticator::Authenticator;
use oyez::access::grant::Grant;
use oyez::access::limit::Limit;
use oyez::config::Limits;
use oyez::ids::SlotId;
use serde_json::json;

use crate::support::auth_server::{AuthServer, bearer, claims, sign, unix_now, verifier};
use crate::support::frames::{self, upgrade_with};
use crate::support::http::request;
use crate::support::rig::{Behavior, Rig};

const V1: &str = "Sec-WebSocket-Protocol: oyez.v1\r\n";

fn rig(anonymous: Grant) -> Rig {
    let mut rig = Rig::new(Limits { pong_timeout_ms: 24 * 60 * 60 * 1_000, ..Limits::default() });
    rig.engine.shared.authenticator = Authenticator {
        verifier: Some(verifier()),
        anonymous: Rc::new(anonymous),
        ..Authenticator::open(10)
    };
    rig
}

/// A token that expires in this many seconds.
fn ends_in(rig: &Rig, seconds: u64) -> String {
    let mut claims = claims("alice", &["a"], &["a"], rig.unix_now());
    claims.exp = rig.unix_now() + seconds;
    sign(&claims)
}

fn open(rig: &mut Rig, lines: &str) -> SlotId {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, upgrade_with("/ws/a", lines).as_bytes());
    rig.run_until_idle();
    let head = String::from_utf8_lossy(&rig.pipe(id).outgoing).into_owned();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let end = head.find("\r\n\r\n").unwrap() + 4;
    rig.pipe(id).outgoing.drain(..end);
    rig.frames(id);
    id
}

/// The close frame that it received, if any.
fn closed(rig: &mut Rig, id: SlotId) -> Option<(u16, String)> {
    let frames = rig.frames(id);
    frames.iter().find(|frame| frame.opcode == frames::CLOSE).map(|frame| frame.close_code())
}

#[test]
fn client_without_rights_and_token_is_closed_after_ten_seconds() {
    let mut rig = rig(Grant::default());
    for lines in ["", V1] {
        let (silent, shows) = (open(&mut rig, lines), open(&mut rig, lines));
        rig.advance_ms(9_500);
        assert_eq!(closed(&mut rig, silent), None);
        let token = ends_in(&rig, 3_600);
        rig.send_text(shows, &json!({"type": "auth", "token": token}).to_string());
        rig.advance_ms(1_000);
        assert_eq!(closed(&mut rig, silent), Some((4008, "auth_timeout".into())), "{lines}");
        rig.advance_ms(600_000);
        assert_eq!(closed(&mut rig, shows), None, "{lines}");
    }
}

#[test]
fn auth_timeout_and_token_grace_follow_their_flags() {
    let guarded = AuthServer::start(&["--auth-timeout-ms=300", "--token-grace-ms=200"]);
    let start = Instant::now();
    assert_eq!(guarded.closed("/ws/a", ""), (4008, "auth_timeout".into()));
    assert!(start.elapsed().as_millis() >= 250, "{:?}", start.elapsed());
    // Within the leeway of clocks the token is accepted, and has its grace.
    let mut claims = claims("alice", &["a"], &["a"], unix_now());
    claims.exp = unix_now() - 1;
    let start = Instant::now();
    assert_eq!(guarded.closed("/ws/a", &bearer(&sign(&claims))), (4201, "token_expired".into()));
    assert!(start.elapsed().as_millis() >= 150, "{:?}", start.elapsed());
}

#[test]
fn anonymous_client_with_rights_is_not_closed_without_token() {
    let mut rig = rig(Grant::anonymous("subscribe=a").unwrap());
    let id = open(&mut rig, V1);
    rig.advance_ms(600_000);
    assert_eq!(closed(&mut rig, id), None);
}

#[test]
fn expired_token_closes_after_the_grace() {
    let mut rig = rig(Grant::default());
    for lines in ["", V1] {
        let token = ends_in(&rig, 60);
        let id = open(&mut rig, &format!("{lines}{}", bearer(&token)));
        rig.advance_ms(60_000 + 24_000);
        assert_eq!(closed(&mut rig, id), None, "{lines}");
        rig.advance_ms(2_500);
        assert_eq!(closed(&mut rig, id), Some((4201, "token_expired".into())), "{lines}");
    }
    let token = ends_in(&rig, 60);
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, request("GET", "/sse/a", &bearer(&token)).as_bytes());
    rig.advance_ms(84_000);
    assert!(!rig.pipe(id).outgoing_ended);
    rig.advance_ms(2_500);
    assert!(rig.pipe(id).outgoing_ended, "a stream of events too");
}

#[test]
fn token_renewed_within_the_grace_keeps_the_connection() {
    let mut rig = rig(Grant::default());
    for lines in ["", V1] {
        let token = ends_in(&rig, 60);
        let id = open(&mut rig, &format!("{lines}{}", bearer(&token)));
        for _ in 0..5 {
            rig.advance_ms(80_000);
            let next = ends_in(&rig, 60);
            rig.send_text(id, &json!({"type": "auth", "token": next}).to_string());
            rig.turn();
        }
        assert_eq!(closed(&mut rig, id), None, "{lines}");
        rig.advance_ms(90_000);
        assert_eq!(closed(&mut rig, id), Some((4201, "token_expired".into())), "{lines}");
    }
}

/// Accepted within the leeway, it has its grace; it is not closed at once only to reconnect with the same token.
#[test]
fn token_from_a_slow_clock_is_accepted_within_the_leeway() {
    let mut rig = rig(Grant::default());
    rig.advance_ms(100_000);
    let mut claims = claims("alice", &["a"], &["a"], rig.unix_now());
    claims.exp = rig.unix_now() - 28;
    let id = open(&mut rig, &bearer(&sign(&claims)));
    rig.advance_ms(24_000);
    assert_eq!(closed(&mut rig, id), None);
    rig.advance_ms(2_000);
    assert_eq!(closed(&mut rig, id), Some((4201, "token_expired".into())));
}

/// A moment spans 24 days, and a token may be good for years.
#[test]
fn token_longer_than_the_clock_range_stays_valid() {
    let mut rig = rig(Grant::default());
    let day = 24 * 60 * 60;
    let token = ends_in(&rig, 40 * day);
    let id = open(&mut rig, &bearer(&token));
    let deadline = rig.engine.slots.get(id).unwrap().state.deadline().unwrap();
    assert!(!deadline.is_due(rig.now), "as 40 days ahead it would look long past");
    for _ in 0..39 {
        // The peer sends pongs, in long steps.
        rig.now = rig.now.after(day as u32 * 1_000);
        rig.engine.shared.authenticator.unix_now += day;
        rig.send(id, &frames::masked(frames::PONG, b""));
        let unix_now = rig.engine.shared.authenticator.unix_now;
        rig.engine.read(rig.now);
        rig.engine.deliver(rig.now);
        rig.engine.expire(rig.now);
        assert_eq!(unix_now, rig.engine.shared.authenticator.unix_now);
        assert!(rig.is_alive(id));
    }
    assert_eq!(closed(&mut rig, id), None);
}

/// Verifying a signature costs as much as a hundred messages. A token that arrives too soon is not verified, valid or
/// not.
#[test]
fn token_sent_too_soon_after_others_is_not_verified() {
    let mut rig = rig(Grant::default());
    rig.engine.shared.limits.auths_per_second = 2;
    let shows = |token: &str| json!({"type": "auth", "token": token, "ref": 7}).to_string();
    let (v1, raw) = (open(&mut rig, V1), open(&mut rig, ""));
    let (good, of_nothing) = (ends_in(&rig, 3_600), sign(&claims("alice", &[], &[], rig.unix_now())));
    for id in [v1, raw] {
        rig.send_text(id, &shows(&good));
        rig.send_text(id, &shows(&good));
        rig.run_until_idle();
    }
    assert_eq!(rig.texts(v1).iter().filter(|text| text.contains("authenticated")).count(), 2);
    for token in [&of_nothing, "x"] {
        rig.send_text(v1, &shows(token));
        rig.run_until_idle();
        let said = rig.texts(v1).concat();
        assert!(said.contains("\"code\":\"rate_limited\"") && said.contains("\"ref\":7"), "{said}");
        assert!(said.contains("retry_ms=500\""), "{said}");
    }
    rig.send_text(v1, r#"{"type":"publish","ch":"a","text":"still its rights"}"#);
    rig.run_until_idle();
    assert!(rig.texts(v1).concat().contains("\"ack\""));
    assert_eq!(rig.texts(raw), ["still its rights"]);
    rig.send_text(raw, &shows("x"));
    rig.run_until_idle();
    assert_eq!(closed(&mut rig, raw), Some((4101, "rate_limited retry_ms=500".into())));
    assert_eq!(rig.engine.shared.metrics.rate_limited[Limit::Auths as usize], 3);
    rig.advance_ms(500);
    rig.send_text(v1, &shows(&of_nothing));
    rig.run_until_idle();
    assert!(rig.texts(v1).concat().contains("authenticated"));
    rig.send_eof(raw);
    rig.send_eof(v1);
    rig.run_until_idle();
    assert!(rig.engine.shared.authenticator.auths.is_empty(), "nothing is kept of who is gone");
}

/// The table of clients that sent tokens is as large as the number that did so recently.
#[test]
fn token_rate_entry_of_an_old_client_is_removed() {
    let mut rig = rig(Grant::default());
    let subscribers: Vec<SlotId> = (0..200).map(|_| open(&mut rig, V1)).collect();
    for id in subscribers {
        let token = ends_in(&rig, 3_600);
        rig.send_text(id, &json!({"type": "auth", "token": token}).to_string());
        rig.advance_ms(100);
    }
    assert!(
        rig.engine.shared.authenticator.auths.len() <= 64,
        "{}",
        rig.engine.shared.authenticator.auths.len()
    );
}

/// Clocks may differ for a ticket as they may for its token, and no more.
#[test]
fn ticket_expires_with_its_token() {
    let mut rig = rig(Grant::default());
    let now = rig.unix_now();
    let ticket = |rig: &mut Rig, exp: u64| {
        let mut claims = claims("alice", &["a"], &["a"], now);
        claims.exp = exp;
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, request("POST", "/v1/tickets", &bearer(&sign(&claims))).as_bytes());
        rig.run_until_idle();
        rig.responses(id)[0].json()["ticket"].as_str().unwrap().to_owned()
    };
    let (ended, ends, lasts) =
        (ticket(&mut rig, now - 25), ticket(&mut rig, now + 5), ticket(&mut rig, now + 60));
    rig.advance_ms(10_000);
    for (ticket, status) in [(ended, 401), (ends, 200), (lasts, 200)] {
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, request("GET", &format!("/sse/a?ticket={ticket}"), "").as_bytes());
        rig.run_until_idle();
        let said = String::from_utf8_lossy(&rig.pipe(id).outgoing).into_owned();
        assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    }
}
