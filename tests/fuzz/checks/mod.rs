//! The rules that hold for any bytes which clients, proxies, operators, files and Redis give the server, as functions
//! that panic if a rule is broken.
//!
//! The fuzz targets call them with inputs that libFuzzer searches for, and the suite with inputs that proptest
//! generates, so that every run of the tests checks the same rules on the stable toolchain.

pub mod command_line;
pub mod commands;
pub mod entry;
pub mod extensions;
pub mod frames;
pub mod head;
pub mod history;
pub mod inflate;
pub mod link;
pub mod proxy;
pub mod reference;
pub mod resp;
pub mod session;
pub mod token;

/// What a fuzz target calls with each input.
pub type Check = fn(&[u8]);

/// The checks by the names of their targets.
pub const ALL: [(&str, Check); 13] = [
    ("command_line", command_line::check),
    ("commands", commands::check),
    ("entry", entry::check),
    ("extensions", extensions::check),
    ("frames", frames::check),
    ("head", head::check),
    ("history", history::check),
    ("inflate", inflate::check),
    ("link", link::check),
    ("proxy", proxy::check),
    ("resp", resp::check),
    ("session", session::check),
    ("token", token::check),
];

/// Reads values from an input. At its end everything is 0.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes([self.u8(), self.u8(), self.u8(), self.u8()])
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    /// At most `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A text of up to 255 bytes of the input.
    pub fn text(&mut self) -> String {
        let count = usize::from(self.u8());
        String::from_utf8_lossy(self.bytes(count)).into_owned()
    }
}
