//! Who may come in, and what they may do there.
//!
//! Everything here decides and does nothing: bytes, a time and the operator's rules in, a verdict out. No
//! file is read and no clock asked, so each rule can be tried against every trick that is known for it.

pub mod address;
pub mod authenticator;
pub mod connection_limiter;
mod crypto;
pub mod file_format;
pub mod grant;
pub mod identity;
pub mod keys;
pub mod limit;
pub mod origin;
pub mod proxy;
pub mod quota;
pub mod rate;
pub mod rate_limiter;
pub mod rejection_log;
pub mod ticket;
pub mod token;
