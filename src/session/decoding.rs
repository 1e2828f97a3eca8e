//! The environment of a connection's decoder: limits, the decompressor, and the cost of decompressed messages.

use super::decoder::too_big;
use crate::close::Reason;
use crate::config::Limits;
use crate::time::LoopTime;
use crate::wire::inflate::{InflateError, Inflater};

/// The environment of a decoder, and what its work has cost.
#[derive(Debug)]
pub struct Decoding<'a> {
    /// The limits.
    pub limits: &'a Limits,
    /// The time of this turn.
    pub now: LoopTime,
    /// `None` if permessage-deflate was not negotiated.
    pub inflater: Option<&'a mut Inflater>,
    /// Decoding stops after the compressed message that reaches this cost.
    pub inflate_cost_max: usize,
    /// Cost of the decompressed messages, in bytes of the turn's budget.
    pub inflate_cost: usize,
    /// Bytes of the decompressed messages.
    pub inflated_bytes: usize,
    /// Completed frames, including empty and control frames.
    pub frames: usize,
}

/// Cost of a compressed byte in a turn's budget, in addition to the decompressed bytes. Empty blocks that
/// define codes of up to 10 bits are the most expensive input that is known: 16 KiB of them take about twice as long as
/// the shortest such blocks of 11 bytes, and those 0.57 ms, five times as long as 16 KiB of empty frames.
const COMPRESSED_BYTE_COST: usize = 8;

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
        }
    }

    /// Decompresses the payload of a message.
    pub(super) fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, Reason> {
        // The scanner rejects compressed messages that were not negotiated.
        let Some(inflater) = &mut self.inflater else { return Err(Reason::Protocol) };
        self.inflate_cost += payload.len() * COMPRESSED_BYTE_COST;
        match inflater.inflate(payload, self.limits.message_bytes_max) {
            Ok(message) => {
                self.inflate_cost += message.len();
                self.inflated_bytes += message.len();
                Ok(message)
            }
            Err(InflateError::TooBig) => {
                self.inflate_cost += self.limits.message_bytes_max;
                Err(too_big(self.limits))
            }
            Err(InflateError::Invalid) => Err(Reason::BadDeflate),
        }
    }

    /// Returns true if the decompressed messages have reached their maximum cost.
    pub(super) fn is_budget_spent(&self) -> bool {
        self.inflate_cost > 0 && self.inflate_cost >= self.inflate_cost_max
    }
}
