//! Takes the place of the module `keys` in a build without the cargo feature `jwt`: no key can be used.

use std::fmt;

/// Keys that verify tokens. This build has none, so no value of this type exists.
#[derive(Clone, Debug)]
pub enum Keys {}

/// A key of a JWKS that cannot be used. No value of this type exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkippedKey {}

impl SkippedKey {
    /// Returns true if the operator should look at the key.
    pub fn is_notable(&self) -> bool {
        match *self {}
    }
}

impl fmt::Display for SkippedKey {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

/// The error of every attempt to use a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadKey;

impl Keys {
    /// Fails: this build has no tokens.
    ///
    /// # Errors
    /// Always.
    pub fn from_secret(_: &[u8]) -> Result<Keys, BadKey> {
        Err(BadKey)
    }

    /// Fails: this build has no tokens.
    ///
    /// # Errors
    /// Always.
    pub fn from_pem(_: &[u8]) -> Result<Keys, BadKey> {
        Err(BadKey)
    }

    /// Fails: this build has no tokens.
    ///
    /// # Errors
    /// Always.
    pub fn from_jwks(_: &[u8]) -> Result<(Keys, Vec<SkippedKey>), BadKey> {
        Err(BadKey)
    }

    /// Adds other keys.
    ///
    /// # Errors
    /// None.
    pub fn and(self, _: Keys) -> Result<Keys, BadKey> {
        match self {}
    }
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this build has no tokens: build it with the cargo feature jwt")
    }
}

impl std::error::Error for BadKey {}
