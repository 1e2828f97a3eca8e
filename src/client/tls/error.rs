//! TLS failures in a form that can be counted: details of a single connection are left out.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

use crate::client::trust::CA_FLAG;

/// Why TLS failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsError {
    /// The server sent this alert.
    Alert(u8),
    /// The client does not accept the server's certificate.
    Certificate(&'static str),
    /// Any other failure.
    Other(&'static str),
}

impl TlsError {
    /// Advice, if the user can do something about the failure. `flag` names the file with the trusted authorities.
    pub fn advice(self, flag: &str) -> Option<String> {
        (self == UNKNOWN_ISSUER).then(|| format!("trust its authority with {flag} FILE"))
    }

    /// [`TlsError::advice`] about an error of which only the text is left.
    pub fn advice_about(text: &str) -> Option<String> {
        if text == UNKNOWN_ISSUER.to_string() { UNKNOWN_ISSUER.advice(CA_FLAG) } else { None }
    }
}

/// No authority that the client trusts has issued the certificate.
const UNKNOWN_ISSUER: TlsError = TlsError::Certificate("of an unknown issuer");

impl From<&Error> for TlsError {
    fn from(error: &Error) -> TlsError {
        match error {
            Error::AlertReceived(alert) => TlsError::Alert(u8::from(*alert)),
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => UNKNOWN_ISSUER,
            Error::InvalidCertificate(why) => TlsError::Certificate(problem(why)),
            Error::NoCertificatesPresented => TlsError::Certificate("missing"),
            Error::InvalidMessage(_) => TlsError::Other("the server does not speak TLS"),
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                TlsError::Other("unexpected message")
            }
            Error::PeerIncompatible(_) => TlsError::Other("no version or cipher in common"),
            Error::PeerMisbehaved(_) => TlsError::Other("the server violates the protocol"),
            Error::NoApplicationProtocol => TlsError::Other("the server does not speak http/1.1"),
            Error::DecryptError => TlsError::Other("decryption failed"),
            Error::PeerSentOversizedRecord => TlsError::Other("record too long"),
            _ => TlsError::Other("failed"),
        }
    }
}

fn problem(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::BadEncoding => "badly encoded",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not valid yet",
        CertificateError::Revoked => "revoked",
        CertificateError::BadSignature => "badly signed",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "for another host name"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "not for servers"
        }
        // webpki's name for the error of a server that uses the certificate of an authority as its own.
        CertificateError::Other(error) if error.to_string().contains("CaUsedAsEndEntity") => {
            "of a certificate authority, not of a server"
        }
        _ => "not acceptable",
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Alert(code) => match AlertDescription::from(*code) {
                AlertDescription::Unknown(code) => write!(f, "tls: alert {code}"),
                alert => write!(f, "tls: alert {alert:?}"),
            },
            TlsError::Certificate(why) => write!(f, "tls: certificate {why}"),
            TlsError::Other(why) => write!(f, "tls: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_error_is_displayed_with_its_cause() {
        let check = |error: Error, text: &str| assert_eq!(TlsError::from(&error).to_string(), text);
        check(Error::AlertReceived(AlertDescription::HandshakeFailure), "tls: alert HandshakeFailure");
        check(Error::AlertReceived(AlertDescription::Unknown(201)), "tls: alert 201");
        check(CertificateError::UnknownIssuer.into(), "tls: certificate of an unknown issuer");
        check(Error::DecryptError, "tls: decryption failed");
    }
}
