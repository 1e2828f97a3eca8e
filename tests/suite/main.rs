//! Integration tests of Oyez through the real binary and through the library, one module per feature.

// A test binary exports nothing; `pub` here means "to the other modules".
#![allow(unreachable_pub)]
#![allow(clippy::print_stdout, reason = "what a test prints is captured by its harness")]

mod support;

mod access_close;
mod access_defaults;
mod access_keys;
mod access_rights;
mod access_secrets;
mod access_time;
mod access_ways;
mod assets;
mod back_pressure;
mod backplane_errors;
mod backplane_input;
mod backplane_model;
mod backplane_redis;
mod backplane_sentinel;
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
mod heartbeat;
mod http;
mod http_bodies;
mod http_origins;
mod http_pages;
mod http_slow;
mod idle_weeks;
mod inbound_deflate;
mod keys;
mod limits;
mod manual_commands;
mod manual_reference;
mod memory;
mod model;
mod order;
mod origins;
mod outbound_deflate;
mod output;
mod printed;
mod proxies;
mod queries;
mod raw_resume;
mod read_pause;
mod replays;
mod resume;
mod reuse_port;
mod shared_log;
mod shared_log_faults;
mod shared_log_replicas;
mod shared_requests;
mod shares;
mod slow;
mod sockets;
mod store;
mod tidy;
mod tls;
mod tls_in_memory;
mod token_command;
mod tokens;
mod users;
mod v1;
