//! Micro-benchmarks of the parts of a delivery: `cargo bench`, or `cargo bench -- frame` for one.
#![allow(missing_docs, reason = "criterion's macros make items without docs")]

use std::hint::black_box;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use oyez::config::{DeflateMode, DeflateSettings, HistoryLimits, Limits};
use oyez::hub::persist::LogTime;
use oyez::hub::{Hub, SubscribeOptions};
use oyez::ids::{ChannelName, Peer, Sender, Since, SlotId};
use oyez::net::outbox::{Outbox, SlowConsumerLimits};
use oyez::net::transport::{ReadOutcome, Transport};
use oyez::server::engine::Engine;
use oyez::session::decoding::Decoding;
use oyez::session::frame_scanner::FrameScanner;
use oyez::session::http::request::{self, FieldRoom};
use oyez::session::http::upgrade;
use oyez::session::websocket;
use oyez::time::LoopTime;
use oyez::wire::deflate::{Context, Deflater};
use oyez::wire::{self, Form, Kind};

fn id(key: u32) -> SlotId {
    SlotId { key, generation: 0 }
}

/// A small frame as a client sends it.
fn masked_frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | length as u8, 1, 2, 3, 4];
    frame.extend(std::iter::repeat_n(7, length));
    frame
}

fn frame(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("frame_encode");
    for length in [64, 512, 64 << 10] {
        let payload = vec![b'x'; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(length), |bench| {
            let mut out = Vec::with_capacity(length + 10);
            bench.iter(|| {
                out.clear();
                wire::append_message(&mut out, Kind::Text, black_box(&payload));
            });
        });
    }
}

fn hub(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("hub_publish_and_queue");
    let now = LoopTime::from_millis(0);
    for (keeps, messages_max) in [("history", 100), ("history_file", 100), ("no_history", 0)] {
        for subscribers in [1u32, 1_000, 100_000] {
            let history = HistoryLimits { messages_max, ..HistoryLimits::default() };
            let mut hub = Hub::new(&Limits { history, ..Limits::default() }, 1);
            if keeps == "history_file" {
                hub.begin_tracking_changes();
            }
            let name = ChannelName::main();
            let options = SubscribeOptions { form: Form::Raw, since: Since::Now, echo: true };
            for key in 0..subscribers {
                hub.subscribe(&name, id(key), options, now).expect("there is room for one channel");
            }
            let channel = hub.open(&name).expect("it is there");
            let mut outboxes: Vec<Outbox> = (0..subscribers).map(|_| Outbox::Empty).collect();
            group.throughput(Throughput::Elements(u64::from(subscribers)));
            group.bench_function(BenchmarkId::new(keeps, subscribers), |bench| {
                bench.iter(|| {
                    hub.publish(channel, Kind::Text, black_box(&[b'x'; 64]), Sender::default(), None);
                    while let Some(channel) = hub.next_open_batch() {
                        let Some((subscribers, batch)) = hub.finish_batch(channel, now) else { continue };
                        for &subscriber in subscribers.live(Form::Raw) {
                            if let Some(portion) = batch.delivery(Form::Raw, subscriber) {
                                let _ = outboxes[subscriber.key as usize]
                                    .enqueue(portion.frames.as_slice(), usize::MAX);
                            }
                        }
                    }
                    outboxes.iter_mut().for_each(|outbox| *outbox = Outbox::Empty);
                });
            });
        }
    }
}

/// What the loop does for one batch of the history file: 256 KiB of messages, of few channels and of many.
fn history_file(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("history_file_batch");
    let now = LoopTime::from_millis(0);
    let log_time = LogTime { now, millis: 0 };
    for (channels, messages) in [(20u32, 100), (2_000, 1)] {
        let mut hub = Hub::new(&Limits::default(), 1);
        hub.begin_tracking_changes();
        let names = (0..channels).map(|number| ChannelName::parse(format!("room.{number}").as_bytes()));
        let ids: Vec<_> = names
            .map(|name| hub.open(&name.expect("a name")).expect("there is room for some channels"))
            .collect();
        group.bench_function(BenchmarkId::new("channels", channels), |bench| {
            bench.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    for &id in &ids {
                        for _ in 0..messages {
                            hub.publish(id, Kind::Text, &[b'x'; 64], Sender::default(), None);
                        }
                        let _ = hub.finish_batch(id, now);
                    }
                    let start = Instant::now();
                    black_box(hub.take_changes(log_time, 512, 256 << 10));
                    took += start.elapsed();
                }
                took
            });
        });
    }
}

/// A writer that counts bytes and accepts at most a given number per write.
struct Counting(usize, usize);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.1);
        self.0 += taken;
        Ok(taken)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: usize = pieces.iter().map(|piece| piece.len()).sum();
        let taken = all.min(self.1);
        self.0 += taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn outbox(bench: &mut Criterion) {
    let now = LoopTime::from_millis(0);
    let frames = Rc::new(Bytes::from(vec![7; 66]));
    let mut group = bench.benchmark_group("outbox_queue_and_flush");
    for (name, pieces, room) in
        [("one", 1, usize::MAX), ("sixteen", 16, usize::MAX), ("sixteen_by_100_bytes", 16, 100)]
    {
        group.throughput(Throughput::Elements(pieces));
        group.bench_function(name, |bench| {
            let mut socket = Counting(0, room);
            let mut outbox = Outbox::Empty;
            bench.iter(|| {
                for _ in 0..pieces {
                    outbox.queue(frames.clone());
                }
                while !outbox.is_empty() {
                    outbox.unblock();
                    let _ = black_box(outbox.flush(&mut socket, SlowConsumerLimits::NONE, now));
                }
            });
        });
    }
}

fn head(bench: &mut Criterion) {
    let head = "GET /ws/prices?echo=0 HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
        Accept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\nSec-WebSocket-Version: 13\r\n\
        Origin: http://localhost\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache\r\n\
        Cache-Control: no-cache\r\nUpgrade: websocket\r\n\r\n"
        .as_bytes();
    let limits = Limits::default();
    bench.bench_function("request_head", |bench| {
        bench.iter(|| {
            let end = request::find_head_end(black_box(head), 0);
            let mut room = FieldRoom::new(&limits);
            let request = request::parse(black_box(head), &mut room, &limits).expect("it is well formed");
            (end, upgrade::accept(&request, "Sun, 06 Nov 1994 08:49:37 GMT", DeflateMode::Context).is_ok())
        });
    });
}

fn frame_scanner(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("frame_scanner");
    for length in [2, 64] {
        let session = masked_frame(length).repeat(1_000);
        group.throughput(Throughput::Elements(1_000));
        group.bench_function(BenchmarkId::from_parameter(length), |bench| {
            bench.iter(|| FrameScanner::new(false).scan(black_box(&session), 1 << 16));
        });
    }
}

fn wake(bench: &mut Criterion) {
    let limits = Limits::default();
    let mut group = bench.benchmark_group("wake_receive_sleep");
    for frames in [1, 64] {
        let input = masked_frame(64).repeat(frames);
        group.throughput(Throughput::Elements(frames as u64));
        group.bench_function(BenchmarkId::from_parameter(frames), |bench| {
            bench.iter_batched_ref(
                Vec::new,
                |received| {
                    let mut sleeper = None;
                    let mut decoding = Decoding::plain(&limits, LoopTime::from_millis(0));
                    let _ = websocket::receive(
                        &mut sleeper,
                        &mut black_box(&input[..]),
                        &mut decoding,
                        &mut Vec::new(),
                        |kind, payload| {
                            received.push((kind, payload));
                        },
                    );
                    assert!(sleeper.is_none());
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// An idle connection.
struct Silent;

impl Write for Silent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Silent {
    fn receive(&mut self, _: &mut [u8]) -> ReadOutcome {
        ReadOutcome::Blocked
    }

    fn shut_down_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One slice of the sweep, over slots whose deadlines are far away.
fn sweep(bench: &mut Criterion) {
    let slots = 16_384u32;
    let mut engine = Engine::new(Limits { handshake_timeout_ms: 1 << 30, ..Limits::default() }, 1);
    let start = LoopTime::from_millis(0);
    let mut now = start;
    for _ in 0..slots {
        engine.admit(Silent, Peer::from(SocketAddr::from(([127, 0, 0, 1], 1))), now);
    }
    let mut group = bench.benchmark_group("sweep_slice");
    group.throughput(Throughput::Elements(u64::from(slots)));
    group.bench_function(BenchmarkId::from_parameter(slots), |bench| {
        bench.iter(|| {
            now = now.after(250);
            if now.millis_since(start) > 1 << 29 {
                now = start;
            }
            engine.expire(now);
        });
    });
}

/// A connection that sends its bytes once, and takes everything.
#[derive(Default)]
struct Sending(Option<Rc<Vec<u8>>>, usize);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Sending {
    fn receive(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        let Some(bytes) = &self.0 else { return ReadOutcome::Blocked };
        let count = buffer.len().min(bytes.len() - self.1);
        buffer[..count].copy_from_slice(&bytes[self.1..][..count]);
        self.1 += count;
        if self.1 == bytes.len() {
            self.0 = None;
        }
        ReadOutcome::Bytes { count, more: self.0.is_some() }
    }

    fn shut_down_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One turn with 64 messages in `oyez.v1`, to 1,000 subscribers of two channels: all on one channel, and in turn on
/// both; and with a subscription to one of them at the end, or one after each message.
fn turn(bench: &mut Criterion) {
    let text = |text: &str| {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        if text.len() > 125 {
            frame.splice(1..2, [0xfe, 0, text.len() as u8]);
        }
        frame.extend(text.as_bytes());
        frame
    };
    let publish =
        |ch: &str| text(&format!(r#"{{"type":"publish","ch":"{ch}","text":"{}"}}"#, "x".repeat(64)));
    let subscribe = || text(r#"{"type":"subscribe","ch":"a"}"#);
    let unsubscribe = || text(r#"{"type":"unsubscribe","ch":"a"}"#);
    let mut group = bench.benchmark_group("turn_of_64_messages");
    for name in ["one_channel", "alternating", "subscriptions_last", "subscription_after_each"] {
        let limits = Limits { ping_interval_ms: 0, ..Limits::default() };
        let mut engine = Engine::new(limits, 1);
        let now = LoopTime::from_millis(0);
        let send = |engine: &mut Engine<Sending>, id: SlotId, bytes: Vec<u8>| {
            engine.slots.get_mut(id).expect("it is open").transport = Sending(Some(Rc::new(bytes)), 0);
            engine.slots.mark_ready(id);
        };
        let run = |engine: &mut Engine<Sending>| {
            while engine.slots.has_work() {
                engine.read(now);
                engine.deliver(now);
                engine.flush(now);
            }
        };
        let join = |engine: &mut Engine<Sending>, channels: &[&str]| {
            let peer = Peer::from(SocketAddr::from(([127, 0, 0, 1], 1)));
            let id = engine.admit(Sending::default(), peer, now);
            let head = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                Sec-WebSocket-Protocol: oyez.v1\r\n\r\n";
            let mut bytes = head.as_bytes().to_vec();
            for ch in channels {
                bytes.extend(text(&format!(r#"{{"type":"subscribe","ch":"{ch}"}}"#)));
            }
            send(engine, id, bytes);
            run(engine);
            id
        };
        let publisher = join(&mut engine, &[]);
        for _ in 0..1_000 {
            join(&mut engine, &["a", "b"]);
        }
        let mut bytes = Vec::new();
        for n in 0..64 {
            bytes.extend(publish(if name == "alternating" && n % 2 == 1 { "b" } else { "a" }));
            if name == "subscription_after_each" {
                bytes.extend([subscribe(), unsubscribe()].concat());
            }
        }
        if name == "subscriptions_last" {
            bytes.extend([subscribe(), unsubscribe()].concat().repeat(64));
        }
        assert_eq!(engine.hub.subscriptions(), 2_000, "all have subscribed");
        let bytes = Rc::new(bytes);
        let (published, delivered) =
            (engine.shared.metrics.published_by_websocket, engine.shared.metrics.messages_delivered);
        group.bench_function(name, |bench| {
            bench.iter(|| {
                engine.slots.get_mut(publisher).expect("it is open").transport =
                    Sending(Some(bytes.clone()), 0);
                engine.slots.mark_ready(publisher);
                run(&mut engine);
            });
        });
        let published = engine.shared.metrics.published_by_websocket - published;
        // None, where it is filtered out.
        assert!(engine.shared.metrics.messages_delivered - delivered >= 1_000 * published);
    }
}

/// A batch of one message, compressed with each level that a batch may get, in the context of one message and of a
/// whole window. `worst`: two letters at random, which match at nearly every position of the window.
fn deflate(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("deflate");
    let mut state = 1u32;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    let mut rows = |count: u32| -> String {
        (0..count)
            .map(|row| {
                let (player, points) = (row * 7_919 % 100_000, random(100_000));
                format!(
                    r#"{{"rank":{row},"player":"player-{player}","points":{points},"level":{}}},"#,
                    row % 60
                )
            })
            .collect()
    };
    let kinds: [(&str, Vec<String>); 3] = [
        ("row", (0..600).map(|_| rows(2)).collect()),
        ("dashboard", (0..6).map(|_| rows(130)).collect()),
        ("worst", (0..600).map(|_| (0..200).map(|_| ['a', 'b'][random(2) as usize]).collect()).collect()),
    ];
    for (kind, texts) in &kinds {
        let (message, before) = texts.split_last().expect("there are messages");
        let (last, earlier) = before.split_last().expect("there are messages");
        let earlier = earlier.concat();
        let mut frame = Vec::new();
        wire::append_message(&mut frame, Kind::Text, message.as_bytes());
        for level in [1, 3, 6, 8, 9] {
            for (length, earlier) in [("last", ""), ("window", &earlier[..])] {
                let settings = DeflateSettings { level: Some(level), ..DeflateSettings::default() };
                let mut deflater = Deflater::new(settings);
                let context = Context::After { earlier: earlier.as_bytes(), last: last.as_bytes() };
                group.throughput(Throughput::Bytes(message.len() as u64));
                group.bench_function(BenchmarkId::new(format!("{kind}_{length}"), level), |bench| {
                    bench.iter(|| deflater.compress(std::iter::once(black_box(&frame[..])), context, 1));
                });
            }
        }
    }
}

criterion_group! {
    name = pieces;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = frame, hub, history_file, outbox, head, frame_scanner, wake, sweep, turn, deflate
}
criterion_main!(pieces);
