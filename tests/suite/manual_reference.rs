//! The manual against the program: flags, metrics, close codes, error codes, links, and the form of its tables.
//!
//! Method: both sides are read as text. The program's side is its `--help`, its `/metrics`, its table of close reasons
//! and the literals in its sources; the manual's side is its tables and code spans.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use oyez::close::Reason;

use crate::support::client::Client;
use crate::support::http::get;
use crate::support::manual::{page, pages, root};
use crate::support::process::{Server, oyez};

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The code spans of prose.
fn spans(text: &str) -> Vec<String> {
    prose(text).split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}

/// The cells of each row of each table, without the lines of dashes.
fn tables(text: &str) -> Vec<Vec<Vec<String>>> {
    let mut found: Vec<Vec<Vec<String>>> = Vec::new();
    let mut is_inside = false;
    for line in prose(text).lines() {
        let is_row = line.starts_with('|');
        if is_row && !is_inside {
            found.push(Vec::new());
        }
        is_inside = is_row;
        if is_row && !line.starts_with("| ---") {
            let cells = line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned());
            found.last_mut().unwrap().push(cells.collect());
        }
    }
    found
}

/// The rows under a heading, up to the next one.
fn rows_under(page: &str, heading: &str) -> Vec<Vec<String>> {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{heading}"));
    let section = &page[start + heading.len() + 2..];
    let end = section.find("\n#").unwrap_or(section.len());
    let rows = tables(&section[..end]).into_iter().flat_map(|table| table.into_iter().skip(1));
    rows.collect()
}

/// The code spans of one cell.
fn words(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The anchors of a page, by the rules of GitHub and of rustdoc, which agree on the headings that are used here.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
            kept.map(|one| if one == ' ' { '-' } else { one }).collect()
        })
        .collect()
}

/// The targets of a page's links: inline ones, and definitions of labels.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let inline = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap().to_owned());
    inline.chain(definitions(text).into_values()).collect()
}

/// The labels that a text defines, with their targets.
fn definitions(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    lines.map(|(label, target)| (label.to_owned(), target.to_owned())).collect()
}

/// Every Markdown file of the repository.
fn markdown_files() -> Vec<(std::path::PathBuf, String)> {
    let mut found = pages();
    for name in [
        "CHANGELOG.md",
        "benches/README.md",
        "benches/attacks/README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
    ] {
        let path = root().join(name);
        found.push((path.clone(), fs::read_to_string(&path).unwrap()));
    }
    found
}

#[test]
fn links_of_markdown_files_have_targets() {
    let mut complaints = Vec::new();
    let mut count = 0;
    for (path, text) in markdown_files() {
        for link in links(&text).into_iter().filter(|link| !link.starts_with("http")) {
            let (file, anchor) = link.split_once('#').map_or((&link[..], None), |(a, b)| (a, Some(b)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let has_anchor = |anchor| anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            if !target.exists() || !anchor.is_none_or(has_anchor) {
                complaints.push(format!("{}: {link}", path.display()));
            }
            count += 1;
        }
    }
    assert!(count > 80, "{count}");
    assert_none(&complaints);
}

#[test]
fn labels_of_pages_have_the_same_targets_in_rustdoc() {
    let shared = definitions(&page("links.in"));
    let mut unused: BTreeSet<&String> = shared.keys().collect();
    let mut complaints = Vec::new();
    for (path, text) in pages().into_iter().skip(1) {
        for (label, target) in definitions(&text) {
            let module = target.replace(".md", "");
            if shared.get(&label) != Some(&format!("crate::manual::{module}")) {
                complaints.push(format!("{}: [{label}] is not in links.in", path.display()));
            }
            if !prose(&text).contains(&format!("][{label}]")) {
                complaints.push(format!("{}: [{label}] is not used", path.display()));
            }
            unused.remove(shared.get_key_value(&label).map_or(&label, |(label, _)| label));
        }
        // Paths outside of the manual are not part of the crate's documentation.
        for link in links(&text).iter().filter(|link| link.contains("../")) {
            complaints.push(format!("{}: {link} does not exist in rustdoc", path.display()));
        }
    }
    complaints.extend(unused.iter().map(|label| format!("links.in: [{label}] is not used")));
    assert_none(&complaints);
}

/// The length of a cell as a reader sees it: without marks and targets.
fn visible_length(cell: &str) -> usize {
    let mut text = String::new();
    let mut rest = cell;
    while let Some((before, after)) = rest.split_once("](") {
        text += before;
        rest = after.split_once(')').unwrap().1;
    }
    text += rest;
    text.chars().filter(|one| !"`*[]".contains(*one)).count()
}

/// Widths of columns in a page of 100: a column that needs less than an equal share takes only that, and the others
/// share the rest in proportion to their longest cells, as a browser does.
fn column_widths(longest: &[usize]) -> Vec<usize> {
    const PAGE: usize = 100;
    let mut widths = vec![0; longest.len()];
    let (mut left, mut open) = (PAGE, (0..longest.len()).collect::<Vec<_>>());
    loop {
        let share = left / open.len().max(1);
        let (small, large): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|column| longest[**column] <= share);
        for column in &small {
            widths[*column] = longest[*column];
            left -= longest[*column];
        }
        if small.is_empty() || large.is_empty() {
            let total: usize = large.iter().map(|column| longest[*column]).sum();
            large.iter().for_each(|column| widths[*column] = left * longest[*column] / total);
            return widths;
        }
        open = large;
    }
}

#[test]
fn table_cells_have_at_most_two_lines() {
    let mut complaints = Vec::new();
    for (path, text) in markdown_files() {
        for table in tables(&text) {
            let columns = table[0].len();
            let longest: Vec<usize> = (0..columns)
                .map(|column| {
                    table.iter().filter_map(|row| Some(visible_length(row.get(column)?))).max().unwrap()
                })
                .collect();
            let widths = column_widths(&longest);
            for row in &table {
                for (column, cell) in row.iter().enumerate() {
                    // A line breaks between words, so it is not filled completely.
                    if visible_length(cell) > widths[column] && visible_length(cell) > 2 * widths[column] - 6
                    {
                        complaints.push(format!("{}: {} columns: {cell}", path.display(), widths[column]));
                    }
                }
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn readme_has_at_most_250_lines() {
    let lines = pages()[0].1.lines().count();
    assert!(lines <= 250, "{lines} lines");
}

/// The help texts of all commands.
fn help() -> String {
    let mut text = String::new();
    let bench =
        ["idle", "fanout", "churn", "storm", "slow", "report"].map(|scenario| vec!["bench", scenario]);
    let token = ["secret", "new", "check"].map(|action| vec!["token", action]);
    for mut command in
        bench.into_iter().chain(token).chain([vec!["serve"], vec!["pub"], vec!["sub"], vec!["health"]])
    {
        command.push("--help");
        let output = oyez(&command).output().unwrap();
        assert!(output.status.success(), "{command:?}");
        text += &String::from_utf8(output.stdout).unwrap();
    }
    text
}

#[test]
fn flags_in_the_manual_exist() {
    let help = help();
    let known: BTreeSet<&str> = help.split(|one: char| one.is_whitespace() || "=[],".contains(one)).collect();
    let mut found = BTreeSet::new();
    let mut complaints = Vec::new();
    for (path, text) in pages() {
        // Commands of other programs have flags of their own.
        let commands = text.lines().filter(|line| line.starts_with("oyez ")).map(str::to_owned);
        for command in spans(&text).into_iter().chain(commands) {
            let is_other = ["cargo ", "systemctl "].iter().any(|other| command.starts_with(other));
            for word in command.split([' ', '=', '\'']).filter(|word| word.starts_with("--") && !is_other) {
                found.insert(word.to_owned());
                if !known.contains(word) {
                    complaints.push(format!("{}: {word}", path.display()));
                }
            }
        }
    }
    assert!(found.len() > 80, "{found:?}");
    assert_none(&complaints);
}

#[test]
fn metrics_in_the_manual_exist() {
    let server = Server::with_all_metrics();
    let text = Client::new(server.connect()).ask(get("/metrics")).body;
    let known: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let mut complaints = Vec::new();
    for (path, text) in pages() {
        for span in spans(&text) {
            let name = span.split('{').next().unwrap();
            if name.starts_with("oyez_") && !known.contains(name) {
                complaints.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert_none(&complaints);
}

/// The reasons that have a close code, read from the source of the table.
fn close_codes() -> BTreeSet<(u16, String)> {
    let source = fs::read_to_string(root().join("src/close.rs")).unwrap();
    let mut codes = BTreeSet::new();
    for line in source.lines() {
        let Some((reasons, code)) =
            line.trim().strip_prefix("Reason::").and_then(|rest| rest.split_once(" => Some("))
        else {
            continue;
        };
        for reason in reasons.split(" | ") {
            let name = reason.trim_start_matches("Reason::").split(' ').next().unwrap();
            let word = name.char_indices().fold(String::new(), |word, (at, letter)| {
                let gap = if at > 0 && letter.is_uppercase() { "_" } else { "" };
                word + gap + &letter.to_lowercase().to_string()
            });
            codes.insert((code.trim_end_matches("),").parse().unwrap(), word));
        }
    }
    codes
}

#[test]
fn close_codes_of_the_manual_are_those_of_the_program() {
    let codes = close_codes();
    assert!(
        codes.len() >= 17 && codes.iter().all(|(_, word)| Reason::WORDS.contains(&&word[..])),
        "{codes:?}"
    );
    let rows = rows_under(&page("protocol.md"), "## Close codes");
    let manual: BTreeSet<(u16, String)> = rows
        .iter()
        .map(|row| (row[0].parse().unwrap(), row[1].trim_matches('`').split(' ').next().unwrap().to_owned()))
        .collect();
    assert_eq!(manual, codes);
}

#[test]
fn close_reasons_of_the_manual_are_those_of_the_program() {
    let rows = rows_under(&page("monitoring.md"), "## Logs");
    let mut manual: Vec<String> = rows.iter().flat_map(|row| words(&row[0])).collect();
    manual.sort();
    let mut program = Reason::WORDS.map(str::to_owned);
    program.sort();
    assert_eq!(manual, program);
}

fn is_code(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
}

/// The error codes in the sources: first arguments of the functions that make errors, fields named `code`, the
/// codes of rejections, and words followed by a sentence.
fn error_codes(folders: &[&str]) -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let mut folders: Vec<_> = folders.iter().map(|name| root().join("src").join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            collect_codes(&path, &mut codes);
        }
    }
    codes
}

/// The error codes of tokens.
fn token_error_codes() -> BTreeSet<String> {
    let source = fs::read_to_string(root().join("src/fault.rs")).unwrap();
    let faults =
        source.lines().filter_map(|line| line.trim().strip_prefix("TokenFault::")?.split_once(" => \""));
    faults.map(|(_, word)| word.trim_end_matches("\",").to_owned()).filter(|word| is_code(word)).collect()
}

fn collect_codes(path: &Path, codes: &mut BTreeSet<String>) {
    let text = fs::read_to_string(path).unwrap();
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let code = text[..end].lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let code = code.collect::<Vec<_>>().join(" ").replace("( ", "(");
    // Quotes that begin or end no literal.
    let code = code.replace("\\\\", "").replace("\\\"", "").replace("'\"'", "");
    let parts: Vec<&str> = code.split('"').collect();
    for at in (1..parts.len().saturating_sub(1)).step_by(2) {
        let (before, word, after) = (parts[at - 1], parts[at], parts[at + 1]);
        let call = before.trim_end_matches(|one: char| one.is_ascii_digit() || ", ".contains(one));
        let is_argument = ["::new(", "unavailable(", "too_many("].iter().any(|end| call.ends_with(end));
        // The rejection of a connection that closes is sent to no client.
        let is_rejection = before.ends_with(" => ") && before.contains("Rejection::");
        let is_field = before.ends_with(" code: ")
            || is_rejection && !before.ends_with("Rejection::ConnectionClosing => ");
        let sentence = parts.get(at + 2).is_some_and(|next| after == ", " && next.contains(' '));
        // A match arm of `Rejection::code`. No error is sent on a closing connection.
        let is_arm = path.ends_with("rejection.rs") && before.ends_with(" => ") && word != "closing";
        let constant = after.strip_prefix(", ").is_some_and(|next| {
            next.chars().take_while(|one| *one == '_' || one.is_ascii_uppercase()).count() > 4
        });
        let is_pair = (sentence || constant) && (word.contains('_') || word == "forbidden");
        if is_code(word) && after.starts_with(',') && (is_argument || is_field || is_pair || is_arm) {
            codes.insert(word.to_owned());
        }
    }
}

#[test]
fn error_codes_of_the_manual_are_those_of_the_program() {
    let commands = error_codes(&["wire"]);
    let mut program = error_codes(&["session", "server", "access"]);
    assert!(commands.len() >= 9 && program.len() >= 30, "{commands:?} {program:?}");
    program.extend(commands.iter().cloned());
    program.extend(token_error_codes());
    let (protocol, http) = (page("protocol.md"), page("http_api.md"));
    let codes = |page: &str, heading: &str, column: usize| -> BTreeSet<String> {
        rows_under(page, heading).iter().flat_map(|row| words(&row[column])).collect()
    };
    let v1 = codes(&protocol, "### Error codes", 0);
    let missing: Vec<_> = commands.difference(&v1).collect();
    assert!(missing.is_empty(), "oyez.v1: {missing:?}");
    let tables = [v1, codes(&http, "## Errors", 1), codes(&http, "### Token errors", 0)];
    let manual: BTreeSet<String> = tables.into_iter().flatten().collect();
    assert_eq!(program.difference(&manual).collect::<Vec<_>>(), [""; 0], "not in the manual");
    assert_eq!(manual.difference(&program).collect::<Vec<_>>(), [""; 0], "not in the program");
}

#[test]
fn files_named_in_the_manual_exist() {
    let mut complaints = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        for span in spans(&text) {
            let is_file = ["src/", "tests/", "benches/"].iter().any(|start| span.starts_with(start));
            if is_file && !span.contains(' ') {
                count += 1;
                if !root().join(&span).exists() {
                    complaints.push(format!("{}: {span}", path.display()));
                }
            }
        }
    }
    // The map of the source.
    let text = page("event_loop.md");
    let map = text.split("```text\nsrc/\n").nth(1).unwrap().split("```").next().unwrap();
    let mut folder = "";
    for line in map.lines() {
        let (name, rest) = line.trim().split_once(' ').unwrap();
        let is_top = line.starts_with("  ") && !line.starts_with("   ");
        if is_top {
            folder = name.strip_suffix('/').map_or("", |_| name);
        }
        let rest = if is_top && !folder.is_empty() { rest } else { line };
        for word in rest.split([' ', ',']).filter(|word| word.ends_with(".rs") || word.ends_with('/')) {
            count += 1;
            if !root().join("src").join(folder).join(word).exists() {
                complaints.push(format!("map of the source: {folder}{word}"));
            }
        }
    }
    assert!(count > 60, "{count}");
    assert_none(&complaints);
}
