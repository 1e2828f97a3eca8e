//! The settings of a link.

use crate::ids::RunId;

/// The settings of a link.
#[derive(Clone)]
pub struct LinkConfig {
    /// `--backplane-name`: the name of the log.
    pub name: String,
    /// A random number that identifies this process.
    pub run: RunId,
    /// A random seed.
    pub seed: u64,
    /// `--backplane-user`
    pub user: Option<String>,
    /// The password for AUTH.
    pub password: Option<String>,
    /// The number of the database; 0 is not selected, since Redis Cluster has no other one.
    pub database: u32,
    /// `--backplane-age-seconds` in ms.
    pub age_ms: u64,
    /// `--backplane-bytes-max`
    pub bytes_max: u64,
    /// `--backplane-pending-bytes-max`
    pub pending_bytes_max: usize,
    /// `--backplane-publish-timeout-ms`
    pub publish_timeout_ms: u32,
    /// `--backplane-heartbeat-timeout-ms`
    pub heartbeat_timeout_ms: u32,
    /// `--backplane-wait-replicas`
    pub wait_replicas: u32,
    /// `--backplane-wait-timeout-ms`
    pub wait_timeout_ms: u32,
}

impl std::fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the password.
        f.debug_struct("LinkConfig").field("name", &self.name).field("run", &self.run).finish_non_exhaustive()
    }
}
