//! A command that this build leaves out: it accepts any arguments, and is an error that names the cargo feature.

use std::ffi::OsString;

use clap::Args;

use super::failure::Failure;

/// Any arguments.
#[derive(Debug, Args)]
pub(super) struct AnyArguments {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

/// The error of using the command.
pub(super) fn not_in_this_build(command: &str, feature: &str) -> Failure {
    Failure::Usage(format!(
        "{command} is not available in this build of oyez: build it with the feature {feature}, which is a default feature \
         (cargo build --release --features {feature})"
    ))
}
