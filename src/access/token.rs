//! Verification of tokens: JWT (RFC 7519), following RFC 8725. Returns the grant of a valid token.
//!
//! The order of the checks is the protection: the size before any decoding; the algorithm from the key and never from
//! the token; the signature before any claim. Header members that name keys (`jwk`, `jku`, `x5u`, `x5c`) are ignored,
//! `kid` only selects one of the operator's keys, and a header with `crit` is rejected, since no extension is
//! supported.
//!
//! Rights are in the claim `oyez`; a token without it grants nothing:
//!
//! ```json
//! {"sub": "alice", "exp": 1767225600, "oyez": {"subscribe": ["prices", "room.*"], "publish": ["room.7"]}}
//! ```
//!
//! Subscribers receive the claims `sub` and `info` (any JSON, of at most 1 KiB) with each message of the bearer.
//!
//! The claim `oyez` may also have `"admin": true`, `"messages_per_second"` and `"bytes_per_second"`. An unknown member
//! is rejected: it may be a limit that a newer version enforces.
//!
//! No part of a token appears in an error: [`TokenFault`] holds no text.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::num::NonZeroU32;

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::Algorithm;
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::grant::{Grant, Patterns};
use super::keys::{Key, Keys};
use super::printable::{is_name, is_trick};
use crate::fault::{ClaimName, TokenFault};
use crate::ids::User;
use crate::json_object::JsonObject;

/// Maximum length of a token, in bytes: it must fit in a request head.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Maximum difference between the clocks of the issuer and the server, in seconds.
pub const LEEWAY_SECONDS: u64 = 30;

/// Maximum length of the claim `info`, in bytes of JSON: it is sent with each message of its bearer.
pub const INFO_BYTES_MAX: usize = 1024;

/// The keys, audiences and issuers of valid tokens.
#[derive(Clone, Debug)]
pub struct Verifier {
    /// The keys that verify signatures.
    pub keys: Keys,
    /// The audiences that this server accepts. If empty, a token with an audience is rejected (RFC 7519 4.1.3), since
    /// the issuer may serve other servers.
    pub audiences: Vec<String>,
    /// The trusted issuers. If empty, every issuer with a key is trusted.
    pub issuers: Vec<String>,
}

impl Verifier {
    /// A verifier with these keys, audiences and issuers.
    pub fn new(keys: Keys, audiences: Vec<String>, issuers: Vec<String>) -> Verifier {
        Verifier { keys, audiences, issuers }
    }

    /// The keys, for the log.
    pub fn describe_keys(&self) -> String {
        self.keys.describe()
    }

    /// Verifies a token at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// The rule that the token breaks, without any of its content.
    pub fn verify(&self, token: &[u8], now: u64) -> Result<Grant, TokenFault> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenFault::TooLong);
        }
        let TokenParts { header, claims, message, signature } =
            TokenParts::split(token).ok_or(TokenFault::Malformed)?;
        let header = decode(header)?;
        let JsonObject(header): JsonObject<JoseHeader<'_>> =
            serde_json::from_slice(&header).map_err(|_| TokenFault::Header)?;
        let algorithm = header.algorithm().ok_or(TokenFault::Header)?;
        if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Err(TokenFault::Critical);
        }
        let kid = header.kid.as_deref();
        let mut verdict = TokenFault::NoKey;
        let fits = |key: &&Key| {
            let same_kid = kid.is_none() || key.kid.is_none() || key.kid.as_deref() == kid;
            key.algorithm == algorithm && same_kid
        };
        for key in self.keys.iter().filter(fits) {
            match jsonwebtoken::crypto::verify(signature, message, &key.key, algorithm) {
                Ok(true) => {
                    let text = decode(claims)?;
                    let JsonObject(claims) =
                        serde_json::from_slice(&text).map_err(|_| TokenFault::Malformed)?;
                    let grant = self.check_claims(claims, now)?;
                    let user = user(grant.sub.as_deref(), &text)?;
                    return Ok(Grant { user, ..grant });
                }
                Ok(false) => verdict = TokenFault::Signature,
                Err(_) => return Err(TokenFault::Malformed),
            }
        }
        Err(verdict)
    }

    fn check_claims(&self, claims: Claims, now: u64) -> Result<Grant, TokenFault> {
        let Seconds(exp) = good(claims.exp, ClaimName::Exp)?.ok_or(TokenFault::NoExpiry)?;
        if exp.saturating_add(LEEWAY_SECONDS) <= now {
            return Err(TokenFault::Expired);
        }
        let nbf = good(claims.nbf, ClaimName::Nbf)?;
        if nbf.is_some_and(|Seconds(nbf)| nbf > now.saturating_add(LEEWAY_SECONDS)) {
            return Err(TokenFault::NotYet);
        }
        let is_ours = |audience: &String| self.audiences.contains(audience);
        match good(claims.aud, ClaimName::Aud)? {
            None if self.audiences.is_empty() => {}
            Some(OneOrMore::One(audience)) if is_ours(&audience) => {}
            Some(OneOrMore::More(audiences)) if audiences.iter().any(is_ours) => {}
            _ => return Err(TokenFault::Audience),
        }
        let issuer = good(claims.iss, ClaimName::Iss)?;
        if !self.issuers.is_empty() && !issuer.is_some_and(|issuer| self.issuers.contains(&issuer)) {
            return Err(TokenFault::Issuer);
        }
        let sub = good(claims.sub, ClaimName::Sub)?;
        if sub.as_deref().is_some_and(|sub| !is_name(sub)) {
            return Err(TokenFault::Claim(ClaimName::Sub));
        }
        let rights = good(claims.oyez, ClaimName::Oyez)?.map(|JsonObject(rights)| rights).unwrap_or_default();
        let patterns = |list: &[String], which| {
            Patterns::parse(list.iter().map(String::as_str)).map_err(|_| TokenFault::Claim(which))
        };
        Ok(Grant {
            subscribe: patterns(&rights.subscribe, ClaimName::OyezSubscribe)?,
            publish: patterns(&rights.publish, ClaimName::OyezPublish)?,
            sub: sub.map(Into::into),
            user: None,
            expires_at: Some(exp),
            admin: rights.admin,
            messages_per_second: rights.messages_per_second,
            bytes_per_second: rights.bytes_per_second,
        })
    }
}

/// The bearer as subscribers receive it: the claim `sub`, and the claim `info` unchanged.
fn user(sub: Option<&str>, claims: &[u8]) -> Result<Option<User>, TokenFault> {
    // A separate type: RawValue cannot be read through `Claim`, which tries one type after the other.
    #[derive(Deserialize)]
    struct Info<'a> {
        #[serde(borrow)]
        info: Option<&'a RawValue>,
    }
    let JsonObject(Info { info }) = serde_json::from_slice(claims).map_err(|_| TokenFault::Malformed)?;
    let info = info.map(RawValue::get);
    if info.is_some_and(|info| info.len() > INFO_BYTES_MAX) {
        return Err(TokenFault::Claim(ClaimName::Info));
    }
    Ok(sub.map(|sub| User::new(sub, info)))
}

/// The unverified claims of a token, for display in a terminal: JSON in lines, with control characters escaped. `None`
/// if it is not a JWT or longer than [`TOKEN_BYTES_MAX`].
pub fn show_claims(token: &[u8]) -> Option<String> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let claims: serde_json::Value = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    let lines = serde_json::to_string_pretty(&claims).ok()?;
    let mut out = String::with_capacity(lines.len());
    for letter in lines.chars() {
        if is_trick(letter) && letter != '\n' {
            let _ = write!(out, "\\u{:04x}", u32::from(letter));
        } else {
            out.push(letter);
        }
    }
    Some(out)
}

/// The parts of a token (RFC 7515 7.1), still encoded.
struct TokenParts<'a> {
    header: &'a [u8],
    claims: &'a [u8],
    /// The signing input: header and claims with the dot between them.
    message: &'a [u8],
    signature: &'a str,
}

impl TokenParts<'_> {
    fn split(token: &[u8]) -> Option<TokenParts<'_>> {
        let second = memchr::memrchr(b'.', token)?;
        let (message, signature) = (&token[..second], &token[second + 1..]);
        let first = memchr::memchr(b'.', message)?;
        let (header, claims) = (&message[..first], &message[first + 1..]);
        Some(TokenParts { header, claims, message, signature: str::from_utf8(signature).ok()? })
    }
}

fn decode(part: &[u8]) -> Result<Vec<u8>, TokenFault> {
    BASE64URL_NOPAD.decode(part).map_err(|_| TokenFault::Malformed)
}

/// The header members that are used here (RFC 7515 4.1). The library's own type supports neither the algorithm
/// `Ed25519` nor headers whose other members have unexpected types.
#[derive(Deserialize)]
struct JoseHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    crit: Option<Vec<IgnoredAny>>,
    enc: Option<IgnoredAny>,
    zip: Option<IgnoredAny>,
}

impl JoseHeader<'_> {
    /// `None` for an unsupported algorithm, including `none`.
    fn algorithm(&self) -> Option<Algorithm> {
        match self.alg.as_ref() {
            // RFC 9864 2.2: EdDSA, with the curve in the name.
            "Ed25519" => Some(Algorithm::EdDSA),
            name => name.parse().ok(),
        }
    }
}

/// The claims that are used here; others are ignored.
#[derive(Deserialize)]
struct Claims {
    exp: Option<Claim<Seconds>>,
    nbf: Option<Claim<Seconds>>,
    aud: Option<Claim<OneOrMore>>,
    iss: Option<Claim<String>>,
    sub: Option<Claim<String>>,
    oyez: Option<Claim<JsonObject<OyezClaim>>>,
}

/// A claim of the right type or of another, so that an error can name the claim without its value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Claim<T> {
    Good(T),
    Bad(IgnoredAny),
}

fn good<T>(claim: Option<Claim<T>>, name: ClaimName) -> Result<Option<T>, TokenFault> {
    match claim {
        None => Ok(None),
        Some(Claim::Good(value)) => Ok(Some(value)),
        Some(Claim::Bad(_)) => Err(TokenFault::Claim(name)),
    }
}

/// A NumericDate (RFC 7519 2): seconds since 1970; a fraction is cut off.
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        let number = f64::deserialize(deserializer)?;
        // Up to 2^53 f64 represents each second; 285 million years.
        let exact = 0.0..=9_007_199_254_740_992.0;
        if exact.contains(&number) { Ok(Seconds(number as u64)) } else { Err(D::Error::custom("")) }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// The claim `oyez`: the rights of the bearer. Issued by `oyez token new`, or by any program with the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OyezClaim {
    /// Patterns of channels that the bearer may subscribe to.
    pub subscribe: Vec<String>,
    /// Patterns of channels that the bearer may publish on.
    pub publish: Vec<String>,
    /// True if the bearer may close the connections of other users.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// Maximum messages per second, if it differs from the server's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<NonZeroU32>,
    /// Maximum bytes per second, if it differs from the server's limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU32>,
}

/// The claims of a token that is to be issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NewClaims {
    /// The subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sub: Option<String>,
    /// The public information about the user that subscribers receive, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<serde_json::Value>,
    /// The audiences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    /// The issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iss: Option<String>,
    /// The time of issue, in seconds since 1970.
    pub iat: u64,
    /// The expiry, in seconds since 1970.
    pub exp: u64,
    /// The rights.
    pub oyez: OyezClaim,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_over_the_maximum_length_is_rejected_with_the_maximum() {
        let text = TokenFault::TooLong.to_string();
        assert!(text.contains(&format!(" {} KiB", TOKEN_BYTES_MAX >> 10)), "{text}");
        assert_eq!(TOKEN_BYTES_MAX % (1 << 10), 0);
    }
}
