//! The build script: commit and cargo features for `--version`.
//!
//! The commit comes from git, or from the file that cargo packs into a published crate, which has no git repository.
//! Debug builds have none: they would be compiled again after every commit.

use std::env;
use std::fs;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rustc-env=OYEZ_BUILD_FEATURES={}", features());
    println!("cargo::rustc-env=OYEZ_BUILD_COMMIT={}", commit());
}

/// The enabled cargo features, from the environment of the build script.
fn features() -> String {
    let names = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()));
    let mut names: Vec<String> = names.filter(|name| name != "default").collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

fn commit() -> String {
    if env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return "debug build".to_owned();
    }
    let name = packed().or_else(from_git);
    name.map_or_else(|| "unknown commit".to_owned(), |name| format!("commit {name}"))
}

/// The commit in the file that `cargo package` writes: `{"git":{"sha1":"…"},…}`.
fn packed() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let rest = text.split("\"sha1\"").nth(1)?;
    Some(rest.split('"').nth(1)?.chars().take(12).collect())
}

fn from_git() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    // Only the project's own repository: the sources may be unpacked within another one.
    git(&["ls-files", "--error-unmatch", "src/build.rs"])?;
    // Every commit adds a line to this log.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if fs::exists(&log).unwrap_or(false) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}
