//! A server that is idle for weeks: its 32-bit clock of milliseconds wraps, and no state recorded before may look
//! new. In memory; the loop sleeps for as long as the engine allows, as the real one does.

use std::rc::Rc;

use oyez::access::authenticator::Authenticator;
use oyez::access::grant::Grant;
use oyez::config::Limits;
use oyez::ids::SlotId;

#[cfg(feature = "jwt")]
use crate::support::auth_server::{claims, sign, verifier};
use crate::support::frames::{self, CLOSE};
use crate::support::http::{get, post};
use crate::support::rig::{Behavior, Rig};

const DAY_MS: u32 = 24 * 60 * 60 * 1_000;

/// Between half of the clock's span and all of it, an old time looks like one in the future.
const DAYS: [u32; 4] = [1, 26, 40, 49];

/// Advances the time by days, with no event but the engine's own deadlines.
fn idle(rig: &mut Rig, days: u32) {
    let mut turns = 0;
    for _ in 0..days {
        let day = rig.now.after(DAY_MS);
        // A wake for each turn that the engine asks for, and at most a day of sleep, so that the test sees days pass.
        while let Some(next) = rig.engine.next_expiry(rig.now)
            && !day.is_due(next)
        {
            rig.now = if next == rig.now { next.after(1) } else { next };
            rig.turn();
            turns += 1;
            assert!(turns < 10_000, "the loop does not sleep");
        }
        rig.now = day;
    }
}

fn ask(rig: &mut Rig, request: &str) -> u16 {
    let id = rig.connect(Behavior::Cooperative);
    rig.send(id, request.as_bytes());
    rig.run_until_idle();
    let status = rig.responses(id)[0].status;
    rig.send_eof(id);
    rig.run_until_idle();
    assert!(!rig.is_alive(id));
    status
}

#[cfg(feature = "jwt")]
#[test]
fn ticket_is_expired_after_weeks_without_requests() {
    for days in DAYS {
        let mut rig = Rig::new(Limits::default());
        let claims = claims("alice", &["a"], &["a"], rig.unix_now());
        let lines = format!("Authorization: Bearer {}\r\n", sign(&claims));
        rig.engine.shared.authenticator =
            Authenticator { verifier: Some(verifier()), anonymous: Rc::default(), ..Authenticator::open(10) };
        let id = rig.connect(Behavior::Cooperative);
        rig.send(id, post("/v1/tickets", &lines, "").as_bytes());
        rig.run_until_idle();
        let answer = rig.responses(id).remove(0);
        let ticket = answer.json()["ticket"].as_str().unwrap().to_owned();
        rig.send_eof(id);
        rig.run_until_idle();
        idle(&mut rig, days);
        assert_eq!(rig.engine.shared.authenticator.tickets.len(), 0, "it left the table by itself");
        assert_eq!(ask(&mut rig, &get(&format!("/sse/a?ticket={ticket}"))), 401, "{days} days later");
    }
}

#[test]
fn address_may_connect_again_after_weeks() {
    for days in DAYS {
        let mut rig = Rig::new(Limits { handshakes_per_second: 1, ..Limits::default() });
        assert_eq!((ask(&mut rig, &get("/healthz")), ask(&mut rig, &get("/healthz"))), (200, 429));
        idle(&mut rig, days);
        assert_eq!(ask(&mut rig, &get("/healthz")), 200, "{days} days later");
    }
}

fn is_closed(rig: &mut Rig, id: SlotId) -> bool {
    rig.frames(id).iter().any(|frame| frame.opcode == CLOSE)
}

#[test]
fn publisher_may_publish_again_after_weeks_of_silence() {
    for days in DAYS {
        let limits = Limits { messages_per_second: 1, ping_interval_ms: 0, ..Limits::default() };
        let mut rig = Rig::new(limits);
        rig.engine.shared.authenticator.anonymous = Rc::new(Grant::everything());
        let id = rig.join("/ws/a?echo=0");
        rig.send(id, &frames::masked(frames::TEXT, b"x"));
        rig.run_until_idle();
        // With a connection the loop wakes a few times a second, for weeks: the turns of an hour are enough.
        for _ in 0..days * 24 {
            rig.now = rig.now.after(DAY_MS / 24);
            rig.turn();
        }
        rig.send(id, &frames::masked(frames::TEXT, b"x"));
        rig.run_until_idle();
        assert!(!is_closed(&mut rig, id), "{days} days later");
    }
}
