//! A client of `oyez.v1` on a real socket.

use serde_json::Value;

use super::client::Client;
use super::frames;
use super::process::Server;

/// A client whose handshake is complete.
pub struct V1Client(pub Client);

impl V1Client {
    /// Connects, and returns the client with the hello message.
    pub fn connect(server: &Server, path: &str) -> (V1Client, Value) {
        let mut client = Client::new(server.connect());
        client.send(frames::upgrade_v1(path).as_bytes());
        let head = client.head();
        assert!(head.contains("\r\nSec-WebSocket-Protocol: oyez.v1\r\n"), "{head}");
        let mut client = V1Client(client);
        let hello = client.receive();
        assert_eq!(hello["type"], "hello", "{hello}");
        (client, hello)
    }

    pub fn send(&mut self, command: Value) {
        self.0.send_text(&command.to_string());
    }

    pub fn receive(&mut self) -> Value {
        serde_json::from_str(&self.0.text()).unwrap()
    }
}
