//! Access control: tokens and their grants, tickets, origins, proxies, rate limits and quotas.
//!
//! Everything here is pure: bytes, a time and the operator's rules in; a decision out. It reads no file and no clock,
//! so each rule is tested against every attack that is known for it.

pub mod address;
pub mod authenticator;
pub mod connection_limiter;
mod crypto;
pub mod file_format;
pub mod grant;
pub mod identity;
pub mod keys;
pub mod limit;
pub mod metrics_token;
pub mod origin;
mod parsed_origin;
pub mod proxy;
pub mod quota;
pub mod rate;
pub mod rate_limiter;
pub mod rejection_log;
pub mod stored_grant;
pub mod ticket;
pub mod token;
