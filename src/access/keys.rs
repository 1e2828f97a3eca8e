//! Keys that sign and verify tokens, parsed from the bytes of their files.
//!
//! The key determines the algorithm, and the token cannot choose it: a shared secret is HS256, an Ed25519 key EdDSA, a
//! P-256 key ES256, an RSA key RS256. Unsigned tokens, and tokens signed with a public key as if it were a secret, fail
//! because no key matches them.
//!
//! A server has several keys at a time, so that keys can be rotated: the new one is added before the first token that
//! it signs, and the old one is removed after its last token has expired.

use std::fmt;

use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header};
use rustls_pki_types::alg_id;
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::crypto;
use super::file_format::{INTEGER, SEQUENCE, UnsupportedFormat, bits, element};

use crate::json_object::JsonObject;
use crate::plural::plural;

/// Minimum length of a secret, in bytes (RFC 7518 3.2: the length of the hash).
pub const SECRET_BYTES_MIN: usize = 32;

/// Maximum number of keys: an invalid token costs one verification for each.
const KEYS_MAX: usize = 16;

/// The smallest RSA key, in bits, and the largest, which costs the most time (RFC 7518 3.3; ring).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// The tag of a bit string in DER (X.690 8.6).
const BIT_STRING: u8 = 0x03;

/// The keys that verify tokens.
#[derive(Clone)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    /// The key id in a JWKS file.
    pub(super) kid: Option<Box<str>>,
    pub(super) key: DecodingKey,
}

impl Key {
    fn new(algorithm: Algorithm, kid: Option<&str>, key: DecodingKey) -> Key {
        crypto::install();
        Key { algorithm, kid: kid.map(Into::into), key }
    }
}

impl Keys {
    /// A secret that is shared with the issuers of tokens: HS256. Line ends at the end of the file are not part of it.
    ///
    /// # Errors
    /// The secret is shorter than [`SECRET_BYTES_MIN`], or the file is not a secret.
    pub fn from_secret(file: &[u8]) -> Result<Keys, BadKey> {
        let key = DecodingKey::from_secret(secret(file)?);
        Ok(Keys(vec![Key::new(Algorithm::HS256, None, key)]))
    }

    /// One or more public keys in PEM (`BEGIN PUBLIC KEY`): EdDSA, ES256 or RS256 by the type of the key.
    ///
    /// # Errors
    /// The file has no public key, or contains something else, or a key of an unsupported type.
    pub fn from_pem(file: &[u8]) -> Result<Keys, BadKey> {
        let keys = sections(file)?
            .into_iter()
            .map(|(kind, der)| match kind {
                SectionKind::PublicKey => public_key(&der),
                SectionKind::Certificate => Err(BadKey::Certificate),
                kind if is_private(kind) => Err(BadKey::PrivateKey),
                _ => Err(BadKey::NoPublicKey),
            })
            .collect::<Result<Vec<Key>, BadKey>>()?;
        if keys.is_empty() { Err(BadKey::NoPublicKey) } else { Keys(keys).bounded() }
    }

    /// The public keys of a JWKS file, and the keys of it that cannot be used. A key set also holds keys of kinds
    /// that its readers do not know yet, and those are to be ignored (RFC 7517 5): one odd key must not lock out
    /// the tokens of all others, nor keep a key trusted that has been removed from the file.
    ///
    /// # Errors
    /// If it is not a JWKS, or no key in it can be used.
    pub fn from_jwks(file: &[u8]) -> Result<(Keys, Vec<SkippedKey>), BadKey> {
        #[derive(Deserialize)]
        struct KeySet {
            keys: Vec<Value>,
        }
        if let Some(form) = UnsupportedFormat::of_text(file) {
            return Err(BadKey::Form(form));
        }
        let JsonObject(set): JsonObject<KeySet> = serde_json::from_slice(file).map_err(|_| BadKey::NoJwks)?;
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, jwk) in set.keys.iter().enumerate() {
            match jwks_key(jwk) {
                Ok(key) => keys.push(key),
                Err(why) => {
                    let kid = jwk.get("kid").map(|kid| match kid.as_str() {
                        Some(text) => text.into(),
                        None => kid.to_string().into(),
                    });
                    skipped.push(SkippedKey { index, kid, why });
                }
            }
        }
        if keys.is_empty() {
            return Err(skipped
                .into_iter()
                .next()
                .map_or(BadKey::EmptyJwks, |key| BadKey::NoUsableKey(Box::new(key))));
        }
        Ok((Keys(keys).bounded()?, skipped))
    }

    /// Adds other keys.
    ///
    /// # Errors
    /// There are more keys than the maximum.
    pub fn and(mut self, others: Keys) -> Result<Keys, BadKey> {
        self.0.extend(others.0);
        self.bounded()
    }

    /// The algorithm of each key and its `kid`, if it has one, for the log.
    pub fn describe(&self) -> String {
        let words = self.0.iter().map(|key| match &key.kid {
            Some(kid) => format!("{:?}({})", key.algorithm, kid.escape_debug()),
            None => format!("{:?}", key.algorithm),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    fn bounded(self) -> Result<Keys, BadKey> {
        if self.0.len() > KEYS_MAX { Err(BadKey::TooMany) } else { Ok(self) }
    }
}

/// Shows algorithms and key ids only.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.describe())
    }
}

/// A key that signs tokens.
pub struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
}

impl SigningKey {
    /// A shared secret, as in [`Keys::from_secret`].
    ///
    /// # Errors
    /// The secret is shorter than [`SECRET_BYTES_MIN`], or the file is not a secret.
    pub fn from_secret(file: &[u8]) -> Result<SigningKey, BadKey> {
        crypto::install();
        Ok(SigningKey { algorithm: Algorithm::HS256, key: EncodingKey::from_secret(secret(file)?) })
    }

    /// A private key in PEM: Ed25519, P-256 or RSA.
    ///
    /// # Errors
    /// The file has no private key, or one of an unsupported type.
    pub fn from_pem(file: &[u8]) -> Result<SigningKey, BadKey> {
        crypto::install();
        let sections = sections(file)?;
        let (kind, der) = sections.iter().find(|(kind, _)| is_private(*kind)).ok_or(BadKey::NoPrivateKey)?;
        if *kind == SectionKind::EcPrivateKey {
            return Err(BadKey::Sec1);
        }
        [
            (Algorithm::EdDSA, EncodingKey::from_ed_der(der)),
            (Algorithm::ES256, EncodingKey::from_ec_der(der)),
            (Algorithm::RS256, EncodingKey::from_rsa_der(der)),
        ]
        .into_iter()
        .find(|(algorithm, key)| crypto::can_sign(*algorithm, key))
        .map(|(algorithm, key)| SigningKey { algorithm, key })
        .ok_or(BadKey::UnknownKind)
    }

    /// Issues a token with these claims.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, claims: &impl Serialize, kid: Option<&str>) -> Result<String, BadKey> {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.key).map_err(|_| BadKey::UnknownKind)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.algorithm)
    }
}

fn secret(file: &[u8]) -> Result<&[u8], BadKey> {
    // A secret may be any bytes, but with a byte order mark it differs from the secret that token issuers use.
    if let Some(form) = UnsupportedFormat::of_text(file).filter(|_| str::from_utf8(file).is_ok()) {
        return Err(BadKey::Form(form));
    }
    let end = file.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
    let secret = &file[..end];
    if secret.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(BadKey::SecretIsPem);
    }
    if secret.len() < SECRET_BYTES_MIN { Err(BadKey::SecretTooShort(secret.len())) } else { Ok(secret) }
}

fn sections(file: &[u8]) -> Result<Vec<(SectionKind, Vec<u8>)>, BadKey> {
    if let Some(form) = UnsupportedFormat::of(file) {
        return Err(BadKey::Form(form));
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(file).collect::<Result<_, _>>().map_err(|_| BadKey::NoPem)
}

fn is_private(kind: SectionKind) -> bool {
    matches!(kind, SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey)
}

/// Parses a SubjectPublicKeyInfo (RFC 5280 4.1.2.7): the algorithm, and the key in the format of that algorithm.
fn public_key(info: &[u8]) -> Result<Key, BadKey> {
    let parts = || {
        let (info, rest) = element(info, SEQUENCE)?;
        let (kind, bits) = element(info, SEQUENCE)?;
        let (bits, end) = element(bits, BIT_STRING)?;
        // The first byte is the number of unused bits at the end.
        (rest.is_empty() && end.is_empty()).then_some((kind, bits.strip_prefix(&[0])?))
    };
    let (kind, key) = parts().ok_or(BadKey::NoPem)?;
    if kind == alg_id::ED25519.as_ref() && key.len() == 32 {
        Ok(Key::new(Algorithm::EdDSA, None, DecodingKey::from_ed_der(key)))
    } else if kind == alg_id::ECDSA_P256.as_ref() && key.len() == 65 {
        Ok(Key::new(Algorithm::ES256, None, DecodingKey::from_ec_der(key)))
    } else if kind == alg_id::RSA_ENCRYPTION.as_ref() {
        let modulus = || element(element(key, SEQUENCE)?.0, INTEGER).map(|(modulus, _)| modulus);
        check_modulus(modulus().ok_or(BadKey::NoPem)?)?;
        Ok(Key::new(Algorithm::RS256, None, DecodingKey::from_rsa_der(key)))
    } else {
        Err(BadKey::UnknownKind)
    }
}

fn check_modulus(big_endian: &[u8]) -> Result<(), BadKey> {
    let bits = bits(big_endian);
    if RSA_BITS.contains(&bits) { Ok(()) } else { Err(BadKey::RsaBits(bits)) }
}

/// The members of a JWK that determine its type and use (RFC 7517 4, RFC 7518 6, RFC 8037 2). Others, such as `x5c`,
/// are ignored.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    #[serde(rename = "use")]
    purpose: Option<&'a str>,
    key_ops: Option<Vec<&'a str>>,
    alg: Option<&'a str>,
    kid: Option<&'a str>,
    crv: Option<&'a str>,
    n: Option<&'a str>,
    e: Option<&'a str>,
    x: Option<&'a str>,
    y: Option<&'a str>,
}

/// One key of a set.
fn jwks_key(value: &Value) -> Result<Key, SkipReason> {
    if value.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Err(SkipReason::KidNotText);
    }
    let JsonObject(jwk) = JsonObject::<Jwk<'_>>::deserialize(value).map_err(|_| SkipReason::Malformed)?;
    let is_for_others = jwk.purpose.is_some_and(|purpose| purpose != "sig")
        || jwk.key_ops.as_ref().is_some_and(|ops| !ops.contains(&"verify"));
    if is_for_others {
        return Err(SkipReason::OtherPurpose);
    }
    let (algorithm, names): (_, &[&str]) = match (jwk.kty, jwk.crv) {
        ("RSA", _) => (Algorithm::RS256, &["RS256"]),
        ("EC", Some("P-256")) => (Algorithm::ES256, &["ES256"]),
        // RFC 9864 2.2 names the curve in the algorithm.
        ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, &["EdDSA", "Ed25519"]),
        ("oct", _) => return Err(SkipReason::Secret),
        ("EC" | "OKP", curve) => return Err(SkipReason::Curve(shorten(curve.unwrap_or("none")))),
        (kind, _) => return Err(SkipReason::Kind(shorten(kind))),
    };
    if let Some(other) = jwk.alg.filter(|alg| !names.contains(alg)) {
        return Err(SkipReason::OtherAlgorithm(shorten(other)));
    }
    let key = match (algorithm, &jwk) {
        (Algorithm::RS256, Jwk { n: Some(n), e: Some(e), .. }) => DecodingKey::from_rsa_components(n, e),
        (Algorithm::ES256, Jwk { x: Some(x), y: Some(y), .. }) => DecodingKey::from_ec_components(x, y),
        (Algorithm::EdDSA, Jwk { x: Some(x), .. }) => DecodingKey::from_ed_components(x),
        _ => return Err(SkipReason::Malformed),
    };
    let key = key.map_err(|_| SkipReason::Malformed)?;
    let fits = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => {
            check_modulus(n).map_err(|_| SkipReason::RsaBits(bits(n)))?;
            true
        }
        DecodingKeyKind::SecretOrDer(bytes) => {
            bytes.len() == if algorithm == Algorithm::EdDSA { 32 } else { 65 }
        }
    };
    if fits { Ok(Key::new(algorithm, jwk.kid, key)) } else { Err(SkipReason::Malformed) }
}

/// Maximum length of a text from a file that an error quotes.
const QUOTE_CHARS_MAX: usize = 64;

fn shorten(text: &str) -> Box<str> {
    text.chars().take(QUOTE_CHARS_MAX).flat_map(char::escape_debug).collect::<String>().into()
}

/// A key of a JWKS that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedKey {
    /// Its index in the list, from 0.
    pub index: usize,
    /// Its key id in the file, if it has one.
    pub kid: Option<Box<str>>,
    /// The reason.
    pub why: SkipReason,
}

/// The reason why a key of a JWKS is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// A key for another use, such as encryption: any key set may have some.
    OtherPurpose,
    /// For signatures with an algorithm that is not supported.
    OtherAlgorithm(Box<str>),
    /// Of a kind (`kty`) that is not supported.
    Kind(Box<str>),
    /// On a curve (`crv`) that is not supported.
    Curve(Box<str>),
    /// An RSA key of this many bits.
    RsaBits(usize),
    /// `kid` is not a string (RFC 7517 4.5).
    KidNotText,
    /// A shared secret in a file of public keys.
    Secret,
    /// A member is missing, of a wrong type, of a wrong length or not base64url.
    Malformed,
}

impl SkippedKey {
    /// Returns true if the operator should look at the key: it may have been meant for this server.
    pub fn is_notable(&self) -> bool {
        self.why != SkipReason::OtherPurpose
    }
}

impl fmt::Display for SkippedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "keys[{}]", self.index)?;
        if let Some(kid) = &self.kid {
            write!(f, " (kid {})", shorten(kid))?;
        }
        write!(f, ": {}", self.why)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SkipReason::OtherPurpose => f.write_str("not for signatures"),
            SkipReason::OtherAlgorithm(name) => {
                write!(f, "algorithm {name} is not supported; EdDSA, ES256 and RS256 are")
            }
            SkipReason::Kind(kind) => write!(f, "key type {kind} is not supported; OKP, EC and RSA are"),
            SkipReason::Curve(curve) => {
                write!(f, "curve {curve} is not supported; Ed25519 (OKP) and P-256 (EC) are")
            }
            SkipReason::RsaBits(bits) => BadKey::RsaBits(*bits).fmt(f),
            SkipReason::KidNotText => f.write_str("its kid is not a string (RFC 7517 4.5)"),
            SkipReason::Secret => f.write_str(
                "a shared secret (\"oct\") in a file of public keys; it belongs in --jwt-secret-file",
            ),
            SkipReason::Malformed => f.write_str(
                "a member is missing, of a wrong type or length, or not base64url (RFC 7518 6, RFC 8037 2)",
            ),
        }
    }
}

/// An error in a key file. It does not contain the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadKey {
    /// A secret of this many bytes.
    SecretTooShort(usize),
    /// A PEM key in place of a secret. A public key is not secret: any client could sign tokens with it.
    SecretIsPem,
    /// A file format that is not supported.
    Form(UnsupportedFormat),
    /// Not PEM, or malformed content.
    NoPem,
    /// PEM without a public key.
    NoPublicKey,
    /// PEM without a private key.
    NoPrivateKey,
    /// A private key in place of the public one.
    PrivateKey,
    /// A certificate in place of a public key.
    Certificate,
    /// A private key in SEC 1 format, which is not supported.
    Sec1,
    /// A key of an unsupported type.
    UnknownKind,
    /// An RSA key of this many bits.
    RsaBits(usize),
    /// Not a JWKS.
    NoJwks,
    /// A JWKS without a key.
    EmptyJwks,
    /// A JWKS without a usable key; the first skipped one.
    NoUsableKey(Box<SkippedKey>),
    /// More keys than the maximum.
    TooMany,
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadKey::SecretTooShort(bytes) => write!(
                f,
                "a secret of {} can be guessed, and at least {SECRET_BYTES_MIN} bytes are required: create one with `oyez token secret FILE`",
                plural(*bytes, "byte")
            ),
            BadKey::SecretIsPem => f.write_str(
                "this is a PEM key, not a shared secret: pass it with --jwt-public-key or --jwt-private-key",
            ),
            BadKey::Form(form) => form.fmt(f),
            BadKey::NoPem => f.write_str("not a key in PEM (-----BEGIN PUBLIC KEY-----)"),
            BadKey::NoPublicKey => f.write_str("no -----BEGIN PUBLIC KEY----- in it"),
            BadKey::NoPrivateKey => f.write_str("no -----BEGIN PRIVATE KEY----- in it"),
            BadKey::PrivateKey => f.write_str(
                "this is a private key, and verification needs the public key: `openssl pkey -in FILE -pubout`",
            ),
            BadKey::Certificate => f.write_str(
                "this is a certificate; extract its public key: `openssl x509 -in FILE -noout -pubkey`",
            ),
            BadKey::Sec1 => f.write_str(
                "an EC PRIVATE KEY must be converted to PKCS#8: `openssl pkcs8 -topk8 -nocrypt -in FILE`",
            ),
            BadKey::UnknownKind => f.write_str("the key is not Ed25519, P-256 or RSA"),
            BadKey::RsaBits(bits) => write!(
                f,
                "an RSA key of {bits} bits, and {} to {} are supported",
                RSA_BITS.start(),
                RSA_BITS.end()
            ),
            BadKey::NoJwks => f.write_str("not a JWKS: {\"keys\":[…]} (RFC 7517)"),
            BadKey::EmptyJwks => f.write_str("the JWKS has no key"),
            BadKey::NoUsableKey(first) => write!(f, "no key in the JWKS can be used; {first}"),
            BadKey::TooMany => write!(f, "more than {KEYS_MAX} keys"),
        }
    }
}

impl std::error::Error for BadKey {}
