//! SIGHUP: the certificate, the keys and the token of the metrics are read again.

use std::time::Duration;

use log::{error, info};

use super::Server;
use super::service_manager::ServiceManager;
use super::shutdown::ShutdownPhase;
use crate::access::metrics_token::MetricsToken;
use crate::access::token::Verifier;
use crate::net::acceptor::Acceptor;

/// The content of the files that SIGHUP reads again, except the certificate; or the reason for which a file cannot be
/// used.
#[derive(Debug)]
pub struct ReloadedFiles {
    /// The keys; `None`: none are configured.
    pub verifier: Result<Option<Verifier>, String>,
    /// The token that `/metrics` requires; `None`: none.
    pub metrics_token: Result<Option<MetricsToken>, String>,
}

impl<E: Acceptor> Server<E> {
    /// Uses the files for clients that connect, and for requests, from now on. No connection closes, and a file that
    /// cannot be used changes nothing.
    pub(super) fn reload(&mut self, files: ReloadedFiles, unix_now: Duration) {
        // In a drain, `READY=1` would announce that the server serves again.
        let is_notified = self.phase == ShutdownPhase::Serving;
        let manager = self.service_manager.as_mut().filter(|_| is_notified);
        manager.into_iter().for_each(|manager| manager.reloading("reading files again"));
        self.replace_files(files, unix_now);
        let manager = self.service_manager.as_mut().filter(|_| is_notified);
        manager.into_iter().for_each(ServiceManager::ready);
    }

    fn replace_files(&mut self, files: ReloadedFiles, unix_now: Duration) {
        let certificate = self.acceptor.reload(unix_now);
        let ReloadedFiles { verifier, metrics_token } = files;
        if matches!((&certificate, &verifier, &metrics_token), (Ok(false), Ok(None), Ok(None))) {
            info!("SIGHUP: nothing to reload: neither --tls-cert nor a key file is given");
        }
        match certificate {
            Ok(true) => {
                self.engine.shared.metrics.certificate_expires_at = self.acceptor.certificate_expires_at();
                info!("reloaded: the certificate");
            }
            Ok(false) => {}
            Err(why) => error!("not reloaded, the certificate stays as it was: {why}"),
        }
        match verifier {
            Ok(verifier) => {
                if let Some(verifier) = &verifier {
                    info!("reloaded: tokens are verified by {}", verifier.describe_keys());
                }
                self.engine.shared.authenticator.verifier = verifier;
            }
            Err(why) => error!("not reloaded, the keys stay as they were: {why}"),
        }
        match metrics_token {
            Ok(token) => {
                if token.is_some() {
                    info!("reloaded: the token of the metrics");
                }
                self.engine.shared.http_config.metrics_token = token;
            }
            Err(why) => error!("not reloaded, the token of the metrics stays as it was: {why}"),
        }
    }
}
