//! The README and the pages of the manual.

use std::fs;
use std::path::{Path, PathBuf};

/// The pages in the order in which their commands run: a page may need a file that an earlier one creates.
const PAGES: [&str; 18] = [
    "getting_started.md",
    "command_line.md",
    "compression.md",
    "protocol.md",
    "http_api.md",
    "client_library.md",
    "security.md",
    "flags.md",
    "limits.md",
    "monitoring.md",
    "history_file.md",
    "several_nodes.md",
    "tls.md",
    "proxies.md",
    "service.md",
    "benchmarking.md",
    "builds.md",
    "event_loop.md",
];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README, then each page, with its path.
pub fn pages() -> Vec<(PathBuf, String)> {
    let folder = root().join("src/manual");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    let mut known = PAGES;
    known.sort_unstable();
    assert_eq!(names, known);
    let paths = PAGES.iter().map(|name| folder.join(name));
    let paths = [root().join("README.md")].into_iter().chain(paths);
    paths.map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// One page of the manual.
pub fn page(name: &str) -> String {
    fs::read_to_string(root().join("src/manual").join(name)).unwrap()
}
