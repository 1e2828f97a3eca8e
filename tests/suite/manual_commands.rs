//! Runs the commands of the README and of the manual.
//!
//! Method: every block of shell and of Python runs, in the order of the pages and in one folder, so that a file that
//! one block creates is there for the next. The tests replace ports (another server may use the printed one), host
//! names, and sizes of load. The systemd unit is parsed, rated, started and reloaded.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::auth_server::SECRET;
use crate::support::folder::Folder;
use crate::support::manual::{page, pages};
use crate::support::process::{TEST_TIMEOUT, free_port, oyez};

/// Commands that are not run here: other tests run them, or they change the machine.
const NOT_HERE: [&str; 5] = ["cargo ", "tests/run", "sudo systemctl ", "sudo install ", "sudo sh "];

/// The blocks in one of these languages, of all pages.
fn blocks(languages: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (_, page) in pages() {
        let mut rest = &page[..];
        while let Some(start) = rest.find("\n```") {
            let (language, text) = rest[start + 4..].split_once('\n').unwrap();
            let end = text.find("```").unwrap();
            if languages.contains(&language) {
                found.push((language.to_owned(), text[..end].to_owned()));
            }
            rest = &text[end + 3..];
        }
    }
    found
}

/// A folder with `oyez` in its path.
struct Workshop {
    folder: Folder,
    path: PathBuf,
}

impl Workshop {
    fn new() -> Workshop {
        let folder = Folder::new();
        let path = folder.as_ref().to_owned();
        fs::create_dir(path.join("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_oyez"), path.join("bin/oyez")).unwrap();
        Workshop { folder, path }
    }

    fn command(&self, program: &str, port: u16) -> Command {
        // Without the variables of the machine's owner.
        let clean = oyez(&[]);
        let mut command = Command::new(program);
        for (name, value) in clean.get_envs() {
            if value.is_none() {
                command.env_remove(name);
            }
        }
        let path = format!("{}:{}", self.path.join("bin").display(), std::env::var("PATH").unwrap());
        command.current_dir(&self.path).env("PATH", path).env("RUST_LOG", "info");
        command
            .env("OYEZ_LISTEN", format!("127.0.0.1:{port}"))
            .env("OYEZ_URL", format!("ws://127.0.0.1:{port}"));
        command.stdin(Stdio::null());
        command
    }
}

/// A command of a block that goes on until it is ended.
struct Running {
    line: String,
    child: Child,
    output: PathBuf,
}

impl Running {
    fn start(workshop: &Workshop, mut command: Command, line: &str) -> Running {
        let output = workshop.path.join(format!("output-{}", fs::read_dir(&workshop.path).unwrap().count()));
        let file = fs::File::create(&output).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Running { line: line.to_owned(), child: command.spawn().unwrap(), output }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    fn says(&mut self, text: &str) {
        let start = Instant::now();
        while !self.text().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < TEST_TIMEOUT,
                "{}: {ended:?} {}",
                self.line,
                self.text()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "{} has ended: {}", self.line, self.text());
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The duration of a benchmark here.
const BENCH_TIME: &str = "--duration 0.2 --warmup 0";

/// The line, with paths and addresses replaced by those of this test.
fn fit(line: &str, port: u16, server: Option<u32>) -> String {
    let pid = server.map_or(String::new(), |pid| pid.to_string());
    let mut line = line.to_owned();
    for place in ["127.0.0.1:8080", "0.0.0.0:8080", "127.0.0.1:8443", "0.0.0.0:443", "127.0.0.1:9000"] {
        line = line.replace(place, &format!("127.0.0.1:{port}"));
    }
    for place in ["localhost:8443", "example.org"] {
        line = line.replace(place, &format!("localhost:{port}"));
    }
    line = line.replace("\"$(pidof oyez)\"", &pid).replace("--pid 4242", &format!("--pid {pid}"));
    line = line.replace("--since ID", "--since earliest");
    if line.starts_with("oyez bench ") && !line.starts_with("oyez bench report") {
        let (flags, comment) =
            line.split_once(" #").map_or((line.as_str(), ""), |(flags, comment)| (flags, comment));
        let mut words: Vec<String> =
            flags.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        for at in 0..words.len() - 1 {
            match words[at].as_str() {
                "--connections" | "--arrivals" => words[at + 1] = "20".to_owned(),
                "--stalled" => words[at + 1] = "5".to_owned(),
                _ => {}
            }
        }
        let rest = match words[2].as_str() {
            "idle" => "--hold 0.1",
            "storm" => "",
            _ => BENCH_TIME,
        };
        // How fast is not asked here.
        let words = words.join(" ").replace("p99<50ms", "p99<60s");
        line = format!("{words} {rest} #{comment}");
    }
    line
}

/// The first free port is given to the server of the block, which is started if the block starts none itself.
fn run_block(workshop: &Workshop, language: &str, text: &str) {
    let port = free_port();
    let mut running: Vec<Running> = Vec::new();
    let mut server = None;
    let serve = |running: &mut Vec<Running>, command: Command, line: &str| {
        let mut started = Running::start(workshop, command, line);
        started.says("listening on ");
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        let pid = started.child.id();
        running.push(started);
        pid
    };
    if !text.contains("oyez serve") {
        let mut command = workshop.command("oyez", port);
        command.arg("serve");
        server = Some(serve(&mut running, command, "oyez serve"));
    }
    if language == "python" {
        let text = fit(text, port, server);
        let output = workshop.command("python3", port).args(["-c", &text]).output().unwrap();
        assert!(output.status.success(), "{text}\n{output:?}");
    } else {
        for printed in text.lines().filter(|line| !NOT_HERE.iter().any(|other| line.starts_with(other))) {
            let line = fit(printed, port, server);
            let mut command = workshop.command("bash", port);
            // A command that keeps running replaces the shell.
            let goes_on = ["oyez serve", "oyez sub", "curl -N"].iter().any(|start| line.starts_with(start));
            command.args([
                "-o",
                "pipefail",
                "-ec",
                &if goes_on { format!("exec {line}") } else { line.clone() },
            ]);
            if printed.contains("wss://example.org") {
                command.env("OYEZ_TLS_CA", workshop.path.join("fullchain.pem"));
            }
            if line.starts_with("oyez serve") {
                server = Some(serve(&mut running, command, &line));
            } else if goes_on {
                let mut started = Running::start(workshop, command, &line);
                started.says(if line.starts_with("curl") { "retry:" } else { "connected" });
                running.push(started);
            } else {
                let mut output = command.output().unwrap();
                if line.contains(BENCH_TIME) && !output.status.success() {
                    // In so short a time a busy machine may deliver nothing.
                    let line = line.replace(BENCH_TIME, "--duration 10 --warmup 0");
                    output = workshop.command("bash", port).args(["-ec", &line]).output().unwrap();
                }
                // Assertions about a run are not checked where other programs take the processors.
                let is_invalid =
                    String::from_utf8_lossy(&output.stderr).contains("oyez: the run is invalid: ");
                assert!(output.status.success() || is_invalid, "{line}\n{output:?}");
                // curl succeeds whatever the status of the response is.
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(!text.contains(r#"{"error":"#), "{line}\n{text}");
            }
            // What a reader gets from elsewhere: another run, and a certificate that browsers trust.
            for (made, other) in
                [("a.json", "b.json"), ("cert.pem", "fullchain.pem"), ("key.pem", "privkey.pem")]
            {
                let _ = fs::copy(workshop.path.join(made), workshop.path.join(other));
            }
        }
    }
    // The server last.
    running.into_iter().rev().for_each(Running::end);
}

#[test]
fn blocks_of_the_manual_run_as_printed() {
    let workshop = Workshop::new();
    let all = blocks(&["sh", "python"]);
    for words in
        ["oyez pub main", "oyez token new", "openssl req", "oyez bench storm", "import json", "curl -N"]
    {
        assert!(all.iter().any(|(_, text)| text.contains(words)), "{words}");
    }
    for (language, text) in &all {
        if text.lines().all(|line| NOT_HERE.iter().any(|other| line.starts_with(other))) {
            continue;
        }
        run_block(&workshop, language, text);
    }
    for private in ["secret.key", "alice.token", "key.pem"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(workshop.path.join(private)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{private}");
    }
}

#[test]
fn commands_in_sentences_of_the_manual_start() {
    let workshop = Workshop::new();
    let all: String = pages().into_iter().map(|(_, text)| text).collect();
    let lines: Vec<&str> =
        all.split('`').filter(|span| span.starts_with("oyez serve -") && !span.contains('\n')).collect();
    assert!(lines.len() >= 2, "{lines:?}");
    for line in lines {
        let port = free_port();
        let mut command = workshop.command("bash", port);
        command.args(["-ec", &format!("exec {line}")]);
        let mut started = Running::start(&workshop, command, line);
        started.says("listening on ");
        started.end();
    }
}

/// The block of systemd's settings with this text.
fn settings_with(text: &str) -> String {
    let mut blocks = blocks(&["ini"]).into_iter().map(|(_, block)| block);
    blocks.find(|block| block.contains(text)).unwrap_or_else(|| panic!("{text}"))
}

/// The unit as it would be installed, but for the places of the program and of its files.
fn unit() -> String {
    settings_with("\n[Install]\nWantedBy=multi-user.target\n")
}

/// Runs systemd-analyze.
fn analyze(arguments: &[&str]) -> String {
    let output = Command::new("systemd-analyze").args(arguments).output();
    let output = output.expect("systemd-analyze is missing: install systemd (it need not run)");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

/// The same, for this program.
fn with_this_program(unit: &str) -> String {
    unit.replace("/usr/local/bin/oyez", env!("CARGO_BIN_EXE_oyez"))
}

fn setting(name: &str) -> String {
    let unit = unit();
    let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{name}")).to_owned()
}

#[test]
fn unit_of_the_manual_starts_and_reloads() {
    let workshop = Workshop::new();
    let port = free_port();
    fs::create_dir_all(workshop.path.join("state").join(setting("StateDirectory"))).unwrap();
    let credential = setting("LoadCredential");
    workshop.folder.file(credential.split(':').next().unwrap(), SECRET);
    let line = setting("ExecStart")
        .replace("/usr/local/bin/", "")
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    let line = line.replace("%d", workshop.path.to_str().unwrap());
    let line = line.replace("%S", workshop.path.join("state").to_str().unwrap());
    let mut command = workshop.command("bash", port);
    command.args(["-ec", &format!("exec {line}")]);
    let mut started = Running::start(&workshop, command, &line);
    started.says("listening on ");
    let mut reload = Command::new("bash");
    reload.args(["-ec", &setting("ExecReload")]).env("MAINPID", started.child.id().to_string());
    assert!(reload.status().unwrap().success());
    started.says("reloaded: tokens are verified by HS256");
    assert!(workshop.path.join("state/oyez/history").exists());
    started.end();
}

#[test]
fn units_of_the_manual_are_valid_and_hardened() {
    let workshop = Workshop::new();
    let file = workshop.folder.file("oyez.service", &with_this_program(&unit()));
    let printed = oyez(&["print", "systemd-socket"]).output().unwrap().stdout;
    let socket = workshop.folder.file("oyez.socket", str::from_utf8(&printed).unwrap());
    assert_eq!(analyze(&["verify", &socket, &file]), "", "no warnings");
    // In tenths: below 3.0. The page has the exact level.
    let text = analyze(&["security", "--offline=true", "--threshold=29", &file]);
    let level = text.split("Overall exposure level for oyez.service: ").nth(1).unwrap();
    let level = level.split(' ').next().unwrap();
    assert!(page("service.md").contains(&format!("the unit file alone {level}:")), "{level}");
}

#[test]
fn drop_ins_of_the_manual_are_valid() {
    for (name, drop_in) in [("oyez.service", "/letsencrypt/"), ("oyez@.service", "--reuse-port")] {
        let workshop = Workshop::new();
        let file = workshop.folder.file(name, &with_this_program(&unit()));
        let settings = with_this_program(&settings_with(drop_in));
        fs::create_dir(workshop.path.join(format!("{name}.d"))).unwrap();
        workshop.folder.file(&format!("{name}.d/manual.conf"), &settings);
        assert_eq!(analyze(&["verify", &file]), "", "no warnings");
        // Not the unit alone is analyzed.
        workshop.folder.file(&format!("{name}.d/wrong.conf"), "[Service]\nWrong=1\n");
        assert!(analyze(&["verify", &file]).contains("Wrong"));
    }
}
