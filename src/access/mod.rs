//! Access control: tokens and their grants, tickets, origins, proxies, rate limits and quotas.
//!
//! Everything here is pure: bytes, a time and the operator's rules in; a decision out. It reads no file and no clock,
//! so each rule is tested against every attack that is known for it.

pub mod address;
pub mod authenticator;
pub mod connection_limiter;
#[cfg(feature = "jwt")]
mod crypto;
#[cfg(any(feature = "jwt", feature = "tls"))]
pub mod file_format;
pub mod grant;
pub mod identity;
#[cfg_attr(not(feature = "jwt"), path = "keys_missing.rs")]
pub mod keys;
pub mod limit;
pub mod metrics_token;
pub mod origin;
mod parsed_origin;
pub mod printable;
pub mod proxy;
pub mod quota;
pub mod rate;
pub mod rate_limiter;
pub mod rejection_log;
pub mod stored_grant;
pub mod ticket;
#[cfg_attr(not(feature = "jwt"), path = "token_missing.rs")]
pub mod token;
