//! Nothing: cargo needs a target in order to fetch the dependency.
