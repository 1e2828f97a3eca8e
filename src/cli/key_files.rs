//! Key and token files: read with a size limit, with a warning if other users can read a secret.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use log::warn;

use super::failure::Failure;
use crate::access::keys::{BadKey, Keys};
use crate::access::metrics_token::{METRICS_TOKEN_BYTES_MIN, MetricsToken};
use crate::byte_size::ByteSize;

/// Maximum size of a file: sixteen keys take a hundredth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags for the keys that verify tokens. Each may be repeated: during a key rotation the new key is added to the old
/// one until the last token of the old key has expired.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct KeyFiles {
    /// File with a secret that signs and verifies tokens (HS256). May be repeated during a key rotation [default:
    /// none].
    #[arg(long, env = "OYEZ_JWT_SECRET_FILE", value_name = "FILE")]
    jwt_secret_file: Vec<PathBuf>,

    /// PEM file with public keys that verify tokens: EdDSA, ES256 or RS256, by the type of the key [default: none].
    #[arg(long, env = "OYEZ_JWT_PUBLIC_KEY", value_name = "FILE")]
    jwt_public_key: Vec<PathBuf>,

    /// JWKS file with public keys that verify tokens [default: none].
    #[arg(long, env = "OYEZ_JWKS_FILE", value_name = "FILE")]
    jwks_file: Vec<PathBuf>,
}

impl KeyFiles {
    /// Reads all files; `None` if no file is given.
    pub(super) fn load(&self) -> Result<Option<Keys>, Failure> {
        let mut all: Option<Keys> = None;
        let mut add = |flag: &str, path: &Path, keys: Result<Keys, BadKey>| {
            let keys = keys.map_err(|why| bad_key(flag, path, why))?;
            let sum = match all.take() {
                None => keys,
                Some(before) => before.and(keys).map_err(|why| bad_key(flag, path, why))?,
            };
            all = Some(sum);
            Ok::<(), Failure>(())
        };
        for path in &self.jwt_secret_file {
            add(SECRET_FLAG, path, Keys::from_secret(&read_secret(SECRET_FLAG, path)?))?;
        }
        for path in &self.jwt_public_key {
            add("--jwt-public-key", path, Keys::from_pem(&read("--jwt-public-key", path)?))?;
        }
        for path in &self.jwks_file {
            let (keys, skipped) = Keys::from_jwks(&read("--jwks-file", path)?)
                .map_err(|why| bad_key("--jwks-file", path, why))?;
            for key in skipped.iter().filter(|key| key.is_notable()) {
                warn!("--jwks-file {}: key skipped: {key}", path.display());
            }
            add("--jwks-file", path, Ok(keys))?;
        }
        Ok(all)
    }
}

pub(super) const SECRET_FLAG: &str = "--jwt-secret-file";

pub(super) fn bad_key(flag: &str, path: &Path, why: BadKey) -> Failure {
    Failure::Usage(format!("{flag} {}: {why}", path.display()))
}

/// The flag for a client's token. The token itself cannot be given as a flag's value, since other users of the machine
/// can read command lines.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct TokenFile {
    /// File with the token to send to the server.
    #[arg(long, env = "OYEZ_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenFile {
    /// Reads the token again on every call: a renewed token replaces the file.
    pub(super) fn load(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let token = String::from_utf8(read_secret("--token-file", path)?).unwrap_or_default();
        let token = token.trim();
        // The token becomes part of a header line.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = format!("--token-file {}: no token in it: {TOKEN_COMMAND}", path.display());
            return Err(Failure::Usage(text));
        }
        Ok(Some(token.to_owned()))
    }
}

/// Reads a file that only its owner should be able to read.
pub(super) fn read_secret(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let others = std::fs::metadata(path).is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o007 != 0);
    if others {
        warn!("{flag} {}: every user of this machine can read it: chmod o= {0}", path.display());
    }
    read(flag, path)
}

/// Writes a random token. A build without client tokens has no `oyez token`.
const METRICS_TOKEN_COMMAND: &str =
    if cfg!(feature = "jwt") { "oyez token secret FILE" } else { "head -c 32 /dev/urandom | base64 > FILE" };

/// Where a client's token comes from: of a server whose build has tokens, which this one may not have.
const TOKEN_COMMAND: &str =
    if cfg!(feature = "jwt") { "`oyez token new` prints one" } else { "an application server signs one" };

/// Reads the token that `/metrics` requires: the first line of its file.
pub(super) fn read_metrics_token(path: &Path) -> Result<MetricsToken, Failure> {
    const FLAG: &str = "--metrics-token-file";
    let text = read_password(FLAG, path)?;
    MetricsToken::new(text.as_bytes()).ok_or_else(|| {
        Failure::Usage(format!(
            "{FLAG} {}: the token has at least {METRICS_TOKEN_BYTES_MIN} letters, digits or signs of ASCII, and no spaces: \
             write one with `{METRICS_TOKEN_COMMAND}`",
            path.display()
        ))
    })
}

/// Reads a file with a password, which ends at the end of its first line.
pub(super) fn read_password(flag: &str, path: &Path) -> Result<String, Failure> {
    let bytes = read_secret(flag, path)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::Usage(format!("{flag} {}: not UTF-8", path.display())))?;
    let password = text.lines().next().unwrap_or("").to_owned();
    if password.is_empty() {
        return Err(Failure::Usage(format!("{flag} {}: the first line is empty", path.display())));
    }
    Ok(password)
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("{flag} {}: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let size = ByteSize(FILE_BYTES_MAX);
        let text = format!("{flag} {}: larger than {size}; not a key file", path.display());
        return Err(Failure::Usage(text));
    }
    Ok(bytes)
}
