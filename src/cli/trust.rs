//! The TLS flags of the clients: which certificates to accept.

use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use crate::client::endpoint::Endpoint;
use crate::client::trust::Trust;

/// The certificates that a client accepts, in addition to those of public authorities.
#[derive(Clone, Debug, Args)]
pub(super) struct TrustFlags {
    /// PEM file with authorities to trust, in addition to those that browsers trust.
    #[arg(long, env = "OYEZ_TLS_CA", value_name = "FILE", conflicts_with = "tls_insecure")]
    tls_ca: Option<PathBuf>,

    /// Accept any certificate.
    #[arg(long)]
    tls_insecure: bool,
}

impl TrustFlags {
    /// Returns true if a flag is given.
    pub(super) fn is_given(&self) -> bool {
        self.tls_ca.is_some() || self.tls_insecure
    }

    /// Configures the certificates that a client of this endpoint accepts.
    pub(super) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, Failure> {
        if self.is_given() && !endpoint.is_encrypted() {
            return Err(Failure::Usage("--tls-ca and --tls-insecure need wss://".to_owned()));
        }
        endpoint.with_trust(&self.trust()).map_err(Failure::Failed)
    }

    /// The certificates to accept, by these flags.
    pub(super) fn trust(&self) -> Trust {
        match &self.tls_ca {
            _ if self.tls_insecure => Trust::Any,
            Some(path) => Trust::PublicAnd(path.clone()),
            None => Trust::Public,
        }
    }
}
