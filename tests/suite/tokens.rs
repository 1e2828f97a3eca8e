//! Token verification: valid tokens of every key type, each known attack, and random bytes. Tokens are written by
//! hand or by jsonwebtoken, and verified through the library.

use jsonwebtoken::{Algorithm, EncodingKey};
use oyez::access::grant::Grant;
use oyez::access::keys::{BadKey, Keys, SigningKey};
use oyez::access::token::{LEEWAY_SECONDS, NewClaims, OyezClaim, TOKEN_BYTES_MAX, Verifier};
use oyez::fault::{ClaimName, TokenFault};
use oyez::ids::ChannelName;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use crate::support::key_files;
use crate::support::tokens::{base64url, pem, public_pem, unsigned};

/// The time at which all of this happens.
const NOW: u64 = 1_800_000_000;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &[u8] = b"fedcba9876543210fedcba9876543210";

fn verifier(keys: Keys) -> Verifier {
    Verifier::new(keys, Vec::new(), Vec::new())
}

fn by_secret() -> Verifier {
    verifier(Keys::from_secret(SECRET).unwrap())
}

/// Signs any claims.
fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    signed_text(&header.to_string(), &claims.to_string(), key, algorithm)
}

fn signed_text(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    // Making a key installs the cryptography provider.
    Keys::from_secret(SECRET).unwrap();
    let message = unsigned(header, claims);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(claims: &Value) -> String {
    signed(&json!({"alg": "HS256"}), claims, &EncodingKey::from_secret(SECRET), Algorithm::HS256)
}

fn with_header(header: &Value) -> String {
    let claims = json!({"exp": NOW + 60});
    signed(header, &claims, &EncodingKey::from_secret(SECRET), Algorithm::HS256)
}

fn verify(token: &str) -> Result<Grant, TokenFault> {
    by_secret().verify(token.as_bytes(), NOW)
}

/// Returns true if the error names the claim. For a list or an object in a claim that it knows, jsonwebtoken itself
/// fails.
fn is_claim(why: TokenFault, name: ClaimName) -> bool {
    why == TokenFault::Claim(name) || why == TokenFault::Malformed
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name.as_bytes()).unwrap()
}

#[test]
fn token_grants_its_claims() {
    let token = hs256(&json!({
        "sub": "alice", "iat": NOW, "nbf": NOW, "exp": NOW + 60, "jti": "x", "https://example.com/x": [1],
        "oyez": {"subscribe": ["prices", "room.*"], "publish": ["room.7"], "admin": true,
                 "messages_per_second": 5, "bytes_per_second": 1000},
    }));
    let grant = verify(&token).unwrap();
    assert_eq!((grant.sub.as_deref(), grant.expires_at, grant.admin), (Some("alice"), Some(NOW + 60), true));
    assert!(grant.may_subscribe(&channel("prices")) && grant.may_subscribe(&channel("room.9")));
    assert!(grant.may_publish(&channel("room.7")) && !grant.may_publish(&channel("room.9")));
    assert_eq!(grant.messages_per_second.map(u32::from), Some(5));
    assert_eq!(grant.bytes_per_second.map(u32::from), Some(1000));
    assert!(!grant.has_expired(NOW + 59) && grant.has_expired(NOW + 60));
    let nothing = verify(&hs256(&json!({"exp": NOW + 60}))).unwrap();
    assert_eq!(nothing, Grant { expires_at: Some(NOW + 60), ..Grant::default() });
}

#[test]
fn rfc_examples_are_verified() {
    // RFC 7515 A.2 and A.3: tokens of joe's, which end at this time.
    const END: u64 = 1_300_819_380;
    const PAYLOAD: &str =
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = json!({"keys": [{"kty": "RSA", "e": "AQAB", "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"}]});
    let rs256 = format!(
        "eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
    );
    let ec = json!({"keys": [{"kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]});
    let es256 = format!(
        "eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
    );
    for (jwks, token) in [(rsa, rs256), (ec, es256)] {
        let mut verifier = verifier(Keys::from_jwks(jwks.to_string().as_bytes()).unwrap().0);
        verifier.issuers = vec!["joe".to_owned()];
        let grant = verifier.verify(token.as_bytes(), END - 1).unwrap();
        assert_eq!(grant.expires_at, Some(END));
        assert_eq!(verifier.verify(token.as_bytes(), END + LEEWAY_SECONDS), Err(TokenFault::Expired));
        let forged = token.replace("eyJpc3MiOiJqb2Ui", "eyJpc3MiOiJqb2Ui".to_lowercase().as_str());
        assert_eq!(verifier.verify(forged.as_bytes(), END - 1), Err(TokenFault::Signature));
    }
}

/// Each kind of private key, as openssl writes it, and its public half.
fn key_pairs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    [
        ("EdDSA", key_files::ED25519, key_files::ED25519_PUBLIC),
        ("ES256", key_files::P256, key_files::P256_PUBLIC),
        ("RS256", key_files::RSA, key_files::RSA_PUBLIC),
        ("RS256", key_files::RSA_PKCS1, key_files::RSA_PUBLIC),
    ]
    .map(|(name, private, public)| (name, private.into(), public.into()))
    .into()
}

/// Newly generated keys.
fn other_key_pairs() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let random = SystemRandom::new();
    let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed_public = Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap();
    let curve = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let ec = EcdsaKeyPair::generate_pkcs8(curve, &random).unwrap();
    let ec_public = EcdsaKeyPair::from_pkcs8(curve, ec.as_ref(), &random).unwrap();
    vec![
        ("EdDSA", pem("PRIVATE KEY", ed.as_ref()), public_pem("EdDSA", ed_public.public_key().as_ref())),
        ("ES256", pem("PRIVATE KEY", ec.as_ref()), public_pem("ES256", ec_public.public_key().as_ref())),
    ]
}

fn some_claims() -> NewClaims {
    let oyez = OyezClaim { subscribe: vec!["a".to_owned()], ..OyezClaim::default() };
    NewClaims { sub: Some("alice".to_owned()), exp: NOW + 60, oyez, ..NewClaims::default() }
}

#[test]
fn token_signed_by_each_key_type_is_verified() {
    for (name, private, public) in key_pairs().into_iter().chain(other_key_pairs()) {
        let token = SigningKey::from_pem(&private).unwrap().sign(&some_claims(), None).unwrap();
        let keys = Keys::from_pem(&public).unwrap();
        assert_eq!(keys.describe(), name);
        assert!(verifier(keys).verify(token.as_bytes(), NOW).unwrap().may_subscribe(&channel("a")));
        for (_, _, other) in other_key_pairs() {
            let keys = Keys::from_pem(&other).unwrap();
            let expected = if keys.describe() == name { TokenFault::Signature } else { TokenFault::NoKey };
            assert_eq!(verifier(keys).verify(token.as_bytes(), NOW), Err(expected));
        }
        assert_eq!(by_secret().verify(token.as_bytes(), NOW), Err(TokenFault::NoKey));
    }
}

#[test]
fn unsigned_token_is_rejected() {
    let claims = json!({"exp": NOW + 60, "oyez": {"subscribe": ["*"]}}).to_string();
    for algorithm in ["none", "None", "nOnE", "NONE", "", "hs256", "HS256 "] {
        let token = unsigned(&json!({"alg": algorithm}).to_string(), &claims);
        for signature in ["", "AAAA"] {
            assert_eq!(verify(&format!("{token}.{signature}")), Err(TokenFault::Header), "{algorithm}");
        }
        assert_eq!(verify(&token), Err(TokenFault::Malformed));
    }
    for header in [json!({}), json!({"alg": null}), json!({"alg": ["HS256"]}), json!({"alg": 1}), json!([])] {
        assert_eq!(
            verify(&format!("{}.AAAA", unsigned(&header.to_string(), &claims))),
            Err(TokenFault::Header)
        );
    }
    for (_, _, public) in key_pairs() {
        let verifier = verifier(Keys::from_pem(&public).unwrap());
        for algorithm in ["HS256", "EdDSA", "ES256", "RS256"] {
            let token = unsigned(&json!({"alg": algorithm}).to_string(), &claims);
            for signature in ["", "AAAA", &base64url(&[0; 32]), &base64url(&[0; 64])] {
                let verdict = verifier.verify(format!("{token}.{signature}").as_bytes(), NOW);
                assert!(matches!(verdict, Err(TokenFault::Signature | TokenFault::NoKey)), "{verdict:?}");
            }
        }
    }
    let token = unsigned(&json!({"alg": "HS256"}).to_string(), &claims);
    assert_eq!(verify(&format!("{token}.")), Err(TokenFault::Signature));
}

/// The values of the fields alone, in the order of the structs that they are read into.
#[test]
fn token_with_an_array_for_an_object_is_rejected() {
    let key = EncodingKey::from_secret(SECRET);
    let claims = json!({"exp": NOW + 60});
    for header in [json!(["HS256"]), json!(["HS256", null, null, null, null])] {
        assert_eq!(verify(&signed(&header, &claims, &key, Algorithm::HS256)), Err(TokenFault::Header));
    }
    assert_eq!(
        verify(&hs256(&json!([NOW + 60, null, null, null, "alice", null]))),
        Err(TokenFault::Malformed)
    );
    let rights = json!({"exp": NOW + 60, "oyez": [["*"], ["*"], true, null, null]});
    assert_eq!(verify(&hs256(&rights)), Err(TokenFault::Claim(ClaimName::Oyez)));
}

#[test]
fn token_with_another_algorithm_is_rejected() {
    for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        let token = unsigned(&json!({"alg": name}).to_string(), &json!({"exp": NOW + 60}).to_string());
        let hash =
            if algorithm == Algorithm::HS384 { ring::hmac::HMAC_SHA384 } else { ring::hmac::HMAC_SHA512 };
        let tag = ring::hmac::sign(&ring::hmac::Key::new(hash, SECRET), token.as_bytes());
        assert_eq!(verify(&format!("{token}.{}", base64url(tag.as_ref()))), Err(TokenFault::NoKey));
    }
}

/// The public key is public: if it were accepted as a secret, any client could create tokens.
#[test]
fn public_key_used_as_secret_is_rejected() {
    let claims = json!({"exp": NOW + 60, "oyez": {"subscribe": ["*"]}});
    for (_, _, public) in key_pairs() {
        let verifier = verifier(Keys::from_pem(&public).unwrap());
        let der = der_of(&public);
        let raw = &der[der.len() - 32..];
        for secret in [&public[..], public.trim_ascii_end(), &der, raw] {
            let key = EncodingKey::from_secret(secret);
            let token = signed(&json!({"alg": "HS256"}), &claims, &key, Algorithm::HS256);
            assert_eq!(verifier.verify(token.as_bytes(), NOW), Err(TokenFault::NoKey));
        }
        assert_eq!(Keys::from_secret(&public).unwrap_err(), BadKey::SecretIsPem);
    }
}

fn der_of(public: &[u8]) -> Vec<u8> {
    use rustls::pki_types::SubjectPublicKeyInfoDer;
    use rustls::pki_types::pem::PemObject;
    SubjectPublicKeyInfoDer::from_pem_slice(public).unwrap().to_vec()
}

#[test]
fn token_header_with_a_key_or_extensions_is_rejected() {
    let attacker = EncodingKey::from_secret(OTHER_SECRET);
    let jwk = json!({"kty": "oct", "k": base64url(OTHER_SECRET), "alg": "HS256"});
    let claims = json!({"exp": NOW + 60, "oyez": {"subscribe": ["*"]}});
    for header in [
        json!({"alg": "HS256", "jwk": jwk}),
        json!({"alg": "HS256", "jku": "https://evil.test/keys.json"}),
        json!({"alg": "HS256", "x5u": "https://evil.test/cert.pem"}),
        json!({"alg": "HS256", "x5c": ["AAAA"]}),
        json!({"alg": "HS256", "kid": "../../../dev/null"}),
        json!({"alg": "HS256", "kid": "' UNION SELECT 'x"}),
    ] {
        let token = signed(&header, &claims, &attacker, Algorithm::HS256);
        assert_eq!(verify(&token), Err(TokenFault::Signature), "{header}");
        assert!(verify(&with_header(&header)).is_ok(), "with the right signature they say nothing: {header}");
    }
    for header in [
        json!({"alg": "HS256", "crit": ["b64"], "b64": false}),
        json!({"alg": "HS256", "crit": ["exp"]}),
        json!({"alg": "HS256", "crit": []}),
        json!({"alg": "HS256", "zip": "DEF"}),
        json!({"alg": "HS256", "enc": "A128GCM"}),
    ] {
        assert_eq!(verify(&with_header(&header)), Err(TokenFault::Critical), "{header}");
    }
    for header in [json!({"alg": "HS256", "kid": 7}), json!({"alg": "HS256", "crit": "b64"})] {
        assert_eq!(verify(&with_header(&header)), Err(TokenFault::Header), "{header}");
    }
    let twice = r#"{"alg":"none","alg":"HS256"}"#;
    let key = EncodingKey::from_secret(SECRET);
    let claims = claims.to_string();
    assert_eq!(verify(&signed_text(twice, &claims, &key, Algorithm::HS256)), Err(TokenFault::Header));
    let again = claims.replace("{\"exp\"", "{\"exp\":9999999999,\"exp\"");
    assert_ne!(again, claims);
    let token = signed_text(r#"{"alg":"HS256"}"#, &again, &key, Algorithm::HS256);
    assert_eq!(verify(&token), Err(TokenFault::Malformed));
}

/// RFC 9864 2.2: `Ed25519` is `EdDSA` with its curve named. Both names are of the same signature.
#[test]
fn token_with_alg_ed25519_is_accepted_as_eddsa() {
    let private = EncodingKey::from_ed_der(&der_of_private(key_files::ED25519));
    let verifier = verifier(Keys::from_pem(key_files::ED25519_PUBLIC.as_bytes()).unwrap());
    let claims = json!({"exp": NOW + 60});
    for alg in ["EdDSA", "Ed25519"] {
        let token = signed(&json!({"alg": alg}), &claims, &private, Algorithm::EdDSA);
        assert!(verifier.verify(token.as_bytes(), NOW).is_ok(), "{alg}");
        let forged = token.replace('.', ".A");
        assert!(verifier.verify(forged.as_bytes(), NOW).is_err(), "{alg}");
    }
    for (alg, verdict) in [("Ed448", TokenFault::Header), ("ed25519", TokenFault::Header)] {
        let token = signed(&json!({"alg": alg}), &claims, &private, Algorithm::EdDSA);
        assert_eq!(verifier.verify(token.as_bytes(), NOW), Err(verdict), "{alg}");
    }
    // The name chooses no other key.
    let token =
        signed(&json!({"alg": "Ed25519"}), &claims, &EncodingKey::from_secret(SECRET), Algorithm::HS256);
    assert_eq!(by_secret().verify(token.as_bytes(), NOW), Err(TokenFault::NoKey));
}

fn der_of_private(text: &str) -> Vec<u8> {
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::pki_types::pem::PemObject;
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).unwrap().secret_pkcs8_der().to_vec()
}

#[test]
fn kid_selects_among_known_keys_only() {
    let pairs = [key_pairs().remove(0), other_key_pairs().remove(0)];
    let jwk = |kid: &str, public: &[u8]| {
        let der = der_of(public);
        json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64url(&der[der.len() - 32..])})
    };
    let set = json!({"keys": [jwk("one", &pairs[0].2), jwk("two", &pairs[1].2)]});
    let verifier = verifier(Keys::from_jwks(set.to_string().as_bytes()).unwrap().0);
    let check = |pair: usize, kid: Option<&str>, verdict: Result<(), TokenFault>| {
        let token = SigningKey::from_pem(&pairs[pair].1).unwrap().sign(&some_claims(), kid).unwrap();
        assert_eq!(verifier.verify(token.as_bytes(), NOW).map(|_| ()), verdict, "{pair} {kid:?}");
    };
    check(0, Some("one"), Ok(()));
    check(1, Some("two"), Ok(()));
    check(0, None, Ok(()));
    check(1, None, Ok(()));
    check(0, Some("two"), Err(TokenFault::Signature));
    check(1, Some("one"), Err(TokenFault::Signature));
    check(0, Some("three"), Err(TokenFault::NoKey));
}

#[test]
fn two_secrets_are_accepted_during_rotation() {
    let token = hs256(&json!({"exp": NOW + 60}));
    let both = Keys::from_secret(OTHER_SECRET).unwrap().and(Keys::from_secret(SECRET).unwrap()).unwrap();
    assert!(verifier(both).verify(token.as_bytes(), NOW).is_ok());
    let new = verifier(Keys::from_secret(OTHER_SECRET).unwrap());
    assert_eq!(new.verify(token.as_bytes(), NOW), Err(TokenFault::Signature));
}

#[test]
fn token_outside_its_validity_is_rejected() {
    let check = |claims: Value, verdict: Result<(), TokenFault>| {
        assert_eq!(verify(&hs256(&claims)).map(|_| ()), verdict, "{claims}");
    };
    check(json!({}), Err(TokenFault::NoExpiry));
    check(json!({"exp": null}), Err(TokenFault::NoExpiry));
    check(json!({"exp": NOW}), Ok(()));
    check(json!({"exp": NOW - LEEWAY_SECONDS + 1}), Ok(()));
    check(json!({"exp": NOW - LEEWAY_SECONDS}), Err(TokenFault::Expired));
    check(json!({"exp": 0}), Err(TokenFault::Expired));
    check(json!({"exp": NOW as f64 + 0.5}), Ok(()));
    check(json!({"exp": 253_402_300_799_u64}), Ok(()));
    check(json!({"exp": NOW + 60, "nbf": NOW + LEEWAY_SECONDS}), Ok(()));
    check(json!({"exp": NOW + 60, "nbf": NOW + LEEWAY_SECONDS + 1}), Err(TokenFault::NotYet));
    check(json!({"exp": NOW + 60, "nbf": 9_000_000_000_u64}), Err(TokenFault::NotYet));
    for exp in
        [json!("1800000060"), json!(-1), json!(u64::MAX), json!(1e300), json!([NOW]), json!({}), json!(true)]
    {
        assert!(is_claim(verify(&hs256(&json!({"exp": exp}))).unwrap_err(), ClaimName::Exp), "{exp}");
        let nbf = verify(&hs256(&json!({"exp": NOW + 60, "nbf": exp})));
        assert!(is_claim(nbf.unwrap_err(), ClaimName::Nbf), "{exp}");
    }
}

#[test]
fn token_with_other_audience_or_issuer_is_rejected() {
    let mut verifier = by_secret();
    let check = |verifier: &Verifier, name: &str, value: Value, verdict: Result<(), TokenFault>| {
        let mut claims = json!({"exp": NOW + 60});
        if !value.is_null() {
            claims[name] = value;
        }
        let found = verifier.verify(hs256(&claims).as_bytes(), NOW).map(|_| ());
        assert_eq!(found, verdict, "{claims}");
    };
    check(&verifier, "aud", Value::Null, Ok(()));
    check(&verifier, "aud", json!("else"), Err(TokenFault::Audience));
    check(&verifier, "aud", json!([]), Err(TokenFault::Audience));
    check(&verifier, "iss", json!("anybody"), Ok(()));
    verifier.audiences = vec!["us".to_owned(), "we".to_owned()];
    check(&verifier, "aud", json!("us"), Ok(()));
    check(&verifier, "aud", json!(["else", "we"]), Ok(()));
    for other in
        [Value::Null, json!("else"), json!("US"), json!("us "), json!(""), json!([]), json!(["else"])]
    {
        check(&verifier, "aud", other, Err(TokenFault::Audience));
    }
    for wrong in [json!(1), json!(["us", 1]), json!({"us": 1}), json!(true)] {
        check(&verifier, "aud", wrong, Err(TokenFault::Claim(ClaimName::Aud)));
    }
    verifier.audiences.clear();
    verifier.issuers = vec!["https://id.example.com".to_owned()];
    check(&verifier, "iss", json!("https://id.example.com"), Ok(()));
    for other in [Value::Null, json!("https://id.example.com/"), json!("https://id.example.com.evil.test")] {
        check(&verifier, "iss", other, Err(TokenFault::Issuer));
    }
    for wrong in [json!(["https://id.example.com"]), json!(1), json!({})] {
        check(&verifier, "iss", wrong, Err(TokenFault::Claim(ClaimName::Iss)));
    }
}

#[test]
fn rights_of_a_wrong_type_are_rejected() {
    let check = |oyez: Value, verdict: Result<(), TokenFault>| {
        let found = verify(&hs256(&json!({"exp": NOW + 60, "oyez": oyez}))).map(|_| ());
        assert_eq!(found, verdict, "{oyez}");
    };
    check(json!({}), Ok(()));
    check(json!({"subscribe": []}), Ok(()));
    for wrong in [
        json!("*"),
        json!(["*"]),
        json!(1),
        json!({"subscribe": "*"}),
        json!({"subscribe": ["a", 1]}),
        json!({"subscribe": [["a"]]}),
        json!({"subscribe": {"a": true}}),
        json!({"subscribe": null}),
        json!({"admin": "true"}),
        json!({"admin": 1}),
        json!({"messages_per_second": 0}),
        json!({"messages_per_second": -1}),
        json!({"messages_per_second": "5"}),
        json!({"bytes_per_second": 4_294_967_296_u64}),
        json!({"subscibe": ["a"]}),
    ] {
        check(wrong, Err(TokenFault::Claim(ClaimName::Oyez)));
    }
    for bad in ["", "**", "a*b", "a b", "a\u{0}", "ä", "a/b", "../x", "%00"] {
        check(json!({"subscribe": ["ok", bad]}), Err(TokenFault::Claim(ClaimName::OyezSubscribe)));
        check(json!({"publish": ["ok", bad]}), Err(TokenFault::Claim(ClaimName::OyezPublish)));
    }
}

#[test]
fn subject_with_control_characters_is_rejected() {
    let check = |sub: Value, good: bool| {
        let verdict = verify(&hs256(&json!({"exp": NOW + 60, "sub": sub})));
        match verdict {
            Ok(grant) => assert!(good && grant.sub.as_deref() == sub.as_str(), "{sub}"),
            Err(why) => assert!(!good && is_claim(why, ClaimName::Sub), "{sub} {why:?}"),
        }
    };
    for good in ["alice", "алиса", "日本", "a b", "auth0|5f", "a@b.c", &"x".repeat(255)] {
        check(json!(good), true);
    }
    for bad in [
        "",
        "a\u{0}",
        "a\n",
        "a\r\nINFO forged",
        "\u{1b}[31m",
        "\u{7f}",
        "\u{85}",
        "\u{9b}31m",
        "\u{2028}",
        "\u{2029}",
        "\u{202e}ecila",
        "\u{2066}",
        "\u{200f}",
        "\u{feff}",
        &"x".repeat(256),
    ] {
        check(json!(bad), false);
    }
    for wrong in [json!(7), json!(["alice"]), json!({"a": 1}), json!(true)] {
        check(wrong, false);
    }
}

#[test]
fn oversized_token_is_rejected_before_decoding() {
    let long = hs256(&json!({"exp": NOW + 60, "x": "y".repeat(48 << 10)}));
    assert!(long.len() > 64 << 10);
    assert_eq!(verify(&long), Err(TokenFault::TooLong));
    assert_eq!(verify(&"a".repeat(TOKEN_BYTES_MAX + 1)), Err(TokenFault::TooLong));
    assert_eq!(verify(&"a".repeat(TOKEN_BYTES_MAX)), Err(TokenFault::Malformed));
    let padding = "y".repeat(TOKEN_BYTES_MAX * 3 / 4 - 150);
    let fits = hs256(&json!({"exp": NOW + 60, "x": padding}));
    assert!((TOKEN_BYTES_MAX - 150..=TOKEN_BYTES_MAX).contains(&fits.len()), "{}", fits.len());
    assert!(verify(&fits).is_ok());
}

/// Deep nesting overflows a recursive parser, and the header needs no valid signature.
#[test]
fn deeply_nested_token_does_not_overflow_the_stack() {
    let deep = format!("{}{}", "[".repeat(2_500), "]".repeat(2_500));
    let key = EncodingKey::from_secret(SECRET);
    let with = |header: &str, claims: &str| verify(&signed_text(header, claims, &key, Algorithm::HS256));
    let (header, claims) = (r#"{"alg":"HS256"}"#, format!(r#"{{"exp":{}}}"#, NOW + 60));
    // A member that is not needed is skipped, without a call for each level.
    assert!(with(&format!(r#"{{"alg":"HS256","x":{deep}}}"#), &claims).is_ok());
    assert_eq!(with(&format!(r#"{{"alg":"HS256","zip":{deep}}}"#), &claims), Err(TokenFault::Critical));
    assert_eq!(with(&format!(r#"{{"alg":{deep}}}"#), &claims), Err(TokenFault::Header));
    assert_eq!(with(header, &format!(r#"{{"exp":1,"oyez":{deep}}}"#)), Err(TokenFault::Malformed));
    assert_eq!(with(header, &deep), Err(TokenFault::Malformed));
}

#[test]
fn malformed_token_is_rejected() {
    let good = hs256(&json!({"exp": NOW + 60}));
    assert!(verify(&good).is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    for bad in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        good.replace('.', ""),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}.x"),
        format!(" {good}"),
        format!("{good}\n"),
        format!("{good}="),
        format!("{good}\0"),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}..{}", parts[0], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}=.{}", parts[0], parts[1], parts[2]),
    ] {
        assert!(verify(&bad).is_err(), "{bad:?}");
    }
    for claims in ["[]", "1", "\"x\"", "null", "{\"exp\":", "{\"exp\":1}{}", "\u{feff}{}", ""] {
        let key = EncodingKey::from_secret(SECRET);
        let token = signed_text(r#"{"alg":"HS256"}"#, claims, &key, Algorithm::HS256);
        assert_eq!(verify(&token), Err(TokenFault::Malformed), "{claims}");
    }
}

/// The last letters of base64 have unused bits; a token must not have two forms.
#[test]
fn reencoded_token_is_rejected() {
    let good = hs256(&json!({"exp": NOW + 60, "oyez": {"publish": ["a"]}}));
    for at in 0..good.len() {
        for letter in [b'A', b'B', b'_', b'.', b'=', 0xff] {
            let mut other = good.clone().into_bytes();
            if other[at] != letter {
                other[at] = letter;
                assert!(by_secret().verify(&other, NOW).is_err(), "{at}");
            }
        }
        assert!(verify(&good[..at]).is_err(), "cut at {at}");
    }
}

/// No part of a token may reach a log through an error.
#[test]
fn verification_error_does_not_contain_the_token() {
    const CANARY: &str = "canary7f3a";
    let key = EncodingKey::from_secret(SECRET);
    let mut tokens = vec![
        CANARY.to_owned(),
        format!("{CANARY}.{CANARY}.{CANARY}"),
        with_header(&json!({"alg": CANARY})),
        with_header(&json!({"alg": "HS256", "crit": [CANARY]})),
        with_header(&json!({"alg": "RS256", "kid": CANARY})),
        signed_text(r#"{"alg":"HS256"}"#, CANARY, &key, Algorithm::HS256),
        format!("{}{CANARY}", hs256(&json!({}))),
        hs256(&json!({"x": CANARY})),
    ];
    for name in ["exp", "nbf", "aud", "iss", "sub", "oyez"] {
        let mut claims = json!({"exp": NOW + 60});
        claims[name] = json!({CANARY: CANARY, "x": "\u{0}"});
        tokens.push(hs256(&claims));
    }
    for rights in [
        json!({CANARY: 1}),
        json!({"admin": CANARY}),
        json!({"subscribe": [format!("{CANARY} ")]}),
        json!({"publish": CANARY}),
    ] {
        tokens.push(hs256(&json!({"exp": NOW + 60, "oyez": rights})));
    }
    tokens.push(hs256(&json!({"exp": NOW + 60, "aud": CANARY})));
    tokens.push(hs256(&json!({"exp": NOW + 60, "sub": format!("{CANARY}\n")})));
    for token in tokens {
        let why = verify(&token).unwrap_err();
        let text =
            format!("{why} {why:?} {} {:?}", why.as_str(), std::error::Error::source(&why).map(|_| ()));
        assert!(!text.contains("canary"), "{text}");
    }
    let verifier =
        verifier(Keys::from_secret(format!("{CANARY}{CANARY}{CANARY}{CANARY}").as_bytes()).unwrap());
    assert!(!format!("{verifier:?}").contains("canary"));
    let signing = SigningKey::from_secret(format!("{CANARY}{CANARY}{CANARY}{CANARY}").as_bytes()).unwrap();
    assert!(!format!("{signing:?}").contains("canary"));
    assert!(!Keys::from_secret(CANARY.as_bytes()).unwrap_err().to_string().contains("canary"));
}

proptest! {
    #[test]
    fn random_bytes_are_never_a_valid_token(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(by_secret().verify(&bytes, NOW).is_err());
    }

    #[test]
    fn rights_round_trip_through_a_token(
        subscribe in proptest::collection::vec("[a-z.]{1,5}\\*?|\\*", 0..4),
        publish in proptest::collection::vec("[a-z.]{1,5}\\*?|\\*", 0..4),
        name in "[a-z.]{1,6}",
    ) {
        let rights = OyezClaim { subscribe: subscribe.clone(), publish: publish.clone(), ..OyezClaim::default() };
        let claims = NewClaims { exp: NOW + 60, oyez: rights, ..NewClaims::default() };
        let token = SigningKey::from_secret(SECRET).unwrap().sign(&claims, None).unwrap();
        let grant = verify(&token).unwrap();
        // The model: a list is gone through, a pattern is compared letter by letter.
        let means = |pattern: &String| {
            let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            match pattern.split_last() {
                Some(('*', rest)) => name.len() >= rest.len() && rest.iter().zip(&name).all(|(a, b)| a == b),
                _ => pattern == name,
            }
        };
        prop_assert_eq!(grant.may_subscribe(&channel(&name)), subscribe.iter().any(means));
        prop_assert_eq!(grant.may_publish(&channel(&name)), publish.iter().any(means));
    }
}
