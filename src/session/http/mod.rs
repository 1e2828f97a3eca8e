//! HTTP/1.1: requests are parsed and routed, and responses are written in order, on a connection that is kept.
//!
//! [`connection`] has the states of a connection that speaks HTTP; [`dispatch`] decides what each request gets.

pub mod chunked;
pub mod connection;
pub mod cors;
pub mod dispatch;
pub mod extensions;
pub(super) mod last_response;
pub mod query;
pub mod rejected;
pub mod request;
pub mod response;
pub mod routes;
pub mod upgrade;
