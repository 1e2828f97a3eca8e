//! The `oyez` binary: installs the allocator, and runs the command line.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    oyez::cli::main(allocator::allocated_bytes)
}
