//! The flags that say which certificates are good.

use std::path::PathBuf;

use clap::Args;

use crate::load::tls::Trust;

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

    /// What they come to.
    pub(super) fn trust(&self) -> Trust {
        match &self.tls_ca {
            _ if self.tls_insecure => Trust::Anybody,
            Some(path) => Trust::And(path.clone()),
            None => Trust::Public,
        }
    }
}
