//! `oyez token`: creating, checking and printing tokens, and the files that it reads and writes. The real binary;
//! output, exit status and file modes are compared.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::support::folder::Folder;
use crate::support::key_files;
use crate::support::process::oyez;

fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = oyez(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn works(arguments: &[&str], input: &str) -> String {
    let output = run(arguments, input);
    assert!(output.status.success(), "{arguments:?} {output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(arguments: &[&str], status: i32) -> String {
    let output = run(arguments, "");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{arguments:?} {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("oyez: "), "{text}");
    text
}

/// The output of `check`: the claims, the line below them, the reason of a rejection, and its status.
fn check(token: &str, flags: &[&str]) -> (Value, String, String, i32) {
    let output = run(&[&["token", "check"], flags].concat(), &format!("{token}\n"));
    let text = String::from_utf8(output.stdout).unwrap();
    let end = text.rfind('}').map_or(0, |at| at + 1);
    let claims = serde_json::from_str(&text[..end]).unwrap_or(Value::Null);
    let printed = String::from_utf8(output.stderr).unwrap();
    (claims, text[end..].trim().to_owned(), printed, output.status.code().unwrap())
}

#[test]
fn token_file_is_readable_by_its_owner_only_and_replaced() {
    let folder = Folder::new();
    let secret = folder.file("secret", &"s".repeat(40));
    let file = folder.file("alice.token", "the last one");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let out = |path: &str| {
        oyez(&["token", "new", "--admin", "--jwt-secret-file", &secret, "--out", path]).output().unwrap()
    };
    let output = out(&file);
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, format!("{file} is written: use it with --token-file {file}\n"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(token.ends_with('\n') && token.matches('.').count() == 2, "{token}");
    assert!(!printed.contains(token.trim()));
    let parent = std::path::Path::new(&file).parent().unwrap();
    assert_eq!(std::fs::read_dir(parent).unwrap().count(), 2, "no other file remains");
    for bad in ["/nonexistent/alice.token", parent.to_str().unwrap()] {
        let output = out(bad);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(&format!("--out {bad}: ")));
    }
}

#[test]
fn token_made_with_a_new_secret_is_verified() {
    let folder = Folder::new();
    let file = folder.path("secret");
    let printed = works(&["token", "secret", &file], "");
    assert!(printed.contains("--jwt-secret-file"), "{printed}");
    let secret = std::fs::read_to_string(&file).unwrap();
    assert_eq!(secret.trim_end().len(), 64, "32 bytes in hexadecimal");
    assert!(!printed.contains(secret.trim_end()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = fails(&["token", "secret", &file], 1);
    assert!(again.contains("exists") && std::fs::read_to_string(&file).unwrap() == secret, "{again}");
    works(&["token", "secret", &folder.path("other")], "");
    assert_ne!(std::fs::read_to_string(folder.path("other")).unwrap(), secret);

    let key = ["--jwt-secret-file", &file];
    let flags = ["token", "new", "--sub=alice", "--subscribe=room.*", "--subscribe=news", "--publish=room.7"];
    let token = works(&[&flags[..], &key].concat(), "");
    let (claims, verdict, _, status) = check(&token, &key);
    assert_eq!(status, 0);
    assert!(verdict.starts_with("valid for another 3") && verdict.ends_with(" s"), "an hour: {verdict}");
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["oyez"], serde_json::json!({"subscribe": ["room.*", "news"], "publish": ["room.7"]}));
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3_600);
    let printed = fails(&[&["token", "check", token.trim()], &key[..]].concat(), 2);
    assert!(printed.contains("standard input") && !printed.contains(token.trim()), "{printed}");
    works(&[&["token", "check", "-"], &key[..]].concat(), &token);

    let other = folder.path("other");
    let (claims, _, printed, status) = check(&token, &["--jwt-secret-file", &other]);
    assert_eq!((claims["sub"].as_str(), status), (Some("alice"), 1));
    assert!(printed.starts_with("oyez: not valid: ") && printed.contains("signature"), "{printed}");
    let both = ["--jwt-secret-file", &other, "--jwt-secret-file", &file];
    assert_eq!(check(&token, &both).3, 0);
    let (claims, _, _, status) = check("nonsense", &key);
    assert_eq!((claims, status), (Value::Null, 1));
}

#[test]
fn secret_file_in_the_environment_is_used() {
    let folder = Folder::new();
    let file = folder.file("secret", &"s".repeat(32));
    let arguments = ["token", "new", "--admin", "--ttl=7d"];
    let output = oyez(&arguments).env("OYEZ_JWT_SECRET_FILE", &file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).unwrap();
    let (claims, ..) = check(&token, &["--jwt-secret-file", &file]);
    assert_eq!(claims["oyez"]["admin"], true);
    assert!(claims.get("sub").is_none());
}

#[test]
fn token_signed_by_a_private_key_is_verified_by_its_public_key() {
    let folder = Folder::new();
    for (name, private, public) in [
        ("ed", key_files::ED25519, key_files::ED25519_PUBLIC),
        ("ec", key_files::P256, key_files::P256_PUBLIC),
        ("rsa", key_files::RSA, key_files::RSA_PUBLIC),
    ] {
        let private = folder.file(&format!("{name}.pem"), private);
        let public = folder.file(&format!("{name}.pub"), public);
        let flags = ["token", "new", "--publish=*", "--aud=us", "--iss=me", "--jwt-private-key", &private];
        let token = works(&flags, "");
        assert_eq!(check(&token, &["--jwt-public-key", &public, "--aud=us", "--iss=me"]).3, 0);
        let (.., printed, status) = check(&token, &["--jwt-public-key", &public]);
        assert!(status == 1 && printed.contains("audience"), "{printed}");
        let (.., printed, status) = check(&token, &["--jwt-public-key", &public, "--aud=us", "--iss=you"]);
        assert!(status == 1 && printed.contains("issuer"), "{printed}");
    }
}

#[test]
fn invalid_arguments_are_one_error_line() {
    let folder = Folder::new();
    let secret = folder.file("secret", &"s".repeat(32));
    let short = folder.file("short", "hunter2hunter2");
    let public = folder.file("public", key_files::RSA_PUBLIC);
    let key = ["--jwt-secret-file", &secret];
    let new = |flags: &[&str], says: &str| {
        let line = fails(&[&["token", "new"], flags].concat(), 2);
        assert!(line.contains(says) && !line.contains("hunter2"), "{line}");
    };
    new(&["--publish=a"], "oyez token secret FILE");
    new(&[&["--sub=alice"][..], &key].concat(), "--subscribe PATTERN");
    new(&[&["--publish=a/b"][..], &key].concat(), "A-Z");
    new(&[&["--publish=*a"][..], &key].concat(), "at the end");
    new(&[&["--publish=a", "--ttl=1w"][..], &key].concat(), "7d");
    new(&[&["--publish=a", "--sub=a\u{1b}"][..], &key].concat(), "control");
    new(&["--publish=a", "--jwt-secret-file", &short], "oyez token secret FILE");
    new(&["--publish=a", "--jwt-secret-file", &public], "not a shared secret");
    new(&["--publish=a", "--jwt-secret-file", "/no/such/file"], "/no/such/file");
    new(&["--publish=a", "--jwt-secret-file", "/dev/zero"], "not a key file");
    new(&["--publish=a", "--jwt-private-key", &public], "BEGIN PRIVATE KEY");
    let long = format!("--publish={}", "a".repeat(250));
    new(&[&vec![long.as_str(); 30][..], &key].concat(), "fewer patterns");
    assert!(fails(&["token", "check"], 2).contains("--jwt-secret-file"));
    assert!(fails(&["token", "check", "--jwt-public-key", &secret], 2).contains("BEGIN PUBLIC KEY"));
    assert!(fails(&["token", "check", "--jwks-file", &secret], 2).contains("RFC 7517"));
    assert!(fails(&["token", "secret", "/no/such/folder/file"], 1).contains("/no/such/folder/file"));
    assert!(fails(&["token"], 2).contains("new, check, secret"));
}

#[test]
fn world_readable_secret_is_a_warning() {
    let folder = Folder::new();
    let secret = folder.file("secret", &"s".repeat(32));
    let flags = ["token", "new", "--publish=a", "--jwt-secret-file", &secret];
    works(&flags, "");
    std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    let output = run(&flags, "");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && printed.contains("WARN") && printed.contains("chmod o="), "{printed}");
    assert!(!printed.contains("ssss"), "{printed}");
}

/// The claims of an untrusted token are printed on a terminal.
#[test]
fn escape_sequences_in_an_inspected_token_are_not_printed() {
    let folder = Folder::new();
    let secret = folder.file("secret", &"s".repeat(32));
    let claims = r#"{"exp":1,"x":"\u001b[31m \u009b31m \u202e \u2028 \u007f ä"}"#;
    let token = format!("{}.AAAA", crate::support::tokens::unsigned(r#"{"alg":"HS256"}"#, claims));
    let output = run(&["token", "check", "--jwt-secret-file", &secret], &token);
    let text = String::from_utf8(output.stdout).unwrap();
    let is_plain = |letter: char| letter == '\n' || letter == 'ä' || (' '..='~').contains(&letter);
    assert!(text.contains('ä') && text.chars().all(is_plain), "{text:?}");
    assert_eq!(output.status.code(), Some(1));
}
