//! Takes the place of the module `inflate` in a build without the cargo feature `deflate`: no extension is negotiated, so a
//! compressed message is a protocol error before it gets here.

/// Why a message could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// It cannot be decompressed.
    Invalid,
    /// The message is larger than the maximum.
    TooBig,
}

/// A decompressor that rejects every message.
#[derive(Debug, Default)]
pub struct Inflater {}

/// A message that is to be rejected.
#[derive(Debug)]
pub struct Inflation {}

/// The result of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflateProgress {
    /// The message is complete.
    pub is_complete: bool,
    /// Compressed bytes that were consumed.
    pub consumed: usize,
    /// Bytes that were appended to the message.
    pub produced: usize,
}

impl Inflater {
    /// Begins to decompress the payload of a message.
    pub fn begin(&mut self, _: Vec<u8>) -> Inflation {
        Inflation {}
    }

    /// Does nothing.
    pub fn end(&mut self, _: Inflation) {}
}

impl Inflation {
    /// Memory that it takes: none.
    pub fn held_bytes(&self) -> usize {
        0
    }

    /// Rejects the message.
    ///
    /// # Errors
    /// Always.
    pub fn step(&mut self, _: &mut Vec<u8>, _: usize) -> Result<InflateProgress, InflateError> {
        Err(InflateError::Invalid)
    }
}
