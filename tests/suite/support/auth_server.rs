//! A server with a key, and tokens for it.

use std::time::{SystemTime, UNIX_EPOCH};

use oyez::access::keys::{Keys, SigningKey};
use oyez::access::token::{NewClaims, OyezClaim, Verifier};

use super::client::Client;
use super::folder::Folder;
use super::frames::upgrade_with;
use super::process::{Server, oyez};

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";
pub const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210";

pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The verifier of a server with [`SECRET`].
pub fn verifier() -> Verifier {
    Verifier::new(Keys::from_secret(SECRET.as_bytes()).unwrap(), vec![], vec![])
}

/// Claims of a user, valid for an hour from `now`.
pub fn claims(sub: &str, subscribe: &[&str], publish: &[&str], now: u64) -> NewClaims {
    let list = |patterns: &[&str]| patterns.iter().map(|one| (*one).to_owned()).collect();
    let oyez = OyezClaim { subscribe: list(subscribe), publish: list(publish), ..OyezClaim::default() };
    NewClaims { sub: Some(sub.to_owned()), iat: now, exp: now + 3_600, oyez, ..NewClaims::default() }
}

pub fn sign(claims: &NewClaims) -> String {
    SigningKey::from_secret(SECRET.as_bytes()).unwrap().sign(claims, None).unwrap()
}

/// A valid token.
pub fn token(sub: &str, subscribe: &[&str], publish: &[&str]) -> String {
    sign(&claims(sub, subscribe, publish, unix_now()))
}

/// The token of an admin with all rights.
pub fn admin() -> String {
    let mut claims = claims("root", &["*"], &["*"], unix_now());
    claims.oyez.admin = true;
    sign(&claims)
}

pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A real server with a key.
pub struct AuthServer {
    pub server: Server,
    pub folder: Folder,
}

impl AuthServer {
    pub fn start(flags: &[&str]) -> AuthServer {
        AuthServer::start_at(flags, None)
    }

    /// The same with a log level.
    pub fn start_at(flags: &[&str], level: Option<&str>) -> AuthServer {
        let folder = Folder::new();
        let secret = folder.file("secret", SECRET);
        let serve = ["serve", "--listen", "127.0.0.1:0", "--jwt-secret-file", &secret];
        let mut command = oyez(&[&serve, flags].concat());
        if let Some(level) = level {
            command.env("RUST_LOG", level);
        }
        AuthServer { server: Server::start_command(command), folder }
    }

    /// A client that has made the upgrade.
    pub fn upgraded(&self, path: &str, lines: &str) -> Client {
        let mut client = Client::new(self.server.connect());
        client.send(upgrade_with(path, lines).as_bytes());
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    /// The close that follows the upgrade at once.
    pub fn closed(&self, path: &str, lines: &str) -> (u16, String) {
        self.upgraded(path, lines).closed_and_ended()
    }
}
