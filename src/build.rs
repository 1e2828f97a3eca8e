//! The build script: commit and cargo features for `--version`, and the files of the console in compressed form.
//!
//! The commit comes from git, or from the file that cargo packs into a published crate, which has no git repository.
//! Debug builds omit the commit: they would be compiled again after every commit.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use zlib_rs::{DeflateConfig, compress_bound, compress_slice};

/// The embedded files, in this folder.
const CONSOLE: &str = "src/console";

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    compress_console();
    println!("cargo::rustc-env=BUILD_FEATURES={}", features());
    println!("cargo::rustc-env=BUILD_COMMIT={}", commit());
}

/// The enabled cargo features, from the environment of the build script.
fn features() -> String {
    let names = env::vars()
        .filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase().replace('_', "-")));
    let mut names: Vec<String> = names.filter(|name| name != "default").collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}

/// Writes each embedded file as FILE.gz, and a hash of its content as FILE.tag, which is part of its `ETag`.
fn compress_console() {
    println!("cargo::rerun-if-changed={CONSOLE}");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let out = Path::new(&out);
    for entry in fs::read_dir(CONSOLE).expect("the folder is part of the sources") {
        let path = entry.expect("a file").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            continue;
        }
        let name = path.file_name().expect("a file").to_str().expect("ASCII");
        let bytes = fs::read(&path).expect("a readable file");
        fs::write(out.join(format!("{name}.gz")), gzip(&bytes)).expect("a writable folder");
        fs::write(out.join(format!("{name}.tag")), format!("{:016x}", fnv_1a(&bytes)))
            .expect("a writable folder");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // 16 more than the window's bits: with the header and the trailer of gzip, as in zlib.
    let config = DeflateConfig { level: 9, window_bits: 15 + 16, ..DeflateConfig::default() };
    // The bound is for zlib's header and trailer, which are 12 bytes shorter than those of gzip.
    let mut out = vec![0; compress_bound(bytes.len()) + 12];
    let (compressed, status) = compress_slice(&mut out, bytes, config);
    assert_eq!(status, zlib_rs::ReturnCode::Ok);
    compressed.to_vec()
}

/// The hash has to differ between versions of a file, but need not resist attacks: the files are the project's own.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
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
