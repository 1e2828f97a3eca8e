//! Tokens and keys written by hand, including forms that no library would create.

/// Base64 with the alphabet of URLs and no padding (RFC 4648 5).
pub fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for letter in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(group >> (18 - 6 * letter)) as usize & 63]));
        }
    }
    out
}

/// Header and claims, without a signature.
pub fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()))
}

/// DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let mut text = base64url(der).replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

/// The PEM file of a public key.
pub fn public_pem(algorithm: &str, key: &[u8]) -> Vec<u8> {
    // SubjectPublicKeyInfo up to the key: RFC 8410 4, RFC 5480 2.
    let prefix: &[u8] = match algorithm {
        "EdDSA" => &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00],
        _ => &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ],
    };
    pem("PUBLIC KEY", &[prefix, key].concat())
}
