//! A peer for the side-by-side benchmark: tokio-tungstenite, every message to every connection.
//!
//! Lean and idiomatic: one thread, a task for each connection, a broadcast channel between them. Read
//! buffers are 4 KiB, as the library advises for many connections. All messages in the channel are
//! fed to the socket together and flushed once.

use std::net::Ipv4Addr;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{Receiver, Sender};
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// Maximum number of unread messages of a connection; above it the connection is dropped.
const CHANNEL_MESSAGES: usize = 1024;
const READ_BUFFER_BYTES: usize = 4 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("listening on ws://{}/ws", listener.local_addr()?);
    let messages = Sender::new(CHANNEL_MESSAGES);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve(stream, messages.clone()));
    }
}

async fn serve(stream: TcpStream, messages: Sender<Message>) -> Result<(), Error> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let mut received: Receiver<Message> = messages.subscribe();
    let mut socket = accept_async_with_config(stream, Some(config)).await?;
    loop {
        tokio::select! {
            said = socket.next() => match said {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => {
                    // There is a receiver: this task's own.
                    let _ = messages.send(message);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            message = received.recv() => {
                let mut next = match message {
                    Ok(message) => Ok(message),
                    Err(RecvError::Closed | RecvError::Lagged(_)) => return Ok(()),
                };
                loop {
                    match next {
                        Ok(message) => socket.feed(message).await?,
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Closed | TryRecvError::Lagged(_)) => return Ok(()),
                    }
                    next = received.try_recv();
                }
                socket.flush().await?;
            }
        }
    }
}
