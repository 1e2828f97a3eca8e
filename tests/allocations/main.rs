//! Counts allocations: none for frames that the load generator receives or for intents of a busy turn, few for
//! restoring a history, and few bytes for connections that arrive.
//!
//! This is a separate binary because the counting allocator covers the whole process, and because a load run installs
//! signal handlers for the process.

#![allow(clippy::print_stderr, reason = "what a test prints is captured by its harness")]

#[path = "../suite/support/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is the suite's, which uses all of it")]
mod support;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use allocation_counter::AllocationInfo;
use oyez::client::server_url::ServerUrl;
use oyez::client::trust::Trust;
use oyez::config::{HistoryLimits, Limits};
use oyez::hub::change::Change;
use oyez::hub::persist::LogTime;
use oyez::hub::snapshot::Snapshot;
use oyez::hub::{Hub, SubscribeOptions};
use oyez::ids::{ChannelName, Peer, Sender, Since, SlotId};
use oyez::load;
use oyez::load::plan::{Plan, Speed, Traffic, Workload};
use oyez::load::target::BenchTarget;
use oyez::net::outbox::Outbox;
use oyez::net::transport::{ReadOutcome, Transport};
use oyez::server::slot::Slot;
use oyez::server::slots::Slots;
use oyez::session::State;
use oyez::session::intent::Intent;
use oyez::time::LoopTime;
use oyez::wire::{Form, Kind};

use support::frames::{self, TEXT};
use support::process::Server;
use support::rig::Rig;

#[test]
fn received_frames_allocate_nothing() {
    const SUBSCRIBERS: usize = 200;
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
        workload: Workload::Fanout,
        target: BenchTarget::resolve(
            &ServerUrl::parse(&format!("{}/ws", server.url())).unwrap(),
            &Trust::Public,
        )
        .unwrap(),
        connections: SUBSCRIBERS,
        channels: 1,
        ramp: Duration::ZERO,
        traffic: Some(traffic(seconds)),
        pid: None,
    };
    let (mut deliveries, mut allocated) = (0, AllocationInfo::default());
    // A run on a slow machine is repeated for twice as long, until there are enough deliveries.
    for seconds in [1, 2, 4, 8, 16, 32, 64] {
        allocated = allocation_counter::measure(|| {
            let found = load::run(plan(seconds), None, load::RunSignals::install().unwrap(), |standing| {
                deliveries = standing.deliveries
            })
            .unwrap();
            assert_eq!(found.lost, 0);
        });
        if deliveries > 100 * SUBSCRIBERS as u64 {
            break;
        }
    }
    assert!(deliveries > 100 * SUBSCRIBERS as u64, "{deliveries} deliveries tell nothing");
    // Connections and messages may allocate; each message goes to all subscribers.
    let allocations = allocated.count_total;
    assert!(allocations < deliveries / 20, "{allocations} allocations for {deliveries} deliveries");
    eprintln!("{allocations} allocations for {deliveries} deliveries");
}

/// The list of session intents does not grow with the number of clients that publish in the same turn.
#[test]
fn intents_of_a_busy_turn_are_not_retained() {
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
    assert_eq!(
        rig.engine.shared.metrics.published_by_websocket,
        (SPEAKERS * EACH) as u64,
        "all in that turn"
    );
    let (peak, intents) = (allocated.bytes_max, (SPEAKERS * EACH * size_of::<Intent>()) as u64);
    assert!(peak < intents / 2, "{peak} bytes; all intents would take {intents}");
    eprintln!("{peak} bytes; all intents would take {intents}");
}

/// A transport of the size of a socket, with no peer.
#[derive(Debug)]
struct Unconnected(#[expect(dead_code, reason = "it has the size of a descriptor")] i32);

impl Write for Unconnected {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Unconnected {
    fn receive(&mut self, _: &mut [u8]) -> ReadOutcome {
        ReadOutcome::Blocked
    }

    fn shut_down_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A table that doubles holds an old and a new copy while it grows, and the pages of both stay resident for a while:
/// 226 bytes for each connection in place of 80.
#[test]
fn arriving_connections_allocate_little_more_than_their_slots() {
    // The worst case for a table that doubles: it has just grown.
    const CONNECTIONS: usize = 16_384 + 1_024;
    let limits = Limits::default();
    let now = LoopTime::from_millis(0);
    let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
    let options = SubscribeOptions { form: Form::Raw, since: Since::Now, echo: true };
    let (mut slots, mut hub) = (Slots::new(), Hub::new(&limits, 7));
    let allocated = allocation_counter::measure(|| {
        for number in 0..CONNECTIONS {
            let transport = Unconnected(number as i32);
            let id = slots.insert(transport, peer, State::accepted(&limits, now), Outbox::Empty);
            let joined = hub.subscribe(&ChannelName::main(), id, options, now).unwrap();
            slots.get_mut(id).unwrap().subscriptions.add(joined.subscription);
        }
    });
    assert_eq!((slots.len(), hub.info("main").subscribers), (CONNECTIONS, CONNECTIONS));
    // A request head is on its way; its state is freed when the WebSocket is open.
    let head = allocation_counter::measure(|| drop(State::accepted(&limits, now))).bytes_max as usize;
    let (peak, slot) = (allocated.bytes_max as usize / CONNECTIONS, size_of::<Slot<Unconnected>>());
    eprintln!("{peak} bytes for each connection: {slot} its slot, {head} its request");
    // The channel's list of subscribers does double: at most 3 ids for each of them.
    let most = slot + head + 3 * size_of::<SlotId>() + slot / 20;
    assert!(peak <= most, "{peak} bytes for each connection, more than {most}");
}

/// Loading takes as long as its allocations and copies do, and a machine has memory for one history, not for two.
#[test]
fn history_is_restored_with_few_allocations_and_no_second_copy() {
    const CHANNELS: usize = 100;
    const EACH: usize = 100;
    let limits = Limits::default();
    let mut hub = Hub::new(&limits, 7);
    hub.begin_tracking_changes();
    for millis in 0..EACH as u64 {
        for channel in 0..CHANNELS {
            let name = ChannelName::parse(format!("c{channel}").as_bytes()).unwrap();
            let id = hub.open(&name).unwrap();
            hub.publish(id, Kind::Text, &[b'x'; 100], Sender::default(), None);
        }
        while let Some(id) = hub.next_open_batch() {
            let _ = hub.finish_batch(id, LoopTime::from_millis(millis));
        }
    }
    let log_time = LogTime { now: LoopTime::from_millis(EACH as u64), millis: EACH as u64 };
    let changes = hub.take_changes(log_time, usize::MAX, usize::MAX);
    let (head, kept) = (hub.log_head(), hub.history_usage());
    let mut restored = None;
    let allocated = allocation_counter::measure(|| {
        let mut past = Snapshot::new(&limits.history, log_time);
        for change in &changes {
            let Change::Channel { name, position, messages } = change else { panic!("{change:?}") };
            past.put(name, *position, messages).unwrap();
        }
        restored = Some(Hub::restore(&limits, head, past).0);
    });
    assert_eq!(restored.unwrap().history_usage(), kept);
    let (allocations, peak) = (allocated.count_total, allocated.bytes_max);
    let (messages, bytes) = (kept.messages as u64, kept.bytes as u64);
    assert_eq!(messages, (CHANNELS * EACH) as u64);
    eprintln!("{allocations} allocations for {messages} messages, at most {peak} bytes for {bytes}");
    assert!(allocations < messages / 2, "{allocations} allocations for {messages} messages");
    assert!(peak < bytes * 3 / 2, "{peak} bytes for a history that counts {bytes}");
}
