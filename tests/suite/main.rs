//! Integration tests of Oyez through the real binary and through the library, one module per feature.

// A test binary exports nothing; `pub` here means "to the other modules".
#![allow(unreachable_pub)]
#![allow(clippy::print_stdout, reason = "what a test prints is captured by its harness")]
#![cfg_attr(
    not(feature = "default"),
    allow(dead_code, unused_imports, reason = "helpers of the tests of a part that is not built")
)]

#[cfg(feature = "default")]
#[path = "../fuzz/checks/mod.rs"]
mod checks;
mod support;

// Tests of a part are compiled if the part is. The manual describes a build with all parts, which are the default.
#[cfg(feature = "jwt")]
mod access_close;
mod access_defaults;
#[cfg(feature = "jwt")]
mod access_keys;
#[cfg(feature = "jwt")]
mod access_rights;
#[cfg(feature = "jwt")]
mod access_secrets;
#[cfg(feature = "jwt")]
mod access_time;
#[cfg(feature = "jwt")]
mod access_ways;
mod assets;
mod back_pressure;
#[cfg(feature = "backplane")]
mod backplane_errors;
#[cfg(feature = "default")]
mod backplane_input;
#[cfg(feature = "backplane")]
mod backplane_model;
#[cfg(feature = "backplane")]
mod backplane_redis;
#[cfg(feature = "backplane")]
mod backplane_sentinel;
#[cfg(all(feature = "backplane", feature = "tls"))]
mod backplane_tls;
mod bad_input;
#[cfg(feature = "bench")]
mod bench;
mod broadcast;
mod churn;
mod closing;
mod comeback;
mod command_line;
mod cursors;
mod cuts;
mod descriptors;
mod discontinuity;
mod drain;
mod events;
mod fairness;
mod flags;
mod frame_scanner;
#[cfg(feature = "default")]
mod fuzz_rules;
mod heartbeat;
mod http;
mod http_bodies;
mod http_origins;
mod http_pages;
mod http_slow;
mod idle_weeks;
#[cfg(feature = "deflate")]
mod inbound_deflate;
#[cfg(feature = "jwt")]
mod keys;
mod limits;
mod log_lines;
#[cfg(feature = "default")]
mod manual_commands;
#[cfg(feature = "default")]
mod manual_reference;
mod memory;
mod missing_parts;
mod model;
mod order;
mod origins;
#[cfg(feature = "deflate")]
mod outbound_deflate;
#[cfg(feature = "deflate")]
mod outbound_deflate_model;
mod output;
#[cfg(feature = "default")]
mod printed;
mod proxies;
mod queries;
mod raw_resume;
mod read_pause;
mod replays;
#[cfg(feature = "history-file")]
mod restart;
mod resume;
#[cfg(feature = "backplane")]
mod reuse_port;
mod service;
#[cfg(feature = "backplane")]
mod shared_log;
#[cfg(feature = "backplane")]
mod shared_log_faults;
#[cfg(feature = "backplane")]
mod shared_log_replicas;
#[cfg(all(feature = "backplane", feature = "jwt"))]
mod shared_requests;
mod shares;
mod slow;
mod sockets;
#[cfg(feature = "history-file")]
mod store;
mod tidy;
#[cfg(feature = "tls")]
mod tls;
#[cfg(feature = "tls")]
mod tls_in_memory;
#[cfg(feature = "jwt")]
mod token_command;
#[cfg(feature = "jwt")]
mod tokens;
#[cfg(feature = "jwt")]
mod users;
mod v1;
