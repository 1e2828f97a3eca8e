//! Loads the server's certificate and key from their files into the configuration that all TLS connections share.
//!
//! Versions and cipher suites are not configurable: TLS 1.2 and 1.3 with forward secrecy and authenticated encryption.
//! Nothing older is compiled in.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, InconsistentKeys, RootCertStore, ServerConfig};

use crate::access::file_format::{UnsupportedFormat, describe_key};
use crate::config;
use crate::plural::plural;

/// Tickets for each handshake of TLS 1.3. A client uses each once, and gets another with each connection;
/// more than one is for browsers that open several at a time to load a page.
const TICKETS: usize = 1;

/// How long before the expiry of a certificate a warning is logged. Automatic renewal happens about 30 days before.
const NOTICE_SECONDS: u64 = 14 * DAY_SECONDS;
const DAY_SECONDS: u64 = 24 * 60 * 60;

/// The source of the state for session resumption.
pub(super) enum Resumption<'a> {
    /// New state.
    New(&'a config::TlsConfig),
    /// The state of the last configuration: tickets issued before a reload stay valid.
    Keep(&'a ServerConfig),
}

/// A certificate and its key, ready for connections.
pub(super) struct LoadedCertificate {
    /// The configuration of connections.
    pub(super) config: ServerConfig,
    /// The end of the certificate's validity, in seconds since 1970; `None` if it cannot be parsed.
    pub(super) expires_at: Option<u64>,
}

/// Reads both files and checks that they belong together. `now` is the time since 1970.
pub(super) fn load(
    files: &config::TlsFiles,
    resumption: Resumption<'_>,
    now: Duration,
) -> Result<LoadedCertificate, String> {
    let now = UnixTime::since_unix_epoch(now);
    let config::TlsFiles { certificate, key } = files;
    let chain = certificates(certificate).map_err(|why| file_error("--tls-cert", certificate, why))?;
    let secret = private_key(key).map_err(|why| file_error("--tls-key", key, why))?;
    let signing = ring::default_provider().key_provider.load_private_key(secret.clone_key());
    let signing = signing.map_err(|_| file_error("--tls-key", key, describe_key(secret.secret_der())))?;
    let place = |certificate: &CertificateDer<'_>| {
        CertifiedKey::new(vec![certificate.clone().into_owned()], signing.clone()).keys_match().is_ok()
    };
    if let Some(number) = chain.iter().position(place).filter(|number| *number > 0) {
        let why = format!(
            "wrong order: the certificate of the key in --tls-key is number {} of {}; it must be first, followed by each issuer in turn",
            number + 1,
            chain.len()
        );
        return Err(file_error("--tls-cert", certificate, why));
    }
    if let Some(why) = expiry(&chain[0], now) {
        warn!("{}", file_error("--tls-cert", certificate, why));
    }
    let is_ca = is_ca_certificate(&chain[0], now);
    let expires_at = not_after(&chain[0]);
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| pair_error(files, is_ca, error))?;
    if is_ca {
        let why = "it is a certificate authority's (CA:TRUE), which many clients reject for a server; `openssl req -x509` \
                   creates a server certificate with `-addext basicConstraints=critical,CA:FALSE`";
        warn!("{}", file_error("--tls-cert", certificate, why));
    }
    Ok(LoadedCertificate { config: with_sessions(config, resumption)?, expires_at })
}

/// Adds the settings of the handshake and of session resumption to a configuration.
fn with_sessions(mut config: ServerConfig, resumption: Resumption<'_>) -> Result<ServerConfig, String> {
    // RFC 6455 upgrades HTTP/1.1. The handshake with a client that offers only HTTP/2 fails with an alert.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = TICKETS;
    match resumption {
        Resumption::New(limits) => {
            config.ticketer = ring::Ticketer::new().map_err(|error| error.to_string())?;
            // Stored sessions are for TLS 1.2 clients without tickets; all other clients store their session
            // themselves.
            config.session_storage = match limits.sessions_max {
                0 => Arc::new(NoServerSessionStorage {}),
                max => ServerSessionMemoryCache::new(max),
            };
        }
        Resumption::Keep(last) => {
            config.ticketer = last.ticketer.clone();
            config.session_storage = last.session_storage.clone();
        }
    }
    Ok(config)
}

/// Why a certificate and a key cannot be used together.
fn pair_error(files: &config::TlsFiles, is_ca: bool, error: Error) -> String {
    let config::TlsFiles { certificate, key } = files;
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            let which = if is_ca { " (this is a certificate authority's certificate)" } else { "" };
            let pair = file_error("--tls-cert", certificate, "it does not match the key in --tls-key");
            format!("{pair} {}{which}", key.display())
        }
        Error::InvalidCertificate(_) => file_error("--tls-cert", certificate, error),
        _ => file_error("--tls-key", key, error),
    }
}

fn file_error(flag: &str, path: &Path, why: impl Display) -> String {
    format!("{flag} {}: {why}", path.display())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file).collect();
    match found {
        Ok(chain) if chain.is_empty() => {
            Err("no certificate found: expected -----BEGIN CERTIFICATE----- and -----END CERTIFICATE-----"
                .to_owned())
        }
        Ok(chain) => Ok(chain),
        Err(error) => Err(pem_error(&error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            "no private key found: expected -----BEGIN PRIVATE KEY----- and -----END PRIVATE KEY-----"
                .to_owned()
        }
        error => pem_error(&error),
    })
}

/// Maximum size of a file; a certificate chain takes about a hundredth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match UnsupportedFormat::of(&bytes) {
        Some(form) => Err(form.to_string()),
        None => Ok(bytes),
    }
}

/// Describes the error without quoting the file, as rustls would: keys must not reach a log.
fn pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "no PEM section found".to_owned(),
        _ => "invalid or truncated PEM".to_owned(),
    }
}

/// Describes a certificate that is expired, not yet valid, or about to expire.
fn expiry(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<String> {
    let days = |seconds: u64| plural(seconds.div_ceil(DAY_SECONDS), "day");
    let soon = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + NOTICE_SECONDS));
    match (validity(certificate, now), validity(certificate, soon)) {
        (Some(CertificateError::ExpiredContext { not_after, .. }), _) => {
            Some(format!("it expired {} ago", days(now.as_secs().saturating_sub(not_after.as_secs()))))
        }
        (Some(CertificateError::NotValidYetContext { not_before, .. }), _) => {
            let wait = days(not_before.as_secs().saturating_sub(now.as_secs()));
            Some(format!("it is not valid yet, for {wait}"))
        }
        (_, Some(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(format!("it expires in {}", days(not_after.as_secs().saturating_sub(now.as_secs()))))
        }
        _ => None,
    }
}

/// Returns true if clients reject it, even while it is valid, because it is the certificate of an authority and not of
/// a server (RFC 5280 4.2.1.9).
fn is_ca_certificate(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let day = match validity(certificate, now) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => not_after,
        Some(CertificateError::NotValidYetContext { not_before, .. }) => not_before,
        _ => now,
    };
    // webpki's name for this error, which rustls wraps.
    matches!(validity(certificate, day), Some(CertificateError::Other(why)) if why.to_string().contains("CaUsedAsEndEntity"))
}

/// The end of the validity: the date in the error of a verification in the year 9999, the last that a certificate can
/// name (RFC 5280 4.1.2.5).
fn not_after(certificate: &CertificateDer<'_>) -> Option<u64> {
    let last = UnixTime::since_unix_epoch(Duration::from_secs(253_402_300_799));
    match validity(certificate, last) {
        Some(CertificateError::ExpiredContext { not_after, .. }) => Some(not_after.as_secs()),
        _ => None,
    }
}

/// The first error of a verification against no trust anchors: the dates are checked first.
fn validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<CertificateError> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], now, algorithms) {
        Err(Error::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}
