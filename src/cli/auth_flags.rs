//! The flags that say who may come in, and what comes of them.

use std::net::SocketAddr;
use std::rc::Rc;

use clap::Args;
use log::warn;

use super::Failure;
use super::key_files::KeyFiles;
use super::values::{count, millis, small_count_or_0};
use crate::access::gate::{DateCache, Gate};
use crate::access::grant::Grant;
use crate::access::pace::Meters;
use crate::access::refusals::RefusalLog;
use crate::access::ticket::Tickets;
use crate::access::token::Verifier;

/// Who may come in.
#[derive(Clone, Debug, Args)]
pub(super) struct AuthFlags {
    #[command(flatten)]
    keys: KeyFiles,

    /// Who we are: a token is taken if it is for one of these (aud). Several [default: none].
    #[arg(long, env = "OYEZ_JWT_AUDIENCE", value_name = "AUDIENCE")]
    jwt_audience: Vec<String>,

    /// Who makes tokens: one from anybody else is not taken (iss). Several [default: none].
    #[arg(long, env = "OYEZ_JWT_ISSUER", value_name = "ISSUER")]
    jwt_issuer: Vec<String>,

    /// What everybody may do without a token: "subscribe=public.*,news publish=chat", or
    /// "subscribe=* publish=*" for everything [default: none].
    #[arg(long, env = "OYEZ_ANONYMOUS", value_name = "RULES", value_parser = rules)]
    anonymous: Option<Grant>,

    /// Take tokens in the address too (?token=), where logs and histories see them [default: off].
    #[arg(long, env = "OYEZ_ALLOW_QUERY_TOKEN")]
    allow_query_token: bool,

    /// Longest time from the upgrade to the token of who may do nothing without one, in milliseconds; after
    /// it a close with 4008.
    #[arg(long, env = "OYEZ_AUTH_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    pub(super) auth_timeout_ms: u32,

    /// Longest time from a token's end to the close of who shows no new one, in milliseconds; then 4201.
    #[arg(long, env = "OYEZ_TOKEN_GRACE_MS", value_name = "MS", default_value = "25000", value_parser = millis)]
    pub(super) token_grace_ms: u32,

    /// Most tokens that a connection shows in its messages in a second, and as many at once; over it a close with
    /// 4101, or an error in oyez.v1; 0 is no limit.
    #[arg(long, env = "OYEZ_AUTHS_PER_SECOND", value_name = "N", default_value = "5", value_parser = small_count_or_0)]
    pub(super) auths_per_second: u32,

    /// Most one-time tickets that are out (POST /v1/tickets); over it 503.
    #[arg(long, env = "OYEZ_TICKETS_MAX", value_name = "N", default_value = "10000", value_parser = count)]
    pub(super) tickets_max: usize,

    /// Maximum one-time tickets that one client holds at a time: a person by its token's `sub`, else an address or a /64
    /// of IPv6; over it 429.
    #[arg(long, env = "OYEZ_TICKETS_PER_CLIENT_MAX", value_name = "N", default_value = "1000", value_parser = count)]
    pub(super) tickets_per_client_max: usize,
}

fn rules(text: &str) -> Result<Grant, String> {
    Grant::anonymous(text).map_err(|why| why.to_string())
}

impl AuthFlags {
    /// The keys as they are in their files now; `None` if none is named.
    pub(super) fn verifier(&self) -> Result<Option<Verifier>, Failure> {
        let keys = self.keys.load()?;
        let (audiences, issuers) = (&self.jwt_audience, &self.jwt_issuer);
        if keys.is_none() && !(audiences.is_empty() && issuers.is_empty()) {
            return Err(Failure::Usage(
                "--jwt-audience and --jwt-issuer are about tokens, and no key is given to check one: --jwt-secret-file FILE, --jwt-public-key FILE or --jwks-file FILE"
                    .to_owned(),
            ));
        }
        Ok(keys.map(|keys| Verifier { keys, audiences: audiences.clone(), issuers: issuers.clone() }))
    }

    /// The gate of a server that listens on this address, and a description for the log. Without a key or an explicit
    /// `--anonymous`, only a server that no other machine reaches is open.
    pub(super) fn gate(&self, listen: SocketAddr) -> Result<(Gate, String), Failure> {
        let verifier = self.verifier()?;
        let is_local = listen.ip().to_canonical().is_loopback();
        let mut facts = Vec::new();
        if let Some(verifier) = &verifier {
            facts.push(format!("tokens are checked by {}", verifier.keys.describe()));
        }
        let anonymous = match (&verifier, &self.anonymous) {
            (_, Some(rules)) => {
                if verifier.is_none() && !is_local {
                    warn!(
                        "{listen} can be reached from other machines, and there is no key: {}",
                        rights(rules)
                    );
                } else {
                    facts.push(format!("without a token: {}", rights(rules)));
                }
                rules.clone()
            }
            (Some(_), None) => Grant::default(),
            (None, None) if is_local => {
                let fact =
                    "no key is given: everything is open to every program of this machine, and to no other";
                facts.push(fact.to_owned());
                Grant::everything()
            }
            (None, None) => {
                return Err(Failure::Usage(format!(
                    "{listen} can be reached from other machines, and nothing says who may come in: give a key that tokens are checked with (`oyez token secret FILE`, then --jwt-secret-file FILE), or say what everybody may do (--anonymous 'subscribe=* publish=*' is everything)"
                )));
            }
        };
        let gate = Gate {
            refusal_log: RefusalLog::default(),
            only_this_machine: verifier.is_none() && self.anonymous.is_none(),
            verifier,
            anonymous: Rc::new(anonymous),
            allow_query_token: self.allow_query_token,
            tickets: Tickets::new(self.tickets_max, self.tickets_per_client_max),
            auths: Meters::new(),
            unix_now: 0,
            date: DateCache::default(),
        };
        Ok((gate, facts.join("; ")))
    }
}

fn rights(grant: &Grant) -> String {
    let list = |patterns: &crate::access::grant::Patterns| {
        let words: Vec<&str> = patterns.iter().collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(",") }
    };
    format!("everybody may subscribe to {} and publish on {}", list(&grant.subscribe), list(&grant.publish))
}
