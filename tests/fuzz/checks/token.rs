//! Tokens and the files of their keys: no token without a valid signature is accepted; an accepted one has the claims
//! that another JSON parser reads, and they satisfy the rules; a token that is issued is accepted with its rights.

use std::num::NonZeroU32;

use data_encoding::BASE64URL_NOPAD;
use oyez::access::grant::Grant;
use oyez::access::keys::{Keys, SigningKey};
use oyez::access::printable::{SUB_BYTES_MAX, is_name, is_trick};
use oyez::access::token::{
    INFO_BYTES_MAX, LEEWAY_SECONDS, NewClaims, OyezClaim, TOKEN_BYTES_MAX, Verifier, show_claims,
};
use oyez::fault::TokenFault;
use ring::hmac;
use serde_json::{Value, json};

use super::Input;

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The first byte selects what the rest is.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 5 {
        0 => check_unsigned(input.0),
        1 => check_signed(br#"{"alg":"HS256","typ":"JWT"}"#, input.0),
        2 => {
            let header_bytes = usize::from(input.u8());
            let header = input.bytes(header_bytes);
            check_signed(header, input.0);
        }
        3 => check_key_files(input.0),
        _ => check_issued(input),
    }
}

fn verifier() -> Verifier {
    let keys = Keys::from_secret(SECRET).expect("a secret");
    Verifier::new(keys, Vec::new(), Vec::new())
}

fn check_unsigned(token: &[u8]) {
    let fault = verifier().verify(token, NOW).expect_err("a token without a signature");
    assert_eq!(token.len() > TOKEN_BYTES_MAX, fault == TokenFault::TooLong, "{fault:?}");
    if let Some(shown) = show_claims(token) {
        assert!(!shown.chars().any(|letter| is_trick(letter) && letter != '\n'), "{shown:?}");
    }
}

/// A token with these bytes as header and claims, and a valid signature.
fn check_signed(header: &[u8], claims: &[u8]) {
    let message = format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), message.as_bytes());
    let token = format!("{message}.{}", BASE64URL_NOPAD.encode(signature.as_ref()));
    let result = verifier().verify(token.as_bytes(), NOW);
    if let Ok(grant) = &result {
        check_header(header);
        check_claims(claims, grant);
    }
    for at in [0, message.len() / 2, message.len() - 1] {
        let mut forged = token.clone().into_bytes();
        forged[at] ^= 1;
        assert!(verifier().verify(&forged, NOW).is_err(), "byte {at} is changed");
    }
}

fn check_header(header: &[u8]) {
    let Ok(header) = serde_json::from_slice::<Value>(header) else { return };
    assert_eq!(header["alg"], "HS256");
    for name in ["crit", "enc", "zip"] {
        assert!(header[name].is_null(), "{name}");
    }
}

fn check_claims(claims: &[u8], grant: &Grant) {
    let Ok(claims) = serde_json::from_slice::<Value>(claims) else { return };
    let number = |name: &str| claims[name].as_f64();
    let exp = number("exp").expect("an expiry");
    assert_eq!(grant.expires_at, Some(exp as u64));
    assert!(exp as u64 + LEEWAY_SECONDS > NOW);
    assert!(number("nbf").is_none_or(|nbf| nbf as u64 <= NOW + LEEWAY_SECONDS));
    assert!(claims["aud"].is_null(), "a token with an audience is for another server");
    assert_eq!(grant.sub.as_deref(), claims["sub"].as_str());
    assert!(grant.sub.as_deref().is_none_or(is_name));
    assert_eq!(grant.user.is_some(), grant.sub.is_some());
    // Both are sent with each message of the bearer; at worst each letter of the subject is escaped.
    let user_bytes = grant.user.as_ref().map_or(0, |user| user.as_json().len());
    assert!(user_bytes <= INFO_BYTES_MAX + 2 * SUB_BYTES_MAX + 64, "{user_bytes} bytes");
    let rights = &claims["oyez"];
    let patterns = |name: &str| match &rights[name] {
        Value::Array(patterns) => {
            patterns.iter().map(|one| one.as_str().expect("a pattern").to_owned()).collect()
        }
        _ => Vec::new(),
    };
    assert_eq!(grant.subscribe.iter().collect::<Vec<_>>(), patterns("subscribe"));
    assert_eq!(grant.publish.iter().collect::<Vec<_>>(), patterns("publish"));
    assert_eq!(grant.admin, rights["admin"] == json!(true));
    let limit = |limit: Option<NonZeroU32>| limit.map(|limit| u64::from(limit.get()));
    assert_eq!(limit(grant.messages_per_second), rights["messages_per_second"].as_u64());
    assert_eq!(limit(grant.bytes_per_second), rights["bytes_per_second"].as_u64());
}

fn check_key_files(file: &[u8]) {
    if let Ok((keys, skipped)) = Keys::from_jwks(file) {
        let set: Value = serde_json::from_slice(file).expect("JSON");
        let count = set["keys"].as_array().expect("keys").len();
        let described = keys.describe();
        assert!(skipped.len() < count, "{count}");
        assert!(!described.chars().any(char::is_control), "{described:?}");
        assert!(skipped.iter().all(|key| !key.to_string().chars().any(char::is_control)));
        let verifier = Verifier::new(keys, Vec::new(), Vec::new());
        assert!(verifier.verify(b"e30.e30.AAAA", NOW).is_err());
    }
    let _ = Keys::from_pem(file).map(|keys| keys.describe());
    let _ = SigningKey::from_pem(file);
    let is_secret = Keys::from_secret(file).is_ok();
    assert_eq!(SigningKey::from_secret(file).is_ok(), is_secret);
}

fn check_issued(mut input: Input<'_>) {
    let list = |input: &mut Input<'_>| -> Vec<String> {
        let names = ["a", "room.*", "*", "x-1:2_3", "b.c"];
        (0..input.u8() % 5).map(|_| names[usize::from(input.u8()) % names.len()].to_owned()).collect()
    };
    let (subscribe, publish) = (list(&mut input), list(&mut input));
    let (flags, text) = (input.u8(), input.text());
    let limit = |number: u32| NonZeroU32::new(number).filter(|_| flags & 1 == 1);
    let rights = OyezClaim {
        subscribe,
        publish,
        admin: flags & 2 == 2,
        messages_per_second: limit(input.u32()),
        bytes_per_second: limit(input.u32()),
    };
    let sub = Some(text).filter(|sub| is_name(sub));
    let exp = NOW + 1 + u64::from(input.u32());
    let claims = NewClaims { sub, exp, oyez: rights, ..NewClaims::default() };
    let token = SigningKey::from_secret(SECRET).expect("a secret").sign(&claims, None).expect("a token");
    let grant = verifier().verify(token.as_bytes(), NOW).expect("a token that was just issued");
    assert_eq!(grant.sub.as_deref(), claims.sub.as_deref());
    assert_eq!(grant.subscribe.iter().collect::<Vec<_>>(), claims.oyez.subscribe);
    assert_eq!(grant.publish.iter().collect::<Vec<_>>(), claims.oyez.publish);
    assert_eq!((grant.admin, grant.expires_at), (claims.oyez.admin, Some(exp)));
    assert_eq!(grant.messages_per_second, claims.oyez.messages_per_second);
    assert!(verifier().verify(token.as_bytes(), exp + LEEWAY_SECONDS).is_err(), "it has expired");
}
