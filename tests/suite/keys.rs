//! Key files: which formats are read, and which error names the others. Keys made by openssl, damaged at random
//! bytes, converted and combined.

use oyez::access::keys::{BadKey, Keys, SECRET_BYTES_MIN, SigningKey};
use serde_json::{Value, json};

use crate::support::key_files;
use crate::support::tokens::{base64url, pem};

fn rejected<T: std::fmt::Debug>(keys: Result<T, BadKey>) -> BadKey {
    keys.unwrap_err()
}

#[test]
fn secret_file_is_read_without_its_line_end() {
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
    assert_eq!(rejected(Keys::from_secret(&secret.as_bytes()[1..])), BadKey::SecretTooShort(31));
    assert_eq!(
        rejected(Keys::from_secret(format!("{}\n", &secret[1..]).as_bytes())),
        BadKey::SecretTooShort(31)
    );
    assert_eq!(rejected(Keys::from_secret(b"")), BadKey::SecretTooShort(0));
    assert!(BadKey::SecretTooShort(5).to_string().contains("oyez token secret"));
    for text in [key_files::RSA_PUBLIC, key_files::RSA, key_files::ED25519_PUBLIC] {
        assert_eq!(rejected(Keys::from_secret(text.as_bytes())), BadKey::SecretIsPem);
        assert_eq!(SigningKey::from_secret(text.as_bytes()).unwrap_err(), BadKey::SecretIsPem);
    }
}

#[test]
fn public_key_pem_is_read() {
    let check = |text: &str, algorithms: &str| {
        assert_eq!(Keys::from_pem(text.as_bytes()).unwrap().describe(), algorithms);
    };
    check(key_files::ED25519_PUBLIC, "EdDSA");
    check(key_files::P256_PUBLIC, "ES256");
    check(key_files::RSA_PUBLIC, "RS256");
    check(&format!("a comment\n{}\n{}", key_files::RSA_PUBLIC, key_files::P256_PUBLIC), "RS256 ES256");
    check(&key_files::RSA_PUBLIC.replace('\n', "\r\n"), "RS256");
    let check = |text: &str, why: BadKey, says: &str| {
        assert_eq!(rejected(Keys::from_pem(text.as_bytes())), why, "{text}");
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

/// A damaged key is read or rejected; parsing never panics.
#[test]
fn damaged_key_is_read_or_rejected() {
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
fn file_in_another_format_is_rejected_with_its_format() {
    let marked = |text: &[u8]| [b"\xef\xbb\xbf", text].concat();
    let check = |why: BadKey, says: &str| assert!(why.to_string().contains(says), "{why}");
    let secret = [b'x'; 40];
    check(rejected(Keys::from_secret(&marked(&secret))), "byte order mark");
    check(rejected(Keys::from_pem(&marked(key_files::ED25519_PUBLIC.as_bytes()))), "byte order mark");
    check(rejected(Keys::from_jwks(&marked(b"{\"keys\":[]}"))), "byte order mark");
    check(rejected(SigningKey::from_pem(&marked(key_files::ED25519.as_bytes()))), "byte order mark");
    check(rejected(SigningKey::from_pem(&pem("ENCRYPTED PRIVATE KEY", b"x"))), "encrypted");
    check(rejected(SigningKey::from_pem(&pem("OPENSSH PRIVATE KEY", b"x"))), "ssh-keygen");
    check(rejected(Keys::from_pem(&[0x30, 0x82, 1, 0, 2])), "(DER)");
    // Bytes that happen to begin like a mark are a secret like any other.
    assert!(Keys::from_secret(&[&b"\xef\xbb\xbf"[..], &[0xff; 40]].concat()).is_ok());
}

#[test]
fn private_key_pem_is_read() {
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
fn key_set_skips_unusable_keys() {
    let ed = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": base64url(&[7; 32])});
    let ec = json!({"kty": "EC", "crv": "P-256", "x": base64url(&[1; 32]), "y": base64url(&[2; 32])});
    let rsa = json!({"kty": "RSA", "n": base64url(&[0xff; 256]), "e": "AQAB", "use": "sig", "alg": "RS256"});
    let with = |key: &Value, name: &str, value: Value| {
        let mut key = key.clone();
        key[name] = value;
        key
    };
    let used = |keys: Value| {
        let set = json!({"keys": keys}).to_string();
        let (keys, skipped) = Keys::from_jwks(set.as_bytes()).unwrap();
        assert!(skipped.is_empty(), "{skipped:?}");
        keys.describe()
    };
    assert_eq!(used(json!([ed, ec, rsa])), "EdDSA(k1) ES256 RS256");
    // RFC 9864 2.2, and RFC 8037 3.1 before it.
    for alg in ["Ed25519", "EdDSA"] {
        assert_eq!(used(json!([with(&ed, "alg", json!(alg))])), "EdDSA(k1)");
    }
    assert_eq!(used(json!([with(&ed, "key_ops", json!(["verify"]))])), "EdDSA(k1)");
    assert_eq!(used(json!([with(&ed, "x5c", json!(7))])), "EdDSA(k1)", "unused fields are not checked");
    assert_eq!(used(json!([with(&ed, "kid", json!("\u{1b}[31m"))])), "EdDSA(\\u{1b}[31m)");

    // An unusable key is named, and the others are used; a file with that key alone is rejected with the same text.
    let skips = |odd: Value, says: &str, is_notable: bool| {
        let set = json!({"keys": [odd, ed]}).to_string();
        let (keys, skipped) = Keys::from_jwks(set.as_bytes()).unwrap();
        assert_eq!(keys.describe(), "EdDSA(k1)");
        let texts: Vec<String> = skipped.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [format!("keys[0]{says}")]);
        assert_eq!(skipped[0].is_notable(), is_notable, "{texts:?}");
        let alone = json!({"keys": [odd]}).to_string();
        let why = rejected(Keys::from_jwks(alone.as_bytes()));
        assert_eq!(why.to_string(), format!("no key in the JWKS can be used; keys[0]{says}"));
    };
    let set_in_an_array = json!([[ed]]).to_string();
    assert_eq!(rejected(Keys::from_jwks(set_in_an_array.as_bytes())), BadKey::NoJwks);
    let malformed =
        ": a member is missing, of a wrong type or length, or not base64url (RFC 7518 6, RFC 8037 2)";
    skips(with(&rsa, "use", json!("enc")), ": not for signatures", false);
    skips(with(&rsa, "key_ops", json!(["encrypt"])), ": not for signatures", false);
    for alg in ["RS512", "RSA-OAEP", "some-new-one"] {
        let says = format!(": algorithm {alg} is not supported; EdDSA, ES256 and RS256 are");
        skips(with(&rsa, "alg", json!(alg)), &says, true);
    }
    for curve in ["P-384", "secp256k1"] {
        let says = format!(": curve {curve} is not supported; Ed25519 (OKP) and P-256 (EC) are");
        skips(with(&ec, "crv", json!(curve)), &says, true);
    }
    skips(
        json!({"kty": "AKP", "kid": "pq", "pub": "x"}),
        " (kid pq): key type AKP is not supported; OKP, EC and RSA are",
        true,
    );
    skips(with(&ed, "kid", json!(7)), " (kid 7): its kid is not a string (RFC 7517 4.5)", true);
    skips(
        json!({"kty": "oct", "k": base64url(&[7; 32])}),
        ": a shared secret (\"oct\") in a file of public keys; it belongs in --jwt-secret-file",
        true,
    );
    skips(
        with(&rsa, "n", json!(base64url(&[0xff; 128]))),
        ": an RSA key of 1024 bits, and 2048 to 8192 are supported",
        true,
    );
    skips(with(&rsa, "n", json!("!")), malformed, true);
    skips(with(&rsa, "n", json!(base64url(&[0xff; 256]) + "==")), malformed, true);
    skips(with(&ec, "y", json!(base64url(&[7; 33]))), malformed, true);
    skips(with(&ed, "x", json!(base64url(&[7; 31]))), &format!(" (kid k1){malformed}"), true);
    skips(json!({"kty": "RSA", "n": base64url(&[0xff; 256])}), malformed, true);
    skips(json!(1), malformed, true);

    let set = json!({"keys": vec![ed; 17]}).to_string();
    assert_eq!(rejected(Keys::from_jwks(set.as_bytes())), BadKey::TooMany);
    assert_eq!(rejected(Keys::from_jwks(b"{\"keys\":[]}")), BadKey::EmptyJwks);
    for text in ["", "{}", "[]", "{\"keys\":{}}", "nonsense"] {
        assert_eq!(rejected(Keys::from_jwks(text.as_bytes())), BadKey::NoJwks, "{text}");
    }
}
