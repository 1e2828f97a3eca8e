//! The flags for the key that signs a token.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::key_files::{SECRET_FLAG, bad_key, read_secret};
use crate::access::keys::SigningKey;

const PRIVATE_FLAG: &str = "--jwt-private-key";

/// Flags for the key that signs a token.
#[derive(Clone, Debug, Args)]
pub(super) struct SigningKeyFile {
    /// File with the secret that the server uses too (HS256). `oyez token secret` creates one.
    #[arg(long, env = "OYEZ_JWT_SECRET_FILE", value_name = "FILE")]
    jwt_secret_file: Option<PathBuf>,

    /// PEM file with a private key, instead of a secret: Ed25519, P-256 or RSA.
    #[arg(long, value_name = "FILE")]
    jwt_private_key: Option<PathBuf>,
}

impl SigningKeyFile {
    pub(super) fn load(&self) -> Result<SigningKey, Failure> {
        let (flag, path, key) = match (&self.jwt_private_key, &self.jwt_secret_file) {
            (Some(path), _) => (PRIVATE_FLAG, path, SigningKey::from_pem(&read_secret(PRIVATE_FLAG, path)?)),
            (None, Some(path)) => {
                (SECRET_FLAG, path, SigningKey::from_secret(&read_secret(SECRET_FLAG, path)?))
            }
            (None, None) => {
                return Err(Failure::Usage(
                    "no key is given: --jwt-secret-file FILE (create one with `oyez token secret FILE`), or --jwt-private-key FILE"
                        .to_owned(),
                ));
            }
        };
        key.map_err(|why| bad_key(flag, path, why))
    }
}
