//! `oyez bench` in a build without the feature `bench`: an error that names the feature, whatever the arguments are.

use std::ffi::OsString;

use clap::Args;

use super::failure::Failure;

#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(super) struct BenchCommand {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

impl BenchCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let text = "bench is not available in this build of oyez: build it with the feature bench, which is a default feature \
                    (cargo build --release --features bench)";
        Err(Failure::Usage(text.to_owned()))
    }
}
