//! TLS to a server: the certificates to trust, and one configuration that all connections to the server share.
//!
//! With the configuration, connections share session tickets, so later handshakes are resumed as those of a browser.
//!
//! In a build without the cargo feature `tls`, `tls_missing` takes the place of this module.

mod error;
mod transport;

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::trust::{CA_FLAG, Certificates, Trust};
use crate::access::file_format::UnsupportedFormat;

pub use error::TlsError;
pub use transport::{TlsSession, TlsTransport};

/// Maximum plaintext that a session buffers before it is sent: four records.
const SESSION_BYTES_MAX: usize = 64 << 10;

/// The TLS configuration that all connections to one server share.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    certificates: Certificates,
    ca_flag: &'static str,
}

impl TlsConnector {
    /// A configuration for a host: a DNS name, which is sent to the server (SNI), or an IP address.
    ///
    /// # Errors
    /// The host is neither a DNS name nor an IP address, or the certificate file cannot be used.
    pub fn new(host: &str, trust: &Trust) -> Result<TlsConnector, String> {
        // RFC 6455 upgrades HTTP/1.1; without ALPN a server may choose HTTP/2.
        TlsConnector::with_protocols(host, trust, vec![b"http/1.1".to_vec()], CA_FLAG)
    }

    /// A configuration for a server that speaks one of these protocols (ALPN, RFC 7301); for an empty list, none is
    /// sent. `ca_flag` is the flag that sets the file of `trust`, for errors.
    ///
    /// # Errors
    /// As for [`TlsConnector::new`].
    pub fn with_protocols(
        host: &str,
        trust: &Trust,
        protocols: Vec<Vec<u8>>,
        ca_flag: &'static str,
    ) -> Result<TlsConnector, String> {
        let name = server_name(host)?;
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = match trust {
            Trust::Any => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
            Trust::Public => builder.with_root_certificates(public_roots()).with_no_client_auth(),
            Trust::PublicAnd(path) => {
                let roots = with_file(public_roots(), path).map_err(|why| format!("{ca_flag} {why}"))?;
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Trust::Only(path) => {
                let roots =
                    with_file(RootCertStore::empty(), path).map_err(|why| format!("{ca_flag} {why}"))?;
                builder.with_root_certificates(roots).with_no_client_auth()
            }
        };
        config.alpn_protocols = protocols;
        let certificates = match trust {
            Trust::Any => Certificates::NotChecked,
            Trust::Public | Trust::PublicAnd(_) | Trust::Only(_) => Certificates::Checked,
        };
        Ok(TlsConnector { config: Arc::new(config), name, certificates, ca_flag })
    }

    /// Returns this configuration for another host.
    ///
    /// # Errors
    /// The host is neither a DNS name nor an IP address.
    pub fn for_host(&self, host: &str) -> Result<TlsConnector, String> {
        Ok(TlsConnector { name: server_name(host)?, ..self.clone() })
    }

    /// The client side of one connection.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn session(&self) -> Result<TlsSession, TlsError> {
        let mut session = ClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(|error| TlsError::from(&error))?;
        session.set_buffer_limit(Some(SESSION_BYTES_MAX));
        Ok(TlsSession::new(session))
    }

    /// Returns whether certificates are verified.
    pub fn certificates(&self) -> Certificates {
        self.certificates
    }

    /// The flag for the file with the trusted authorities, for errors.
    pub fn ca_flag(&self) -> &'static str {
        self.ca_flag
    }
}

fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is not a name that a certificate can have"))
}

/// Adds the certificates of a PEM file.
fn with_file(mut roots: RootCertStore, path: &Path) -> Result<RootCertStore, String> {
    let failed = |why: String| format!("{}: {why}", path.display());
    let before = roots.len();
    let file = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    if let Some(form) = UnsupportedFormat::of(&file) {
        return Err(failed(form.to_string()));
    }
    for certificate in CertificateDer::pem_slice_iter(&file) {
        let certificate = certificate.map_err(|error| failed(error.to_string()))?;
        roots.add(certificate).map_err(|error| failed(error.to_string()))?;
    }
    if roots.len() == before { Err(failed("no certificate in it".to_owned())) } else { Ok(roots) }
}

/// Accepts any certificate, but verifies that the server has its private key, so that a handshake costs the same as
/// with a verified certificate.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_dns_name_or_an_address() {
        for host in ["localhost", "example.org", "127.0.0.1", "::1"] {
            assert!(TlsConnector::new(host, &Trust::Any).is_ok(), "{host}");
        }
        assert!(TlsConnector::new("a b", &Trust::Public).is_err());
        for trust in [Trust::PublicAnd("/nowhere/at/all".into()), Trust::Only("/nowhere/at/all".into())] {
            assert!(TlsConnector::new("a", &trust).unwrap_err().contains("/nowhere/at/all: "));
        }
    }
}
