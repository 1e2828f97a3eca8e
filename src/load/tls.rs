//! TLS to a server: whom to trust, one configuration that all connections share (and with it
//! tickets, so that later handshakes are resumed as a browser's are), and what a failure is called.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    RootCertStore, SignatureScheme,
};
use serde::{Deserialize, Serialize};

use crate::access::file_form::FileForm;

/// Plaintext that a session holds before it has to be sent: four records.
const SESSION_BYTES_MAX: usize = 64 << 10;

/// Which certificates are good.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// Those that browsers trust.
    #[default]
    Public,
    /// Those, and the ones in this PEM file.
    And(PathBuf),
    /// Any.
    Anybody,
}

/// What a report says of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certificates {
    /// They had to be trusted.
    Checked,
    /// Any was accepted.
    NotChecked,
}

/// What all connections to one server share.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    /// How certificates are treated.
    pub certificates: Certificates,
}

impl Tls {
    /// For a host: a name, which the server is told (SNI), or an address.
    ///
    /// # Errors
    /// The host is neither, or the file of certificates cannot be used.
    pub fn new(host: &str, trust: &Trust) -> Result<Tls, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("{host:?} is no name that a certificate can have"))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = match trust {
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
            Trust::Public => builder.with_root_certificates(public_roots()).with_no_client_auth(),
            Trust::And(path) => builder.with_root_certificates(roots_and(path)?).with_no_client_auth(),
        };
        // RFC 6455 is an upgrade of HTTP/1.1; a server that would rather speak HTTP/2 has to be told.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let certificates = match trust {
            Trust::Anybody => Certificates::NotChecked,
            Trust::Public | Trust::And(_) => Certificates::Checked,
        };
        Ok(Tls { config: Arc::new(config), name, certificates })
    }

    /// The client's side of one connection.
    ///
    /// # Errors
    /// There is no randomness to begin with.
    pub fn session(&self) -> Result<ClientConnection, Failure> {
        let mut session =
            ClientConnection::new(self.config.clone(), self.name.clone()).map_err(|e| Failure::from(&e))?;
        session.set_buffer_limit(Some(SESSION_BYTES_MAX));
        Ok(session)
    }
}

fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn roots_and(path: &Path) -> Result<RootCertStore, String> {
    let failed = |why: String| format!("--tls-ca {}: {why}", path.display());
    let mut roots = public_roots();
    let before = roots.len();
    let file = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    if let Some(form) = FileForm::of(&file) {
        return Err(failed(form.to_string()));
    }
    for certificate in CertificateDer::pem_slice_iter(&file) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.len() == before { Err(failed("no certificate in it".to_owned())) } else { Ok(roots) }
}

/// Takes any certificate, but checks that the server has its key: so a handshake costs what it costs
/// elsewhere.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why TLS failed, in a form that can be counted: details of a single connection are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The server said so.
    Alert(u8),
    /// We do not accept the server's certificate.
    Certificate(&'static str),
    /// Anything else.
    Other(&'static str),
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        match error {
            Error::AlertReceived(alert) => Failure::Alert(u8::from(*alert)),
            Error::InvalidCertificate(why) => Failure::Certificate(complaint(why)),
            Error::NoCertificatesPresented => Failure::Certificate("none was sent"),
            Error::InvalidMessage(_) => Failure::Other("what came is no TLS"),
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                Failure::Other("a message at the wrong time")
            }
            Error::PeerIncompatible(_) => Failure::Other("no version or cipher in common"),
            Error::PeerMisbehaved(_) => Failure::Other("the server breaks the protocol"),
            Error::NoApplicationProtocol => Failure::Other("the server does not speak http/1.1"),
            Error::DecryptError => Failure::Other("what came cannot be decrypted"),
            Error::PeerSentOversizedRecord => Failure::Other("a record is too long"),
            _ => Failure::Other("failed"),
        }
    }
}

fn complaint(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::BadEncoding => "badly encoded",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not valid yet",
        CertificateError::Revoked => "revoked",
        CertificateError::UnknownIssuer => "of an unknown issuer",
        CertificateError::BadSignature => "badly signed",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "of another name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "not for servers"
        }
        // webpki's name for a certificate of an authority that a server uses as its own.
        CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
            "an authority's and not a server's"
        }
        _ => "not acceptable",
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Alert(code) => match AlertDescription::from(*code) {
                AlertDescription::Unknown(code) => write!(f, "tls: alert {code}"),
                alert => write!(f, "tls: alert {alert:?}"),
            },
            Failure::Certificate(why) => write!(f, "tls: certificate {why}"),
            Failure::Other(why) => write!(f, "tls: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_names() {
        let check = |error: Error, text: &str| assert_eq!(Failure::from(&error).to_string(), text);
        check(Error::AlertReceived(AlertDescription::HandshakeFailure), "tls: alert HandshakeFailure");
        check(Error::AlertReceived(AlertDescription::Unknown(201)), "tls: alert 201");
        check(CertificateError::UnknownIssuer.into(), "tls: certificate of an unknown issuer");
        check(Error::DecryptError, "tls: what came cannot be decrypted");
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for host in ["localhost", "example.org", "127.0.0.1", "::1"] {
            assert!(Tls::new(host, &Trust::Anybody).is_ok(), "{host}");
        }
        assert!(Tls::new("a b", &Trust::Public).is_err());
        assert!(Tls::new("a", &Trust::And("/nowhere/at/all".into())).is_err());
    }
}
