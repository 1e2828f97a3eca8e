//! The four signature algorithms of tokens (HS256, EdDSA, ES256, RS256), implemented with ring.
//!
//! `jsonwebtoken` leaves the cryptography to a provider. Its own providers add a second crypto library; TLS already
//! links ring, so this module adapts ring to its interface.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey,
};
use ring::{error, hmac};

/// Makes ring the provider of this process, unless the program that uses this crate as a library has installed another.
pub(super) fn install() {
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: |algorithm, key| Ok(Box::new(Signing::new(*algorithm, key)?)),
        verifier_factory: |algorithm, key| Ok(Box::new(Verifying::new(*algorithm, key)?)),
        // These functions derive public keys from private ones, which is not needed here.
        key_utils: KeyUtils::new_unimplemented(),
    };
    let _ = PROVIDER.install_default();
}

/// A key that checks signatures.
struct Verifying {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifying {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Verifying, Error> {
        // A public key, which any client may have, must not be used as a shared secret.
        if algorithm.family() != key.family() {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        Ok(Verifying { algorithm, key: key.clone() })
    }

    fn check(&self, message: &[u8], signature: &[u8]) -> Result<(), error::Unspecified> {
        match (self.algorithm, self.key.kind()) {
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), message, signature)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            (Algorithm::RS256, DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            _ => Err(error::Unspecified),
        }
    }
}

impl Verifier<Vec<u8>> for Verifying {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.check(message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Verifying {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// A key that makes signatures.
enum Signing {
    Hs256(hmac::Key),
    EdDsa(Ed25519KeyPair),
    Es256(EcdsaKeyPair),
    Rs256(Box<RsaKeyPair>),
}

impl Signing {
    fn new(algorithm: Algorithm, key: &EncodingKey) -> Result<Signing, Error> {
        if algorithm.family() != key.family() {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        let bytes = key.as_bytes();
        let bad = |_| Error::from(ErrorKind::InvalidKeyFormat);
        match algorithm {
            Algorithm::HS256 => Ok(Signing::Hs256(hmac::Key::new(hmac::HMAC_SHA256, bytes))),
            // openssl omits the public key from the file.
            Algorithm::EdDSA => {
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map(Signing::EdDsa).map_err(bad)
            }
            Algorithm::ES256 => {
                let curve = &ECDSA_P256_SHA256_FIXED_SIGNING;
                EcdsaKeyPair::from_pkcs8(curve, bytes, &SystemRandom::new()).map(Signing::Es256).map_err(bad)
            }
            Algorithm::RS256 => RsaKeyPair::from_pkcs8(bytes)
                .or_else(|_| RsaKeyPair::from_der(bytes))
                .map(|pair| Signing::Rs256(Box::new(pair)))
                .map_err(bad),
            _ => Err(ErrorKind::UnsupportedAlgorithm.into()),
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, error::Unspecified> {
        match self {
            Signing::Hs256(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signing::EdDsa(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Signing::Es256(pair) => Ok(pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec()),
            Signing::Rs256(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut out)?;
                Ok(out)
            }
        }
    }
}

impl Signer<Vec<u8>> for Signing {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        self.sign(message).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Signing {
    fn algorithm(&self) -> Algorithm {
        match self {
            Signing::Hs256(_) => Algorithm::HS256,
            Signing::EdDsa(_) => Algorithm::EdDSA,
            Signing::Es256(_) => Algorithm::ES256,
            Signing::Rs256(_) => Algorithm::RS256,
        }
    }
}

/// Returns true if this key can sign with this algorithm.
pub(super) fn can_sign(algorithm: Algorithm, key: &EncodingKey) -> bool {
    Signing::new(algorithm, key).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`super::super::token`] checks the algorithm of the key too; this is the second check.
    #[test]
    fn key_of_another_algorithm_is_rejected() {
        let keys = [
            (Algorithm::HS256, DecodingKey::from_secret(&[1; 32]), EncodingKey::from_secret(&[1; 32])),
            (Algorithm::EdDSA, DecodingKey::from_ed_der(&[1; 32]), EncodingKey::from_ed_der(&[1; 32])),
            (Algorithm::ES256, DecodingKey::from_ec_der(&[1; 65]), EncodingKey::from_ec_der(&[1; 32])),
            (Algorithm::RS256, DecodingKey::from_rsa_der(&[1; 32]), EncodingKey::from_rsa_der(&[1; 32])),
        ];
        for (own, checking, making) in &keys {
            for (algorithm, ..) in &keys {
                assert_eq!(Verifying::new(*algorithm, checking).is_ok(), algorithm == own);
                assert!(algorithm == own || Signing::new(*algorithm, making).is_err());
            }
        }
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]), b"message");
        let public = &keys[1].1;
        assert!(Verifying::new(Algorithm::HS256, public).is_err());
        assert!(
            Verifying::new(Algorithm::HS256, &keys[0].1).unwrap().check(b"message", tag.as_ref()).is_ok()
        );
        for other in [Algorithm::HS384, Algorithm::HS512] {
            let verifying = Verifying::new(other, &keys[0].1).unwrap();
            assert!(verifying.check(b"message", tag.as_ref()).is_err());
        }
    }
}
