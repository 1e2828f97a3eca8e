//! The certificates that a client accepts, as flags and reports name them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The flag of the commands for their trusted authorities.
pub const CA_FLAG: &str = "--tls-ca";

/// Which certificates a client accepts.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Those of the authorities that browsers trust.
    #[default]
    Public,
    /// Those of the public authorities, and of the authorities in this PEM file.
    PublicAnd(PathBuf),
    /// Those of the authorities in this PEM file.
    Only(PathBuf),
    /// Any certificate.
    Any,
}

/// How a report describes the certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certificates {
    /// Certificates were verified.
    Checked,
    /// Any certificate was accepted.
    NotChecked,
}
