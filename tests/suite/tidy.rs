//! Habits that no compiler checks: layers, one clock, no leftovers.

use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each module, lowest first; a module imports only from layers below its own.
const LAYERS: [&[&str]; 11] = [
    &["config", "ids", "time"],
    &["tables"],
    // A close reports a gap.
    &["close"],
    &["wire", "access"],
    &["metrics"],
    &["net", "client"],
    &["hub"],
    &["session"],
    &["server"],
    &["load", "console"],
    &["cli"],
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    assert!(found.len() > 20, "{found:?}");
    found
}

fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn layer_of(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or_else(|| panic!("{module} has no layer"))
}

/// The code without its tests and comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn module_imports_only_from_lower_layers() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if ["build", "lib", "main"].contains(&module.as_str()) {
            continue;
        }
        for (number, line) in code(&text) {
            for (at, _) in line.match_indices("crate::") {
                let imported: String = line[at + 7..]
                    .chars()
                    .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                    .collect();
                if imported != module && layer_of(&imported) >= layer_of(&module) {
                    complaints.push(format!("{}:{number}: {module} imports {imported}", path.display()));
                }
            }
            if line.contains("use crate::{") {
                complaints.push(format!(
                    "{}:{number}: one import a line, so that layers are visible",
                    path.display()
                ));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn source_has_one_clock_and_no_leftovers() {
    let mut complaints = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let is_loop = path.ends_with("server/mod.rs") || ["cli", "load"].contains(&module.as_str());
        for (number, line) in code(&text) {
            let mut forbid = |what: &str, why: &str| {
                if line.contains(what) {
                    complaints.push(format!("{}:{number}: {what}: {why}", path.display()));
                }
            };
            if !is_loop {
                forbid("Instant::now", "time is an argument");
                forbid("SystemTime::now", "time is an argument");
            }
            forbid("Rc<RefCell", "split the struct, return intents");
            forbid("dyn ", "no dispatch at run time");
            forbid("dbg!", "left over");
            forbid("println!(\"{:?}", "left over");
            if !path.ends_with("cli/output.rs") {
                forbid("io::stdout(", "cli/output.rs writes, and handles failure");
                forbid("io::stderr(", "cli/output.rs writes, and handles failure");
            }
            if module != "build" {
                forbid("print!(", "it panics when its reader is gone");
                forbid("println!(", "it panics when its reader is gone");
            }
            forbid("todo!", "left over");
            forbid("unimplemented!", "left over");
            forbid("#[ignore", "no test is skipped");
            forbid("unsafe ", "nothing here needs it");
            // A write to a disk blocks, and no poll knows when it is done.
            let writes_to_disk = path.ends_with("server/store/writer.rs");
            if module != "cli" && module != "load" && !writes_to_disk {
                forbid("std::thread", "the server is one thread");
            }
        }
    }
    complain(&complaints);
}

#[test]
fn loop_fits_on_one_screen() {
    let (_, text) = sources().into_iter().find(|(path, _)| path.ends_with("server/mod.rs")).unwrap();
    let start = text.find("pub fn run(").unwrap();
    let length = text[start..].lines().take_while(|line| *line != "    }").count();
    assert!(length <= 40, "{length} lines");
}

#[test]
fn every_module_has_a_doc_comment() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| path.display().to_string())
        .collect();
    complain(&silent);
}
