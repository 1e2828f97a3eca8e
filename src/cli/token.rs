//! `oyez token`: creates and inspects tokens, and creates secrets that sign them.
//!
//! Keys come from files. Every user of the machine can read command lines, and shells keep them in their history; so
//! no argument takes a secret, and `check` reads the token from standard input.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::key_files::KeyFiles;
use super::output;
use super::signing_key_file::SigningKeyFile;
use crate::access::grant::Patterns;
use crate::access::keys::SECRET_BYTES_MIN;
use crate::access::printable::is_name;
use crate::access::token::{self, NewClaims, OyezClaim, TOKEN_BYTES_MAX, Verifier};

/// The flags of `oyez token`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = false)]
pub(super) struct TokenCommand {
    #[command(subcommand)]
    command: TokenAction,
}

#[derive(Debug, Subcommand)]
enum TokenAction {
    /// Create a token and print it.
    New(NewToken),
    /// Read a token from standard input; print its claims, and whether a server with these keys would accept it now:
    /// status 0 if so, 1 if not.
    Check(TokenCheck),
    /// Create a secret, and write it to a new file that only its owner can read.
    Secret(NewSecret),
}

#[derive(Debug, Args)]
struct NewToken {
    /// User of the token: the sender of messages that are published with it.
    #[arg(long, value_name = "NAME", value_parser = name)]
    sub: Option<String>,

    /// JSON that subscribers get as `user.info` with each message of the bearer, such as {"name":"Alice"}. Needs --sub.
    #[arg(long, value_name = "JSON", value_parser = info, requires = "sub")]
    info: Option<serde_json::Value>,

    /// Channel to subscribe to: a name, or a prefix followed by *. May be repeated.
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    subscribe: Vec<String>,

    /// Channel to publish on. May be repeated.
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    publish: Vec<String>,

    /// Allow closing the connections of other users.
    #[arg(long)]
    admin: bool,

    /// Lifetime: 90s, 15m, 1h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    ttl: u64,

    /// Audience of the token; a server with --jwt-audience rejects tokens for others. May be repeated.
    #[arg(long, value_name = "AUDIENCE")]
    aud: Vec<String>,

    /// Issuer of the token.
    #[arg(long, value_name = "ISSUER")]
    iss: Option<String>,

    /// Name of the key, if the server has several in a JWKS file.
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,

    /// Maximum messages per second of the user, if it differs from the server's limit.
    #[arg(long, value_name = "N")]
    messages_per_second: Option<NonZeroU32>,

    /// Maximum bytes per second of the user, if it differs from the server's limit.
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<NonZeroU32>,

    /// Write the token to a file that only its owner can read, replacing the file, instead of printing it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    #[command(flatten)]
    key: SigningKeyFile,
}

#[derive(Debug, Args)]
struct TokenCheck {
    /// "-", or nothing. A token given here is ignored: every user of the machine can read it.
    #[arg(hide = true)]
    token: Option<String>,

    /// Name of this server: a token for one of these is accepted. May be repeated.
    #[arg(long, value_name = "AUDIENCE")]
    aud: Vec<String>,

    /// Trusted issuer. May be repeated; without it, every issuer that has the key.
    #[arg(long, value_name = "ISSUER")]
    iss: Vec<String>,

    #[command(flatten)]
    keys: KeyFiles,
}

#[derive(Debug, Args)]
struct NewSecret {
    /// The file to create. It must not exist.
    file: PathBuf,
}

fn info(text: &str) -> Result<serde_json::Value, String> {
    let info: serde_json::Value = serde_json::from_str(text).map_err(|why| format!("not JSON: {why}"))?;
    let bytes = info.to_string().len();
    if bytes > token::INFO_BYTES_MAX {
        return Err(format!("{bytes} bytes of JSON; the maximum is {}", token::INFO_BYTES_MAX));
    }
    Ok(info)
}

impl TokenCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self.command {
            TokenAction::New(new) => new.run(),
            TokenAction::Check(check) => check.run(),
            TokenAction::Secret(secret) => secret.run(),
        }
    }
}

impl NewToken {
    fn run(self) -> Result<(), Failure> {
        if self.subscribe.is_empty() && self.publish.is_empty() && !self.admin {
            return Err(Failure::Usage(
                "the token has no rights: add --subscribe PATTERN, --publish PATTERN or --admin".to_owned(),
            ));
        }
        let key = self.key.load()?;
        let now = now();
        let claims = NewClaims {
            sub: self.sub,
            info: self.info,
            aud: self.aud,
            iss: self.iss,
            iat: now,
            exp: now + self.ttl,
            oyez: OyezClaim {
                subscribe: self.subscribe,
                publish: self.publish,
                admin: self.admin,
                messages_per_second: self.messages_per_second,
                bytes_per_second: self.bytes_per_second,
            },
        };
        let token = key.sign(&claims, self.kid.as_deref()).map_err(|why| Failure::Failed(why.to_string()))?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "the token would be {} bytes long, and servers accept {TOKEN_BYTES_MAX}: use fewer patterns",
                token.len()
            )));
        }
        match self.out {
            None => print_line(&token),
            Some(path) => {
                let path_shown = path.display();
                replace(&path, &token)
                    .map_err(|error| Failure::Failed(format!("--out {path_shown}: {error}")))?;
                print_line(&format!("{path_shown} is written: use it with --token-file {path_shown}"))
            }
        }
    }
}

impl TokenCheck {
    fn run(self) -> Result<(), Failure> {
        if self.token.is_some_and(|token| token != "-") {
            return Err(Failure::Usage(
                "a token on the command line is visible to every user of this machine: pass it on standard input, oyez token check < FILE"
                    .to_owned(),
            ));
        }
        let Some(keys) = self.keys.load()? else {
            return Err(Failure::Usage(
                "no key is given that verifies the token: --jwt-secret-file, --jwt-public-key or --jwks-file FILE"
                    .to_owned(),
            ));
        };
        let token = read_token()?;
        let verifier = Verifier::new(keys, self.aud, self.iss);
        let now = now();
        if let Some(claims) = token::show_claims(&token) {
            print_line(&claims)?;
        }
        match verifier.verify(&token, now) {
            Ok(grant) => {
                let ends = grant.expires_at.unwrap_or(now);
                print_line(&match ends.checked_sub(now) {
                    Some(seconds) => format!("valid for another {seconds} s"),
                    None => format!("valid, but expired {} s ago: clocks differ", now - ends),
                })
            }
            Err(why) => Err(Failure::Failed(format!("not valid: {why}"))),
        }
    }
}

impl NewSecret {
    fn run(self) -> Result<(), Failure> {
        let path = self.file.display();
        let mut secret = [0; SECRET_BYTES_MIN];
        getrandom::fill(&mut secret)
            .map_err(|_| Failure::Failed("the system returns no random bytes".to_owned()))?;
        let mut text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        write_private(&self.file, &text).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::Failed(format!(
                "{path} exists, and tokens may have been signed with it: choose another name, or remove it first"
            )),
            _ => Failure::Failed(format!("{path}: {error}")),
        })?;
        print_line(&format!("{path} is written: start the server with --jwt-secret-file {path}"))
    }
}

/// Writes a token to a file atomically: a concurrent reader gets the old or the new token, never a part.
fn replace(path: &Path, token: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    write_private(&new, &format!("{token}\n"))?;
    std::fs::rename(&new, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

/// Writes to a new file, which has its final permissions from the start.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        // A partial file is useless.
        let _ = std::fs::remove_file(path);
    })
}

fn read_token() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut input = io::stdin().lock().take(2 * TOKEN_BYTES_MAX as u64);
    input
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Failed(format!("cannot read standard input: {error}")))?;
    Ok(bytes.trim_ascii().to_vec())
}

fn print_line(line: &str) -> Result<(), Failure> {
    output::print(format_args!("{line}\n"))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn pattern(text: &str) -> Result<String, String> {
    Patterns::parse([text]).map(|_| text.to_owned()).map_err(|why| why.to_string())
}

fn name(text: &str) -> Result<String, String> {
    let why = "a name has 1 to 255 bytes, without control and direction characters";
    if is_name(text) { Ok(text.to_owned()) } else { Err(why.to_owned()) }
}

/// The longest lifetime: ten years.
const SECONDS_MAX: u64 = 3_650 * 24 * 60 * 60;

/// A number and a unit, in seconds.
fn duration(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60)];
    let found = units.iter().find_map(|&(unit, seconds)| text.strip_suffix(unit).map(|rest| (rest, seconds)));
    let value = found.and_then(|(digits, seconds)| digits.parse::<u64>().ok()?.checked_mul(seconds));
    match value {
        Some(seconds @ 1..=SECONDS_MAX) => Ok(seconds),
        Some(_) => Err("not in 1s to 3650d".to_owned()),
        None => Err("not a time: write 90s, 15m, 1h or 7d".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_is_parsed_within_its_range() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h", 3_600), ("7d", 604_800), ("3650d", SECONDS_MAX)]
        {
            assert_eq!(duration(text), Ok(seconds), "{text}");
        }
        for text in ["", "1", "h", "0s", "-1h", "1.5h", "1 h", "1w", "3651d", "99999999999999999999s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
