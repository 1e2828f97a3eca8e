//! A peer for the side-by-side benchmark: fastwebsockets, every message to every connection.
//!
//! Lean and idiomatic: one thread, hyper for the upgrade, a task for each connection with a reading and
//! a writing half, a broadcast channel between the tasks. The library writes each frame at once and cannot
//! coalesce several.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use fastwebsockets::upgrade::{UpgradeFut, upgrade};
use fastwebsockets::{FragmentCollectorRead, Frame, OpCode, Payload, WebSocketError};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::broadcast::Sender;

/// Maximum number of unread messages of a connection; above it the connection is dropped.
const CHANNEL_MESSAGES: usize = 1024;

#[derive(Clone)]
struct Message {
    opcode: OpCode,
    payload: Bytes,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("listening on ws://{}/ws", listener.local_addr()?);
    let messages = Sender::new(CHANNEL_MESSAGES);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let messages = messages.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, messages.clone()));
            let _ =
                http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn answer(
    mut request: Request<Incoming>,
    messages: Sender<Message>,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let (response, upgraded) = upgrade(&mut request)?;
    tokio::spawn(serve(upgraded, messages));
    Ok(response)
}

async fn serve(upgraded: UpgradeFut, messages: Sender<Message>) -> Result<(), WebSocketError> {
    let mut received = messages.subscribe();
    let (reading, mut writing) = upgraded.await?.split(tokio::io::split);
    let mut reading = FragmentCollectorRead::new(reading);
    // A pong would have to be passed to the other half; the load generator sends no pings.
    let mut no_answers = |_| async { Ok::<(), Infallible>(()) };
    let read = async {
        loop {
            let frame = reading.read_frame(&mut no_answers).await?;
            match frame.opcode {
                OpCode::Text | OpCode::Binary => {
                    let payload = Bytes::copy_from_slice(&frame.payload);
                    // There is a receiver: this task's own.
                    let _ = messages.send(Message { opcode: frame.opcode, payload });
                }
                OpCode::Close => return Ok(()),
                _ => {}
            }
        }
    };
    let write = async {
        while let Ok(Message { opcode, payload }) = received.recv().await {
            writing.write_frame(Frame::new(true, opcode, None, Payload::Borrowed(&payload))).await?;
        }
        Ok(())
    };
    tokio::select! {
        done = read => done,
        done = write => done,
    }
}
