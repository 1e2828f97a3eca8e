//! `oyez print`: files for an installation, so that the binary is the only download.
//!
//! The manual pages, the completions and the list of variables are made from the declarations of the flags; the other
//! results are files in the folder `print`.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;

use super::failure::Failure;
use super::output;

const SYSTEMD_UNIT: &str = include_str!("print/oyez.service");
const SYSTEMD_SOCKET: &str = include_str!("print/oyez.socket");
const GRAFANA_DASHBOARD: &str = include_str!("print/grafana_dashboard.json");
const ALERT_RULES: &str = include_str!("print/alert_rules.yml");
const OPENAPI: &str = include_str!("print/openapi.json");

/// The flags of `oyez print`.
#[derive(Debug, Args)]
pub(super) struct PrintCommand {
    #[command(subcommand)]
    what: Artifact,
}

#[derive(Debug, Subcommand)]
enum Artifact {
    /// A manual page in roff: of oyez, or of one of its commands.
    Man {
        /// A command, such as serve, or bench fanout.
        #[arg(value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Completions for a shell.
    Completions {
        #[arg(value_enum)]
        shell: Shell,
    },
    /// A hardened systemd unit.
    SystemdUnit,
    /// A systemd unit of the listening socket, which stays open while the server restarts.
    SystemdSocket,
    /// The environment variables of oyez serve with their defaults, commented out.
    Config,
    /// A dashboard for Grafana, in JSON.
    GrafanaDashboard,
    /// Alert rules for Prometheus, in YAML.
    AlertRules,
    /// The description of the HTTP API in the format of OpenAPI 3.1, in JSON.
    Openapi,
}

impl PrintCommand {
    /// `command` is the whole command line.
    pub(super) fn run(self, command: Command) -> Result<(), Failure> {
        match self.what {
            Artifact::Man { command: names } => output::print(man(command, &names)?),
            Artifact::Completions { shell } => output::print(completions(command, shell)),
            Artifact::SystemdUnit => output::print(systemd_unit()),
            Artifact::SystemdSocket => output::print(SYSTEMD_SOCKET),
            Artifact::Config => output::print(config(&command)),
            Artifact::GrafanaDashboard => output::print(GRAFANA_DASHBOARD),
            Artifact::AlertRules => output::print(ALERT_RULES),
            Artifact::Openapi => output::print(OPENAPI),
        }
    }
}

/// The unit without the flags of parts that this build leaves out, and without the credential that one of them reads:
/// with them the service would not start.
fn systemd_unit() -> String {
    const OF_HISTORY: [&str; 1] = [" --history-file %S/oyez/history"];
    const OF_TOKENS: [&str; 3] = [
        " --jwt-secret-file %d/secret.key",
        "# A secret for this server alone, though root owns the file. %d is the folder of the copy.\n",
        "LoadCredential=secret.key:/etc/oyez/secret.key\n",
    ];
    let mut unit = SYSTEMD_UNIT.to_owned();
    for (is_built, texts) in
        [(cfg!(feature = "history-file"), &OF_HISTORY[..]), (cfg!(feature = "jwt"), &OF_TOKENS)]
    {
        for text in texts.iter().filter(|_| !is_built) {
            unit = unit.replacen(text, "", 1);
        }
    }
    unit
}

fn man(mut command: Command, names: &[String]) -> Result<String, Failure> {
    command.build();
    let mut found = &command;
    for name in names {
        found = found.find_subcommand(name).ok_or_else(|| {
            let below: Vec<&str> = found.get_subcommands().map(Command::get_name).collect();
            let why = match below.is_empty() {
                true => "it has none".to_owned(),
                false => format!("use one of {}", below.join(", ")),
            };
            Failure::Usage(format!("{} has no command {name:?}: {why}", found.get_name()))
        })?;
    }
    // `-h` shows the most used flags only; a manual page has all of them.
    let mut found = found.clone().mut_args(|arg| arg.hide_short_help(false));
    let name = found.get_display_name().unwrap_or(found.get_name()).to_owned();
    let usage = found.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().replace('-', "\\-");
    let has_commands = found.has_subcommands();
    let page = Man::new(found.display_name(name.replace(' ', "-")))
        .source(concat!("oyez ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    // clap_mangen's own synopsis lists all flags. Writing to memory does not fail.
    let _ = page
        .render_title(&mut text)
        .and_then(|()| page.render_name_section(&mut text))
        .and_then(|()| writeln!(text, ".SH SYNOPSIS\n.nf\n{usage}\n.fi"))
        .and_then(|()| page.render_description_section(&mut text))
        .and_then(|()| page.render_options_section(&mut text))
        .and_then(|()| if has_commands { page.render_subcommands_section(&mut text) } else { Ok(()) });
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn completions(command: Command, shell: Shell) -> String {
    // clap takes the names for the life of the program, which ends after this.
    let names: Vec<&'static str> =
        command.get_subcommands().map(|below| &*below.get_name().to_owned().leak()).collect();
    // `man` completes the names of commands, and does not check them: its own error has the names at each level.
    let with_names = |arg: Arg| match arg.get_id() == "command" {
        true => arg.value_parser(PossibleValuesParser::new(names.clone())),
        false => arg,
    };
    let mut command = command.mut_subcommands(|below| match below.get_name() {
        "print" => below.mut_subcommands(|artifact| artifact.mut_args(with_names)),
        _ => below,
    });
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "oyez", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A file for `EnvironmentFile=` and `docker --env-file`: the two expand and unquote differently, so
/// values have no quotes.
fn config(command: &Command) -> String {
    let mut text = String::from(
        "# The environment of oyez serve. A line that is commented out shows the default.\n\
         # Flags take precedence over these variables.\n",
    );
    let serve = command.find_subcommand("serve").into_iter();
    let mut args: Vec<_> = serve
        .flat_map(Command::get_arguments)
        .filter(|arg| arg.get_env().is_some() && !arg.is_hide_set())
        .collect();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for arg in &args {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    args.sort_by_key(|arg| {
        let heading = headings.iter().position(|heading| *heading == arg.get_help_heading());
        (heading, arg.get_display_order())
    });
    let mut heading = None;
    for arg in args {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let _ = writeln!(text, "\n## {}", heading.unwrap_or_default());
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let variable = arg.get_env().map(|name| name.to_string_lossy()).unwrap_or_default();
        let default =
            arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>();
        let _ = write!(text, "\n# {}\n#{variable}={}\n", help.replace('\n', "\n# "), default.join(" "));
    }
    text
}
