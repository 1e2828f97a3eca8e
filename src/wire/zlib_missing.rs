//! Takes the place of the module `zlib` in a build without the cargo feature `deflate`.
//!
//! No connection negotiates compression there (`Accepted::select`), so no compressor and no decompressor is ever made,
//! and the compiler removes what is done with one: the types have no values.

use std::convert::Infallible;

/// A compressor of which there is no value.
pub(super) struct Deflate(Infallible);

/// A decompressor of which there is no value.
pub(super) struct Inflate(Infallible);

/// How a compressor flushes.
pub(super) enum DeflateFlush {
    SyncFlush,
}

/// How a decompressor flushes.
pub(super) enum InflateFlush {
    SyncFlush,
}

/// The state after a step, of which there is no value here.
#[allow(dead_code, reason = "the variants are matched")]
pub(super) enum Status {
    Ok,
    BufError,
    StreamEnd,
}

const NOT_BUILT: &str = "compression is not negotiated by a build without it";

impl Deflate {
    pub(super) fn new(_: i32, _: bool, _: u8) -> Deflate {
        unreachable!("{NOT_BUILT}")
    }

    pub(super) fn reset(&mut self) {
        match self.0 {}
    }

    pub(super) fn set_level(&mut self, _: i32) -> Result<(), Infallible> {
        match self.0 {}
    }

    pub(super) fn set_dictionary(&mut self, _: &[u8]) -> Result<(), Infallible> {
        match self.0 {}
    }

    pub(super) fn compress(&mut self, _: &[u8], _: &mut [u8], _: DeflateFlush) -> Result<Status, Infallible> {
        match self.0 {}
    }

    pub(super) fn total_in(&self) -> u64 {
        match self.0 {}
    }

    pub(super) fn total_out(&self) -> u64 {
        match self.0 {}
    }
}

impl Inflate {
    pub(super) fn new(_: bool, _: u8) -> Inflate {
        unreachable!("{NOT_BUILT}")
    }

    pub(super) fn reset(&mut self, _: bool) {
        match self.0 {}
    }

    pub(super) fn set_dictionary(&mut self, _: &[u8]) -> Result<(), Infallible> {
        match self.0 {}
    }

    pub(super) fn decompress(
        &mut self,
        _: &[u8],
        _: &mut [u8],
        _: InflateFlush,
    ) -> Result<Status, Infallible> {
        match self.0 {}
    }

    pub(super) fn total_in(&self) -> u64 {
        match self.0 {}
    }

    pub(super) fn total_out(&self) -> u64 {
        match self.0 {}
    }
}
