//! Parse, run, exit code.

mod allocator;

use std::process::ExitCode;

fn main() -> ExitCode {
    oyez::cli::main(allocator::allocated_bytes)
}
