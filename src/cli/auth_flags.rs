//! Authentication flags: the keys that verify tokens, the rights of anonymous clients, and one-time tickets.

use std::rc::Rc;

use clap::Args;
use log::warn;

use super::failure::Failure;
use super::key_files::KeyFiles;
use super::values::{count, millis, small_count_or_0};
use crate::access::authenticator::{Authenticator, DateCache};
use crate::access::grant::Grant;
use crate::access::rate_limiter::RateLimiter;
use crate::access::rejection_log::RejectionLog;
use crate::access::ticket::Tickets;
use crate::access::token::Verifier;
use crate::config::ListenAddress;

/// The flags that decide which clients may connect.
#[derive(Clone, Debug, Args)]
pub(super) struct AuthFlags {
    #[command(flatten)]
    keys: KeyFiles,

    /// Name of this server: a token is accepted if it is for this name (aud). May be repeated [default: none].
    #[arg(long, env = "OYEZ_JWT_AUDIENCE", value_name = "AUDIENCE")]
    jwt_audience: Vec<String>,

    /// Issuer of tokens: a token of any other issuer is rejected (iss). May be repeated [default: none].
    #[arg(long, env = "OYEZ_JWT_ISSUER", value_name = "ISSUER")]
    jwt_issuer: Vec<String>,

    /// Rights of clients without a token: "subscribe=public.*,news publish=chat", or "subscribe=* publish=*" for
    /// everything [default: none].
    #[arg(long, env = "OYEZ_ANONYMOUS", value_name = "RULES", value_parser = rules)]
    anonymous: Option<Grant>,

    /// Accept tokens in the URL too (?token=), where logs and browser histories record them [default: off].
    #[arg(long, env = "OYEZ_ALLOW_QUERY_TOKEN")]
    allow_query_token: bool,

    /// Maximum time from the upgrade to the token of a client that has no rights without one, in milliseconds; then a
    /// close with 4008.
    #[arg(long, env = "OYEZ_AUTH_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pub(super) auth_timeout_ms: u32,

    /// Maximum time from a token's expiry to the close of a client that sends no new one, in milliseconds; then 4201.
    #[arg(long, env = "OYEZ_TOKEN_GRACE_MS", value_name = "MS", default_value = "25000", value_parser = millis)]
    pub(super) token_grace_ms: u32,

    /// Maximum tokens that a connection sends in its messages per second, with a burst of as many; above it a close
    /// with 4101, or an error in oyez.v1; 0: no limit.
    #[arg(long, env = "OYEZ_AUTHS_PER_SECOND", value_name = "N", default_value = "5", value_parser = small_count_or_0)]
    pub(super) auths_per_second: u32,

    /// Maximum one-time tickets that are not yet used (POST /v1/tickets); above it 503.
    #[arg(long, env = "OYEZ_TICKETS_MAX", value_name = "N", default_value = "10000", value_parser = count)]
    pub(super) tickets_max: usize,

    /// Maximum unused one-time tickets of one client: a user by the token's `sub`, else an address or an IPv6 /64;
    /// above it 429.
    #[arg(long, env = "OYEZ_TICKETS_PER_CLIENT_MAX", value_name = "N", default_value = "1000", value_parser = count)]
    pub(super) tickets_per_client_max: usize,
}

/// How to protect a server by tokens, in a build that has them.
const KEY_ADVICE: &str = if cfg!(feature = "jwt") {
    "a key that verifies tokens (`oyez token secret FILE`, then --jwt-secret-file FILE), or "
} else {
    ""
};

fn rules(text: &str) -> Result<Grant, String> {
    Grant::anonymous(text).map_err(|why| why.to_string())
}

impl AuthFlags {
    /// Reads the key files as they are now; `None` if no key file is given.
    pub(super) fn verifier(&self) -> Result<Option<Verifier>, Failure> {
        let keys = self.keys.load()?;
        let (audiences, issuers) = (&self.jwt_audience, &self.jwt_issuer);
        if keys.is_none() && !(audiences.is_empty() && issuers.is_empty()) {
            return Err(Failure::Usage(
                "--jwt-audience and --jwt-issuer need a key that verifies tokens: --jwt-secret-file FILE, --jwt-public-key FILE or --jwks-file FILE"
                    .to_owned(),
            ));
        }
        Ok(keys.map(|keys| Verifier::new(keys, audiences.clone(), issuers.clone())))
    }

    /// Makes the authenticator of a server that listens on these addresses, and a description for the log. Without a
    /// key or an explicit `--anonymous`, only a server on loopback addresses and Unix sockets accepts clients.
    pub(super) fn authenticator(&self, listen: &[ListenAddress]) -> Result<(Authenticator, String), Failure> {
        let verifier = self.verifier()?;
        let public = listen.iter().find(|address| !address.is_local());
        let mut facts = Vec::new();
        if let Some(verifier) = &verifier {
            facts.push(format!("tokens are verified by {}", verifier.describe_keys()));
        }
        let anonymous = match (&verifier, &self.anonymous, public) {
            (_, Some(rules), _) => {
                if let (None, Some(public)) = (&verifier, public) {
                    warn!("{public} is reachable from other machines without a key: {}", rights(rules));
                } else {
                    facts.push(format!("anonymous clients: {}", rights(rules)));
                }
                rules.clone()
            }
            (Some(_), None, _) => Grant::default(),
            (None, None, None) => {
                let fact = "no key is configured: every program of this machine has all rights, and other machines have no access";
                facts.push(fact.to_owned());
                Grant::everything()
            }
            (None, None, Some(public)) => {
                return Err(Failure::Usage(format!(
                    "{public} is reachable from other machines without access control: configure {KEY_ADVICE}the rights of anonymous clients (--anonymous 'subscribe=* publish=*' is everything)"
                )));
            }
        };
        let authenticator = Authenticator {
            rejection_log: RejectionLog::default(),
            loopback_only: verifier.is_none() && self.anonymous.is_none(),
            verifier,
            anonymous: Rc::new(anonymous),
            allow_query_token: self.allow_query_token,
            tickets: Tickets::new(self.tickets_max, self.tickets_per_client_max),
            auths: RateLimiter::new(),
            unix_now: 0,
            date: DateCache::default(),
        };
        Ok((authenticator, facts.join("; ")))
    }
}

fn rights(grant: &Grant) -> String {
    let list = |patterns: &crate::access::grant::Patterns| {
        let words: Vec<&str> = patterns.iter().collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(",") }
    };
    format!(
        "every client may subscribe to {} and publish on {}",
        list(&grant.subscribe),
        list(&grant.publish)
    )
}
