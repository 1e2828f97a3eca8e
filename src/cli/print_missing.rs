//! `oyez print` in a build without the feature `print`: an error that names the feature, whatever the arguments are.

use clap::{Args, Command};

use super::failure::Failure;
use super::missing_command::{AnyArguments, not_in_this_build};

#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(super) struct PrintCommand {
    #[command(flatten)]
    _arguments: AnyArguments,
}

impl PrintCommand {
    pub(super) fn run(self, _: Command) -> Result<(), Failure> {
        Err(not_in_this_build("print", "print"))
    }
}
