//! The certificates that a client accepts, in flags and in reports.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The flag for the file with the trusted authorities.
pub const CA_FLAG: &str = "--tls-ca";

/// Which certificates a client accepts.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Certificates of the authorities that browsers trust.
    #[default]
    Public,
    /// Certificates of the public authorities, and of the authorities in this PEM file.
    PublicAnd(PathBuf),
    /// Certificates of the authorities in this PEM file.
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
