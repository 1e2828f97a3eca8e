//! The flags that say which certificates are good.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::client::endpoint::Endpoint;
use crate::client::tls::Trust;

/// Whom a client trusts, beside those that browsers trust.
#[derive(Clone, Debug, Args)]
pub(super) struct TrustFlags {
    /// A PEM file of certificates to trust, beside those that browsers trust.
    #[arg(long, env = "OYEZ_TLS_CA", value_name = "FILE", conflicts_with = "tls_insecure")]
    tls_ca: Option<PathBuf>,

    /// Accept any certificate.
    #[arg(long)]
    tls_insecure: bool,
}

impl TrustFlags {
    /// Is anything said beside the default?
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

    /// What they come to.
    pub(super) fn trust(&self) -> Trust {
        match &self.tls_ca {
            _ if self.tls_insecure => Trust::Any,
            Some(path) => Trust::PublicAnd(path.clone()),
            None => Trust::Public,
        }
    }
}
