//! Recognizes key and certificate files in formats that are not supported: UTF-16, DER, PKCS #12, encrypted keys.
//!
//! A PEM parser skips unknown lines. A file that begins with a byte order mark would lose its first block
//! silently, and an encrypted or binary file looks empty. So the error names the format, and the command that converts
//! the file.

use std::fmt;

use rustls_pki_types::alg_id;

/// A file format that is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsupportedFormat {
    /// UTF-8 with a byte order mark, as editors on Windows write it.
    ByteOrderMark,
    /// UTF-16, with a byte order mark.
    Utf16,
    /// DER, the binary encoding that PEM has in Base64.
    Der,
    /// PKCS #12, key and certificates in one binary file: `.p12`, `.pfx`.
    Pkcs12,
    /// A private key with a passphrase.
    Encrypted,
    /// A private key in the format of `ssh-keygen`.
    OpenSsh,
}

impl UnsupportedFormat {
    /// Recognizes the format of a file that should be PEM.
    pub fn of(file: &[u8]) -> Option<UnsupportedFormat> {
        let has = |words: &[u8]| memchr::memmem::find(file, words).is_some();
        if let Some(form) = UnsupportedFormat::of_text(file) {
            return Some(form);
        }
        match file {
            // RFC 7292 4: a sequence that begins with its version, 3.
            [0x30, 0x82, _, _, 2, 1, 3, ..] | [0x30, 0x80, 2, 1, 3, ..] => Some(UnsupportedFormat::Pkcs12),
            [0x30, length @ (0x20..=0x7f), ..] if file.len() == 2 + usize::from(*length) => {
                Some(UnsupportedFormat::Der)
            }
            [0x30, 0x81 | 0x82, ..] => Some(UnsupportedFormat::Der),
            _ if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"\nProc-Type: 4,ENCRYPTED") => {
                Some(UnsupportedFormat::Encrypted)
            }
            _ if has(b"-----BEGIN OPENSSH PRIVATE KEY-----") => Some(UnsupportedFormat::OpenSsh),
            _ => None,
        }
    }

    /// Recognizes the format of a file that should be text.
    pub fn of_text(file: &[u8]) -> Option<UnsupportedFormat> {
        match file {
            [0xef, 0xbb, 0xbf, ..] => Some(UnsupportedFormat::ByteOrderMark),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(UnsupportedFormat::Utf16),
            _ => None,
        }
    }
}

impl fmt::Display for UnsupportedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UnsupportedFormat::ByteOrderMark => {
                "it begins with a byte order mark, which hides its first line; remove it: `sed -i '1s/^\\xef\\xbb\\xbf//' FILE`"
            }
            UnsupportedFormat::Utf16 => "it is UTF-16; convert it to ASCII: `iconv -f UTF-16 -t ASCII FILE > NEW`",
            UnsupportedFormat::Der => {
                "it is binary (DER) and not PEM: `openssl x509 -inform der -in FILE -out NEW` for a certificate, `openssl pkey -inform der -in FILE -out NEW` for a key"
            }
            UnsupportedFormat::Pkcs12 => {
                "it is PKCS#12 and not PEM: `openssl pkcs12 -in FILE -nokeys -out CERT` and `openssl pkcs12 -in FILE -nocerts -nodes -out KEY`"
            }
            UnsupportedFormat::Encrypted => {
                "the private key is encrypted, and the server cannot ask for its passphrase: `openssl pkey -in FILE -out NEW` removes it"
            }
            UnsupportedFormat::OpenSsh => {
                "it is in the format of OpenSSH: `ssh-keygen -p -m PKCS8 -f FILE` converts it in place"
            }
        })
    }
}

/// Describes a private key in DER that rustls does not support, and names the supported ones.
pub fn describe_key(der: &[u8]) -> String {
    const NEW: &str =
        "create one with `openssl ecparam -name prime256v1 -genkey -noout`, and have it certified";
    match key_kind(der) {
        Some(KeyKind::Rsa(bits)) if !(2_048..=8_192).contains(&bits) => {
            format!("an RSA key of {bits} bits, and 2048 to 8192 are supported: {NEW}")
        }
        Some(KeyKind::Rsa(_)) => "an RSA key that cannot be used".to_owned(),
        Some(KeyKind::Other(oid)) => {
            format!(
                "a key of type {}, which is not supported; P-256, P-384, Ed25519 and RSA are: {NEW}",
                name(&oid)
            )
        }
        None => "not a private key, or damaged".to_owned(),
    }
}

enum KeyKind {
    Rsa(usize),
    /// A curve, or an algorithm that has only one: its object identifier.
    Other(Vec<u8>),
}

fn key_kind(der: &[u8]) -> Option<KeyKind> {
    let (content, _) = element(der, SEQUENCE)?;
    let (version, rest) = element(content, INTEGER)?;
    if let Some((_, rest)) = element(rest, OCTET_STRING) {
        // RFC 5915 3: version 1, the key, and its curve.
        let (parameters, _) = element(rest, 0xa0)?;
        return Some(KeyKind::Other(element(parameters, OID)?.0.to_vec()));
    }
    if version == [0]
        && let Some((modulus, _)) = element(rest, INTEGER)
    {
        // RFC 8017 A.1.2.
        return Some(KeyKind::Rsa(bits(modulus)));
    }
    // RFC 5958 2: version, algorithm, key.
    let (algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _) = element(rest, OCTET_STRING)?;
    if algorithm == alg_id::RSA_ENCRYPTION.as_ref() {
        return key_kind(key);
    }
    let (oid, parameters) = element(algorithm, OID)?;
    Some(KeyKind::Other(element(parameters, OID).map_or(oid, |(curve, _)| curve).to_vec()))
}

/// The name that openssl has for an object identifier.
fn name(oid: &[u8]) -> String {
    const NAMES: [(&[u8], &str); 9] = [
        (&[0x2b, 0x81, 0x04, 0x00, 0x23], "P-521 (secp521r1)"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x0a], "secp256k1"),
        (&[0x2b, 0x81, 0x04, 0x00, 0x21], "secp224r1"),
        (&[0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, 0x07], "brainpoolP256r1"),
        (&[0x2b, 0x65, 0x71], "Ed448"),
        (&[0x2b, 0x65, 0x6e], "X25519, which cannot sign"),
        (&[0x2b, 0x65, 0x6f], "X448, which cannot sign"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01], "DSA"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a], "RSA for PSS only"),
    ];
    let known = NAMES.iter().find(|(bytes, _)| *bytes == oid);
    known.map_or_else(|| format!("with the object identifier {oid:02x?}"), |(_, name)| (*name).to_owned())
}

/// The length of a number in bits.
pub(super) fn bits(big_endian: &[u8]) -> usize {
    let start = big_endian.iter().position(|byte| *byte != 0).unwrap_or(big_endian.len());
    let digits = &big_endian[start..];
    digits.first().map_or(0, |first| digits.len() * 8 - first.leading_zeros() as usize)
}

pub(super) const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

/// Splits the first element off DER (X.690 8.1). Returns its content and the remaining bytes.
pub(super) fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (length, rest) = match rest {
        [short @ 0..=0x7f, rest @ ..] => (usize::from(*short), rest),
        [0x81, length @ 0x80..=0xff, rest @ ..] => (usize::from(*length), rest),
        [0x82, high @ 1..=0xff, low, rest @ ..] => (usize::from(*high) << 8 | usize::from(*low), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}
