//! The environment of a connection's decoder: limits, the decompressor, and the cost of decompressed messages.

use super::decoder::too_big;
use crate::close::Reason;
use crate::config::Limits;
use crate::time::LoopTime;
use crate::wire::inflate::{InflateError, Inflater, Inflation};

/// The environment of a decoder, and what its work has cost.
#[derive(Debug)]
pub struct Decoding<'a> {
    /// The limits.
    pub limits: &'a Limits,
    /// The time of this turn.
    pub now: LoopTime,
    /// `None` if permessage-deflate was not negotiated.
    pub inflater: Option<&'a mut Inflater>,
    /// Decoding stops when the decompressed messages have reached this cost.
    pub inflate_cost_max: usize,
    /// Cost of the decompressed messages, in bytes of the turn's budget.
    pub inflate_cost: usize,
    /// Bytes of the decompressed messages.
    pub inflated_bytes: usize,
    /// Completed frames, including empty and control frames.
    pub frames: usize,
    /// Decoding stops after this number of frames.
    pub frames_max: usize,
}

/// Cost of a compressed byte in a turn's budget, in addition to the decompressed bytes. Empty blocks that define codes
/// of up to 10 bits are the most expensive known input: 16 KiB of the shortest such blocks, of 11 bytes, take 0.57 ms,
/// five times as long as 16 KiB of empty frames, and 16 KiB of the most expensive ones about twice that.
const COMPRESSED_BYTE_COST: usize = 8;

/// Minimum cost of a visit that leaves a message half decompressed, which then holds a decompressor and the text so
/// far. It is 0.5 ms of the most expensive input; a message of 64 KiB that compresses to a thirtieth is decompressed in
/// one visit, however many clients send at the same time. With 32 KiB, a thousand clients that sent bombs held 150 MiB
/// in half decompressed messages.
const SLICE_COST_MIN: usize = 80 << 10;

impl<'a> Decoding<'a> {
    /// The environment of a connection without permessage-deflate.
    pub fn plain(limits: &'a Limits, now: LoopTime) -> Decoding<'a> {
        Decoding {
            limits,
            now,
            inflater: None,
            inflate_cost_max: usize::MAX,
            inflate_cost: 0,
            inflated_bytes: 0,
            frames: 0,
            frames_max: usize::MAX,
        }
    }

    /// Begins to decompress the payload of a message.
    pub(super) fn begin_inflation(&mut self, payload: Vec<u8>) -> Result<Inflation, Reason> {
        // The scanner rejects compressed messages that were not negotiated.
        Ok(self.inflater.as_mut().ok_or(Reason::Protocol)?.begin(payload))
    }

    /// Ends an inflation that is complete or has failed.
    pub(super) fn end_inflation(&mut self, inflation: Inflation) {
        if let Some(inflater) = &mut self.inflater {
            inflater.end(inflation);
        }
    }

    /// Decompresses a message until it is complete or its slice of the turn is used up, and appends to `message`.
    /// Returns true if it is complete.
    pub(super) fn inflate(
        &mut self,
        inflation: &mut Inflation,
        message: &mut Vec<u8>,
    ) -> Result<bool, Reason> {
        let least = self.inflate_cost + SLICE_COST_MIN;
        loop {
            let progress =
                inflation.step(message, self.limits.message_bytes_max).map_err(|error| match error {
                    InflateError::TooBig => too_big(self.limits),
                    InflateError::Invalid => Reason::BadDeflate,
                })?;
            self.inflate_cost += progress.consumed * COMPRESSED_BYTE_COST + progress.produced;
            self.inflated_bytes += progress.produced;
            if progress.is_complete {
                return Ok(true);
            }
            if self.inflate_cost >= least.max(self.inflate_cost_max) {
                return Ok(false);
            }
        }
    }

    /// Returns true if the frames have reached their maximum number, or the decompressed messages their maximum cost.
    pub(super) fn is_budget_spent(&self) -> bool {
        self.frames >= self.frames_max
            || (self.inflate_cost > 0 && self.inflate_cost >= self.inflate_cost_max)
    }

    /// The number of frames that may still be decoded.
    pub(super) fn frames_left(&self) -> usize {
        self.frames_max.saturating_sub(self.frames)
    }
}
