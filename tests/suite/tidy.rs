//! Rules that the compiler does not check: layers, one clock, prose, no leftovers. The source files are read as tokens
//! and text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support::source::{ROOT, SourceFile, files, imports, sources};

/// The layer of each module, lowest first; a module imports only from layers below its own.
const LAYERS: [&[&str]; 12] = [
    &["byte_size", "fault", "features", "json_object", "plural"],
    &["config", "ids", "time"],
    &["tables"],
    // A close reports a gap.
    &["close"],
    &["wire", "access"],
    &["metrics"],
    &["net", "client", "backplane"],
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

/// Circles between files, of any length. What counts as an import: a `use` or `pub use` of another file's item, and an
/// item's path within the code; a re-exported item counts for the file that defines it. A file may use the types
/// (structs, enums, traits) of the modules around it, since `mod.rs` owns the state that its submodules implement
/// methods of. Functions and constants of the surrounding modules, and everything of siblings and of other folders,
/// count.
#[test]
fn files_import_each_other_in_no_circle() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut places: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for import in imports(&sources()) {
        let is_around = import.from.starts_with(&format!("{}/", import.to));
        let mut letters = import.item.chars();
        let is_type = letters.next().is_some_and(char::is_uppercase) && letters.any(char::is_lowercase);
        let is_program = ["lib", "main"].contains(&import.from.as_str());
        let is_allowed = is_program || (is_around && is_type);
        if !is_allowed {
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

/// Returns true if the file takes the place of another one in a build without a feature: its `mod` is under a negated
/// `cfg` of that feature, or it is the path of the other's. Its types have the names of those that it replaces.
fn is_replacement(file: &SourceFile, sources: &[SourceFile]) -> bool {
    let module = file.module();
    let (parent, name) = module.rsplit_once('/').unwrap_or(("main", &module));
    let (declaration, path) = (format!("mod {name};"), format!("), path = \"{name}.rs\")]"));
    sources.iter().filter(|source| source.module() == parent).any(|source| {
        let lines: Vec<&str> = source.text.lines().collect();
        lines.windows(2).any(|pair| {
            pair[0].starts_with("#[cfg_attr(not(feature = ") && pair[0].ends_with(&path)
                || pair[0].starts_with("#[cfg(not(feature = ") && pair[1] == declaration
        })
    })
}

/// Structs, enums, traits and type aliases; associated types are part of their trait.
#[test]
fn type_name_is_defined_once() {
    let mut definitions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let sources = sources();
    let (replacements, files): (Vec<_>, Vec<_>) =
        sources.iter().partition(|file| is_replacement(file, &sources));
    let replaced: Vec<String> = replacements.iter().map(|file| file.name()).collect();
    let replaced: Vec<&str> = replaced.iter().map(String::as_str).collect();
    assert_eq!(
        replaced,
        [
            "src/access/keys_missing.rs",
            "src/access/token_missing.rs",
            "src/allocator_missing.rs",
            "src/cli/bench_missing.rs",
            "src/cli/print_missing.rs",
            "src/cli/token_missing.rs",
            "src/client/tls_missing.rs",
            "src/net/tls_missing.rs",
            "src/server/store_missing.rs",
            "src/wire/zlib_missing.rs",
        ]
    );
    for file in files {
        for (number, line) in file.code_lines() {
            let is_top_level = !line.starts_with(' ');
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            let (Some(kind), Some(name)) = (words.next(), words.next()) else { continue };
            if ["struct", "enum", "trait"].contains(&kind) || (kind == "type" && is_top_level) {
                let name: String = name.chars().take_while(|letter| letter.is_alphanumeric()).collect();
                // A parameter of a macro begins with another character.
                if name.is_empty() {
                    continue;
                }
                definitions.entry(name).or_default().push(format!("{}:{number}", file.name()));
            }
        }
    }
    assert!(definitions.len() > 200, "{} types", definitions.len());
    let complaints: Vec<String> = definitions
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name} is defined more than once: {}", places.join(", ")))
        .collect();
    complain(&complaints);
}

/// Phrases that avoid the noun they are about, or give programs a mouth and ears. `|` separates alternatives for a
/// word.
const BANNED: &[&str] = &[
    "who is|was|has|does|comes|came|asks|shows|wants|publishes|may|sits|gets|could|knows|reads|closes|takes|lacks|hears|leaves|speaks|serves",
    "for|of|to who",
    "what it|they|he|comes|came|nobody|somebody|everybody|lies|becomes|became|waits|stands",
    "whoever|nobody|somebody|everybody|anybody",
    "is|are|was|be none",
    "so many",
    "anew",
    "beside",
    "behind",
    "told|tells|hears|heard",
    "has|have come|gone",
    "hand|hands|handed out",
    "given out",
];

/// Files that still have banned phrases. The list must shrink to none.
const UNREVISED: &[&str] = &[];

/// The texts of the project that people read: comments, literals and Markdown, with the line each starts in.
fn prose() -> Vec<(String, usize, String)> {
    let mut found = Vec::new();
    for file in sources() {
        let mut last = 0;
        for comment in &file.comments {
            let text = comment.text.trim_start_matches(['/', '!']);
            if comment.line == last + 1 && last > 0 {
                let (_, _, paragraph): &mut (String, usize, String) = found.last_mut().unwrap();
                paragraph.push_str(text);
            } else {
                found.push((file.name(), comment.line, text.to_owned()));
            }
            last = comment.line;
        }
        for literal in &file.strings {
            found.push((file.name(), literal.line, literal.text.clone()));
        }
    }
    let mut texts = vec![Path::new(ROOT).join("README.md"), Path::new(ROOT).join("CHANGELOG.md")];
    for (folder, ending) in [
        ("src", "md"),
        ("src", "js"),
        ("src", "html"),
        ("benches", "md"),
        ("benches", "rs"),
        ("benches", "py"),
        ("benches", "sh"),
    ] {
        texts.extend(files(folder, ending));
    }
    for path in texts {
        let name = path.strip_prefix(ROOT).unwrap().display().to_string();
        // Paragraphs, so that a phrase is found across a line's end. `is None` is Python.
        let text = fs::read_to_string(&path).unwrap().replace("is None", "");
        let (mut paragraph, mut start) = (String::new(), 1);
        for (number, line) in text.lines().chain([""]).enumerate() {
            let line = line.trim().trim_start_matches(['/', '#', '*', '!']);
            if line.is_empty() {
                found.push((name.clone(), start, std::mem::take(&mut paragraph)));
                start = number + 2;
            } else {
                paragraph.push_str(line);
                paragraph.push(' ');
            }
        }
    }
    found
}

/// The banned phrases in a text.
fn banned(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let is_mark = |letter: char| !letter.is_alphanumeric();
    let mut found = Vec::new();
    for phrase in BANNED {
        let parts: Vec<Vec<&str>> = phrase.split(' ').map(|part| part.split('|').collect()).collect();
        for at in 0..words.len() {
            let Some(window) = words.get(at..at + parts.len()) else { break };
            let matches = window.iter().zip(&parts).enumerate().all(|(number, (word, part))| {
                let word = word.trim_start_matches(is_mark);
                let is_last = number + 1 == parts.len();
                part.contains(&if is_last { word.trim_end_matches(is_mark) } else { word })
            });
            // "Behind a proxy" and "behind a load balancer" are terms.
            let is_term = *phrase == "behind"
                && words[at + 1..].iter().take(4).any(|word| {
                    let word = word.trim_start_matches(is_mark);
                    ["proxy", "proxies", "load"].iter().any(|term| word.starts_with(term))
                });
            if matches && !is_term {
                found.push(words[at..words.len().min(at + parts.len() + 3)].join(" "));
            }
        }
    }
    // A boolean is documented by "Returns true if".
    let question = text.split_whitespace().next().unwrap_or("");
    if ["Has", "Is", "Does", "Do", "May", "Would", "Are", "Did", "Can"].contains(&question)
        && text.split_inclusive(['.', '?']).next().is_some_and(|first| first.ends_with('?'))
    {
        found.push(text.trim().to_owned());
    }
    found
}

#[test]
fn prose_names_its_nouns() {
    let complaints: Vec<String> = prose()
        .into_iter()
        .filter(|(file, _, _)| !UNREVISED.iter().any(|start| file.starts_with(start)))
        .flat_map(|(file, line, text)| {
            banned(&text).into_iter().map(move |phrase| format!("{file}:{line}: {phrase}"))
        })
        .collect();
    complain(&complaints);
}

/// Nouns that are counted in logs, errors and reports. A count may be one, so `plural` writes both; what follows a
/// formatted value directly is a plural that is always written. Bytes are mostly those of a constant limit.
const COUNTED: &[&str] = &[
    "attempts",
    "channels",
    "clients",
    "connections",
    "days",
    "deliveries",
    "entries",
    "files",
    "items",
    "keys",
    "lines",
    "messages",
    "nodes",
    "processors",
    "publishers",
    "requests",
    "retries",
    "slots",
    "subscribers",
    "times",
    "tokens",
];

#[test]
fn counted_noun_is_written_by_its_helper() {
    let mut complaints = Vec::new();
    let follows_a_value = |text: &str| {
        text.split("} ").skip(1).any(|rest| {
            let noun: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            let is_counted = COUNTED.contains(&noun.as_str());
            is_counted && !matches!(rest[noun.len()..].chars().next(), Some('/' | '='))
        })
    };
    for file in sources() {
        for token in &file.strings {
            // The value of a constant limit is known.
            if follows_a_value(&token.text.replace("_MAX} ", " ")) {
                complaints.push(format!("{}:{}: use `plural`: {}", file.name(), token.line, token.text));
            }
        }
    }
    for path in files("src/console", "js") {
        for (number, line) in (1..).zip(fs::read_to_string(&path).unwrap().lines()) {
            // A constant, or a count whose singular is written `once`.
            if follows_a_value(&line.replace("FAILURES} ", " ")) && !line.contains("'once'") {
                complaints.push(format!("{}:{number}: use `plural`: {line}", path.display()));
            }
        }
    }
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
            // So does a lookup of a host name (getaddrinfo).
            let blocks = ["server/store/writer.rs", "server/backplane/lookup.rs"]
                .iter()
                .any(|one| path.ends_with(one));
            if module != "cli" && module != "load" && !blocks {
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

/// The length of a function, from the line of `fn` to its closing brace, which rustfmt indents alike.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_function =
            code.split_whitespace().take_while(|word| !word.contains('(')).any(|word| word == "fn");
        if !is_function || code.starts_with("//") || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[start..].iter().take_while(|line| **line != end).count() + 1;
        let name = code.split_once("fn ").map_or("", |(_, rest)| rest.split(['(', '<']).next().unwrap());
        found.push((start + 1, name.to_owned(), length));
    }
    found
}

#[test]
fn function_has_at_most_60_lines() {
    const LINES_MAX: usize = 60;
    let (mut complaints, mut count) = (Vec::new(), 0);
    for path in files("src", "rs") {
        for (line, name, length) in functions(&fs::read_to_string(&path).unwrap()) {
            count += 1;
            if length > LINES_MAX {
                complaints.push(format!("{}:{line}: {name} has {length} lines", path.display()));
            }
        }
    }
    assert!(count > 1500, "{count} functions");
    complain(&complaints);
}

#[test]
fn every_module_has_a_doc_comment() {
    let silent: Vec<String> =
        sources().into_iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.name()).collect();
    complain(&silent);
}
