//! The project's own Rust files as tokens, and the paths in them resolved to files, for the checks of the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The top folder of the project.
pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A Rust file below `src`, without its unit tests.
pub struct SourceFile {
    pub path: PathBuf,
    /// The whole file.
    pub text: String,
    /// Without comments and literals.
    pub code: Vec<Token>,
    pub comments: Vec<Token>,
    pub strings: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub line: usize,
    pub text: String,
}

/// A use of an item of another file.
#[derive(Debug)]
pub struct Import {
    pub line: usize,
    /// The importing module, as `session/http/dispatch`; `session` is `session/mod.rs`.
    pub from: String,
    pub to: String,
    /// The first name after the module's; `*` for all.
    pub item: String,
}

/// All files with the ending below a folder of the project, in order.
pub fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target" && name != "node_modules") {
                    walk(&path, ending, found);
                }
            } else if path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(ROOT).join(folder), ending, &mut found);
    found.sort();
    found
}

/// The Rust files below `src`, without those that have unit tests alone.
pub fn sources() -> Vec<SourceFile> {
    let paths = files("src", "rs").into_iter().filter(|path| !path.ends_with("tests.rs"));
    let found: Vec<SourceFile> = paths.map(SourceFile::read).collect();
    assert!(found.len() > 20, "{} files", found.len());
    found
}

impl SourceFile {
    fn read(path: PathBuf) -> SourceFile {
        let text = fs::read_to_string(&path).unwrap();
        let mut file = SourceFile { path, text, code: Vec::new(), comments: Vec::new(), strings: Vec::new() };
        file.split();
        file
    }

    /// The path below the project's folder.
    pub fn name(&self) -> String {
        self.path.strip_prefix(ROOT).unwrap().display().to_string()
    }

    /// `session/http/dispatch` for `src/session/http/dispatch.rs`, `session` for `src/session/mod.rs`.
    pub fn module(&self) -> String {
        let name = self.name();
        let inside = name.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
        inside.strip_suffix("/mod").unwrap_or(inside).to_owned()
    }

    /// The lines without unit tests and comment lines, numbered from one.
    pub fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.untested()
            .lines()
            .enumerate()
            .map(|(number, line)| (number + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn untested(&self) -> &str {
        let end = self.text.find("#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        &self.text[..end]
    }

    /// Separates code, comments and literals.
    fn split(&mut self) {
        let letters: Vec<char> = self.untested().chars().collect();
        let (mut at, mut line) = (0, 1);
        let letter = |at: usize| letters.get(at).copied().unwrap_or('\0');
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        while at < letters.len() {
            let start = at;
            match (letter(at), letter(at + 1)) {
                ('/', '/') => {
                    while at < letters.len() && letter(at) != '\n' {
                        at += 1;
                    }
                    let text: String = letters[start..at].iter().collect();
                    self.comments.push(Token { line, text });
                }
                ('"', _) => {
                    at += 1;
                    while at < letters.len() && letter(at) != '"' {
                        at += if letter(at) == '\\' { 2 } else { 1 };
                    }
                    at += 1;
                    let text = letters[start + 1..at - 1].iter().collect();
                    self.strings.push(Token { line, text });
                }
                ('r', '"' | '#') if letter(at + 1) == '"' || letter(at + 2) == '"' => {
                    let hashes = usize::from(letter(at + 1) == '#');
                    at += hashes + 2;
                    while at < letters.len() && (letter(at) != '"' || (hashes == 1 && letter(at + 1) != '#'))
                    {
                        at += 1;
                    }
                    let text = letters[start + hashes + 2..at].iter().collect();
                    self.strings.push(Token { line, text });
                    at += 1 + hashes;
                }
                // Bytes and C strings: the prefix alone; the literal follows.
                ('b' | 'c', '"' | '\'') => at += 1,
                ('b', 'r') if letter(at + 2) == '"' || letter(at + 2) == '#' => at += 1,
                ('\'', '\\') => {
                    at += 3;
                    while at < letters.len() && letter(at) != '\'' {
                        at += 1;
                    }
                    at += 1;
                }
                ('\'', _) if letter(at + 2) == '\'' => at += 3,
                (first, _) if is_word(first) => {
                    while is_word(letter(at)) {
                        at += 1;
                    }
                    let text = letters[start..at].iter().collect();
                    self.code.push(Token { line, text });
                }
                (first, second) => {
                    at += if (first, second) == (':', ':') { 2 } else { 1 };
                    if !first.is_whitespace() {
                        let text = letters[start..at].iter().collect();
                        self.code.push(Token { line, text });
                    }
                }
            }
            line += letters[start..at.min(letters.len())].iter().filter(|letter| **letter == '\n').count();
        }
    }

    /// The paths of two segments or more in the code, and what `use` makes of each: its name in this file, or none
    /// outside of `use`.
    fn paths(&self) -> Vec<(usize, Vec<String>, Option<String>)> {
        let text = |at: usize| self.code.get(at).map_or("", |token| token.text.as_str());
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.code.len() {
            // Not the `use<>` of a type that captures nothing.
            if text(at) == "use" && text(at + 1) != "<" {
                at = self.use_tree(at + 1, &[], &mut found);
                continue;
            }
            let continues = at > 0 && ["::", "."].contains(&text(at - 1));
            if text(at + 1) == "::" && is_name(text(at)) && !continues {
                let (line, mut segments) = (self.code[at].line, vec![text(at).to_owned()]);
                while text(at + 1) == "::" && is_name(text(at + 2)) {
                    segments.push(text(at + 2).to_owned());
                    at += 2;
                }
                found.push((line, segments, None));
            }
            at += 1;
        }
        found
    }

    /// Reads one tree of a `use` declaration from `at` on; returns where it ends.
    fn use_tree(
        &self,
        mut at: usize,
        prefix: &[String],
        found: &mut Vec<(usize, Vec<String>, Option<String>)>,
    ) -> usize {
        let line = self.code[at].line;
        let mut segments = prefix.to_vec();
        loop {
            match self.code[at].text.as_str() {
                "{" => {
                    at += 1;
                    while self.code[at].text != "}" {
                        at = self.use_tree(at, &segments, found);
                        at += usize::from(self.code[at].text == ",");
                    }
                    return at + 1;
                }
                "::" => at += 1,
                "," | "}" | ";" => break,
                "as" => {
                    let alias = self.code[at + 1].text.clone();
                    found.push((line, segments, Some(alias)));
                    return at + 2;
                }
                // `use a::{self}` is `use a`.
                "self" if !segments.is_empty() => at += 1,
                name => {
                    segments.push(name.to_owned());
                    at += 1;
                }
            }
        }
        let name = segments.last().unwrap().clone();
        found.push((line, segments, Some(name)));
        at
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_alphabetic() || letter == '_')
}

/// Every use of an item of another file, with re-exports followed to the file that defines the item.
pub fn imports(sources: &[SourceFile]) -> Vec<Import> {
    let resolver = Resolver::new(sources);
    let mut found = Vec::new();
    for file in sources {
        let from = file.module();
        for (line, path, _) in file.paths() {
            let Some((to, Some(item))) = resolver.resolve(&from, &path, 0) else { continue };
            if to != from {
                found.push(Import { line, from: from.clone(), to, item });
            }
        }
    }
    found
}

/// Finds the file that defines the item of a path.
struct Resolver {
    modules: BTreeSet<String>,
    /// By module and name: the path that `use` gives the name for.
    names: BTreeMap<(String, String), Vec<String>>,
}

impl Resolver {
    fn new(sources: &[SourceFile]) -> Resolver {
        let modules = sources.iter().map(SourceFile::module).collect();
        let mut names = BTreeMap::new();
        for file in sources {
            for (_, path, name) in file.paths() {
                if let Some(name) = name {
                    names.insert((file.module(), name), path);
                }
            }
        }
        Resolver { modules, names }
    }

    /// The module of a path's item, and the item's name unless the path is the module itself; `None` for a path into
    /// another crate.
    fn resolve(&self, from: &str, path: &[String], depth: usize) -> Option<(String, Option<String>)> {
        let (mut module, rest) = match path[0].as_str() {
            "crate" | "oyez" => (String::new(), &path[1..]),
            "self" => (from.to_owned(), &path[1..]),
            "super" => (parent(from).to_owned(), &path[1..]),
            first if self.modules.contains(&below(from, first)) => (below(from, first), &path[1..]),
            first => {
                let imported = self.names.get(&(from.to_owned(), first.to_owned()))?;
                if depth > 4 || imported == path {
                    return None;
                }
                let (module, None) = self.resolve(from, imported, depth + 1)? else { return None };
                (module, &path[1..])
            }
        };
        let mut rest = rest.iter();
        let mut item = None;
        for name in rest.by_ref() {
            let next = below(&module, name);
            if name == "super" {
                module = parent(&module).to_owned();
            } else if self.modules.contains(&next) {
                module = next;
            } else {
                item = Some(name.clone());
                break;
            }
        }
        let Some(name) = item else { return Some((module, None)) };
        match self.names.get(&(module.clone(), name.clone())) {
            Some(imported) if depth <= 4 && *imported != path => {
                let mut whole = imported.clone();
                whole.extend(rest.cloned());
                self.resolve(&module, &whole, depth + 1).or(Some((module, Some(name))))
            }
            _ => Some((module, Some(name))),
        }
    }
}

fn parent(module: &str) -> &str {
    module.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn below(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}/{name}") }
}
