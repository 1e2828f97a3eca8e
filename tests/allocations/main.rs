//! What takes no memory: what the load generator receives, and who speaks beside others in the same turn. In a binary
//! of its own: an allocator that counts is one for the whole process, and a run takes the process's signals for its own.

#![allow(clippy::print_stderr, reason = "what a test prints is captured by its harness")]

#[path = "../suite/support/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is the suite's, which uses all of it")]
mod support;

use std::time::Duration;

use allocation_counter::AllocationInfo;
use oyez::config::{HistoryLimits, Limits};
use oyez::load;
use oyez::load::plan::{Plan, Scenario, Speed, Traffic};
use oyez::load::target::Target;
use oyez::load::tls::Trust;
use oyez::session::intent::Intent;

use support::frames::{self, TEXT};
use support::process::Server;
use support::rig::Rig;

#[test]
fn frames_that_are_received_allocate_nothing() {
    const MEMBERS: usize = 200;
    let server = Server::start(&[]);
    let traffic = |seconds: u64| Traffic {
        publishers: 1,
        publishers_apart: false,
        payload_bytes: 64,
        is_text: true,
        speed: Speed::Window(64),
        warmup: Duration::ZERO,
        duration: Duration::from_secs(seconds),
        patience: Duration::from_secs(60),
    };
    let plan = |seconds: u64| Plan {
        scenario: Scenario::Fanout,
        target: Target::parse(&format!("{}/ws", server.url()), &Trust::Public).unwrap(),
        connections: MEMBERS,
        channels: 1,
        ramp: Duration::ZERO,
        traffic: Some(traffic(seconds)),
        pid: None,
    };
    let (mut deliveries, mut allocated) = (0, AllocationInfo::default());
    // A run on a slow machine is repeated for twice as long, until there are enough deliveries.
    for seconds in [1, 2, 4, 8, 16, 32, 64] {
        allocated = allocation_counter::measure(|| {
            let found = load::run(plan(seconds), None, |standing| deliveries = standing.deliveries).unwrap();
            assert_eq!(found.lost, 0);
        });
        if deliveries > 100 * MEMBERS as u64 {
            break;
        }
    }
    assert!(deliveries > 100 * MEMBERS as u64, "{deliveries} deliveries tell nothing");
    // Connections and messages do, each of which goes to all members.
    let allocations = allocated.count_total;
    assert!(allocations < deliveries / 20, "{allocations} allocations for {deliveries} deliveries");
    eprintln!("{allocations} allocations for {deliveries} deliveries");
}

/// The list of what sessions ask for does not grow with those who speak in the same turn.
#[test]
fn a_crowd_that_speaks_in_one_turn_does_not_have_its_wishes_kept() {
    const SPEAKERS: usize = 400;
    const EACH: usize = 64;
    let history = HistoryLimits { messages_max: 0, ..HistoryLimits::default() };
    // An empty frame counts as 64 bytes, so the default has not room for all in one turn.
    let mut rig = Rig::new(Limits { history, read_bytes_per_turn: 4 << 20, ..Limits::default() });
    let ids: Vec<_> = (0..SPEAKERS).map(|n| rig.join(&format!("/ws/{n}?echo=0"))).collect();
    for id in ids {
        rig.send(id, &frames::masked(TEXT, b"x").repeat(EACH));
    }
    let allocated = allocation_counter::measure(|| rig.turn());
    assert_eq!(rig.engine.metrics.published_by_websocket, (SPEAKERS * EACH) as u64, "all in that turn");
    let (peak, wishes) = (allocated.bytes_max, (SPEAKERS * EACH * size_of::<Intent>()) as u64);
    assert!(peak < wishes / 2, "{peak} bytes; all wishes would take {wishes}");
    eprintln!("{peak} bytes; all wishes would take {wishes}");
}
