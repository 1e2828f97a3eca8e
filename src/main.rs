//! The `oyez` binary: installs the allocator, and runs the command line.

#[cfg_attr(not(feature = "jemalloc"), path = "allocator_missing.rs")]
mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    oyez::cli::main(allocator::allocated_bytes)
}
