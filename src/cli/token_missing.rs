//! `oyez token` in a build without the feature `jwt`: an error that names the feature, whatever the arguments are.

use clap::Args;

use super::failure::Failure;
use super::missing_command::{AnyArguments, not_in_this_build};

#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(super) struct TokenCommand {
    #[command(flatten)]
    _arguments: AnyArguments,
}

impl TokenCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        Err(not_in_this_build("token", "jwt"))
    }
}
