//! What the tests have in common: frames by hand, a server process, a client, an engine in memory.

pub mod client;
pub mod frames;
pub mod process;
pub mod rig;
