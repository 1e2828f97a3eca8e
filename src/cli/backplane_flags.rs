//! Flags of the backplane: the address of the Redis server whose stream several nodes share, and its limits.

use std::path::PathBuf;

use clap::Args;

use super::environment::{self, BACKPLANE_PASSWORD};
use super::failure::Failure;
use super::key_files;
use super::missing;
use super::values::{bytes, millis, seconds};
use crate::backplane::resp::BULK_BYTES_MAX;
use crate::byte_size::ByteSize;
use crate::config::{BackplaneAddress, BackplaneConfig, Limits};
use crate::features::HasBackplane;

/// The port of Redis.
const PORT: u16 = 6379;

/// The default port of a Sentinel.
const SENTINEL_PORT: u16 = 26379;

/// The shortest `--backplane-age-seconds`: a node that is not connected for less reads everything.
const AGE_SECONDS_MIN: u32 = 60;

/// Minimum of `--backplane-bytes-max`: every node trims the log that all of them share.
const BYTES_MAX_MIN: usize = 1 << 20;

/// Bytes that a message's entry can have in addition to its payload: the items before it, the channel, the user, and
/// the key.
const MESSAGE_OVERHEAD_BYTES: usize = 128 << 10;

/// Maximum `--backplane-wait-timeout-ms`: a heartbeat is sent every 2 s, and after 6 s without one a node is timed out.
const WAIT_TIMEOUT_MS_MAX: u32 = 3_000;

/// Maximum length of `--backplane-name`.
const NAME_BYTES_MAX: usize = 64;

/// The flags of the backplane.
#[derive(Clone, Debug, Args)]
pub(super) struct BackplaneFlags {
    /// Redis or Valkey server whose stream is the log of several nodes: redis://HOST:PORT/DB, rediss:// (TLS),
    /// redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB or unix:/PATH [default: none].
    #[arg(long, env = "OYEZ_BACKPLANE", value_name = "URL", value_parser = address)]
    backplane: Option<(BackplaneAddress, u32)>,

    /// Name of the log on that server: nodes with the same name share it.
    #[arg(long, env = "OYEZ_BACKPLANE_NAME", value_name = "NAME", default_value = "main", value_parser = name)]
    backplane_name: String,

    /// User for AUTH at the backplane [default: none].
    #[arg(long, env = "OYEZ_BACKPLANE_USER", value_name = "USER")]
    backplane_user: Option<String>,

    /// File with the password for AUTH at the backplane [default: none].
    #[arg(long, env = "OYEZ_BACKPLANE_PASSWORD_FILE", value_name = "FILE")]
    backplane_password_file: Option<PathBuf>,

    /// PEM file with the authorities that are trusted for rediss:// [default: those of browsers].
    #[arg(long, env = "OYEZ_BACKPLANE_TLS_CA", value_name = "FILE")]
    backplane_tls_ca: Option<PathBuf>,

    /// Maximum age of the log's entries, in seconds; at least 60, and that of histories and idempotency keys [default:
    /// the largest of these].
    #[arg(long, env = "OYEZ_BACKPLANE_AGE_SECONDS", value_name = "S", value_parser = seconds)]
    backplane_age_seconds: Option<u32>,

    /// Maximum bytes of the log's entries; the oldest are trimmed.
    #[arg(long, env = "OYEZ_BACKPLANE_BYTES_MAX", value_name = "BYTES", default_value = "256MiB", value_parser = bytes)]
    backplane_bytes_max: usize,

    /// Maximum bytes of publishes that the backplane has not acknowledged; above it they are rejected
    /// (backplane_down).
    #[arg(long, env = "OYEZ_BACKPLANE_PENDING_BYTES_MAX", value_name = "BYTES", default_value = "16MiB", value_parser = bytes)]
    backplane_pending_bytes_max: usize,

    /// Maximum time from a publish to its acknowledgement, in milliseconds; then it is rejected (backplane_down), or
    /// unconfirmed.
    #[arg(long, env = "OYEZ_BACKPLANE_PUBLISH_TIMEOUT_MS", value_name = "MS", default_value = "10000", value_parser = millis)]
    backplane_publish_timeout_ms: u32,

    /// Maximum time until a heartbeat is read back from the backplane, in milliseconds; then the node connects again.
    #[arg(long, env = "OYEZ_BACKPLANE_HEARTBEAT_TIMEOUT_MS", value_name = "MS", default_value = "5000", value_parser = millis)]
    backplane_heartbeat_timeout_ms: u32,

    /// Redis replicas that must have a message before it is acknowledged; if they do not in time, it is unconfirmed.
    #[arg(long, env = "OYEZ_BACKPLANE_WAIT_REPLICAS", value_name = "N", default_value = "0")]
    backplane_wait_replicas: u32,

    /// Maximum time to wait for these replicas, in milliseconds; at most 3000.
    #[arg(long, env = "OYEZ_BACKPLANE_WAIT_TIMEOUT_MS", value_name = "MS", default_value = "1000", value_parser = wait_millis)]
    backplane_wait_timeout_ms: u32,
}

impl BackplaneFlags {
    /// The configuration, with the password.
    pub(super) fn config(&self, limits: &Limits) -> Result<Option<BackplaneConfig>, Failure> {
        let Some((address, database)) = self.backplane.clone() else { return self.without_backplane() };
        let (history, keys) = (limits.history.age_ms / 1_000, limits.idempotency.age_ms / 1_000);
        let least = AGE_SECONDS_MIN.max(history).max(keys);
        let age_seconds = self.backplane_age_seconds.unwrap_or(least);
        if age_seconds < least {
            return Err(Failure::Usage(format!(
                "--backplane-age-seconds {age_seconds} is less than {least}: it must be at least {AGE_SECONDS_MIN}, \
                 --history-age-seconds and --idempotency-age-seconds, so that a node that starts has what the others have"
            )));
        }
        if self.backplane_bytes_max < BYTES_MAX_MIN {
            return Err(Failure::Usage(format!(
                "--backplane-bytes-max {} is less than {}: raise it, since a node that starts reads the histories from the \
                 log",
                ByteSize::from(self.backplane_bytes_max),
                ByteSize::from(BYTES_MAX_MIN)
            )));
        }
        self.check_message_size(limits)?;
        let password = self.password()?;
        if self.backplane_user.is_some() && password.is_none() {
            let why = format!(
                "--backplane-user needs a password: --backplane-password-file or {BACKPLANE_PASSWORD}"
            );
            return Err(Failure::Usage(why));
        }
        if self.backplane_tls_ca.is_some() && !matches!(address, BackplaneAddress::Tcp { tls: true, .. }) {
            return Err(Failure::Usage("--backplane-tls-ca needs --backplane rediss://HOST:PORT/DB".into()));
        }
        let feature = HasBackplane::get()
            .ok_or_else(|| Failure::Usage(missing::not_built("backplane", "backplane")))?;
        Ok(Some(BackplaneConfig {
            feature,
            address,
            database,
            name: self.backplane_name.clone(),
            user: self.backplane_user.clone(),
            password,
            tls_ca: self.backplane_tls_ca.clone(),
            age_ms: u64::from(age_seconds) * 1_000,
            bytes_max: self.backplane_bytes_max as u64,
            pending_bytes_max: self.backplane_pending_bytes_max,
            publish_timeout_ms: self.backplane_publish_timeout_ms,
            heartbeat_timeout_ms: self.backplane_heartbeat_timeout_ms,
            wait_replicas: self.backplane_wait_replicas,
            wait_timeout_ms: self.backplane_wait_timeout_ms,
        }))
    }

    /// The password of the file or of the environment variable.
    fn password(&self) -> Result<Option<String>, Failure> {
        const FLAG: &str = "--backplane-password-file";
        match (&self.backplane_password_file, environment::value(BACKPLANE_PASSWORD)?) {
            (Some(path), None) => key_files::read_password(FLAG, path).map(Some),
            (None, password) => Ok(password),
            (Some(_), Some(_)) => {
                Err(Failure::Usage(format!("{FLAG} and {BACKPLANE_PASSWORD} are both given: remove one")))
            }
        }
    }

    /// Rejects flags that have an effect with a backplane only. Those with a default are accepted, since they may come
    /// from a file of variables.
    fn without_backplane(&self) -> Result<Option<BackplaneConfig>, Failure> {
        let given = [
            ("--backplane-user", self.backplane_user.is_some()),
            ("--backplane-password-file", self.backplane_password_file.is_some()),
            (BACKPLANE_PASSWORD, environment::value(BACKPLANE_PASSWORD)?.is_some()),
            ("--backplane-tls-ca", self.backplane_tls_ca.is_some()),
            ("--backplane-wait-replicas", self.backplane_wait_replicas > 0),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::Usage(format!("{flag} needs --backplane URL"))),
            None => Ok(None),
        }
    }

    /// Checks that every message that this node accepts fits into the log, and that every other node can read it from
    /// there.
    fn check_message_size(&self, limits: &Limits) -> Result<(), Failure> {
        let (flag, bytes) = if limits.body_bytes_max > limits.message_bytes_max {
            ("--body-bytes-max", limits.body_bytes_max)
        } else {
            ("--message-bytes-max", limits.message_bytes_max)
        };
        let pending = self.backplane_pending_bytes_max;
        let entry = bytes.saturating_add(MESSAGE_OVERHEAD_BYTES);
        if entry > pending {
            return Err(Failure::Usage(format!(
                "{flag} {} and {} more do not fit into --backplane-pending-bytes-max {}: raise it to {}, or lower {flag}",
                ByteSize::from(bytes),
                ByteSize::from(MESSAGE_OVERHEAD_BYTES),
                ByteSize::from(pending),
                ByteSize::at_least(entry as u64)
            )));
        }
        if entry > BULK_BYTES_MAX {
            return Err(Failure::Usage(format!(
                "{flag} {} is too much with --backplane: nodes read messages of at most {} from the log, so lower it",
                ByteSize::from(bytes),
                ByteSize::from(BULK_BYTES_MAX - MESSAGE_OVERHEAD_BYTES)
            )));
        }
        Ok(())
    }
}

fn wait_millis(text: &str) -> Result<u32, String> {
    match millis(text)? {
        wait_ms @ 1..=WAIT_TIMEOUT_MS_MAX => Ok(wait_ms),
        _ => Err(format!(
            "not 1 to {WAIT_TIMEOUT_MS_MAX}: heartbeats wait too, and a node without them for 6 s is timed out"
        )),
    }
}

fn name(text: &str) -> Result<String, String> {
    let in_alphabet = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if in_alphabet && (1..=NAME_BYTES_MAX).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("not 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 _ . -"))
}

/// The address and the number of the database of `redis://host:port/db`, `rediss://host:port/db`, `unix:/path` or
/// `redis+sentinel://host:port,host:port/primary/db`.
fn address(text: &str) -> Result<(BackplaneAddress, u32), String> {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return match path.starts_with('/') {
            true => Ok((BackplaneAddress::Unix(path.into()), 0)),
            false => Err("write unix:/PATH, with an absolute path".into()),
        };
    }
    let bad = || {
        "write redis://HOST:PORT/DB, rediss://HOST:PORT/DB, unix:/PATH or redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB"
            .to_owned()
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(bad)?;
    if rest.contains('@') {
        return Err("a password in an address ends up in process lists and logs: use --backplane-user and \
                    --backplane-password-file"
            .into());
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let database = |number: &str| if number.is_empty() { Ok(0) } else { number.parse().map_err(|_| bad()) };
    match scheme {
        "redis" | "rediss" => {
            let (host, port) = host_and_port(authority, PORT).ok_or_else(bad)?;
            Ok((BackplaneAddress::Tcp { host, port, tls: scheme == "rediss" }, database(path)?))
        }
        "redis+sentinel" => {
            let (primary, number) = path.split_once('/').unwrap_or((path, ""));
            let sentinels = authority.split(',').map(|one| host_and_port(one, SENTINEL_PORT));
            let sentinels = sentinels.collect::<Option<Vec<_>>>().ok_or_else(bad)?;
            if primary.is_empty() {
                return Err(bad());
            }
            let address = BackplaneAddress::Sentinel { sentinels, primary: primary.to_owned() };
            Ok((address, database(number)?))
        }
        _ => Err(bad()),
    }
}

fn host_and_port(authority: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match authority.rsplit_once(':') {
        // An IPv6 address without a port ends in its bracket.
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty() && port != 0).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "backplane")]
    #[test]
    fn flag_without_a_backplane_or_out_of_bounds_is_rejected() {
        use clap::FromArgMatches;

        let check = |arguments: &[&str]| {
            let command = BackplaneFlags::augment_args(clap::Command::new("serve"));
            let matches = command.get_matches_from([&["serve"], arguments].concat());
            let flags = BackplaneFlags::from_arg_matches(&matches).unwrap();
            flags.config(&Limits::default()).map(|config| config.is_some()).map_err(|error| error.to_string())
        };
        assert_eq!((check(&[]), check(&["--backplane=redis://a"])), (Ok(false), Ok(true)));
        assert_eq!(check(&["--backplane-name=a"]), Ok(false));
        for (arguments, says) in [
            (&["--backplane-wait-replicas=1"][..], "--backplane-wait-replicas needs --backplane URL"),
            (&["--backplane-user=a"], "--backplane-user needs --backplane URL"),
            (&["--backplane=redis://a", "--backplane-bytes-max=1"], "is less than 1MiB"),
            (&["--backplane=redis://a", "--backplane-pending-bytes-max=1"], "raise it to"),
            (&["--backplane=redis://a", "--backplane-age-seconds=1"], "is less than"),
        ] {
            let error = check(arguments).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn address_of_each_form_is_parsed() {
        let tcp = |host: &str, port| BackplaneAddress::Tcp { host: host.to_owned(), port, tls: false };
        let sentinel = |sentinels: &[(&str, u16)]| BackplaneAddress::Sentinel {
            sentinels: sentinels.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect(),
            primary: "mymaster".to_owned(),
        };
        for (text, expected, database) in [
            ("redis://localhost", tcp("localhost", 6379), 0),
            ("redis://10.0.0.1:7000/3", tcp("10.0.0.1", 7000), 3),
            ("redis://[::1]", tcp("::1", 6379), 0),
            ("redis://[::1]:7000/", tcp("::1", 7000), 0),
            (
                "rediss://redis.example.com:6380/1",
                BackplaneAddress::Tcp { host: "redis.example.com".to_owned(), port: 6380, tls: true },
                1,
            ),
            (
                "redis+sentinel://10.0.0.1,[::1]:26380,c/mymaster/2",
                sentinel(&[("10.0.0.1", 26379), ("::1", 26380), ("c", 26379)]),
                2,
            ),
            ("redis+sentinel://a/mymaster", sentinel(&[("a", 26379)]), 0),
            ("unix:/run/redis.sock", BackplaneAddress::Unix("/run/redis.sock".into()), 0),
            ("unix:///run/redis.sock", BackplaneAddress::Unix("/run/redis.sock".into()), 0),
        ] {
            assert_eq!(address(text), Ok((expected, database)), "{text}");
        }
        for text in [
            "",
            "redis://",
            "localhost:6379",
            "redis://h:x",
            "redis://h:0",
            "redis://h/x",
            "unix:x",
            "http://h",
            "redis+sentinel://h",
            "redis+sentinel://h/",
            "redis+sentinel://h,/main",
            "redis+sentinel:///main",
            "redis+sentinel://h/main/x",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
        assert!(address("redis://user:secret@host").unwrap_err().contains("--backplane-password-file"));
    }

    #[test]
    fn name_of_a_log_has_a_bounded_length_and_alphabet() {
        assert!(name("main").is_ok() && name(&"a".repeat(64)).is_ok());
        for bad in ["", "a b", "a}", "{a", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
