//! Habits that no compiler checks: layers, one clock, no leftovers.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::source::{SourceFile, imports, sources};

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

/// The first part of a module's path.
fn top_module(file: &SourceFile) -> String {
    let module = file.module();
    module.split('/').next().unwrap().to_owned()
}

fn layer_of(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or_else(|| panic!("{module} has no layer"))
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn module_imports_only_from_lower_layers() {
    let mut complaints = Vec::new();
    for file in sources() {
        let module = top_module(&file);
        if ["build", "lib", "main"].contains(&module.as_str()) {
            continue;
        }
        for (number, line) in file.code_lines() {
            for (at, _) in line.match_indices("crate::") {
                let imported: String = line[at + 7..]
                    .chars()
                    .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                    .collect();
                if imported != module && layer_of(&imported) >= layer_of(&module) {
                    complaints.push(format!("{}:{number}: {module} imports {imported}", file.name()));
                }
            }
            if line.contains("use crate::{") {
                complaints
                    .push(format!("{}:{number}: one import a line, so that layers are visible", file.name()));
            }
        }
    }
    complain(&complaints);
}

/// Imports that close a circle today. The list must shrink to none.
const CIRCLES: [(&str, &str); 0] = [];

/// Circles between files, of any length. What counts as an import: a `use` or `pub use` of another file's item, and an
/// item's path within the code; a re-exported item counts for the file that defines it. A file may use the types
/// (structs, enums, traits) of the modules around it, since `mod.rs` owns the state that its submodules implement
/// methods of. Functions and constants of the surrounding modules, and everything of siblings and of other folders, count.
#[test]
fn files_import_each_other_in_no_circle() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut places: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for import in imports(&sources()) {
        let is_around = import.from.starts_with(&format!("{}/", import.to));
        let mut letters = import.item.chars();
        let is_type = letters.next().is_some_and(char::is_uppercase) && letters.any(char::is_lowercase);
        let is_known = CIRCLES.contains(&(import.from.as_str(), import.to.as_str()));
        if !(is_around && is_type) && !is_known && !["lib", "main"].contains(&import.from.as_str()) {
            edges.entry(import.from.clone()).or_default().insert(import.to.clone());
            places
                .entry((import.from, import.to))
                .or_default()
                .push(format!("{} (line {})", import.item, import.line));
        }
    }
    assert!(places.len() > 200, "{} imports", places.len());
    let reachable = |from: &str| {
        let (mut found, mut left) = (BTreeSet::new(), vec![from]);
        while let Some(next) = left.pop() {
            for to in edges.get(next).into_iter().flatten() {
                if found.insert(to.as_str()) {
                    left.push(to);
                }
            }
        }
        found
    };
    let reachable: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|from| (from.as_str(), reachable(from))).collect();
    let complaints: Vec<String> = places
        .iter()
        .filter(|((from, to), _)| {
            reachable.get(to.as_str()).is_some_and(|found| found.contains(from.as_str()))
        })
        .map(|((from, to), items)| {
            format!("{from} imports {to}, which imports it in turn: {}", items.join(", "))
        })
        .collect();
    complain(&complaints);
}

#[test]
fn source_has_one_clock_and_no_leftovers() {
    let mut complaints = Vec::new();
    for file in sources() {
        let (module, path) = (top_module(&file), &file.path);
        let is_loop = path.ends_with("server/mod.rs") || ["cli", "load"].contains(&module.as_str());
        for (number, line) in file.code_lines() {
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
    let text = sources().into_iter().find(|file| file.path.ends_with("server/mod.rs")).unwrap().text;
    let start = text.find("pub fn run(").unwrap();
    let length = text[start..].lines().take_while(|line| *line != "    }").count();
    assert!(length <= 40, "{length} lines");
}

#[test]
fn every_module_has_a_doc_comment() {
    let silent: Vec<String> =
        sources().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.name()).collect();
    complain(&silent);
}
