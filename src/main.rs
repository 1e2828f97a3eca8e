//! Parse, run, print the error, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match oyez::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("oyez: {failure}");
            ExitCode::from(failure.status())
        }
    }
}
