//! The version that `--version` and reports print.

/// Version, commit and features: see the build script.
pub(super) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILD_COMMIT"),
    ", features: ",
    env!("BUILD_FEATURES"),
    ")"
);
