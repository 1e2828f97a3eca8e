//! Tables that release their memory after a flood of entries, for the layers above.

pub mod bit_set;
pub mod chunked_slab;
pub mod shrink;
