//! Key files: what is read, and what is said about the others.

use oyez::access::keys::{BadKey, Keys, SECRET_BYTES_MIN, SigningKey};
use serde_json::{Value, json};

use crate::support::key_files;
use crate::support::tokens::{base64url, pem};

fn refused(keys: Result<Keys, BadKey>) -> BadKey {
    keys.unwrap_err()
}

#[test]
fn a_secret_is_the_files_text_without_its_line_end() {
    let secret = "s".repeat(SECRET_BYTES_MIN);
    for end in ["", "\n", "\r\n", "\n\n"] {
        let token = SigningKey::from_secret(format!("{secret}{end}").as_bytes()).unwrap();
        let made = token.sign(&json!({"exp": 1}), None).unwrap();
        assert_eq!(
            made,
            SigningKey::from_secret(secret.as_bytes()).unwrap().sign(&json!({"exp": 1}), None).unwrap()
        );
    }
    assert_eq!(Keys::from_secret(secret.as_bytes()).unwrap().describe(), "HS256");
    assert_eq!(refused(Keys::from_secret(&secret.as_bytes()[1..])), BadKey::SecretTooShort(31));
    assert_eq!(
        refused(Keys::from_secret(format!("{}\n", &secret[1..]).as_bytes())),
        BadKey::SecretTooShort(31)
    );
    assert_eq!(refused(Keys::from_secret(b"")), BadKey::SecretTooShort(0));
    assert!(BadKey::SecretTooShort(5).to_string().contains("oyez token secret"));
    for text in [key_files::RSA_PUBLIC, key_files::RSA, key_files::ED25519_PUBLIC] {
        assert_eq!(refused(Keys::from_secret(text.as_bytes())), BadKey::SecretIsPem);
        assert_eq!(SigningKey::from_secret(text.as_bytes()).unwrap_err(), BadKey::SecretIsPem);
    }
}

#[test]
fn public_keys_in_pem() {
    let check = |text: &str, algorithms: &str| {
        assert_eq!(Keys::from_pem(text.as_bytes()).unwrap().describe(), algorithms);
    };
    check(key_files::ED25519_PUBLIC, "EdDSA");
    check(key_files::P256_PUBLIC, "ES256");
    check(key_files::RSA_PUBLIC, "RS256");
    check(&format!("a comment\n{}\n{}", key_files::RSA_PUBLIC, key_files::P256_PUBLIC), "RS256 ES256");
    check(&key_files::RSA_PUBLIC.replace('\n', "\r\n"), "RS256");
    let check = |text: &str, why: BadKey, says: &str| {
        assert_eq!(refused(Keys::from_pem(text.as_bytes())), why, "{text}");
        assert!(why.to_string().contains(says), "{why}");
    };
    check(key_files::ED25519, BadKey::PrivateKey, "-pubout");
    check(key_files::P256_SEC1, BadKey::PrivateKey, "-pubout");
    check(key_files::RSA_PKCS1, BadKey::PrivateKey, "-pubout");
    check(key_files::P384_PUBLIC, BadKey::UnknownKind, "Ed25519, P-256 or RSA");
    check(key_files::RSA_1024_PUBLIC, BadKey::RsaBits(1_024), "2048");
    check("", BadKey::NoPublicKey, "BEGIN PUBLIC KEY");
    check("ssh-ed25519 AAAA", BadKey::NoPublicKey, "BEGIN PUBLIC KEY");
    let (ed, too_many) = (key_files::ED25519_PUBLIC, key_files::ED25519_PUBLIC.repeat(17));
    assert!(Keys::from_pem(ed.repeat(16).as_bytes()).is_ok());
    check(&too_many, BadKey::TooMany, "16");
    check(&String::from_utf8(pem("CERTIFICATE", b"x")).unwrap(), BadKey::Certificate, "openssl x509");
    check(&ed.replace("-----END PUBLIC KEY-----", ""), BadKey::NoPem, "PEM");
}

/// Whatever is done to the bytes of a key, it is read, or refused, and nothing else.
#[test]
fn damaged_keys() {
    use rustls::pki_types::SubjectPublicKeyInfoDer;
    use rustls::pki_types::pem::PemObject;
    for text in [key_files::ED25519_PUBLIC, key_files::P256_PUBLIC, key_files::RSA_PUBLIC] {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).unwrap().to_vec();
        assert!(Keys::from_pem(&pem("PUBLIC KEY", &der)).is_ok());
        for cut in 0..der.len() {
            assert!(Keys::from_pem(&pem("PUBLIC KEY", &der[..cut])).is_err(), "cut at {cut}");
        }
        assert!(Keys::from_pem(&pem("PUBLIC KEY", &[&der[..], &[0]].concat())).is_err());
        for at in 0..der.len().min(40) {
            for byte in 0..=255 {
                let mut other = der.clone();
                other[at] = byte;
                let _ = Keys::from_pem(&pem("PUBLIC KEY", &other));
            }
        }
    }
}

#[test]
fn private_keys_in_pem() {
    for text in [key_files::ED25519, key_files::P256, key_files::RSA, key_files::RSA_PKCS1] {
        assert!(SigningKey::from_pem(text.as_bytes()).is_ok(), "{text}");
    }
    let check = |text: &str, why: BadKey| {
        assert_eq!(SigningKey::from_pem(text.as_bytes()).unwrap_err(), why);
    };
    check(key_files::P256_SEC1, BadKey::Sec1);
    check(key_files::ED25519_PUBLIC, BadKey::NoPrivateKey);
    check("", BadKey::NoPrivateKey);
    check(&String::from_utf8(pem("PRIVATE KEY", b"nonsense")).unwrap(), BadKey::UnknownKind);
}

#[test]
fn key_sets() {
    let check = |keys: Value, found: Result<&str, BadKey>| {
        let set = json!({"keys": keys}).to_string();
        assert_eq!(
            Keys::from_jwks(set.as_bytes()).map(|keys| keys.describe()),
            found.map(str::to_owned),
            "{set}"
        );
    };
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": base64url(&[7; 32])});
    let ec = json!({"kty": "EC", "crv": "P-256", "x": base64url(&[1; 32]), "y": base64url(&[2; 32])});
    let rsa = json!({"kty": "RSA", "n": base64url(&[0xff; 256]), "e": "AQAB", "use": "sig", "alg": "RS256"});
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    check(json!([ed, ec, rsa]), Ok("EdDSA(k1) ES256 RS256"));
    check(json!([with(&rsa, "use", json!("enc")), ed]), Ok("EdDSA(k1)"));
    check(json!([with(&rsa, "alg", json!("RS512")), ed]), Ok("EdDSA(k1)"));
    check(json!([with(&rsa, "alg", json!("RSA-OAEP")), ed]), Ok("EdDSA(k1)"));
    check(json!([with(&rsa, "alg", json!("some-new-one")), ed]), Ok("EdDSA(k1)"));
    check(json!([with(&ec, "crv", json!("P-384")), ed]), Ok("EdDSA(k1)"));
    check(json!([with(&ec, "crv", json!("secp256k1")), ed]), Ok("EdDSA(k1)"));
    check(json!([{"kty": "AKP", "pub": "x"}, ed]), Ok("EdDSA(k1)"));
    check(json!([with(&ed, "kid", json!("\u{1b}[31m"))]), Ok("EdDSA(\\u{1b}[31m)"));
    check(json!([]), Err(BadKey::NoUsableKey));
    check(json!([with(&rsa, "use", json!("enc"))]), Err(BadKey::NoUsableKey));
    check(json!([{"kty": "oct", "k": base64url(&[7; 32])}]), Err(BadKey::SecretInJwks));
    check(json!([with(&rsa, "n", json!(base64url(&[0xff; 255])))]), Err(BadKey::RsaBits(2_040)));
    check(json!([with(&rsa, "n", json!("!"))]), Err(BadKey::NoJwks));
    check(json!([with(&ed, "x", json!(base64url(&[7; 31])))]), Err(BadKey::NoJwks));
    check(json!([with(&ec, "y", json!(base64url(&[7; 33])))]), Err(BadKey::NoJwks));
    check(json!(vec![ed.clone(); 17]), Err(BadKey::TooMany));
    for text in ["", "{}", "[]", "{\"keys\":{}}", "{\"keys\":[1]}", "nonsense"] {
        assert_eq!(refused(Keys::from_jwks(text.as_bytes())), BadKey::NoJwks, "{text}");
    }
}
