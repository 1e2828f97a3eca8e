//! A query to a Redis Sentinel for the address of the primary, over a non-blocking connection.
//!
//! There is no subscription to `+switch-master`. A primary that is replaced closes its connections, or heartbeats are
//! not read back from it, and each attempt to connect queries a Sentinel again. The reply may be outdated: `open.lua`
//! rejects a server that is not a primary.

use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;

use super::connection::LogConnection;
use crate::backplane::resp::{Decoder, Token, command};

/// The Sentinels of a primary.
pub(super) struct Sentinels {
    /// Host and port of each.
    pub(super) addresses: Vec<(String, u16)>,
    /// The name of the primary.
    pub(super) primary: String,
}

/// One of several Sentinels, which are queried one after another.
#[derive(Clone)]
pub(super) struct SentinelCursor {
    sentinels: Arc<Sentinels>,
    /// The index of the one that is queried first.
    first: usize,
    /// How many were queried before this one.
    tried: usize,
}

impl SentinelCursor {
    /// The Sentinel that is queried first. `first` may be larger than the number of Sentinels.
    pub(super) fn new(sentinels: Arc<Sentinels>, first: usize) -> SentinelCursor {
        SentinelCursor { sentinels, first, tried: 0 }
    }

    /// The Sentinel to query if this one fails; `None` after the last one.
    pub(super) fn next(&self) -> Option<SentinelCursor> {
        let tried = self.tried + 1;
        (tried < self.sentinels.addresses.len()).then(|| SentinelCursor { tried, ..self.clone() })
    }

    /// Host and port of the Sentinel.
    pub(super) fn address(&self) -> (&str, u16) {
        let Sentinels { addresses, .. } = &*self.sentinels;
        let (host, port) = &addresses[(self.first + self.tried) % addresses.len()];
        (host, *port)
    }

    /// The name of the primary.
    pub(super) fn primary(&self) -> &str {
        &self.sentinels.primary
    }
}

/// A query to a Sentinel, and its reply.
pub(super) struct SentinelQuery {
    pub(super) connection: LogConnection,
    unsent: Vec<u8>,
    reply: SentinelReply,
}

impl SentinelQuery {
    /// Prepares the query, which is sent once the connection is established.
    pub(super) fn new(connection: LogConnection, primary: &str) -> SentinelQuery {
        let mut unsent = Vec::new();
        command(&mut unsent, &[b"SENTINEL", b"get-master-addr-by-name", primary.as_bytes()]);
        SentinelQuery { connection, unsent, reply: SentinelReply::new(primary) }
    }

    /// Sends and receives as far as the socket allows. Returns host and port of the primary once they are known.
    ///
    /// # Errors
    /// The connection has failed, or the Sentinel does not know the primary.
    pub(super) fn advance(&mut self) -> io::Result<Option<(String, u16)>> {
        if !self.connection.is_established()? {
            return Ok(None);
        }
        let stream = &mut self.connection.stream;
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        loop {
            match stream.read(self.reply.decoder.room()) {
                Ok(0) => {
                    let why = "connection closed before the reply";
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, why));
                }
                Ok(count) => self.reply.decoder.filled(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            let address = self.reply.next().map_err(|why| io::Error::new(ErrorKind::InvalidData, why))?;
            if address.is_some() {
                return Ok(address);
            }
        }
    }
}

/// The reply: an array of host and port, or nil if the name is not known.
struct SentinelReply {
    primary: String,
    decoder: Decoder,
    is_array: bool,
    host: Option<String>,
}

impl SentinelReply {
    fn new(primary: &str) -> SentinelReply {
        SentinelReply {
            primary: primary.to_owned(),
            decoder: Decoder::default(),
            is_array: false,
            host: None,
        }
    }

    /// Returns host and port once they have arrived completely.
    fn next(&mut self) -> Result<Option<(String, u16)>, String> {
        while let Some(token) = self.decoder.next().map_err(|error| error.to_string())? {
            match token {
                Token::Array(2) if !self.is_array => self.is_array = true,
                Token::Bulk(span) if self.is_array => {
                    let text = String::from_utf8_lossy(self.decoder.bytes(span)).into_owned();
                    let Some(host) = self.host.take() else {
                        self.host = Some(text);
                        continue;
                    };
                    let port = text.parse().ok().filter(|port| *port != 0);
                    let port = port.filter(|_| !host.is_empty());
                    return port.map(|port| Some((host, port))).ok_or_else(|| "unexpected reply".to_owned());
                }
                Token::Nil => {
                    return Err(format!(
                        "no primary named {:?}: --backplane must have the name of \"sentinel monitor\"",
                        self.primary
                    ));
                }
                Token::Error(span) => {
                    return Err(String::from_utf8_lossy(self.decoder.bytes(span)).into_owned());
                }
                _ => return Err("unexpected reply".to_owned()),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a reply that arrives one byte at a time.
    fn address(reply: &str) -> Result<Option<(String, u16)>, String> {
        let mut decoded = SentinelReply::new("main");
        for byte in reply.bytes() {
            decoded.decoder.room()[0] = byte;
            decoded.decoder.filled(1);
            if let Some(address) = decoded.next()? {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    #[test]
    fn sentinel_reply_is_decoded_or_rejected() {
        let known = "*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6381\r\n";
        assert_eq!(address(known), Ok(Some(("127.0.0.1".to_owned(), 6381))));
        assert_eq!(address(&known[..known.len() - 1]), Ok(None));
        assert_eq!(
            address("*-1\r\n"),
            Err("no primary named \"main\": --backplane must have the name of \"sentinel monitor\""
                .to_owned())
        );
        let rejected = "NOAUTH Authentication required.";
        assert_eq!(address(&format!("-{rejected}\r\n")), Err(rejected.to_owned()));
        for bad in [
            "+OK\r\n",
            "*1\r\n",
            "$1\r\na\r\n",
            "*2\r\n*2\r\n",
            "*2\r\n$1\r\na\r\n$1\r\nb\r\n",
            "*2\r\n$1\r\na\r\n$5\r\n65536\r\n",
            "*2\r\n$1\r\na\r\n$1\r\n0\r\n",
            "*2\r\n$0\r\n\r\n$4\r\n6379\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
        ] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }
}
