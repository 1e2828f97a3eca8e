//! The library that compresses and decompresses.
//!
//! In a build without the cargo feature `deflate`, `zlib_missing` takes the place of this module.

pub(super) use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};
