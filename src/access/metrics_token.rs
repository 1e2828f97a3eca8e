//! The token that `/metrics` requires, which is a secret without claims: Prometheus reads it from a file.

use std::fmt;

use sha2::{Digest, Sha256};

/// Minimum length of the token, in bytes: 22 letters of base64 have 128 bits, and some generators write 16 bytes in
/// hex.
pub const METRICS_TOKEN_BYTES_MIN: usize = 16;

/// The hash of the token. Hashes are compared, so the time of a comparison does not depend on the token.
#[derive(Clone, PartialEq, Eq)]
pub struct MetricsToken([u8; 32]);

impl MetricsToken {
    /// Stores a token; `None` if it is too short, or contains what cannot be part of a header field.
    pub fn new(token: &[u8]) -> Option<MetricsToken> {
        let is_valid = token.len() >= METRICS_TOKEN_BYTES_MIN && token.iter().all(u8::is_ascii_graphic);
        is_valid.then(|| MetricsToken::hash(token))
    }

    /// Returns true if a client has sent this token.
    pub fn is(&self, token: &[u8]) -> bool {
        *self == MetricsToken::hash(token)
    }

    fn hash(token: &[u8]) -> MetricsToken {
        MetricsToken(Sha256::digest(token).into())
    }
}

/// Without the hash.
impl fmt::Debug for MetricsToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetricsToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_that_of_the_file_only() {
        let token = MetricsToken::new(b"0123456789abcdef").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for other in [&b""[..], b"0123456789abcde", b"0123456789abcdef0", b"0123456789abcdeF"] {
            assert!(!token.is(other));
        }
        for invalid in [&b"0123456789abcde"[..], b"0123456789 abcdef", b"0123456789abcdef\n"] {
            assert_eq!(MetricsToken::new(invalid), None);
        }
    }
}
